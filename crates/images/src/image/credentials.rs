//! Who we are to a registry: what `docker login` and `podman login` left on this host.
//!
//! Files are asked in Podman's order: `$REGISTRY_AUTH_FILE` alone where it is set, else
//! `$XDG_RUNTIME_DIR/containers/auth.json`, `$XDG_CONFIG_HOME/containers/auth.json` (`~/.config`), and Docker's
//! `$DOCKER_CONFIG/config.json` (`~/.docker`). In each file: the registry's own helper (`credHelpers`), then the entry of
//! `auths` for the longest part of `registry/namespace/repository`, then the helper for all (`credsStore`).
//!
//! A helper is the user's own program `docker-credential-<name>`: that is its protocol, so this is the one place where a
//! program of the host is run. It gets no shell, a bounded time and a bounded answer.
//!
//! Sources: containers-auth.json(5); Docker's "docker login", "Credential helpers".

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde::Deserialize;
use serde_json::Value;

use super::error::ImageError;
use super::manifest::null_is_empty;
use super::reference::{DEFAULT_REGISTRY, Reference};
use crate::blocking::Abandoned;

/// The name under which Docker keeps the credentials of its own registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// The largest file of credentials, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The longest answer of a helper, in bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// How long a helper may think: it may ask the user to unlock a key ring.
const HELPER_TIME: Duration = Duration::from_secs(60);

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text from being printed.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Who we are to one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// Nobody.
    Anonymous,
    /// A user with a password, or with a token in its place.
    Password {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// What a registry gave in exchange for a password (`identitytoken`).
    IdentityToken(Secret),
}

/// Where to find out who we are.
#[derive(Debug, Clone, Default)]
pub enum Credentials {
    /// The files and helpers that the environment names: see the module's text.
    #[default]
    Environment,
    /// These files only, the first one that knows the registry.
    Files(Vec<PathBuf>),
    /// This one for every registry that is asked.
    Login(Login),
}

impl Credentials {
    /// Who we are to the registry of `reference`. Blocks.
    ///
    /// # Errors
    /// A file or helper that should know fails. A missing file is none.
    pub(super) fn login(&self, reference: &Reference, abandoned: &Abandoned) -> Result<Login, ImageError> {
        let files = match self {
            Self::Login(login) => return Ok(login.clone()),
            Self::Files(files) => files.clone(),
            Self::Environment => files_of(|name| std::env::var_os(name).filter(|value| !value.is_empty())),
        };
        for file in files {
            let login = read(&file, reference)?
                .map_or(Ok(None), |content| content.login(reference, &file, abandoned))?;
            if let Some(login) = login {
                return Ok(login);
            }
        }
        Ok(Login::Anonymous)
    }
}

fn files_of(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Vec<PathBuf> {
    let path = |name: &str| variable(name).map(PathBuf::from);
    if let Some(file) = path("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = path("HOME");
    let in_home = |below: &str| home.as_ref().map(|home| home.join(below));
    let runtime = path("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
    let config =
        path("XDG_CONFIG_HOME").or_else(|| in_home(".config")).map(|dir| dir.join("containers/auth.json"));
    let docker = path("DOCKER_CONFIG").or_else(|| in_home(".docker")).map(|dir| dir.join("config.json"));
    [runtime, config, docker].into_iter().flatten().collect()
}

#[derive(Deserialize)]
struct Content {
    #[serde(default, deserialize_with = "null_is_empty")]
    auths: BTreeMap<String, Value>,
    #[serde(rename = "credHelpers", default, deserialize_with = "null_is_empty")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore", default, deserialize_with = "null_is_empty")]
    store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    #[serde(deserialize_with = "null_is_empty")]
    auth: String,
    #[serde(deserialize_with = "null_is_empty")]
    username: String,
    #[serde(deserialize_with = "null_is_empty")]
    password: String,
    #[serde(deserialize_with = "null_is_empty")]
    identitytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// The file's content. None when there is no file.
fn read(file: &Path, reference: &Reference) -> Result<Option<Content>, ImageError> {
    let bad = |why: String| bad(reference, file.display().to_string(), why);
    let open = match std::fs::File::open(file) {
        Ok(open) => open,
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(bad(error.to_string())),
    };
    let mut bytes = Vec::new();
    open.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| bad(error.to_string()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(bad(format!("it is larger than {MAX_FILE} bytes")));
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    // The parser's text may quote what it read: only the place is told.
    let content = serde_json::from_slice(&bytes).map_err(|error| {
        bad(format!("line {}, column {} is not as expected", error.line(), error.column()))
    })?;
    Ok(Some(content))
}

fn bad(reference: &Reference, place: String, why: String) -> ImageError {
    ImageError::Credentials { registry: reference.registry().to_owned(), place, why }
}

impl Content {
    fn login(
        &self,
        reference: &Reference,
        file: &Path,
        abandoned: &Abandoned,
    ) -> Result<Option<Login>, ImageError> {
        let registry = reference.registry();
        let server = if registry == DEFAULT_REGISTRY { DOCKER_HUB } else { registry };
        let helper = self.helpers.iter().find(|(key, _)| normal(key) == registry);
        if let Some((_, helper)) = helper {
            return ask_helper(helper, server, reference, abandoned);
        }
        // The longest part of the name wins.
        let whole = reference.name();
        let part = std::iter::successors(Some(whole.as_str()), |part| Some(part.rsplit_once('/')?.0));
        let entry = part.filter_map(|part| self.auths.iter().find(|(key, _)| normal(key) == part)).next();
        if let Some((_, entry)) = entry {
            let place = || file.display().to_string();
            let entry = Entry::deserialize(entry)
                .map_err(|_| bad(reference, place(), "the registry's entry is not as expected".into()))?;
            let login = entry.login().ok_or_else(|| {
                bad(reference, place(), "`auth` is not the base64 text of `user:password`".into())
            })?;
            if login != Login::Anonymous {
                return Ok(Some(login));
            }
        }
        match self.store.as_str() {
            "" => Ok(None),
            store => ask_helper(store, server, reference, abandoned),
        }
    }
}

impl Entry {
    fn login(self) -> Option<Login> {
        if !self.identitytoken.is_empty() {
            return Some(Login::IdentityToken(Secret(self.identitytoken)));
        }
        if self.auth.is_empty() {
            return Some(match self.username.is_empty() {
                true => Login::Anonymous,
                false => Login::Password { username: self.username, password: Secret(self.password) },
            });
        }
        let bytes = base64::engine::general_purpose::STANDARD.decode(self.auth.trim()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (username, password) = text.split_once(':')?;
        let password = Secret(password.trim_end_matches('\0').to_owned());
        Some(Login::Password { username: username.to_owned(), password })
    }
}

/// The key of an entry as a part of a name: Docker writes URLs, Podman names.
fn normal(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    match key {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        key => key,
    }
}

/// Asks a credential helper. None when it does not know the server.
fn ask_helper(
    name: &str,
    server: &str,
    reference: &Reference,
    abandoned: &Abandoned,
) -> Result<Option<Login>, ImageError> {
    let program = format!("docker-credential-{name}");
    let bad = |why: String| bad(reference, format!("`{program}`"), why);
    // It comes from a file: it may name a program on PATH, and no other place.
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(bad("the helper's name is not one".into()));
    }
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| bad(format!("it cannot be started: {error}")))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let question = format!("{server}\n");
    let (tell, told) = mpsc::channel();
    // Apart, since a helper that neither reads nor answers would hold us.
    let talk = std::thread::Builder::new().name("credential-helper".into()).spawn(move || {
        if let Some(mut stdin) = stdin {
            // A helper that needs no question may have closed it.
            let _ = stdin.write_all(question.as_bytes());
        }
        let mut answer = Vec::new();
        let read = stdout.map(|stdout| stdout.take(MAX_ANSWER + 1).read_to_end(&mut answer));
        let _ = tell.send(read.unwrap_or(Ok(0)).map(|_| answer));
    });
    let deadline = Instant::now() + HELPER_TIME;
    let answer = loop {
        match told.recv_timeout(Duration::from_millis(100)) {
            Ok(answer) => break answer.map_err(|error| error.to_string()),
            Err(mpsc::RecvTimeoutError::Disconnected) => break Err("it could not be asked".into()),
            Err(mpsc::RecvTimeoutError::Timeout) if abandoned.is() => break Err("nobody waits for it".into()),
            Err(mpsc::RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                break Err(format!("it gave no answer within {} s", HELPER_TIME.as_secs()));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
    };
    // It has said all (or too much, or nothing in time): what it does from now on is of no use.
    if answer.as_ref().map_or(true, |answer| answer.len() as u64 > MAX_ANSWER) {
        let _ = child.kill();
    }
    let status = wait(&mut child, deadline).map_err(|error| bad(error.to_string()))?;
    drop(talk);
    let answer = answer.map_err(bad)?;
    if answer.len() as u64 > MAX_ANSWER {
        return Err(bad(format!("its answer is longer than {MAX_ANSWER} bytes")));
    }
    if !status.success() {
        // Not an error in the protocol of helpers, but its way to say no.
        let words = String::from_utf8_lossy(&answer);
        if words.contains("credentials not found") {
            return Ok(None);
        }
        let words: String = words.trim().chars().filter(|c| !c.is_control()).take(200).collect();
        return Err(bad(format!("{status}: {words}")));
    }
    let answer: HelperAnswer = serde_json::from_slice(&answer)
        .map_err(|_| bad("its answer is not JSON of the expected form".into()))?;
    Ok(Some(match (answer.username.as_str(), answer.secret) {
        ("<token>", token) => Login::IdentityToken(Secret(token)),
        ("", _) => return Ok(None),
        (username, secret) => Login::Password { username: username.to_owned(), password: Secret(secret) },
    }))
}

/// Its end, which closing its output announced; one that stays is killed.
fn wait(child: &mut std::process::Child, deadline: Instant) -> std::io::Result<std::process::ExitStatus> {
    let soon = (Instant::now() + Duration::from_secs(2)).min(deadline);
    while Instant::now() < soon {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    child.wait()
}

#[cfg(test)]
mod tests;
