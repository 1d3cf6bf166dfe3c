//! Programs that the lab runs: started by one lasting thread, so that the kernel ends them when the
//! lab ends, however it ends; each in a process group of its own, with its output in a file.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::directory::Directory;
use super::error::{Doing as _, LabError};

/// What a program has after SIGTERM before it is killed: several round trips of a slow lab.
const TERM_GRACE: Duration = Duration::from_secs(3);
/// Lines of a log that an error quotes: an error of ours has three, a panic some more.
const LAST_LINES: usize = 10;
/// How often an ending is looked for.
const POLL: Duration = Duration::from_millis(5);

/// A running program. Dropping it kills it, with all that it started.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    status: Option<ExitStatus>,
}

impl Process {
    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file with its standard output and standard error.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// All that it wrote so far.
    pub fn output(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// An error that says what it did, and the last lines that it wrote.
    pub fn failed(&self, what: String) -> LabError {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LAST_LINES)..];
        let said = tail
            .iter()
            .map(|line| format!("  {line}"))
            .collect::<Vec<_>>()
            .join("\n");
        LabError::Service {
            service: self.name.clone(),
            what,
            said,
        }
    }

    /// How it ended, if it did.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// SIGTERM, and SIGKILL after 3 s. Gives how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.wait(TERM_GRACE).unwrap_or_else(|| self.kill9())
    }

    /// SIGKILL, as a crash.
    pub fn kill9(&mut self) -> ExitStatus {
        self.signal(libc::SIGKILL);
        let waited = self.child.wait();
        *self
            .status
            .get_or_insert(waited.unwrap_or(ExitStatus::from_raw(libc::SIGKILL)))
    }

    /// Waits for its end.
    pub fn wait(&mut self, most: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + most;
        loop {
            if let Some(status) = self.status() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Sends a signal to it and all that it started; nothing once it has ended.
    pub fn signal(&mut self, signal: i32) {
        if self.status().is_none() {
            // SAFETY: the process is ours and not waited for, so its group's number is not reused.
            unsafe { libc::kill(-(self.child.id() as libc::pid_t), signal) };
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status().is_none() {
            self.kill9();
        }
    }
}

/// The thread that starts programs. The kernel sends SIGKILL to them when it ends.
#[derive(Debug)]
pub(super) struct Spawner {
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

type Request = (Command, Sender<io::Result<Child>>);

impl Spawner {
    pub(super) fn start() -> io::Result<Self> {
        let (requests, inbox): (Sender<Request>, Receiver<Request>) = channel();
        let thread = std::thread::Builder::new()
            .name("lab-spawner".into())
            .spawn(move || {
                for (mut command, reply) in inbox {
                    let _ = reply.send(command.spawn());
                }
            })?;
        Ok(Self {
            requests: Some(requests),
            thread: Some(thread),
        })
    }

    /// Starts a program with its output in `DIRECTORY/logs/NAME.log`, appended.
    pub(super) fn spawn(
        &self,
        mut command: Command,
        name: &str,
        directory: &Directory,
    ) -> Result<Process, LabError> {
        let doing = || format!("starting {name}");
        let log = directory.log(name);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .doing(doing)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().doing(doing)?)
            .stderr(file);
        command.process_group(0);
        // SAFETY: one system call between fork and exec.
        unsafe {
            command.pre_exec(
                || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                },
            );
        }
        let (reply, answer) = channel();
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let requests = self.requests.as_ref().ok_or_else(gone).doing(doing)?;
        requests
            .send((command, reply))
            .map_err(|_| gone())
            .doing(doing)?;
        let child = answer
            .recv()
            .map_err(|_| gone())
            .doing(doing)?
            .doing(doing)?;
        Ok(Process {
            child,
            name: name.to_string(),
            log,
            status: None,
        })
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
