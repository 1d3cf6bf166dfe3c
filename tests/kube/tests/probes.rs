//! What the manifests' probes ask is answered by what runs: by the agent while it waits, works, and lacks its API; by the relay and
//! the signaling service.

// The lints know tests by their attribute only; here all is test.
#![allow(clippy::unwrap_used)]

use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::Value;
use wice::lab::NatKind;
use wice_kube_tests::{
    KubeMesh, arguments, asset, environment, find, kustomized, output, overlay_folder, wait_until,
    wice_binary,
};

const NODE: &str = "home-a";
/// What takes a daemon a second or two takes longer on a machine that is busy.
const SOON: Duration = Duration::from_secs(30);
/// A refused write is tried again within 90 s.
const MENDED: Duration = Duration::from_secs(100);
/// The manifests' timeoutSeconds of the agent's probes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the agent's probe as the kubelet does: the command of the manifest with the pod's environment.
fn asked(mesh: &KubeMesh, probe: &str) -> Output {
    asked_in(mesh, probe, &[])
}

/// The same with more of it.
fn asked_in(mesh: &KubeMesh, probe: &str, environment: &[(&str, &str)]) -> Output {
    let objects = kustomized("kilo-kubeadm").unwrap();
    let container = &find(&objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    let command = container[probe]["exec"]["command"].as_array().unwrap();
    let words: Vec<&str> = command.iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(words[0], "/usr/local/bin/wice");
    let node = mesh.lab.node(NODE).unwrap();
    let began = Instant::now();
    let output = node
        .ns()
        .command(wice_binary().unwrap())
        .args(&words[1..])
        .env("NODE_NAME", NODE)
        .env("WICE_RUN_DIR", node.run_dir())
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    assert!(began.elapsed() < PROBE_TIMEOUT, "{:?}", began.elapsed());
    output
}

fn is(mesh: &KubeMesh, probe: &str) -> bool {
    asked(mesh, probe).status.success()
}

fn refusal(mesh: &KubeMesh, probe: &str) -> String {
    let output = asked(mesh, probe);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn signal(pid: u32, signal: i32) {
    let pid = i32::try_from(pid).unwrap();
    // SAFETY: the process is a child of this test that has not been waited for.
    unsafe { libc::kill(pid, signal) };
}

#[test]
fn the_agents_probes_tell_what_a_restart_would_mend_and_nothing_else() {
    let mut mesh = KubeMesh::build(&[NatKind::Public]).unwrap();
    let nobody = refusal(&mesh, "livenessProbe");
    assert!(nobody.contains("no wice daemon runs here"), "{nobody}");

    // There is no interface yet: it lives, and has nothing to do.
    mesh.start_wice(NODE).unwrap();
    wait_until("it lives", SOON, || is(&mesh, "livenessProbe")).unwrap();
    assert!(is(&mesh, "readinessProbe"));
    let status = mesh.lab.wice(NODE, &["status"]).unwrap();
    let told = String::from_utf8(status.stderr).unwrap();
    assert!(told.contains("waits for kilo0"), "{told}");

    // A second one on the same node is not let in.
    let mut second = mesh.agent(NODE, "").unwrap();
    let ended = second.wait(SOON).expect("it ends");
    assert_eq!(ended.code(), Some(2), "{}", second.output());
    assert!(
        second.output().contains("wice runs already on kilo0"),
        "{}",
        second.output()
    );
    assert!(is(&mesh, "livenessProbe"), "the first goes on");

    // The interface comes, and the API refuses.
    let binding = ["delete", "clusterrolebinding", "wice"];
    mesh.cluster.kubectl(&binding).unwrap();
    mesh.join_alone(NODE).unwrap();
    wait_until("it is no longer ready", SOON, || {
        !is(&mesh, "readinessProbe")
    })
    .unwrap();
    assert!(is(&mesh, "livenessProbe"));
    wait_until("the missing verb is told", SOON, || {
        refusal(&mesh, "readinessProbe").contains("cannot watch resource")
    })
    .unwrap();
    // It may read: what it says is refused, which nobody would know.
    let role =
        "create clusterrole reader --verb=get,list,watch --resource=nodes,peers.kilo.squat.ai";
    let binding =
        "create clusterrolebinding reader --clusterrole=reader --serviceaccount=wice:wice";
    for words in [role, binding] {
        let words: Vec<&str> = words.split(' ').collect();
        mesh.cluster.kubectl(&words).unwrap();
    }
    let mut told = String::new();
    wait_until("the refused write is told", SOON, || {
        told = refusal(&mesh, "readinessProbe");
        told.contains("advert has not been written yet: ")
    })
    .unwrap_or_else(|error| panic!("{error}: {told}"));
    let status = mesh.lab.wice(NODE, &["status"]).unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains("is not published"), "{status}");
    assert!(is(&mesh, "livenessProbe"));
    mesh.cluster.install("kilo-kubeadm").unwrap();
    wait_until("it is ready", MENDED, || is(&mesh, "readinessProbe")).unwrap();
    let status = mesh.lab.wice(NODE, &["status"]).unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(!status.contains("is not published"), "{status}");

    // An API that is away afterwards is nobody's end.
    let api = mesh.cluster.processes().last().unwrap();
    signal(api, libc::SIGSTOP);
    let (lives, ready) = (is(&mesh, "livenessProbe"), is(&mesh, "readinessProbe"));
    signal(api, libc::SIGCONT);
    assert!(lives && ready);

    // What hangs does not live.
    let pid = mesh.pid(NODE).unwrap();
    signal(pid, libc::SIGSTOP);
    let hangs = refusal(&mesh, "livenessProbe");
    signal(pid, libc::SIGCONT);
    assert!(hangs.contains("does not answer"), "{hangs}");
    assert!(is(&mesh, "livenessProbe"));

    // The last roll-out before an uninstall: its pods are ready when nothing is left.
    let rules = || {
        let mut ip = mesh.lab.node(NODE).unwrap().ns().command("ip");
        output(ip.args(["rule"])).unwrap()
    };
    assert!(rules().contains("sport 51820"), "{}", rules());
    let pid = i32::try_from(pid).unwrap();
    // SAFETY: as above.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    let detach = [("WICE_DETACH", "true")];
    let ready = |probe| asked_in(&mesh, probe, &detach).status.success();
    assert!(!ready("readinessProbe"), "before it has begun");
    let node = mesh.lab.node(NODE).unwrap();
    let agent = mesh.lab.start(NODE, "detach", |ns| {
        let mut command = ns.command(wice_binary().unwrap());
        command.arg("agent").env("NODE_NAME", NODE).envs(detach);
        command.env("WICE_RUN_DIR", node.run_dir());
        command.env("WICE_STATE_DIR", node.state_dir());
        command
    });
    let agent = agent.unwrap();
    wait_until("it is detached", SOON, || ready("readinessProbe"))
        .unwrap_or_else(|error| panic!("{error}: {}", agent.output()));
    assert!(ready("livenessProbe"));
    assert!(!rules().contains("sport 51820"), "{}", rules());
    assert!(
        agent.output().contains("event=detached"),
        "{}",
        agent.output()
    );
}

/// Asks as the kubelet does, which takes any certificate.
fn get(mesh: &KubeMesh, probe: &Value) -> Result<String, String> {
    let http = &probe["httpGet"];
    let scheme = http["scheme"].as_str().unwrap_or("HTTP").to_lowercase();
    let host = http["host"].as_str().unwrap_or("127.0.0.1");
    let ns = mesh.lab.node(NODE).unwrap().ns();
    let output = ns
        .command(asset("kubectl").unwrap())
        .args(["get", "--raw", http["path"].as_str().unwrap()])
        .arg(format!("--server={scheme}://{host}:{}", http["port"]))
        // Without any credentials it would ask for a name.
        .args(["--insecure-skip-tls-verify", "--token=none"])
        .output()
        .unwrap();
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_probes_of_relay_and_service_are_answered() {
    let mesh = KubeMesh::build(&[NatKind::Public]).unwrap();
    let machine = mesh.lab.node(NODE).unwrap();
    for (overlay, kind, mounted) in [
        ("turn", "DaemonSet", "/etc/wice-turn"),
        ("signaling", "StatefulSet", "/var/lib/wice"),
    ] {
        let objects = kustomized(overlay).unwrap();
        let container = &find(&objects, kind)["spec"]["template"]["spec"]["containers"][0];
        let folder = overlay_folder(overlay);
        let arguments = arguments(container).into_iter();
        let arguments: Vec<String> = arguments
            .map(|word| word.replace(mounted, &folder))
            .collect();
        let process = mesh.lab.start(NODE, overlay, |ns| {
            let mut command = ns.command(wice_binary().unwrap());
            command
                .args(&arguments)
                .envs(environment(container))
                .env("WICE_STATE_DIR", machine.state_dir());
            command
        });
        let process = process.unwrap();
        for probe in ["readinessProbe", "livenessProbe"] {
            let mut answer = Err(String::new());
            let answered = wait_until(probe, SOON, || {
                answer = get(&mesh, &container[probe]);
                answer.is_ok()
            });
            answered.unwrap_or_else(|error| {
                panic!("{overlay}: {error}: {answer:?}\n{}", process.output())
            });
        }
    }
}
