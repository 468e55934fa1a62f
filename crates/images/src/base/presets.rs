//! What the presets mean today: which kernel and which root of the Firecracker CI's bucket.
//!
//! The bucket has a folder per *train*: `firecracker-ci/v1.7/` and the like, and for some time now one per day of building,
//! `firecracker-ci/20260717-5ac3f5ffdcd7-0/`; in it one per architecture, and in that `vmlinux-6.1.176` (and its `.config`, and
//! variants like `-no-acpi`) and `ubuntu-24.04.squashfs` or `.ext4`.

use smartvm_core::target::{Arch, FirecrackerVersion};
use url::Url;

use super::bucket::{self, Object};
use super::{Artifact, BaseError, Place, Preset, Resolved, RootfsType};
use crate::download::{Downloader, shown};
use crate::release::{Releases, Version, below};

/// The folder of all trains.
const ROOT: &str = "firecracker-ci/";

/// The train and the release of the preset `lts`.
const LTS_TRAIN: &str = "v1.7";
const LTS_FIRECRACKER: Version = Version(FirecrackerVersion(1, 7, 0));

/// How many trains, newest first, are looked at for one that has everything: the newest may be about to be filled.
const MOST_TRAINS: usize = 8;

/// A train's place in the order of age.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Age {
    /// The older kind: by version.
    Version(u32, u32),
    /// The newer kind: by day, then by name.
    Day(u32, String),
}

/// What `latest` is at this moment.
pub(super) async fn latest(
    downloader: &Downloader,
    bases: &[Url],
    releases: &Releases,
    arch: Arch,
) -> Result<Resolved, BaseError> {
    let listing = bucket::list(downloader, bases, ROOT).await?;
    let mut trains: Vec<(Age, &str)> = listing
        .prefixes
        .iter()
        .filter_map(|prefix| prefix.strip_prefix(ROOT)?.strip_suffix('/'))
        .filter_map(|train| Some((age(train)?, train)))
        .collect();
    trains.sort();
    for (age, train) in trains.iter().rev().take(MOST_TRAINS) {
        let Some((kernel, rootfs, kind)) = choose(downloader, bases, train, arch).await? else { continue };
        let newest = releases.latest().await?;
        let firecracker = match age {
            // A train of a version is for that version; of its patches the release page names only the newest.
            Age::Version(major, minor) if (newest.0.0, newest.0.1) != (*major, *minor) => {
                Version(FirecrackerVersion(*major, *minor, 0))
            }
            _ => newest,
        };
        return Ok(resolved(Preset::Latest, arch, bases, train, firecracker, kernel, rootfs, kind));
    }
    Err(BaseError::NothingThere { preset: Preset::Latest, arch, looked: ROOT.to_owned() })
}

/// What `lts` is.
pub(super) async fn lts(downloader: &Downloader, bases: &[Url], arch: Arch) -> Result<Resolved, BaseError> {
    match choose(downloader, bases, LTS_TRAIN, arch).await? {
        Some((kernel, rootfs, kind)) => {
            Ok(resolved(Preset::Lts, arch, bases, LTS_TRAIN, LTS_FIRECRACKER, kernel, rootfs, kind))
        }
        None => {
            let looked = format!("{ROOT}{LTS_TRAIN}/{arch}/");
            Err(BaseError::NothingThere { preset: Preset::Lts, arch, looked })
        }
    }
}

fn age(train: &str) -> Option<Age> {
    if let Some((day, rest)) = train.split_once('-')
        && day.len() == 8
    {
        // It becomes part of a bundle's id.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let good =
            !rest.is_empty() && rest.bytes().all(plain) && day.bytes().all(|byte| byte.is_ascii_digit());
        return good.then(|| day.parse().ok()).flatten().map(|day| Age::Day(day, rest.into()));
    }
    let numbers = numbers(train.strip_prefix('v')?, 2)?;
    Some(Age::Version(numbers[0], numbers[1]))
}

/// `count` numbers with dots between them, and nothing else.
fn numbers(text: &str, count: usize) -> Option<Vec<u32>> {
    let number =
        |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok()).flatten();
    let numbers: Vec<u32> = text.split('.').map(number).collect::<Option<_>>()?;
    (numbers.len() == count).then_some(numbers)
}

/// The kernel and the root of a train, if it has both.
async fn choose(
    downloader: &Downloader,
    bases: &[Url],
    train: &str,
    arch: Arch,
) -> Result<Option<(Object, Object, RootfsType)>, BaseError> {
    let prefix = format!("{ROOT}{train}/{arch}/");
    let listing = bucket::list(downloader, bases, &prefix).await?;
    let named = |object: &Object| object.key.strip_prefix(&prefix).map(str::to_owned);
    let newest = |version: &dyn Fn(&str) -> Option<Vec<u32>>| {
        let candidates =
            listing.objects.iter().filter_map(|object| Some((version(&named(object)?)?, object)));
        candidates.max_by(|(one, _), (other, _)| one.cmp(other)).map(|(_, object)| object.clone())
    };
    let kernel = newest(&|name| numbers(name.strip_prefix("vmlinux-")?, 3));
    // squashfs wherever there is one: it is a tenth of the size, and read-only by its nature.
    let rootfs = RootfsType::ALL.into_iter().rev().find_map(|kind| {
        let suffix = format!(".{}", kind.as_str());
        let object = newest(&|name| numbers(name.strip_prefix("ubuntu-")?.strip_suffix(&suffix)?, 2))?;
        Some((object, kind))
    });
    Ok(kernel.zip(rootfs).map(|(kernel, (rootfs, kind))| (kernel, rootfs, kind)))
}

#[expect(clippy::too_many_arguments, reason = "one call each from the two presets")]
fn resolved(
    preset: Preset,
    arch: Arch,
    bases: &[Url],
    train: &str,
    firecracker_version: Version,
    kernel: Object,
    rootfs: Object,
    rootfs_type: RootfsType,
) -> Resolved {
    let name = |object: &Object| object.key.rsplit('/').next().unwrap_or_default().to_owned();
    let (kernel_name, rootfs_name) = (name(&kernel), name(&rootfs));
    let version = kernel_name.trim_start_matches("vmlinux-");
    // The train is somebody else's text, of any length.
    let train_in_id: String = train.chars().take(40).collect();
    let bundle_id = format!("ci-{train_in_id}-{arch}-{version}-{rootfs_name}");
    let place = |object: &Object| {
        let path: Vec<&str> = object.key.split('/').collect();
        bases.iter().map(|base| below(base, &path)).collect::<Vec<_>>()
    };
    let artifact = |object: &Object, name: &str| Artifact {
        place: Place::Mirrors(place(object)),
        // The bucket publishes none; the size, the connection and the digest of the first fetch must do.
        sha256: None,
        size: object.size,
        file_name: Some(name.to_owned()),
    };
    Resolved {
        preset,
        arch,
        ci_version: Some(train.to_owned()),
        firecracker_version,
        name: format!("Firecracker CI {train}: Linux {version}, {rootfs_name}"),
        kernel: artifact(&kernel, &kernel_name),
        rootfs: artifact(&rootfs, &rootfs_name),
        rootfs_type,
        rootfs_is_read_only: rootfs_type == RootfsType::Squashfs,
        boot_args: "console=ttyS0 reboot=k panic=1".into(),
        bundle_id,
        origin: bases.first().map(shown).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trains_are_ordered_by_age_and_others_are_none() {
        let mut trains = ["v1.10", "20260717-a-0", "v1.9", "20260101-z-1", "v1.7", "20260717-b-0"];
        trains.sort_by_key(|train| age(train).unwrap());
        assert_eq!(trains, ["v1.7", "v1.9", "v1.10", "20260101-z-1", "20260717-a-0", "20260717-b-0"]);
        for other in [
            "vTest-bchalios",
            "v1",
            "v1.2.3",
            "2026-x",
            "20260717",
            "20260717-",
            "2026071x-a",
            "v1.+2",
            "20260717-a b",
            "",
        ] {
            assert_eq!(age(other), None, "{other}");
        }
    }
}
