//! The manifests for Kubernetes: as its own types read them (a field that they do not know, or of another kind, is lost on the way
//! and told), as a real API server takes them, and as the program does.

// The lints know tests by their attribute only; here all is test.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

use std::process::Command;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, PersistentVolumeClaim, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use wice::signaling::kubernetes::state::{MeshAgent, Names};
use wice_kube_tests::{Cluster, NAMESPACE, find, kustomized, output, overlay_folder, wice_binary};

const OVERLAYS: [&str; 7] = [
    "kilo-k3s",
    "kilo-kubeadm",
    "wns",
    "turn",
    "signaling",
    "podmonitor",
    "bridge",
];

/// What kustomize makes of an overlay.
fn rendered(overlay: &str) -> Vec<Value> {
    kustomized(overlay).unwrap()
}

/// Read as `T` and written again, nothing is missing.
fn reads_as<T: Serialize + DeserializeOwned>(object: &Value) {
    let typed: T = serde_json::from_value(object.clone())
        .unwrap_or_else(|error| panic!("{error}: {}", object["metadata"]["name"]));
    let again = serde_json::to_value(&typed).unwrap();
    let lost = missing(object, &again, "");
    assert!(
        lost.is_empty(),
        "{}: {lost:?} are no fields",
        object["kind"]
    );
}

/// Paths of what `again` lacks. Empty maps and lists may be left out.
fn missing(object: &Value, again: &Value, at: &str) -> Vec<String> {
    match (object, again) {
        (Value::Object(fields), _) => fields
            .iter()
            .filter(|(_, value)| !is_empty(value))
            .flat_map(|(name, value)| missing(value, &again[name], &format!("{at}.{name}")))
            .collect(),
        (Value::Array(items), Value::Array(others)) if items.len() == others.len() => items
            .iter()
            .zip(others)
            .flat_map(|(item, other)| missing(item, other, &format!("{at}[]")))
            .collect(),
        (object, again) if object == again => Vec::new(),
        _ => vec![at.to_owned()],
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[test]
fn every_field_of_every_overlay_is_one_that_kubernetes_knows() {
    for overlay in OVERLAYS {
        for object in rendered(overlay) {
            match object["kind"].as_str().unwrap() {
                "Namespace" => reads_as::<Namespace>(&object),
                "ServiceAccount" => reads_as::<ServiceAccount>(&object),
                "ClusterRole" => reads_as::<ClusterRole>(&object),
                "ClusterRoleBinding" => reads_as::<ClusterRoleBinding>(&object),
                "ConfigMap" => reads_as::<ConfigMap>(&object),
                "Secret" => reads_as::<Secret>(&object),
                "Service" => reads_as::<Service>(&object),
                "PersistentVolumeClaim" => reads_as::<PersistentVolumeClaim>(&object),
                "Deployment" => reads_as::<Deployment>(&object),
                "DaemonSet" => reads_as::<DaemonSet>(&object),
                "StatefulSet" => reads_as::<StatefulSet>(&object),
                "ValidatingAdmissionPolicy" => reads_as::<ValidatingAdmissionPolicy>(&object),
                "ValidatingAdmissionPolicyBinding" => {
                    reads_as::<ValidatingAdmissionPolicyBinding>(&object);
                }
                // Prometheus' operator's.
                "PodMonitor" => assert_eq!(object["apiVersion"], "monitoring.coreos.com/v1"),
                other => panic!("{other} is not looked at"),
            }
        }
    }
}

#[test]
fn the_policy_names_the_annotations_that_the_agent_writes() {
    let names = Names::of(MeshAgent::Kilo);
    let objects = rendered("kilo-kubeadm");
    let policy = find(&objects, "ValidatingAdmissionPolicy").to_string();
    let account = format!(
        "system:serviceaccount:{}:{}",
        find(&objects, "ServiceAccount")["metadata"]["namespace"]
            .as_str()
            .unwrap(),
        find(&objects, "DaemonSet")["spec"]["template"]["spec"]["serviceAccountName"]
            .as_str()
            .unwrap()
    );
    for word in [
        format!("{}/", names.prefix),
        names.keepalive.unwrap(),
        account,
    ] {
        assert!(policy.contains(&format!("'{word}'")), "{word}");
    }
}

#[test]
fn the_agent_gets_what_it_needs_and_no_more() {
    let objects = rendered("kilo-k3s");
    let pod = &find(&objects, "DaemonSet")["spec"]["template"]["spec"];
    let security = &pod["containers"][0]["securityContext"];
    assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));
    let added = serde_json::json!(["NET_ADMIN", "NET_RAW"]);
    assert_eq!(security["capabilities"]["add"], added);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(pod["hostNetwork"], true);
    let role = find(&objects, "ClusterRole");
    assert_eq!(
        role["rules"][0]["verbs"],
        serde_json::json!(["get", "list", "watch", "patch"])
    );
    assert_eq!(
        find(&rendered("wns"), "ClusterRole")["rules"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn the_program_takes_what_the_manifests_say() {
    for overlay in ["kilo-k3s", "kilo-kubeadm", "wns"] {
        let objects = rendered(overlay);
        let container = &find(&objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0];
        let help = wice(&["agent", "--help"]);
        for variable in container["env"].as_array().unwrap() {
            let name = variable["name"].as_str().unwrap();
            assert!(help.contains(&format!("[env: {name}=")), "{name}");
        }
        let config = find(&objects, "ConfigMap")["data"]["wice.toml"]
            .as_str()
            .unwrap();
        let path =
            std::env::temp_dir().join(format!("wice-manifest-{overlay}-{}", std::process::id()));
        std::fs::write(&path, config).unwrap();
        let printed = wice(&[
            "agent",
            "--node-name",
            "n1",
            "--print-config",
            "--config",
            path.to_str().unwrap(),
        ]);
        assert!(
            printed.contains("kilo0") && printed.contains("0.0.0.0:9586"),
            "{printed}"
        );
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn the_bridge_gets_what_it_needs_and_no_more() {
    let objects = rendered("bridge");
    let pod = &find(&objects, "Deployment")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(
        security["capabilities"],
        serde_json::json!({"drop": ["ALL"]})
    );
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["runAsNonRoot"], true);
    assert!(pod["hostNetwork"].is_null());
    let rules = &find(&objects, "ClusterRole")["rules"];
    assert_eq!(rules.as_array().unwrap().len(), 2);
    assert_eq!(
        rules[0]["verbs"],
        serde_json::json!(["get", "list", "watch"])
    );
    let policy = find(&objects, "ValidatingAdmissionPolicy").to_string();
    let account = pod["serviceAccountName"].as_str().unwrap();
    let account = format!("'system:serviceaccount:{NAMESPACE}:{account}'");
    let prefix = format!("'{}/'", Names::of(MeshAgent::Kilo).prefix);
    assert!(policy.contains(&account) && policy.contains(&prefix));
    // The program takes its command line.
    let help = wice(&["bridge", "--help"]);
    for argument in container["args"].as_array().unwrap() {
        let text = argument.as_str().unwrap();
        assert!(!text.starts_with("--") || help.contains(text), "{text}");
    }
}

/// Prometheus' operator finds pods by a label and their port by its name.
#[test]
fn every_podmonitor_finds_pods_with_its_port() {
    let workloads = [rendered("kilo-kubeadm"), rendered("turn")].concat();
    let monitors = rendered("podmonitor");
    assert_eq!(monitors.len(), 2);
    for monitor in monitors {
        let labels = &monitor["spec"]["selector"]["matchLabels"];
        let found = workloads
            .iter()
            .map(|workload| &workload["spec"]["template"])
            .find(|template| !labels.is_null() && template["metadata"]["labels"] == *labels);
        let container = &found.expect("pods")["spec"]["containers"][0];
        let port = &monitor["spec"]["podMetricsEndpoints"][0]["port"];
        let ports = container["ports"].as_array().unwrap();
        assert!(ports.iter().any(|named| named["name"] == *port), "{port}");
    }
}

/// The relay's own command line and configuration, as the overlay has them.
#[test]
fn the_relay_takes_its_overlay() {
    let objects = rendered("turn");
    let pod = &find(&objects, "DaemonSet")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(pod["hostNetwork"], true);
    let metrics = &container["env"][0];
    assert_eq!(metrics["value"], "127.0.0.1:9587");
    let named = format!("$({})", metrics["name"].as_str().unwrap());
    let help = wice(&["turn", "--help"]);
    let arguments = container["args"].as_array().unwrap();
    assert!(arguments.iter().any(|argument| *argument == named.as_str()));
    for argument in arguments {
        let text = argument.as_str().unwrap();
        assert!(!text.starts_with("--") || help.contains(text), "{text}");
    }
}

fn wice(arguments: &[&str]) -> String {
    output(
        Command::new(wice_binary().unwrap())
            .args(arguments)
            .env_clear(),
    )
    .unwrap()
}

#[test]
fn a_real_api_server_takes_every_overlay() {
    let cluster = Cluster::start().unwrap();
    for overlay in OVERLAYS {
        let folder = overlay_folder(overlay);
        // Objects of a namespace that a dry run does not make are refused.
        let namespace = ["create", "namespace", NAMESPACE];
        if let Err(error) = cluster.kubectl(&namespace) {
            assert!(error.to_string().contains("AlreadyExists"), "{error}");
        }
        let taken = cluster
            .kubectl(&["apply", "--dry-run=server", "-k", &folder])
            .unwrap();
        let count = taken
            .lines()
            .filter(|line| line.ends_with("(server dry run)"))
            .count();
        assert_eq!(count, rendered(overlay).len(), "{overlay}: {taken}");
        // Not only dry: what admission and defaults add must be taken as well.
        cluster.install(overlay).unwrap();
    }
}

#[test]
fn a_cluster_without_prometheus_takes_the_readmes_first_line() {
    let cluster = Cluster::start().unwrap();
    let kind = "podmonitors.monitoring.coreos.com";
    cluster.kubectl(&["delete", "crd", kind]).unwrap();
    cluster.install("kilo-kubeadm").unwrap();
}

/// The lines of the README that begin with this one, to the end of its block.
fn readme(begin: &str) -> String {
    let text = include_str!("../../../README.md");
    let lines = text.lines().skip_while(|line| line.trim() != begin);
    let block = lines.map_while(|line| line.strip_prefix("    "));
    block.flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn the_readmes_own_overlay_is_what_it_says() {
    let block = readme("namespace: wice");
    let folder = format!("{}/own-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    std::fs::create_dir_all(&folder).unwrap();
    let ours = std::fs::canonicalize(overlay_folder("kilo-kubeadm")).unwrap();
    let depth = std::fs::canonicalize(&folder).unwrap().components().count() - 1;
    let relative = format!(
        "{}{}",
        "../".repeat(depth),
        ours.strip_prefix("/").unwrap().display()
    );
    let own = block.replace(
        "../wice/manifests/kubernetes/overlays/kilo-kubeadm",
        &relative,
    );
    assert_ne!(own, block);
    std::fs::write(format!("{folder}/kustomization.yaml"), own).unwrap();
    std::fs::write(format!("{folder}/wice.toml"), "stun = []\n").unwrap();
    let cluster = Cluster::start().unwrap();
    cluster.kubectl(&["apply", "-k", &folder]).unwrap();
    let get = |what: &str| {
        cluster
            .kubectl(&["get", "-n", NAMESPACE, what, "-o", "json"])
            .unwrap()
    };
    let agent = get("daemonset");
    assert!(agent.contains("registry.example/wice:0.1.0"), "{agent}");
    assert!(get("configmap").contains(r#""wice.toml": "stun = []\n""#));
    // PASSWORD.
    assert!(get("secret").contains("UEFTU1dPUkQ="));
    std::fs::remove_dir_all(&folder).unwrap();
}
