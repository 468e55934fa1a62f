//! The names of images, as Docker writes them: `alpine`, `quay.io/org/tool:1.2`, `localhost:5000/x@sha256:…`.
//!
//! Source: the grammar of the distribution project's `reference` package. One rule is narrower here: digests are SHA-256,
//! since that is what the store knows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

/// The registry that a name without one means.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// The tag that a name without tag and digest means.
pub const DEFAULT_TAG: &str = "latest";

/// The longest repository, without the registry. Source: the distribution project (`RepositoryNameTotalLengthMax`).
const MAX_REPOSITORY: usize = 255;

/// The longest tag. Source: OCI distribution spec, "Pulling manifests".
const MAX_TAG: usize = 128;

/// The name of an image in a registry: `registry/repository`, and a tag, a digest, or both.
///
/// It prints in its canonical form, with every default written out, and reads back equal. Where it has both tag and
/// digest, the digest decides what is pulled, and the tag only tells what it was.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host, and port where there is one, as in the canonical form: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry: `library/alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; never absent where there is no digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that pins the image.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same name with this digest instead of its own.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// `registry/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What is asked for in the URL of a manifest: the digest, else the tag.
    pub fn pointer(&self) -> String {
        match (self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The short form that people write: without `docker.io`, `library/` and `:latest`. It reads back equal, so what
    /// would read as something else (`docker.io/localhost/x`) stays whole.
    pub fn familiar(&self) -> String {
        let repository = self.repository.strip_prefix("library/").filter(|rest| !rest.contains('/'));
        let mut text = match (self.registry == DEFAULT_REGISTRY, repository) {
            (true, Some(official)) => official.to_owned(),
            (true, None) => self.repository.clone(),
            (false, _) => self.name(),
        };
        if let Some(tag) = self.tag.as_deref().filter(|tag| *tag != DEFAULT_TAG || self.digest.is_some()) {
            text = format!("{text}:{tag}");
        }
        if let Some(digest) = self.digest {
            text = format!("{text}@{digest}");
        }
        if text.parse().as_ref() == Ok(self) { text } else { self.to_string() }
    }

    /// Whether the registry is this host itself, by name or address, so that a plain connection leaves no machine.
    pub fn is_loopback(&self) -> bool {
        let host = self.registry.rsplit_once(':').map_or(self.registry.as_str(), |(host, port)| {
            if port.bytes().all(|byte| byte.is_ascii_digit()) { host } else { &self.registry }
        });
        let address = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Why a text is not the name of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadReference {
    /// Nothing is there.
    #[error("it is empty")]
    Empty,
    /// A scheme, as in a URL.
    #[error("it is a URL; leave out the part up to `://`")]
    Url,
    /// Upper case in the repository.
    #[error("the repository must be in lower case")]
    UpperCase,
    /// The registry is not `host` or `host:port`.
    #[error("the registry is not a host name or address with an optional port")]
    Registry,
    /// The repository breaks its grammar.
    #[error(
        "the repository must be parts of a–z and 0–9, joined inside by `.`, `_`, `__` or `-`, and separated by `/`"
    )]
    Repository,
    /// The repository is too long.
    #[error("the repository is longer than 255 characters")]
    TooLong,
    /// The tag breaks its grammar.
    #[error("the tag must be 1 to 128 of letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`")]
    Tag,
    /// The digest is not a SHA-256 digest.
    #[error("the digest must be `sha256:` and 64 hexadecimal digits in lower case")]
    Digest,
    /// 64 hexadecimal digits, which Docker keeps for ids, or `sha256:` and something, which would look like one.
    #[error("64 hexadecimal digits or `sha256:` are an image's id, not a name")]
    Identifier,
    /// A name with a digest for an image that has another.
    #[error("a name with a digest is that of one image alone, which is another one")]
    Pinned,
}

impl FromStr for Reference {
    type Err = BadReference;

    fn from_str(text: &str) -> Result<Self, BadReference> {
        if text.is_empty() {
            return Err(BadReference::Empty);
        }
        if text.contains("://") {
            return Err(BadReference::Url);
        }
        // A stranger's archive would otherwise give its image the id of another.
        if is_identifier(text)
            || text == "sha256"
            || text.starts_with("sha256:")
            || text.starts_with("sha256@")
        {
            return Err(BadReference::Identifier);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
            None => (text, None),
        };
        let (registry, rest) = split_registry(rest);
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        let repository = match registry == DEFAULT_REGISTRY && !path.contains('/') {
            true => format!("library/{path}"),
            false => path.to_owned(),
        };
        check_registry(registry)?;
        check_repository(path)?;
        if repository.len() > MAX_REPOSITORY {
            return Err(BadReference::TooLong);
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(BadReference::Tag);
        }
        let tag = tag.or(digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn is_identifier(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn parse_digest(text: &str) -> Result<Digest, BadReference> {
    let digest: Digest = text.parse().map_err(|_| BadReference::Digest)?;
    // The grammar allows upper case, registries do not: their paths are compared byte by byte.
    if digest.to_string() == text { Ok(digest) } else { Err(BadReference::Digest) }
}

/// The first part is a registry when it could not be a part of a repository (`.`, `:`, upper case) or is `localhost`.
fn split_registry(text: &str) -> (&str, &str) {
    let Some((first, rest)) = text.split_once('/') else { return (DEFAULT_REGISTRY, text) };
    let is_registry = first.contains(['.', ':'])
        || first == "localhost"
        || first.bytes().any(|byte| byte.is_ascii_uppercase());
    match (is_registry, first) {
        // What Docker's first clients called it.
        (true, "index.docker.io") => (DEFAULT_REGISTRY, rest),
        (true, registry) => (registry, rest),
        (false, _) => (DEFAULT_REGISTRY, text),
    }
}

fn check_registry(registry: &str) -> Result<(), BadReference> {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or(BadReference::Registry)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| BadReference::Registry)?;
            let port = match rest {
                "" => None,
                rest => Some(rest.strip_prefix(':').ok_or(BadReference::Registry)?),
            };
            (None, port)
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    let port_fits = port.is_none_or(|port| {
        !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
    });
    let host_fits = host.is_none_or(|host| host.split('.').all(is_host_label));
    if port_fits && host_fits { Ok(()) } else { Err(BadReference::Registry) }
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn check_repository(path: &str) -> Result<(), BadReference> {
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(BadReference::UpperCase);
    }
    if path.split('/').all(is_repository_part) { Ok(()) } else { Err(BadReference::Repository) }
}

/// `[a-z0-9]+`, joined by one dot, one or two underscores, or any number of dashes.
fn is_repository_part(part: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| is_word(*byte));
    if !ends(bytes.first()) || !ends(bytes.last()) {
        return false;
    }
    let mut joints = bytes.split(|byte| is_word(*byte));
    joints.all(|joint| matches!(joint, b"" | b"." | b"_" | b"__") || joint.iter().all(|byte| *byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= MAX_TAG
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        && tag.bytes().next().is_some_and(|byte| !matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn defaults_are_written_out() {
        for (text, canonical) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("user/tool", "docker.io/user/tool:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
            ("quay.io/org/team/tool:v1", "quay.io/org/team/tool:v1"),
            ("localhost/tool", "localhost/tool:latest"),
            ("localhost:5000/tool", "localhost:5000/tool:latest"),
            ("registry:5000/tool:1", "registry:5000/tool:1"),
            ("127.0.0.1:5000/tool", "127.0.0.1:5000/tool:latest"),
            ("[::1]:5000/tool", "[::1]:5000/tool:latest"),
            ("[2001:db8::1]/tool", "[2001:db8::1]/tool:latest"),
            ("Registry/tool", "Registry/tool:latest"),
            ("a__b---d/e_f.g", "docker.io/a__b---d/e_f.g:latest"),
            ("tool:_x.Y-1", "docker.io/library/tool:_x.Y-1"),
            // Without a `/` there is no registry, so this is a repository with a numeric tag.
            ("localhost:5000", "docker.io/library/localhost:5000"),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference.to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn a_digest_pins_and_takes_no_default_tag() {
        let pinned: Reference = format!("alpine@{DIGEST}").parse().unwrap();
        assert_eq!(pinned.to_string(), format!("docker.io/library/alpine@{DIGEST}"));
        assert_eq!((pinned.tag(), pinned.pointer()), (None, DIGEST.to_owned()));
        let both: Reference = format!("x.io:1/a:t@{DIGEST}").parse().unwrap();
        assert_eq!((both.tag(), both.pointer()), (Some("t"), DIGEST.to_owned()));
        assert_eq!(both.to_string(), format!("x.io:1/a:t@{DIGEST}"));
    }

    #[test]
    fn each_mistake_is_named() {
        use BadReference::*;
        for (text, expected) in [
            ("", Empty),
            ("sha256", Identifier),
            ("sha256:0123abcd", Identifier),
            ("sha256:latest", Identifier),
            ("https://quay.io/x", Url),
            ("Alpine", UpperCase),
            ("quay.io/Org/tool", UpperCase),
            ("-host.io/x", Registry),
            ("host..io/x", Registry),
            ("host.io:/x", Registry),
            ("host.io:99999/x", Registry),
            ("[::1/x", Registry),
            ("[::g]:1/x", Registry),
            ("[::1]x:1/x", Registry),
            ("a//b", Repository),
            ("/a", Repository),
            ("a/", Repository),
            ("quay.io/", Repository),
            ("a/../b", Repository),
            ("a..b", Repository),
            ("a___b", Repository),
            ("a-", Repository),
            ("_a", Repository),
            ("a b", Repository),
            ("ä", Repository),
            ("a:", Tag),
            ("a:.b", Tag),
            ("a:b:c", Tag),
            ("a:b/c", Registry),
            ("a@", Digest),
            ("a@sha512:00", Digest),
            ("a@sha256:00", Digest),
            ("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", Identifier),
        ] {
            assert_eq!(text.parse::<Reference>(), Err(expected), "{text}");
        }
        let upper = DIGEST.to_uppercase().replace("SHA", "sha");
        assert_eq!(format!("a@{upper}").parse::<Reference>(), Err(Digest));
        let longest = "a".repeat(MAX_REPOSITORY - "library/".len());
        assert!(longest.parse::<Reference>().is_ok());
        assert_eq!(format!("{longest}a").parse::<Reference>(), Err(TooLong));
        assert!(format!("a:{}", "t".repeat(128)).parse::<Reference>().is_ok());
        assert_eq!(format!("a:{}", "t".repeat(129)).parse::<Reference>(), Err(Tag));
    }

    #[test]
    fn the_familiar_form_is_what_people_write() {
        for (text, familiar) in [
            ("docker.io/library/alpine:latest", "alpine"),
            ("docker.io/library/alpine:3", "alpine:3"),
            ("docker.io/user/tool", "user/tool"),
            ("docker.io/library/a/b", "library/a/b"),
            ("quay.io/a/b:latest", "quay.io/a/b"),
            ("localhost:5000/a:1", "localhost:5000/a:1"),
            ("docker.io/localhost/a", "docker.io/localhost/a:latest"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().familiar(), familiar);
        }
    }

    #[test]
    fn loopback_is_seen_by_name_and_address() {
        for (text, loopback) in [
            ("localhost:5000/a", true),
            ("localhost/a", true),
            ("127.0.0.1:5000/a", true),
            ("127.8.9.1/a", true),
            ("[::1]:5000/a", true),
            ("[::1]/a", true),
            ("[2001:db8::1]:80/a", false),
            ("localhost.example.org/a", false),
            ("127.0.0.1.example.org/a", false),
            ("10.0.0.1:5000/a", false),
            ("alpine", false),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().is_loopback(), loopback, "{text}");
        }
    }

    fn references() -> impl Strategy<Value = String> {
        let registry = prop_oneof![
            Just(String::new()),
            "[a-z][a-z0-9]{0,8}\\.[a-z]{2,3}/",
            "localhost(:[1-9][0-9]{0,3})?/",
            "[a-zA-Z0-9]([a-zA-Z0-9-]{0,5}[a-zA-Z0-9])?:[1-9][0-9]{0,3}/",
            Just("[::1]:5000/".to_owned()),
        ];
        // A first part with a dot is a registry.
        let path = "[a-z0-9]{1,5}((_|__|-{1,3})[a-z0-9]{1,5}){0,2}(/[a-z0-9]{1,4}(\\.[a-z0-9]{1,4})?){0,2}";
        let tag = prop_oneof![Just(String::new()), ":[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20}"];
        let digest = prop_oneof![Just(String::new()), "@sha256:[0-9a-f]{64}"];
        (registry, path, tag, digest).prop_map(|(a, b, c, d)| format!("{a}{b}{c}{d}"))
    }

    proptest! {
        #[test]
        fn what_is_valid_reads_and_its_forms_read_back_equal(text in references()) {
            let reference: Reference = text.parse().map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?;
            let canonical = reference.to_string();
            prop_assert_eq!(canonical.parse::<Reference>(), Ok(reference.clone()));
            prop_assert_eq!(reference.familiar().parse::<Reference>(), Ok(reference.clone()));
            prop_assert!(reference.tag().is_some() || reference.digest().is_some());
            let json = serde_json::to_string(&reference).unwrap();
            prop_assert_eq!(serde_json::from_str::<Reference>(&json).unwrap(), reference);
        }

        #[test]
        fn any_text_is_read_or_refused_and_what_is_read_is_canonical(text in "\\PC{0,80}|[a-zA-Z0-9:/@._\\[\\]-]{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let canonical = reference.to_string();
                prop_assert_eq!(canonical.parse::<Reference>(), Ok(reference.clone()));
                // A tag may have dots in a row, as in `a:_..`.
                prop_assert!(canonical.is_ascii() && !reference.name().contains(".."));
                prop_assert!(!reference.repository().starts_with('/') && !reference.repository().contains("//"));
            }
        }
    }
}
