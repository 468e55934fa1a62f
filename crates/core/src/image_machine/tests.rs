use proptest::prelude::*;

use super::*;
use crate::target::{Arch, FirecrackerVersion};
use crate::validate::{MAX_CMDLINE, validate_for};

const TARGET: Target = Target { arch: Arch::X86_64, version: FirecrackerVersion(1, 12, 1), pci: false };

fn parts() -> Parts {
    let strings = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    Parts {
        root: "/store/blobs/1".into(),
        file_system: FileSystem::Ext4,
        root_id: Some(Uuid([1; 16])),
        process: ImageProcess {
            entrypoint: strings(&["/entry", "--flag"]),
            cmd: strings(&["serve"]),
            env: strings(&["PATH=/bin", "MODE=image", "EMPTY"]),
            workdir: Some("srv".into()),
            user: Some("web:staff".into()),
        },
        vmlinux: "/store/blobs/2".into(),
        initramfs: "/store/blobs/3".into(),
        own_dir: "/data/machines/m".into(),
        overlay_id: Uuid([2; 16]),
    }
}

fn planned(wanted: &Wanted) -> Plan {
    plan(wanted, &parts(), &TARGET).unwrap()
}

fn argv(wanted: Wanted) -> Vec<String> {
    let argv = planned(&wanted).orders.process.argv;
    argv.into_iter().map(|word| word.into_string().unwrap()).collect()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn the_default_machine() {
    let plan = planned(&Wanted::default());
    let config = serde_json::to_value(&plan.config).unwrap();
    let args = plan.boot.command_line();
    assert_eq!(
        config,
        serde_json::json!({
            "boot-source": {"kernel_image_path": "/store/blobs/2", "initrd_path": "/store/blobs/3", "boot_args": args},
            "machine-config": {"vcpu_count": 1, "mem_size_mib": 512},
            "drives": [
                {"drive_id": "image", "is_root_device": false, "is_read_only": true, "path_on_host": "/store/blobs/1"},
                {"drive_id": "overlay", "is_root_device": false, "is_read_only": false,
                 "path_on_host": "/data/machines/m/overlay.ext4"},
            ],
        })
    );
    assert!(
        args.contains("smartvm.root=uuid:01010101-0101-0101-0101-010101010101 smartvm.rootfs=ext4"),
        "{args}"
    );
    assert!(args.contains("smartvm.overlay=disk:02020202-0202-0202-0202-020202020202"), "{args}");
    assert_eq!(plan.overlay.unwrap().size, 8 << 30);
    assert_eq!(plan.initramfs, None);
    assert_eq!(Orders::parse(args.as_bytes()), Ok(plan.orders));
    assert!(validate_for(&plan.config, &TARGET).iter().all(|problem| !problem.is_error()));
}

#[test]
fn what_runs_follows_ocis_rules() {
    assert_eq!(argv(Wanted::default()), ["/entry", "--flag", "serve"]);
    let command = words(&["test", "-v"]);
    assert_eq!(
        argv(Wanted { command: command.clone(), ..Wanted::default() }),
        ["/entry", "--flag", "test", "-v"]
    );
    let entrypoint = Some(words(&["/bin/sh"]));
    assert_eq!(argv(Wanted { entrypoint: entrypoint.clone(), ..Wanted::default() }), ["/bin/sh"]);
    assert_eq!(
        argv(Wanted { entrypoint, command: command.clone(), ..Wanted::default() }),
        ["/bin/sh", "test", "-v"]
    );
    assert_eq!(argv(Wanted { entrypoint: Some(Vec::new()), command, ..Wanted::default() }), ["test", "-v"]);
    let nothing = Wanted { entrypoint: Some(Vec::new()), ..Wanted::default() };
    assert_eq!(plan(&nothing, &parts(), &TARGET), Err(PlanError::NothingToRun));
}

#[test]
fn what_the_user_says_of_the_process_wins() {
    let process = planned(&Wanted::default()).orders.process;
    let pair = |name: &str, value: &str| (name.into(), value.into());
    assert_eq!(process.env, [pair("PATH", "/bin"), pair("MODE", "image"), pair("EMPTY", "")]);
    assert_eq!(process.workdir, Some("/srv".into()));
    assert_eq!(process.user, Some("web:staff".parse().unwrap()));
    let wanted = Wanted {
        env: vec![("MODE".into(), "mine=1".into()), ("NEW".into(), String::new())],
        workdir: Some("/tmp".into()),
        user: Some("0".into()),
        hostname: Some("box".into()),
        ..Wanted::default()
    };
    let orders = planned(&wanted).orders;
    assert_eq!(
        orders.process.env,
        [pair("PATH", "/bin"), pair("MODE", "mine=1"), pair("EMPTY", ""), pair("NEW", "")]
    );
    assert_eq!(orders.process.workdir, Some("/tmp".into()));
    assert_eq!(orders.process.user, Some("0".parse().unwrap()));
    assert_eq!(orders.hostname.as_deref(), Some("box"));
}

#[test]
fn writes_go_where_the_user_wants() {
    let memory = planned(&Wanted { writes: Writes::Memory { size: Some(1 << 20) }, ..Wanted::default() });
    assert_eq!((memory.config.drives.len(), memory.overlay), (1, None));
    assert_eq!(memory.orders.overlay, Overlay::Tmpfs { size: Some(1 << 20) });
    let nowhere = planned(&Wanted { writes: Writes::Nowhere, ..Wanted::default() });
    assert_eq!((nowhere.orders.overlay, nowhere.overlay), (Overlay::None, None));
    let odd = planned(&Wanted { writes: Writes::Disk { size: MIN_DISK + 1 }, ..Wanted::default() });
    assert_eq!(odd.overlay.unwrap().size, 17 << 20);
    for size in [0, MIN_DISK - 1, MAX_DISK + 1] {
        let wanted = Wanted { writes: Writes::Disk { size }, ..Wanted::default() };
        assert_eq!(plan(&wanted, &parts(), &TARGET), Err(PlanError::DiskSize { size }));
    }
}

#[test]
fn a_squashfs_is_the_first_disk() {
    let parts = Parts { file_system: FileSystem::Squashfs, root_id: None, ..parts() };
    let plan = plan(&Wanted::default(), &parts, &TARGET).unwrap();
    assert_eq!(plan.orders.root.disk, Disk::Device("vda".into()));
    assert_eq!(plan.config.drives[0].drive_id, IMAGE_DRIVE);
    // `root=` comes with a root device, and one such goes first, whatever the order.
    assert!(plan.config.drives.iter().all(|drive| !drive.is_root_device));
}

#[test]
fn what_does_not_fit_on_the_line_goes_into_an_initramfs_of_its_own() {
    let env = vec![("LONG".to_owned(), "x".repeat(3000))];
    let plan = planned(&Wanted { env, ..Wanted::default() });
    let own = plan.initramfs.unwrap();
    assert_eq!(own.base, parts().initramfs);
    assert_eq!(plan.config.boot_source.initrd_path, Some(own.path));
    assert_eq!(Orders::parse(own.orders.as_bytes()), Ok(plan.orders));
}

#[test]
fn what_is_too_long_is_named_with_the_way_out() {
    let env = vec![("LONG".to_owned(), "x".repeat(MAX_ORDERS))];
    let error = plan(&Wanted { env, ..Wanted::default() }, &parts(), &TARGET).unwrap_err();
    assert!(matches!(error, PlanError::TooLong { command: 1..1000, env: MAX_ORDERS.. }), "{error}");
    assert!(error.hint().unwrap().contains("variables"), "{error:?}");
    let command = words(&[&"x".repeat(MAX_ORDERS)]);
    let error = plan(&Wanted { command, ..Wanted::default() }, &parts(), &TARGET).unwrap_err();
    assert!(error.hint().unwrap().contains("script"), "{error:?}");
    let kernel_args = "x".repeat(MAX_CMDLINE);
    let error = plan(&Wanted { kernel_args, ..Wanted::default() }, &parts(), &TARGET).unwrap_err();
    assert!(matches!(error, PlanError::Boot(BootPlanError::TooLong { .. })), "{error}");
}

#[test]
fn who_asked_for_what_cannot_be_is_told() {
    let mut parts = parts();
    parts.process.user = Some("a:b:c".into());
    let error = plan(&Wanted::default(), &parts, &TARGET).unwrap_err();
    assert_eq!(error.to_string(), "`a:b:c`, which the image asks for, is no user");
    assert_eq!(error.code(), Code::InvalidImage);
    let wanted = Wanted { user: Some("a:b:c".into()), ..Wanted::default() };
    assert_eq!(plan(&wanted, &parts, &TARGET).unwrap_err().code(), Code::InvalidConfig);
    parts.process.user = None;
    parts.process.env = vec!["=x".into()];
    let error = plan(&Wanted::default(), &parts, &TARGET).unwrap_err();
    assert_eq!(error, PlanError::BadVariable { variable: "=x".into(), of_image: true });
}

proptest! {
    #[test]
    fn the_limit_of_the_command_line_holds_whatever_is_asked(
        command in proptest::collection::vec("\\PC{0,200}", 0..12), env in proptest::collection::vec(("[A-Z]{1,8}", "\\PC{0,300}"), 0..12),
        kernel_args in "[a-z= ]{0,400}", pci: bool,
    ) {
        let wanted = Wanted { command, env, kernel_args, ..Wanted::default() };
        let target = Target { pci, version: FirecrackerVersion(1, 13, 0), ..TARGET };
        match plan(&wanted, &parts(), &target) {
            Ok(plan) => {
                let line = plan.boot.command_line();
                prop_assert!(line.len() + boot::appended(&plan.config, &target) <= MAX_CMDLINE);
                let orders = plan.initramfs.map_or(line, |own| own.orders);
                prop_assert_eq!(Orders::parse(orders.as_bytes()), Ok(plan.orders));
            }
            Err(PlanError::Boot(BootPlanError::Orders(_))) => prop_assert!(wanted.command.iter().any(String::is_empty)),
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}
