//! Config files against the real binary: what it boots from we read, and what we write it boots from.

use smartvm_core::bare_metal::Guest;
use smartvm_firecracker::{ConfigFile, VmConfig};
use tempfile::TempDir;

use crate::support::Firecracker;

/// Boots a guest that resets at once from this file. `Err`: what Firecracker says.
fn boots(text: &str) -> Result<(), String> {
    let dir = TempDir::new().unwrap();
    for name in ["disk", "log", "metrics"] {
        std::fs::write(dir.path().join(name), [0; 4096]).unwrap();
    }
    std::fs::write(dir.path().join("kernel"), Guest::ByteThenReset.elf()).unwrap();
    std::fs::write(dir.path().join("template"), "{}").unwrap();
    std::fs::write(dir.path().join("vm.json"), text).unwrap();
    let mut vmm = Firecracker::start_in(dir, &["--no-api", "--config-file", "vm.json"]);
    match vmm.wait().success() {
        true => Ok(()),
        false => Err(vmm.output()),
    }
}

const BASE: &str = r#""boot-source":{"kernel_image_path":"kernel"},"drives":[]"#;

#[test]
fn what_firecracker_boots_from_is_read_and_written_back() {
    let full = r#"{"drives":[{"path_on_host":"disk","is_root_device":true,"drive_id":"r","is_read_only":null,
        "rate_limiter":{"bandwidth":{"refill_time":1,"size":2,"note":"x"},"ops":null}}],
        "machine-config":{"mem_size_mib":4,"vcpu_count":1,"cpu_template":null},"x-note":{"a":[1]},
        "boot-source":{"boot_args":"a","kernel_image_path":"kernel","initrd_path":null},
        "vsock":{"uds_path":"v","guest_cid":3,"vsock_id":"old"},"balloon":{"deflate_on_oom":false,"amount_mib":1},
        "entropy":{},"logger":{"level":"warn","log_path":"log"},"metrics":{"metrics_path":"metrics","z":1},
        "cpu-config":"template","network-interfaces":[],"mmds-config":null}"#;
    let sections = [
        "",
        r#","unknown":1,"z":1,"z":2"#,
        r#","pmem":null,"memory-hotplug":null,"serial":null"#,
        r#","pmem":[]"#,
        r#","balloon":null,"cpu-config":null,"logger":null,"machine-config":null,"metrics":null"#,
        r#","machine-config":[1,4]"#,
        r#","cpu-config":"template""#,
        r#","vsock":[null,3,"v"]"#,
    ];
    let array = r#"[null,[],{"kernel_image_path":"kernel"},null,null,null,null,null,[],null,null]"#;
    let texts = sections.iter().map(|section| format!("{{{BASE}{section}}}"));
    for text in texts.chain([full.to_owned(), array.to_owned(), format!(" \n\t{{{BASE}}}\r\n")]) {
        boots(&text).unwrap_or_else(|output| panic!("{text}: {output}"));
        let file = ConfigFile::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        boots(&file.to_json()).unwrap_or_else(|output| panic!("{}: {output}", file.to_json()));
        boots(&file.config.to_json()).unwrap_or_else(|output| panic!("{}: {output}", file.config.to_json()));
        assert_eq!(VmConfig::parse(&file.to_json()).unwrap(), file.config, "{text}");
    }
}

#[test]
fn what_firecracker_cannot_read_is_refused_at_the_same_place_for_the_same_reason() {
    for text in [
        "",
        "[]",
        "{\"drives\":[]}",
        "{\"boot-source\":{\"kernel_image_path\":\"kernel\"}}",
        "{\"boot-source\":{\"kernel_image_path\":\"kernel\"},\"drives\":null}",
        "{\"boot-source\":{\"kernel_image_path\":\"kernel\"},\n\"drives\":[],}",
        "{\"boot-source\":{\"kernel_image_path\":\"kernel\",\n  \"x\":1},\"drives\":[]}",
        "{\"boot-source\":{\"kernel_image_path\":\"kernel\"},\"drives\":[],\"drives\":[]}",
        "{\"boot-source\":{\"kernel_image_path\":\"kernel\"},\"drives\":[],\"vsock\":{\"guest_cid\":\"3\"}}",
        "{\"boot-source\":{\"kernel_image_path\":\"kernel\"},\"drives\":[{\"drive_id\":\"a\"}]}",
        "{\"boot-source\":{\"kernel_image_path\":\"kernel\"},\"drives\":[],\"machine-config\":{\"vcpu_count\":999}}",
        "{\"boot-source\":{\"kernel_image_path\":\"kernel\"},\"drives\":[]} {}",
        "\u{feff}{}",
        "// no comments\n{}",
    ] {
        let output = boots(text).unwrap_err();
        let error = VmConfig::parse(text).expect_err(text);
        let theirs = output.split("Invalid JSON: ").nth(1).unwrap_or_else(|| panic!("{text}: {output}"));
        let place = format!("line {} column {}", error.line, error.column);
        assert!(theirs.contains(&place), "{text}: {error}\n{theirs}");
        let kind = error.problem.split(['`', ',']).next().unwrap();
        if text != "[]" {
            assert!(theirs.starts_with(kind), "{text}: {error}\n{theirs}");
        }
    }
}
