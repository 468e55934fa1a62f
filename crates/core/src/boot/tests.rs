use proptest::prelude::*;
use smartvm_guest_api::boot::{Disk, FileSystem, Overlay, Process, Root};

use super::*;

const BOOT: Boot<'_> =
    Boot { arch: Arch::X86_64, console: true, pci: false, orders: None, extra: "", appended: 0 };

fn line(boot: Boot<'_>) -> String {
    plan(&boot).unwrap().command_line()
}

fn orders(argument: &str) -> Orders {
    Orders {
        root: Root { disk: Disk::Device("vda".into()), file_system: FileSystem::Ext4 },
        overlay: Overlay::Tmpfs { size: None },
        hostname: None,
        process: Process {
            argv: vec!["/bin/echo".into(), argument.into()],
            env: Vec::new(),
            workdir: None,
            user: None,
        },
    }
}

#[test]
fn the_default_line() {
    assert_eq!(
        line(BOOT),
        "console=ttyS0 reboot=k panic=-1 quiet 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd pci=off \
         random.trust_cpu=on cryptomgr.notests"
    );
    let silent = line(Boot { console: false, pci: true, ..BOOT });
    assert!(silent.contains("8250.nr_uarts=0") && !silent.contains("console=") && !silent.contains("pci="));
    let arm = line(Boot { arch: Arch::Aarch64, ..BOOT });
    assert_eq!(arm, "console=ttyS0 panic=-1 quiet pci=off random.trust_cpu=on cryptomgr.notests");
}

#[test]
fn what_the_user_says_wins() {
    let line = line(Boot {
        extra: "panic=5 pci=nomsi  8250.nr-uarts=2\tconsole=tty0 console=ttyS0 loglevel=7",
        ..BOOT
    });
    assert!(
        line.ends_with(" panic=5 pci=nomsi 8250.nr-uarts=2 console=tty0 console=ttyS0 loglevel=7"),
        "{line}"
    );
    for gone in ["panic=-1", "pci=off", "nr_uarts=1", "quiet"] {
        assert!(!line.contains(gone), "{gone} in {line}");
    }
    assert_eq!(line.matches("console=").count(), 2);
}

#[test]
fn quotes_and_the_words_for_init_are_kept() {
    let orders = orders("x");
    let line = line(Boot { extra: "a=\"b c\" -- d quiet", orders: Some(&orders), ..BOOT });
    assert!(line.ends_with(" smartvm.argv=x a=\"b c\" -- d quiet"), "{line}");
    assert!(line.contains(" quiet 8250"), "the word for init is none for the kernel");
}

#[test]
fn what_cannot_be_is_refused() {
    let error = |extra| plan(&Boot { extra, ..BOOT }).unwrap_err();
    assert_eq!(error("a\0b"), BootPlanError::Nul);
    assert_eq!(error("a=\"b c"), BootPlanError::OpenQuote("a=\"b c".into()));
    assert_eq!(error("smartvm.argv=x"), BootPlanError::Reserved("smartvm.argv=x".into()));
    assert_eq!(error("\"smartvm.argv=x\""), BootPlanError::Reserved("\"smartvm.argv=x\"".into()));
    assert!(plan(&Boot { extra: "-- smartvm.x", ..BOOT }).is_ok(), "another init's own business");
    let orders = orders("hello");
    let forged = plan(&Boot { extra: "-- smartvm.argv=x", orders: Some(&orders), ..BOOT });
    assert_eq!(forged, Err(BootPlanError::Reserved("smartvm.argv=x".into())), "guest init would obey it");
}

#[test]
fn orders_that_do_not_fit_go_into_the_initramfs() {
    let short = orders("hello");
    let planned = plan(&Boot { orders: Some(&short), ..BOOT }).unwrap();
    assert_eq!(planned.orders_in_initramfs, None);
    assert_eq!(Orders::parse(planned.command_line().as_bytes()), Ok(short));
    let long = orders(&"x".repeat(2000));
    let planned = plan(&Boot { orders: Some(&long), ..BOOT }).unwrap();
    assert_eq!(Orders::parse(planned.orders_in_initramfs.unwrap().as_bytes()), Ok(long));
    assert!(planned.parameters.iter().all(|parameter| parameter.origin == Origin::Ours));
}

#[test]
fn the_limit_counts_what_firecracker_adds() {
    let room = MAX_CMDLINE - line(BOOT).len() - 1 - 50;
    let fits = "a".repeat(room);
    assert_eq!(line(Boot { extra: &fits, appended: 50, ..BOOT }).len(), MAX_CMDLINE - 50);
    let error = plan(&Boot { extra: &(fits + "a"), appended: 50, ..BOOT }).unwrap_err();
    assert_eq!(error, BootPlanError::TooLong { length: 2048, appended: 50 });
}

#[test]
fn every_parameter_has_a_reason() {
    let planned = plan(&BOOT).unwrap();
    assert!(
        planned.parameters.iter().all(|parameter| parameter.why.len() > 20 && !parameter.why.ends_with('.'))
    );
    assert_eq!(planned.to_string().lines().count(), planned.parameters.len());
}

proptest! {
    #[test]
    fn no_words_of_the_user_are_lost_and_the_limit_holds(
        extra in "[ -~]{0,300}", appended in 0usize..3000, console: bool, pci: bool, argument in "[ -~]{0,400}",
    ) {
        let orders = orders(&argument);
        let boot = Boot { arch: Arch::X86_64, console, pci, orders: Some(&orders), extra: &extra, appended };
        match plan(&boot) {
            Ok(planned) => {
                let line = planned.command_line();
                prop_assert!(line.len() + appended <= MAX_CMDLINE);
                let users: Vec<&str> = planned.parameters.iter()
                    .filter(|parameter| parameter.origin == Origin::User)
                    .map(|parameter| parameter.text.as_str())
                    .collect();
                let said: Vec<&str> = extra.split_ascii_whitespace().collect();
                let again = users.join(" ");
                if !extra.contains('"') {
                    // A `--` with nothing behind it says nothing.
                    let said = said.join(" ");
                    prop_assert_eq!(again.as_str(), said.strip_suffix(" --").unwrap_or(if said == "--" { "" } else { &said }));
                }
                let told = planned.orders_in_initramfs.as_deref().unwrap_or(&line);
                if !users.contains(&"--") {
                    prop_assert_eq!(Orders::parse(told.as_bytes()), Ok(orders.clone()));
                }
            }
            Err(BootPlanError::TooLong { length, .. }) => prop_assert!(length > MAX_CMDLINE),
            Err(_) => prop_assert!(extra.contains('"') || extra.contains("smartvm.")),
        }
    }

    #[test]
    fn no_text_makes_it_panic(extra: String, appended: u16) {
        let _ = plan(&Boot { extra: &extra, appended: appended.into(), ..BOOT });
    }
}
