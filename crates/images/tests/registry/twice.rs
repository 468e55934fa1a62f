//! Two processes that pull the same image at once do the work once.

use std::process::{Command, Stdio};

use smartvm_images::image::{Credentials, PullOptions, pull};
use smartvm_images::progress::Progress;
use smartvm_images::{Store, download};

use crate::bench::{Bench, some_bytes};

const ENTRY: &str = "twice::pulls_when_this_is_a_child";
const STORE: &str = "SMARTVM_TEST_STORE";
const NAME: &str = "SMARTVM_TEST_NAME";

#[test]
fn two_processes_that_pull_the_same_image_fetch_it_once() {
    let bench = Bench::new();
    let layers = [bench.tar(&[("a", &some_bytes(6 << 20))]), bench.tar(&[("b", b"b")])];
    bench.push("tool:1", &layers);
    let children: Vec<_> = (0..3)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", ENTRY, "--nocapture"])
                .env(STORE, bench.store_dir())
                .env(NAME, bench.reference("tool:1").to_string())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let said: Vec<String> = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        })
        .collect();
    let count = |words: &str| said.iter().filter(|said| said.contains(words)).count();
    assert_eq!((count("<was here: false>"), count("<was here: true>")), (1, 2), "{said:?}");
    // The config and two layers.
    assert_eq!(bench.registry().requests("GET", "/blobs/").unwrap(), 3);
}

#[tokio::test]
async fn pulls_when_this_is_a_child() {
    let (Ok(dir), Ok(name)) = (std::env::var(STORE), std::env::var(NAME)) else { return };
    let store = Store::open(dir.as_ref()).unwrap();
    let options = PullOptions {
        credentials: Credentials::Files(Vec::new()),
        download: download::Options { proxy: download::Proxy::None, ..Default::default() },
        ..PullOptions::default()
    };
    let pulled = pull(&store, &name.parse().unwrap(), &options, &Progress::none()).await.unwrap();
    println!("<was here: {}>", pulled.was_here);
}
