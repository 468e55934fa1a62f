//! How layers change what lies below them.

use super::super::tree::Meta;
use super::*;

fn tar() -> Archive {
    Archive::default()
}

#[test]
fn a_later_layer_wins_whatever_the_kinds() {
    let lower = tar().file("a", b"1").dir("b/").file("b/x", b"1").symlink("c", "b").file("d", b"1").dir("e/");
    let upper = tar().dir("a/").file("a/y", b"22").file("b", b"22").dir("c/").symlink("d", "e").dir("e/");
    layers_make(
        &[lower.file("e/kept", b""), upper],
        &["/a/", "/a/y 2", "/b 2", "/c/", "/d -> e", "/e/", "/e/kept 0"],
    );
}

#[test]
fn within_a_layer_the_last_entry_wins() {
    layers_make(&[tar().file("a", b"1").file("a", b"22").dir("a/").file("./a", b"333")], &["/a 3"]);
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_of_their_own_layer() {
    let lower = tar()
        .dir("d/")
        .file("d/old", b"1")
        .file("d/both", b"1")
        .dir("d/sub/")
        .file("d/sub/old", b"1")
        .file("f", b"");
    for upper in [
        tar().file("d/.wh..wh..opq", b"").file("d/both", b"22").file("d/sub/new", b"22"),
        tar().file("d/both", b"22").file("d/sub/new", b"22").file("d/.wh..wh..opq", b""),
        tar().file(".wh.d", b"").dir("d/").file("d/both", b"22").file("d/sub/new", b"22"),
        tar().dir("d/").file("d/both", b"22").file("d/sub/new", b"22").file(".wh.d", b""),
    ] {
        let upper = upper
            .file(".wh.f", b"")
            .file(".wh.missing", b"")
            .file("missing/.wh.x", b"")
            .file(".wh..wh.plnk", b"");
        layers_make(&[lower.clone(), upper], &["/d/", "/d/both 2", "/d/sub/", "/d/sub/new 2"]);
    }
}

#[test]
fn a_directory_that_was_hidden_and_only_gone_through_keeps_nothing_of_its_old_self() {
    let lower = tar().head(&Head { mode: 0o700, uid: 5, ..Head::new("d/sub/", b'5') });
    let upper = tar().file("d/sub/new", b"").file("d/.wh..wh..opq", b"");
    let mut tree = merged(&[lower.layer(), upper.layer()], &Limits::default()).unwrap();
    let sub = tree.find_way(["d", "sub"].into_iter()).unwrap().unwrap();
    assert_eq!(tree.get(sub).meta, Meta::IMPLIED);
}

#[test]
fn in_an_archive_that_is_no_layer_whiteouts_are_names() {
    let watch = Watch::new(&Abandoned::never(), &Progress::none(), "test", None);
    let layer = tar().file("a", b"").file(".wh.a", b"").layer();
    let (tree, _) = merge::layers(&[layer], false, &Limits::default(), &watch).unwrap();
    assert_eq!(listing(&tree), ["/.wh.a 0", "/a 0"]);
}

#[test]
fn hardlinks_reach_into_lower_layers_and_outlive_what_they_share() {
    let lower =
        tar().file("a", b"1").symlink("s", "nowhere").dir("dir/").symlink("way", "dir").file("dir/f", b"333");
    let upper = tar().hardlink("b", "a").hardlink("t", "s").hardlink("g", "way/f").file("a", b"22");
    layers_make(
        &[lower, upper],
        &["/a 2", "/b 1", "/dir/", "/dir/f 3", "/g = /dir/f", "/s -> nowhere", "/t = /s", "/way -> dir"],
    );
    layers_make(
        &[tar().file("a", b"1").hardlink("b", "a").hardlink("b", "/a").hardlink("a", "b")],
        &["/a 1", "/b = /a"],
    );
}

#[test]
fn entries_below_symlinks_go_where_the_links_lead_and_never_out() {
    let lower = tar()
        .dir("usr/bin/")
        .symlink("bin", "usr/bin")
        .symlink("up", "../../../usr")
        .symlink("abs", "/usr/bin");
    let upper = tar()
        .file("bin/a", b"1")
        .file("up/b", b"1")
        .file("abs/c", b"1")
        .symlink("new", "var/x")
        .file("new/d", b"1");
    layers_make(
        &[lower, upper],
        &[
            "/abs -> /usr/bin",
            "/bin -> usr/bin",
            "/new -> var/x",
            "/up -> ../../../usr",
            "/usr/",
            "/usr/b 1",
            "/usr/bin/",
            "/usr/bin/a 1",
            "/usr/bin/c 1",
            "/var/",
            "/var/x/",
            "/var/x/d 1",
        ],
    );
}

#[test]
fn paths_may_begin_with_slashes_and_dots_and_need_no_parents() {
    layers_make(
        &[tar().file("/a/./b//c", b"1").dir("./").file("./d", b"")],
        &["/a/", "/a/b/", "/a/b/c 1", "/d 0"],
    );
}

#[test]
fn every_kind_is_read() {
    let layer = tar()
        .head(&Head { device: (1, 3), ..Head::new("null", b'3') })
        .head(&Head { device: (259, 70_000), ..Head::new("disk", b'4') })
        .head(&Head::new("pipe", b'6'))
        .head(&Head { size: 3, ..Head::new("contiguous", b'7') })
        .data(b"abc")
        .head(&Head { size: 700, ..Head::new("old/", 0) })
        .head(&Head { size: 700, link: "pipe", ..Head::new("link", b'1') });
    layers_make(
        &[layer],
        &["/contiguous 3", "/disk b259:70000", "/link fifo", "/null c1:3", "/old/", "/pipe = /link"],
    );
}

#[test]
fn the_root_and_lost_and_found_are_described_by_entries_too() {
    let root = Head { mode: 0o1700, uid: 7, ..Head::new("./", b'5') };
    let tree = merged(&[tar().head(&root).dir("lost+found/").layer()], &Limits::default()).unwrap();
    assert_eq!((tree.get(ROOT).meta.mode, tree.get(ROOT).meta.uid), (0o1700, 7));
    assert_eq!(listing(&tree), [""; 0]);
}
