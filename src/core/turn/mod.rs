//! The TURN client (RFC 8656): one allocation on one server over one connection. No I/O.
