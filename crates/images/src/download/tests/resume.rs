//! Going on where the last try ended.

use super::*;
use crate::download::server::until;

/// The ranges that were asked for.
fn ranges(server: &Server) -> Vec<Option<String>> {
    server.asked().iter().map(|asked| asked.header("range").map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_connection_that_breaks_often_gets_there_and_nothing_is_sent_twice() {
    let bytes = noise(5_000_000);
    let served = bytes.clone();
    // More breaks than tries: each brings something.
    let server = Server::new(move |asked, before| {
        let reply = Reply::file(asked, &served, "\"1\"");
        if before < 6 { reply.cut(700_000) } else { reply }
    })
    .await;
    let bench = Bench::new();
    assert_eq!(bench.fetch(&unknown(server.url("/x"))).await.unwrap(), bytes);
    assert_eq!(server.body_bytes(), 5_000_000);
    assert_eq!(ranges(&server)[..3], [None, Some("bytes=700000-".into()), Some("bytes=1400000-".into())]);
    assert!(server.asked()[1..].iter().all(|asked| asked.header("if-range") == Some("\"1\"")));
    let events = bench.events.lock().unwrap();
    let started = events.iter().filter(|event| matches!(event, Event::Started { .. })).count();
    assert_eq!(started, 1, "to whoever watches it is one download");
}

#[tokio::test]
async fn the_next_process_goes_on_and_so_does_another_mirror() {
    let bytes = noise(2_000_000);
    let served = bytes.clone();
    let flaky = Server::new(move |asked, before| {
        Reply::file(asked, &served, "\"1\"").hang(if before < 2 { 900_000 } else { 0 })
    })
    .await;
    let served = bytes.clone();
    let mirror = Server::new(move |asked, _| Reply::file(asked, &served, "\"of another server\"")).await;
    let bench = Bench::with(Options { tries: 1, ..impatient() });
    let mut request = known(flaky.url("/x"), &bytes);
    let stalled = |error: &DownloadError| matches!(error, DownloadError::Stalled { .. });
    // Two rounds with progress, one without.
    let (error, code, text) = bench.refused(&request).await;
    assert!(stalled(&error) && code == Code::DownloadFailed, "{text}");
    assert!(text.contains("sent nothing for 300ms (after 1800000 bytes)"), "{text}");
    let other = Downloader::new(impatient(), Progress::none());
    request.urls = vec![mirror.url("/y")];
    let digest = other.fetch_blob(&bench.store, &request, BlobMode::Data).await.unwrap();
    assert_eq!(std::fs::read(bench.store.blob(&digest).unwrap()).unwrap(), bytes);
    assert_eq!(mirror.body_bytes(), 200_000);
    assert_eq!(mirror.asked()[0].header("if-range"), None, "an entity tag means nothing to another server");
}

#[tokio::test]
async fn a_server_without_ranges_starts_over() {
    let bytes = noise(1_000_000);
    let served = bytes.clone();
    let server = Server::new(move |_, before| {
        let reply = Reply::new(200, &[("etag", "\"1\"")], served.clone());
        if before == 0 { reply.cut(600_000) } else { reply }
    })
    .await;
    let bench = Bench::new();
    assert_eq!(bench.fetch(&unknown(server.url("/x"))).await.unwrap(), bytes);
    assert!(bench.notes().iter().any(|note| note == "the server starts a thing over"), "{:?}", bench.notes());
}

#[tokio::test]
async fn old_and_new_bytes_are_never_mixed() {
    let (old, new) = (noise(1_000_000), noise(1_100_000).into_iter().rev().collect::<Vec<_>>());
    for (old_tag, new_tag) in [("\"1\"", "\"2\""), ("W/\"1\"", "W/\"1\"")] {
        let (old, served) = (old.clone(), new.clone());
        let server = Server::new(move |asked, before| match before {
            0 => Reply::file(asked, &old, old_tag).cut(600_000),
            _ => Reply::file(asked, &served, new_tag),
        })
        .await;
        let bench = Bench::new();
        assert_eq!(bench.fetch(&unknown(server.url("/x"))).await.unwrap(), new);
        let second = server.asked()[1].clone();
        // A weak tag vouches for nothing, so the rest is not even asked for.
        let weak = old_tag.starts_with('W');
        assert_eq!(second.header("range").is_none(), weak);
    }
}

#[tokio::test]
async fn what_was_kept_and_is_wrong_costs_a_new_start_only() {
    let bytes = noise(1_000_000);
    let served = bytes.clone();
    let server = Server::new(move |asked, _| Reply::file(asked, &served, "\"1\"")).await;
    let request = known(server.url("/x"), &bytes);
    for wrong in [noise(400_001)[1..].to_vec(), noise(1_000_001)[1..].to_vec(), noise(1_500_000)] {
        let bench = Bench::new();
        let dir = bench.store.dir().join("partial");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(request.key()), &wrong).unwrap();
        assert_eq!(bench.fetch(&request).await.unwrap(), bytes, "{}", wrong.len());
    }
}

#[tokio::test]
async fn a_partial_file_that_is_whole_is_not_fetched_again() {
    let bytes = noise(100_000);
    let served = bytes.clone();
    let server = Server::new(move |asked, _| Reply::file(asked, &served, "\"1\"")).await;
    let bench = Bench::new();
    let (known, unknown) = (known(server.url("/x"), &bytes), unknown(server.url("/x")));
    let dir = bench.store.dir().join("partial");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(known.key()), &bytes).unwrap();
    assert_eq!(bench.fetch(&known).await.unwrap(), bytes);
    assert_eq!(server.asked().len(), 0);
    // Without a digest only the server knows: it says 416.
    drop(bench.downloader.fetch(&bench.store, &unknown).await.unwrap());
    let origin = format!("{}.json", unknown.key());
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let of = Digest::of(unknown.urls[0].as_str().as_bytes());
    let text = format!(r#"{{"url":"{of}","validator":"\"1\"","boot":"{}"}}"#, boot.trim());
    std::fs::write(dir.join(origin), text).unwrap();
    assert_eq!(bench.fetch(&unknown).await.unwrap(), bytes);
    assert_eq!(ranges(&server), [None, Some("bytes=100000-".into())]);
}

#[tokio::test]
async fn a_power_cut_leaves_nothing_to_trust_without_a_digest() {
    let bytes = noise(100_000);
    let served = bytes.clone();
    let server = Server::new(move |asked, _| Reply::file(asked, &served, "\"1\"")).await;
    let bench = Bench::new();
    let request = unknown(server.url("/x"));
    let dir = bench.store.dir().join("partial");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(request.key()), vec![0; 50_000]).unwrap();
    let of = Digest::of(request.urls[0].as_str().as_bytes());
    let text = format!(r#"{{"url":"{of}","validator":"\"1\"","boot":"another"}}"#);
    std::fs::write(dir.join(format!("{}.json", request.key())), text).unwrap();
    assert_eq!(bench.fetch(&request).await.unwrap(), bytes);
    assert_eq!(ranges(&server), [None]);
}

#[tokio::test]
async fn ranges_that_were_not_asked_for_are_refused() {
    let bytes = noise(1000);
    for range in ["bytes 0-599/1000", "bytes 500-999/1000", "nonsense"] {
        let served = bytes.clone();
        let server = Server::new(move |asked, before| match before {
            0 => Reply::file(asked, &served, "\"1\"").cut(400),
            1 => Reply::new(206, &[("content-range", range)], &served[400..]),
            _ => Reply::file(asked, &served, "\"1\""),
        })
        .await;
        let bench = Bench::new();
        assert_eq!(bench.fetch(&unknown(server.url("/x"))).await.unwrap(), bytes, "{range}");
        assert!(
            bench.notes().iter().any(|note| note.contains("it sent another part")),
            "{:?}",
            bench.notes()
        );
        assert_eq!(server.asked()[2].header("range"), None);
    }
}

#[tokio::test]
async fn the_rest_of_another_version_is_not_appended() {
    const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const NEW: &str = "Mon, 07 Nov 1994 08:49:37 GMT";
    let (old, new) = (noise(1000), noise(1001)[1..].to_vec());
    for (header, old_tag, new_tag) in [("etag", "\"1\"", "\"2\""), ("last-modified", OLD, NEW)] {
        let (before_it, served) = (old.clone(), new.clone());
        // It knows ranges, and does not look at the condition.
        let server = Server::new(move |_, before| match before {
            0 => Reply::new(200, &[(header, old_tag)], before_it.clone()).cut(400),
            1 => {
                let range = ("content-range", "bytes 400-999/1000");
                Reply::new(206, &[(header, new_tag), range], &served[400..])
            }
            _ => Reply::new(200, &[(header, new_tag)], served.clone()),
        })
        .await;
        let bench = Bench::new();
        assert_eq!(bench.fetch(&unknown(server.url("/x"))).await.unwrap(), new, "{header}");
        assert_eq!(server.asked()[1].header("if-range"), Some(old_tag));
        assert_eq!(ranges(&server), [None, Some("bytes=400-".into()), None]);
    }
}

#[tokio::test]
async fn dropping_the_future_stops_the_transfer_and_keeps_the_bytes() {
    let bytes = noise(4_000_000);
    let served = bytes.clone();
    let server = Server::new(move |asked, before| {
        let reply = Reply::file(asked, &served, "\"1\"");
        if before == 0 { reply.hang(3_000_000) } else { reply }
    })
    .await;
    let bench = Bench::with(Options { stall: Duration::from_secs(60), ..impatient() });
    let request = known(server.url("/x"), &bytes);
    let path = bench.store.dir().join("partial").join(request.key());
    let written = || std::fs::metadata(&path).map_or(0, |file| file.len());
    tokio::select! {
        _ = bench.fetch(&request) => panic!("it hangs"),
        () = until("two megabytes on the disk", || written() >= 2_000_000) => {}
    }
    assert_eq!(bench.fetch(&request).await.unwrap(), bytes);
    assert!(ranges(&server)[1].is_some(), "it went on");
}

#[tokio::test]
async fn of_two_who_want_the_same_one_fetches() {
    let bytes = noise(1_000_000);
    let served = bytes.clone();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let closed = Arc::clone(&gate);
    let server = Server::new(move |asked, _| Reply::file(asked, &served, "\"1\"").behind(&closed)).await;
    let bench = Bench::with(Options { stall: Duration::from_secs(60), ..impatient() });
    let request = known(server.url("/x"), &bytes);
    let other_store = bench.store.anew();
    let (one, two, ()) = tokio::join!(
        bench.downloader.fetch_blob(&bench.store, &request, BlobMode::Data),
        bench.downloader.fetch_blob(&other_store, &request, BlobMode::Data),
        async {
            let waits = || bench.notes().iter().any(|note| note.contains("waiting to fetch sha256:"));
            until("the second waits", waits).await;
            gate.add_permits(1);
        }
    );
    assert_eq!((one.unwrap(), two.unwrap()), (Digest::of(&bytes), Digest::of(&bytes)));
    assert_eq!(server.asked().len(), 1);
    assert_eq!(bench.partials(), Vec::<String>::new());
}

#[tokio::test]
async fn gc_removes_what_nobody_went_on_with_for_a_week() {
    let bench = Bench::new();
    let dir = bench.store.dir().join("partial");
    let (day, now) = (Duration::from_secs(24 * 60 * 60), std::time::SystemTime::now());
    for (name, age) in [("fresh", day), ("old", 8 * day), ("old.json", 8 * day), ("under way", 8 * day)] {
        std::fs::write(dir.join(name), "x").unwrap();
        std::fs::File::open(dir.join(name)).unwrap().set_modified(now - age).unwrap();
    }
    let under_way = super::super::partial::Partial::open(&dir, "under way", "a thing").unwrap().unwrap();
    bench.store.gc(&crate::store::GcOptions::default(), &Progress::none()).await.unwrap();
    assert_eq!(bench.partials(), ["fresh", "under way"]);
    drop(under_way);
}

#[tokio::test]
async fn bytes_of_a_file_are_not_taken_for_those_of_the_server_that_came_before_it() {
    let (of_server, of_file) = (noise(300_000), vec![7; 200_000]);
    let served = of_server.clone();
    let server = Server::new(move |asked, before| {
        let reply = Reply::file(asked, &served, "\"1\"");
        if before == 0 { reply.cut(100_000) } else { reply }
    })
    .await;
    let bench = Bench::new();
    let path = bench.dir.path().join("x");
    std::fs::write(&path, &of_file).unwrap();
    let request = Request {
        urls: vec![server.url("/x"), super::super::place_of(&path).unwrap()],
        ..unknown(server.url("/x"))
    };
    // Killed once the file was copied: nobody takes it.
    drop(bench.downloader.fetch(&bench.store, &request).await.unwrap());
    let kept = bench.store.dir().join("partial").join(request.key());
    assert_eq!(std::fs::read(&kept).unwrap(), of_file);
    assert_eq!(bench.fetch(&request).await.unwrap(), of_server);
    assert_eq!(ranges(&server), [None, None]);
}

#[tokio::test]
async fn a_part_that_says_nonsense_of_the_whole_is_refused() {
    for total in [5, 150_000] {
        let bytes = noise(200_000);
        let server = Server::new(move |asked, before| match before {
            0 => Reply::file(asked, &bytes, "\"1\"").cut(100_000),
            _ => {
                let range = format!("bytes 100000-199999/{total}");
                Reply::new(206, &[("etag", "\"1\""), ("content-range", &range)], &bytes[100_000..])
            }
        })
        .await;
        let bench = Bench::with(Options { tries: 1, ..impatient() });
        let request = unknown(server.url("/x"));
        bench.refused(&request).await;
        let (error, ..) = bench.refused(&request).await;
        assert!(matches!(error, DownloadError::Protocol { .. }), "{total}: {error}");
    }
}
