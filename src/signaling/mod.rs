//! Clients of every signaling backend.
