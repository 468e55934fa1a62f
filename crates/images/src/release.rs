//! Firecracker releases: fetched, checked against their published SHA-256, unpacked into the store, several versions side
//! by side.
//!
//! A release lies where GitHub puts it: `<base>/download/v1.12.1/firecracker-v1.12.1-x86_64.tgz`, its digest beside it with
//! `.sha256.txt` at the end, and `<base>/latest` redirects to `<base>/tag/v1.12.1`. A mirror that cannot redirect may serve a
//! text with the version at `<base>/latest`. Of the archive only `firecracker` and `jailer` are taken.
//!
//! Nothing here runs a program: whether a binary works is asked where VMMs are started (`smartvm-host`).
//!
//! The jailer wants the file's name to contain `firecracker`, and a process is called after its file: so the two programs
//! of a release stand at `<store>/bin/<version>/` as further names (hard links) of their blobs.

mod error;
mod find;
mod unpack;

#[cfg(test)]
pub(crate) mod tests;

use std::cmp::Reverse;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smartvm_core::target::{Arch, FirecrackerVersion};
use url::Url;

use crate::blocking::blocking;
use crate::digest::Digest;
use crate::download::{self, DownloadError, Downloader, Request, shown};
use crate::store::{Kind, Store, StoreLock};
pub use error::ReleaseError;
pub use find::{Found, FoundBy, find};

/// Where releases are fetched from when nothing else is said.
pub const OFFICIAL: &str = "https://github.com/firecracker-microvm/firecracker/releases";

/// The variable that names other places, separated by blanks, best first.
pub const URL_VARIABLE: &str = "SMARTVM_FIRECRACKER_URL";

/// The most bytes that are accepted as a release archive. Those of 1.7 to 1.15 have 4 to 70 MB.
const LARGEST_ARCHIVE: u64 = 512 << 20;

/// The most bytes that are accepted as a file with a digest or a version in it.
const LARGEST_TEXT: u64 = 4096;

/// The name of the record that says which version is the default.
const CHOICE: &str = "firecracker";

/// A released version, written `v1.12.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(pub FirecrackerVersion);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl FromStr for Version {
    type Err = ReleaseError;

    /// Reads `1.12.1` or `v1.12.1`.
    fn from_str(text: &str) -> Result<Self, ReleaseError> {
        let bad = || ReleaseError::BadVersion { text: text.chars().take(100).collect() };
        let mut numbers = text.strip_prefix('v').unwrap_or(text).split('.').map(|part| {
            let plain = (1..=5).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| part.parse().ok()).flatten()
        });
        match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
            (Some(Some(major)), Some(Some(minor)), Some(Some(patch)), None) => {
                Ok(Self(FirecrackerVersion(major, minor, patch)))
            }
            _ => Err(bad()),
        }
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Which version is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The newest that the release page names as such.
    Latest,
    /// This one.
    Exactly(Version),
}

impl FromStr for Wanted {
    type Err = ReleaseError;

    /// Reads `latest` or a version.
    fn from_str(text: &str) -> Result<Self, ReleaseError> {
        if text == "latest" { Ok(Self::Latest) } else { text.parse().map(Self::Exactly) }
    }
}

/// Where releases are, and for which machine.
#[derive(Debug, Clone)]
pub struct Options {
    /// The places, best first. The first that has something is used.
    pub bases: Vec<Url>,
    /// The architecture whose programs are wanted.
    pub arch: Arch,
}

impl Options {
    /// The official place, or those that `SMARTVM_FIRECRACKER_URL` names, for this host.
    ///
    /// # Errors
    /// The variable holds something else than URLs and paths.
    pub fn from_environment() -> Result<Self, DownloadError> {
        let named = download::variable(URL_VARIABLE, std::env::var_os(URL_VARIABLE))?;
        let named = named.unwrap_or_else(|| OFFICIAL.to_owned());
        let bases = named.split_whitespace().map(download::place).collect::<Result<_, _>>()?;
        Ok(Self { bases, arch: Arch::HOST })
    }
}

/// An installed release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// Its version.
    pub version: Version,
    /// The architecture of its programs: `x86_64` or `aarch64`.
    pub arch: String,
    /// The VMM.
    pub firecracker: Digest,
    /// The jailer of the same release.
    pub jailer: Digest,
    /// The archive that they came in.
    pub archive: Digest,
    /// Where that was from.
    pub source: String,
}

/// A listed release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// What is installed.
    #[serde(flatten)]
    pub installed: Installed,
    /// Whether it is the one that machines use when nothing else is said.
    pub default: bool,
}

/// The two programs of a release as files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Programs {
    /// The VMM.
    pub firecracker: PathBuf,
    /// The jailer.
    pub jailer: PathBuf,
}

/// The default version.
#[derive(Debug, Serialize, Deserialize)]
struct Choice {
    version: Version,
}

/// What is to be fetched for one release.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The version.
    pub version: Version,
    /// Whether it is installed already.
    pub installed: bool,
    /// The archive's size in bytes, if the server says it.
    pub size: Option<u64>,
}

/// The releases in a store.
#[derive(Debug, Clone)]
pub struct Releases {
    store: Store,
    downloader: Downloader,
    options: Options,
}

impl Releases {
    /// The releases in `store`, fetched by `downloader`.
    pub fn new(store: Store, downloader: Downloader, options: Options) -> Self {
        Self { store, downloader, options }
    }

    /// Installs a version, unless it is there. The first one installed becomes the default.
    ///
    /// # Errors
    /// It cannot be fetched, has no published digest or another one, or is no release archive.
    pub async fn install(&self, wanted: Wanted, force: bool) -> Result<Installed, ReleaseError> {
        let version = match wanted {
            Wanted::Exactly(version) => version,
            Wanted::Latest => self.latest().await?,
        };
        if let Some(installed) = self.look_for(version).await?.filter(|_| !force) {
            return Ok(installed);
        }
        let progress = self.downloader.progress();
        let _lock = self.store.lock("install Firecracker", &version.to_string(), progress).await?;
        if let Some(installed) = self.look_for(version).await?.filter(|_| !force) {
            return Ok(installed);
        }
        let checksum = self.request(version, ".sha256.txt", LARGEST_TEXT);
        let text = self.downloader.bytes(&checksum).await.map_err(|source| match source {
            DownloadError::NotFound { .. } => ReleaseError::NoChecksum { version, source: Box::new(source) },
            source => source.into(),
        })?;
        let digest = read_checksum(&text, &self.archive_name(version)).ok_or_else(|| {
            ReleaseError::BadChecksum { version, url: checksum.urls.first().map(shown).unwrap_or_default() }
        })?;
        let archive = Request { digest: Some(digest), ..self.request(version, "", LARGEST_ARCHIVE) };
        self.unpack(version, &archive).await
    }

    /// Installs a release from an archive on this host and the digest that was published for it.
    ///
    /// # Errors
    /// As [`Releases::install`].
    pub async fn import(&self, archive: &Path, published: Digest) -> Result<Installed, ReleaseError> {
        let name = archive.file_name().unwrap_or_default().to_string_lossy();
        let version = version_in(&name, self.options.arch)
            .ok_or_else(|| ReleaseError::NotARelease { path: archive.to_owned(), arch: self.options.arch })?;
        let progress = self.downloader.progress();
        let _lock = self.store.lock("install Firecracker", &version.to_string(), progress).await?;
        if let Some(installed) =
            self.look_for(version).await?.filter(|installed| installed.archive == published)
        {
            return Ok(installed);
        }
        let url = download::place_of(archive)?;
        let request = Request { digest: Some(published), ..Request::new(&*name, url, LARGEST_ARCHIVE) };
        self.unpack(version, &request).await
    }

    /// What installing would fetch.
    ///
    /// # Errors
    /// The release page does not answer, or has no such version.
    pub async fn plan(&self, wanted: Wanted) -> Result<Plan, ReleaseError> {
        let version = match wanted {
            Wanted::Exactly(version) => version,
            Wanted::Latest => self.latest().await?,
        };
        if self.look_for(version).await?.is_some() {
            return Ok(Plan { version, installed: true, size: None });
        }
        let size = self.downloader.size(&self.request(version, "", LARGEST_ARCHIVE)).await?;
        Ok(Plan { version, installed: false, size })
    }

    /// The newest version that the release page names.
    ///
    /// # Errors
    /// It does not answer, or names none.
    pub async fn latest(&self) -> Result<Version, ReleaseError> {
        let urls: Vec<Url> = self.options.bases.iter().map(|base| below(base, &["latest"])).collect();
        let request = Request { urls, ..self.request_for("the newest version of Firecracker", LARGEST_TEXT) };
        // A file cannot redirect, so it is read at once.
        let at = self.downloader.destination(&request).await?;
        let segments: Vec<&str> = at.path_segments().map(Iterator::collect).unwrap_or_default();
        if let [.., "tag", tag] = segments.as_slice() {
            return tag.parse();
        }
        let text = self.downloader.bytes(&Request { urls: vec![at.clone()], ..request }).await;
        let text = match text {
            // A page instead of a text.
            Err(DownloadError::TooLarge { .. }) => {
                return Err(ReleaseError::NoLatest { url: shown(&at) });
            }
            text => text?,
        };
        let version = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        version.ok_or_else(|| ReleaseError::NoLatest { url: shown(&at) })
    }

    /// What is installed, newest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, ReleaseError> {
        list(&self.store)
    }

    /// Makes an installed version the default.
    ///
    /// # Errors
    /// It is not installed.
    pub async fn choose(&self, version: Version) -> Result<Installed, ReleaseError> {
        let _lock = self.lock_choice().await?;
        let this = self.clone();
        blocking(move |_| {
            let installed = this.present(version)?.ok_or(ReleaseError::NotInstalled { version })?;
            this.store.put(Kind::Choice, CHOICE, &Choice { version }, &[])?;
            Ok(installed)
        })
        .await
    }

    /// Removes a version; its blobs go with the next gc. One that a machine runs stays. The default can
    /// only be removed when it is the only version: which other one machines should use from then on is the user's choice.
    ///
    /// # Errors
    /// It is not installed, runs a machine, or is the default among several.
    pub async fn remove(&self, version: Version) -> Result<(), ReleaseError> {
        let progress = self.downloader.progress();
        let _lock = self.store.lock("install Firecracker", &version.to_string(), progress).await?;
        let _choice = self.lock_choice().await?;
        let store = self.store.clone();
        blocking(move |_| remove(&store, version)).await
    }

    /// Whoever changes the default, or removes what may be it, does so alone. Taken after the lock of a version.
    async fn lock_choice(&self) -> Result<StoreLock, ReleaseError> {
        Ok(self.store.lock("choose the default", "Firecracker", self.downloader.progress()).await?)
    }

    /// The release's programs as files that may be run for as long as the store's handle lives. A machine that
    /// runs one says so by [`Store::use_blobs`].
    ///
    /// # Errors
    /// A program is missing in the store.
    pub fn programs(&self, installed: &Installed) -> Result<Programs, ReleaseError> {
        programs(&self.store, installed)
    }

    /// The record of a version whose blobs are all there.
    fn present(&self, version: Version) -> Result<Option<Installed>, ReleaseError> {
        let installed = self.store.get::<Installed>(Kind::Firecracker, &version.to_string())?;
        let here = |digest: &Digest| self.store.blob(digest).is_some();
        Ok(installed.filter(|installed| here(&installed.firecracker) && here(&installed.jailer)))
    }

    /// The same for tasks: the store's locks block for as long as a collection needs.
    async fn look_for(&self, version: Version) -> Result<Option<Installed>, ReleaseError> {
        let this = self.clone();
        blocking(move |_| this.present(version)).await
    }

    /// Fetches an archive and takes from it what is wanted.
    async fn unpack(&self, version: Version, archive: &Request) -> Result<Installed, ReleaseError> {
        let fetched = self.downloader.fetch(&self.store, archive).await?;
        let digest = fetched.digest();
        let (file, store, arch) = (fetched.open()?, self.store.clone(), self.options.arch);
        let unpacked =
            blocking(move |abandoned| unpack::unpack(file, &store, version, arch, abandoned)).await;
        // Right bytes that are no release do not become one by fetching them again.
        fetched.discard();
        let unpacked = unpacked?;
        let installed = Installed {
            version,
            arch: self.options.arch.to_string(),
            firecracker: unpacked.firecracker,
            jailer: unpacked.jailer,
            archive: digest,
            source: archive.urls.first().map(shown).unwrap_or_default(),
        };
        let store = self.store.clone();
        let _choice = self.lock_choice().await?;
        blocking(move |_| {
            let blobs = [installed.firecracker, installed.jailer];
            store.put(Kind::Firecracker, &version.to_string(), &installed, &blobs)?;
            // A choice whose version is lost is none.
            if matches!(default(&store), Ok(None) | Err(ReleaseError::DefaultMissing { .. })) {
                store.put(Kind::Choice, CHOICE, &Choice { version }, &[])?;
            }
            programs(&store, &installed)?;
            Ok(installed)
        })
        .await
    }

    fn archive_name(&self, version: Version) -> String {
        format!("firecracker-{version}-{}.tgz", self.options.arch)
    }

    fn request(&self, version: Version, suffix: &str, max_size: u64) -> Request {
        let name = self.archive_name(version) + suffix;
        let path = ["download", &version.to_string(), &name];
        let urls = self.options.bases.iter().map(|base| below(base, &path)).collect();
        Request { urls, ..self.request_for(&name, max_size) }
    }

    fn request_for(&self, what: &str, max_size: u64) -> Request {
        Request {
            what: what.to_owned(),
            urls: vec![],
            headers: Default::default(),
            digest: None,
            size: None,
            max_size,
        }
    }
}

/// The chosen version.
///
/// # Errors
/// The store cannot be read, or the chosen version is not in it: another one instead would be a surprise.
pub fn default(store: &Store) -> Result<Option<Installed>, ReleaseError> {
    let Some(Choice { version }) = store.get(Kind::Choice, CHOICE)? else { return Ok(None) };
    match store.get(Kind::Firecracker, &version.to_string())? {
        Some(installed) => Ok(Some(installed)),
        // Removed in this moment, as the last one, with the choice; or its record was lost.
        None => match store.get(Kind::Choice, CHOICE)? {
            Some(Choice { version: again }) if again == version => {
                Err(ReleaseError::DefaultMissing { version })
            }
            _ => Ok(None),
        },
    }
}

/// The blob of the installed Firecracker whose file `path` is, by the name that [`Releases::programs`] gives it.
///
/// # Errors
/// The store cannot be read.
pub fn blob_at(store: &Store, path: &Path) -> Result<Option<Digest>, ReleaseError> {
    for Listed { installed, .. } in list(store)? {
        // One that is damaged is not what runs there.
        if programs(store, &installed).is_ok_and(|programs| programs.firecracker == path) {
            return Ok(Some(installed.firecracker));
        }
    }
    Ok(None)
}

fn remove(store: &Store, version: Version) -> Result<(), ReleaseError> {
    let all = list(store)?;
    let others = all.iter().any(|listed| listed.installed.version != version);
    let listed = all.iter().find(|listed| listed.installed.version == version);
    let listed = listed.ok_or(ReleaseError::NotInstalled { version })?;
    let Installed { firecracker, jailer, .. } = listed.installed;
    if let Some(user) = store.users_of(&[firecracker, jailer])?.into_iter().next() {
        return Err(ReleaseError::InUse { version, machine: user.id });
    }
    if listed.default && others {
        return Err(ReleaseError::IsDefault { version });
    }
    if listed.default {
        store.remove(Kind::Choice, CHOICE)?;
    }
    store.remove(Kind::Firecracker, &version.to_string())?;
    store.unname_blobs(&version.to_string());
    Ok(())
}

fn list(store: &Store) -> Result<Vec<Listed>, ReleaseError> {
    let chosen = store.get::<Choice>(Kind::Choice, CHOICE)?.map(|choice| choice.version);
    let mut all: Vec<Listed> = store
        .list::<Installed>(Kind::Firecracker)?
        .into_iter()
        .map(|(_, installed)| Listed { default: chosen == Some(installed.version), installed })
        .collect();
    all.sort_by_key(|listed| Reverse(listed.installed.version));
    Ok(all)
}

/// The programs under names of their own.
fn programs(store: &Store, installed: &Installed) -> Result<Programs, ReleaseError> {
    let of = installed.version.to_string();
    Ok(Programs {
        firecracker: store.name_blob(&installed.firecracker, &of, "firecracker")?,
        jailer: store.name_blob(&installed.jailer, &of, "jailer")?,
    })
}

/// The version in the name of an archive for `arch`.
pub(crate) fn version_in(name: &str, arch: Arch) -> Option<Version> {
    let version = name.strip_prefix("firecracker-")?.strip_suffix(&format!("-{arch}.tgz"))?;
    version.starts_with('v').then(|| version.parse().ok()).flatten()
}

/// Reads what `sha256sum` printed for `name`. The name may be missing, but not another one.
pub(crate) fn read_checksum(text: &[u8], name: &str) -> Option<Digest> {
    std::str::from_utf8(text).ok()?.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let digest = Digest::from_hex(words.next()?)?;
        let named = words.next().map(|named| named.trim_start_matches('*'));
        let named = named.map(|named| named.rsplit('/').next().unwrap_or(named));
        named.is_none_or(|named| named == name).then_some(digest)
    })
}

/// A URL below another one, whose query is dropped.
pub(crate) fn below(base: &Url, path: &[&str]) -> Url {
    let mut url = base.clone();
    url.set_query(None);
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    url
}
