//! Netmasks over addresses as integers.

/// The first `len` bits of an IPv4 address, the rest cleared.
pub(super) fn mask_v4(bits: u32, len: u8) -> u32 {
    bits & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

/// The first `len` bits of an IPv6 address, the rest cleared.
pub(super) fn mask_v6(bits: u128, len: u8) -> u128 {
    bits & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}
