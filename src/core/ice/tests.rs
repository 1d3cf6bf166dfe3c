//! The engine in virtual time: what other stacks have got wrong, one test a case, by theme.

mod authenticity;
mod basics;
mod liveness;
mod nats;
mod net;
mod nomination;
mod owner;
mod pairs;
mod random;
mod roles;
mod world;
