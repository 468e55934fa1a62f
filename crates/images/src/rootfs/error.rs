//! How the making of a root file system fails.

use std::io;
use std::path::PathBuf;

use smartvm_core::explain::{Code, Explain, Happened};

/// Why no root file system was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootfsError {
    /// An entry of a layer that no file system can hold, or that wants out of it.
    #[error("{layer}: entry `{entry}` {problem}")]
    Entry {
        /// The layer, as its maker named it.
        layer: String,
        /// The entry's path as written, shortened and made printable.
        entry: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A layer that is no archive, or a damaged or truncated one.
    #[error("{layer}: {problem} after {position} bytes of the archive")]
    Archive {
        /// The layer, as its maker named it.
        layer: String,
        /// What is wrong with it.
        problem: String,
        /// How far it was read, in bytes of the unpacked archive.
        position: u64,
        /// What the reader or the decompressor said.
        #[source]
        source: Option<io::Error>,
    },
    /// More than the limits allow.
    #[error("{layer}: more than {limit} {what}")]
    Limit {
        /// The layer (or directory) that exceeds it.
        layer: String,
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Something of a directory that no file system can hold.
    #[error("`{path}` {problem}", path = path.display())]
    File {
        /// The file on this host.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file was changed while it was read.
    #[error("`{path}` was changed while it was read", path = path.display())]
    Changed {
        /// The file or layer.
        path: PathBuf,
    },
    /// Something could not be read.
    #[error("cannot {action} `{path}`", path = path.display())]
    Read {
        /// What was tried: `open`, `read`, …
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The image could not be written.
    #[error("cannot write the image")]
    Write(#[source] io::Error),
    /// The archive that an image is exported to could not be written.
    #[error("cannot write the archive")]
    Export(#[source] io::Error),
    /// A file system of this size or shape cannot be made.
    #[error("cannot lay out the file system: {0}")]
    Layout(String),
    /// An existing image is not one, is damaged, or has features that are not understood.
    #[error("cannot read the file system: {0}")]
    Image(String),
    /// It was asked to stop.
    #[error("stopped before the image was complete")]
    Stopped,
}

impl RootfsError {
    pub(super) fn entry(layer: &str, entry: &[u8], problem: impl Into<String>) -> Self {
        Self::Entry { layer: layer.into(), entry: printable(entry), problem: problem.into() }
    }
}

/// A name of unknown bytes for a message: one line, at most 200 characters.
pub(super) fn printable(name: &[u8]) -> String {
    let text = name.escape_ascii().to_string();
    let text = match std::str::from_utf8(name) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => text,
    };
    match text.char_indices().nth(200) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

impl Explain for RootfsError {
    fn code(&self) -> Code {
        match self {
            Self::Entry { .. }
            | Self::Archive { .. }
            | Self::Limit { .. }
            | Self::File { .. }
            | Self::Changed { .. }
            | Self::Layout(_)
            | Self::Image(_) => Code::InvalidImage,
            Self::Read { .. } | Self::Write(_) | Self::Export(_) | Self::Stopped => Code::Host,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Entry { .. } => "The archive is malformed or hostile. Make it again, or use another image.",
            Self::Archive { .. } => "Fetch or make the archive again: it is damaged, or not a tar archive.",
            Self::Limit { .. } => "If you trust this image, raise the limit.",
            Self::File { .. } => "Rename or remove it, or import a directory without it.",
            Self::Changed { .. } => "Import a copy, or stop what writes there, and try again.",
            Self::Read { .. } => "Check that it exists and may be read by this user.",
            Self::Write(_) => "Check the free space and the permissions of the data directory.",
            Self::Export(_) => {
                "Check the free space and the permissions where it goes, or what reads it from the pipe."
            }
            Self::Layout(_) => "Make the image smaller, or ask for another size.",
            Self::Image(_) => "Fetch or build the image again.",
            Self::Stopped => return None,
        };
        Some(hint.to_owned())
    }

    fn happened(&self) -> Happened {
        Happened::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn names_in_messages_are_short_and_on_one_line() {
        assert_eq!(printable("bücher/ok".as_bytes()), "bücher/ok");
        assert_eq!(printable(b"a\nb\xff"), "a\\nb\\xff");
        assert_eq!(printable(&[b'x'; 5000]).chars().count(), 201);
    }
}
