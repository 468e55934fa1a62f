//! The floor: a Firecracker started by hand with nothing but system calls, as fast as it goes.
//!
//! No checks, no errors that help, no clean-up on failure: what a start costs when nobody manages it.
#![expect(unsafe_code, reason = "the floor is what the bare C library costs")]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::ptr;

/// A Firecracker started by hand.
#[derive(Debug)]
pub struct Raw {
    pid: libc::pid_t,
    console: File,
    socket: Option<PathBuf>,
}

impl Raw {
    /// posix_spawn with the console on a pipe.
    ///
    /// # Errors
    /// When a system call fails.
    pub fn spawn(firecracker: &Path, args: &[&std::ffi::OsStr]) -> io::Result<Self> {
        let (console, stdout) = pipe()?;
        let mut argv = vec![c_string(firecracker.as_os_str())?];
        for arg in args {
            argv.push(c_string(arg)?);
        }
        argv.push(CString::new("--level").expect("no NUL in it"));
        argv.push(CString::new("Off").expect("no NUL in it"));
        let mut pointers: Vec<*mut libc::c_char> = argv.iter().map(|arg| arg.as_ptr().cast_mut()).collect();
        pointers.push(ptr::null_mut());
        let environment: [*mut libc::c_char; 1] = [ptr::null_mut()];
        let mut pid = 0;
        // SAFETY: file actions are initialised before use and destroyed after; all pointers outlive the call.
        let failed = unsafe {
            let mut actions: libc::posix_spawn_file_actions_t = std::mem::zeroed();
            libc::posix_spawn_file_actions_init(&raw mut actions);
            libc::posix_spawn_file_actions_addopen(
                &raw mut actions,
                0,
                c"/dev/null".as_ptr(),
                libc::O_RDONLY,
                0,
            );
            libc::posix_spawn_file_actions_adddup2(&raw mut actions, stdout.as_raw_fd(), 1);
            libc::posix_spawn_file_actions_adddup2(&raw mut actions, stdout.as_raw_fd(), 2);
            let failed = libc::posix_spawn(
                &raw mut pid,
                argv[0].as_ptr(),
                &raw const actions,
                ptr::null(),
                pointers.as_ptr(),
                environment.as_ptr(),
            );
            libc::posix_spawn_file_actions_destroy(&raw mut actions);
            failed
        };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        Ok(Self { pid, console, socket: None })
    }

    /// With an API socket, waited for by connecting again and again without a pause.
    ///
    /// # Errors
    /// When a system call fails.
    pub fn with_api(firecracker: &Path, socket: &Path) -> io::Result<(Self, UnixStream)> {
        let mut raw = Self::spawn(firecracker, &["--api-sock".as_ref(), socket.as_os_str()])?;
        raw.socket = Some(socket.to_owned());
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                return Ok((raw, stream));
            }
        }
    }

    /// Booted from a config file without an API.
    ///
    /// # Errors
    /// When a system call fails.
    pub fn without_api(firecracker: &Path, config: &Path) -> io::Result<Self> {
        Self::spawn(firecracker, &["--no-api".as_ref(), "--config-file".as_ref(), config.as_os_str()])
    }

    /// Booted from a config file, with an API that nothing is asked on.
    ///
    /// # Errors
    /// When a system call fails.
    pub fn with_both(firecracker: &Path, socket: &Path, config: &Path) -> io::Result<Self> {
        let (api, file) = ("--api-sock".as_ref(), "--config-file".as_ref());
        let mut raw = Self::spawn(firecracker, &[api, socket.as_os_str(), file, config.as_os_str()])?;
        raw.socket = Some(socket.to_owned());
        Ok(raw)
    }

    /// Booted by the three calls it takes, on one connection.
    ///
    /// # Errors
    /// When a system call or a request fails.
    pub fn by_api_calls(
        firecracker: &Path,
        socket: &Path,
        kernel: &Path,
        mem_size_mib: u32,
    ) -> io::Result<Self> {
        let (raw, mut stream) = Self::with_api(firecracker, socket)?;
        let machine = format!(r#"{{"vcpu_count":1,"mem_size_mib":{mem_size_mib}}}"#);
        let boot = format!(r#"{{"kernel_image_path":"{}"}}"#, kernel.display());
        put(&mut stream, "/machine-config", &machine)?;
        put(&mut stream, "/boot-source", &boot)?;
        put(&mut stream, "/actions", r#"{"action_type":"InstanceStart"}"#)?;
        Ok(raw)
    }

    /// Waits for the guest's first byte.
    ///
    /// # Errors
    /// When the console ends first.
    pub fn first_byte(&mut self) -> io::Result<()> {
        let mut byte = [0];
        self.console.read_exact(&mut byte)
    }

    /// The console's descriptor, for polling many at once.
    pub fn console_fd(&self) -> RawFd {
        self.console.as_raw_fd()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: our own child, not yet reaped.
        unsafe { libc::kill(self.pid, signal) };
    }

    /// Waits for its end and removes its socket.
    pub fn reap(self) {
        let mut status = 0;
        // SAFETY: our own child, reaped once: `self` is consumed.
        unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        if let Some(socket) = self.socket {
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// One request on a kept connection; the answer is read until its body is complete.
///
/// # Errors
/// When it is not answered with 2xx.
pub fn put(stream: &mut UnixStream, path: &str, body: &str) -> io::Result<()> {
    let request = format!(
        "PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    answered(stream)
}

/// `GET /` on a kept connection.
///
/// # Errors
/// When it is not answered with 2xx.
pub fn get_instance(stream: &mut UnixStream) -> io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    answered(stream)
}

fn answered(stream: &mut UnixStream) -> io::Result<()> {
    let mut answer = [0; 4096];
    let mut length = 0;
    loop {
        let count = stream.read(&mut answer[length..])?;
        length += count;
        let text = String::from_utf8_lossy(&answer[..length]);
        if count == 0 || (length >= 11 && !text.starts_with("HTTP/1.1 20")) {
            return Err(io::Error::other(format!("Firecracker answered {text:?}")));
        }
        if let Some(head_end) = text.find("\r\n\r\n") {
            let body = text
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: ")?.trim().parse::<usize>().ok())
                .unwrap_or(0);
            if length >= head_end + 4 + body {
                return Ok(());
            }
        }
    }
}

fn pipe() -> io::Result<(File, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the kernel stores two new descriptors, each owned once below.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

fn c_string(text: &std::ffi::OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

/// CPU time of this process without its children, in ms.
pub fn own_cpu_ms() -> f64 {
    // SAFETY: a plain out-parameter.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let ms = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    ms(usage.ru_utime) + ms(usage.ru_stime)
}
