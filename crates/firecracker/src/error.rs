//! What can go wrong with a request to a VMM.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use smartvm_core::explain::{Code, Explain, Happened};

use crate::client::Verb;
use crate::version::Version;

/// Why a request got no good answer.
///
/// No variant's text contains MMDS contents: what may quote them is withheld from `Display` and `Debug`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// No connection could be made; the request was not sent.
    #[error("{verb} {path}: cannot connect to the API socket {}", api_sock.display())]
    Connect {
        /// The request's verb.
        verb: Verb,
        /// The request's path.
        path: String,
        /// Where the VMM should listen.
        api_sock: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// This Firecracker is too old (or too new) for the request, which was not sent.
    #[error("{what} needs {needs}; this is {version}")]
    Unsupported {
        /// What was asked for: a request, a field or a value.
        what: String,
        /// The versions that can do it: `Firecracker 1.14 or later`.
        needs: String,
        /// The version of this VMM.
        version: Version,
    },
    /// Firecracker refused the request.
    #[error("{verb} {path}: Firecracker refused ({status}): {fault_message}")]
    Fault {
        /// The request's verb.
        verb: Verb,
        /// The request's path.
        path: String,
        /// The HTTP status, nearly always 400.
        status: u16,
        /// Firecracker's reason, whole.
        fault_message: FaultMessage,
    },
    /// No answer came in time. The connection was closed, so that a late answer meets nobody.
    #[error("{verb} {path}: no answer within {deadline:?}{}", if *sent { "" } else { " (not sent: others were before it)" })]
    Timeout {
        /// The request's verb.
        verb: Verb,
        /// The request's path.
        path: String,
        /// How long was waited.
        deadline: Duration,
        /// Whether the request may have reached the VMM.
        sent: bool,
    },
    /// The VMM closed the connection before the answer was whole.
    #[error("{verb} {path}: the connection ended before the answer")]
    Disconnected {
        /// The request's verb.
        verb: Verb,
        /// The request's path.
        path: String,
        /// Whether the request may have reached the VMM.
        sent: bool,
        /// What the connection said.
        source: hyper::Error,
    },
    /// What came back is not Firecracker's protocol.
    #[error("{verb} {path}: the answer is not Firecracker's: {problem}")]
    Protocol {
        /// The request's verb.
        verb: Verb,
        /// The request's path.
        path: String,
        /// What is wrong with it; never quotes the answer of an MMDS request.
        problem: String,
    },
    /// The answer is larger than the bound. The connection was closed.
    #[error("{verb} {path}: the answer is larger than {limit} bytes")]
    TooLarge {
        /// The request's verb.
        verb: Verb,
        /// The request's path.
        path: String,
        /// The bound in bytes.
        limit: usize,
    },
    /// The request cannot be written as HTTP or JSON; it was not sent.
    #[error("{verb} {path}: the request cannot be written: {problem}")]
    BadRequest {
        /// The request's verb.
        verb: Verb,
        /// The request's path.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl ApiError {
    /// Firecracker's own reason, when it gave one.
    pub fn fault_message(&self) -> Option<&FaultMessage> {
        match self {
            Self::Fault { fault_message, .. } => Some(fault_message),
            _ => None,
        }
    }
}

impl Explain for ApiError {
    fn code(&self) -> Code {
        match self {
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::InvalidFilename => {
                Code::SocketPath
            }
            Self::Connect { .. } | Self::Disconnected { .. } => Code::ApiDisconnected,
            Self::Unsupported { .. } => Code::UnsupportedVersion,
            Self::Fault { .. } => Code::ApiFault,
            Self::Timeout { .. } => Code::ApiTimeout,
            Self::Protocol { .. } | Self::TooLarge { .. } | Self::BadRequest { .. } => Code::ApiProtocol,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Connect { source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    "is the VMM still running, and is this its API socket?"
                }
                io::ErrorKind::PermissionDenied => "this user may not open the VMM's API socket",
                io::ErrorKind::InvalidFilename => "choose a shorter name for the API socket",
                _ => return None,
            },
            Self::Unsupported { .. } => "use a newer Firecracker (SMARTVM_FIRECRACKER), or leave it out",
            Self::Fault { fault_message, .. }
                if fault_message.as_str().contains("larger than the limit of") =>
            {
                "start the VMM with a larger `--http-api-max-payload-size`"
            }
            Self::Timeout { .. } => "the VMM is busy or stuck: look at its log",
            Self::Disconnected { .. } => "the VMM closed the connection; has it exited?",
            Self::Protocol { .. } => "is this socket really Firecracker's?",
            _ => return None,
        };
        Some(hint.to_owned())
    }

    fn happened(&self) -> Happened {
        match self {
            Self::Connect { .. } | Self::Unsupported { .. } | Self::BadRequest { .. } => {
                Happened::NeverStarted
            }
            Self::Timeout { sent: false, .. } | Self::Disconnected { sent: false, .. } => {
                Happened::NeverStarted
            }
            Self::Fault { .. } => Happened::Failed,
            Self::Timeout { .. } | Self::Disconnected { .. } => Happened::Unknown,
            Self::Protocol { .. } | Self::TooLarge { .. } => Happened::Unknown,
        }
    }
}

/// Firecracker's reason for a refusal, whole.
///
/// The reason for refusing an MMDS body may quote that body, and MMDS contents never reach a log: such a
/// message prints as a placeholder, and only [`FaultMessage::as_str`] gives the text.
#[derive(Clone, PartialEq, Eq)]
pub struct FaultMessage {
    text: Box<str>,
    withheld: bool,
}

/// Faults about the data store that quote nothing, with their digits left out.
const QUOTES_NOTHING: &[&str] = &[
    "Empty PUT request.",
    "Empty PATCH request.",
    "The MMDS data store is not initialized.",
    "The MMDS patch request doesn't fit.",
    "Request payload with size  is larger than the limit of  allowed by server.\nAll previous unanswered \
     requests will be dropped.",
];

impl FaultMessage {
    /// A message whose text may be shown.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self { text: text.into(), withheld: false }
    }

    /// A message about MMDS contents: shown only when it is known to quote nothing.
    pub fn about_mmds_contents(text: impl Into<Box<str>>) -> Self {
        let text = text.into();
        let form: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
        Self { withheld: !QUOTES_NOTHING.contains(&form.trim()), text }
    }

    /// The text as Firecracker wrote it. May quote MMDS contents: do not log it when
    /// [`FaultMessage::is_withheld`].
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether `Display` and `Debug` hide the text.
    pub fn is_withheld(&self) -> bool {
        self.withheld
    }
}

impl fmt::Display for FaultMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.withheld {
            true => f.write_str("(reason withheld: it may quote MMDS contents)"),
            false => f.write_str(self.text.trim_end_matches('.')),
        }
    }
}

impl fmt::Debug for FaultMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.withheld {
            true => f.write_str("FaultMessage(withheld)"),
            false => write!(f, "FaultMessage({:?})", self.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(fault_message: FaultMessage) -> ApiError {
        ApiError::Fault { verb: Verb::Put, path: "/mmds".to_owned(), status: 400, fault_message }
    }

    #[test]
    fn a_fault_says_verb_path_status_and_reason() {
        let error = fault(FaultMessage::new("Balloon config error: No balloon device found."));
        assert_eq!(
            error.to_string(),
            "PUT /mmds: Firecracker refused (400): Balloon config error: No balloon device found"
        );
        assert_eq!(error.fault_message().unwrap().as_str(), "Balloon config error: No balloon device found.");
    }

    #[test]
    fn a_message_that_may_quote_mmds_contents_is_withheld_everywhere() {
        let error = fault(FaultMessage::about_mmds_contents("invalid type: string \"hunter2\" at 1"));
        for text in
            [error.to_string(), format!("{error:?}"), format!("{error:#?}"), error.hint().unwrap_or_default()]
        {
            assert!(!text.contains("hunter2"), "{text}");
        }
        assert!(error.fault_message().unwrap().as_str().contains("hunter2"));
    }

    #[test]
    fn known_messages_about_the_data_store_are_shown() {
        for text in [
            "The MMDS data store is not initialized.",
            "Request payload with size 60000 is larger than the limit of 51200 allowed by server.\nAll previous \
             unanswered requests will be dropped.",
        ] {
            assert!(!FaultMessage::about_mmds_contents(text).is_withheld(), "{text}");
        }
    }

    #[test]
    fn a_timeout_is_unknown_only_when_the_request_was_sent() {
        let timeout = |sent| ApiError::Timeout {
            verb: Verb::Get,
            path: "/".to_owned(),
            deadline: Duration::from_secs(10),
            sent,
        };
        assert_eq!(timeout(true).happened(), Happened::Unknown);
        assert_eq!(timeout(false).happened(), Happened::NeverStarted);
        assert_eq!(timeout(true).to_string(), "GET /: no answer within 10s");
    }
}
