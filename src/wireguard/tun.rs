//! A TUN device with offload: the kernel hands over, and takes, up to 64 KiB of a flow at once.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::inprocess::{Device, Offload, VNET_HEADER_LEN};

/// Where the kernel makes TUN devices.
const CLONE_DEVICE: &str = "/dev/net/tun";
/// IFNAMSIZ less the terminating zero.
pub const MAX_NAME_LEN: usize = 15;

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel has no TUN module, or a container was not given the device.
    #[error(
        "cannot create {name}: there is no /dev/net/tun\n  load it with: modprobe tun; in a container pass the device: --device /dev/net/tun"
    )]
    NoTun {
        /// The interface that was asked for.
        name: String,
    },
    /// CAP_NET_ADMIN is missing.
    #[error(
        "cannot create {name}: no permission (CAP_NET_ADMIN is missing)\n  run as root, or grant it: setcap cap_net_admin,cap_net_raw+ep $(command -v wice)"
    )]
    NoPermission {
        /// The interface that was asked for.
        name: String,
    },
    /// An interface of that name exists: of another kind, or held by another program.
    #[error(
        "cannot create {name}: an interface of this name exists or is in use\n  is wice running already? otherwise it belongs to something else: choose another name (--interface)"
    )]
    NameTaken {
        /// The interface that was asked for.
        name: String,
    },
    /// Not what an interface may be called.
    #[error(
        "{name:?} cannot be an interface's name\n  use 1 to 15 letters, digits, dots, dashes or underscores"
    )]
    BadName {
        /// The interface that was asked for.
        name: String,
    },
    /// Anything else that the kernel said.
    #[error("cannot {step} for {name}: {source}")]
    System {
        /// The interface that was asked for.
        name: String,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A TUN device. It goes when this is dropped.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    vnet: bool,
    offload: Offload,
}

impl Tun {
    /// Makes the device, non-blocking and down, with as much offload as the kernel has; `wanted`
    /// false makes it without any.
    pub fn create(name: &str, wanted: bool) -> Result<Self, TunError> {
        let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let good = (1..=MAX_NAME_LEN).contains(&name.len())
            && name.chars().all(usable)
            && name != "."
            && name != "..";
        if !good {
            return Err(TunError::BadName {
                name: name.to_owned(),
            });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(CLONE_DEVICE)
            .map_err(|e| classify(name, "open /dev/net/tun", e))?;
        let vnet = wanted && attach(&file, name, libc::IFF_VNET_HDR).is_ok();
        if !vnet {
            attach(&file, name, 0).map_err(|e| classify(name, "create the interface", e))?;
        }
        let offload = if vnet {
            enable_offload(&file)
        } else {
            Offload::default()
        };
        Ok(Self {
            file,
            name: name.to_owned(),
            vnet,
            offload,
        })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets the MTU: bytes of the largest inner packet.
    pub fn set_mtu(&self, mtu: u32) -> Result<(), TunError> {
        let mut request = request(&self.name);
        request.ifr_ifru.ifru_mtu = mtu as libc::c_int;
        // SAFETY: no pointers.
        let socket =
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return Err(classify(
                &self.name,
                "open a control socket",
                io::Error::last_os_error(),
            ));
        }
        // SAFETY: a descriptor just opened, and an ifreq that lives for the call.
        let result = unsafe { libc::ioctl(socket, libc::SIOCSIFMTU as _, &raw mut request) };
        let error = io::Error::last_os_error();
        // SAFETY: opened above, used by nobody else.
        unsafe { libc::close(socket) };
        if result != 0 {
            return Err(classify(&self.name, "set the MTU", error));
        }
        Ok(())
    }
}

impl Device for Tun {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.vnet {
            return self.file.read(buffer);
        }
        let Some((header, packet)) = buffer.split_first_chunk_mut::<VNET_HEADER_LEN>() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        header.fill(0);
        let len = self.file.read_vectored(&mut [IoSliceMut::new(packet)])?;
        Ok(VNET_HEADER_LEN + len)
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let parts = if self.vnet {
            parts
        } else {
            parts.get(1..).unwrap_or_default()
        };
        self.file.write_vectored(parts).map(|_| ())
    }

    fn offload(&self) -> Offload {
        self.offload
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn attach(file: &File, name: &str, flags: libc::c_int) -> io::Result<()> {
    let mut request = request(name);
    // EXCL: a persistent device of this name is another's.
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL | flags;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: a valid descriptor, and an ifreq that lives for the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// USO needs kernel 6.2; a kernel without it still has TSO. Both families or none: a flow is not
/// asked which it is.
fn enable_offload(file: &File) -> Offload {
    let tso = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let uso = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    if set_offload(file, tso | uso) {
        Offload {
            tcp: true,
            udp: true,
        }
    } else if set_offload(file, tso) {
        Offload {
            tcp: true,
            udp: false,
        }
    } else {
        Offload::default()
    }
}

fn set_offload(file: &File, features: libc::c_uint) -> bool {
    // SAFETY: a valid descriptor; TUNSETOFFLOAD takes its argument by value.
    unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::TUNSETOFFLOAD as _,
            libc::c_ulong::from(features),
        ) == 0
    }
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data for which all zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(name.bytes().take(MAX_NAME_LEN))
    {
        *to = from as libc::c_char;
    }
    request
}

fn classify(name: &str, step: &'static str, source: io::Error) -> TunError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoTun { name },
        Some(libc::EPERM | libc::EACCES) => TunError::NoPermission { name },
        Some(libc::EBUSY | libc::EEXIST) => TunError::NameTaken { name },
        _ => TunError::System { name, step, source },
    }
}
