//! Archives that lie, are damaged, or want too much.

use smartvm_core::explain::{Code, Explain};

use super::*;

fn tar() -> Archive {
    Archive::default()
}

/// The refusal of these layers, which names what it refuses.
fn refusal(layers: &[Layer], limits: &Limits) -> String {
    let error = merged(layers, limits).expect_err("it should be refused");
    assert_eq!(error.code(), Code::InvalidImage, "{error}");
    assert!(error.hint().is_some());
    error.to_string()
}

fn refused(archive: Archive, expected: &str) {
    let text = refusal(&[archive.layer()], &Limits::default());
    assert!(text.contains(expected), "{text}");
    assert!(text.starts_with("layer: "), "{text}");
}

#[test]
fn entries_that_want_out_or_in_circles_are_refused_by_name() {
    refused(tar().file("a/../../etc/passwd", b""), "entry `a/../../etc/passwd` has `..` in its path");
    refused(tar().file("..", b""), "`..`");
    refused(
        tar().symlink("a", "b").symlink("b", "a").file("a/x", b""),
        "entry `a/x` has too many symlinks on its way",
    );
    refused(tar().file("a", b"").file("a/b", b""), "is below something that is no directory");
    refused(tar().hardlink("a", "a"), "is a hardlink to something that is missing");
    refused(tar().file("a", b"").hardlink("a", "./a"), "is a hardlink to itself");
    refused(tar().dir("a/").hardlink("b", "a"), "is a hardlink to a directory");
    refused(tar().dir("a/").hardlink("b", "/"), "is a hardlink to a directory");
    refused(tar().hardlink("b", "../a"), "is a hardlink to an unusable path");
    refused(tar().file("/", b""), "is the root and no directory");
    refused(tar().symlink("a", ""), "is a symlink to nothing");
    refused(
        tar().file(&"x".repeat(99), b"").pax(&[("path", &[b'y'; 256])]).file("p", b""),
        "more than 255 bytes",
    );
    refused(tar().pax(&[("path", b"a\xff")]).file("p", b""), "entry `a\\xff` has a name that is not UTF-8");
    refused(tar().pax(&[("path", &b"ab/".repeat(2000))]).file("p", b""), "more than 4096 bytes");
    refused(tar().head(&Head { device: (4096, 0), ..Head::new("d", b'3') }), "device number");
    refused(tar().head(&Head::new("m", b'M')), "of a kind that is not known");
    refused(tar().file("lost+found/x", b""), "ext4 keeps this name");
}

#[test]
fn a_hardlink_to_what_a_whiteout_hid_is_refused() {
    let layers = [tar().file("a", b"").layer(), tar().file(".wh.a", b"").hardlink("b", "a").layer()];
    assert!(refusal(&layers, &Limits::default()).contains("missing"));
}

#[test]
fn damage_is_seen_wherever_it_is() {
    let whole = tar().file("a", &[7; 3000]).file("b", b"x").0;
    for cut in [1, 511, 513, 1500, 3583, 3585, 4100, 4608 + 1] {
        if cut < whole.len() {
            let text = refusal(&[Layer::memory("layer", &whole[..cut])], &Limits::default());
            assert!(text.contains("bytes of the archive"), "{cut}: {text}");
        }
    }
    let mut wrong = whole.clone();
    wrong[0] ^= 1;
    assert!(refusal(&[Layer::memory("layer", wrong)], &Limits::default()).contains("checksum"));
    refused(tar().head(&Head { size: 1 << 32, ..Head::new("a", b'0') }), "cannot be read on");
    refused(tar().head(&Head { size: 2 << 20, ..Head::new("x", b'L') }), "larger than 1 MiB");
    refused(tar().pax(&[("size", b"99999999999999999999")]).file("a", b""), "malformed number");
    refused(tar().pax(&[("size", b"18446744073709551615")]).file("a", b""), "larger than a file on ext4");
    refused(tar().pax(&[("path", b"x")]), "cannot be read on");
    let many = (0..40).fold(tar(), |tar, _| tar.pax(&[("path", b"x")]));
    refused(many, "too many extension headers");
}

#[test]
fn compressed_layers_are_read_to_their_ends() {
    let plain = tar().file("a", &[7; 30_000]).end();
    for packed in packed(&plain) {
        let tree = merged(&[Layer::memory("layer", &*packed)], &Limits::default()).unwrap();
        assert_eq!(listing(&tree), ["/a 30000"]);
        // The end of the archive is complete, that of the compression is not.
        for cut in [packed.len() - 1, packed.len() / 2, 12] {
            refusal(&[Layer::memory("layer", &packed[..cut])], &Limits::default());
        }
    }
}

/// The bytes in each compression that is understood, split into two members where that is allowed.
pub(super) fn packed(plain: &[u8]) -> Vec<Vec<u8>> {
    let (first, second) = plain.split_at(plain.len() / 2);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let bzip2 = |bytes: &[u8]| {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zstd =
        |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let xz = |bytes: &[u8]| {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    vec![
        [gzip(first), gzip(second)].concat(),
        [bzip2(first), bzip2(second)].concat(),
        [skippable.clone(), zstd(first), skippable, zstd(second)].concat(),
        [xz(first), xz(second)].concat(),
    ]
}

#[test]
fn limits_hold() {
    let small = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        limits
    };
    let many = (0..50).fold(tar(), |tar, n| tar.dir(&format!("d{n}/"))).layer();
    assert!(refusal(&[many], &small(|l| l.entries = 20)).contains("more than 20 entries"));
    let implied = tar().file(&"a/".repeat(40), b"").file(&format!("{}x", "a/".repeat(40)), b"").layer();
    assert!(refusal(&[implied], &small(|l| l.entries = 20)).contains("more than 20 entries"));
    let names = tar().pax(&[("SCHILY.xattr.user.a", &[0; 3000])]).file("a", b"").layer();
    assert!(refusal(&[names], &small(|l| l.metadata_bytes = 2000)).contains("names and attributes"));
    let bomb = &packed(&tar().file("zeros", &vec![0; 1 << 20]).end())[0];
    let bomb = Layer::memory("layer", &**bomb);
    let text = refusal(&[bomb], &small(|l| l.unpacked_bytes = 500_000));
    assert_eq!(text, "layer: more than 500000 bytes when unpacked");
    let [one, two] = ["one", "two"].map(|name| {
        let bytes = &packed(&tar().file(name, &vec![0; 300_000]).end())[0];
        Layer::memory(name, &**bytes)
    });
    merged(std::slice::from_ref(&one), &small(|l| l.unpacked_bytes = 500_000)).unwrap();
    let text = refusal(&[one, two], &small(|l| l.unpacked_bytes = 500_000));
    assert_eq!(text, "two: more than 500000 bytes when unpacked, with the layers before it");
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let sparse = |map: &str, size: &str, data: &[u8]| {
        let keys: [(&str, &[u8]); 2] =
            [("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", size.as_bytes())];
        tar().pax(&keys).file("s", data)
    };
    merged(&[sparse("0,3", "10", b"abc").layer()], &Limits::default()).unwrap();
    refused(sparse("0,3,2,1", "10", b"abcd"), "ranges overlap");
    refused(sparse("0,4", "10", b"abc"), "does not fit its data");
    refused(sparse("8,3", "10", b"abc"), "beyond its size");
    refused(sparse("0,3", "18446744073709551615", b"abc"), "larger than a file on ext4");
    refused(sparse("0,3,", "10", b"abc"), "malformed number");
    let v1: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"10")];
    refused(tar().pax(&v1).file("s", b"99999999999999\n"), "too many sparse ranges");
    refused(tar().pax(&v1).file("s", b"1\n0\n"), "malformed sparse map");
    refused(tar().pax(&v1).file("s", b"x"), "malformed sparse map");
}
