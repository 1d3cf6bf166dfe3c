//! The signaling service: WebSocket over TLS, records kept in memory by key and fanned out.
