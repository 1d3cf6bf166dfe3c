//! What the tests with a real Kubernetes API share: etcd and kube-apiserver on loopback, `kubectl` towards them, and tokens
//! as pods have them.
//!
//! `KUBEBUILDER_ASSETS` names the folder with `etcd`, `kube-apiserver` and `kubectl`; `prepare.sh` builds them. A test
//! that cannot run fails and says why.

mod annotator;
mod cluster;
mod mesh;
mod mesh_agent;
mod rendered;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

pub use annotator::Annotator;
pub use cluster::{Cluster, NAMESPACE, Place, Server, overlay_folder};
pub use mesh::KubeMesh;
pub use mesh_agent::{INTERFACE, Local, MeshAgents};
pub use rendered::{arguments, environment, find, kustomized, parse};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);

/// A program of the assets.
pub fn asset(name: &str) -> Result<PathBuf> {
    let folder = std::env::var_os("KUBEBUILDER_ASSETS").context(
        "KUBEBUILDER_ASSETS names no folder: make kube sets it, tests/kube/prepare.sh prints it",
    )?;
    let path = PathBuf::from(folder).join(name);
    ensure!(
        path.is_file(),
        "{} is missing: tests/kube/prepare.sh builds it",
        path.display()
    );
    Ok(path)
}

/// The `wice` that was built beside these tests: in the folder of the running program, or above it.
pub fn wice_binary() -> Result<PathBuf> {
    let running = std::env::current_exe()?;
    let mut folders = running.ancestors().skip(1).take(2);
    let found = folders.find_map(|folder| Some(folder.join("wice")).filter(|wice| wice.is_file()));
    found.with_context(|| {
        format!(
            "no wice is beside {}: cargo build --bin wice",
            running.display()
        )
    })
}

/// What a command prints; its errors where it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Looks until it is so, or fails.
pub fn wait_until(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> bool,
) -> Result<Duration> {
    let began = Instant::now();
    while !look() {
        ensure!(
            began.elapsed() < patience,
            "{what}: not within {patience:?}"
        );
        std::thread::sleep(POLL);
    }
    Ok(began.elapsed())
}
