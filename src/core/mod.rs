//! Sans-IO: no sockets, clock, RNG or environment. Time and seeds are passed in.

pub mod turn;
