//! From a token, or what was kept, to a running daemon.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use wice_signaling::protocol::{OVERLAY_IPV4, OVERLAY_IPV6, RecordKind};

use super::Managed;
use super::choice::{KernelParts, WireGuardKind, choose};
use super::kernel::KernelInterface;
use super::routes::KernelRoutes;
use crate::core::node::Admission;
use crate::core::overlay::Overlay;
use crate::daemon::answers::View;
use crate::daemon::base::{Base, Prepared};
use crate::daemon::binding::{Binding, Direct, InterfaceView, Whose};
use crate::daemon::network::Network;
use crate::daemon::state::{NodeState, State};
use crate::daemon::{Settings, interfaces, join, random};
use crate::io::dial::Fwmark;
use crate::io::packet_loop::{Command, InboxError, Notice, PlaneParts};
use crate::wireguard::backend::{AnyBackend, Device};
use crate::wireguard::inprocess::Tunnels;
use crate::wireguard::kernel::{Kernel, Owner};
use crate::wireguard::netlink::Netlink;
use crate::wireguard::tun::Tun;

/// An interface, and what carries its packets.
struct Interface {
    index: u32,
    plane: PlaneParts,
    kernel: Option<(Owner, Device, Arc<Mutex<InterfaceView>>)>,
    /// It is the kernel's and was not there before: if the start fails it goes.
    goes: bool,
}

impl Managed {
    pub(super) async fn start(
        mut settings: Settings,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Notice>)> {
        let state = State::open(&settings.state_dir)?;
        let key = state.key(random()?)?;
        let membership = join::membership(&state, settings.token.as_ref(), &key)?;
        let mut node_state = match state.node()? {
            Some(node) => node,
            None => NodeState::new(random()?),
        };
        node_state.keep_name(&mut settings);
        state.set_node(&node_state)?;

        let netlink = Netlink::connect()?;
        interfaces::check_overlay(&netlink.interfaces().await?, &settings.interface)?;
        let overlay = Overlay::new(
            key.public_key(),
            node_state.overlay_counter,
            settings.accept_routes.clone(),
        );
        let chosen = choose(&settings, &key, &netlink).await?;
        let interface = match chosen {
            Some(parts) => Interface::kernel(parts),
            None => {
                let mtu = usize::try_from(settings.mtu).unwrap_or(usize::MAX);
                let now = std::time::Instant::now();
                let tunnels = Tunnels::new(*key.expose_secret(), mtu, now);
                Interface::in_process(&settings, tunnels, &netlink).await?
            }
        };
        let (index, goes) = (interface.index, interface.goes);
        let addresses = overlay.own_addresses();
        let view = match &interface.kernel {
            Some((_, _, view)) => View::Kernel(Arc::clone(view)),
            None => View::InProcess,
        };
        let prepared = Prepared {
            admission: Admission::Members(membership.network),
            settings,
            state,
            node_state,
            key,
            network: Network::Service(Box::new(membership)),
            netlink,
            index,
            overlay: Some(overlay),
            fwmark: Fwmark::default(),
            view,
        };
        let started = Self::go(prepared, interface, addresses).await;
        if started.is_err()
            && goes
            && let Ok(netlink) = Netlink::connect()
        {
            // The error that is told is the one before.
            let _ = netlink.delete_link(index).await;
        }
        started
    }

    async fn go(
        prepared: Prepared,
        interface: Interface,
        (v4_address, v6_address): (Ipv4Addr, Ipv6Addr),
    ) -> anyhow::Result<(Self, mpsc::Receiver<Notice>)> {
        let Interface {
            index,
            plane,
            kernel,
            ..
        } = interface;
        let netlink = &prepared.netlink;
        netlink
            .add_address(index, IpAddr::V4(v4_address), OVERLAY_IPV4.prefix_len())
            .await?;
        // Without IPv6 in the kernel the overlay is IPv4 alone.
        let v6_added = netlink
            .add_address(index, IpAddr::V6(v6_address), OVERLAY_IPV6.prefix_len())
            .await;
        if let Err(error) = v6_added {
            tracing::warn!(event = "no-overlay-ipv6", %error);
        }
        netlink.set_up(index).await?;
        let left = netlink.routes_to(index).await?;
        let routes = KernelRoutes::new(kernel.is_some(), left);
        let (base, notices) = Base::start(prepared, plane).await?;
        // Who waits for this line may use the control socket.
        tracing::info!(
            event = "started",
            interface = base.settings.interface,
            name = base.settings.name,
            network = base.network.name(),
            key = %base.key.public_key(),
            ipv4 = %v4_address,
            ipv6 = %v6_address,
        );
        restore(&base)?;
        let kernel = match kernel {
            Some((owner, device, view)) => {
                let name = base.settings.interface.clone();
                let backend = AnyBackend::Kernel(Kernel::open(&name)?);
                let direct = match base.settings.wireguard {
                    // Who asks for it hears what it lacks.
                    WireGuardKind::Kernel => Direct::SharedPort,
                    WireGuardKind::Auto | WireGuardKind::InProcess => Direct::Auto,
                };
                let binding = Binding::start(name, Whose::Wice, backend, &base, direct, view);
                let own = base.key.public_key();
                Some(KernelInterface::new(binding, own, owner, &device))
            }
            None => None,
        };
        let managed = Self {
            base,
            kernel,
            routes,
            routes_published: false,
        };
        Ok((managed, notices))
    }
}

impl Interface {
    fn kernel(parts: KernelParts) -> Self {
        Self {
            index: parts.index,
            plane: PlaneParts::BySlots(parts.slots),
            kernel: Some((parts.owner, parts.device, Arc::default())),
            goes: parts.is_new,
        }
    }

    async fn in_process(
        settings: &Settings,
        tunnels: Tunnels,
        netlink: &Netlink,
    ) -> anyhow::Result<Self> {
        let tun = Tun::create(&settings.interface, true)?;
        tun.set_mtu(settings.mtu)?;
        let index = netlink.index(tun.name()).await?;
        let tunnels = Box::new(tunnels);
        Ok(Self {
            index,
            plane: PlaneParts::InProcess { tunnels, tun },
            kernel: None,
            goes: false,
        })
    }
}

/// Tells the packet loop what was known before the start.
fn restore(base: &Base) -> anyhow::Result<()> {
    let adverts = base.kept.records(RecordKind::Advert).cloned();
    let routes = base.kept.records(RecordKind::Routes).cloned();
    // Routes count for peers that are known.
    let commands = adverts
        .map(Command::Advert)
        .chain(routes.map(Command::Routes));
    for command in commands {
        match base.inbox.send(command) {
            Ok(()) => {}
            // Signaling brings what has no room.
            Err(InboxError::Full) => break,
            Err(error @ InboxError::Ended) => return Err(error.into()),
        }
    }
    Ok(())
}
