//! `GET` and `HEAD` of blobs, whole or by range.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, StatusCode, header};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use wharf_image::{Digest, ImageStore};

use crate::error::{ApiError, Code};
use crate::{CONTENT_DIGEST, empty, run};

pub(crate) fn digest(text: &str) -> Result<Digest, ApiError> {
    Digest::parse(text).map_err(|e| ApiError::new(Code::DigestInvalid, e.to_string()))
}

pub(crate) async fn get(
    images: ImageStore,
    text: &str,
    headers: &HeaderMap,
    head: bool,
) -> Result<Response, ApiError> {
    let wanted = digest(text)?;
    let (path, size) = {
        let wanted = wanted.clone();
        run(move || images.blob(&wanted))
            .await
            .map_err(ApiError::of(Code::BlobUnknown, Code::DigestInvalid))?
    };
    let mut common = vec![
        (CONTENT_DIGEST, wanted.to_string()),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, format!("\"{wanted}\"")),
    ];
    let range = headers
        .get(header::RANGE)
        .and_then(|v| v.to_str().ok())
        .filter(|_| !head)
        .map_or(Range::Whole, |text| Range::parse(text, size));
    let (status, start, length) = match range {
        Range::Whole => (StatusCode::OK, 0, size),
        Range::Part(start, end) => {
            common.push((header::CONTENT_RANGE, format!("bytes {start}-{end}/{size}")));
            (StatusCode::PARTIAL_CONTENT, start, end - start + 1)
        }
        Range::Outside => {
            return Err(ApiError::new(
                Code::SizeInvalid,
                format!("the range is outside the blob, which has {size} bytes"),
            )
            .status(StatusCode::RANGE_NOT_SATISFIABLE)
            .with(header::CONTENT_RANGE, &format!("bytes */{size}")));
        }
    };
    common.push((header::CONTENT_LENGTH, length.to_string()));
    let mut response = empty(status, &common)?;
    if !head {
        let failed = |e: std::io::Error| ApiError::internal(&format!("reading blob {wanted}: {e}"));
        let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
        file.seek(std::io::SeekFrom::Start(start))
            .await
            .map_err(failed)?;
        let stream = tokio_util::io::ReaderStream::with_capacity(file.take(length), 256 * 1024);
        *response.body_mut() = Body::from_stream(stream);
    }
    Ok(response)
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    /// First and last byte.
    Part(u64, u64),
    Outside,
}

impl Range {
    /// RFC 9110, 14.1.2. What is not understood, and several ranges at once, are answered with the whole.
    fn parse(text: &str, size: u64) -> Self {
        let Some((first, last)) = text
            .strip_prefix("bytes=")
            .and_then(|spec| spec.split_once('-'))
        else {
            return Self::Whole;
        };
        let number = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| text.parse::<u64>().ok())
                .flatten()
        };
        match (first, last) {
            ("", last) => match number(last) {
                Some(0) => Self::Outside,
                Some(_) if size == 0 => Self::Outside,
                Some(n) => Self::Part(size.saturating_sub(n), size - 1),
                None => Self::Whole,
            },
            (first, "") => match number(first) {
                Some(first) if first < size => Self::Part(first, size - 1),
                Some(_) => Self::Outside,
                None => Self::Whole,
            },
            (first, last) => match (number(first), number(last)) {
                (Some(first), Some(last)) if first > last => Self::Whole,
                (Some(first), Some(_)) if first >= size => Self::Outside,
                (Some(first), Some(last)) => Self::Part(first, last.min(size - 1)),
                _ => Self::Whole,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_the_rfc_says() {
        for (text, size, range) in [
            ("bytes=0-4", 10, Range::Part(0, 4)),
            ("bytes=5-", 10, Range::Part(5, 9)),
            ("bytes=-3", 10, Range::Part(7, 9)),
            ("bytes=-30", 10, Range::Part(0, 9)),
            ("bytes=8-99", 10, Range::Part(8, 9)),
            ("bytes=10-", 10, Range::Outside),
            ("bytes=10-12", 10, Range::Outside),
            ("bytes=-0", 10, Range::Outside),
            ("bytes=-5", 0, Range::Outside),
            ("bytes=5-2", 10, Range::Whole),
            ("bytes=0-1,3-4", 10, Range::Whole),
            ("lines=0-1", 10, Range::Whole),
            ("bytes=-", 10, Range::Whole),
            ("bytes=+1-2", 10, Range::Whole),
        ] {
            assert_eq!(Range::parse(text, size), range, "{text}");
        }
    }
}
