//! Exporting an image: to other tools, to hosts without a registry, or as a plain archive of its files.
//!
//! The layers of an image are not kept, so what leaves is one layer: all that is in the root file system. Names, contents and
//! attributes are those of the image, and so is what it says of the process to run; importing it again gives an
//! image with an equal tree. Equal images give equal bytes, gzip included.
//!
//! Files are written beside their place under another name, and renamed once they are whole.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Read as _, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::config::ConfigDocument;
use super::error::ImageError;
use super::import::{descriptor, synthetic};
use super::manifest::{Descriptor, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST};
use super::record::{self, Image, RootKind};
use super::reference::Reference;
use crate::blocking::{Abandoned, blocking};
use crate::digest::Digest;
use crate::progress::Progress;
use crate::rootfs::{self, Meaning, RootfsError};
use crate::store::Store;

/// How much is gathered before it is written.
const BUFFER: usize = 256 << 10;

/// What an image becomes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExportFormat {
    /// A tar archive of an OCI layout, with the `manifest.json` by which `docker load` knows it too.
    #[default]
    OciTar,
    /// A directory with an OCI layout.
    OciDirectory,
    /// A tar archive of the root file system alone.
    RootfsTar,
}

/// Where an export goes.
pub enum ExportTarget {
    /// A file, over one that is there; for [`ExportFormat::OciDirectory`] a directory, which is new or empty.
    /// A fifo or device is written to.
    Path(PathBuf),
    /// A stream, such as standard output. The text names it in errors.
    Stream(String, Box<dyn Write + Send>),
}

impl std::fmt::Debug for ExportTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Stream(name, _) => f.debug_tuple("Stream").field(name).finish_non_exhaustive(),
        }
    }
}

/// An image that was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// The image's id in this store.
    pub image: Digest,
    /// The digest of the manifest, by which other tools know the exported image. None for a root file system alone.
    pub manifest: Option<Digest>,
    /// The name that was written to the layout.
    pub name: Option<Reference>,
    /// Files of all kinds in it.
    pub entries: u64,
    /// Sockets that were left out, since tar has none.
    pub sockets: u64,
    /// What was written, in bytes.
    pub size_bytes: u64,
}

/// Exports an image: by name, by id, or by the beginning of an id. The name that it is asked for by goes along, else its first.
///
/// # Errors
/// [`ImageError::NotFound`] and [`ImageError::Ambiguous`]; [`ImageError::Squashfs`]; an image that cannot be read; a place that
/// cannot be written.
///
/// # Cancel safety
/// When the future is dropped, the work stops soon; a file or directory was then not made.
pub async fn export(
    store: &Store,
    image: &str,
    format: ExportFormat,
    target: ExportTarget,
    progress: &Progress,
) -> Result<Exported, ImageError> {
    let named = record::resolve(store, image)?;
    let asked = image.parse::<Reference>().ok().filter(|name| named.names.contains(name));
    let name = asked.or_else(|| named.names.first().cloned()).filter(|name| name.tag().is_some());
    let blob = store.require(&named.image.root.digest, &format!("image `{image}`"))?;
    if named.image.root.kind == RootKind::Squashfs {
        return Err(ImageError::Squashfs { name: image.to_owned(), blob });
    }
    let root = File::open(&blob).map_err(|error| ImageError::file("open", &blob, error))?;
    let (store, progress) = (store.clone(), progress.clone());
    blocking(move |abandoned| {
        let job = Job { image: &named.image, name, root, store: &store, progress: &progress, abandoned };
        match format {
            ExportFormat::OciTar => job.oci_tar(target),
            ExportFormat::OciDirectory => job.oci_directory(target),
            ExportFormat::RootfsTar => job.rootfs_tar(target),
        }
    })
    .await
}

/// One export.
struct Job<'a> {
    image: &'a Image,
    name: Option<Reference>,
    root: File,
    store: &'a Store,
    progress: &'a Progress,
    abandoned: &'a Abandoned,
}

/// The one layer.
struct Layer {
    stored: Descriptor,
    /// The digest of the archive within.
    diff_id: Digest,
    written: rootfs::Exported,
}

/// What describes the layer, ready to be written.
struct Documents {
    config: Vec<u8>,
    manifest: Vec<u8>,
    id: Digest,
    index: Vec<u8>,
    /// For `docker load`.
    saved: Vec<u8>,
}

impl Job<'_> {
    fn rootfs_tar(self, target: ExportTarget) -> Result<Exported, ImageError> {
        let write = |out: &mut dyn Write| {
            let out = BufWriter::with_capacity(BUFFER, out);
            rootfs::export_now(&self.root, out, Meaning::Root, self.progress, self.abandoned)
        };
        let written = match streamed(target)? {
            Where::Stream(_, mut stream) => write(&mut stream)?,
            Where::File(path) => {
                let mut file = Unfinished::new(&path)?;
                let written = write(file.0.as_file_mut())?;
                file.finish(&path)?;
                written
            }
        };
        Ok(self.exported(written, None, written.bytes))
    }

    fn oci_tar(self, target: ExportTarget) -> Result<Exported, ImageError> {
        match streamed(target)? {
            Where::File(path) => {
                let mut file = Unfinished::new(&path)?;
                let failed = |error| ImageError::file("write", &path, error);
                let exported = self.oci_tar_to(file.0.as_file_mut(), &failed)?;
                file.finish(&path)?;
                Ok(exported)
            }
            // The head of the archive's largest member is known once that is written, so a stream gets what is in a file already.
            Where::Stream(name, mut stream) => {
                let mut staged = self.store.stage()?;
                let path = staged.path().to_owned();
                let exported =
                    self.oci_tar_to(staged.file(), &|error| ImageError::file("write", &path, error))?;
                let file = staged.file();
                file.seek(SeekFrom::Start(0)).map_err(|error| ImageError::file("read", &path, error))?;
                let mut buffer = vec![0; BUFFER];
                loop {
                    let got =
                        file.read(&mut buffer).map_err(|error| ImageError::file("read", &path, error))?;
                    if self.abandoned.is() {
                        return Err(RootfsError::Stopped.into());
                    }
                    let failed = |error| ImageError::file("write", Path::new(&name), error);
                    match got {
                        0 => break stream.flush().map_err(failed)?,
                        got => stream.write_all(&buffer[..got]).map_err(failed)?,
                    }
                }
                Ok(exported)
            }
        }
    }

    fn oci_tar_to(
        &self,
        file: &mut File,
        failed: &dyn Fn(io::Error) -> ImageError,
    ) -> Result<Exported, ImageError> {
        member(file, "oci-layout", LAYOUT).map_err(failed)?;
        let header_at = file.stream_position().map_err(failed)?;
        file.write_all(&[0; 512]).map_err(failed)?;
        let layer = self.layer(file)?;
        let end = file.stream_position().map_err(failed)?;
        file.seek(SeekFrom::Start(header_at)).map_err(failed)?;
        file.write_all(&header(&blob_name(layer.stored.digest), layer.stored.size)).map_err(failed)?;
        file.seek(SeekFrom::Start(end)).map_err(failed)?;
        pad(file, layer.stored.size).map_err(failed)?;
        let documents = self.documents(&layer);
        let config = blob_name(Digest::of(&documents.config));
        for (name, bytes) in [
            (config.as_str(), &documents.config),
            (&blob_name(documents.id), &documents.manifest),
            ("index.json", &documents.index),
            ("manifest.json", &documents.saved),
        ] {
            member(file, name, bytes).map_err(failed)?;
        }
        file.write_all(&[0; 1024]).map_err(failed)?;
        let size = file.stream_position().map_err(failed)?;
        Ok(self.exported(layer.written, Some(documents.id), size))
    }

    fn oci_directory(self, target: ExportTarget) -> Result<Exported, ImageError> {
        let path = match target {
            ExportTarget::Path(path) => path,
            ExportTarget::Stream(name, _) => {
                let error = io::Error::new(io::ErrorKind::NotADirectory, "it is a stream");
                return Err(ImageError::file("make the folder", Path::new(&name), error));
            }
        };
        // Seen now rather than after all of the work. What comes in the meantime is kept by the rename below.
        let is_free = match fs::read_dir(&path) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() != io::ErrorKind::NotADirectory,
        };
        if !is_free {
            return Err(ImageError::NotEmpty { path });
        }
        let made = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(folder_of(&path))
            .map_err(|error| ImageError::file("write to the folder of", &path, plain(error)))?;
        let at = |name: &str| made.path().join(name);
        let failed = |error| ImageError::file("write", &path, error);
        fs::create_dir_all(at("blobs/sha256")).map_err(failed)?;
        let unnamed = at("blobs/layer");
        let mut file = File::create_new(&unnamed).map_err(failed)?;
        let layer = self.layer(&mut file)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&unnamed, at(&blob_name(layer.stored.digest))).map_err(failed)?;
        let documents = self.documents(&layer);
        let mut size = layer.stored.size;
        for (name, bytes) in [
            (blob_name(Digest::of(&documents.config)).as_str(), &*documents.config),
            (&blob_name(documents.id), &documents.manifest),
            ("oci-layout", LAYOUT),
            ("index.json", &documents.index),
        ] {
            let mut file = File::create_new(at(name)).map_err(failed)?;
            file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
            size += bytes.len() as u64;
        }
        // Over nothing or an empty directory; everything else is the user's and stays.
        fs::rename(made.path(), &path).map_err(failed)?;
        let _its_name_is_gone = made.keep();
        Ok(self.exported(layer.written, Some(documents.id), size))
    }

    /// Writes the layer, packed, from where the file is.
    fn layer(&self, file: &mut File) -> Result<Layer, ImageError> {
        let packed = Hashed::new(BufWriter::with_capacity(BUFFER, file));
        let packer = GzEncoder::new(packed, Compression::default());
        let mut archive = Hashed::new(packer);
        // Gathered, so that the packer gets more than one header at a time.
        let out = BufWriter::with_capacity(BUFFER, &mut archive);
        let written = rootfs::export_now(&self.root, out, Meaning::Layer, self.progress, self.abandoned)?;
        let (packer, diff_id, _) = archive.end();
        let packed = packer.finish().map_err(RootfsError::Export)?;
        let (mut file, digest, size) = packed.end();
        file.flush().map_err(RootfsError::Export)?;
        Ok(Layer { stored: descriptor(OCI_LAYER_GZIP, digest, size), diff_id, written })
    }

    fn documents(&self, layer: &Layer) -> Documents {
        let config = ConfigDocument {
            platform: self.image.platform.clone(),
            created: self.image.created.clone(),
            config: self.image.config.clone(),
            diff_ids: vec![layer.diff_id],
            history: Vec::new(),
        }
        .to_json();
        let (manifest, id) = synthetic(&config, vec![layer.stored.clone()]);
        // As containerd, podman and skopeo look for them.
        let mut annotations = BTreeMap::new();
        let full = |name: &Reference| name.tag().map(|tag| format!("{}:{tag}", name.name()));
        if let Some((name, tag)) = self.name.as_ref().and_then(|name| Some((full(name)?, name.tag()?))) {
            annotations.insert("io.containerd.image.name".to_owned(), name);
            annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag.to_owned());
        }
        let platform = Some(self.image.platform.clone());
        let entry =
            Descriptor { platform, annotations, ..descriptor(OCI_MANIFEST, id, manifest.len() as u64) };
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]});
        let tags: Vec<String> = self.name.as_ref().and_then(full).into_iter().collect();
        let saved = json!([{
            "Config": blob_name(Digest::of(&config)),
            "RepoTags": tags,
            "Layers": [blob_name(layer.stored.digest)],
        }]);
        let (index, saved) = (index.to_string().into_bytes(), saved.to_string().into_bytes());
        Documents { config, manifest, id, index, saved }
    }

    fn exported(&self, written: rootfs::Exported, manifest: Option<Digest>, size: u64) -> Exported {
        Exported {
            image: self.image.id,
            manifest,
            name: self.name.clone().filter(|_| manifest.is_some()),
            entries: written.entries,
            sockets: written.sockets,
            size_bytes: size,
        }
    }
}

/// `oci-layout`. Source: OCI image spec, image-layout.md.
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// How files and directories are called until they are whole.
const TEMPORARY: &str = ".smartvm-export-";

/// What a target turns out to be.
enum Where {
    File(PathBuf),
    Stream(String, Box<dyn Write + Send>),
}

/// A fifo or a device is a stream: nothing may be renamed over it.
fn streamed(target: ExportTarget) -> Result<Where, ImageError> {
    match target {
        ExportTarget::Stream(name, stream) => Ok(Where::Stream(name, stream)),
        ExportTarget::Path(path) => match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                Err(ImageError::file("write", &path, io::Error::from(io::ErrorKind::IsADirectory)))
            }
            Ok(metadata) if !metadata.is_file() => {
                let file = File::options().write(true).open(&path);
                let file = file.map_err(|error| ImageError::file("open", &path, error))?;
                Ok(Where::Stream(path.display().to_string(), Box::new(file)))
            }
            _ => Ok(Where::File(path)),
        },
    }
}

/// A file that has not got its name yet; gone when dropped.
struct Unfinished(tempfile::NamedTempFile);

impl Unfinished {
    fn new(path: &Path) -> Result<Self, ImageError> {
        let file = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder_of(path));
        file.map(Self).map_err(|error| ImageError::file("write to the folder of", path, plain(error)))
    }

    fn finish(self, path: &Path) -> Result<(), ImageError> {
        let failed = |error| ImageError::file("write", path, error);
        self.0.as_file().sync_all().map_err(failed)?;
        self.0.persist(path).map(drop).map_err(|error| failed(error.error))
    }
}

/// Without the temporary name, of which nobody has heard.
fn plain(error: io::Error) -> io::Error {
    if error.get_ref().is_some() { error.kind().into() } else { error }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A member of the archive around the layout: as reproducible as what is in it.
fn member(out: &mut impl Write, name: &str, bytes: &[u8]) -> io::Result<()> {
    out.write_all(&header(name, bytes.len() as u64))?;
    out.write_all(bytes)?;
    pad(out, bytes.len() as u64)
}

fn header(name: &str, size: u64) -> [u8; 512] {
    let mut header = tar::Header::new_ustar();
    // All our names have room.
    let bytes = name.as_bytes();
    header.as_old_mut().name[..bytes.len()].copy_from_slice(bytes);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    *header.as_bytes()
}

fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let padding = size.next_multiple_of(512) - size;
    out.write_all(&[0; 512][..usize::try_from(padding).unwrap_or(0)])
}

/// Hashes and counts what goes through.
struct Hashed<W> {
    inner: W,
    hasher: Sha256,
    len: u64,
}

impl<W: Write> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), len: 0 }
    }

    fn end(self) -> (W, Digest, u64) {
        (self.inner, Digest::from_bytes(self.hasher.finalize().into()), self.len)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests;
