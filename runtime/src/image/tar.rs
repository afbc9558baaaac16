//! A streaming tar reader for untrusted archives: ustar, GNU long names and base-256 numbers, PAX headers (pax(1)).
//!
//! Ours, because a layer is hostile until proven otherwise: every size is bounded before memory is taken, names stay
//! bytes, and nothing touches the file system.

use std::io::{self, Read};

const BLOCK: usize = 512;
/// PATH_MAX of Linux; longer names could not be made anyway.
const PATH_LIMIT: usize = 4096;
/// All PAX records of one entry: names, and extended attributes of at most 64 KiB each.
const PAX_LIMIT: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) enum TarError {
    /// The source failed: truncated or damaged compression, or the disk.
    Read(io::Error),
    Corrupt(String),
    Hostile(String),
    Unsupported(String),
}

fn corrupt<T>(what: impl Into<String>) -> Result<T, TarError> {
    Err(TarError::Corrupt(what.into()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Char,
    Block,
    Fifo,
}

/// One member of an archive, as its headers tell it. Nothing is checked against the file system yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub path: Vec<u8>,
    /// Where a symbolic or hard link points.
    pub link: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Bytes of content that follow; 0 for all but files.
    pub size: u64,
    pub device: (u64, u64),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What extension headers say about the next entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Call [`TarReader::next`] for an entry, then read its content from the reader itself; what is left is skipped.
pub(crate) struct TarReader<R> {
    source: R,
    /// Content of the current entry not yet read.
    content: u64,
    /// Zeros after the content, up to the next block.
    padding: u64,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(source: R) -> Self {
        Self {
            source,
            content: 0,
            padding: 0,
        }
    }

    /// The source, positioned after the end mark once [`TarReader::next`] gave `None`.
    pub(crate) fn into_inner(self) -> R {
        self.source
    }

    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        let mut extended = false;
        loop {
            self.skip_content()?;
            let Some(header) = self.header()? else {
                return match extended {
                    true => corrupt("the archive ends after an extension header"),
                    false => Ok(None),
                };
            };
            let size = number(&header[124..136])?;
            match header[156] {
                b'L' => extensions.path = Some(self.long_name(size)?),
                b'K' => extensions.link = Some(self.long_name(size)?),
                b'x' => {
                    let records = self.extension(size, PAX_LIMIT)?;
                    pax(&records, &mut extensions)?;
                }
                // Global headers carry comments (git archive); Docker and containerd ignore them too.
                b'g' => {
                    self.begin(size);
                    continue;
                }
                flag => return self.entry(&header, flag, size, extensions).map(Some),
            }
            extended = true;
        }
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        flag: u8,
        size: u64,
        ext: Extensions,
    ) -> Result<Entry, TarError> {
        let path = match ext.path {
            Some(path) => path,
            None => header_path(header),
        };
        let kind = match flag {
            // Old archives mark directories by a final slash alone.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => {
                return Err(TarError::Unsupported(
                    "sparse files (GNU tar --sparse) are not supported".into(),
                ));
            }
            other => return corrupt(format!("unknown tar entry type {:?}", char::from(other))),
        };
        let link = ext.link.unwrap_or_else(|| text(&header[157..257]).to_vec());
        for name in [&path, &link] {
            if name.len() > PATH_LIMIT {
                return Err(TarError::Hostile(format!("a name of {} bytes", name.len())));
            }
            if name.contains(&0) {
                return Err(TarError::Hostile("a name with a zero byte".into()));
            }
        }
        // Only files have content, whatever their headers say (as Go's archive/tar reads it).
        let size = match kind {
            Kind::File => ext.size.unwrap_or(size),
            _ => 0,
        };
        self.begin(size);
        let device = match kind {
            Kind::Char | Kind::Block => (number(&header[329..337])?, number(&header[337..345])?),
            _ => (0, 0),
        };
        let mtime = match ext.mtime {
            Some(mtime) => mtime,
            None => (signed_number(&header[136..148])?, 0),
        };
        Ok(Entry {
            path,
            link,
            kind,
            mode: (number(&header[100..108])? & 0o7777) as u32,
            uid: owner(ext.uid, &header[108..116])?,
            gid: owner(ext.gid, &header[116..124])?,
            mtime,
            size,
            device,
            xattrs: ext.xattrs,
        })
    }

    fn begin(&mut self, size: u64) {
        self.content = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// The next header with a valid checksum; `None` at the end of the archive (two zero blocks, or no more bytes).
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        if !self.block(&mut block)? {
            return Ok(None);
        }
        if block.iter().all(|&b| b == 0) {
            if self.block(&mut block)? && block.iter().any(|&b| b != 0) {
                return corrupt("data after a zero block");
            }
            return Ok(None);
        }
        let stated = number(&block[148..156])?;
        let sum = |signed: bool| -> i64 {
            let value = |b: u8| {
                if signed {
                    i64::from(b as i8)
                } else {
                    i64::from(b)
                }
            };
            block
                .iter()
                .enumerate()
                .map(|(i, &b)| value(if (148..156).contains(&i) { b' ' } else { b }))
                .sum()
        };
        let stated = i64::try_from(stated).unwrap_or(-1);
        if stated != sum(false) && stated != sum(true) {
            return corrupt("invalid tar header");
        }
        Ok(Some(block))
    }

    /// Fills `block`; false if the source is at its end.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(TarError::Read(e)),
            }
        }
        Ok(true)
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.extension(size, PATH_LIMIT as u64 + 1)?;
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn extension(&mut self, size: u64, limit: u64) -> Result<Vec<u8>, TarError> {
        if size > limit {
            return Err(TarError::Hostile(format!(
                "an extension header of {size} bytes"
            )));
        }
        self.begin(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).map_err(TarError::Read)?;
        Ok(bytes)
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        let rest = self.content.saturating_add(self.padding);
        let skipped = io::copy(&mut self.source.by_ref().take(rest), &mut io::sink())
            .map_err(TarError::Read)?;
        // An archive may lack the padding of its last file.
        if skipped < self.content {
            return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        (self.content, self.padding) = (0, 0);
        Ok(())
    }
}

/// The content of the current entry.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.content)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let n = self.source.read(&mut buffer[..wanted])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.content -= n as u64;
        Ok(n)
    }
}

/// The bytes before the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

fn header_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = text(&header[..100]);
    let prefix = text(&header[345..500]);
    // GNU's own format has "ustar  " there, and other things than a prefix.
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
        [prefix, name].join(&b'/')
    } else {
        name.to_vec()
    }
}

fn owner(extended: Option<u64>, field: &[u8]) -> Result<u32, TarError> {
    let id = match extended {
        Some(id) => id,
        None => number(field)?,
    };
    // The largest number means "leave as it is" to chown(2).
    u32::try_from(id)
        .ok()
        .filter(|&id| id != u32::MAX)
        .ok_or_else(|| TarError::Hostile(format!("an owner with number {id}")))
}

/// An octal number, or a big-endian one if the first bit is set (GNU).
fn number(field: &[u8]) -> Result<u64, TarError> {
    match u64::try_from(signed_number(field)?) {
        Ok(number) => Ok(number),
        Err(_) => corrupt("a negative number in a tar header"),
    }
}

fn signed_number(field: &[u8]) -> Result<i64, TarError> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (i, &byte) in field.iter().enumerate() {
            let byte = match (i, negative) {
                (0, false) => byte & 0x7f,
                _ => byte,
            };
            value = (value << 8) | i128::from(byte);
        }
        return match i64::try_from(value) {
            Ok(value) => Ok(value),
            Err(_) => corrupt("a number out of range in a tar header"),
        };
    }
    let digits = field
        .split(|&b| b == 0)
        .next()
        .unwrap_or_default()
        .trim_ascii();
    let mut value: i64 = 0;
    for &digit in digits {
        if !(b'0'..=b'7').contains(&digit) {
            return corrupt("an invalid number in a tar header");
        }
        // Twelve octal digits at most: no overflow.
        value = value * 8 + i64::from(digit - b'0');
    }
    Ok(value)
}

/// Reads `LENGTH KEY=VALUE\n` records.
fn pax(mut records: &[u8], ext: &mut Extensions) -> Result<(), TarError> {
    let bad = || TarError::Corrupt("an invalid PAX record".into());
    while !records.is_empty() && records[0] != 0 {
        let space = records.iter().position(|&b| b == b' ').ok_or_else(bad)?;
        let length = decimal(&records[..space])
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(bad)?;
        if length <= space + 1 || length > records.len() {
            return Err(bad());
        }
        let record = records[space + 1..length]
            .strip_suffix(b"\n")
            .ok_or_else(bad)?;
        records = &records[length..];
        let equals = record.iter().position(|&b| b == b'=').ok_or_else(bad)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => ext.path = Some(value.to_vec()),
            b"linkpath" => ext.link = Some(value.to_vec()),
            b"size" => ext.size = Some(decimal(value).ok_or_else(bad)?),
            b"uid" => ext.uid = Some(decimal(value).ok_or_else(bad)?),
            b"gid" => ext.gid = Some(decimal(value).ok_or_else(bad)?),
            b"mtime" => ext.mtime = Some(time(value).ok_or_else(bad)?),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(TarError::Unsupported(
                    "sparse files (GNU tar --sparse) are not supported".into(),
                ));
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    ext.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(())
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.first() == Some(&b'+') {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `SECONDS[.FRACTION]`, maybe negative.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let value = std::str::from_utf8(value).ok()?;
    let (seconds, fraction) = value.split_once('.').unwrap_or((value, ""));
    let whole: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9.9}").parse().ok()?;
    match (seconds.starts_with('-'), nanos) {
        (true, 1..) => Some((whole.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((whole, nanos)),
    }
}

/// One ustar header block, for archives that we write. `path` must fit its 100 bytes.
pub(crate) fn header(path: &str, flag: u8, mode: u32, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &path.as_bytes()[..path.len().min(100)]);
    put(100, format!("{mode:07o}\0").as_bytes());
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[flag]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Cursor;

    fn archive(parts: &[&[u8]]) -> TarReader<Cursor<Vec<u8>>> {
        let mut bytes = Vec::new();
        for part in parts {
            bytes.extend_from_slice(part);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        bytes.resize(bytes.len() + 2 * BLOCK, 0);
        TarReader::new(Cursor::new(bytes))
    }

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let mut length = key.len() + value.len() + 3;
        while format!("{length}").len() + key.len() + value.len() + 3 != length {
            length = format!("{length}").len() + key.len() + value.len() + 3;
        }
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn entries_come_with_their_content_and_the_rest_is_skipped() {
        let mut tar = archive(&[
            &header("a", b'0', 0o4755, 5),
            b"hello",
            &header("b/", b'5', 0o700, 0),
            &header("c", b'0', 0o644, 1),
            b"x",
        ]);
        let a = tar.next().unwrap().unwrap();
        assert_eq!(
            (a.path.as_slice(), a.kind, a.mode, a.size),
            (&b"a"[..], Kind::File, 0o4755, 5)
        );
        let mut content = String::new();
        tar.read_to_string(&mut content).unwrap();
        assert_eq!(content, "hello");
        assert_eq!(tar.next().unwrap().unwrap().kind, Kind::Directory);
        assert_eq!(tar.next().unwrap().unwrap().path, b"c");
        assert!(tar.next().unwrap().is_none());
    }

    #[test]
    fn pax_records_override_the_header_and_keep_bytes_as_they_are() {
        let records = [
            record("path", b"dir/\xff\xfe"),
            record("uid", b"3000000"),
            record("mtime", b"-1.25"),
            record("size", b"3"),
            record("SCHILY.xattr.user.k", b"a=b\nc"),
        ]
        .concat();
        let head = header("x", b'x', 0, records.len() as u64);
        let mut tar = archive(&[&head, &records, &header("short", b'0', 0o644, 0), b"abc"]);
        let entry = tar.next().unwrap().unwrap();
        assert_eq!(entry.path, b"dir/\xff\xfe");
        assert_eq!(
            (entry.uid, entry.size, entry.mtime),
            (3_000_000, 3, (-2, 750_000_000))
        );
        assert_eq!(entry.xattrs, [(b"user.k".to_vec(), b"a=b\nc".to_vec())]);
        assert!(tar.next().unwrap().is_none());
    }

    #[test]
    fn gnu_long_names_and_base_256_numbers_are_read() {
        let long = format!("{}\0", "n/".repeat(150));
        let mut big = header("short", b'0', 0o644, 0);
        big[108] = 0x80;
        big[109..116].copy_from_slice(&[0, 0, 0, 0x0f, 0xff, 0xff, 0xff]);
        big[148..156].copy_from_slice(b"        ");
        let sum: u32 = big.iter().map(|&b| u32::from(b)).sum();
        big[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut tar = archive(&[
            &header("././@LongLink", b'L', 0, 301),
            long.as_bytes(),
            &big,
        ]);
        let entry = tar.next().unwrap().unwrap();
        assert_eq!(entry.path.len(), 300);
        assert_eq!(entry.uid, 0x0fff_ffff);
    }

    #[test]
    fn extension_headers_cannot_take_memory_without_bound() {
        let mut tar = archive(&[&header("x", b'L', 0, 1 << 30)]);
        assert!(matches!(tar.next(), Err(TarError::Hostile(_))));
        let mut tar = archive(&[&header("x", b'x', 0, 1 << 30)]);
        assert!(matches!(tar.next(), Err(TarError::Hostile(_))));
    }

    #[test]
    fn damaged_and_truncated_archives_are_errors() {
        let mut bad = header("a", b'0', 0, 0);
        bad[0] = b'b';
        assert!(matches!(archive(&[&bad]).next(), Err(TarError::Corrupt(_))));
        let mut short = TarReader::new(Cursor::new(header("a", b'0', 0, 9000).to_vec()));
        short.next().unwrap();
        assert!(matches!(short.next(), Err(TarError::Read(_))));
        let mut half = TarReader::new(Cursor::new(vec![1; 100]));
        assert!(matches!(half.next(), Err(TarError::Read(_))));
        for records in [&b"5 a=b"[..], b"9999 a=b\n", b"x", b"3 \n", b"6 abc\n"] {
            let head = header("x", b'x', 0, records.len() as u64);
            assert!(
                archive(&[&head, records, &header("f", b'0', 0, 0)])
                    .next()
                    .is_err()
            );
        }
        assert!(matches!(
            archive(&[&header("s", b'S', 0, 0)]).next(),
            Err(TarError::Unsupported(_))
        ));
    }

    #[test]
    fn numbers_that_mean_nobody_are_hostile() {
        let records = record("uid", b"4294967295");
        let head = header("x", b'x', 0, records.len() as u64);
        assert!(matches!(
            archive(&[&head, &records, &header("f", b'0', 0, 0)]).next(),
            Err(TarError::Hostile(_))
        ));
    }
}
