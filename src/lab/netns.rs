//! Network namespaces without names in the host: each is held by file descriptors of this process,
//! so that nothing of it outlives the lab, however the lab ends.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::directory::MARK;
use super::error::{Doing as _, LabError};

/// A network namespace and the mount namespace that goes with it.
#[derive(Clone, Debug)]
pub struct NetNs {
    name: String,
    net: Arc<OwnedFd>,
    mnt: Arc<OwnedFd>,
    directory: Arc<PathBuf>,
}

/// Files of the lab that every namespace sees instead of the host's.
#[derive(Clone, Debug)]
pub(super) struct Overlays {
    /// The lab's directory.
    pub(super) directory: Arc<PathBuf>,
    /// Shown as `/etc/hosts`.
    pub(super) hosts: PathBuf,
    /// Shown as `/etc/resolv.conf`: the lab has no resolver, and the host's would time out.
    pub(super) resolv: PathBuf,
}

impl NetNs {
    /// Makes a namespace with `lo` down and these settings below `/proc/sys/net`. A setting that
    /// this kernel does not have is passed over.
    pub(super) fn new(
        name: &str,
        overlays: &Overlays,
        settings: &[(&str, &str)],
    ) -> Result<Self, LabError> {
        let made = in_thread(|| {
            // SAFETY: the thread is new, runs nothing else, and ends here; neither descriptors
            // nor memory are unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.map_err(
                |error| LabError::Privilege {
                    source: error.into(),
                },
            )?;
            mount_overlays(overlays).doing(|| format!("mounting for {name}"))?;
            for (key, value) in settings {
                set(key, value).doing(|| format!("setting {key} in {name}"))?;
            }
            let open =
                |kind: &str| File::open(format!("/proc/thread-self/ns/{kind}")).map(OwnedFd::from);
            let (net, mnt) = (open("net"), open("mnt"));
            Ok((
                net.doing(|| name.to_string())?,
                mnt.doing(|| name.to_string())?,
            ))
        })?;
        let (net, mnt) = (Arc::new(made.0), Arc::new(made.1));
        Ok(Self {
            name: name.to_string(),
            net,
            mnt,
            directory: overlays.directory.clone(),
        })
    }

    /// What the lab calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path by which other programs of this user reach the namespace while the lab runs:
    /// `nsenter --net=PATH`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.net.as_raw_fd()
        ))
    }

    /// Runs `work` in a thread inside the namespace. Sockets that it makes stay in the namespace
    /// wherever they are used, and threads that it starts run there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        in_thread(|| {
            move_into_link_name_space(self.net.as_fd(), Some(LinkNameSpaceType::Network))
                .doing(|| format!("entering {}", self.name))?;
            Ok(work())
        })
    }

    /// A command that will run inside the namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env(MARK, &*self.directory);
        let (net, mnt) = (self.net.clone(), self.mnt.clone());
        // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))?;
                // The working folder is taken along: a change of mount namespace goes to its root.
                let here = rustix::fs::open(
                    c".",
                    rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
                    rustix::fs::Mode::empty(),
                );
                move_into_link_name_space(mnt.as_fd(), Some(LinkNameSpaceType::Mount))?;
                if let Ok(here) = here {
                    let _ = rustix::process::fchdir(here);
                }
                Ok(())
            });
        }
        command
    }

    /// Runs a setup program with this text as its input, and fails with what it says on error.
    pub(super) fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<(), LabError> {
        let doing = || format!("running {program} in {}", self.name);
        let mut child = self
            .command(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .doing(doing)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ends early says why on its standard error, which is read below.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().doing(doing)?;
        if output.status.success() {
            return Ok(());
        }
        Err(LabError::Tool {
            program: program.to_string(),
            namespace: self.name.clone(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_string(),
        })
    }

    /// Changes a setting below `/proc/sys/net`.
    pub fn set(&self, key: &str, value: &str) -> Result<(), LabError> {
        self.run(|| set(key, value))?
            .doing(|| format!("setting {key} in {}", self.name))
    }

    /// Forgets every flow that the namespace tracks, as a reboot does.
    pub fn flush_conntrack(&self) -> Result<(), LabError> {
        self.run(flush_conntrack)?
            .doing(|| format!("flushing flows of {}", self.name))
    }
}

/// Runs `work` in a thread of its own, whose namespaces it may change.
fn in_thread<T: Send>(work: impl FnOnce() -> Result<T, LabError> + Send) -> Result<T, LabError> {
    std::thread::scope(|scope| {
        let joined = scope.spawn(work).join();
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// `/sys` of the namespace's own devices, an empty `/run` (sockets of WireGuard daemons are named
/// by interface alone), and the lab's hosts. Each is a comfort: what cannot be mounted, as in some
/// containers, is left as it is.
fn mount_overlays(overlays: &Overlays) -> io::Result<()> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let _ = mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None);
    if !overlays.directory.starts_with("/run") {
        let _ = mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None);
    }
    let _ = mount_bind(&overlays.hosts, "/etc/hosts");
    let _ = mount_bind(&overlays.resolv, "/etc/resolv.conf");
    Ok(())
}

fn set(key: &str, value: &str) -> io::Result<()> {
    match std::fs::write(Path::new("/proc/sys/net").join(key), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// One netlink request: IPCTNL_MSG_CT_DELETE without attributes deletes all
/// (linux/netfilter/nfnetlink_conntrack.h).
fn flush_conntrack() -> io::Result<()> {
    use rustix::net::netlink::NETFILTER;
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
    const CT_DELETE: u16 = (1 << 8) | 2; // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
    const REQUEST_ACK: u16 = 0x1 | 0x4; // NLM_F_REQUEST | NLM_F_ACK
    const LENGTH: u32 = 20; // nlmsghdr (16) and nfgenmsg (4)

    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(NETFILTER),
    )?;
    let mut request = [0u8; LENGTH as usize];
    request[0..4].copy_from_slice(&LENGTH.to_ne_bytes());
    request[4..6].copy_from_slice(&CT_DELETE.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST_ACK.to_ne_bytes());
    rustix::net::send(&socket, &request, SendFlags::empty())?;
    let mut reply = [0u8; 256];
    let (length, _) = rustix::net::recv(&socket, &mut reply, RecvFlags::empty())?;
    match reply.get(16..20).filter(|_| length >= 20) {
        Some(&[a, b, c, d]) => match i32::from_ne_bytes([a, b, c, d]) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        },
        Some(_) | None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}
