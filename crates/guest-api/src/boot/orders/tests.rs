use proptest::prelude::*;

use super::super::Principal;
use super::*;

fn bytes(of: &'static str) -> impl Strategy<Value = OsString> {
    proptest::string::bytes_regex(of).expect("a pattern").prop_map(OsString::from_vec)
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<[u8; 16]>().prop_map(Uuid)
}

fn principal() -> impl Strategy<Value = Principal> {
    prop_oneof![
        (0..u32::MAX).prop_map(Principal::Id),
        "[a-zß_][a-z0-9ß_ %=\"-]{0,20}".prop_map(Principal::Name),
    ]
}

prop_compose! {
    fn user()(user in principal(), group in proptest::option::of(principal())) -> User {
        User { user, group }
    }
}

fn root() -> impl Strategy<Value = Root> {
    let device = || "[a-z0-9]{1,31}".prop_map(Disk::Device);
    prop_oneof![
        uuid().prop_map(|uuid| Root { disk: Disk::Uuid(uuid), file_system: FileSystem::Ext4 }),
        device().prop_map(|disk| Root { disk, file_system: FileSystem::Ext4 }),
        device().prop_map(|disk| Root { disk, file_system: FileSystem::Squashfs }),
    ]
}

fn overlay() -> impl Strategy<Value = Overlay> {
    prop_oneof![
        uuid().prop_map(Overlay::Disk),
        proptest::option::of(1..=u64::MAX).prop_map(|size| Overlay::Tmpfs { size }),
        Just(Overlay::None),
        Just(Overlay::Private),
    ]
}

prop_compose! {
    fn process()(
        program in bytes("(?s-u)[^\0]{1,20}"),
        arguments in proptest::collection::vec(bytes("(?s-u)[^\0]{0,20}"), 0..6),
        env in proptest::collection::vec((bytes("(?s-u)[^\0=]{1,10}"), bytes("(?s-u)[^\0]{0,20}")), 0..6),
        workdir in proptest::option::of(bytes("(?s-u)/[^\0]{0,20}")),
        user in proptest::option::of(user()),
    ) -> Process {
        Process { argv: [vec![program], arguments].concat(), env, workdir, user }
    }
}

prop_compose! {
    fn orders()(
        root in root(),
        overlay in overlay(),
        hostname in proptest::option::of("[a-zA-Z0-9.-]{1,64}"),
        process in process(),
    ) -> Orders {
        let writable = root.file_system == FileSystem::Ext4;
        let overlay = if overlay == Overlay::Private && !writable { Overlay::None } else { overlay };
        Orders { root, overlay, hostname, process }
    }
}

/// What the kernel does with a word: a name with a dot before the first `=` is a parameter of a module.
fn is_left_alone_by_the_kernel(word: &str) -> bool {
    let name = word.split('=').next().unwrap_or(word);
    name.contains('.') && word != "--" && word.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"')
}

proptest! {
    #[test]
    fn orders_come_back_from_among_other_words(orders in orders()) {
        let encoded = orders.encode().expect("sound orders");
        prop_assert!(encoded.split(' ').all(is_left_alone_by_the_kernel), "{}", encoded);
        let line = format!("console=ttyS0 dyndbg=\"x y\" {encoded} panic=1\n");
        prop_assert_eq!(Orders::parse(line.as_bytes()), Ok(orders));
    }

    #[test]
    fn garbage_is_orders_or_an_error_that_names_a_parameter(line in "(smartvm\\.(root|rootfs|overlay|user|env|argv|x)=?[a-z0-9:=%\"-]{0,12} ){0,6}") {
        match Orders::parse(line.as_bytes()) {
            Ok(orders) => prop_assert_eq!(Orders::parse(orders.encode().expect("sound").as_bytes()), Ok(orders)),
            Err(error) => prop_assert!(error.parameter.starts_with("smartvm."), "{}", error),
        }
    }

    #[test]
    fn any_bytes_are_read(line: Vec<u8>) {
        let _ = Orders::parse(&line);
    }
}

fn sample() -> Orders {
    Orders {
        root: Root { disk: Disk::Uuid(Uuid([0x11; 16])), file_system: FileSystem::Ext4 },
        overlay: Overlay::Tmpfs { size: None },
        hostname: Some("web-1".into()),
        process: Process {
            argv: vec!["/bin/sh".into(), "-c".into(), "echo \"hä\" 100% a=b".into(), "".into()],
            env: vec![("PATH".into(), "/bin:/usr/bin".into()), ("EMPTY".into(), "".into())],
            workdir: Some("/srv".into()),
            user: Some("7:staff".parse().unwrap()),
        },
    }
}

#[test]
fn the_words_are_these() {
    let expected = "smartvm.root=uuid:11111111-1111-1111-1111-111111111111 smartvm.rootfs=ext4 smartvm.overlay=tmpfs \
        smartvm.hostname=web-1 smartvm.user=7:staff smartvm.workdir=/srv smartvm.env=PATH=/bin:/usr/bin \
        smartvm.env=EMPTY= smartvm.argv=/bin/sh smartvm.argv=-c \
        smartvm.argv=echo%20%22h%C3%A4%22%20100%25%20a=b smartvm.argv=";
    assert_eq!(sample().encode().unwrap(), expected);
}

fn refused(change: impl FnOnce(&mut Orders)) -> String {
    let mut orders = sample();
    change(&mut orders);
    orders.encode().unwrap_err().to_string()
}

#[test]
fn what_cannot_be_ordered_is_named() {
    assert_eq!(refused(|orders| orders.process.argv.clear()), "boot parameter smartvm.argv is missing");
    assert_eq!(
        refused(|orders| orders.process.argv.push("a\0b".into())),
        "boot parameter smartvm.argv has a NUL byte"
    );
    assert_eq!(
        refused(|orders| orders.process.env.push(("A=B".into(), "c".into()))),
        "boot parameter smartvm.env has a value of no known form"
    );
    assert!(refused(|orders| orders.hostname = Some("a b".into())).contains("smartvm.hostname"));
    assert!(refused(|orders| orders.process.workdir = Some("srv".into())).contains("smartvm.workdir"));
    assert!(
        refused(|orders| orders.root.file_system = FileSystem::Squashfs)
            .contains("smartvm.root is a squashfs")
    );
    assert!(refused(|orders| orders.root.disk = Disk::Device("../x".into())).contains("smartvm.root "));
    assert!(
        refused(|orders| orders.process.argv.push("x".repeat(MAX_ORDERS).into()))
            .contains("smartvm.argv is too long")
    );
}

#[test]
fn what_cannot_be_understood_is_named() {
    let good = sample().encode().unwrap();
    let error = |line: String| Orders::parse(line.as_bytes()).unwrap_err().to_string();
    for (more, message) in [
        ("smartvm.nosuch=1", "boot parameter smartvm.nosuch is not known to this guest init"),
        ("smartvm.rootfs=ext4", "boot parameter smartvm.rootfs is given twice"),
        ("smartvm.argv=%0", "boot parameter smartvm.argv has a % that begins no byte"),
        ("smartvm.argv=%00", "boot parameter smartvm.argv has a NUL byte"),
        ("smartvm.argv", "boot parameter smartvm.argv has a value of no known form"),
        ("smartvm.env=A", "boot parameter smartvm.env has a value of no known form"),
        ("smartvm.", "boot parameter smartvm. has a value of no known form"),
    ] {
        assert_eq!(error(format!("{good} {more}")), message);
    }
    assert_eq!(error(String::new()), "boot parameter smartvm.root is missing");
    assert_eq!(
        error(good.replace("rootfs=ext4", "rootfs=xfs")),
        "boot parameter smartvm.rootfs is neither ext4 nor squashfs"
    );
}
