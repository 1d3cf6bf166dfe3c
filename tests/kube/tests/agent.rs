//! `wice agent` on nodes behind NATs, beside what stands in for Kilo's `kg`: pods' addresses answer, paths are as the NATs allow, and
//! no session is ended by wice.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::lab::{NatKind, Pings};
use wice_kube_tests::{INTERFACE, KubeMesh, MeshAgents};

/// The longest that pods may be cut off by what happens to wice, to the mesh agent or to the API.
const LONGEST_CUT: Duration = Duration::from_secs(5);
/// The same where all peers were replaced and sessions begin anew: WireGuard repeats a handshake after 5 s.
const LONGEST_CUT_OF_SESSIONS: Duration = Duration::from_secs(11);
/// A path that broke would be silent for 3.5 s before anybody could tell: what is shorter is the machine's other work.
const NO_PATH_BROKE: Duration = Duration::from_secs(2);
/// The longest pause between two tries, and one that began before the API was back.
const API_FOUND: Duration = Duration::from_secs(90);
/// `kg` counts a node out whose last check-in is older.
const KG_FORGETS: Duration = Duration::from_secs(60);
/// Until what happened to sessions has shown: WireGuard gives a handshake 5 s, twice.
const SESSIONS_ARE_BACK: Duration = Duration::from_secs(12);
/// How long nothing may happen; minutes by hand: `WICE_KUBE_QUIET_S=600`.
const QUIET: Duration = Duration::from_secs(45);
/// How long the API is away; longer by hand: `WICE_KUBE_API_AWAY_S=600`.
const API_AWAY: Duration = Duration::from_secs(25);

const NODES: [(&str, NatKind); 4] = [
    ("home-a", NatKind::Public),
    ("home-b", NatKind::PortRestricted),
    ("home-c", NatKind::Symmetric),
    ("home-d", NatKind::PortRestricted),
];
/// Those that are there from the start.
const FIRST: [&str; 3] = ["home-a", "home-b", "home-c"];

/// Pings between all of them, both ways.
struct Watch {
    pings: Vec<(String, Pings)>,
    since: Instant,
}

impl Watch {
    fn start(mesh: &KubeMesh, nodes: &[&str]) -> Result<Self> {
        let mut pings = Vec::new();
        for from in nodes {
            for to in nodes.iter().filter(|to| *to != from) {
                pings.push((format!("{from} to {to}"), mesh.pings(from, to)?));
            }
        }
        Ok(Self {
            pings,
            since: Instant::now(),
        })
    }

    /// The longest silence of any pair but these since the last look.
    fn longest(&mut self, but: &[(&str, &str)]) -> (String, Duration) {
        let names = but
            .iter()
            .flat_map(|(a, b)| [format!("{a} to {b}"), format!("{b} to {a}")]);
        let but: Vec<String> = names.collect();
        let gaps = self
            .pings
            .iter()
            .filter(|(name, _)| !but.contains(name))
            .map(|(name, pings)| (name.clone(), pings.longest_gap(self.since)));
        let longest = gaps.max_by_key(|(_, gap)| *gap).unwrap_or_default();
        self.since = Instant::now();
        longest
    }

    /// Tells the longest silence, which must not be longer than this.
    fn check(&mut self, mesh: &KubeMesh, what: &str, most: Duration) -> Result<()> {
        self.check_but(mesh, what, most, &[])
    }

    /// The same of all pairs but these.
    fn check_but(
        &mut self,
        mesh: &KubeMesh,
        what: &str,
        most: Duration,
        but: &[(&str, &str)],
    ) -> Result<()> {
        let (pair, gap) = self.longest(but);
        println!("{what:<44} {:>6.2} s  {pair}", gap.as_secs_f64());
        ensure!(
            gap <= most,
            "{what}: {pair} was silent for {gap:?}\n{}",
            mesh.evidence(&FIRST)
        );
        Ok(())
    }
}

/// The seconds of a variable, or what the test has by itself.
fn by_hand(variable: &str, otherwise: Duration) -> Duration {
    let seconds = std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok());
    seconds.map_or(otherwise, Duration::from_secs)
}

#[test]
fn pods_reach_each_other_through_nats_whatever_happens_to_the_agents() -> Result<()> {
    let mut mesh = KubeMesh::build(&NODES.map(|(_, kind)| kind))?;
    for node in FIRST {
        mesh.join(node)?;
    }
    for (first, second) in [
        ("home-a", "home-b"),
        ("home-a", "home-c"),
        ("home-b", "home-c"),
    ] {
        let waited = mesh.wait_paths(first, second)?;
        mesh.wait_pods(first, second)?;
        println!(
            "{first} and {second}: {:.1} s until the path is as the NATs allow",
            waited.as_secs_f64()
        );
    }
    // The annotations that others need were written by the agents, and by nobody else.
    for node in FIRST {
        let keepalive = mesh
            .cluster
            .annotation(node, "kilo.squat.ai/persistent-keepalive")?;
        ensure!(keepalive.as_deref() == Some("25"), "{node}: {keepalive:?}");
    }

    println!("\n{:<44} longest silence", "what happened");
    let mut watch = Watch::start(&mesh, &FIRST)?;
    // What kg does in its first minute is to settle on the endpoints that it finds.
    std::thread::sleep(Duration::from_secs(12));
    watch.longest(&[]);
    let replaced = FIRST.map(|node| mesh.agents.replaced(node));
    std::thread::sleep(by_hand("WICE_KUBE_QUIET_S", QUIET));
    watch.check(
        &mesh,
        "nothing: a resync every 10 s",
        Duration::from_secs(1),
    )?;
    ensure!(
        FIRST.map(|node| mesh.agents.replaced(node)) == replaced,
        "peers were replaced at rest: {}",
        mesh.evidence(&FIRST)
    );

    mesh.kill_wice("home-b");
    std::thread::sleep(Duration::from_secs(1));
    mesh.start_wice("home-b")?;
    std::thread::sleep(Duration::from_secs(8));
    watch.check(&mesh, "wice killed and started a second later", LONGEST_CUT)?;

    let ends = [
        (
            MeshAgents::kill as fn(&mut _, &_),
            "kg killed and started again",
        ),
        (
            MeshAgents::terminate,
            "kg updated: what it told goes and comes",
        ),
    ];
    for (end, what) in ends {
        end(&mut mesh.agents, "home-b");
        mesh.start_mesh_agent("home-b")?;
        std::thread::sleep(SESSIONS_ARE_BACK);
        watch.check(&mesh, what, LONGEST_CUT_OF_SESSIONS)?;
    }

    mesh.agents.kill("home-c");
    mesh.kill_wice("home-c");
    mesh.start_mesh_agent("home-c")?;
    mesh.start_wice("home-c")?;
    std::thread::sleep(SESSIONS_ARE_BACK);
    watch.check(&mesh, "both restarted", LONGEST_CUT_OF_SESSIONS)?;

    api_away(&mesh, &mut watch)?;

    // A node that joins is told endpoints that others have discovered: none of them may lead nowhere there.
    let began = Instant::now();
    mesh.join("home-d")?;
    for other in FIRST {
        mesh.wait_paths("home-d", other)?;
        mesh.wait_pods("home-d", other)?;
    }
    println!(
        "{:<44} {:>6.2} s  until it reaches all others",
        "home-d joined",
        began.elapsed().as_secs_f64()
    );
    // kg replaces all peers for it, as it does for every Node that comes.
    watch.check(
        &mesh,
        "the same, for those that were there",
        LONGEST_CUT_OF_SESSIONS,
    )?;

    mesh.rotate("home-d")?;
    std::thread::sleep(Duration::from_secs(25));
    for other in FIRST {
        mesh.wait_pods("home-d", other)?;
    }
    watch.check(
        &mesh,
        "home-d has another key, for the others",
        LONGEST_CUT_OF_SESSIONS,
    )?;
    mesh.check_mesh_agents()?;
    let status = mesh.lab.wice("home-b", &["status"])?;
    println!("\n{}", String::from_utf8_lossy(&status.stdout));
    let table = mesh.interface("home-b")?.wg(&["show", INTERFACE])?;
    println!("{table}");
    Ok(())
}

/// The API answers nobody. Whom `kg` leaves on the interfaces keeps the path; whom it drops, which it does once it has not heard of a
/// node for a minute, is back when the API is.
fn api_away(mesh: &KubeMesh, watch: &mut Watch) -> Result<()> {
    let cluster = mesh.cluster.address();
    let pid = mesh.cluster.processes().last().context("no API server")?;
    signal(pid, libc::SIGSTOP);
    let away = by_hand("WICE_KUBE_API_AWAY_S", API_AWAY);
    std::thread::sleep(away);
    let dropped = dropped(mesh);
    signal(pid, libc::SIGCONT);
    let back = Instant::now();
    let dropped = dropped?;
    ensure!(
        dropped.is_empty() || away > KG_FORGETS,
        "a path of kg's was lost: {dropped:?}"
    );
    std::thread::sleep(Duration::from_secs(3));
    let what = format!("the API {cluster} away for {} s", away.as_secs());
    let most = if away > KG_FORGETS {
        LONGEST_CUT_OF_SESSIONS
    } else {
        NO_PATH_BROKE
    };
    watch.check_but(mesh, &what, most, &dropped)?;
    for node in FIRST {
        wice_kube_tests::wait_until("the API is found again", API_FOUND, || {
            let status = mesh.lab.wice(node, &["status"]);
            status.is_ok_and(|status| {
                !String::from_utf8_lossy(&status.stdout).contains("not connected")
            })
        })?;
    }
    println!(
        "{:<44} {:>6.2} s  until all have found the API again",
        "",
        back.elapsed().as_secs_f64()
    );
    for (first, second) in &dropped {
        mesh.wait_pods(first, second)?;
        println!(
            "{:<44} {:>6.2} s  until {first} and {second}, whom kg had parted, were back",
            "",
            back.elapsed().as_secs_f64()
        );
    }
    watch.longest(&[]);
    Ok(())
}

/// Pairs of which one has not the other on its interface any more.
fn dropped(mesh: &KubeMesh) -> Result<Vec<(&'static str, &'static str)>> {
    let mut pairs = Vec::new();
    for (index, first) in FIRST.iter().enumerate() {
        for second in &FIRST[index + 1..] {
            let lacks = |node: &str, other: &str| -> Result<bool> {
                let key = mesh.interface(other)?.public_key().to_string();
                let peers = mesh.interface(node)?.wg(&["show", INTERFACE, "peers"])?;
                Ok(!peers.contains(&key))
            };
            if lacks(first, second)? || lacks(second, first)? {
                pairs.push((*first, *second));
            }
        }
    }
    Ok(pairs)
}

fn signal(pid: u32, signal: i32) {
    let pid = i32::try_from(pid).unwrap_or(i32::MAX);
    // SAFETY: the process is a child of this test that has not been waited for.
    unsafe { libc::kill(pid, signal) };
}
