//! The endpoints that `kg` passes on (`discovered-endpoints`) are slots, too: loopback addresses of the node that tells them. A node that
//! joins and is given one has a path all the same.

use std::time::{Duration, Instant};

use anyhow::Result;
use wice::lab::NatKind;
use wice_kube_tests::{INTERFACE, KubeMesh, wait_until};

/// Two of the mesh agent's check-ins.
const TOLD: Duration = Duration::from_secs(70);
/// Two of its looks.
const CONFIGURED: Duration = Duration::from_secs(30);

const NODES: [(&str, NatKind); 3] = [
    ("home-a", NatKind::PortRestricted),
    ("home-b", NatKind::PortRestricted),
    ("home-c", NatKind::PortRestricted),
];

#[test]
fn a_slot_that_is_passed_on_leaves_no_new_node_without_a_path() -> Result<()> {
    let mut mesh = KubeMesh::build(&NODES.map(|(_, kind)| kind))?;
    for node in ["home-a", "home-b"] {
        mesh.join_alone(node)?;
        mesh.start_mesh_agent(node)?;
    }
    // Direct paths of home-a are in slots, so slots are what it discovers.
    mesh.start_wice_with("home-a", "direct = \"proxy\"\n")?;
    mesh.start_wice("home-b")?;
    mesh.wait_paths("home-a", "home-b")?;
    mesh.wait_pods("home-a", "home-b")?;
    wait_until("home-a tells its slot of home-b", TOLD, || {
        let told = mesh
            .cluster
            .annotation("home-a", "kilo.squat.ai/discovered-endpoints");
        told.is_ok_and(|told| told.is_some_and(|told| told.contains("\"127.")))
    })?;

    mesh.join_alone("home-c")?;
    mesh.start_mesh_agent("home-c")?;
    let of_b = mesh.interface("home-b")?.public_key().to_string();
    let mut table = String::new();
    wait_until("home-c is given the slot", CONFIGURED, || {
        table = mesh
            .interface("home-c")
            .and_then(|interface| interface.wg(&["show", INTERFACE, "endpoints"]))
            .unwrap_or_default();
        let mut lines = table.lines();
        lines.any(|line| line.starts_with(&of_b) && line.contains("\t127."))
    })?;
    println!("kg has given home-c:\n{table}");
    let began = Instant::now();
    mesh.start_wice("home-c")?;
    for other in ["home-a", "home-b"] {
        mesh.wait_paths("home-c", other)?;
        mesh.wait_pods("home-c", other)?;
    }
    println!(
        "home-c reaches both {:.1} s after wice began there",
        began.elapsed().as_secs_f64()
    );
    mesh.check_mesh_agents()
}
