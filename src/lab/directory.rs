//! The lab's directory: logs, states, sockets. Its name tells whose it is, so that what a killed lab
//! left is found and removed by the next.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// `wice-lab.PID.STARTTIME.N`: a number that came to another process has another start time.
const PREFIX: &str = "wice-lab.";
/// Environment variable of everything that runs in a lab: the lab's directory.
pub(super) const MARK: &str = "WICE_LAB";
/// Stands in a directory that is to be kept.
const KEPT: &str = "kept";
/// Where the start time stands after the program's name in `/proc/PID/stat` (proc(5), field 22).
const STARTTIME_AFTER_NAME: usize = 19;

/// A directory below the system's temporary one; removed when dropped.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    keep: bool,
}

impl Directory {
    /// Removes what killed labs left, and makes a new one.
    pub(super) fn create(keep: bool) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        remove_stale();
        let pid = std::process::id();
        let start = start_time(pid).unwrap_or_default();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("{PREFIX}{pid}.{start}.{number}"));
        fs::create_dir(&path)?;
        fs::create_dir(path.join("logs"))?;
        fs::create_dir(path.join("ns"))?;
        if keep {
            fs::write(path.join(KEPT), "")?;
        }
        Ok(Self { path, keep })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The log of a program.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        end_processes(&self.path);
        if self.keep {
            // Links to namespaces that are gone would only mislead.
            let _ = fs::remove_dir_all(self.path.join("ns"));
        } else {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Ends the programs and removes the directories of labs whose process is gone, but not those that
/// were kept on purpose.
fn remove_stale() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)) else {
            continue;
        };
        let mut parts = owner.split('.').map(str::parse::<u64>);
        let (Some(Ok(pid)), Some(Ok(start))) = (parts.next(), parts.next()) else {
            continue;
        };
        let pid = u32::try_from(pid).unwrap_or_default();
        let path = entry.path();
        if start_time(pid) == Some(start) {
            continue;
        }
        end_processes(&path);
        if !path.join(KEPT).exists() {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Ends what was started in a lab and has outlived whoever started it: the environment, which
/// children inherit, says whose they are.
fn end_processes(lab: &Path) {
    let mark = [MARK.as_bytes(), b"=", lab.as_os_str().as_bytes()].concat();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok());
        let Some(pid) = pid.filter(|&pid| pid != std::process::id()) else {
            continue;
        };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment
            .split(|&byte| byte == 0)
            .any(|variable| variable == mark)
        {
            // SAFETY: sends a signal.
            unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
        }
    }
}

/// When a process started, in ticks since boot; `None` if there is no such process.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name
        .split_whitespace()
        .nth(STARTTIME_AFTER_NAME)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_labs_directory_goes_and_a_living_ones_stays() {
        let living = Directory::create(false).unwrap();
        // No process has a number past the kernel's limit of 2^22.
        let dead = std::env::temp_dir().join(format!("{PREFIX}4999999.1.0"));
        fs::create_dir_all(dead.join("ns")).unwrap();
        // Killed while it was being removed.
        let half = std::env::temp_dir().join(format!("{PREFIX}4999997.1.0"));
        fs::create_dir_all(half.join("logs")).unwrap();
        let kept = std::env::temp_dir().join(format!("{PREFIX}4999998.1.0"));
        fs::create_dir_all(&kept).unwrap();
        fs::write(kept.join(KEPT), "").unwrap();
        remove_stale();
        assert!(living.path().is_dir());
        assert!(!dead.exists() && !half.exists());
        assert!(kept.is_dir());
        fs::remove_dir_all(kept).unwrap();
        let path = living.path().to_path_buf();
        drop(living);
        assert!(!path.exists());
    }

    #[test]
    fn a_start_time_tells_processes_apart() {
        assert!(start_time(std::process::id()).is_some_and(|start| start > 0));
        assert_eq!(start_time(4_999_999), None);
    }
}
