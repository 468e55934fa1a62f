//! Licences of everything that the workspace is built from.

use serde_json::Value;

use super::{Findings, spdx, text};

/// Every package with a licence that we do not accept, or with none that can be read.
pub(super) fn check(metadata: &Value) -> Findings {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut findings: Findings = packages.iter().filter_map(objection).collect();
    if packages.is_empty() {
        findings.push("`cargo metadata` lists no package".to_owned());
    }
    findings
}

fn objection(package: &Value) -> Option<String> {
    let (name, licence) = (text(package, "name"), text(package, "license"));
    let problem = match spdx::accepted(licence) {
        Ok(true) => return None,
        Ok(false) => format!("`{licence}` is not among the accepted licences"),
        Err(_) if licence.is_empty() => "it declares no licence".to_owned(),
        Err(error) => format!("`{licence}` cannot be read: {error}"),
    };
    Some(format!("{name} {}: {problem}", text(package, "version")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn the_package_is_named_with_its_licence() {
        let metadata = json!({"packages": [
            {"name": "good", "version": "1.0.0", "license": "MIT OR Apache-2.0"},
            {"name": "bad", "version": "2.0.0", "license": "AGPL-3.0-only"},
            {"name": "mute", "version": "3.0.0", "license": null},
        ]});
        assert_eq!(
            super::check(&metadata),
            [
                "bad 2.0.0: `AGPL-3.0-only` is not among the accepted licences",
                "mute 3.0.0: it declares no licence",
            ]
        );
    }
}
