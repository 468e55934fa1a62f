//! Files and directory trees over a connection, the same code for both directions.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use crate::wire::{self, Entry, Kind, PIECE, What};

/// Sends a file or tree: frames `Entry` and `Data`, without the `End`. `name` is what the root is called
/// on the other side (empty: the root itself). Files that are neither file, directory nor link are left out.
pub fn send(out: &mut impl Write, path: &Path, name: &str) -> io::Result<()> {
    let meta = if name.is_empty() { fs::metadata(path)? } else { fs::symlink_metadata(path)? };
    let entry = |what| Entry { path: name.to_owned(), mode: meta.permissions().mode() & 0o7777, what };
    if meta.is_dir() {
        wire::write_json(out, Kind::Entry, &entry(What::Directory))?;
        let mut inside = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        inside.sort_by_key(fs::DirEntry::file_name);
        for item in inside {
            let file_name = item.file_name();
            let file_name = file_name.to_str().ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("not UTF-8: {}", item.path().display()))
            })?;
            let name = if name.is_empty() { file_name.to_owned() } else { format!("{name}/{file_name}") };
            send(out, &item.path(), &name)?;
        }
        Ok(())
    } else if meta.is_symlink() {
        let target = fs::read_link(path)?;
        let target = target.to_string_lossy().into_owned();
        wire::write_json(out, Kind::Entry, &entry(What::Link(target)))
    } else if meta.is_file() {
        send_file(out, File::open(path)?, meta.len(), &entry(What::File(meta.len())))
    } else {
        Ok(())
    }
}

fn send_file(out: &mut impl Write, mut file: File, size: u64, entry: &Entry) -> io::Result<()> {
    wire::write_json(out, Kind::Entry, entry)?;
    let mut left = size;
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let want = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let got = file.read(&mut piece[..want])?;
        if got == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{} became shorter", entry.path),
            ));
        }
        wire::write_frame(out, Kind::Data, &piece[..got])?;
        left -= got as u64;
    }
    Ok(())
}

/// Receives what [`send`] sent, until `End`, and puts it at `root`. Files are replaced by rename, so that a
/// running program can be replaced too. A `Refused` frame becomes the error.
pub fn receive(from: &mut impl Read, root: &Path) -> io::Result<()> {
    let mut body = Vec::new();
    let mut file: Option<Incoming> = None;
    loop {
        let Some(kind) = wire::read_frame(from, &mut body)? else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        if kind != Kind::Data
            && let Some(done) = file.take()
        {
            done.finish()?;
        }
        match kind {
            Kind::Entry => file = begin(wire::from_json(&body)?, root)?,
            Kind::Data => match &mut file {
                Some(file) => file.take(&body)?,
                None => return Err(io::Error::new(io::ErrorKind::InvalidData, "data without a file")),
            },
            Kind::End => return Ok(()),
            Kind::Refused => return Err(io::Error::other(String::from_utf8_lossy(&body).into_owned())),
            other => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{other:?} in a transfer")));
            }
        }
    }
}

fn begin(entry: Entry, root: &Path) -> io::Result<Option<Incoming>> {
    let path = wire::check_path(&entry.path)?;
    let path = if entry.path.is_empty() { root.to_owned() } else { root.join(path) };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match entry.what {
        What::Directory => {
            fs::create_dir_all(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode))?;
            Ok(None)
        }
        What::Link(target) => {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            symlink(target, &path)?;
            Ok(None)
        }
        What::File(size) => Incoming::create(&path, size, entry.mode).map(Some),
    }
}

/// A file that is being received beside its place.
struct Incoming {
    file: File,
    temporary: std::path::PathBuf,
    place: std::path::PathBuf,
    left: u64,
    mode: u32,
}

impl Incoming {
    fn create(place: &Path, size: u64, mode: u32) -> io::Result<Self> {
        let mut temporary = place.as_os_str().to_owned();
        temporary.push(".incoming");
        let temporary = std::path::PathBuf::from(temporary);
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        Ok(Self { file, temporary, place: place.to_owned(), left: size, mode })
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} is too long", self.place.display()))
        })?;
        self.file.write_all(bytes)
    }

    fn finish(self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{} lacks {} bytes", self.place.display(), self.left),
            ));
        }
        self.file.set_permissions(fs::Permissions::from_mode(self.mode))?;
        fs::rename(&self.temporary, &self.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(path: &Path, name: &str) -> Vec<u8> {
        let mut stream = Vec::new();
        send(&mut stream, path, name).unwrap();
        wire::write_frame(&mut stream, Kind::End, b"").unwrap();
        stream
    }

    #[test]
    fn a_tree_arrives_whole() {
        let from = tempfile::tempdir().unwrap();
        fs::create_dir(from.path().join("sub")).unwrap();
        fs::write(from.path().join("sub/big"), vec![7; 2 * PIECE + 3]).unwrap();
        fs::write(from.path().join("empty"), b"").unwrap();
        fs::set_permissions(from.path().join("empty"), fs::Permissions::from_mode(0o751)).unwrap();
        symlink("sub/big", from.path().join("link")).unwrap();
        let to = tempfile::tempdir().unwrap();
        let to = to.path().join("new");

        receive(&mut &sent(from.path(), "")[..], &to).unwrap();

        assert_eq!(fs::read(to.join("sub/big")).unwrap(), vec![7; 2 * PIECE + 3]);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("sub/big"));
        assert_eq!(fs::metadata(to.join("empty")).unwrap().permissions().mode() & 0o7777, 0o751);
        assert_eq!(fs::read_dir(&to).unwrap().count(), 3, "nothing temporary is left");
    }

    #[test]
    fn a_cut_file_never_takes_its_place() {
        let from = tempfile::tempdir().unwrap();
        fs::write(from.path().join("file"), b"new content").unwrap();
        let to = tempfile::tempdir().unwrap();
        fs::write(to.path().join("file"), b"old").unwrap();
        let stream = sent(&from.path().join("file"), "file");

        for cut in 0..stream.len() {
            assert!(receive(&mut &stream[..cut], to.path()).is_err(), "cut at {cut}");
        }
        // The file is complete once the frame behind it begins.
        receive(&mut &stream[..], to.path()).unwrap();
        assert_eq!(fs::read(to.path().join("file")).unwrap(), b"new content");
    }

    #[test]
    fn entries_cannot_leave_the_root() {
        let mut stream = Vec::new();
        let entry = Entry { path: "../evil".into(), mode: 0o644, what: What::File(0) };
        wire::write_json(&mut stream, Kind::Entry, &entry).unwrap();
        let to = tempfile::tempdir().unwrap();
        assert_eq!(
            receive(&mut &stream[..], &to.path().join("in")).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
