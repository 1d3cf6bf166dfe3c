//! A lab leaves nothing behind: dropped, interrupted, or killed.
//!
//! A lab that another process holds is this test program itself, run for the one test
//! `hold_a_lab`, which does nothing in an ordinary run.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::lab::{CarrierConfig, HomeConfig, LabConfig, NatKind, TcpPolicy};
use wice_netns_tests::lab;

/// Names the file by which a held lab says that it stands.
const HOLD: &str = "WICE_TEST_HOLD_A_LAB";
/// What removing a lab may take on a busy machine; it takes some 0.1 s.
const GONE: Duration = Duration::from_secs(5);

#[test]
fn a_dropped_lab_leaves_nothing() -> Result<()> {
    let before = Host::look()?;
    let lab = lab(full_lab())?;
    let directory = lab.directory().to_path_buf();
    let mut daemon = lab.start("home-a", "sleeper", |ns| {
        let mut command = ns.command("sh");
        command.args(["-c", "sleep 1000 & sleep 1000"]);
        command
    })?;
    let namespaces = namespaces_of(&directory)?;
    ensure!(namespaces.len() >= 8, "only {namespaces:?}");
    ensure!(
        users_of(&namespaces)?.len() >= 3,
        "two servers, and the daemon"
    );
    assert!(daemon.status().is_none());
    drop(lab);
    eventually("the daemon ends", || daemon.status().is_some())?;
    drop(daemon);
    eventually("nothing is left", || is_gone(&directory, &namespaces))?;
    assert_eq!(Host::look()?, before);
    Ok(())
}

#[test]
fn an_interrupted_lab_leaves_nothing() -> Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let before = Host::look()?;
        let (mut holder, directory) = held_lab()?;
        let namespaces = namespaces_of(&directory)?;
        send(&holder, signal);
        let status = holder.wait()?;
        assert!(status.success(), "it ends in order: {status}");
        assert!(!directory.exists(), "its directory goes");
        eventually("nothing is left", || is_gone(&directory, &namespaces))?;
        assert_eq!(Host::look()?, before);
    }
    Ok(())
}

#[test]
fn a_killed_lab_leaves_files_only_and_the_next_lab_removes_them() -> Result<()> {
    let (mut holder, directory) = held_lab()?;
    let namespaces = namespaces_of(&directory)?;
    send(&holder, libc::SIGKILL);
    assert_eq!(holder.wait()?.signal(), Some(libc::SIGKILL));
    eventually("its programs end", || {
        users_of(&namespaces).is_ok_and(|u| u.is_empty())
    })?;
    let next = lab(LabConfig {
        servers: false,
        ..LabConfig::default()
    })?;
    assert!(!directory.exists(), "the next lab removes it");
    drop(next);
    Ok(())
}

#[test]
fn a_lab_that_cannot_be_built_says_why() -> Result<()> {
    let mut config = full_lab();
    config.homes[1].carrier = Some("nobody".into());
    let error = lab(config).err().context("it was built")?;
    assert!(format!("{error:#}").contains("nobody"), "{error:#}");
    Ok(())
}

/// Run by the tests above in a process of its own.
#[test]
fn hold_a_lab() -> Result<()> {
    let Some(sign) = std::env::var_os(HOLD) else {
        return Ok(());
    };
    wice::lab::catch_interrupts();
    let lab = lab(full_lab())?;
    fs::write(
        PathBuf::from(&sign).with_extension("new"),
        path_text(lab.directory())?,
    )?;
    fs::rename(PathBuf::from(&sign).with_extension("new"), &sign)?;
    while !wice::lab::interrupted() {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// One of everything.
fn full_lab() -> LabConfig {
    let mut homes = vec![
        HomeConfig::new("home-a", NatKind::PortRestricted),
        HomeConfig::new("home-b", NatKind::Cgnat),
        HomeConfig::new("home-c", NatKind::UdpBlocked),
        HomeConfig::new("home-d", NatKind::Public),
    ];
    homes[1].carrier = Some("isp".into());
    homes[2].tcp = TcpPolicy::ProxyOnly;
    homes[2].proxy = true;
    let carriers = vec![CarrierConfig {
        name: "isp".into(),
        hairpin: true,
    }];
    LabConfig {
        homes,
        carriers,
        ..LabConfig::default()
    }
}

fn held_lab() -> Result<(Child, PathBuf)> {
    let sign = std::env::temp_dir().join(
        format!("held-lab.{}.{:?}", std::process::id(), Instant::now())
            .replace([' ', '{', '}', ':', ','], ""),
    );
    let holder = Command::new(std::env::current_exe()?)
        .args(["--exact", "hold_a_lab", "--nocapture"])
        .env(HOLD, &sign)
        .stdout(Stdio::null())
        .spawn()?;
    eventually("the held lab stands", || sign.exists())?;
    let directory = PathBuf::from(fs::read_to_string(&sign)?);
    fs::remove_file(&sign)?;
    Ok((holder, directory))
}

fn send(process: &Child, signal: i32) {
    // SAFETY: sends a signal to a child that is not waited for yet.
    unsafe { libc::kill(process.id() as libc::pid_t, signal) };
}

/// What a lab must not change of the host.
#[derive(Debug, PartialEq, Eq)]
struct Host {
    interfaces: BTreeSet<String>,
    named_namespaces: BTreeSet<PathBuf>,
    mounts: BTreeSet<String>,
    forwarding: String,
}

impl Host {
    fn look() -> Result<Self> {
        let names = |folder: &str| -> BTreeSet<PathBuf> {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect()
        };
        let interfaces = fs::read_to_string("/proc/net/dev")?;
        let interfaces = interfaces.lines().filter_map(|line| line.split_once(':'));
        let mounts = BufReader::new(fs::File::open("/proc/self/mounts")?).lines();
        Ok(Self {
            interfaces: interfaces
                .map(|(name, _)| name.trim().to_string())
                .collect(),
            named_namespaces: names("/run/netns"),
            mounts: mounts.collect::<Result<_, _>>()?,
            forwarding: fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?,
        })
    }
}

/// The lab's namespaces as the kernel numbers them, by the names that it gives them.
fn namespaces_of(directory: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory.join("ns"))? {
        // The link leads to a descriptor in /proc, which leads to `net:[NUMBER]`.
        let descriptor = fs::read_link(entry?.path())?;
        found.insert(path_text(&fs::read_link(descriptor)?)?);
    }
    Ok(found)
}

/// Processes in any of these namespaces, or holding one open.
fn users_of(namespaces: &BTreeSet<String>) -> Result<BTreeSet<PathBuf>> {
    let mut users = BTreeSet::new();
    for process in fs::read_dir("/proc")?.flatten().map(|entry| entry.path()) {
        let uses = |link: &Path| {
            let target = fs::read_link(link).ok();
            target.is_some_and(|t| namespaces.contains(t.to_string_lossy().as_ref()))
        };
        if uses(&process.join("ns/net")) {
            users.insert(process);
        }
    }
    Ok(users)
}

fn is_gone(directory: &Path, namespaces: &BTreeSet<String>) -> bool {
    let held = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            namespaces.contains(target.to_string_lossy().as_ref())
        });
    !held && !directory.exists() && users_of(namespaces).is_ok_and(|users| users.is_empty())
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + GONE;
    while !holds() {
        ensure!(Instant::now() < deadline, "not within {GONE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn path_text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path is no text")?.to_string())
}
