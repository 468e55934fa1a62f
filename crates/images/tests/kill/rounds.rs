//! Kills at random moments, and what must hold after each.

use std::time::Duration;

use crate::child::Child;
use crate::operation::{self, Operation};
use crate::scene::Scene;
use smartvm_lab::random::Random;

#[test]
fn put_killed_at_any_moment_leaves_a_whole_store_and_can_be_repeated() {
    rounds(&operation::PUT);
}

#[test]
fn gc_killed_at_any_moment_leaves_a_whole_store_and_can_be_repeated() {
    rounds(&operation::GC);
}

#[test]
fn a_kernel_import_killed_at_any_moment_leaves_a_whole_store_and_can_be_repeated() {
    rounds(&crate::kernel::IMPORT);
}

#[test]
fn a_pull_killed_at_any_moment_leaves_a_whole_store_and_can_be_repeated() {
    rounds(&crate::image::PULL);
}

#[test]
fn an_image_import_killed_at_any_moment_leaves_a_whole_store_and_can_be_repeated() {
    rounds(&crate::image::IMPORT);
}

/// How many kills must have found the work under way.
fn wanted() -> u32 {
    if std::env::var_os("SMARTVM_TEST_FULL").is_some() { 100 } else { 12 }
}

fn rounds(operation: &Operation) {
    let mut random = Random::from_environment(operation.name);
    let scene = Scene::new();
    let _kept = (operation.prepare)(&scene);
    // Once to its end: that it works at all, and how long it takes.
    let life = to_its_end(operation, &scene);
    // How long it takes changes with what else the host does: the moments follow that.
    let mut span = life;
    let (mut killed, mut missed) = (0, 0);
    let mut moments = Vec::new();
    while killed < wanted() {
        let moment = random.duration(span);
        scene.empty();
        (operation.before)(&scene);
        if Child::start(&scene, operation.name).kill_after(moment) {
            killed += 1;
            span += span / 8;
            moments.push(moment);
        } else {
            missed += 1;
            span -= span / 4;
            assert!(missed < 40 + 2 * wanted(), "{}: it ended before nearly every kill", operation.name);
        }
        scene.assert_clean(&format!("killed after {moment:?}"));
        // The next one may meet what was left, or a collection may.
        if random.below(2) == 0 {
            scene.gc();
            scene.assert_clean(&format!("killed after {moment:?}, collected"));
        }
        Child::start(&scene, operation.name).finish();
        (operation.after)(&scene);
        scene.assert_clean(&format!("killed after {moment:?}, repeated"));
    }
    scene.empty();
    moments.sort();
    let (first, last) = (moments.first(), moments.last());
    println!(
        "{}: takes {life:?}; {killed} kills between {first:?} and {last:?}, {missed} came too late",
        operation.name
    );
}

fn to_its_end(operation: &Operation, scene: &Scene) -> Duration {
    (operation.before)(scene);
    let (_, life) = Child::start(scene, operation.name).finish();
    (operation.after)(scene);
    scene.assert_clean("after the first run");
    life
}
