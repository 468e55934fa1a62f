//! One request and one answer, and which of them may carry MMDS contents.

use std::fmt;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Uri};
use serde::Deserialize;

use crate::error::{ApiError, FaultMessage};

/// The verb of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Reads.
    Get,
    /// Makes or replaces.
    Put,
    /// Changes.
    Patch,
    /// Removes.
    Delete,
}

impl Verb {
    /// As it stands in the request.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An answer as it came. Its `Debug` shows the length of the body only.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, JSON from Firecracker; empty with 204.
    pub body: Bytes,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer {{ status: {}, body: {} bytes }}", self.status, self.body.len())
    }
}

/// The body of a refusal. The HTTP layer of Firecracker, which refuses before the API sees the request,
/// names the field otherwise (seen with 1.12.1: payload too large, unknown verb), and its JSON may hold a
/// raw line feed.
#[derive(Deserialize)]
struct Refusal {
    #[serde(alias = "error")]
    fault_message: String,
}

impl Answer {
    /// Itself when the status is 2xx.
    ///
    /// # Errors
    /// [`ApiError::Fault`] with Firecracker's reason, or with the whole body when it has another form.
    pub fn success(self, verb: Verb, path: &str) -> Result<Self, ApiError> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let text = String::from_utf8_lossy(&self.body);
        let message = match serde_json::from_str::<Refusal>(&text.replace('\n', "\\n")) {
            Ok(refusal) => refusal.fault_message,
            Err(_) => text.into_owned(),
        };
        let fault_message = match may_quote_mmds(verb, path) {
            true => FaultMessage::about_mmds_contents(message),
            false => FaultMessage::new(message),
        };
        Err(ApiError::Fault { verb, path: path.to_owned(), status: self.status, fault_message })
    }

    /// Whether Firecracker's HTTP layer refused the request without reading it whole. What was left of it
    /// is then taken for further requests, so the connection is out of step and must go.
    pub(super) fn is_out_of_step(&self) -> bool {
        self.status >= 400 && !self.body.starts_with(b"{\"fault_message\"")
    }
}

/// Whether such requests carry MMDS contents, or answers may quote them. Of `/mmds/config` only PUT does
/// not: Firecracker 1.12.1 answers `GET /mmds/config` with the contents.
pub(super) fn may_quote_mmds(verb: Verb, path: &str) -> bool {
    let path = path.split(['?', '#']).next().unwrap_or(path);
    let configures = verb == Verb::Put && path == "/mmds/config";
    !configures && path.split('/').any(|segment| segment == "mmds")
}

/// The HTTP form of a request.
pub(super) fn request(verb: Verb, path: &str, body: Option<Bytes>) -> Result<Request<Full<Bytes>>, ApiError> {
    let bad = |problem: String| ApiError::BadRequest { verb, path: path.to_owned(), problem };
    if !path.starts_with('/') {
        return Err(bad("the path does not begin with a slash".to_owned()));
    }
    let uri: Uri = path.parse().map_err(|error: hyper::http::uri::InvalidUri| bad(error.to_string()))?;
    let mut request = Request::new(Full::new(body.clone().unwrap_or_default()));
    *request.method_mut() = match verb {
        Verb::Get => Method::GET,
        Verb::Put => Method::PUT,
        Verb::Patch => Method::PATCH,
        Verb::Delete => Method::DELETE,
    };
    *request.uri_mut() = uri;
    let json = HeaderValue::from_static("application/json");
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    headers.insert(ACCEPT, json.clone());
    if body.is_some() {
        headers.insert(CONTENT_TYPE, json);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &'static str) -> (String, bool) {
        let answer = Answer { status: 400, body: Bytes::from_static(body.as_bytes()) };
        let out_of_step = answer.is_out_of_step();
        match answer.success(Verb::Put, "/vm") {
            Err(ApiError::Fault { fault_message, .. }) => (fault_message.as_str().to_owned(), out_of_step),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_fault_message_is_kept_whole() {
        let (message, out_of_step) = refused("{\"fault_message\":\"one\\ntwo \\\"x\\\".\"}");
        assert_eq!(message, "one\ntwo \"x\".");
        assert!(!out_of_step);
    }

    #[test]
    fn the_http_layers_refusal_is_read_despite_its_raw_line_feed() {
        let (message, out_of_step) = refused("{ \"error\": \"Invalid request.\nAll previous.\" }");
        assert_eq!(message, "Invalid request.\nAll previous.");
        assert!(out_of_step, "what was not read of the request is still in the stream");
    }

    #[test]
    fn a_refusal_of_another_form_is_kept_as_text() {
        assert_eq!(refused("<html>").0, "<html>");
    }

    #[test]
    fn mmds_paths_are_known_in_every_spelling() {
        for path in ["/mmds", "/mmds/", "//mmds", "/mmds?x", "/mmds/config/x", "/x/mmds"] {
            assert!(may_quote_mmds(Verb::Put, path), "{path}");
        }
        assert!(may_quote_mmds(Verb::Get, "/mmds/config"));
        for path in ["/mmds/config", "/", "/drives/mmds1"] {
            assert!(!may_quote_mmds(Verb::Put, path), "{path}");
        }
    }

    #[test]
    fn a_path_that_would_break_the_request_line_is_refused() {
        for path in ["", "vm", "/a b", "/a\r\nHost: x", "http://x/"] {
            assert!(matches!(request(Verb::Get, path, None), Err(ApiError::BadRequest { .. })), "{path:?}");
        }
    }

    #[test]
    fn an_answer_never_prints_its_body() {
        let answer = Answer { status: 200, body: Bytes::from_static(b"hunter2") };
        assert_eq!(format!("{answer:?}"), "Answer { status: 200, body: 7 bytes }");
    }
}
