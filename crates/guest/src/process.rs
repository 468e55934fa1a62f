//! The image's process: what is to be run, and its start.
//!
//! It needs a session of its own with the console as its controlling terminal, and to give up root, between fork and
//! exec. Without `unsafe` nothing of ours can run there, so init starts *itself* once more, as the launcher
//! ([`launch`]), which does all this with nobody beside it and then becomes the program. What fails there comes back
//! through a pipe that the program does not get.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Pid, ioctl_tiocsctty, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use smartvm_guest_api::boot::{Process, Step};

use crate::accounts::Identity;
use crate::failure::{Failure, Result, While};

/// The name under which init starts itself as the launcher.
pub(crate) const LAUNCHER: &str = "smartvm-launcher";

/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program of the image that can be started.
pub(crate) struct Program {
    path: PathBuf,
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    workdir: PathBuf,
    identity: Identity,
}

impl Program {
    /// Looks up what was ordered, in the image.
    pub(crate) fn find(process: &Process, identity: Identity) -> Result<Self> {
        let workdir = PathBuf::from(process.workdir.as_deref().unwrap_or(OsStr::new("/")));
        prepare(&workdir)?;
        let mut env: Vec<(OsString, OsString)> = Vec::with_capacity(process.env.len() + 2);
        env.push(("PATH".into(), DEFAULT_PATH.into()));
        env.push(("HOME".into(), identity.home.clone()));
        env.extend(process.env.iter().cloned());
        let path = env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, path)| path.clone());
        let name =
            process.argv.first().ok_or_else(|| Failure::new(Step::Exec, "nothing to run was ordered"))?;
        let path = look_up(name, &path.unwrap_or_default(), &workdir)?;
        Ok(Self { path, argv: process.argv.clone(), env, workdir, identity })
    }
}

/// Sees to it that the working directory can be entered. It is made if the image lacks it, as container
/// engines do.
fn prepare(workdir: &Path) -> Result<()> {
    let shown = workdir.display();
    match fs::create_dir_all(workdir) {
        Err(error) if !workdir.is_dir() => Err(Failure::because(
            Step::Workdir,
            format_args!("cannot make the working directory {shown}"),
            error,
        )),
        _ => std::env::set_current_dir(workdir)
            // Only to see whether it can be: init itself stands in nobody's way.
            .and_then(|()| std::env::set_current_dir("/"))
            .during(Step::Workdir, format_args!("cannot enter the working directory {shown}")),
    }
}

/// Finds a program: one with a slash from the working directory, others in the directories of `path`.
fn look_up(name: &OsStr, path: &OsStr, workdir: &Path) -> Result<PathBuf> {
    let shown = name.display();
    if name.as_bytes().contains(&b'/') {
        let program = workdir.join(name);
        return match is_executable(&program) {
            Ok(true) => Ok(program),
            Ok(false) => Err(Failure::new(Step::Exec, format!("{shown} is no executable file"))),
            Err(error) => Err(Failure::because(Step::Exec, format_args!("cannot run {shown}"), error)
                .hint("the image has no such program; name one that it has")),
        };
    }
    let directories =
        path.as_bytes().split(|byte| *byte == b':').map(|dir| workdir.join(OsStr::from_bytes(dir)));
    let mut programs = directories.map(|dir| dir.join(name));
    programs.find(|program| is_executable(program).unwrap_or(false)).ok_or_else(|| {
        Failure::new(Step::Exec, format!("no program {shown} in {}", path.display()))
            .hint("the image has no such program; name one that it has, or its whole path")
    })
}

fn is_executable(path: &Path) -> io::Result<bool> {
    let meta = fs::metadata(path)?;
    Ok(meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Starts the program and returns once it runs.
pub(crate) fn start(program: &Program) -> Result<Pid> {
    let (mut failed, report) = io::pipe().during(Step::Exec, "cannot make a pipe")?;
    let Identity { uid, gid, groups, .. } = &program.identity;
    let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(LAUNCHER)
        .args([uid.to_string(), gid.to_string(), groups.join(",")])
        .arg(terminal())
        .arg(&program.path)
        .args(&program.argv)
        .env_clear()
        .envs(program.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&program.workdir)
        .stdin(Stdio::from(report));
    let launcher = command.spawn().during(Step::Exec, "cannot start the launcher")?;
    // The report's end that was for the launcher is in the command.
    drop(command);
    let mut said = Vec::new();
    failed.by_ref().take(1024).read_to_end(&mut said).during(Step::Exec, "cannot hear from the launcher")?;
    if !said.is_empty() {
        return Err(launchers_failure(&said, program));
    }
    let pid = i32::try_from(launcher.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| Failure::new(Step::Exec, "the launcher has no process id"))
}

/// The terminal behind the console. `/dev/console` itself would do, but its name says nothing to programs that ask
/// which terminal they are on.
fn terminal() -> PathBuf {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let node = active.split_whitespace().next_back().map(|name| Path::new("/dev").join(name));
    node.filter(|node| node.exists()).unwrap_or_else(|| "/dev/console".into())
}

/// What the launcher reports: a step's name, a space, an error number.
fn launchers_failure(said: &[u8], program: &Program) -> Failure {
    let words = std::str::from_utf8(said).ok().and_then(|text| text.split_once(' '));
    let read = words.and_then(|(step, errno)| Some((Step::of_name(step)?, errno.parse().ok()?)));
    let Some((step, errno)) = read else {
        return Failure::new(Step::Exec, "the launcher ended without a word");
    };
    let error = io::Error::from_raw_os_error(errno);
    let what = match step {
        Step::Console => "cannot make the console the process's terminal".to_owned(),
        Step::User => {
            format!("cannot become user {} of group {}", program.identity.uid, program.identity.gid)
        }
        _ => format!("cannot run {}", program.path.display()),
    };
    let failure = Failure::because(step, what, &error);
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT) if step == Step::Exec => {
            failure.hint("its interpreter or dynamic loader is missing in the image")
        }
        Some(Errno::NOEXEC) if step == Step::Exec => {
            failure.hint("it is no program for this kind of processor, or a script without #!")
        }
        Some(Errno::ACCESS) if step == Step::Exec => failure.hint("the user may not execute it"),
        _ => failure,
    }
}

/// The launcher: becomes the program, or reports why not and returns.
pub(crate) fn launch(mut arguments: impl Iterator<Item = OsString>) {
    let Ok(report) = fcntl_dupfd_cloexec(std::io::stdin(), 3) else { return };
    if let Err((step, error)) = become_program(&mut arguments) {
        let _ =
            fs::File::from(report).write_all(format!("{} {}", step.name(), error.raw_os_error()).as_bytes());
    }
}

/// Returns only when it fails.
fn become_program(arguments: &mut dyn Iterator<Item = OsString>) -> std::result::Result<(), (Step, Errno)> {
    let bad = (Step::Exec, Errno::INVAL);
    let mut text = || arguments.next().and_then(|argument| argument.into_string().ok()).ok_or(bad);
    let number = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX).ok_or(bad);
    let uid = Uid::from_raw(number(&text()?)?);
    let gid = Gid::from_raw(number(&text()?)?);
    let groups = text()?;
    let groups = groups.split(',').filter(|group| !group.is_empty());
    let groups: Vec<Gid> =
        groups.map(|group| number(group).map(Gid::from_raw)).collect::<std::result::Result<_, _>>()?;
    let terminal = text()?;
    let program = arguments.next().ok_or(bad)?;
    let argv0 = arguments.next().ok_or(bad)?;

    take_terminal(&terminal, uid).map_err(|error| (Step::Console, error))?;
    // Groups first: afterwards there is no right to. No other thread is here that would keep its own.
    set_thread_groups(&groups)
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .map_err(|error| (Step::User, error))?;
    let error = Command::new(program).arg0(argv0).args(arguments).exec();
    Err((Step::Exec, Errno::from_io_error(&error).unwrap_or(Errno::IO)))
}

/// Makes the terminal this process's own, and its standard streams. Without a console they lead nowhere.
fn take_terminal(path: &str, uid: Uid) -> rustix::io::Result<()> {
    setsid()?;
    let terminal = match open(path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(terminal) => {
            ioctl_tiocsctty(&terminal)?;
            // As a login does: the user may open it again, by its name or by /dev/stdout.
            fchown(&terminal, Some(uid), None)?;
            fchmod(&terminal, Mode::from_raw_mode(0o620))?;
            terminal
        }
        Err(Errno::NODEV | Errno::NXIO | Errno::IO) => {
            open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?
        }
        Err(error) => return Err(error),
    };
    dup2_stdin(&terminal)?;
    dup2_stdout(&terminal)?;
    dup2_stderr(&terminal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("bin/tool", 0o755), ("sbin/tool", 0o755), ("bin/data", 0o644)] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        dir
    }

    fn find(name: &str, path: &str) -> std::result::Result<String, String> {
        let dir = tree();
        let found = look_up(OsStr::new(name), OsStr::new(path), dir.path());
        let inside = |path: PathBuf| path.strip_prefix(dir.path()).unwrap().display().to_string();
        found.map(inside).map_err(|failure| failure.what)
    }

    #[test]
    fn the_first_directory_with_the_program_counts() {
        assert_eq!(find("tool", "nowhere:sbin:bin"), Ok("sbin/tool".into()));
        assert_eq!(find("bin/tool", "sbin"), Ok("bin/tool".into()));
    }

    #[test]
    fn what_cannot_be_run_is_said() {
        assert_eq!(find("data", "bin:sbin"), Err("no program data in bin:sbin".into()));
        assert_eq!(find("bin/data", ""), Err("bin/data is no executable file".into()));
        assert_eq!(find("bin", "./"), Err("no program bin in ./".into()));
        assert!(find("bin/nosuch", "").unwrap_err().starts_with("cannot run bin/nosuch: No such file"));
    }
}
