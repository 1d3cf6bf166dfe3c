//! Whether some socket holds the port. Binding it to find out would take it away from a WireGuard that
//! is just coming up, so the kernel's tables are read.

use std::fs;
use std::io;

use super::SharedPortError;
use crate::io::udp::Family;

/// Fails with [`SharedPortError::NotHeld`] if no UDP socket of this thread's network namespace is
/// bound to `port` and to all addresses of `family`, as WireGuard's are.
pub(super) fn check(family: Family, port: u16) -> Result<(), SharedPortError> {
    // An IPv6 socket may hold both families; the tables do not tell which do.
    let tables: &[&str] = match family {
        Family::V4 => &["udp", "udp6"],
        Family::V6 => &["udp6"],
    };
    for table in tables {
        let text = match fs::read_to_string(format!("/proc/thread-self/net/{table}")) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => {
                let step = "read the table of UDP sockets";
                return Err(SharedPortError::System { step, port, source });
            }
        };
        if holds(&text, port) {
            return Ok(());
        }
    }
    Err(SharedPortError::NotHeld { family, port })
}

/// Whether a table (proc_net_udp: the second column is the local address and port, in hexadecimal)
/// has a socket on `port` of every address.
fn holds(table: &str, port: u16) -> bool {
    table.lines().skip(1).any(|line| {
        let local = line.split_ascii_whitespace().nth(1);
        let Some((address, its_port)) = local.and_then(|local| local.split_once(':')) else {
            return false;
        };
        address.bytes().all(|digit| digit == b'0') && u16::from_str_radix(its_port, 16) == Ok(port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
 1234: 00000000:CA6C 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 0000000000000000 0
 1235: 0100007F:CA6D 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 99 2 0000000000000000 0
 1236: 00000000:00FF 0100007F:CA6E 07 00000000:00000000 00:00000000 00000000     0        0 99 2 0000000000000000 0
";

    #[test]
    fn a_port_is_held_by_a_socket_of_every_address() {
        assert!(holds(TABLE, 51820));
        assert!(holds(TABLE, 255));
        assert!(!holds(TABLE, 51821), "of loopback alone");
        assert!(!holds(TABLE, 51822), "a remote port");
        assert!(!holds("", 51820));
        let six = "header\n 1: 00000000000000000000000000000000:CA6C 0:0 07\n";
        assert!(holds(six, 51820));
    }
}
