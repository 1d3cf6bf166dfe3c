//! Connections to the API stay in the underlay, whatever a mesh agent routes into its interface, and a Service's address goes on working.

// The lints know tests by their attribute only; here all is test.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use wice::lab::{NatKind, NetNs};
use wice::signaling::kubernetes::Access;
use wice_kube_tests::{INTERFACE, KubeMesh, output};

/// What is answered at all is answered sooner.
const PATIENCE: Duration = Duration::from_secs(4);
/// The API's Service, which the tests' API server has in its certificate.
const SERVICE: &str = "10.96.0.1";

/// Asks the API for its version from a namespace.
fn ask(ns: &NetNs, access: &Access) -> Result<Duration, String> {
    // Its threads are where it is made.
    let runtime = ns.run(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
    });
    let runtime = runtime.unwrap().unwrap();
    let access = access.clone();
    let began = Instant::now();
    let asked = runtime.spawn(async move {
        let client = access.client().await.map_err(|error| error.to_string())?;
        match tokio::time::timeout(PATIENCE, client.apiserver_version()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("{:#}", anyhow::Error::from(error))),
            Err(_) => Err("no answer".to_owned()),
        }
    });
    let answer = runtime.block_on(asked).unwrap();
    runtime.shutdown_background();
    answer.map(|()| began.elapsed())
}

fn ip(ns: &NetNs, arguments: &str) {
    let words = arguments.split(' ');
    output(ns.command("ip").args(words)).unwrap();
}

/// What kube-proxy does to the Service's address.
fn serve(ns: &NetNs, to: std::net::SocketAddr) {
    let rule = format!("ip daddr {SERVICE} tcp dport 443 dnat to {to}");
    for words in [
        "add table ip service",
        "add chain ip service output { type nat hook output priority -100 ; }",
        &format!("add rule ip service output {rule}"),
    ] {
        output(ns.command("nft").arg(words)).unwrap();
    }
}

#[test]
fn the_api_is_reached_by_the_underlay_though_its_address_is_routed_into_the_mesh() {
    let mut mesh = KubeMesh::build(&[NatKind::Public]).unwrap();
    mesh.join_alone("home-a").unwrap();
    let node = mesh.lab.node("home-a").unwrap().ns();
    let api = mesh.cluster.address();
    let direct = Access {
        server: Some(mesh.cluster.url()),
        ca_file: Some(mesh.cluster.ca_file()),
        token_file: Some(mesh.cluster.admin_token().unwrap()),
        mesh: Some(INTERFACE.to_owned()),
        ..Access::default()
    };
    let service = Access {
        server: Some(format!("https://{SERVICE}")),
        ..direct.clone()
    };
    serve(node, api);
    ask(node, &direct).unwrap();
    ask(node, &service).unwrap();

    // What kg does on a leader. An interface without peers swallows everything.
    ip(node, &format!("route add {}/32 dev kilo0", api.ip()));
    let heedless = Access {
        mesh: None,
        ..direct.clone()
    };
    let server = format!("--server=https://{api}");
    let kubectl = wice_kube_tests::asset("kubectl").unwrap();
    let swallowed = node
        .command(kubectl)
        .args([
            "version",
            "--request-timeout=2s",
            "--insecure-skip-tls-verify",
            &server,
        ])
        .output()
        .unwrap();
    assert!(!swallowed.status.success(), "the route leads into the mesh");
    let error = ask(node, &heedless).unwrap_err();
    assert!(error.contains("no answer"), "{error}");
    let took = ask(node, &direct).unwrap();
    println!("routed into the mesh: {took:?}");
    let took = ask(node, &service).unwrap();
    println!("a Service that ends there: {took:?}");

    // Nothing else leads there: told, with what to do, and not tried through the mesh.
    ip(node, "route del default");
    let error = ask(node, &direct).unwrap_err();
    assert!(
        error.contains("routed into kilo0") && error.contains("--api-server"),
        "{error}"
    );
}

#[test]
fn a_service_that_ends_on_this_machine_or_behind_another_interface_is_reached() {
    let mesh = KubeMesh::build(&[NatKind::Public]).unwrap();
    let machine = mesh.lab.node("signal").unwrap().ns();
    let node = mesh.lab.node("home-a").unwrap().ns();
    for ns in [machine, node] {
        serve(ns, mesh.cluster.address());
    }
    let access = Access {
        server: Some(format!("https://{SERVICE}")),
        ca_file: Some(mesh.cluster.ca_file()),
        token_file: Some(mesh.cluster.admin_token().unwrap()),
        mesh: Some(INTERFACE.to_owned()),
        ..Access::default()
    };
    let took = ask(machine, &access).unwrap();
    println!("a Service that ends on this machine: {took:?}");
    // The Service's own route leads elsewhere than what it stands for, as with a default route beside a private network.
    ip(node, "tuntap add dev hole mode tun");
    ip(node, "link set hole up");
    ip(node, &format!("route add {SERVICE}/32 dev hole"));
    let took = ask(node, &access).unwrap();
    println!("a Service that ends behind another interface: {took:?}");
}
