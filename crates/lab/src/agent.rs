//! The program inside of the lab: the first process (`boot`) and the server that does what the host asks.

pub mod boot;
mod command;
mod processes;
#[cfg(test)]
mod tests;

use std::io::{self, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec};

use crate::transfer;
use crate::wire::{self, Kind, Request};

/// A connection that has not said what it wants by then is closed.
const GREETING: Duration = Duration::from_secs(10);

/// How long the agent waits without any connection before it powers off, when the host does not say.
pub const DEFAULT_IDLE: Duration = Duration::from_secs(600);

/// The server's state.
struct Agent {
    shared: Mutex<Shared>,
    /// Says that it is time to power off.
    off: mpsc::Sender<()>,
    /// Whether `Lease` may set this machine's clock: not when tests run the agent on a developer's host.
    own_machine: bool,
    commands: command::Running,
}

struct Shared {
    token: String,
    connections: usize,
    last_use: Instant,
    idle: Duration,
}

/// Serves until power-off is asked for, the idle limit is over, or the listener fails.
///
/// `own_machine`: the agent may set the clock.
pub fn serve(listener: TcpListener, token: String, idle: Duration, own_machine: bool) -> io::Result<()> {
    let (off, asked_off) = mpsc::channel();
    let shared = Mutex::new(Shared { token, connections: 0, last_use: Instant::now(), idle });
    let agent = Arc::new(Agent {
        shared,
        off: off.clone(),
        own_machine,
        commands: command::Running::on(own_machine),
    });
    let failure = Arc::new(Mutex::new(None));
    {
        let (agent, failure) = (agent.clone(), failure.clone());
        thread::spawn(move || {
            let error = accept(&listener, &agent);
            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            let _ = agent.off.send(());
        });
    }
    while asked_off.recv_timeout(Duration::from_secs(1)).is_err() {
        if agent.shared().is_idle() {
            break;
        }
    }
    let failure = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
    failure.map_or(Ok(()), Err)
}

fn accept(listener: &TcpListener, agent: &Arc<Agent>) -> io::Error {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let agent = agent.clone();
                thread::spawn(move || {
                    agent.shared().connections += 1;
                    if let Err(error) = agent.answer(stream) {
                        eprintln!("lab-agent: connection: {error}");
                    }
                    let mut shared = agent.shared();
                    shared.connections -= 1;
                    shared.last_use = Instant::now();
                });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return error,
        }
    }
}

impl Shared {
    fn is_idle(&self) -> bool {
        self.connections == 0 && self.last_use.elapsed() >= self.idle
    }
}

impl Agent {
    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(GREETING))?;
        let mut from = BufReader::with_capacity(wire::PIECE, stream.try_clone()?);
        let mut out = stream.try_clone()?;
        let mut body = Vec::new();
        match wire::read_frame(&mut from, &mut body)? {
            // The host tries out if somebody listens.
            None => return Ok(()),
            Some(Kind::Hello) if body == self.shared().token.as_bytes() => {}
            Some(_) => return wire::write_frame(&mut out, Kind::Refused, b"wrong token"),
        }
        let request = match wire::read_frame(&mut from, &mut body)? {
            Some(Kind::Request) => wire::from_json(&body)?,
            _ => return wire::write_frame(&mut out, Kind::Refused, b"no request"),
        };
        stream.set_read_timeout(None)?;
        let done = match request {
            Request::Run(run) => return self.commands.run(run, from, stream),
            Request::Push { into } => transfer::receive(&mut from, Path::new(&into)),
            Request::Pull { from } => {
                return match transfer::send(&mut out, Path::new(&from), "") {
                    Ok(()) => wire::write_frame(&mut out, Kind::End, b""),
                    Err(error) => refuse(&mut out, &error),
                };
            }
            Request::Lease { unix_nanos, token, idle_seconds } => self.lease(unix_nanos, token, idle_seconds),
            Request::Ping => Ok(()),
            Request::PowerOff => {
                wire::write_json(&mut out, Kind::Answer, &())?;
                let _ = self.off.send(());
                return Ok(());
            }
            Request::Hold => {
                wire::write_json(&mut out, Kind::Answer, &())?;
                // Nothing is expected any more: whatever ends this read ends the machine.
                let _ = wire::read_frame(&mut from, &mut body);
                let _ = self.off.send(());
                return Ok(());
            }
        };
        match done {
            Ok(()) => wire::write_json(&mut out, Kind::Answer, &()),
            Err(error) => refuse(&mut out, &error),
        }
    }

    fn lease(&self, unix_nanos: u64, token: String, idle_seconds: u64) -> io::Result<()> {
        if self.own_machine {
            let time = Timespec {
                tv_sec: (unix_nanos / 1_000_000_000).cast_signed(),
                tv_nsec: (unix_nanos % 1_000_000_000).cast_signed(),
            };
            rustix::time::clock_settime(ClockId::Realtime, time)?;
        }
        let mut shared = self.shared();
        shared.token = token;
        shared.idle = Duration::from_secs(idle_seconds);
        Ok(())
    }
}

fn refuse(out: &mut TcpStream, error: &io::Error) -> io::Result<()> {
    wire::write_frame(out, Kind::Refused, error.to_string().as_bytes())
}

/// The agent's program: the first process of the lab's initramfs, that of the root behind it, or the server.
pub fn main() -> io::Result<()> {
    let role = std::env::args().nth(1);
    match role.as_deref() {
        Some("serve") => {
            let listener = TcpListener::bind(("0.0.0.0", wire::AGENT_PORT))?;
            let (token, idle) = boot::told_by_kernel()?;
            println!("lab-agent: ready");
            serve(listener, token, idle, true)
        }
        Some("root") => boot::second_stage(),
        _ if rustix::process::getpid().is_init() => boot::first_stage(),
        _ => Err(io::Error::other("this program is the first process of the smartvm lab")),
    }
}
