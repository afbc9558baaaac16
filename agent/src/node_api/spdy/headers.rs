//! SPDY name/value blocks, compressed with zlib and the dictionary of the protocol (SPDY/3, section 2.6.10).
//!
//! One compression context lasts for a whole connection in each direction; blocks are separated by sync flushes.

use std::collections::BTreeMap;
use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Names and values; names are in lower case. Several values of one name are joined by NUL, as on the wire.
pub type Headers = BTreeMap<String, String>;

/// The most that one decompressed block may hold.
const MAX_BLOCK: usize = 64 * 1024;

/// The words of the protocol's dictionary; on the wire each is preceded by its length in four bytes.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow \
authorization cache-control connection content-base content-encoding content-language content-length content-location content-md5 \
content-range content-type date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since \
last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer \
transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
keep-alive origin";

/// The rest of the dictionary, which has no lengths.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative \
Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not \
Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, \
GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,\
deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        bytes.extend_from_slice(&(word.len() as u32).to_be_bytes());
        bytes.extend(
            word.bytes()
                .map(|byte| if byte == b'_' { b' ' } else { byte }),
        );
    }
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
}

/// The receiving side's context.
pub(super) struct Decoder {
    zlib: Decompress,
}

impl Decoder {
    pub(super) fn new() -> Decoder {
        Decoder {
            zlib: Decompress::new(true),
        }
    }

    /// Decompresses and reads one block.
    pub(super) fn decode(&mut self, mut compressed: &[u8]) -> io::Result<Headers> {
        let mut block = Vec::new();
        loop {
            if block.len() > MAX_BLOCK {
                return Err(invalid("header block too large"));
            }
            block.reserve(4096);
            let (read, written) = (self.zlib.total_in(), self.zlib.total_out());
            let outcome = self
                .zlib
                .decompress_vec(compressed, &mut block, FlushDecompress::Sync);
            compressed = &compressed[(self.zlib.total_in() - read) as usize..];
            match outcome {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.zlib
                        .set_dictionary(&dictionary())
                        .map_err(|_| invalid("unknown compression dictionary"))?;
                }
                Err(_) => return Err(invalid("header block is not compressed as it should be")),
                Ok(Status::StreamEnd) => return parse(&block),
                // Everything was taken in, and there was room for more output: the block is whole.
                Ok(_) if compressed.is_empty() && block.len() < block.capacity() => {
                    return parse(&block);
                }
                Ok(_) if self.zlib.total_in() == read && self.zlib.total_out() == written => {
                    return Err(invalid("header block stops short"));
                }
                Ok(_) => {}
            }
        }
    }
}

/// The sending side's context.
pub(super) struct Encoder {
    zlib: Compress,
}

impl Encoder {
    pub(super) fn new() -> io::Result<Encoder> {
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(&dictionary())
            .map_err(io::Error::other)?;
        Ok(Encoder { zlib })
    }

    /// Writes and compresses one block.
    pub(super) fn encode(&mut self, headers: &Headers) -> io::Result<Vec<u8>> {
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&(text.len() as u32).to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        let mut rest = &block[..];
        let mut compressed = Vec::with_capacity(block.len() + 64);
        loop {
            let read = self.zlib.total_in();
            self.zlib
                .compress_vec(rest, &mut compressed, FlushCompress::Sync)
                .map_err(io::Error::other)?;
            rest = &rest[(self.zlib.total_in() - read) as usize..];
            if rest.is_empty() && compressed.len() < compressed.capacity() {
                return Ok(compressed);
            }
            compressed.reserve(1024);
        }
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads the uncompressed form: a count, then names and values, each after its length.
fn parse(block: &[u8]) -> io::Result<Headers> {
    fn number(block: &mut &[u8]) -> io::Result<usize> {
        let (head, rest) = block
            .split_first_chunk::<4>()
            .ok_or_else(|| invalid("header block stops short"))?;
        *block = rest;
        Ok(u32::from_be_bytes(*head) as usize)
    }
    fn text(block: &mut &[u8]) -> io::Result<String> {
        let length = number(block)?;
        let (head, rest) = block
            .split_at_checked(length)
            .ok_or_else(|| invalid("header block stops short"))?;
        *block = rest;
        Ok(String::from_utf8_lossy(head).into_owned())
    }
    let mut block = block;
    let count = number(&mut block)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut block)?.to_ascii_lowercase();
        headers.insert(name, text(&mut block)?);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    /// The dictionary's identifier in the protocol is its Adler-32, which zlib writes after the two header bytes.
    #[test]
    fn the_dictionary_is_that_of_the_protocol() {
        assert_eq!(dictionary().len(), 1423);
        let block = Encoder::new().unwrap().encode(&Headers::new()).unwrap();
        assert_eq!(block[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
    }

    #[test]
    fn blocks_of_one_connection_share_a_context() {
        let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::new());
        for step in 0..50 {
            let sent = headers(&[
                ("streamtype", "stdin"),
                ("step", &step.to_string()),
                ("long", &"x".repeat(step * 300)),
            ]);
            let compressed = encoder.encode(&sent).unwrap();
            assert_eq!(decoder.decode(&compressed).unwrap(), sent);
        }
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(Decoder::new().decode(b"\x00\x01\x02garbage").is_err());
        assert!(parse(&[0, 0, 0, 9]).is_err());
        assert!(parse(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
