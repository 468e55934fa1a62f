//! Everything that is wrong with a config, found before anything starts.
//!
//! First the text: JSON of Firecracker's fields, else there is nothing to check. Then all at once: what this Firecracker
//! is too old for, what cannot work at all, and what this host lacks.

use std::collections::HashSet;
use std::path::PathBuf;

use smartvm_core::problem::{ProblemCode, Severity};
use smartvm_core::spec::MachineSpec;
use smartvm_core::target::{Arch, FirecrackerVersion, Target};
use smartvm_core::validate::validate_for;
use smartvm_firecracker::Version;
use smartvm_firecracker::capability::{Capability, Requires};
use smartvm_firecracker::config_file::{ConfigError, VmConfig};
use smartvm_host::checks::check_host;

use crate::config::{Config, Finding, InvalidConfig};

/// A config without errors, ready to be started.
#[derive(Debug, Clone)]
pub struct Checked {
    /// What it says, with absolute paths.
    pub spec: MachineSpec,
    /// What may not be meant so.
    pub warnings: Vec<Finding>,
    /// The JSON for Firecracker, with absolute paths.
    pub(crate) json: String,
    pub(crate) file: Option<PathBuf>,
}

/// Checks a config for a Firecracker of this version on this host. Looks at files; blocks for as long as that takes.
///
/// # Errors
/// All that was found, when there is an error among it.
pub fn check_config(config: &Config, version: &Version, pci: bool) -> Result<Checked, InvalidConfig> {
    let invalid = |findings| InvalidConfig { file: config.file.clone(), findings };
    let one = |finding| invalid(vec![finding]);
    let mut vm = VmConfig::parse(&config.text).map_err(|error| one(syntax(&config.text, error)))?;
    vm.resolve_paths(&config.base).map_err(|error| one(syntax(&config.text, error)))?;
    let spec = spec(&vm).map_err(|finding| one(*finding))?;
    let (major, minor, patch) = version.number();
    let target = Target { arch: Arch::HOST, version: FirecrackerVersion(major, minor, patch), pci };

    let mut findings: Vec<Finding> = too_new(&vm, version, pci);
    findings.extend(ignored(&vm));
    findings.extend(validate_for(&spec, &target).into_iter().map(Finding::from));
    let told: HashSet<String> = findings
        .iter()
        .filter(|finding| finding.is_error())
        .filter_map(|finding| finding.path.clone())
        .collect();
    for problem in check_host(&spec, &config.base, &target) {
        // One word about a field is enough.
        // A vsock socket that a dead VMM left is removed before the start, as the API's is.
        let handled = problem.code == ProblemCode::UdsPathExists && !problem.is_error();
        if !told.contains(&problem.path) && !handled {
            findings.push(problem.into());
        }
    }
    if findings.iter().any(Finding::is_error) {
        return Err(invalid(findings));
    }
    Ok(Checked { spec, warnings: findings, json: vm.to_json(), file: config.file.clone() })
}

/// The part of a config that the checks look at. It has the same form, so this does not fail on what was read.
fn spec(vm: &VmConfig) -> Result<MachineSpec, Box<Finding>> {
    serde_json::to_value(vm).and_then(serde_json::from_value).map_err(|error| {
        Box::new(Finding {
            code: "JSON".to_owned(),
            severity: Severity::Error,
            path: None,
            at: None,
            what: error.to_string(),
            hint: "Write it as Firecracker's documentation does.".to_owned(),
        })
    })
}

fn syntax(text: &str, error: ConfigError) -> Finding {
    let hint = if text.trim().is_empty() {
        "The file is empty: write the machine into it, as for `firecracker --config-file`.".to_owned()
    } else if text.starts_with('\u{feff}') {
        "The file begins with a byte order mark: save it as UTF-8 without one.".to_owned()
    } else if !text.trim_start().starts_with('{') {
        "The file must be one JSON object: { \"boot-source\": …, \"drives\": … }".to_owned()
    } else {
        error.hint.unwrap_or_else(|| remedy(&error.problem).to_owned())
    };
    Finding {
        code: "JSON".to_owned(),
        severity: Severity::Error,
        path: Some(error.field).filter(|field| !field.is_empty()),
        at: (error.line > 0).then_some((error.line, error.column)),
        what: error.problem,
        hint,
    }
}

/// What to write instead, by what serde expected.
fn remedy(problem: &str) -> &'static str {
    let expected = problem.rsplit_once("expected ").map_or("", |(_, expected)| expected);
    match expected {
        "u8" => "Write a whole number from 0 to 255, without quotes.",
        "u16" => "Write a whole number from 0 to 65535, without quotes.",
        "u32" | "u64" | "usize" | "i32" | "i64" => "Write a whole number, not negative, without quotes.",
        "a boolean" => "Write true or false, without quotes.",
        "a string" => "Write it in double quotes.",
        "a sequence" => "Write a list: [ … ].",
        _ if expected.starts_with("struct") => "Write an object: { … }.",
        _ if problem.starts_with("duplicate field") => "Keep one of them: which one counts would be a guess.",
        _ => "See Firecracker's documentation of the field.",
    }
}

/// What this Firecracker is too old for, by section.
fn too_new(vm: &VmConfig, version: &Version, pci: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut section = |path: String, required: Vec<Capability>| {
        for capability in required.into_iter().filter(|capability| !capability.is_in(version)) {
            findings.push(unsupported(Some(path.clone()), capability, version));
        }
    };
    let of = |part: Option<&dyn Requires>| part.map(Requires::requires).unwrap_or_default();
    section("balloon".into(), of(vm.balloon.as_ref().map(|part| part as &dyn Requires)));
    section("machine-config".into(), of(vm.machine_config.as_ref().map(|part| part as &dyn Requires)));
    section("metrics".into(), of(vm.metrics.as_ref().map(|part| part as &dyn Requires)));
    section("mmds-config".into(), of(vm.mmds_config.as_ref().map(|part| part as &dyn Requires)));
    section("memory-hotplug".into(), of(vm.memory_hotplug.as_ref().map(|part| part as &dyn Requires)));
    for (index, interface) in vm.network_interfaces.iter().enumerate() {
        section(format!("network-interfaces[{index}]"), interface.requires());
    }
    for (index, pmem) in vm.pmem.iter().flatten().enumerate() {
        section(format!("pmem[{index}]"), pmem.requires());
    }
    // No Firecracker reads that section from a file, so none is too old for it.
    let read = VmConfig { serial: None, ..vm.clone() };
    let named: Vec<Capability> = read.requires().into_iter().filter(|one| !one.is_in(version)).collect();
    for capability in named {
        // What only the config as a whole knows (an inline CPU template).
        if !findings.iter().any(|finding| finding.what.starts_with(capability.what())) {
            findings.push(unsupported(None, capability, version));
        }
    }
    if pci && !Capability::FLAG_ENABLE_PCI.is_in(version) {
        findings.push(unsupported(None, Capability::FLAG_ENABLE_PCI, version));
    }
    findings
}

fn unsupported(path: Option<String>, capability: Capability, version: &Version) -> Finding {
    Finding {
        code: "UNSUPPORTED_VERSION".to_owned(),
        severity: Severity::Error,
        path,
        at: None,
        what: format!("{} needs {}; this is {version}", capability.what(), capability.needs()),
        hint: "Use a newer Firecracker (SMARTVM_FIRECRACKER or --firecracker), or leave it out.".to_owned(),
    }
}

/// Sections that Firecracker would pass over in silence.
fn ignored(vm: &VmConfig) -> Vec<Finding> {
    let finding = |section: smartvm_firecracker::config_file::IgnoredSection| Finding {
        code: "IGNORED_SECTION".to_owned(),
        severity: Severity::Warning,
        path: Some(section.name),
        at: None,
        what: "Firecracker ignores this section of a config file".to_owned(),
        hint: match section.nearest {
            Some(nearest) => format!("Did you mean `{nearest}`? Else remove it."),
            None => "Remove it, or send it through the API.".to_owned(),
        },
    };
    vm.ignored_sections().into_iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(json: serde_json::Value) -> Vec<Finding> {
        let config = Config::from_json(json.to_string(), "/nowhere");
        match check_config(&config, &Version::new(1, 12, 1), false) {
            Ok(checked) => checked.warnings,
            Err(invalid) => invalid.findings,
        }
    }

    #[test]
    fn problems_of_every_kind_are_told_together() {
        let found = findings(serde_json::json!({
            "boot-source": {"kernel_image_path": "vmlinux"},
            "machine-config": {"vcpu_count": 33, "mem_size_mib": 128},
            "drives": [],
            "pmem": [{"id": "p", "path_on_host": "p.img"}],
            "drivers": [],
        }));
        let codes: Vec<&str> = found.iter().map(|finding| finding.code.as_str()).collect();
        for code in ["UNSUPPORTED_VERSION", "IGNORED_SECTION", "VCPU_COUNT_OUT_OF_RANGE", "FILE_NOT_FOUND"] {
            assert!(codes.contains(&code), "{code} in {found:#?}");
        }
        let old = found.iter().find(|finding| finding.code == "UNSUPPORTED_VERSION").unwrap();
        assert_eq!(old.path.as_deref(), Some("pmem[0]"));
    }

    #[test]
    fn a_section_that_no_firecracker_reads_makes_none_too_old() {
        let found = findings(serde_json::json!({
            "boot-source": {"kernel_image_path": "vmlinux"}, "drives": [], "serial": {"serial_out_path": "s"},
        }));
        let of_serial = found
            .iter()
            .filter(|finding| finding.what.contains("serial") || finding.path.as_deref() == Some("serial"));
        assert_eq!(of_serial.map(|finding| finding.code.as_str()).collect::<Vec<_>>(), ["IGNORED_SECTION"]);
    }

    #[test]
    fn a_byte_order_mark_is_named() {
        let config = Config::from_json("\u{feff}{}", "/");
        let invalid = check_config(&config, &Version::new(1, 12, 1), false).unwrap_err();
        assert!(invalid.findings[0].hint.contains("byte order mark"), "{invalid:?}");
    }

    #[test]
    fn a_relative_path_means_the_configs_folder() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("guest"), smartvm_core::bare_metal::Guest::Echo.elf()).unwrap();
        let text = r#"{"boot-source": {"kernel_image_path": "guest"}, "drives": []}"#;
        let config = Config::from_json(text, dir.path());
        let checked = check_config(&config, &Version::new(1, 12, 1), false).unwrap();
        assert_eq!(checked.spec.boot_source.kernel_image_path, dir.path().join("guest"));
        assert!(checked.json.contains(&*dir.path().join("guest").to_string_lossy()));
    }

    #[test]
    fn a_syntax_error_has_line_column_and_field() {
        let config = Config::from_json("{\n \"drives\": [{\"drive_id\": 1}]}", "/");
        let invalid = check_config(&config, &Version::new(1, 12, 1), false).unwrap_err();
        let [finding] = invalid.findings.as_slice() else { panic!("{invalid:?}") };
        assert_eq!(finding.path.as_deref(), Some("drives[0].drive_id"));
        assert_eq!(finding.at.map(|at| at.0), Some(2));
    }
}
