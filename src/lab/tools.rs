//! What the lab needs of the machine: programs, and the right to make namespaces.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::error::LabError;

/// Programs and the Debian packages that have them.
const TOOLS: [(&str, &str); 3] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("turnserver", "coturn"),
];
/// Where administrators' programs are; the search path of other users often leaves it out.
const EXTRA_PATH: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
/// Set for the lab that runs in a user namespace of its own, so that it does not try once more.
const INSIDE: &str = "WICE_LAB_USER_NAMESPACE";

/// Where a program is, on the search path or among the administrators' programs.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(EXTRA_PATH.map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Names every program that is missing, with the packages to install; `coturn` is whether it is wanted.
pub fn check_tools(coturn: bool) -> Result<(), LabError> {
    let needed = TOOLS
        .into_iter()
        .filter(|(program, _)| coturn || *program != "turnserver");
    let (programs, packages): (Vec<_>, Vec<_>) = needed
        .filter(|(program, _)| find(program).is_none())
        .unzip();
    if programs.is_empty() {
        Ok(())
    } else {
        Err(LabError::Missing { programs, packages })
    }
}

/// Makes sure that this process may make network namespaces. Without the right, the program is
/// executed again (same process, same arguments) as root of a fresh user namespace, and this does
/// not return; where that is not allowed either, the error says what to do.
pub fn acquire_privilege() -> Result<(), LabError> {
    let Err(source) = may_unshare() else {
        return Ok(());
    };
    let unshare = find("unshare").filter(|_| std::env::var_os(INSIDE).is_none());
    let (Some(unshare), Ok(program)) = (unshare, std::env::current_exe()) else {
        return Err(LabError::Privilege { source });
    };
    let probe = Command::new(&unshare).args(["-Urnm", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return Err(LabError::Privilege { source });
    }
    let flags = ["-Urnm", "--"].map(OsStr::new);
    let source = Command::new(unshare)
        .args(flags)
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(LabError::Privilege { source })
}

/// Whether Ctrl-C or SIGTERM came since [`catch_interrupts`].
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Ends the lab as Ctrl-C does.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Turns the first Ctrl-C or SIGTERM into [`interrupted`], so that the lab is taken down in order;
/// the second ends the process at once, and the kernel takes the lab down.
pub fn catch_interrupts() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: zeros are a valid `sigaction`; the handler stores to an atomic and no more.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_interrupt as *const () as usize;
            action.sa_flags = libc::SA_RESETHAND;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// Runs a program that has the terminal: Ctrl-C is for it alone while it runs.
pub fn run_in_foreground(command: &mut Command) -> io::Result<ExitStatus> {
    // SAFETY: `signal` is safe to call before exec, and the handlers are plain constants.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            Ok(())
        });
        let before = libc::signal(libc::SIGINT, libc::SIG_IGN);
        let status = command.status();
        libc::signal(libc::SIGINT, before);
        status
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(_signal: libc::c_int) {
    interrupt();
}

fn may_unshare() -> io::Result<()> {
    let tried = std::thread::spawn(|| {
        // SAFETY: the thread ends here.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }
    });
    match tried.join() {
        Ok(result) => result.map_err(io::Error::from),
        Err(_) => Err(io::Error::other("a thread panicked")),
    }
}
