//! An image registry on this host: Debian's `docker-registry` on loopback, and images to put into it with `skopeo`.
//!
//! Everything is the test's own: port, storage, configuration. Nothing leaves the host.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::cache::{Cache, Key, progress, run_to_end};
use crate::debian;
use crate::fault::{AtPath, Fault, Result};
use crate::patience;

/// Bump when [`minbase_layout`] makes something else of the same packages.
const MINBASE_RECIPE: &str = "1";

/// How a registry is to behave.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// A user and password, without which nothing is given.
    pub login: Option<(String, String)>,
    /// The PEM files of a certificate and its key: TLS instead of plain HTTP.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The program, when it is not `docker-registry` on PATH.
    pub program: Option<PathBuf>,
}

/// A running registry; it ends when dropped. Its files lie in the directory that was given.
#[derive(Debug)]
pub struct Registry {
    dir: PathBuf,
    options: RegistryOptions,
    address: SocketAddr,
    process: Option<Child>,
}

impl Registry {
    /// Starts one with an empty storage in `dir`, which exists and belongs to the caller.
    ///
    /// # Errors
    /// It cannot be started, or does not listen in time.
    pub fn start(dir: &Path, options: RegistryOptions) -> Result<Self> {
        if let Some((user, password)) = &options.login {
            let path = dir.join("htpasswd");
            let output = Command::new("htpasswd")
                .args(["-Bbn", user, password])
                .output()
                .map_err(|error| Fault::because("cannot run htpasswd", error))?;
            fs::write(&path, output.stdout).at("cannot write", &path)?;
        }
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut registry = Self { dir: dir.to_owned(), options, address: any, process: None };
        registry.start_again()?;
        Ok(registry)
    }

    /// `127.0.0.1:PORT`, as in the names of its images.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The files of blobs and manifests.
    pub fn storage(&self) -> PathBuf {
        self.dir.join("storage")
    }

    /// The file of a blob, given its 64 digits.
    pub fn blob(&self, digits: &str) -> PathBuf {
        let dir = self.storage().join("docker/registry/v2/blobs/sha256");
        dir.join(&digits[..2]).join(digits).join("data")
    }

    /// How many requests so far had this method, and this text in their path.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn requests(&self, method: &str, part: &str) -> Result<usize> {
        let path = self.log();
        let log = fs::read_to_string(&path).at("cannot read", &path)?;
        let is_such = |line: &&str| {
            line.split_once(&format!("\"{method} "))
                .is_some_and(|(_, rest)| rest.split_once(' ').is_some_and(|(path, _)| path.contains(part)))
        };
        Ok(log.lines().filter(is_such).count())
    }

    /// Ends it, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it again where it was, with what it holds.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn start_again(&mut self) -> Result<()> {
        self.kill();
        let config = self.dir.join("config.yml");
        fs::write(&config, self.config().to_string()).at("cannot write", &config)?;
        let log = self.log();
        let _ = fs::remove_file(&log);
        let out = File::create(&log).at("cannot make", &log)?;
        let err = out.try_clone().at("cannot open", &log)?;
        let program = self.options.program.as_deref().unwrap_or(Path::new("docker-registry"));
        let process = Command::new(program)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|error| {
                Fault::because("cannot run docker-registry", error)
                    .with_hint("install the packages that `cargo xtask setup` names")
            })?;
        self.process = Some(process);
        self.address = self.listening()?;
        Ok(())
    }

    /// Pushes an image from an OCI layout (with all its platforms), under `name` (`team/tool:1`).
    ///
    /// # Errors
    /// skopeo fails.
    pub fn push(&self, layout: &Path, name: &str) -> Result<()> {
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--all", "--quiet", "--dest-tls-verify=false"]);
        if let Some((user, password)) = &self.options.login {
            command.arg(format!("--dest-creds={user}:{password}"));
        }
        command.arg(format!("oci:{}", layout.display())).arg(format!("docker://{}/{name}", self.address));
        run_to_end(&mut command)
    }

    fn config(&self) -> Value {
        let mut config = json!({
            "version": 0.1,
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": self.storage()}, "delete": {"enabled": true}},
            "http": {"addr": self.address.to_string(), "secret": "of the lab"},
        });
        if let Some((certificate, key)) = &self.options.tls {
            config["http"]["tls"] = json!({"certificate": certificate, "key": key});
        }
        if self.options.login.is_some() {
            config["auth"] = json!({"htpasswd": {"realm": "lab", "path": self.dir.join("htpasswd")}});
        }
        config
    }

    fn log(&self) -> PathBuf {
        self.dir.join("registry.log")
    }

    /// Waits until it says where it listens.
    fn listening(&mut self) -> Result<SocketAddr> {
        let path = self.log();
        let deadline = Instant::now() + patience(Duration::from_secs(20));
        while Instant::now() < deadline {
            let log = fs::read_to_string(&path).at("cannot read", &path)?;
            let found = log.lines().find_map(|line| {
                let (_, rest) = line.split_once("listening on ")?;
                rest.split([',', '"', ' ']).next()?.parse().ok()
            });
            if let Some(address) = found {
                return Ok(address);
            }
            let ended = self.process.as_mut().and_then(|process| process.try_wait().ok().flatten());
            if let Some(status) = ended {
                return Err(Fault::new(format!("docker-registry ended: {status}")).with_log(&path));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(Fault::new("docker-registry does not listen").with_log(&path))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An image to be written into a layout.
#[derive(Debug, Clone)]
pub struct LayoutImage {
    /// `linux/amd64`.
    pub platform: String,
    /// The config's part for the process: `Cmd`, `Env`, …
    pub config: Value,
    /// Uncompressed tar files, lowest first.
    pub layers: Vec<PathBuf>,
}

/// Writes an OCI layout with one image, or with an index of several platforms when there are more, into `dir`.
///
/// # Errors
/// A file cannot be read or written.
pub fn write_layout(dir: &Path, images: &[LayoutImage]) -> Result<()> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).at("cannot make", &blobs)?;
    let blob = |bytes: &[u8]| -> Result<(String, usize)> {
        let digits = hex(&Sha256::digest(bytes));
        let path = blobs.join(&digits);
        fs::write(&path, bytes).at("cannot write", &path)?;
        Ok((format!("sha256:{digits}"), bytes.len()))
    };
    let descriptor = |kind: &str, (digest, size): (String, usize)| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size});
    let mut manifests = Vec::new();
    for image in images {
        let mut layers = Vec::new();
        for layer in &image.layers {
            let (digest, size) = layer_blob(layer, &blobs)?;
            layers.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size}));
        }
        let (os, architecture) = image.platform.split_once('/').unwrap_or(("linux", &image.platform));
        let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({"os": os, "architecture": architecture, "config": image.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = descriptor("config.v1+json", blob(config.to_string().as_bytes())?);
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": layers});
        let mut entry = descriptor("manifest.v1+json", blob(manifest.to_string().as_bytes())?);
        entry["platform"] = json!({"os": os, "architecture": architecture});
        manifests.push(entry);
    }
    if manifests.len() > 1 {
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests});
        manifests = vec![descriptor("index.v1+json", blob(index.to_string().as_bytes())?)];
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    for (name, content) in [("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#), ("index.json", &index)] {
        let path = dir.join(name);
        fs::write(&path, content).at("cannot write", &path)?;
    }
    Ok(())
}

/// Copies a layer to its name.
fn layer_blob(layer: &Path, blobs: &Path) -> Result<(String, usize)> {
    let unnamed = blobs.join("unnamed");
    let mut from = File::open(layer).at("cannot open", layer)?;
    let mut to = File::create(&unnamed).at("cannot make", &unnamed)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let got = from.read(&mut buffer).at("cannot read", layer)?;
        if got == 0 {
            break;
        }
        hasher.update(&buffer[..got]);
        to.write_all(&buffer[..got]).at("cannot write", &unnamed)?;
        size += got;
    }
    let digits = hex(&hasher.finalize());
    let path = blobs.join(&digits);
    fs::rename(&unnamed, &path).at("cannot rename to", &path)?;
    Ok((format!("sha256:{digits}"), size))
}

/// An OCI layout with one image: Debian's minbase, whose command is a shell. From the cache, or from the mirror that
/// this machine's apt uses.
///
/// # Errors
/// The packages cannot be had or installed.
pub fn minbase_layout(cache: &Cache) -> Result<PathBuf> {
    let key = Key::of(["minbase", MINBASE_RECIPE].map(str::as_bytes));
    let dir = cache.entry("minbase", &key, 1, |dir| {
        progress("installing Debian's minbase for an image (about 20 s and 40 MB of download, once)");
        let tar = dir.join("root.tar");
        debian::minbase_tar(dir, &tar)?;
        let image = LayoutImage {
            platform: "linux/amd64".into(),
            config: json!({"Cmd": ["/bin/bash"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}),
            layers: vec![tar.clone()],
        };
        write_layout(&dir.join("layout"), &[image])?;
        fs::remove_file(&tar).at("cannot remove", &tar)
    })?;
    Ok(dir.join("layout"))
}

/// A registry in `dir` that has Debian's minbase as `debian:minbase`.
///
/// # Errors
/// As [`Registry::start`], [`Registry::push`] and [`minbase_layout`].
pub fn with_minbase(dir: &Path, options: RegistryOptions) -> Result<Registry> {
    let layout = minbase_layout(&Cache::open())?;
    let registry = Registry::start(dir, options)?;
    registry.push(&layout, "debian:minbase")?;
    Ok(registry)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
