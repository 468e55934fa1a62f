//! An image from a registry by `smartvm run`, in a Linux guest. Fails where no Linux guest can run: `cargo xtask test`
//! chooses the place.

#[path = "linux_image/scene.rs"]
mod scene;

use scene::Scene;

/// Debian's minbase, pulled from Debian's registry on loopback by the run itself, to its own shell.
#[test]
fn an_image_is_pulled_and_boots_to_its_shell() {
    let scene = Scene::new();
    let dir = tempfile::tempdir().expect("a directory");
    let registry = scene.assets.serve_images(dir.path()).expect("a registry");
    scene.done(&["kernel", "import", &scene.assets.stable.display().to_string()]);
    let image = format!("{}/debian:minbase", registry.address());
    scene.run(&[&image]).answers_as_a_shell_of(&scene, "6.1.");
    // It stays, and is found by its name without the registry.
    drop(registry);
    let script = "cat /etc/debian_version; exit 3";
    let (status, console, said) = scene.run(&["--pull", "never", &image, "bash", "-c", script]).end();
    assert_eq!(status, Some(3), "{console}\n{said}");
    assert!(console.contains("12."), "{console}");
}
