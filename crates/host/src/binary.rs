//! Which Firecracker is this, and of which version.

use std::collections::HashMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use smartvm_core::explain::{Code, Explain, Happened};
use smartvm_firecracker::Version;
use tokio::time::timeout;

use crate::error::SpawnError;
use crate::process::Exit;
use crate::spawner::start_program;

/// A Firecracker binary that answered `--version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirecrackerBinary {
    /// Its absolute path.
    pub path: PathBuf,
    /// What it says of itself.
    pub version: Version,
}

/// No usable Firecracker binary.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BinaryError {
    /// Nowhere a Firecracker.
    #[error(
        "there is no Firecracker binary: SMARTVM_FIRECRACKER is not set and `firecracker` is not on PATH"
    )]
    NotFound,
    /// The named file cannot be used.
    #[error("cannot use {} as Firecracker", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The program could not be started.
    #[error("cannot ask {} for its version", path.display())]
    Start {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: SpawnError,
    },
    /// The program is not Firecracker.
    #[error("{} is not Firecracker: asked for its version it said {said:?} ({exit})", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The beginning of its output.
        said: String,
        /// How it ended.
        exit: String,
    },
}

impl Explain for BinaryError {
    fn code(&self) -> Code {
        match self {
            Self::Start { source, .. } => source.code(),
            Self::NotFound | Self::Unusable { .. } | Self::Foreign { .. } => Code::FirecrackerNotFound,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Start { source, .. } => source.hint(),
            Self::NotFound => Some(
                "get a release from https://github.com/firecracker-microvm/firecracker/releases and put the binary on PATH as \
                 `firecracker`, or set SMARTVM_FIRECRACKER to it"
                    .into(),
            ),
            Self::Unusable { .. } | Self::Foreign { .. } => {
                Some("give the path of a Firecracker binary (SMARTVM_FIRECRACKER or --firecracker)".into())
            }
        }
    }

    fn happened(&self) -> Happened {
        Happened::NeverStarted
    }
}

/// Firecracker answers in 2 ms; a program that is not Firecracker may never.
const PATIENCE: Duration = Duration::from_secs(5);

impl FirecrackerBinary {
    /// The binary to use: `explicit`, else `SMARTVM_FIRECRACKER`, else `firecracker` on PATH.
    ///
    /// # Errors
    /// See [`BinaryError`].
    pub async fn find(explicit: Option<&Path>) -> Result<Self, BinaryError> {
        if let Some(path) = explicit {
            return Self::at(path).await;
        }
        if let Some(path) = env::var_os("SMARTVM_FIRECRACKER").filter(|path| !path.is_empty()) {
            return Self::at(Path::new(&path)).await;
        }
        let path = env::var_os("PATH").ok_or(BinaryError::NotFound)?;
        let found =
            env::split_paths(&path).map(|dir| dir.join("firecracker")).find(|path| is_executable(path));
        Self::at(&found.ok_or(BinaryError::NotFound)?).await
    }

    /// This file, asked for its version. Asked once in a process's life, unless the file changes.
    ///
    /// # Errors
    /// See [`BinaryError`].
    pub async fn at(path: &Path) -> Result<Self, BinaryError> {
        let unusable = |source| BinaryError::Unusable { path: path.to_owned(), source };
        let absolute = std::path::absolute(path).map_err(unusable)?;
        let metadata = fs::metadata(&absolute).map_err(unusable)?;
        if !metadata.is_file() {
            return Err(unusable(io::Error::other("it is not a file")));
        }
        let stamp = Stamp::of(&metadata);
        if let Some((_, version)) = known().get(&absolute).filter(|(known, _)| *known == stamp) {
            return Ok(Self { path: absolute, version: version.clone() });
        }
        let version = ask(&absolute).await?;
        known().insert(absolute.clone(), (stamp, version.clone()));
        Ok(Self { path: absolute, version })
    }
}

/// Asks a jailer for its version.
///
/// # Errors
/// It cannot be started, or is no jailer.
pub async fn jailer_version(path: &Path) -> Result<Version, BinaryError> {
    answer(path, |said| said.lines().find_map(|line| line.trim().strip_prefix("Jailer ")?.parse().ok())).await
}

/// What changes when a file is replaced or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

fn known() -> MutexGuard<'static, HashMap<PathBuf, (Stamp, Version)>> {
    static KNOWN: LazyLock<Mutex<HashMap<PathBuf, (Stamp, Version)>>> = LazyLock::new(Mutex::default);
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

async fn ask(path: &Path) -> Result<Version, BinaryError> {
    answer(path, |said| Version::from_output(said).ok()).await
}

async fn answer(path: &Path, find: impl Fn(&str) -> Option<Version>) -> Result<Version, BinaryError> {
    let start = |source| BinaryError::Start { path: path.to_owned(), source };
    let started = start_program(&[path.as_os_str(), OsStr::new("--version")]).await.map_err(start)?;
    let child = &started.owned.child;
    let exit = match timeout(PATIENCE, child.wait()).await {
        Ok(ended) => Ok(ended.exit),
        Err(_) => Err(format!("no end within {PATIENCE:?}")),
    };
    let said = String::from_utf8_lossy(&child.console.tail()).into_owned();
    match find(&said) {
        // In an owner that ignores SIGCHLD nobody knows the status.
        Some(version) if matches!(exit, Ok(Exit::Status(0) | Exit::Unknown)) => Ok(version),
        _ => Err(BinaryError::Foreign {
            path: path.to_owned(),
            said: said.trim().chars().take(100).collect(),
            exit: exit.map_or_else(|late| late, |exit| exit.to_string()),
        }),
    }
}
