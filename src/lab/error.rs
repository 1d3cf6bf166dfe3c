//! What can go wrong with a lab: what happened, why, and what to do next.

use std::io;

/// Why a lab could not be built, changed or asked.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Programs that the lab runs are not installed.
    #[error("the lab needs programs that are not here: {}\n  install them: apt-get install {}", .programs.join(", "), .packages.join(" "))]
    Missing {
        /// The programs.
        programs: Vec<&'static str>,
        /// The Debian packages that have them.
        packages: Vec<&'static str>,
    },
    /// No right to make namespaces.
    #[error(
        "cannot make network namespaces: {source}\n  run as root, or allow user namespaces: sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0"
    )]
    Privilege {
        /// What the kernel said.
        source: io::Error,
    },
    /// No TUN device.
    #[error(
        "cannot make a TUN device: {source}\n  /dev/net/tun must exist and be open to this user: modprobe tun; in a container, pass the device in"
    )]
    Tun {
        /// What the kernel said.
        source: io::Error,
    },
    /// The configuration contradicts itself.
    #[error("this lab cannot be built: {0}")]
    Config(String),
    /// Nothing has this name.
    #[error("nothing in the lab is named {name}\n  there are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A program that sets the lab up failed.
    #[error("{program} failed in {namespace}: {stderr}")]
    Tool {
        /// The program.
        program: String,
        /// Where it ran.
        namespace: String,
        /// What it said.
        stderr: String,
    },
    /// A service did not answer in time, or ended.
    #[error("{service} {what}; it said last:\n{said}")]
    Service {
        /// The service.
        service: String,
        /// What it did.
        what: String,
        /// The end of its log, which goes with the lab.
        said: String,
    },
    /// Ctrl-C or SIGTERM.
    #[error("interrupted")]
    Interrupted,
    /// Something of the operating system failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Names what was being done when an I/O operation failed.
pub(super) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, LabError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|error| LabError::Io {
            doing: what(),
            source: error.into(),
        })
    }
}
