//! Annotations of Nodes and specs of Peers, read and written as `kg` does (Kilo's `pkg/k8s/backend.go`).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use kube::api::DynamicObject;
use serde_json::{Map, Value, json};

use super::topology::{Node, Outside};

const PREFIX: &str = "kilo.squat.ai";

/// A Node; what it does not tell is empty.
pub(super) fn node(object: &DynamicObject) -> Node {
    let annotations = object.metadata.annotations.as_ref();
    let annotation = |name: &str| {
        let text = annotations?.get(&format!("{PREFIX}/{name}"))?;
        Some(text.as_str())
    };
    let ip = |text: &str| text.split('/').next()?.parse::<IpAddr>().ok();
    let number = |name: &str| annotation(name).and_then(|text| text.parse::<u64>().ok());
    Node {
        key: annotation("key").unwrap_or_default().to_owned(),
        endpoint: annotation("endpoint").and_then(|text| text.parse().ok()),
        internal_ip: annotation("internal-ip").and_then(ip),
        last_seen: number("last-seen").unwrap_or(0),
        keepalive: number("persistent-keepalive")
            .and_then(|seconds| u16::try_from(seconds).ok())
            .unwrap_or(0),
        wireguard_ip: annotation("wireguard-ip").unwrap_or_default().to_owned(),
        pods: object.data["spec"]["podCIDR"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        discovered: annotation("discovered-endpoints")
            .map(discovered)
            .unwrap_or_default(),
    }
}

/// A Peer, if it is whole.
pub(super) fn outside(object: &DynamicObject) -> Option<Outside> {
    let spec = &object.data["spec"];
    let endpoint = &spec["endpoint"];
    let endpoint = endpoint["dnsOrIP"]["ip"].as_str().and_then(|ip| {
        let port = u16::try_from(endpoint["port"].as_u64()?).ok()?;
        Some(SocketAddr::new(ip.parse().ok()?, port))
    });
    let allowed = spec["allowedIPs"].as_array()?.iter();
    Some(Outside {
        key: spec["publicKey"].as_str()?.to_owned(),
        endpoint,
        allowed: allowed
            .filter_map(|ip| Some(ip.as_str()?.to_owned()))
            .collect(),
        keepalive: spec["persistentKeepalive"]
            .as_u64()
            .and_then(|seconds| u16::try_from(seconds).ok()),
    })
}

/// What a check-in writes.
pub(super) fn written(node: &Node) -> Value {
    let told: Map<String, Value> = node
        .discovered
        .iter()
        .map(|(key, at)| {
            let place = json!({"IP": at.ip().to_string(), "Port": at.port(), "Zone": ""});
            (key.clone(), place)
        })
        .collect();
    let text = |ip: Option<String>| Value::String(ip.unwrap_or_default());
    patch([
        ("endpoint", text(node.endpoint.map(|at| at.to_string()))),
        (
            "internal-ip",
            text(node.internal_ip.map(|ip| format!("{ip}/24"))),
        ),
        ("key", node.key.as_str().into()),
        ("last-seen", node.last_seen.to_string().into()),
        ("wireguard-ip", node.wireguard_ip.as_str().into()),
        (
            "discovered-endpoints",
            Value::Object(told).to_string().into(),
        ),
        ("granularity", "full".into()),
    ])
}

/// What `--clean-up` removes at the end.
pub(super) fn removed() -> Value {
    let names = [
        "endpoint",
        "internal-ip",
        "key",
        "last-seen",
        "wireguard-ip",
        "discovered-endpoints",
        "granularity",
    ];
    patch(names.map(|name| (name, Value::Null)))
}

fn patch<const N: usize>(annotations: [(&str, Value); N]) -> Value {
    let annotations: Map<String, Value> = annotations
        .into_iter()
        .map(|(name, value)| (format!("{PREFIX}/{name}"), value))
        .collect();
    json!({"metadata": {"annotations": annotations}})
}

fn discovered(text: &str) -> BTreeMap<String, SocketAddr> {
    let places: BTreeMap<String, Value> = serde_json::from_str(text).unwrap_or_default();
    let places = places.into_iter().filter_map(|(key, at)| {
        let port = u16::try_from(at["Port"].as_u64()?).ok()?;
        Some((key, SocketAddr::new(at["IP"].as_str()?.parse().ok()?, port)))
    });
    places.collect()
}
