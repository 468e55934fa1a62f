//! Our init as the first process of a Linux guest under the real Firecracker, with Debian's stock kernel. Fails where
//! no Linux guest can run: `cargo xtask test` chooses the place.

#[path = "linux_boot/guest.rs"]
mod guest;

use std::fs;

use guest::{Boot, OWN_ID, ROOT_MODULES, busybox_as_squashfs, exit, fsck, mke2fs};
use smartvm_guest_api::boot::{Disk, Ended, FileSystem, Overlay, Report, Step};

/// What the process finds: its orders, and what every container has.
#[test]
fn the_process_gets_what_was_ordered_and_the_image_stays_as_it_was() {
    let mut boot = Boot::image(
        "echo args:$0:$1; echo env:$GREETING:$PATH:$HOME; echo cwd:$(pwd); id; hostname; tty; \
         echo no >/etc/image; cat /etc/hosts; mount; ls -l /proc/self/fd/1 /dev/stdout; echo to-stdout >/dev/stdout; \
         ip -o addr; echo init:$(cat /proc/1/comm) ppid:$PPID; env; sh -c 'sleep 1000 &'; printf unfinished; exit 7",
    );
    let process = &mut boot.orders.process;
    process.argv.extend(["zero with \"quotes\"".into(), "% ä\tb".into()]);
    process.env = [("PATH", "/bin"), ("GREETING", "hello = world")]
        .map(|(name, value)| (name.into(), value.into()))
        .into();
    process.workdir = Some("/var/made".into());
    boot.orders.hostname = Some("box-1".into());
    boot.later = vec!["failover", "net_failover", "virtio_net"];
    let before = fs::read(boot.drive(0)).expect("the image");
    let (console, report) = boot.to_its_end();
    assert_eq!(report, exit(7), "{console}");
    for line in [
        "args:zero with \"quotes\":% ä b",
        "env:hello = world:/bin:/root",
        "cwd:/var/made",
        "uid=0(root) gid=0(root)",
        "/dev/ttyS0",
        "127.0.1.1\tbox-1",
        "overlay on / type overlay (rw,relatime",
        "devpts on /dev/pts",
        "tmpfs on /dev/shm",
        "cgroup2 on /sys/fs/cgroup",
        "to-stdout",
        "inet 127.0.0.1/8",
        "init:init ppid:1",
        "unfinishedsmartvm-guest: exit code=7",
    ] {
        assert!(console.contains(line), "no {line:?} in:\n{console}");
    }
    assert!(console.lines().any(|line| line.trim() == "box-1"), "{console}");
    // Nothing of the orders becomes a variable of its own.
    assert!(!console.contains("smartvm."), "{console}");
    assert!(fs::read(boot.drive(0)).expect("the image") == before, "the image was written to");
}

/// A user of the image, by its name, with a script's exit by signal.
#[test]
fn a_user_of_the_image_is_looked_up_there_and_owns_the_console() {
    let mut boot =
        Boot::image("id; echo home:$HOME; echo again >/dev/stdout; echo x 2>&1 >/etc/x; kill -9 $$");
    boot.orders.process.user = Some("web".parse().expect("a user"));
    // What does not fit on the command line goes this way.
    boot.orders_in_initramfs = true;
    boot.orders.process.env.push(("LONG".into(), "x".repeat(4000).into()));
    let (console, report) = boot.to_its_end();
    assert_eq!(report, Some(Report::Exit(Ended::Signal(9))), "{console}");
    for line in [
        "uid=33(web) gid=34(web) groups=44(logs)",
        "home:/srv",
        "again",
        "can't create /etc/x: Permission denied",
    ] {
        assert!(console.contains(line), "no {line:?} in:\n{console}");
    }
}

/// What is written stays on the machine's disk, which is clean afterwards, also when the guest is told to end.
#[test]
fn writes_stay_on_the_machines_own_disk_and_leave_the_image_alone() {
    let boot = Boot::image(
        "trap 'echo asked to end; exit 3' TERM; cat /etc/image; echo changed >/etc/image; sleep 1000 & echo waiting; \
         while :; do wait; done",
    )
    .with_own_disk();
    let before = fs::read(boot.drive(0)).expect("the image");
    let mut running = boot.start();
    running.await_text("as built");
    running.await_text("waiting");
    running.ctrl_alt_del();
    let (console, report) = running.end();
    assert_eq!(report, exit(3), "{console}");
    assert!(console.contains("asked to end"), "{console}");
    assert!(fs::read(boot.drive(0)).expect("the image") == before, "the image was written to");
    fsck(boot.drive(1)).expect("a clean disk");

    let mut again = boot;
    again.orders.process.argv = ["/bin/sh", "-c", "cat /etc/image"].map(Into::into).into();
    let (console, report) = again.to_its_end();
    assert_eq!(report, exit(0), "{console}");
    assert!(console.contains("changed") && !console.contains("as built"), "{console}");
    fsck(again.drive(1)).expect("a clean disk");
}

/// A shell at a prompt ignores SIGTERM.
#[test]
fn ctrl_alt_del_ends_an_interactive_shell() {
    let mut boot = Boot::image("");
    boot.orders.process.argv = ["sh", "-i"].map(Into::into).into();
    let mut running = boot.start();
    running.await_text("# ");
    running.ctrl_alt_del();
    let (console, report) = running.end();
    assert!(matches!(report, Some(Report::Exit(_))), "{report:?} in:\n{console}");
}

/// What a process did to its terminal does not keep init from saying how it ended.
#[test]
fn a_halted_and_changed_terminal_is_no_obstacle() {
    let boot = Boot::image("echo ready; read line; exit 5");
    let mut running = boot.start();
    running.await_text("ready");
    // Ctrl+S halts the output.
    running.type_text("\u{13}\n");
    let (console, report) = running.end();
    assert_eq!(report, exit(5), "{console}");
    let boot = Boot::image("stty raw -echo; exec >&- 2>&- <&-; exit 6");
    let (console, report) = boot.to_its_end();
    assert_eq!(report, exit(6), "{console}");
}

#[test]
fn a_private_copy_is_written_to_and_left_clean() {
    let mut boot = Boot::image("echo changed >/etc/image; mount");
    boot.orders.overlay = Overlay::Private;
    boot.drives[0].1 = false;
    boot.modules.retain(|name| *name != "overlay");
    let (console, report) = boot.to_its_end();
    assert_eq!(report, exit(0), "{console}");
    assert!(console.contains("/dev/vda on / type ext4 (rw"), "{console}");
    fsck(boot.drive(0)).expect("a clean disk");
    boot.orders.process.argv = ["cat", "/etc/image"].map(Into::into).into();
    let (console, _) = boot.to_its_end();
    assert!(console.contains("changed"), "{console}");
}

/// A squashfs has no id, and without an overlay nothing can be written but to memory.
#[test]
fn a_squashfs_boots_with_and_without_an_overlay() {
    let mut boot =
        Boot::image("echo x >/etc-file || echo read-only; echo y >/run/y && echo z >/tmp/z && echo memory");
    boot.drives[0].0 = busybox_as_squashfs();
    boot.orders.root.disk = Disk::Device("vda".into());
    boot.orders.root.file_system = FileSystem::Squashfs;
    boot.orders.overlay = Overlay::None;
    boot.modules.push("squashfs");
    let (console, report) = boot.to_its_end();
    assert_eq!(report, exit(0), "{console}");
    assert!(console.contains("read-only") && console.contains("memory"), "{console}");

    boot.orders.overlay = Overlay::Tmpfs { size: Some(8 << 20) };
    let (console, report) = boot.to_its_end();
    assert_eq!(report, exit(0), "{console}");
    assert!(!console.contains("read-only") && console.contains("memory"), "{console}");
}

/// Nothing of ours leaks into the process, and nothing odd in an image hangs us: here `/etc/hosts` is a fifo.
#[test]
fn a_process_begins_as_after_a_login_even_in_an_odd_image() {
    let mut boot = Boot::image("rm -f /etc/hosts; /bin/busybox mkfifo /etc/hosts; sync");
    let own = boot.dir.path().join("own.ext4");
    mke2fs(&own, OWN_ID, None);
    boot.drives.push((own, false));
    boot.orders.overlay = Overlay::Disk(OWN_ID.parse().expect("an id"));
    let (console, report) = boot.to_its_end();
    assert_eq!(report, exit(0), "{console}");
    let script = "for fd in 3 4 5 6 7 8 9 11 12; do test -e /proc/$$/fd/$fd && echo leaked:$fd; done; echo umask:$(umask); \
        read -r stat </proc/$$/stat; set -- $stat; echo session:$(($1 - $6)) group:$(($1 - $5)) foreground:$(($1 - $8)); \
        test -p /etc/hosts && exit 5";
    boot.orders.process.argv[2] = script.into();
    let (console, report) = boot.to_its_end();
    assert_eq!(report, exit(5), "{console}");
    // The shell itself may keep its terminal open, as 10. A pattern for all would show the directory that it reads.
    assert!(!console.contains("leaked:"), "{console}");
    for line in ["umask:0022", "session:0 group:0 foreground:0"] {
        assert!(console.contains(line), "no {line:?} in:\n{console}");
    }

    // Not by a shell, which ignores signals of its own.
    boot.orders.process.argv = ["cat", "/proc/self/status"].map(Into::into).into();
    let (console, report) = boot.to_its_end();
    assert_eq!(report, exit(0), "{console}");
    let mask = |name: &str| {
        let found = console.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
        found.map(|mask| u64::from_str_radix(mask, 16))
    };
    for name in ["SigBlk:", "SigIgn:", "SigPnd:"] {
        assert_eq!(mask(name), Some(Ok(0)), "{name} {console}");
    }
}

/// Kernels with everything built in have no modules, and their initramfs need not have lists of them. Debian's then
/// shows no disk; what matters is that init went on to look for it.
#[test]
fn an_initramfs_without_lists_of_modules_is_no_failure() {
    let mut boot = Boot::image("exit");
    boot.modules.clear();
    boot.without_lists = true;
    assert!(boot.fails(Step::FindRoot).contains("this machine shows no disk at all"));
}

/// A failure is one line that names its step, and an end in order.
#[test]
fn a_missing_disk_is_named_with_those_that_are_there() {
    let mut boot = Boot::image("exit");
    boot.orders.root.disk = Disk::Uuid(OWN_ID.parse().expect("an id"));
    let said = boot.fails(Step::FindRoot);
    assert!(said.contains(OWN_ID) && said.contains("vda (11111111-2222-4333-8444-555555555555)"), "{said}");
    let mut boot = Boot::image("exit");
    boot.orders.overlay = Overlay::Disk(OWN_ID.parse().expect("an id"));
    assert!(boot.fails(Step::FindOverlay).contains(OWN_ID));
}

/// Drivers that are loaded while the disk is waited for make it come late.
#[test]
fn a_disk_that_comes_late_is_awaited() {
    let mut boot = Boot::image("exit 4");
    boot.later = ROOT_MODULES.into();
    boot.modules.retain(|name| !ROOT_MODULES.contains(name));
    let (console, report) = boot.to_its_end();
    assert_eq!(report, exit(4), "{console}");
}

#[test]
fn two_disks_with_one_id_are_refused() {
    let mut boot = Boot::image("exit");
    boot.drives.push(boot.drives[0].clone());
    assert!(boot.fails(Step::FindRoot).contains("vda and vdb have the same id"));
}

#[test]
fn a_damaged_file_system_is_said_so() {
    let boot = Boot::image("exit");
    let mut image = fs::read(boot.drive(0)).expect("the image");
    // Features that no kernel knows, and a checksum that is wrong now; its id is as it was.
    image[1024 + 0x60..][..4].copy_from_slice(&[0xff; 4]);
    fs::write(boot.drive(0), image).expect("the image");
    let said = boot.fails(Step::MountRoot);
    assert!(said.starts_with("cannot mount /dev/vda as ext4: "), "{said}");
    assert!(said.ends_with("/dev/vda holds no sound ext4 that this kernel can read"), "{said}");
}

#[test]
fn a_module_that_is_missing_or_foreign_is_named() {
    let mut boot = Boot::image("exit");
    boot.modules.push("nosuch");
    assert!(boot.fails(Step::Modules).contains("cannot open /modules/nosuch.ko: No such file"));
    let mut boot = Boot::image("exit");
    boot.files.push(("/modules/bad.ko", b"no module".into()));
    boot.later.push("bad");
    assert!(boot.fails(Step::Modules).starts_with("cannot load /modules/bad.ko: Exec format error"));
}

#[test]
fn a_kernel_without_overlayfs_is_said_so() {
    let mut boot = Boot::image("exit");
    boot.modules.retain(|name| *name != "overlay");
    assert!(boot.fails(Step::LayOverlay).contains("this kernel has no overlayfs"));
}

#[test]
fn what_cannot_be_run_is_named() {
    let mut boot = Boot::image("exit");
    boot.orders.process.argv = vec!["nosuch".into()];
    assert!(boot.fails(Step::Exec).starts_with("no program nosuch in /usr/local/sbin"));
    boot.orders.process.argv = vec!["script".into()];
    assert!(boot.fails(Step::Exec).contains("its interpreter or dynamic loader is missing"));
    boot.orders.process.user = Some("nobody".parse().expect("a user"));
    assert!(boot.fails(Step::User).starts_with("the image has no user nobody"));
}

#[test]
fn orders_that_are_missing_or_garbage_are_named() {
    let mut boot = Boot::image("exit");
    boot.words = Some(String::new());
    assert!(boot.fails(Step::Orders).starts_with("boot parameter smartvm.root is missing"));
    boot.words = Some("smartvm.root=uuid:x".into());
    assert!(boot.fails(Step::Orders).starts_with("boot parameter smartvm.root has a value of no known form"));
}
