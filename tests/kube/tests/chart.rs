//! The Helm chart renders what the kustomizations do, and its values change what they say.

// The lints know tests by their attribute only; here all is test.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;
use wice_kube_tests::{Cluster, NAMESPACE, asset, find, kustomized, output, overlay_folder, parse};

/// The values that make each overlay of the chart.
const OVERLAYS: [(&str, &[&str]); 7] = [
    ("kilo-kubeadm", &[]),
    (
        "kilo-k3s",
        &["agent.apiServerFrom=/var/lib/rancher/k3s/agent/kubelet.kubeconfig"],
    ),
    ("wns", &["agent.mesh=wns"]),
    ("turn", &["agent.enabled=false", "turn.enabled=true"]),
    (
        "signaling",
        &["agent.enabled=false", "signaling.enabled=true"],
    ),
    ("bridge", &["agent.enabled=false", "bridge.enabled=true"]),
    (
        "podmonitor",
        &["agent.enabled=false", "podmonitor.enabled=true"],
    ),
];
/// The Namespace is the operator's with a chart, unless asked for.
const NAMESPACE_TOO: &str = "namespace.create=true";
/// What makes pods new when their files change: kustomize has a suffix of names for it.
const CHECKSUM: &str = "checksum/config";

fn helm(arguments: &[&str]) -> anyhow::Result<String> {
    let chart = format!("{}/../../manifests/helm/wice", env!("CARGO_MANIFEST_DIR"));
    let mut helm = Command::new(asset("helm").unwrap());
    let home = std::env::temp_dir().join(format!("wice-helm-{}", std::process::id()));
    helm.env("HELM_CACHE_HOME", &home)
        .env("HELM_CONFIG_HOME", &home)
        .env("HELM_DATA_HOME", &home)
        .args(&arguments[..1])
        // The release's name; and the chart, for all but its end.
        .args((arguments[0] != "lint").then_some("wice"))
        .args((arguments[0] != "uninstall").then_some(chart))
        .args(&arguments[1..]);
    output(&mut helm)
}

fn chart(values: &[&str]) -> Vec<Value> {
    let mut arguments = vec!["template", "--namespace", NAMESPACE];
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    parse(&helm(&arguments).unwrap())
}

/// By kind and name, without what each tool has of its own.
fn compared(mut objects: Vec<Value>) -> BTreeMap<(String, String), Value> {
    let mut renamed = Vec::new();
    for object in &mut objects {
        let generated = object["kind"] == "ConfigMap" || object["kind"] == "Secret";
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        // kustomize's hash of the content.
        if let (true, Some((plain, hash))) = (generated, name.rsplit_once('-'))
            && hash.len() == 10
        {
            object["metadata"]["name"] = plain.into();
            renamed.push((name.clone(), plain.to_owned()));
        }
        // kustomize does not know that policies are the whole cluster's; the API server drops it.
        let kind = object["kind"].as_str().unwrap();
        if kind.starts_with("ValidatingAdmissionPolicy") {
            object["metadata"]
                .as_object_mut()
                .unwrap()
                .remove("namespace");
        }
        let annotations = object.pointer_mut("/spec/template/metadata/annotations");
        if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
            annotations.remove(CHECKSUM).unwrap();
            assert!(annotations.is_empty(), "{annotations:?}");
            let metadata = object.pointer_mut("/spec/template/metadata").unwrap();
            metadata.as_object_mut().unwrap().remove("annotations");
        }
    }
    let by_name = objects.into_iter().map(|object| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let key = (text(&object["kind"]), text(&object["metadata"]["name"]));
        let mut text = object.to_string();
        for (name, plain) in &renamed {
            text = text.replace(name.as_str(), plain);
        }
        (key, serde_json::from_str(&text).unwrap())
    });
    by_name.collect()
}

#[test]
fn the_chart_renders_what_every_overlay_does() {
    for overlay in overlays() {
        let values = OVERLAYS.iter().find(|(name, _)| *name == overlay);
        let (overlay, values) = values.unwrap_or_else(|| {
            panic!("{overlay}: name it in the chart's parts.yaml, or say here what values make it")
        });
        let mut arguments: Vec<&str> = values.to_vec();
        arguments.push(NAMESPACE_TOO);
        let folder = overlay_folder(overlay);
        let mut line = vec!["template", "--namespace", NAMESPACE];
        line.extend(arguments.iter().flat_map(|value| ["--set", value]));
        let config = format!("turn.config={folder}/turn.toml");
        if *overlay == "turn" {
            line.extend(["--set-file", config.as_str()]);
        }
        let theirs = compared(kustomized(overlay).unwrap());
        let mut ours = compared(parse(&helm(&line).unwrap()));
        // A namespace that an overlay expects to be there is the operator's choice of the chart's.
        let namespace = ("Namespace".to_owned(), NAMESPACE.to_owned());
        if !theirs.contains_key(&namespace) {
            ours.remove(&namespace).unwrap();
        }
        let (ours_keys, theirs_keys): (BTreeSet<_>, BTreeSet<_>) =
            (ours.keys().collect(), theirs.keys().collect());
        assert_eq!(ours_keys, theirs_keys, "{overlay}");
        for (key, object) in &theirs {
            assert_eq!(&ours[key], object, "{overlay}: {key:?}");
        }
    }
}

/// Those that there are.
fn overlays() -> BTreeSet<String> {
    let folders = std::fs::read_dir(overlay_folder("")).unwrap();
    folders
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn values_say_what_an_operator_changes() {
    let objects = chart(&[
        "image.repository=registry.example/wice",
        "image.tag=1.2.3",
        "annotationPrefix=paths.example",
        "agent.turnPassword=hush",
        "agent.config=stun = []",
        "agent.env.WICE_SET_KEEPALIVE=0",
        "agent.extraArgs={--log-level,debug}",
        "agent.resources.limits.memory=1Gi",
        "agent.nodeSelector.role=edge",
        "agent.tolerations[0].key=only",
        "agent.podAnnotations.a=b",
        "agent.podLabels.c=d",
    ]);
    let agent = find(&objects, "DaemonSet");
    let template = &agent["spec"]["template"];
    let container = &template["spec"]["containers"][0];
    assert_eq!(container["image"], "registry.example/wice:1.2.3");
    assert_eq!(
        container["args"],
        serde_json::json!(["agent", "--log-level", "debug"])
    );
    assert_eq!(container["resources"]["limits"]["memory"], "1Gi");
    let env = container["env"].to_string();
    for entry in [
        r#"{"name":"WICE_ANNOTATION_PREFIX","value":"paths.example"}"#,
        r#"{"name":"WICE_SET_KEEPALIVE","value":"0"}"#,
    ] {
        assert!(env.contains(entry), "{env}");
    }
    assert_eq!(template["spec"]["nodeSelector"]["role"], "edge");
    assert_eq!(
        template["spec"]["tolerations"],
        serde_json::json!([{"key": "only"}])
    );
    assert_eq!(template["metadata"]["annotations"]["a"], "b");
    assert_eq!(template["metadata"]["labels"]["c"], "d");
    assert_eq!(
        template["metadata"]["labels"]["app.kubernetes.io/name"],
        "wice"
    );
    assert_eq!(
        find(&objects, "Secret")["data"]["password"],
        // hush
        "aHVzaA=="
    );
    assert_eq!(
        find(&objects, "ConfigMap")["data"]["wice.toml"],
        "stun = []"
    );
    let policy = find(&objects, "ValidatingAdmissionPolicy").to_string();
    assert!(policy.contains("'paths.example/'") && !policy.contains("wice.riasc.eu"));
    // Instead of what the files say, not beside it.
    let relay = chart(&[
        "agent.enabled=false",
        "turn.enabled=true",
        "turn.existingSecret=own",
        "turn.env.WICE_TURN_METRICS=0.0.0.0:9587",
    ]);
    assert_eq!(
        find(&relay, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]["env"],
        serde_json::json!([{"name": "WICE_TURN_METRICS", "value": "0.0.0.0:9587"}])
    );
    // What the operator left alone, and what was not asked for.
    let kinds: BTreeSet<&str> = objects
        .iter()
        .map(|object| object["kind"].as_str().unwrap())
        .collect();
    assert!(!kinds.contains("Namespace") && !kinds.contains("PodMonitor"));
    let plain = chart(&["agent.admissionPolicy=false"]);
    assert!(plain.iter().all(|object| {
        !object["kind"]
            .as_str()
            .unwrap()
            .starts_with("ValidatingAdmissionPolicy")
    }));
}

#[test]
fn another_namespace_is_everywhere() {
    let mut line = vec!["template", "--namespace", "elsewhere"];
    line.extend(["--set", "signaling.enabled=true"]);
    line.extend(["--set", NAMESPACE_TOO]);
    let text = helm(&line).unwrap();
    for object in parse(&text) {
        let namespace = &object["metadata"]["namespace"];
        assert!(
            namespace.is_null() || namespace == "elsewhere",
            "{namespace}"
        );
    }
    assert!(text.contains("system:serviceaccount:elsewhere:wice"));
    assert!(!text.contains("namespace: wice"));
    let namespaces = text.matches("kind: Namespace").count();
    assert_eq!(namespaces, 1, "one for all parts");
}

#[test]
fn a_changed_file_makes_new_pods_and_somebody_elses_secret_is_used() {
    let checksum = |values: &[&str]| {
        let objects = chart(values);
        let template = &find(&objects, "DaemonSet")["spec"]["template"];
        template["metadata"]["annotations"][CHECKSUM].clone()
    };
    let before = checksum(&[]);
    assert!(before.is_string());
    assert_ne!(before, checksum(&["agent.turnPassword=other"]));
    assert_ne!(before, checksum(&["agent.config=stun = []"]));
    let objects = chart(&["agent.existingSecret=mine"]);
    assert!(objects.iter().all(|object| object["kind"] != "Secret"));
    let volumes = &find(&objects, "DaemonSet")["spec"]["template"]["spec"]["volumes"];
    assert!(
        volumes.to_string().contains(r#""secretName":"mine""#),
        "{volumes}"
    );
}

#[test]
fn a_real_api_server_takes_an_installation_an_upgrade_and_its_end() {
    let cluster = Cluster::start().unwrap();
    let token = std::fs::read_to_string(cluster.admin_token().unwrap()).unwrap();
    let config = cluster.file("wice.toml", "stun = []\n").unwrap();
    let (server, ca) = (cluster.url(), cluster.ca_file().display().to_string());
    let config = format!("agent.config={}", config.display());
    let to = |verb: &str, more: &[&str]| {
        let mut line = vec![verb, "--namespace", NAMESPACE, "--kube-apiserver", &server];
        line.extend(["--kube-token", &token, "--kube-ca-file", &ca]);
        line.extend(more);
        helm(&line)
    };
    // As the README has it.
    let given = [
        "--set-file",
        &config,
        "--set",
        "agent.turnPassword=PASSWORD",
    ];
    let notes = to("install", &[&["--create-namespace"], &given[..]].concat()).unwrap();
    assert!(notes.contains("wice status"), "{notes}");
    let get = |what: &str| cluster.kubectl(&["get", "--namespace", NAMESPACE, what, "wice"]);
    get("daemonset").unwrap();
    get("validatingadmissionpolicy").unwrap();
    let parts = ["--set", "podmonitor.enabled=true,signaling.enabled=true"];
    to("upgrade", &[&parts[..], &given[..]].concat()).unwrap();
    get("podmonitor").unwrap();
    to("uninstall", &[]).unwrap();
    assert!(get("daemonset").is_err());
}

#[test]
fn what_cannot_be_is_told() {
    let refused = |value: &str| helm(&["template", "--set", value]).unwrap_err().to_string();
    let error = refused("turn.enabled=true");
    assert!(error.contains("turn.config"), "{error}");
    let error = refused("agent.mesh=flannel");
    assert!(error.contains("kilo or wns"), "{error}");
    helm(&["lint"]).unwrap();
}
