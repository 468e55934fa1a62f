//! A user's Firecracker config: read, checked as a whole, and made independent of where it lies.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Serialize;
use smartvm_core::explain::{Code, Explain, Happened};
use smartvm_core::problem::{Problem, Severity};

/// The longest config that is read, in bytes. A config that uses every device there is stays far below.
pub const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// A Firecracker config as the user wrote it, and the folder that its relative paths start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub(crate) text: String,
    pub(crate) base: PathBuf,
    pub(crate) file: Option<PathBuf>,
}

impl Config {
    /// Reads a config file. Relative paths in it mean its own folder; the current one when it comes through a pipe, as
    /// `/dev/stdin` or `/proc/self/fd/3` does.
    ///
    /// # Errors
    /// It cannot be read, or is no text of a possible size.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let failed = |problem, source| ConfigError { path: path.to_owned(), problem, source };
        let file = std::path::absolute(path).map_err(|source| failed(Unreadable::Io, Some(source)))?;
        let base = if file.starts_with("/dev") || file.starts_with("/proc") {
            std::env::current_dir().map_err(|source| failed(Unreadable::Io, Some(source)))?
        } else {
            file.parent().unwrap_or(Path::new("/")).to_owned()
        };
        let bytes = read(&file).map_err(|(problem, source)| failed(problem, source))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..valid].iter().filter(|&&byte| byte == b'\n').count() + 1;
            failed(Unreadable::NotUtf8 { line }, None)
        })?;
        Ok(Self { text, base, file: Some(file) })
    }

    /// A config in memory. Relative paths in it start from `base`.
    pub fn from_json(text: impl Into<String>, base: impl Into<PathBuf>) -> Self {
        Self { text: text.into(), base: base.into(), file: None }
    }

    /// The same, told of as this file.
    #[must_use]
    pub fn named(mut self, file: impl Into<PathBuf>) -> Self {
        self.file = Some(file.into());
        self
    }

    /// The JSON text as it was read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The folder that relative paths start from.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The file it was read from.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, (Unreadable, Option<io::Error>)> {
    let io = |source| (Unreadable::Io, Some(source));
    // A FIFO or a device such as /dev/stdin is read too; a directory says so when it is read.
    let file = File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        return Err((Unreadable::TooLarge, None));
    }
    Ok(bytes)
}

/// A config file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the config {}{problem}", path.display())]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Unreadable,
    /// The system call's error, when it is one.
    pub source: Option<io::Error>,
}

/// Why a config file cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// The host refused.
    Io,
    /// It is larger than [`MAX_CONFIG_BYTES`].
    TooLarge,
    /// It is not UTF-8.
    NotUtf8 {
        /// The first line with other bytes.
        line: usize,
    },
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io => Ok(()),
            Self::TooLarge => write!(f, ": it is larger than {} MiB", MAX_CONFIG_BYTES >> 20),
            Self::NotUtf8 { line } => write!(f, ": line {line} is not UTF-8 text"),
        }
    }
}

impl Explain for ConfigError {
    fn code(&self) -> Code {
        Code::InvalidConfig
    }

    fn hint(&self) -> Option<String> {
        let errno = self.source.as_ref().and_then(Errno::from_io_error);
        Some(
            match (self.problem, errno) {
                (Unreadable::Io, Some(Errno::NOENT)) => {
                    "give the path of a Firecracker config file (JSON), as for `firecracker --config-file`"
                }
                (Unreadable::Io, Some(Errno::ISDIR)) => "that is a directory: name the JSON file in it",
                (Unreadable::Io, Some(Errno::ACCESS)) => {
                    "this user must be able to read the file and to pass through the folders above it"
                }
                (Unreadable::Io, Some(Errno::LOOP)) => {
                    "the path runs in a circle of symbolic links: name the file itself"
                }
                (Unreadable::Io, _) => "check the path and its file system",
                (Unreadable::TooLarge | Unreadable::NotUtf8 { .. }, _) => {
                    "is this really a Firecracker config (JSON text)?"
                }
            }
            .into(),
        )
    }

    fn happened(&self) -> Happened {
        Happened::NeverStarted
    }
}

/// One thing that is wrong with a config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A stable name of its kind.
    pub code: String,
    /// Whether the machine cannot work, or only may not do what was meant.
    pub severity: Severity,
    /// The field, as the path in the config file; absent when the text is no JSON at that place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Where in the text, line and column from 1; absent when the field's path says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<(usize, usize)>,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

impl Finding {
    /// Whether the machine cannot work.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl From<Problem> for Finding {
    fn from(problem: Problem) -> Self {
        Self {
            code: problem.code.to_string(),
            severity: problem.severity,
            path: Some(problem.path),
            at: None,
            what: problem.what,
            hint: problem.hint,
        }
    }
}

/// A config that cannot work: everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidConfig {
    /// The file it was read from.
    pub file: Option<PathBuf>,
    /// At least one error; warnings too.
    pub findings: Vec<Finding>,
}

impl InvalidConfig {
    /// How many of the findings are errors.
    pub fn errors(&self) -> usize {
        self.findings.iter().filter(|finding| finding.is_error()).count()
    }
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = self.errors();
        let problems = if errors == 1 { "a problem" } else { "problems" };
        match &self.file {
            Some(file) if self.code() == Code::KvmUnavailable => {
                write!(f, "this host cannot run the config {}", file.display())
            }
            Some(file) => write!(f, "the config {} has {problems}", file.display()),
            None => write!(f, "the config has {problems}"),
        }
    }
}

impl std::error::Error for InvalidConfig {}

impl Explain for InvalidConfig {
    fn code(&self) -> Code {
        // A host without KVM is not the config's fault, unless that has some of its own.
        let mut errors = self.findings.iter().filter(|finding| finding.is_error());
        if errors.all(|finding| finding.code == Code::KvmUnavailable.as_str()) {
            return Code::KvmUnavailable;
        }
        Code::InvalidConfig
    }

    fn hint(&self) -> Option<String> {
        Some(self.findings.iter().map(|finding| finding.hint.as_str()).collect::<Vec<_>>().join(" "))
    }

    fn happened(&self) -> Happened {
        Happened::NeverStarted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_knows_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.json");
        std::fs::write(&path, "{}").unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!((config.text.as_str(), config.base.as_path()), ("{}", dir.path()));
    }

    #[test]
    fn a_config_from_a_pipe_means_the_current_folder() {
        use std::os::fd::AsRawFd;
        let (reader, mut writer) = io::pipe().unwrap();
        io::Write::write_all(&mut writer, b"{}").unwrap();
        drop(writer);
        let config = Config::load(Path::new(&format!("/proc/self/fd/{}", reader.as_raw_fd()))).unwrap();
        assert_eq!((config.text.as_str(), config.base), ("{}", std::env::current_dir().unwrap()));
    }

    #[test]
    fn what_cannot_be_a_config_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.json");
        let said =
            |path: &Path| Config::load(path).unwrap_err().to_string().replace(&*path.to_string_lossy(), "F");
        assert_eq!(said(&path), "cannot read the config F");
        std::fs::write(&path, b"{\n\n\xff").unwrap();
        assert_eq!(said(&path), "cannot read the config F: line 3 is not UTF-8 text");
        std::fs::write(&path, vec![b' '; MAX_CONFIG_BYTES as usize + 1]).unwrap();
        assert_eq!(said(&path), "cannot read the config F: it is larger than 4 MiB");
        assert!(Config::load(dir.path()).unwrap_err().hint().unwrap().contains("directory"));
        assert!(Config::load(Path::new("/dev/zero")).is_err(), "an endless file ends at the bound");
    }
}
