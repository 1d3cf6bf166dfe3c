//! What nodes say to each other and to the signaling service. Sans-IO: time and randomness are
//! passed in.

mod advert;
mod candidate;
mod key;

pub use advert::{Advert, Session};
pub use candidate::{
    Candidate, CandidateKind, Filtering, Mapping, MAX_CANDIDATES, NatBehavior, RelayTransport,
};
pub use key::PublicKey;
