//! What the host orders guest init to do.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::str::FromStr;

use super::{User, Uuid, words};

/// Longest encoded form of orders, in bytes. The kernel's command line holds far less (2 KiB on x86-64); what is
/// longer goes by [`ORDERS`](super::layout::ORDERS).
pub const MAX_ORDERS: usize = 128 << 10;

/// Before every word of ours on the command line.
const PREFIX: &str = "smartvm.";

/// What guest init is to do: make a root file system and run a process in it, on the console. When the process
/// ends, so does the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orders {
    /// The image.
    pub root: Root,
    /// Where writes to it go.
    pub overlay: Overlay,
    /// The guest's host name: letters, digits, `-` and `.`, at most 64 bytes. Without one it is the kernel's.
    pub hostname: Option<String>,
    /// What to run.
    pub process: Process,
}

/// The disk with the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Which disk it is.
    pub disk: Disk,
    /// What is on it.
    pub file_system: FileSystem,
}

/// How a disk is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disk {
    /// By the id in its ext4 superblock.
    Uuid(Uuid),
    /// By its name in the guest, such as `vda`: lower-case letters and digits, at most 31.
    Device(String),
}

/// File systems that images come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// Found by id or device.
    Ext4,
    /// Has no id: found by device.
    Squashfs,
}

/// Where writes to the root file system go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlay {
    /// To the machine's own ext4 disk with this id, laid over the image. They stay.
    Disk(Uuid),
    /// To memory, laid over the image. They go with the machine.
    Tmpfs {
        /// At most so many bytes, not 0. The kernel's own limit otherwise: half of the memory.
        size: Option<u64>,
    },
    /// Nowhere: the image is mounted read-only, with tmpfs on `/run` and `/tmp`.
    None,
    /// To the image's disk itself, which is the machine's own copy.
    Private,
}

/// The process that guest init runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments; never empty. A program without a slash is looked up on the environment's `PATH`.
    pub argv: Vec<OsString>,
    /// Names, which are not empty and have no `=`, and values. A later one replaces an earlier one of its name.
    pub env: Vec<(OsString, OsString)>,
    /// The directory it starts in; absolute. `/` otherwise.
    pub workdir: Option<OsString>,
    /// As whom it runs; root otherwise.
    pub user: Option<User>,
}

/// Orders that cannot be given or understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("boot parameter {parameter} {problem}")]
pub struct OrdersError {
    /// The parameter, with its prefix.
    pub parameter: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// What is wrong with a parameter's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Problem(pub(super) &'static str);

impl Problem {
    fn of(self, parameter: &str) -> OrdersError {
        // A foreign parameter is quoted in messages: a little of it, and nothing that a terminal obeys.
        let shown = parameter.chars().take(64).map(|char| if char.is_control() { '?' } else { char });
        OrdersError { parameter: [PREFIX, &shown.collect::<String>()].concat(), problem: self.0 }
    }
}

const NUL: Problem = Problem("has a NUL byte");
const MISSING: Problem = Problem("is missing");
const MALFORMED: Problem = Problem("has a value of no known form");
const TOO_LONG: Problem = Problem("is too long together with all others");

impl Orders {
    /// The words, separated by spaces: printable ASCII without quotes. [`Orders::parse`] gives the same orders.
    ///
    /// # Errors
    /// When a field is not as its documentation says, has a NUL byte, or all are longer than [`MAX_ORDERS`].
    pub fn encode(&self) -> Result<String, OrdersError> {
        self.check()?;
        let mut line = Line::default();
        match &self.root.disk {
            Disk::Uuid(uuid) => line.word("root", &["uuid:", &uuid.to_string()]),
            Disk::Device(name) => line.word("root", &["dev:", name]),
        }
        line.word("rootfs", &[self.root.file_system.name()]);
        match self.overlay {
            Overlay::Disk(uuid) => line.word("overlay", &["disk:", &uuid.to_string()]),
            Overlay::Tmpfs { size: Some(size) } => line.word("overlay", &["tmpfs:", &size.to_string()]),
            Overlay::Tmpfs { size: None } => line.word("overlay", &["tmpfs"]),
            Overlay::None => line.word("overlay", &["none"]),
            Overlay::Private => line.word("overlay", &["private"]),
        }
        if let Some(name) = &self.hostname {
            line.word("hostname", &[name]);
        }
        let process = &self.process;
        if let Some(user) = &process.user {
            line.word("user", &[&user.to_string()]);
        }
        if let Some(dir) = &process.workdir {
            line.word("workdir", &[dir]);
        }
        for (name, value) in &process.env {
            line.word("env", &[name.as_os_str(), OsStr::new("="), value]);
        }
        for argument in &process.argv {
            line.word("argv", &[argument]);
        }
        if line.text.len() > MAX_ORDERS { Err(TOO_LONG.of("argv")) } else { Ok(line.text) }
    }

    /// The orders in a kernel command line, whose other words are skipped.
    ///
    /// # Errors
    /// Names the parameter of ours that is unknown, missing, given twice or malformed.
    pub fn parse(line: &[u8]) -> Result<Self, OrdersError> {
        if line.len() > 2 * MAX_ORDERS {
            return Err(TOO_LONG.of("argv"));
        }
        let mut read = Read::default();
        for word in words::split(line) {
            if let Some(word) = word.strip_prefix(PREFIX.as_bytes()) {
                read.word(word)?;
            }
        }
        read.finish()
    }

    fn check(&self) -> Result<(), OrdersError> {
        let sound = |good: bool, parameter| if good { Ok(()) } else { Err(MALFORMED.of(parameter)) };
        match (&self.root.disk, self.root.file_system) {
            (Disk::Uuid(_), FileSystem::Squashfs) => {
                return Err(Problem("is a squashfs, which has no id: name its device").of("root"));
            }
            (Disk::Uuid(_), FileSystem::Ext4) => {}
            (Disk::Device(name), _) => sound(is_device(name), "root")?,
        }
        sound(self.overlay != Overlay::Tmpfs { size: Some(0) }, "overlay")?;
        if self.overlay == Overlay::Private && self.root.file_system == FileSystem::Squashfs {
            return Err(Problem("is private, but nothing can be written to a squashfs").of("overlay"));
        }
        sound(self.hostname.as_deref().is_none_or(is_hostname), "hostname")?;
        let process = &self.process;
        sound(process.user.as_ref().is_none_or(User::is_sound), "user")?;
        sound(process.workdir.as_ref().is_none_or(|dir| dir.as_bytes().starts_with(b"/")), "workdir")?;
        sound(process.env.iter().all(|(name, _)| is_env_name(name)), "env")?;
        match process.argv.first() {
            None => return Err(MISSING.of("argv")),
            Some(program) => sound(!program.is_empty(), "argv")?,
        }
        nul_free(process.argv.iter(), "argv")?;
        nul_free(process.env.iter().flat_map(|(name, value)| [name, value]), "env")?;
        nul_free(process.workdir.iter(), "workdir")
    }
}

impl FileSystem {
    /// Its name in the kernel.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Squashfs => "squashfs",
        }
    }
}

fn is_device(name: &str) -> bool {
    (1..32).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

fn is_hostname(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
}

fn nul_free<'a>(mut texts: impl Iterator<Item = &'a OsString>, parameter: &str) -> Result<(), OrdersError> {
    if texts.any(|text| text.as_bytes().contains(&0)) { Err(NUL.of(parameter)) } else { Ok(()) }
}

fn is_env_name(name: &OsStr) -> bool {
    !name.is_empty() && !name.as_bytes().contains(&b'=')
}

/// Orders being encoded.
#[derive(Default)]
struct Line {
    text: String,
}

impl Line {
    fn word<T: AsRef<OsStr> + ?Sized>(&mut self, parameter: &str, value: &[&T]) {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        self.text.extend([PREFIX, parameter, "="]);
        value.iter().for_each(|piece| words::encode(piece.as_ref().as_bytes(), &mut self.text));
    }
}

/// Orders being read.
#[derive(Default)]
struct Read {
    disk: Option<Disk>,
    file_system: Option<FileSystem>,
    overlay: Option<Overlay>,
    hostname: Option<String>,
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    workdir: Option<OsString>,
    user: Option<User>,
}

impl Read {
    /// Takes one word without its prefix.
    fn word(&mut self, word: &[u8]) -> Result<(), OrdersError> {
        let (name, value) = match word.iter().position(|byte| *byte == b'=') {
            Some(at) => (&word[..at], Some(&word[at + 1..])),
            None => (word, None),
        };
        let name = String::from_utf8_lossy(name);
        self.take(&name, value).map_err(|problem| problem.of(&name))
    }

    fn take(&mut self, name: &str, value: Option<&[u8]>) -> Result<(), Problem> {
        let value = words::decode(value.ok_or(MALFORMED)?).ok_or(Problem("has a % that begins no byte"))?;
        if value.contains(&0) {
            return Err(NUL);
        }
        match name {
            "argv" => self.argv.push(OsString::from_vec(value)),
            "env" => {
                let at = value.iter().position(|byte| *byte == b'=').ok_or(MALFORMED)?;
                let (name, value) = (&value[..at], &value[at + 1..]);
                self.env.push((OsStr::from_bytes(name).to_owned(), OsStr::from_bytes(value).to_owned()));
            }
            "workdir" => once(&mut self.workdir, OsString::from_vec(value))?,
            "root" => once(&mut self.disk, text(&value)?.parse()?)?,
            "rootfs" => once(&mut self.file_system, text(&value)?.parse()?)?,
            "overlay" => once(&mut self.overlay, text(&value)?.parse()?)?,
            "hostname" => once(&mut self.hostname, text(&value)?.to_owned())?,
            "user" => once(&mut self.user, text(&value)?.parse()?)?,
            _ => return Err(Problem("is not known to this guest init")),
        }
        Ok(())
    }

    fn finish(self) -> Result<Orders, OrdersError> {
        let root = Root {
            disk: self.disk.ok_or_else(|| MISSING.of("root"))?,
            file_system: self.file_system.ok_or_else(|| MISSING.of("rootfs"))?,
        };
        let overlay = self.overlay.ok_or_else(|| MISSING.of("overlay"))?;
        let process = Process { argv: self.argv, env: self.env, workdir: self.workdir, user: self.user };
        let orders = Orders { root, overlay, hostname: self.hostname, process };
        orders.check()?;
        Ok(orders)
    }
}

fn text(value: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(value).map_err(|_| MALFORMED)
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), Problem> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Problem("is given twice")),
    }
}

impl FromStr for Disk {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.split_once(':') {
            Some(("uuid", uuid)) => uuid.parse().map(Self::Uuid).map_err(|_| MALFORMED),
            Some(("dev", name)) => Ok(Self::Device(name.to_owned())),
            _ => Err(MALFORMED),
        }
    }
}

impl FromStr for FileSystem {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let all = [Self::Ext4, Self::Squashfs];
        all.into_iter().find(|kind| kind.name() == text).ok_or(Problem("is neither ext4 nor squashfs"))
    }
}

impl FromStr for Overlay {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.split_once(':') {
            Some(("disk", uuid)) => uuid.parse().map(Self::Disk).map_err(|_| MALFORMED),
            Some(("tmpfs", size)) => {
                let size = size.parse().map_err(|_| MALFORMED)?;
                Ok(Self::Tmpfs { size: Some(size) })
            }
            _ => match text {
                "tmpfs" => Ok(Self::Tmpfs { size: None }),
                "none" => Ok(Self::None),
                "private" => Ok(Self::Private),
                _ => Err(MALFORMED),
            },
        }
    }
}

#[cfg(test)]
mod tests;
