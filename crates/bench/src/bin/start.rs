//! `cargo xtask bench start`: what starting and stopping VMs costs, against doing it by hand.
//!
//! One at a time: by turns ours and the floor, in this process. Many at once: each batch in a process of its own, so
//! that its CPU time and memory are its own.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use smartvm_bench::figure::{Better, Figure, Target, keep, table};
use smartvm_bench::floor::{Raw, get_instance, own_cpu_ms};
use smartvm_bench::scene::{MEM_SIZE_MIB, Scene};
use smartvm_core::bare_metal::Guest;
use smartvm_host::process::ProcessId;
use smartvm_host::{Ladder, Launch, LogLevel, Vmm};
use tokio::runtime::Runtime;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What starting and stopping VMs costs, against doing it by hand.
#[derive(Parser)]
struct Arguments {
    /// Interleaved runs of each single-VM figure.
    #[arg(long, default_value_t = 60)]
    runs: usize,
    /// Batches of 50 at once; batches of 200 are a quarter of it. The default makes 2,000 starts of ours.
    #[arg(long, default_value_t = 20)]
    batches: usize,
    /// Only these parts: `ready`, `ready-busy`, `first-byte`, `stop`, `batches`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// End with status 1 when any target is missed, not only when a start was lost or something was left behind.
    #[arg(long)]
    enforce: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What this program runs as a process of its own.
#[derive(Subcommand)]
enum Part {
    /// N at once by hand.
    FloorBatch {
        n: usize,
        /// Firecrackers that nobody can speak to.
        #[arg(long)]
        no_api: bool,
    },
    /// N at once by smartvm.
    OurBatch { n: usize },
    /// Keeps one core busy until killed.
    Spin,
}

/// What a batch tells its parent.
#[derive(Debug, Serialize, Deserialize)]
struct Batch {
    /// From the first spawn to the last first byte.
    ms: f64,
    cpu_ms_per_vm: f64,
    rss_kib_per_vm: f64,
    lost: usize,
    left_behind: usize,
}

const LOST_OR_LEFT: &str = "lost-or-left";

const TARGETS: &[Target] = &[
    Target { figure: "ready", says: "<= 1.2x", met: |f| f.ratio.is_some_and(|r| r <= 1.2) },
    Target {
        figure: "ready-busy",
        says: "<= floor + 1.5 ms",
        met: |f| f.floor_median.is_some_and(|floor| f.median <= floor + 1.5),
    },
    Target { figure: "first-byte-vs-api", says: "<= 1.0x", met: |f| f.ratio.is_some_and(|r| r <= 1.0) },
    Target { figure: "first-byte-vs-config", says: "<= 1.1x", met: |f| f.ratio.is_some_and(|r| r <= 1.1) },
    Target {
        figure: "stop",
        says: "<= floor + 1 ms",
        met: |f| f.floor_median.is_some_and(|floor| f.median <= floor + 1.0),
    },
    Target {
        figure: "start-50",
        says: ">= 90% of the floor",
        met: |f| f.ratio.is_some_and(|r| r <= 1.0 / 0.9),
    },
    Target {
        figure: "start-200",
        says: ">= 90% of the floor",
        met: |f| f.ratio.is_some_and(|r| r <= 1.0 / 0.9),
    },
    Target { figure: "manager-cpu", says: "<= 0.3 ms", met: |f| f.median <= 0.3 },
    Target { figure: "manager-rss", says: "<= 20 KiB", met: |f| f.median <= 20.0 },
    Target { figure: LOST_OR_LEFT, says: "none", met: |f| f.p99 == 0.0 },
];

fn main() -> Outcome<ExitCode> {
    let arguments = Arguments::parse();
    match arguments.part {
        Some(Part::FloorBatch { n, no_api }) => print_batch(&floor_batch(n, !no_api)?),
        Some(Part::OurBatch { n }) => {
            smartvm_host::prompt_thread();
            print_batch(&our_batch(n)?)
        }
        Some(Part::Spin) => loop {
            std::hint::spin_loop();
        },
        None => bench(&arguments),
    }
}

fn print_batch(batch: &Batch) -> Outcome<ExitCode> {
    println!("{}", serde_json::to_string(batch)?);
    Ok(ExitCode::SUCCESS)
}

fn bench(arguments: &Arguments) -> Outcome<ExitCode> {
    let busy: Vec<Spinner> = (0..cores()).map(|_| Spinner::at_rest()).collect::<Outcome<_>>()?;
    let bench = Bench::new()?;
    let mut figures = Vec::new();
    println!("bench start: {} interleaved runs, {} batches of 50", arguments.runs, arguments.batches);
    let wanted = |part: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == part);
    if wanted("ready") {
        figures.push(bench.ready("ready", arguments.runs)?);
    }
    if wanted("ready-busy") {
        busy.iter().for_each(|spinner| spinner.signal(Signal::CONT));
        figures.push(bench.ready("ready-busy", arguments.runs)?);
        busy.iter().for_each(|spinner| spinner.signal(Signal::STOP));
    }
    if wanted("first-byte") {
        figures.extend(bench.first_byte(arguments.runs)?);
    }
    if wanted("stop") {
        figures.push(bench.stop(arguments.runs)?);
    }
    if wanted("batches") {
        figures.extend(batches(arguments.batches)?);
    }

    println!("{}", table(&figures, TARGETS));
    let target_dir = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    println!("kept in {}", keep(&target_dir, "start", &figures)?.display());
    let missed = |figure: &Figure| {
        TARGETS.iter().any(|target| target.figure == figure.figure && !(target.met)(figure))
    };
    // Times may miss their targets on a busy machine; a lost start or a leftover is a fault everywhere.
    let fault =
        figures.iter().any(|figure| missed(figure) && (arguments.enforce || figure.figure == LOST_OR_LEFT));
    Ok(if fault { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// What the figures of one VM at a time share.
struct Bench {
    runtime: Runtime,
    firecracker: PathBuf,
    idle: Scene,
}

impl Bench {
    fn new() -> Outcome<Self> {
        Ok(Self {
            runtime: runtime()?,
            firecracker: smartvm_lab::firecracker(),
            idle: Scene::new(Guest::ByteThenIdle)?,
        })
    }

    /// From the call until the API has answered.
    fn ready(&self, name: &str, runs: usize) -> Outcome<Figure> {
        let [ours, floor] = by_turns(runs, Clock::AtOnce, [&|| self.our_ready(), &|| self.floor_ready()])?;
        Ok(Figure::against(name, "ms", Better::Lower, &ours, &floor))
    }

    fn our_ready(&self) -> Outcome<f64> {
        let launch = quiet(Launch::new(&self.firecracker, self.idle.socket(1)));
        self.on_a_managers_thread(async move {
            let begun = Instant::now();
            let vmm = Vmm::spawn(launch).await.map_err(|error| error.to_string())?;
            let took = ms(begun.elapsed());
            vmm.stop(&Ladder::kill_now()).await.map_err(|error| error.to_string())?;
            Ok(took)
        })
    }

    /// On a thread of the runtime, as in a manager; the floor runs on this plain one.
    fn on_a_managers_thread(
        &self,
        work: impl Future<Output = Result<f64, String>> + Send + 'static,
    ) -> Outcome<f64> {
        Ok(self.runtime.block_on(self.runtime.spawn(work))??)
    }

    fn floor_ready(&self) -> Outcome<f64> {
        let begun = Instant::now();
        let (raw, mut stream) = Raw::with_api(&self.firecracker, &self.idle.socket(0))?;
        get_instance(&mut stream)?;
        let took = ms(begun.elapsed());
        raw.signal(9);
        raw.reap();
        Ok(took)
    }

    /// From the call until the caller holds the guest's first byte.
    fn first_byte(&self, runs: usize) -> Outcome<[Figure; 2]> {
        let [ours, by_api, by_config] = by_turns(
            runs,
            Clock::AnyMoment,
            [&|| self.our_first_byte(), &|| self.floor_first_byte(&|| self.by_api_calls()), &|| {
                self.floor_first_byte(&|| Raw::without_api(&self.firecracker, &self.idle.config()))
            }],
        )?;
        Ok([
            Figure::against("first-byte-vs-api", "ms", Better::Lower, &ours, &by_api),
            Figure::against("first-byte-vs-config", "ms", Better::Lower, &ours, &by_config),
        ])
    }

    fn our_first_byte(&self) -> Outcome<f64> {
        let launch = configured(&self.firecracker, &self.idle, 1);
        self.on_a_managers_thread(async move {
            let begun = Instant::now();
            let vmm = running(launch).await?;
            let took = ms(begun.elapsed());
            vmm.stop(&Ladder::kill_now()).await.map_err(|error| error.to_string())?;
            Ok(took)
        })
    }

    fn floor_first_byte(&self, start: &dyn Fn() -> std::io::Result<Raw>) -> Outcome<f64> {
        let begun = Instant::now();
        let mut raw = start()?;
        raw.first_byte()?;
        let took = ms(begun.elapsed());
        raw.signal(9);
        raw.reap();
        Ok(took)
    }

    /// SIGTERM to a running VM, until it is reaped and its socket removed.
    fn stop(&self, runs: usize) -> Outcome<Figure> {
        let [ours, floor] = by_turns(runs, Clock::AnyMoment, [&|| self.our_stop(), &|| self.floor_stop()])?;
        Ok(Figure::against("stop", "ms", Better::Lower, &ours, &floor))
    }

    fn our_stop(&self) -> Outcome<f64> {
        let launch = configured(&self.firecracker, &self.idle, 1);
        self.on_a_managers_thread(async move {
            let vmm = running(launch).await?;
            let begun = Instant::now();
            vmm.stop(&Ladder::default()).await.map_err(|error| error.to_string())?;
            Ok(ms(begun.elapsed()))
        })
    }

    fn floor_stop(&self) -> Outcome<f64> {
        let mut raw = self.by_api_calls()?;
        raw.first_byte()?;
        let begun = Instant::now();
        raw.signal(15);
        raw.reap();
        Ok(ms(begun.elapsed()))
    }

    fn by_api_calls(&self) -> std::io::Result<Raw> {
        Raw::by_api_calls(&self.firecracker, &self.idle.socket(0), &self.idle.kernel(), MEM_SIZE_MIB)
    }
}

/// A VM of ours past its first byte.
async fn running(launch: Launch) -> Result<Vmm, String> {
    let vmm = Vmm::spawn(launch).await.map_err(|error| error.to_string())?;
    vmm.console().reader().next().await.ok_or("the guest said nothing")?;
    Ok(vmm)
}

/// Samples of each, one after the other, beginning with another one in each round: what a start costs depends on what the
/// one before left to the kernel.
///
fn by_turns<const N: usize>(
    runs: usize,
    clock: Clock,
    contenders: [&dyn Fn() -> Outcome<f64>; N],
) -> Outcome<[Vec<f64>; N]> {
    let mut samples = [const { Vec::new() }; N];
    for round in 0..runs {
        for turn in 0..N {
            let which = (round + turn) % N;
            if clock == Clock::AnyMoment {
                std::thread::sleep(TICKS.mul_f64((round * N + turn) as f64 * GOLDEN_RATIO % 1.0));
            }
            samples[which].push(contenders[which]()?);
        }
    }
    Ok(samples)
}

/// When a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    /// As soon as the one before is over.
    AtOnce,
    /// At another moment of the kernel's clock each time, as real starts do. For what waits for a tick: the run before ends with
    /// one, so all would run in step with it, and a microsecond more or less would count for a whole tick.
    AnyMoment,
}

/// Two ticks of a kernel with 250 of them a second.
const TICKS: Duration = Duration::from_millis(8);
/// Its multiples fall everywhere between two whole numbers, and evenly.
const GOLDEN_RATIO: f64 = 0.618_033_988_749_895;

fn runtime() -> Outcome<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(smartvm_host::prompt_thread)
        .enable_all()
        .build()?)
}

fn quiet(mut launch: Launch) -> Launch {
    launch.log.level = Some(LogLevel::Off);
    launch
}

fn configured(firecracker: &Path, scene: &Scene, number: usize) -> Launch {
    let mut launch = quiet(Launch::new(firecracker, scene.socket(number)));
    launch.config_file = Some(scene.config());
    launch
}

/// The floor of a machine is a Firecracker that can be spoken to: without its API socket, and the thread and the seccomp
/// filter that serve it, nobody can pause, snapshot or stop it in order. What that costs is told beside it.
fn batches(batches: usize) -> Outcome<Vec<Figure>> {
    let mut figures = Vec::new();
    let (mut cpu, mut rss, mut lost_or_left, mut starts) = (Vec::new(), Vec::new(), 0, 0);
    for (n, rounds) in [(50, batches), (200, batches.div_ceil(4))] {
        let rate = |batch: &Batch| n as f64 / batch.ms * 1e3;
        let (mut ours, mut floor, mut no_api) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            floor.push(rate(&part("floor-batch", n, &[])?));
            let by_us = part("our-batch", n, &[])?;
            ours.push(rate(&by_us));
            no_api.push(rate(&part("floor-batch", n, &["--no-api"])?));
            lost_or_left += by_us.lost + by_us.left_behind;
            starts += n;
            if n == 200 {
                cpu.push(by_us.cpu_ms_per_vm);
                rss.push(by_us.rss_kib_per_vm);
            }
        }
        let against =
            |name: String, floor: &[f64]| Figure::against(&name, "VMs/s", Better::Higher, &ours, floor);
        figures.push(against(format!("start-{n}"), &floor));
        figures.push(against(format!("start-{n}-vs-no-api"), &no_api));
    }
    figures.push(Figure::alone("manager-cpu", "ms/VM", &cpu));
    figures.push(Figure::alone("manager-rss", "KiB/VM", &rss));
    let mut lost = Figure::alone(LOST_OR_LEFT, "VMs", &[lost_or_left as f64]);
    lost.n = starts;
    figures.push(lost);
    Ok(figures)
}

/// Runs a batch in a process of its own.
fn part(name: &str, n: usize, more: &[&str]) -> Outcome<Batch> {
    let output = Command::new(std::env::current_exe()?)
        .args([name, &n.to_string()])
        .args(more)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("{name} {n}: {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// All are spawned before any is waited for: their waits inside the kernel overlap.
fn floor_batch(n: usize, api: bool) -> Outcome<Batch> {
    let (firecracker, scene) = (smartvm_lab::firecracker(), Scene::new(Guest::ByteThenIdle)?);
    let (cpu_before, begun) = (own_cpu_ms(), Instant::now());
    let start = |number| match api {
        true => Raw::with_both(&firecracker, &scene.socket(number), &scene.config()),
        false => Raw::without_api(&firecracker, &scene.config()),
    };
    let mut raws: Vec<Raw> = (0..n).map(start).collect::<std::io::Result<_>>()?;
    for raw in &mut raws {
        raw.first_byte()?;
    }
    let (took, cpu) = (begun.elapsed(), own_cpu_ms() - cpu_before);
    for raw in &raws {
        raw.signal(9);
    }
    raws.into_iter().for_each(Raw::reap);
    Ok(Batch { ms: ms(took), cpu_ms_per_vm: cpu / n as f64, rss_kib_per_vm: 0.0, lost: 0, left_behind: 0 })
}

fn our_batch(n: usize) -> Outcome<Batch> {
    let (firecracker, scene) = (smartvm_lab::firecracker(), Scene::new(Guest::ByteThenIdle)?);
    runtime()?.block_on(async {
        // Threads and pools are made once in a manager's life, not once a VM.
        for vmm in start_all(&firecracker, &scene, 8).await.0 {
            vmm.stop(&Ladder::kill_now()).await?;
        }
        let (rss_before, cpu_before, begun) = (rss_kib()?, own_cpu_ms(), Instant::now());
        let (vmms, lost) = start_all(&firecracker, &scene, n).await;
        let (took, cpu, rss) = (begun.elapsed(), own_cpu_ms() - cpu_before, rss_kib()?);

        let identities: Vec<ProcessId> = vmms.iter().filter_map(|vmm| vmm.process_id().ok()?).collect();
        let stops: Vec<_> = vmms
            .into_iter()
            .map(|vmm| tokio::spawn(async move { vmm.stop(&Ladder::kill_now()).await.is_ok() }))
            .collect();
        let mut left_behind = 0;
        for stop in stops {
            left_behind += usize::from(!stop.await?);
        }
        left_behind += identities.iter().filter(|identity| identity.is_alive().unwrap_or(true)).count();
        left_behind += scene.sockets_left()?;
        Ok(Batch {
            ms: ms(took),
            cpu_ms_per_vm: cpu / n as f64,
            rss_kib_per_vm: (rss - rss_before) / n as f64,
            lost,
            left_behind,
        })
    })
}

/// The running VMs, each past its first byte, and how many did not get there.
async fn start_all(firecracker: &Path, scene: &Scene, n: usize) -> (Vec<Vmm>, usize) {
    let starts: Vec<_> = (0..n)
        .map(|number| {
            let launch = configured(firecracker, scene, number);
            tokio::spawn(async move {
                let vmm = Vmm::spawn(launch).await.map_err(|error| eprintln!("lost: {error}")).ok()?;
                vmm.console().reader().next().await.is_some().then_some(vmm)
            })
        })
        .collect();
    let mut vmms = Vec::new();
    for start in starts {
        vmms.extend(start.await.ok().flatten());
    }
    let lost = n - vmms.len();
    (vmms, lost)
}

fn rss_kib() -> Outcome<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    Ok(line.split_ascii_whitespace().nth(1).ok_or("no number in VmRSS")?.parse()?)
}

/// One core's worth of somebody else's work.
struct Spinner(Child);

impl Spinner {
    fn at_rest() -> Outcome<Self> {
        let spinner = Self(Command::new(std::env::current_exe()?).arg("spin").spawn()?);
        spinner.signal(Signal::STOP);
        Ok(spinner)
    }

    fn signal(&self, signal: Signal) {
        // Our own child, not yet reaped.
        let _ = kill_process(Pid::from_child(&self.0), signal);
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
