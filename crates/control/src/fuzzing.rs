//! Entrances for fuzzing; not part of the interface.

use std::convert::Infallible;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::{HeaderMap, HeaderValue, header};

use crate::containers::checks;
use crate::upload::metadata::Metadata;
use crate::upload::multipart;

/// Parts of an upload, which random bytes would not often be.
const PIECES: &[&str] = &[
    "--b\r\n",
    "\r\n--b\r\n",
    "\r\n--b--\r\n",
    "Content-Disposition: form-data; name=\"metadata\"\r\n",
    "Content-Disposition: form-data; name=\"a.js\"; filename=\"a.js\"\r\n",
    "Content-Type: application/javascript+module\r\n",
    "Content-Type: application/json\r\n",
    "\r\n",
    "{\"main_module\":\"a.js\",\"compatibility_date\":\"2026-01-01\",",
    "\"bindings\":[{\"type\":\"plain_text\",\"name\":\"A\",\"text\":\"b\"}],",
    "\"containers\":[{\"class_name\":\"C\",\"images\":{\"a\":\"b\"}}],",
    "\"migrations\":{\"new_tag\":\"v1\",\"steps\":[{\"new_sqlite_classes\":[\"C\"]}]},",
    "\"annotations\":{\"workers/message\":\"x\"},\"assets\":{\"jwt\":\"x\",\"config\":{}},",
    "\"placement\":{}}",
];
/// Bytes from this one on stand for a piece, unless they come after 0xff, which stands for what
/// follows it.
const FIRST_PIECE: u8 = 0xff - PIECES.len() as u8;

/// A script upload: the first byte says into how many pieces the body is cut. Also the metadata and
/// an application's configuration as they stand.
///
/// # Panics
/// The body is read to its end and there is no answer.
pub fn multipart(input: &[u8]) {
    let Some((how, input)) = input.split_first() else {
        return;
    };
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = multipart::module_name(text);
        metadata(text);
    }
    if let Ok(value) = serde_json::from_slice(input) {
        let _ = checks::configuration(&value);
        let _ = checks::managed_configuration(&value);
        let _ = checks::max_instances(&value);
        let _ = wharf_model::Settings::read(&value);
    }
    let mut body = Vec::new();
    let mut bytes = input.iter();
    while let Some(byte) = bytes.next() {
        match byte.checked_sub(FIRST_PIECE).map(usize::from) {
            None => body.push(*byte),
            Some(n) => match PIECES.get(n) {
                Some(piece) => body.extend_from_slice(piece.as_bytes()),
                None => body.extend(bytes.next()),
            },
        }
    }
    let mut headers = HeaderMap::new();
    let kind = HeaderValue::from_static("multipart/form-data; boundary=b");
    headers.insert(header::CONTENT_TYPE, kind);
    let chunks: Vec<_> = body
        .chunks(usize::from(*how) + 1)
        .map(|chunk| Ok::<_, Infallible>(Bytes::copy_from_slice(chunk)))
        .collect();
    let body = Body::from_stream(stream::iter(chunks));
    let put = |content: Bytes| async move { Ok(content.len().to_string()) }.boxed();
    // There is nothing to wait for.
    let read = multipart::read_into(&put, &headers, body, "metadata").now_or_never();
    assert!(read.is_some());
    if let Some(Ok(parts)) = read {
        metadata(&parts.metadata);
    }
}

fn metadata(text: &str) {
    if let Ok(metadata) = Metadata::parse(text) {
        let _ = metadata.annotations();
        let _ = metadata.date(jiff::civil::date(2026, 12, 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else the target would try nothing but broken bodies.
    #[test]
    fn pieces_become_an_upload_that_can_be_read() {
        let piece = |n: u8| FIRST_PIECE + n;
        let body = [
            &[3, piece(0), piece(3), piece(7), piece(8), piece(13)][..],
            &[piece(1), piece(4), piece(5), piece(7)],
            b"export default {}",
            &[piece(2)],
        ];
        let input = body.concat();
        multipart(&input);
        let mut text = Vec::new();
        for byte in &input[1..] {
            match byte.checked_sub(FIRST_PIECE) {
                None => text.push(*byte),
                Some(n) => text.extend_from_slice(PIECES[usize::from(n)].as_bytes()),
            }
        }
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("multipart/form-data; boundary=b");
        headers.insert(header::CONTENT_TYPE, kind);
        let put = |content: Bytes| async move { Ok(content.len().to_string()) }.boxed();
        let read = multipart::read_into(&put, &headers, Body::from(text), "metadata");
        let parts = read.now_or_never().unwrap().unwrap();
        assert_eq!(parts.modules[0].name, "a.js");
        assert_eq!(parts.modules[0].blob, "17");
        assert!(Metadata::parse(&parts.metadata).is_ok());
    }
}
