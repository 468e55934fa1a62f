//! Machines of the library against the real Firecracker: their states, and that every way out releases everything.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use smartvm::explain::{Code, Explain};
use smartvm::{
    Checked, Config, Directories, FirecrackerBinary, Host, Ladder, Machine, MachineId, Rung, StartError,
    StartOptions, State, check_config,
};
use smartvm_core::bare_metal::Guest;

#[cfg(test)]
struct Scene {
    host: Host,
    firecracker: FirecrackerBinary,
    dir: tempfile::TempDir,
}

#[cfg(test)]
impl Scene {
    async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("smartvm-lib-").tempdir().unwrap();
        let directories = Directories { runtime: dir.path().join("run"), data: dir.path().join("data") };
        let host = Host::open(&directories).unwrap();
        let firecracker = FirecrackerBinary::at(&smartvm_lab::firecracker()).await.unwrap();
        Self { host, firecracker, dir }
    }

    fn config(&self, guest: Guest<'_>, more: &str) -> Checked {
        fs::write(self.dir.path().join("guest"), guest.elf()).unwrap();
        let text = format!(r#"{{"boot-source": {{"kernel_image_path": "guest"}}, "drives": []{more}}}"#);
        check_config(&Config::from_json(text, self.dir.path()), &self.firecracker.version, false).unwrap()
    }

    async fn start(&self, guest: Guest<'_>) -> Result<Machine, StartError> {
        let config = self.config(guest, "");
        Machine::start(&self.host, &self.firecracker, &config, StartOptions::default()).await
    }

    /// Starts it and waits until the guest has taken its place.
    async fn running(&self, guest: Guest<'_>) -> Machine {
        let machine = self.start(guest).await.unwrap();
        machine.console().reader().next().await.unwrap();
        machine
    }

    fn left(&self) -> Vec<PathBuf> {
        let machines = self.host.runtime_dir().join("machines");
        fs::read_dir(machines).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

#[cfg(test)]
fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[cfg(test)]
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < smartvm_lab::patience(Duration::from_secs(20)), "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_guest_that_ends_is_released_though_nobody_waits() {
    let scene = Scene::new().await;
    let machine = scene.start(Guest::ByteThenReset).await.unwrap();
    let mut states = machine.states();
    let end = states.wait_for(|state| state.is_final()).await.unwrap().as_str();
    assert_eq!(end, "stopped");
    assert_eq!(scene.left(), Vec::<PathBuf>::new());
    let released = machine.wait().await;
    assert!(released.vmm.exit.is_guests_end());
    assert_eq!(released.vmm.by, None);
}

#[tokio::test]
async fn stopping_says_which_rung_worked_and_twice_is_as_good_as_once() {
    let scene = Scene::new().await;
    let machine = scene.running(Guest::ResetOnCtrlAltDel).await;
    let ladder = Ladder::guest_first(Duration::from_secs(20));
    let (first, second) = tokio::join!(machine.stop(&ladder), machine.stop(&ladder));
    assert_eq!(first.as_ref().unwrap().vmm.by, Some(Rung::CtrlAltDel));
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(machine.state().as_str(), "stopped");
    machine.kill().await.unwrap();
    assert_eq!(scene.left(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_kill_overtakes_a_stop_that_waits() {
    let scene = Scene::new().await;
    let machine = scene.running(Guest::IgnoreCtrlAltDel).await;
    let ladder = Ladder::guest_first(Duration::from_secs(3600));
    let stop = machine.stop(&ladder);
    let kill = async {
        let mut states = machine.states();
        states.wait_for(|state| state.as_str() == "stopping").await.unwrap();
        machine.kill().await.unwrap()
    };
    let (stopped, killed) = tokio::join!(stop, kill);
    assert_eq!(stopped.unwrap(), killed);
    assert_eq!(killed.vmm.by, Some(Rung::Kill));
}

#[tokio::test]
async fn a_guest_is_paused_and_resumed_and_what_the_state_forbids_is_refused() {
    let scene = Scene::new().await;
    let machine = scene.running(Guest::Flood).await;
    let error = machine.resume().await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidState);
    machine.pause().await.unwrap();
    assert_eq!(machine.state(), State::Paused);
    let written = machine.console().written();
    assert_eq!(machine.pause().await.unwrap_err().code(), Code::InvalidState);
    machine.resume().await.unwrap();
    until("the guest goes on", || machine.console().written() > written).await;
    machine.kill().await.unwrap();
    assert_eq!(machine.pause().await.unwrap_err().code(), Code::InvalidState);
}

#[tokio::test]
async fn a_name_is_taken_once_and_its_owner_is_named() {
    let scene = Scene::new().await;
    let config = scene.config(Guest::ByteThenIdle, "");
    let options = StartOptions { id: Some(MachineId::new("web").unwrap()), ..StartOptions::default() };
    let start = || Machine::start(&scene.host, &scene.firecracker, &config, options.clone());
    let first = start().await.unwrap();
    let error = start().await.unwrap_err();
    assert_eq!(error.code(), Code::MachineBusy);
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    assert!(is_alive(first.pid()));
    first.kill().await.unwrap();
    start().await.unwrap().kill().await.unwrap();
}

#[tokio::test]
async fn a_failed_start_leaves_nothing_and_says_firecrackers_reason() {
    let scene = Scene::new().await;
    // Good when it was checked, gone when it is started.
    let config = scene.config(Guest::ByteThenIdle, "");
    fs::remove_file(scene.dir.path().join("guest")).unwrap();
    let error = Machine::start(&scene.host, &scene.firecracker, &config, StartOptions::default()).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), Code::ProcessExited);
    assert!(error.last_words().iter().any(|line| line.contains("No such file")), "{:?}", error.last_words());
    assert_eq!(scene.left(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_start_that_is_dropped_at_any_moment_leaves_nothing() {
    let scene = Scene::new().await;
    for micros in (0..30).map(|step| step * 700) {
        let start = scene.start(Guest::ByteThenIdle);
        let _ = tokio::time::timeout(Duration::from_micros(micros), start).await;
        until("released", || scene.left().is_empty()).await;
    }
}

#[tokio::test]
async fn a_dropped_handle_kills_and_releases() {
    let scene = Scene::new().await;
    let machine = scene.running(Guest::ByteThenIdle).await;
    let pid = machine.pid();
    drop(machine);
    until("the VMM is dead and all released", || !is_alive(pid) && scene.left().is_empty()).await;
}

#[test]
fn a_runtime_that_goes_takes_its_machines_along() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (scene, machine) = runtime.block_on(async {
        let scene = Scene::new().await;
        let machine = scene.running(Guest::ByteThenIdle).await;
        (scene, machine)
    });
    let pid = machine.pid();
    drop(runtime);
    assert!(!is_alive(pid));
    assert_eq!(scene.left(), Vec::<PathBuf>::new());
    drop(machine);
}

#[test]
fn a_panic_takes_its_machine_along() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let scene = runtime.block_on(Scene::new());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.block_on(async {
            let _machine = scene.running(Guest::ByteThenIdle).await;
            panic!("on purpose");
        })
    }));
    assert!(panicked.is_err());
    drop(runtime);
    assert_eq!(scene.left(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_runtime_directory_of_any_length_will_do() {
    let scene = Scene::new().await;
    let deep = scene.dir.path().join("d".repeat(100)).join("e".repeat(100));
    let directories = Directories { runtime: deep, data: scene.dir.path().join("data") };
    let host = Host::open(&directories).unwrap();
    let config = scene.config(Guest::ByteThenReset, "");
    let machine = Machine::start(&host, &scene.firecracker, &config, StartOptions::default()).await.unwrap();
    machine.wait().await;
    assert_eq!(fs::read_dir(host.runtime_dir().join("machines")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_live_vsock_socket_of_somebody_else_is_not_touched() {
    let scene = Scene::new().await;
    let config = scene.config(Guest::ByteThenIdle, r#", "vsock": {"guest_cid": 3, "uds_path": "v.sock"}"#);
    let path = scene.dir.path().join("v.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = Machine::start(&scene.host, &scene.firecracker, &config, StartOptions::default()).await;
    assert_eq!(error.unwrap_err().code(), Code::SocketInUse);
    assert!(path.exists());
    drop(listener);
    // Now it is stale, and in nobody's way.
    let machine =
        Machine::start(&scene.host, &scene.firecracker, &config, StartOptions::default()).await.unwrap();
    machine.kill().await.unwrap();
    assert!(!path.exists(), "the VMM's own is removed with it");
    assert_eq!(scene.left(), Vec::<PathBuf>::new());
}

/// Alone in its process it would be exact; beside other tests it counts what only grows.
#[tokio::test]
async fn many_machines_at_once_all_start_and_all_go() {
    let scene = Scene::new().await;
    let config = scene.config(Guest::ByteThenIdle, "");
    let starts = (0..20).map(|_| {
        let (host, firecracker, config) = (scene.host.clone(), scene.firecracker.clone(), config.clone());
        tokio::spawn(async move {
            let machine = Machine::start(&host, &firecracker, &config, StartOptions::default()).await?;
            machine.console().reader().next().await;
            Ok::<Machine, StartError>(machine)
        })
    });
    let mut machines = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        machines.push(start.await.unwrap().unwrap());
    }
    assert_eq!(scene.left().len(), 20);
    let kills: Vec<_> =
        machines.into_iter().map(|machine| tokio::spawn(async move { machine.kill().await })).collect();
    for kill in kills {
        assert!(kill.await.unwrap().unwrap().left_behind.is_empty());
    }
    assert_eq!(scene.left(), Vec::<PathBuf>::new());
}
