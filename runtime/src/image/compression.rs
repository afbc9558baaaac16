//! The bytes of a layer: decompressed (told apart by their first bytes: media types are often wrong, magic numbers are
//! not), bounded and hashed.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::digest::{Algorithm, Digest, Hasher};
use super::error::{ErrorKind, ImageError, hostile};

const BUFFER: usize = 64 << 10;

/// `source` decompressed: gzip (any number of members), zstd (any number of frames), or as it is.
pub(crate) fn decompress<'a>(source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut source = BufReader::with_capacity(BUFFER, source);
    let mut magic = Vec::with_capacity(4);
    source.by_ref().take(4).read_to_end(&mut magic)?;
    let is_gzip = magic.starts_with(&[0x1f, 0x8b]);
    // A zstd frame, or a skippable frame before one (zstd:chunked).
    let is_zstd = matches!(
        magic[..],
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18]
    );
    let whole = io::Cursor::new(magic).chain(source);
    Ok(match (is_gzip, is_zstd) {
        (true, _) => Box::new(MultiGzDecoder::new(whole)),
        (_, true) => Box::new(Zstd {
            source: whole,
            decoder: FrameDecoder::new(),
            in_frame: false,
        }),
        _ => Box::new(whole),
    })
}

/// Reads all frames of a source; the library's own reader stops after the first.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    /// Moves to the next frame with content; false at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut self.source.by_ref().take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(e) => return Err(io::Error::new(io::ErrorKind::InvalidData, e.to_string())),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame {
                if !self.next_frame()? {
                    return Ok(0);
                }
                self.in_frame = true;
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(
                        &mut self.source,
                        BlockDecodingStrategy::UptoBytes(buffer.len()),
                    )
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            }
            match self.decoder.read(buffer)? {
                0 => self.in_frame = false,
                n => return Ok(n),
            }
        }
    }
}

/// An error of the source: ours in disguise, the disk's, or bytes that do not decompress.
pub(crate) fn read_error(error: &io::Error) -> ImageError {
    if let Some(own) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<ImageError>())
    {
        return own.clone();
    }
    match error.raw_os_error() {
        Some(_) => ImageError::io("reading the layer", error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            ImageError::new(ErrorKind::Corrupt, "the archive ends too early")
        }
        None => ImageError::new(ErrorKind::Corrupt, format!("decompressing: {error}")),
    }
}

/// Hashes and bounds the uncompressed archive.
pub(crate) struct Measured<'a, R> {
    source: R,
    hasher: Hasher,
    left: u64,
    cancel: &'a AtomicBool,
}

impl<'a, R> Measured<'a, R> {
    /// Gives `source` until `limit` bytes are over or `cancel` is set; either is an error of its own kind.
    pub(crate) fn new(source: R, limit: u64, cancel: &'a AtomicBool) -> Self {
        Self {
            source,
            hasher: Hasher::new(Algorithm::Sha256),
            left: limit,
            cancel,
        }
    }

    /// The digest of what was read.
    pub(crate) fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

impl<R: Read> Read for Measured<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(io::Error::other(ImageError::new(
                ErrorKind::Network,
                "cancelled",
            )));
        }
        let n = self.source.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        match self.left.checked_sub(n as u64) {
            Some(left) => self.left = left,
            None => {
                return Err(io::Error::other(hostile(
                    "it unpacks to more bytes than the limit allows",
                )));
            }
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    fn plain() -> Vec<u8> {
        (0..300_000u32)
            .flat_map(|i| (i / 7).to_le_bytes())
            .collect()
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn every_form_of_a_layer_reads_the_same() {
        let plain = plain();
        let (a, b) = plain.split_at(100_000);
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        assert_eq!(read(&plain).unwrap(), plain);
        assert_eq!(read(&gzip(&plain)).unwrap(), plain);
        assert_eq!(read(&[gzip(a), gzip(b)].concat()).unwrap(), plain);
        assert_eq!(read(&zstd(&plain)).unwrap(), plain);
        assert_eq!(
            read(&[skippable.clone(), zstd(a), skippable, zstd(b)].concat()).unwrap(),
            plain
        );
        assert_eq!(read(b"").unwrap(), b"");
    }

    #[test]
    fn truncated_layers_are_errors() {
        for whole in [gzip(&plain()), zstd(&plain())] {
            assert!(read(&whole[..whole.len() / 2]).is_err());
        }
    }
}
