//! Debian's packages: an `ar` archive with a compressed tar of the files. Read as a stream; nothing is unpacked to
//! disk. Source: deb(5), and POSIX's ustar with the extensions of GNU tar and PAX for long names.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::compression::Compression;
use super::error::KernelError;
use crate::blocking::Abandoned;
use crate::progress::{Progress, Task};

/// Largest amount of files that a package may unpack to, in bytes.
const MAX_UNPACKED: u64 = 8 << 30;
/// Longest path in a package.
const MAX_PATH: u64 = 64 << 10;
/// Most members of the outer archive; packages have three.
const MAX_MEMBERS: usize = 64;

const MAGIC: &[u8; 8] = b"!<arch>\n";

/// Whether a file that begins so is one.
pub(super) fn is_package(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// What to do with a file in the package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    Skip,
    /// Its content, of at most so many bytes.
    UpTo(u64),
}

/// Goes through the regular files of a package in its order. `take` says which contents are wanted, from the path
/// without a leading `./` or `/`; `give` gets them.
///
/// # Errors
/// When the package is damaged, hostile, or compressed in an unknown way; and those of `give`.
pub(super) fn read(
    package: &Path,
    (progress, stop): (&Progress, &Abandoned),
    mut take: impl FnMut(&str) -> Take,
    mut give: impl FnMut(&str, Vec<u8>) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    let name = package.display().to_string();
    let (file, _) = super::tree::open(package).map_err(|error| KernelError::read(package, error))?;
    let damaged = |problem: &dyn std::fmt::Display| KernelError::malformed(&name, problem);
    let (data, compression) = data_member(file).map_err(|error| damaged(&error))?;
    let file_name = package.file_name().unwrap_or(package.as_os_str()).display();
    let data = Counted { task: progress.task(format!("read {file_name}"), Some(data.limit())), inner: data };
    let plain: Box<dyn Read> = match compression {
        Some(compression) => compression.reader(data).map_err(|damage| damaged(&damage))?,
        None => Box::new(data),
    };
    let mut tar = Tar { plain: plain.take(MAX_UNPACKED), stop: stop.clone() };
    while let Some(entry) = tar.next().map_err(|error| damaged(&error))? {
        let path = entry.path.trim_start_matches("./").trim_start_matches('/');
        match take(path) {
            Take::UpTo(limit) if entry.is_file => {
                if entry.size > limit {
                    let problem = format!("it has {} bytes, more than {limit}", entry.size);
                    return Err(KernelError::malformed(format!("{path} in {name}"), problem));
                }
                let content = tar.content(entry.size).map_err(|error| damaged(&error))?;
                give(path, content)?;
            }
            _ => tar.skip(entry.padded()).map_err(|error| damaged(&error))?,
        }
    }
    Ok(())
}

/// The member with the files, and how it is compressed.
fn data_member(mut file: File) -> io::Result<(io::Take<File>, Option<Compression>)> {
    let mut magic = [0; MAGIC.len()];
    file.read_exact(&mut magic).map_err(|_| invalid("it is no Debian package"))?;
    if magic != *MAGIC {
        return Err(invalid("it is no Debian package"));
    }
    let length = file.metadata()?.len();
    let mut at = magic.len() as u64;
    for _ in 0..MAX_MEMBERS {
        let mut header = [0; 60];
        file.read_exact(&mut header).map_err(|_| invalid("it has no data.tar"))?;
        let text = |range| std::str::from_utf8(&header[range]).map(str::trim_end).unwrap_or_default();
        if text(58..60) != "`" {
            return Err(invalid("a header of its archive is damaged"));
        }
        let size: u64 = text(48..58).parse().map_err(|_| invalid("a size in its archive is damaged"))?;
        at += header.len() as u64;
        if size > length.saturating_sub(at) {
            return Err(invalid("it is cut off"));
        }
        if let Some(kind) = text(0..16).trim_end_matches('/').strip_prefix("data.tar") {
            let compression = match kind {
                "" => None,
                ".gz" => Some(Compression::Gzip),
                ".xz" => Some(Compression::Xz),
                ".zst" => Some(Compression::Zstd),
                ".bz2" => Some(Compression::Bzip2),
                ".lzma" => Some(Compression::Lzma),
                _ => return Err(invalid("its files are compressed in an unknown way")),
            };
            return Ok((file.take(size), compression));
        }
        // Members begin at even places.
        at += size + size % 2;
        file.seek(SeekFrom::Start(at))?;
    }
    Err(invalid("it has no data.tar"))
}

/// Tells how far the reading is.
struct Counted<R> {
    inner: R,
    task: Task,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.task.advance(count as u64);
        Ok(count)
    }
}

struct Tar<R> {
    plain: R,
    stop: Abandoned,
}

struct Entry {
    path: String,
    size: u64,
    is_file: bool,
}

impl Entry {
    fn padded(&self) -> u64 {
        self.size.saturating_add(511) & !511
    }
}

impl<R: Read> Tar<R> {
    /// The next entry that is no mere extension of another. `None` at the end mark.
    fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut long_path = None;
        loop {
            if self.stop.is() {
                return Err(invalid("it was given up"));
            }
            let mut header = [0; 512];
            self.plain.read_exact(&mut header).map_err(cut_off)?;
            if header.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let size = check(&header)?;
            let content = |tar: &mut Self| match size {
                0..=MAX_PATH => tar.content(size),
                _ => Err(invalid("a path in it is too long")),
            };
            match header[156] {
                b'L' => long_path = Some(text(&content(self)?)),
                b'x' => long_path = pax_path(&content(self)?)?.or(long_path),
                // Of links only the target is long; global headers name nothing that matters here.
                b'K' | b'g' => self.skip(size.saturating_add(511) & !511)?,
                kind => {
                    let path = long_path.unwrap_or_else(|| {
                        let (prefix, name) = (text(&header[345..500]), text(&header[..100]));
                        let is_ustar = &header[257..263] == b"ustar\0";
                        if prefix.is_empty() || !is_ustar { name } else { format!("{prefix}/{name}") }
                    });
                    return Ok(Some(Entry { path, size, is_file: matches!(kind, b'0' | 0 | b'7') }));
                }
            }
        }
    }

    fn content(&mut self, size: u64) -> io::Result<Vec<u8>> {
        const STEP: usize = 1 << 20;
        let mut content = Vec::new();
        let mut left = usize::try_from(size).map_err(|_| invalid("a file in it is too large"))?;
        // Memory is taken as the bytes come, not as the header promises them.
        while left > 0 && !self.stop.is() {
            let from = content.len();
            let step = left.min(STEP);
            content.resize(from + step, 0);
            self.plain.read_exact(&mut content[from..]).map_err(cut_off)?;
            left -= step;
        }
        self.skip(size.wrapping_neg() % 512)?;
        Ok(content)
    }

    fn skip(&mut self, mut left: u64) -> io::Result<()> {
        let mut buffer = [0; 64 << 10];
        while left > 0 {
            if self.stop.is() {
                return Err(invalid("it was given up"));
            }
            let step = usize::try_from(left).unwrap_or(buffer.len()).min(buffer.len());
            self.plain.read_exact(&mut buffer[..step]).map_err(cut_off)?;
            left -= step as u64;
        }
        Ok(())
    }
}

/// The size in a header whose checksum is right.
fn check(header: &[u8; 512]) -> io::Result<u64> {
    const CHECKSUM: std::ops::Range<usize> = 148..156;
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| if CHECKSUM.contains(&at) { u64::from(b' ') } else { u64::from(*byte) })
        .sum();
    if octal(&header[CHECKSUM]) != Some(sum) {
        return Err(invalid("a header in it is damaged"));
    }
    // GNU's binary form for sizes over 8 GiB begins with a set bit; no kernel's file is that large.
    octal(&header[124..136]).ok_or_else(|| invalid("a size in it is damaged or too large"))
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// The value of `path` among the records `length key=value\n`.
fn pax_path(mut records: &[u8]) -> io::Result<Option<String>> {
    let damaged = || invalid("an extended header in it is damaged");
    let mut path = None;
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ').ok_or_else(damaged)?;
        let length: usize = std::str::from_utf8(&records[..space])
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(damaged)?;
        let record = records.get(space + 1..length).ok_or_else(damaged)?;
        if let Some(value) = record.strip_prefix(b"path=") {
            path = Some(text(value.strip_suffix(b"\n").unwrap_or(value)));
        }
        records = &records[length..];
    }
    Ok(path)
}

fn cut_off(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof { invalid("its files are cut off") } else { error }
}

fn invalid(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests;
