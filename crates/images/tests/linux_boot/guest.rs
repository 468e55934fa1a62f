//! A Firecracker whose guest our init boots: disks, initramfs, console.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use smartvm_core::initramfs::Archive;
use smartvm_guest_api::boot::{
    Disk, Ended, FileSystem, Orders, Overlay, Process, Report, Root, Step, layout,
};
use smartvm_guest_binary::GUEST;
use smartvm_lab::guest::Assets;
use tempfile::TempDir;

/// Under emulation a boot takes five seconds, on a busy machine several times as long.
const PATIENCE: Duration = Duration::from_secs(120);

/// The id of the image, and of the machine's own disk.
pub(crate) const IMAGE_ID: &str = "11111111-2222-4333-8444-555555555555";
pub(crate) const OWN_ID: &str = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee";

/// What is to be booted; begin with [`Boot::image`].
pub(crate) struct Boot {
    pub(crate) dir: TempDir,
    pub(crate) orders: Orders,
    /// Modules that are loaded before and after the root is looked for; by name.
    pub(crate) modules: Vec<&'static str>,
    pub(crate) later: Vec<&'static str>,
    /// The initramfs has no lists of modules at all.
    pub(crate) without_lists: bool,
    /// Paths and whether they are read-only.
    pub(crate) drives: Vec<(PathBuf, bool)>,
    /// Instead of the orders as words on the command line.
    pub(crate) words: Option<String>,
    /// The orders lie in the initramfs, not on the command line.
    pub(crate) orders_in_initramfs: bool,
    /// Kernel and initramfs of a bundle, instead of the lab's kernel with an initramfs of modules as above. The command
    /// line is then as smartvm plans it.
    pub(crate) bundle: Option<Bundle>,
    /// More files of the initramfs.
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
}

/// Files of a kernel bundle.
#[derive(Clone)]
pub(crate) struct Bundle {
    pub(crate) vmlinux: PathBuf,
    pub(crate) initramfs: PathBuf,
}

pub(crate) const ROOT_MODULES: [&str; 4] = ["virtio", "virtio_ring", "virtio_mmio", "virtio_blk"];

impl Boot {
    /// A busybox image with this script as its process, writes going to memory.
    pub(crate) fn image(script: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image.ext4");
        busybox_image(&image);
        let process = Process {
            argv: ["/bin/sh", "-c", script].map(Into::into).into(),
            env: Vec::new(),
            workdir: None,
            user: None,
        };
        let disk = Disk::Uuid(IMAGE_ID.parse().expect("an id"));
        let orders = Orders {
            root: Root { disk, file_system: FileSystem::Ext4 },
            overlay: Overlay::Tmpfs { size: None },
            hostname: None,
            process,
        };
        Self {
            dir,
            orders,
            modules: [&ROOT_MODULES[..], &["overlay"]].concat(),
            later: Vec::new(),
            without_lists: false,
            drives: vec![(image, true)],
            words: None,
            orders_in_initramfs: false,
            bundle: None,
            files: Vec::new(),
        }
    }

    /// Adds an empty ext4 disk and lets writes go there.
    pub(crate) fn with_own_disk(mut self) -> Self {
        let own = self.dir.path().join("own.ext4");
        mke2fs(&own, OWN_ID, None);
        self.drives.push((own, false));
        self.orders.overlay = Overlay::Disk(OWN_ID.parse().expect("an id"));
        self
    }

    pub(crate) fn drive(&self, number: usize) -> &Path {
        &self.drives[number].0
    }

    /// Boots to the end of the guest. Its console, and the report in it.
    pub(crate) fn to_its_end(&self) -> (String, Option<Report>) {
        self.start().end()
    }

    /// Boots, and expects that init fails in this step. What it said, with the hint.
    pub(crate) fn fails(&self, expected: Step) -> String {
        let (console, report) = self.to_its_end();
        match report {
            Some(Report::Failed { step, what, hint }) if step == expected => {
                // One line says it, and the kernel has no panic to add.
                assert_eq!(console.matches("smartvm-guest: ").count(), 1, "{console}");
                assert!(!console.contains("Kernel panic"), "{console}");
                format!("{what}; {hint}")
            }
            other => panic!("{other:?}, not {expected}, in:\n{console}"),
        }
    }

    pub(crate) fn start(&self) -> Guest {
        let assets = Assets::from_env().expect("a Linux guest");
        let dir = self.dir.path();
        let (vmlinux, initrd, boot_args) = match &self.bundle {
            Some(bundle) => (bundle.vmlinux.clone(), bundle.initramfs.clone(), self.planned_command_line()),
            None => {
                let initrd = dir.join("initrd");
                fs::write(&initrd, self.initramfs(&assets)).expect("an initramfs");
                let words = match &self.words {
                    Some(words) => words.clone(),
                    None if self.orders_in_initramfs => String::new(),
                    None => self.orders.encode().expect("sound orders"),
                };
                (assets.vmlinux, initrd, format!("{} {words}", assets.boot_args))
            }
        };
        let drives = self.drives.iter().enumerate().map(|(number, (path, read_only))| {
            serde_json::json!({
                "drive_id": format!("d{number}"),
                "path_on_host": path,
                "is_root_device": false,
                "is_read_only": read_only,
            })
        });
        let drives: Vec<_> = drives.collect();
        let config = serde_json::json!({
            "boot-source": {
                "kernel_image_path": vmlinux,
                "initrd_path": initrd,
                "boot_args": boot_args,
            },
            "drives": drives,
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
        });
        let path = dir.join("vm.json");
        fs::write(&path, config.to_string()).expect("a config file");
        Guest::start(&path, dir.join("api.sock"))
    }

    fn planned_command_line(&self) -> String {
        let boot = smartvm_core::boot::Boot {
            arch: smartvm_core::target::Arch::X86_64,
            console: true,
            pci: false,
            orders: Some(&self.orders),
            extra: "",
            appended: 0,
        };
        smartvm_core::boot::plan(&boot).expect("a plan").command_line()
    }

    /// The initramfs that it boots from.
    pub(crate) fn initramfs(&self, assets: &Assets) -> Vec<u8> {
        let modules = modules(assets);
        let mut archive = Archive::new(Vec::new());
        for dir in ["/dev", "/etc", "/etc/smartvm", "/modules"] {
            archive.directory(dir).expect("a directory");
        }
        archive.character_device("/dev/console", 5, 1).expect("a node");
        archive.character_device("/dev/null", 1, 3).expect("a node");
        archive.file(layout::INIT, 0o755, GUEST).expect("init");
        for (list, names) in [(layout::MODULES, &self.modules), (layout::LATER_MODULES, &self.later)] {
            let mut text = String::new();
            let mut names = names.clone();
            // In the order in which they can be loaded. One that the kernel does not have comes last.
            names.sort_by_key(|name| modules.get(*name).map_or(usize::MAX, |(rank, _)| *rank));
            for name in names {
                let path = format!("/modules/{name}.ko");
                text.push_str(&format!("{path}\n"));
                if let Some((_, file)) = modules.get(name) {
                    archive.file(&path, 0o644, &fs::read(file).expect("a module")).expect("a file");
                }
            }
            if !self.without_lists {
                archive.file(list, 0o644, text.as_bytes()).expect("a list");
            }
        }
        if self.orders_in_initramfs {
            let orders = self.orders.encode().expect("sound orders");
            archive.file(layout::ORDERS, 0o644, orders.as_bytes()).expect("a file");
        }
        for (path, content) in &self.files {
            archive.file(path, 0o644, content).expect("a file");
        }
        archive.finish().expect("an archive")
    }
}

/// The kernel's modules by name: their place in the order of loading, their file.
fn modules(assets: &Assets) -> HashMap<String, (usize, PathBuf)> {
    let files = fs::read_dir(&assets.modules).expect("modules").map(|file| file.expect("a module").path());
    let known = files.map(|path| {
        let stem = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
        let (rank, name) = stem.split_once('-').expect("a number before the name");
        (name.to_owned(), (rank.parse().expect("a number"), path))
    });
    known.collect()
}

fn busybox_image(to: &Path) {
    let assets = Assets::from_env().expect("a Linux guest");
    let tree = tempfile::tempdir().expect("a directory");
    let inside = |path: &str| tree.path().join(path);
    for dir in ["bin", "etc", "tmp", "run", "srv"] {
        fs::create_dir(inside(dir)).expect("a directory");
    }
    fs::copy(&assets.busybox, inside("bin/busybox")).expect("busybox");
    for name in [
        "sh", "cat", "hostname", "id", "ip", "ls", "mount", "ps", "pwd", "sleep", "tty", "env", "stty",
        "sync",
    ] {
        std::os::unix::fs::symlink("busybox", inside(&format!("bin/{name}"))).expect("a link");
    }
    fs::write(inside("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
        .expect("a file");
    fs::write(inside("etc/group"), "root:x:0:\nweb:x:34:\nlogs:x:44:web\n").expect("a file");
    fs::write(inside("bin/script"), "#!/no/such/interpreter\n").expect("a file");
    fs::set_permissions(inside("bin/script"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("a mode");
    fs::write(inside("etc/image"), "as built").expect("a file");
    mke2fs(to, IMAGE_ID, Some(tree.path()));
}

pub(crate) fn mke2fs(to: &Path, id: &str, tree: Option<&Path>) {
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-U", id]).stdout(Stdio::null());
    if let Some(tree) = tree {
        mke2fs.arg("-d").arg(tree);
    }
    assert!(mke2fs.arg(to).arg("32M").status().expect("mke2fs").success());
}

/// The lab's busybox image as a squashfs.
pub(crate) fn busybox_as_squashfs() -> PathBuf {
    Assets::from_env().expect("a Linux guest").squashfs
}

/// What `e2fsck` says of a file system that must be clean, or why it is not.
pub(crate) fn fsck(image: &Path) -> Result<(), String> {
    let output = Command::new("e2fsck").arg("-fn").arg(image).output().expect("e2fsck");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // A journal that has to be replayed is told by a warning only.
    if output.status.success() && !said.contains("recover") { Ok(()) } else { Err(said) }
}

/// A guest that runs.
pub(crate) struct Guest {
    vmm: Child,
    output: Receiver<Vec<u8>>,
    console: Vec<u8>,
    /// How much of the console was before what was awaited last.
    awaited: usize,
    deadline: Instant,
    api: PathBuf,
}

impl Guest {
    fn start(config: &Path, api: PathBuf) -> Self {
        let _ = fs::remove_file(&api);
        let mut vmm = Command::new(smartvm_lab::firecracker())
            .arg("--api-sock")
            .arg(&api)
            .arg("--config-file")
            .arg(config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("Firecracker starts");
        let (sender, output) = channel();
        let mut stdout = vmm.stdout.take().expect("its output");
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut piece) {
                if sender.send(piece[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { vmm, output, console: Vec::new(), awaited: 0, deadline: Instant::now() + PATIENCE, api }
    }

    /// Reads more; false after the end of Firecracker's output.
    fn read(&mut self) -> bool {
        match self.output.recv_timeout(self.deadline.saturating_duration_since(Instant::now())) {
            Ok(piece) => self.console.extend(piece),
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => {
                panic!("the guest does not go on:\n{}", String::from_utf8_lossy(&self.console))
            }
        }
        true
    }

    /// Reads the console until this text comes, after what was awaited before.
    pub(crate) fn await_text(&mut self, text: &str) {
        loop {
            let new = &self.console[self.awaited..];
            if let Some(at) = new.windows(text.len()).position(|window| window == text.as_bytes()) {
                self.awaited += at + text.len();
                return;
            }
            if !self.read() {
                panic!("no {text:?} on the console:\n{}", String::from_utf8_lossy(&self.console));
            }
        }
    }

    /// Types on the console.
    pub(crate) fn type_text(&mut self, text: &str) {
        let input = self.vmm.stdin.as_mut().expect("its input");
        input.write_all(text.as_bytes()).and_then(|()| input.flush()).expect("the console takes input");
    }

    /// Presses Ctrl+Alt+Del.
    pub(crate) fn ctrl_alt_del(&self) {
        let body = r#"{"action_type":"SendCtrlAltDel"}"#;
        let mut api = UnixStream::connect(&self.api).expect("the API socket");
        write!(api, "PUT /actions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .expect("a request");
        let mut answer = [0; 12];
        api.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 204");
    }

    /// Waits for the guest's own end, which must be one in order.
    pub(crate) fn end(mut self) -> (String, Option<Report>) {
        while self.read() {}
        let report = self.console.split(|byte| *byte == b'\n').filter_map(Report::parse).next_back();
        let status = self.vmm.wait().expect("Firecracker's status");
        let console = String::from_utf8_lossy(&self.console).into_owned();
        assert_eq!(status.code(), Some(0), "{console}");
        assert!(!console.contains("KVM_EXIT_SHUTDOWN"), "the processor gave up on the guest:\n{console}");
        (console, report)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}

/// The report of a process that exited.
pub(crate) fn exit(code: u8) -> Option<Report> {
    Some(Report::Exit(Ended::Code(code)))
}
