//! Docker's multiplexed stream: frames of stream (1 is standard output, 2 standard error), three zero bytes, length (u32, big-endian), bytes
//! (Engine API, "Stream format" of attach).

/// Media type of a stream without frames: a terminal's.
pub(crate) const RAW: &str = "application/vnd.docker.raw-stream";
/// Media type of the stream with frames.
pub(crate) const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

/// Appends a frame.
pub(crate) fn push(out: &mut Vec<u8>, is_stderr: bool, bytes: &[u8]) {
    // A piece of output has some kilobytes; one beyond 4 GiB would be several frames.
    for chunk in bytes.chunks(u32::MAX as usize) {
        out.extend_from_slice(&[1 + u8::from(is_stderr), 0, 0, 0]);
        out.extend_from_slice(&(chunk.len() as u32).to_be_bytes());
        out.extend_from_slice(chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_says_which_stream_and_how_long() {
        let mut out = Vec::new();
        push(&mut out, false, b"hi\n");
        push(&mut out, true, b"");
        push(&mut out, true, b"oops");
        assert_eq!(out, b"\x01\0\0\0\0\0\0\x03hi\n\x02\0\0\0\0\0\0\x04oops");
    }
}
