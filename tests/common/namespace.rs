//! Network namespaces of a test's own.

#![allow(dead_code, reason = "not every user needs all of it")]
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests are not tests to clippy"
)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A network namespace; it goes with the last descriptor.
#[derive(Clone)]
pub(crate) struct Namespace(Arc<File>);

impl Namespace {
    /// `None` without the right to make one, which is said, and is a failure in CI.
    pub(crate) fn new() -> Option<Self> {
        let made = std::thread::spawn(|| {
            // SAFETY: no pointers; this thread alone changes its namespace, and ends.
            (unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0)
                .then(|| File::open("/proc/thread-self/ns/net").unwrap())
        });
        let made = made.join().unwrap();
        if made.is_none() || !std::path::Path::new("/dev/net/tun").exists() {
            assert!(
                std::env::var_os("CI").is_none(),
                "needs root and /dev/net/tun"
            );
            eprintln!("NOT RUN: needs root (network namespaces) and /dev/net/tun");
            return None;
        }
        let namespace = Self(Arc::new(made?));
        namespace.ip("link set lo up");
        Some(namespace)
    }

    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let file = Arc::clone(&self.0);
        std::thread::spawn(move || {
            // SAFETY: a descriptor of a namespace; this thread alone moves.
            assert_eq!(
                unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) },
                0
            );
            run()
        })
    }

    pub(crate) fn ip(&self, arguments: &str) {
        self.run("ip", arguments);
    }

    pub(crate) fn run(&self, program: &'static str, arguments: &str) {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        let ran = self.spawn(move || {
            (
                Command::new(program).args(&arguments).output().unwrap(),
                arguments,
            )
        });
        let (output, arguments) = ran.join().unwrap();
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Two that are joined by `veth-a` (192.0.2.1, 2001:db8::1) and `veth-b` (…2).
pub(crate) fn two_namespaces() -> Option<[Namespace; 2]> {
    let (a, b) = (Namespace::new()?, Namespace::new()?);
    a.ip(&format!(
        "link add veth-a type veth peer name veth-b netns {}",
        b.path()
    ));
    for (namespace, name, host) in [(&a, "veth-a", 1), (&b, "veth-b", 2)] {
        namespace.ip(&format!("address add 192.0.2.{host}/24 dev {name}"));
        namespace.ip(&format!("address add 2001:db8::{host}/64 dev {name} nodad"));
        namespace.ip(&format!("link set {name} up"));
    }
    Some([a, b])
}
