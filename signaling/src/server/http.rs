//! HTTP in front: the upgrade, `/healthz`, `/metrics`.

use std::sync::Arc;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SecureRandom as _;

use super::accept::Guest;
use super::connection;
use super::metrics::Refusal;
use super::{Shared, Transport};
use crate::protocol::{
    ACCEPTS_CARRY, ACCEPTS_HEADER, ACCEPTS_PRESENCE, CHALLENGE_HEADER, CHALLENGE_LEN,
    MAX_FRAME_LEN, SERVERS_HEADER, SUBPROTOCOL, ServerAddress, servers_to_header,
};

/// WebSocket buffers a connection: the defaults of 128 KiB would let idle connections hold half a
/// gigabyte.
const READ_BUFFER_LEN: usize = 4 << 10;
const WRITE_BUFFER_LEN: usize = 16 << 10;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/metrics", get(metrics))
        // Any path: a proxy may have put the service anywhere.
        .fallback(upgrade)
        .with_state(shared)
}

async fn metrics(State(shared): State<Arc<Shared>>, guest: Extension<Arc<Guest>>) -> Response {
    let behind_proxy = matches!(shared.config.transport, Transport::Plain);
    let local = guest.address.is_loopback() && !behind_proxy;
    if !local && !shared.config.metrics_public {
        return StatusCode::NOT_FOUND.into_response();
    }
    let gauges = shared.registry().gauges();
    let text = shared.metrics.render(&gauges);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn upgrade(
    State(shared): State<Arc<Shared>>,
    Extension(guest): Extension<Arc<Guest>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else {
        shared.metrics.refuse(Refusal::Http);
        let text = "wice's signaling service: nodes come here by WebSocket\n";
        return (StatusCode::UPGRADE_REQUIRED, text).into_response();
    };
    let upgrade = upgrade
        .protocols([SUBPROTOCOL])
        .max_message_size(MAX_FRAME_LEN)
        .max_frame_size(MAX_FRAME_LEN)
        .read_buffer_size(READ_BUFFER_LEN)
        .write_buffer_size(WRITE_BUFFER_LEN)
        .max_write_buffer_size(2 * MAX_FRAME_LEN + WRITE_BUFFER_LEN);
    if upgrade.selected_protocol().is_none() {
        shared.metrics.refuse(Refusal::Http);
        let text = "this service speaks wice.v1 only: update wice\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    }
    let mut challenge = [0; CHALLENGE_LEN];
    if shared.random.fill(&mut challenge).is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let servers = servers_for(&shared, &headers);
    let accepts = headers
        .get(ACCEPTS_HEADER)
        .and_then(|value| value.to_str().ok());
    let hears_presence = accepts.is_some_and(|accepts| {
        accepts
            .split(',')
            .any(|word| word.trim() == ACCEPTS_PRESENCE)
    });
    let servers_header = HeaderValue::try_from(servers_to_header(&servers));
    let challenge_header = HeaderValue::try_from(STANDARD.encode(challenge));
    let mut response = upgrade.on_upgrade(async move |socket| {
        connection::serve(socket, shared, challenge, servers, hears_presence).await;
        // Counted until here.
        drop(guest);
    });
    if let (Ok(servers), Ok(challenge)) = (servers_header, challenge_header) {
        response.headers_mut().insert(SERVERS_HEADER, servers);
        response.headers_mut().insert(CHALLENGE_HEADER, challenge);
        let accepts = HeaderValue::from_static(ACCEPTS_CARRY);
        response.headers_mut().insert(ACCEPTS_HEADER, accepts);
    }
    response
}

/// The configured servers, behind the service itself under the name that the node used.
fn servers_for(shared: &Shared, headers: &HeaderMap) -> Vec<ServerAddress> {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let own = host
        .filter(|_| shared.config.stun)
        .and_then(|host| ServerAddress::stun_at(host, shared.port));
    own.into_iter()
        .chain(shared.config.servers.iter().cloned())
        .take(crate::protocol::MAX_SERVERS)
        .collect()
}
