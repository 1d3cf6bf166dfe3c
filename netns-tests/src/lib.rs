//! What the namespace tests share: building labs and meshes of real daemons in them, saying what
//! must come of a pair, and telling times.
//!
//! These tests need root (or `unshare -Urnm cargo test -p wice-netns-tests`) and the programs that
//! the lab names. A test that cannot run fails and says why.

pub mod interface;
mod mesh;
mod random;
mod stream;
mod table;
mod want;
mod wireguard;

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use wice::lab::{Lab, LabConfig};

pub use mesh::{Mesh, Pinged};
pub use random::Random;
pub use stream::Stream;
pub use table::{Table, seconds};
pub use want::Want;
pub use wireguard::{WG, WireGuards};

/// How long silence must last to count as an answer in a lab without delay: a hundred times what
/// an answer takes there, on a machine that is busy.
pub const SILENCE: Duration = Duration::from_millis(500);
/// Round trip of labs in which times are told: two homes of one country.
pub const RTT: Duration = Duration::from_millis(40);
/// Until paths must be as the networks allow: the slowest way (an office that drops UDP and all
/// but the web's ports) takes 15 s at most.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Builds a lab, of the `wice` that was built beside these tests unless another is named, with a message that says what is missing.
pub fn lab(mut config: LabConfig) -> Result<Lab> {
    if config.binary.is_none() {
        config.binary = Some(wice_binary()?);
    }
    Lab::build(config).context("the lab could not be built, so nothing was tested")
}

/// The `wice` that was built beside these tests: in the folder of the running program, or above it,
/// since cargo puts tests into `deps`.
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

/// Times are told by one test at a time: others would take the processors away meanwhile.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks until there is something or patience ends.
pub fn wait_for<T>(
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// Takes a capability, one of the first 32, from this thread (capset(2)).
pub fn drop_capability(capability: u32) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = [VERSION_3, 0];
    let mut data = [0u32; 6];
    // SAFETY: both pointers are to what the call wants: a header, and two sets of three words.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    data[0] &= !(1 << capability);
    // SAFETY: as above.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
