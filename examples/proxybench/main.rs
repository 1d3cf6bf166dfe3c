//! The proxy of attached mode against bare forwarders, and wireguard-go through it against
//! wireguard-go without: `proxybench [ROUNDS [tunnels|packets]]`, as root. Everything runs in turns in one process, in
//! network namespaces of its own; prints Markdown tables of medians.

mod forward;
mod load;
#[path = "../../tests/common/namespace.rs"]
mod namespace;
mod node;
mod rig;
mod tunnel;
#[path = "../../tests/common/wireguard_go.rs"]
mod wireguard_go;

use std::collections::BTreeMap;
use std::time::Duration;

use forward::{Forwarder, Kind};
use load::{Pattern, drive};
use node::Error;
use rig::{Pair, Relayed, listen_at};
use tunnel::{Through, Tunnel, median};

/// How long one thing is measured in one round.
const STEP: Duration = Duration::from_millis(1500);
const IPERF_SECONDS: u32 = 5;
const ROUNDS: u32 = 5;
const TUNNELS: [Through; 3] = [Through::Nothing, Through::Proxies, Through::BareForwarders];

/// What the link does with many packets in one send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Link {
    Whole,
    Segmented,
}

/// A median in the making.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    /// CPU microseconds a packet at the first machine and at the second.
    Proxy(Link, bool, End),
    Bare(Kind, Link, bool, End),
    /// The client of a relay, towards it and from it.
    ChannelData(End),
    Rate(Through),
    /// CPU seconds a GB of both ends: WireGuard's, and of what is between it and the link.
    WireGuardCpu(Through),
    BetweenCpu(Through),
    Rtt(Through),
    /// Packets lost, per cent.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Out,
    In,
}

type Samples = BTreeMap<Item, Vec<f64>>;

fn main() -> Result<(), Error> {
    let rounds = std::env::args()
        .nth(1)
        .map_or(Ok(ROUNDS), |text| text.parse())?;
    let part = std::env::args().nth(2);
    let packets = part.as_deref() != Some("tunnels");
    let tunneled = part.as_deref() != Some("packets");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let pair = Pair::new(&runtime)?;
    let relayed = Relayed::new(&runtime)?;
    let mut tunnels = Vec::new();
    for through in TUNNELS.into_iter().filter(|_| tunneled) {
        tunnels.push(Tunnel::new(&runtime, through)?);
    }
    let mut samples = Samples::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for link in [Link::Whole, Link::Segmented]
            .into_iter()
            .filter(|_| packets)
        {
            pair.segment_on_link(link == Link::Segmented)?;
            for singles in [false, true] {
                let setting = Setting { link, singles };
                compare(&pair, &relayed, setting, round, &mut samples)?;
            }
        }
        // Another is the first in each round.
        tunnels.rotate_left(usize::from(tunneled));
        for tunnel in &tunnels {
            let (run, through) = (tunnel.run(IPERF_SECONDS)?, tunnel.through);
            eprintln!("  through {through:?}: {run:?}");
            add(&mut samples, Item::Rate(through), run.rate);
            add(&mut samples, Item::Rtt(through), run.rtt);
            add(&mut samples, Item::WireGuardCpu(through), run.wireguard);
            add(&mut samples, Item::BetweenCpu(through), run.between);
        }
    }
    print(rounds, &mut samples);
    Ok(())
}

fn add(samples: &mut Samples, item: Item, value: f64) {
    samples.entry(item).or_default().push(value);
}

/// Who takes part in one comparison.
#[derive(Clone, Copy)]
enum Contestant<'a> {
    Proxy,
    Bare(&'a (Kind, Forwarder, Forwarder)),
    ChannelData,
}

/// How packets go from the first machine to the second.
#[derive(Clone, Copy)]
struct Setting {
    link: Link,
    singles: bool,
}

impl Setting {
    fn pattern(self) -> Pattern {
        match self.singles {
            true => Pattern::Singles,
            false => Pattern::Segments,
        }
    }
}

/// All in one setting, one after the other; another one is the first in each round, and follows another one, for what was
/// measured before warms caches and clocks.
fn compare(
    pair: &Pair,
    relayed: &Relayed,
    setting: Setting,
    round: u32,
    samples: &mut Samples,
) -> Result<(), Error> {
    let mut contestants = vec![Contestant::Proxy];
    if setting.link == Link::Whole && !setting.singles {
        contestants.push(Contestant::ChannelData);
    }
    contestants.extend(pair.forwarders.iter().map(Contestant::Bare));
    let first = round as usize % contestants.len();
    contestants.rotate_left(first);
    if round.is_multiple_of(2) {
        contestants.reverse();
    }
    for contestant in contestants {
        match contestant {
            Contestant::Proxy => proxy(pair, setting, samples)?,
            Contestant::Bare(forwarders) => bare(pair, forwarders, setting, samples),
            Contestant::ChannelData => channel_data(relayed, samples)?,
        }
    }
    Ok(())
}

/// CPU microseconds a packet.
fn each(before: Duration, after: Duration, packets: u64) -> f64 {
    (after - before).as_secs_f64() * 1e6 / packets.max(1) as f64
}

fn proxy(pair: &Pair, setting: Setting, samples: &mut Samples) -> Result<(), Error> {
    let (a, b, Setting { link, singles }) = (&pair.a, &pair.b, setting);
    let (before, handed_on) = ((a.node.cpu()?, b.node.cpu()?), b.node.handed_on()?);
    let carried = drive(&a.wireguard, b.slot(), setting.pattern(), &b.sink, STEP);
    let after = (a.node.cpu()?, b.node.cpu()?);
    let a_call = a_call(handed_on, b.node.handed_on()?);
    let (out, inward) = (
        each(before.0, after.0, carried.packets),
        each(before.1, after.1, carried.packets),
    );
    add(samples, Item::Proxy(link, singles, End::Out), out);
    add(samples, Item::Proxy(link, singles, End::In), inward);
    let sent = (carried.packets + carried.lost).max(1);
    let lost = carried.lost as f64 * 100.0 / sent as f64;
    add(samples, Item::Lost, lost);
    eprintln!(
        "  {link:?} singles {singles} proxy {out:.3} + {inward:.3} µs, {} packets, {} lost, {:.0} a second, {a_call:.1} a call to WireGuard",
        carried.packets, carried.lost, carried.rate
    );
    Ok(())
}

fn bare(
    pair: &Pair,
    (kind, first, second): &(Kind, Forwarder, Forwarder),
    setting: Setting,
    samples: &mut Samples,
) {
    let (a, b, Setting { link, singles }) = (&pair.a, &pair.b, setting);
    let before = (first.cpu(), second.cpu());
    let carried = drive(&a.plain, listen_at(*kind), setting.pattern(), &b.sink, STEP);
    let (out, inward) = (
        each(before.0, first.cpu(), carried.packets),
        each(before.1, second.cpu(), carried.packets),
    );
    add(samples, Item::Bare(*kind, link, singles, End::Out), out);
    add(samples, Item::Bare(*kind, link, singles, End::In), inward);
    eprintln!(
        "  {link:?} singles {singles} {kind:?} {out:.3} + {inward:.3} µs, {} packets, {} lost, {:.0} a second",
        carried.packets, carried.lost, carried.rate
    );
}

fn channel_data(relayed: &Relayed, samples: &mut Samples) -> Result<(), Error> {
    let Relayed { a, b, .. } = relayed;
    for (from, to, end) in [(a, b, End::Out), (b, a, End::In)] {
        let (before, handed_on) = (a.node.cpu()?, to.node.handed_on()?);
        let carried = drive(
            &from.wireguard,
            to.slot(),
            Pattern::Segments,
            &to.sink,
            STEP,
        );
        let each = each(before, a.node.cpu()?, carried.packets);
        let a_call = a_call(handed_on, to.node.handed_on()?);
        eprintln!(
            "  ChannelData {end:?} {each:.3} µs, {} packets, {} lost, {a_call:.1} a call to WireGuard",
            carried.packets, carried.lost
        );
        add(samples, Item::ChannelData(end), each);
    }
    Ok(())
}

/// Packets a system call: the longer the runs are that arrive together, the less each costs.
fn a_call(before: (u64, u64), after: (u64, u64)) -> f64 {
    (after.0 - before.0) as f64 / (after.1 - before.1).max(1) as f64
}

fn print(rounds: u32, samples: &mut Samples) {
    let mut of = |item: Item| median(samples.entry(item).or_default());
    let mut rows: Vec<(String, f64, f64, f64, &str, bool)> = Vec::new();
    for (link, name) in [
        (Link::Whole, "link with USO"),
        (Link::Segmented, "link without USO, GRO at the receiver"),
    ] {
        let mut both = |item: &dyn Fn(End) -> Item| of(item(End::Out)) + of(item(End::In));
        let proxy = both(&|end| Item::Proxy(link, false, end));
        let bare = both(&|end| Item::Bare(Kind::GroGso, link, false, end));
        let what = format!("CPU µs a packet, both ways, {name}: proxy, bare GRO and GSO forwarder");
        let ratio = proxy / bare;
        rows.push((what, proxy, bare, ratio, "≤ 1.15", ratio <= 1.15));
    }
    let link = Link::Segmented;
    let proxy = of(Item::Proxy(link, true, End::Out));
    let quinn = of(Item::Bare(Kind::Quinn, link, true, End::Out));
    let what = "CPU µs a packet, loopback in, one packet a send: proxy, quinn-udp".to_owned();
    rows.push((
        what,
        proxy,
        quinn,
        proxy / quinn,
        "≤ 0.65",
        proxy / quinn <= 0.65,
    ));
    let channel = of(Item::ChannelData(End::Out)) + of(Item::ChannelData(End::In));
    let whole = |end| Item::Proxy(Link::Whole, false, end);
    let proxy = of(whole(End::Out)) + of(whole(End::In));
    let what =
        "CPU µs a packet, both ways, link with USO: as ChannelData of a relay's, direct".to_owned();
    rows.push((
        what,
        channel,
        proxy,
        channel / proxy,
        "≤ 1.25",
        channel / proxy <= 1.25,
    ));
    let (through, direct) = (
        of(Item::Rate(Through::Proxies)),
        of(Item::Rate(Through::Nothing)),
    );
    let what = "wireguard-go, TCP, Mbit/s: through the proxy, direct".to_owned();
    rows.push((
        what,
        through,
        direct,
        through / direct,
        "≥ 0.90",
        through / direct >= 0.9,
    ));
    let (proxy, wireguard) = (
        of(Item::BetweenCpu(Through::Proxies)),
        of(Item::WireGuardCpu(Through::Proxies)),
    );
    let what = "the same, CPU s/GB of both ends: the proxy's, wireguard-go's".to_owned();
    rows.push((
        what,
        proxy,
        wireguard,
        proxy / wireguard,
        "≤ 0.30",
        proxy / wireguard <= 0.3,
    ));
    let (through, direct) = (
        of(Item::Rtt(Through::Proxies)),
        of(Item::Rtt(Through::Nothing)),
    );
    let what = "the same, ping at rest, ms: through the proxy, direct".to_owned();
    rows.push((
        what,
        through,
        direct,
        through / direct,
        "≤ 1.8",
        through / direct <= 1.8,
    ));
    println!("| {rounds} rounds in turns, medians | first | second | ratio | target | verdict |");
    println!("|---|--:|--:|--:|---|---|");
    for (what, first, second, ratio, target, reached) in rows {
        let verdict = if reached { "reached" } else { "**missed**" };
        println!("| {what} | {first:.3} | {second:.3} | {ratio:.2} | {target} | {verdict} |");
    }
    println!();
    println!(
        "| CPU µs a packet of 1400 bytes, out + in | link with USO | without | one packet a send, with USO | without |"
    );
    println!("|---|--:|--:|--:|--:|");
    let columns = [
        (Link::Whole, false),
        (Link::Segmented, false),
        (Link::Whole, true),
        (Link::Segmented, true),
    ];
    let mut line = |name: &str, item: &dyn Fn(Link, bool, End) -> Item| {
        let cells: Vec<String> = columns
            .iter()
            .map(|(link, singles)| {
                let out = of(item(*link, *singles, End::Out));
                let inward = of(item(*link, *singles, End::In));
                format!("{out:.2} + {inward:.2}")
            })
            .collect();
        println!("| {name} | {} |", cells.join(" | "));
    };
    line("wice's proxy", &Item::Proxy);
    for (kind, name) in [
        (Kind::GroGso, "bare: recvmmsg, GRO, gathered UDP_SEGMENT"),
        (
            Kind::Addressed,
            "the same for many peers: unconnected, with addresses",
        ),
        (Kind::Quinn, "bare: quinn-udp, as received"),
        (Kind::Tokio, "bare: tokio, recv and send"),
    ] {
        line(name, &|link, singles, end| {
            Item::Bare(kind, link, singles, end)
        });
    }
    println!();
    println!(
        "The proxy lost {:.2} % of the packets in the median run.",
        of(Item::Lost)
    );
    println!();
    print_tunnels(samples);
}

fn print_tunnels(samples: &mut Samples) {
    println!(
        "| wireguard-go, TCP, one stream | straight | through wice's proxies | through bare GRO and GSO forwarders |"
    );
    println!("|---|--:|--:|--:|");
    let mut line = |name: &str, digits: usize, items: [Item; 3]| {
        let cells = items.map(|item| {
            let value = median(samples.entry(item).or_default());
            format!("{value:.digits$}")
        });
        println!("| {name} | {} |", cells.join(" | "));
    };
    line("Mbit/s", 0, TUNNELS.map(Item::Rate));
    line(
        "CPU of both ends, s/GB: WireGuard's",
        2,
        TUNNELS.map(Item::WireGuardCpu),
    );
    line(
        "of what is between it and the link",
        2,
        TUNNELS.map(Item::BetweenCpu),
    );
    line("ping at rest, ms", 3, TUNNELS.map(Item::Rtt));
}
