//! gzip for large answers, compressed while they are sent: no answer is held twice.

use std::collections::VecDeque;
use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;
use http::Response;
use http::header::{CONTENT_ENCODING, HeaderValue, VARY};

use super::body::Body;

/// Smaller answers are not worth it.
const THRESHOLD: u64 = 128 << 10;
/// Input compressed between two yields: well under a millisecond of work.
const STEP: usize = 64 << 10;

/// Compresses the answer if it is large.
pub fn maybe(response: Response<Body>) -> Response<Body> {
    let large = response
        .body()
        .length()
        .is_some_and(|length| length > THRESHOLD);
    if !large || response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let chunks: VecDeque<Bytes> = match body {
        Body::Full(bytes) => [bytes].into(),
        Body::Chunks(chunks, _) => chunks,
        other => return Response::from_parts(parts, other),
    };
    parts
        .headers
        .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts
        .headers
        .insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    let encoder = GzEncoder::new(Vec::with_capacity(STEP), Compression::fast());
    let compressed = stream::unfold(
        (chunks, Some(encoder)),
        |(mut chunks, encoder)| async move {
            let mut encoder = encoder?;
            let mut taken = 0;
            while taken < STEP {
                let Some(mut chunk) = chunks.pop_front() else {
                    break;
                };
                let piece = chunk.split_to(chunk.len().min(STEP - taken));
                if !chunk.is_empty() {
                    chunks.push_front(chunk);
                }
                taken += piece.len();
                // Writing into a vector cannot fail.
                encoder.write_all(&piece).ok()?;
            }
            if chunks.is_empty() {
                let rest = encoder.finish().ok()?;
                return Some((Bytes::from(rest), (chunks, None)));
            }
            let out = Bytes::from(std::mem::replace(
                encoder.get_mut(),
                Vec::with_capacity(STEP / 4),
            ));
            tokio::task::consume_budget().await;
            Some((out, (chunks, Some(encoder))))
        },
    );
    // Hyper would take an empty frame for the end of the body in HTTP/1.1.
    let compressed =
        futures_util::StreamExt::filter(compressed, |bytes| std::future::ready(!bytes.is_empty()));
    Response::from_parts(parts, Body::Stream(Box::pin(compressed)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read as _;

    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn large_answers_are_compressed_and_read_back_whole() {
        let item = Bytes::from(vec![b'x'; 1000]);
        let chunks: Vec<Bytes> = std::iter::repeat_n(item, 1000).collect();
        let response = maybe(Response::new(Body::chunks(chunks)));
        assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
        let Body::Stream(stream) = response.into_body() else {
            panic!("not compressed")
        };
        let packed: Vec<u8> = stream.collect::<Vec<_>>().await.concat();
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&packed[..])
            .read_to_end(&mut plain)
            .unwrap();
        assert_eq!(plain, vec![b'x'; 1_000_000]);
    }

    #[test]
    fn small_answers_stay_as_they_are() {
        let response = maybe(Response::new(Body::from("small")));
        assert!(matches!(response.into_body(), Body::Full(_)));
    }
}
