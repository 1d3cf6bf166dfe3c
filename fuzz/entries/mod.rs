//! The entry functions of all fuzzing: libFuzzer's targets (`fuzz/fuzz_targets`) and the seeded
//! mutator that runs everywhere (`tests/hostile`) call the same ones. Each takes any bytes, panics
//! only where a promise is broken, and says how much of it got past the parser, so that a run that
//! tries nothing is noticed.

// libFuzzer's targets are another crate, and what is unwrapped is the fuzzer's own.
#![allow(unreachable_pub, clippy::unwrap_used)]

mod agent;
mod datagrams;
mod frames;
mod node;
mod portmap;
mod records;
mod relay;
mod script;
mod slots;
mod state;
mod texts;
mod uapi;
mod wireguard;
mod world;

/// What became of one input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fed {
    /// What was handed to a parser or a state machine: one message, or for a script all its messages
    /// and, where they are what costs most, its stops in time.
    pub inputs: u64,
    /// Those that were well-formed or authentic.
    pub accepted: u64,
}

impl Fed {
    fn one(accepted: bool) -> Self {
        Self {
            inputs: 1,
            accepted: u64::from(accepted),
        }
    }

    fn count(&mut self, accepted: bool) {
        self.inputs += 1;
        self.accepted += u64::from(accepted);
    }
}

/// One parser, or one state machine with the messages that drive it.
pub struct Target {
    /// Also the name of libFuzzer's target and of the folder of seeds.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]) -> Fed,
    /// Inputs that get deep; the first is accepted.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// The longest input worth trying: a little more than the longest that is valid.
    pub max_len: usize,
}

const fn target(
    name: &'static str,
    run: fn(&[u8]) -> Fed,
    seeds: fn() -> Vec<Vec<u8>>,
    max_len: usize,
) -> Target {
    Target {
        name,
        run,
        seeds,
        max_len,
    }
}

/// Scripts hold some hundred steps.
const SCRIPT: usize = 2048;

/// All of them.
pub const TARGETS: &[Target] = &[
    target("advert", records::advert, records::advert_seeds, 2200),
    target("routes", records::routes, records::routes_seeds, 800),
    target(
        "membership",
        records::membership,
        records::membership_seeds,
        640,
    ),
    target(
        "revocations",
        records::revocations,
        records::revocations_seeds,
        2048,
    ),
    target("sealed", records::sealed, records::sealed_seeds, 2200),
    target(
        "overlay_routes",
        records::overlay_routes,
        records::overlay_routes_seeds,
        800,
    ),
    target("token", frames::token, frames::token_seeds, 1400),
    target(
        "client_frame",
        frames::client_frame,
        frames::client_frame_seeds,
        2400,
    ),
    target(
        "server_frame",
        frames::server_frame,
        frames::server_frame_seeds,
        4096,
    ),
    target(
        "signal_url",
        texts::signal_url,
        texts::signal_url_seeds,
        320,
    ),
    target(
        "server_address",
        texts::server_address,
        texts::server_address_seeds,
        320,
    ),
    target("relay_url", texts::relay_url, texts::relay_url_seeds, 320),
    target(
        "servers_header",
        texts::servers_header,
        texts::servers_header_seeds,
        2048,
    ),
    target("config", texts::config, texts::config_seeds, 2048),
    target("control", texts::control, texts::control_seeds, 4200),
    target(
        "proxy_answer",
        texts::proxy_answer,
        texts::proxy_answer_seeds,
        9000,
    ),
    target("proxy_url", texts::proxy_url, texts::proxy_url_seeds, 320),
    target("stun", datagrams::stun, datagrams::stun_seeds, 1500),
    target(
        "stun_server",
        datagrams::stun_server,
        datagrams::stun_server_seeds,
        256,
    ),
    target("agent", agent::agent, agent::seeds, SCRIPT),
    target("node", node::node, node::seeds, SCRIPT),
    target(
        "router_http",
        portmap::router_http,
        portmap::router_http_seeds,
        9000,
    ),
    target("router", portmap::router, portmap::router_seeds, SCRIPT),
    target("turn_datagram", relay::datagrams, relay::seeds, SCRIPT),
    target("turn_stream", relay::stream, relay::seeds, SCRIPT),
    target("tunnels", wireguard::tunnels, wireguard::seeds, SCRIPT),
    target("gso", wireguard::gso, wireguard::gso_seeds, 4096),
    target("slots", slots::slots, slots::seeds, SCRIPT),
    target("state", state::state, state::seeds, 4096),
    target("uapi", uapi::uapi, uapi::uapi_seeds, 2048),
];
