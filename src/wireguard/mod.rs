//! WireGuard backends: in-process (boringtun on a TUN device), kernel, userspace by its UAPI.
