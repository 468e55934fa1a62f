//! Images that are damaged or hostile, on their way to an archive.

use std::os::unix::fs::FileExt;

use super::super::{Contents, Meaning, Options, build_now, export_now};
use super::*;

/// Bytes changed anywhere in the metadata end in an archive or an error, and in nothing else. Checksums are made right again
/// for nobody here, so what they cover (superblock, inodes) is mostly refused; directories and extents are not.
#[test]
fn a_damaged_image_is_exported_or_refused() {
    let names: Vec<String> = (0..400).map(|number| format!("dir/file number {number}")).collect();
    let mut layer =
        Archive::default().dir("dir/").file("data", &[7; 70_000]).symlink("link", &"t".repeat(90));
    for name in &names {
        layer = layer.file(name, b"x");
    }
    let file = tempfile::tempfile().unwrap();
    let contents = Contents::Layers(vec![layer.layer()]);
    let (never, silent) = (Abandoned::never(), Progress::none());
    build_now(&contents, &file, &Options::default(), &silent, &never).unwrap();
    let export = || export_now(&file, std::io::sink(), Meaning::Root, &silent, &never);
    let whole = export().unwrap();
    assert_eq!(whole.entries, 404);

    let len = file.metadata().unwrap().len();
    let mut used: Vec<u64> = Vec::new();
    let mut block = [0; 4096];
    for at in (0..len).step_by(4096) {
        file.read_exact_at(&mut block[..usize::try_from((len - at).min(4096)).unwrap()], at).unwrap();
        if block.iter().any(|byte| *byte != 0) {
            used.push(at);
        }
    }
    let (mut state, mut refused) = (0x1234_5678_9abc_def1_u64, 0);
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..400 {
        let block = used[usize::try_from(random(used.len() as u64)).unwrap()];
        let at = block + random(4096).min(len - block - 8);
        let mut before = [0; 8];
        file.read_exact_at(&mut before, at).unwrap();
        let wrong = [0, 0xff, 0x7f, 1][usize::try_from(random(4)).unwrap()];
        let count = 1 + usize::try_from(random(8)).unwrap();
        file.write_all_at(&[wrong; 8][..count], at).unwrap();
        match export() {
            Ok(exported) => assert!(exported.entries <= 2 * whole.entries),
            Err(RootfsError::Image(_) | RootfsError::Entry { .. }) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
        file.write_all_at(&before, at).unwrap();
    }
    assert!(refused >= 10, "{refused}");
    assert_eq!(export().unwrap(), whole);
}
