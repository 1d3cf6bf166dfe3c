//! WireGuard's own packets stay out of its own interface, whatever a mesh agent routes there. It routes private
//! addresses of nodes, and one of them may be an endpoint for a moment: what WireGuard sends to it then waits for
//! the session, arrives inside of the tunnel, and the other side's WireGuard takes the inside for the place where its peer
//! is. From then on each packet begets another.
//!
//! Rules do it, by WireGuard's source port: the main table counts but for routes into the interface, which a group marks; what
//! is left goes by the default route, of which a table of its own has a copy, and without one nowhere. They are the last
//! before the main table's own, so other rules keep their say. By the default route it is of no use either, but a handshake
//! can be overheard there, and sent by the path when the endpoint is put right.

use std::io;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::packet_route::{AddressFamily, IpProtocol};
use rtnetlink::{IpVersion, LinkUnspec};

use super::netlink::{Netlink, NetlinkError, all_routes, classify};

/// The interface's group (`ip link`), which nobody else is likely to use: "wice".
const GROUP: u32 = 0x7769_6365;
/// Whose the rules are, as `ip rule` shows it: 'w', which the kernel's list of routing daemons leaves free.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(b'w');
/// The table with the default route: "wi".
const TABLE: u32 = 0x7769;
/// The main table's own rule has 32766.
const BUT_THE_INTERFACE: u32 = 32_763;
const BY_DEFAULT: u32 = 32_764;
const NOWHERE: u32 = 32_765;

impl Netlink {
    /// Keeps what leaves from UDP port `port` out of interface `index`. To be called again when either has changed, or the default
    /// route.
    pub async fn keep_underlay(&self, index: u32, port: u16) -> Result<(), NetlinkError> {
        self.set_group(index, GROUP).await?;
        for version in [IpVersion::V4, IpVersion::V6] {
            let wanted = rules(&version, port);
            let there = match self.own_rules(version.clone()).await {
                // A kernel without IPv6 needs none.
                Err(NetlinkError::System { source, .. }) if is_v6(&version) && lacks(&source) => {
                    continue;
                }
                there => there?,
            };
            for stale in there.iter().filter(|rule| from(rule) != Some(port)) {
                self.delete_rule(stale.clone()).await?;
            }
            self.copy_default_route(&version, index).await?;
            for rule in wanted {
                self.add_rule(rule).await?;
            }
        }
        Ok(())
    }

    /// Takes that back; `index` is the interface, if there is one.
    pub async fn release_underlay(&self, index: Option<u32>) -> Result<(), NetlinkError> {
        for version in [IpVersion::V4, IpVersion::V6] {
            for rule in self.own_rules(version.clone()).await.unwrap_or_default() {
                self.delete_rule(rule).await?;
            }
            for route in self.own_routes(&version).await.unwrap_or_default() {
                self.delete_copy(route).await?;
            }
        }
        match index {
            Some(index) if self.group(index).await? == GROUP => self.set_group(index, 0).await,
            Some(_) | None => Ok(()),
        }
    }

    async fn group(&self, index: u32) -> Result<u32, NetlinkError> {
        let what = || format!("look at interface {index}");
        let mut links = self.handle.link().get().match_index(index).execute();
        let link = links.try_next().await.map_err(|e| classify(what(), e))?;
        let link = link.ok_or(NetlinkError::NoSuchInterface { what: what() })?;
        for attribute in link.attributes {
            if let LinkAttribute::Group(group) = attribute {
                return Ok(group);
            }
        }
        Ok(0)
    }

    async fn set_group(&self, index: u32, group: u32) -> Result<(), NetlinkError> {
        // Each change is told to all who watch, us included.
        if self.group(index).await? == group {
            return Ok(());
        }
        let link = LinkUnspec::new_with_index(index);
        let link = link.append_extra_attribute(LinkAttribute::Group(group));
        let request = self.handle.link().set(link.build()).execute();
        request
            .await
            .map_err(|e| classify(format!("set the group of interface {index}"), e))
    }

    async fn copy_default_route(
        &self,
        version: &IpVersion,
        index: u32,
    ) -> Result<(), NetlinkError> {
        let wanted = self.default_route(version).await?.map(copy);
        // One that leads into the interface is a full tunnel's, and no way out of it.
        let into = RouteAttribute::Oif(index);
        let wanted = wanted.filter(|route| !route.attributes.contains(&into));
        let there = self.own_routes(version).await?;
        if there.iter().eq(wanted.iter()) {
            return Ok(());
        }
        for stale in there {
            self.delete_copy(stale).await?;
        }
        let Some(route) = wanted else { return Ok(()) };
        let request = self.handle.route().add(route).replace().execute();
        request
            .await
            .map_err(|e| classify("copy the default route".into(), e))
    }

    async fn own_routes(&self, version: &IpVersion) -> Result<Vec<RouteMessage>, NetlinkError> {
        let ours = RouteAttribute::Table(TABLE);
        let routes = self.handle.route().get(all_routes(version)).execute();
        let routes: Result<Vec<RouteMessage>, _> = routes.try_collect().await;
        let routes = routes.map_err(|e| classify("list the routes".into(), e))?;
        let routes = routes.into_iter().filter(|r| r.attributes.contains(&ours));
        Ok(routes.map(copy).collect())
    }

    async fn delete_copy(&self, route: RouteMessage) -> Result<(), NetlinkError> {
        let request = self.handle.route().del(route).execute();
        request
            .await
            .map_err(|e| classify("remove the copy of a default route".into(), e))
    }

    async fn own_rules(&self, version: IpVersion) -> Result<Vec<RuleMessage>, NetlinkError> {
        let ours = RuleAttribute::Protocol(PROTOCOL);
        let rules = self.handle.rule().get(version).execute();
        let rules: Result<Vec<RuleMessage>, _> = rules.try_collect().await;
        let mut rules = rules.map_err(|e| classify("list the routing rules".into(), e))?;
        rules.retain(|rule| rule.attributes.contains(&ours));
        Ok(rules)
    }

    async fn add_rule(&self, rule: RuleMessage) -> Result<(), NetlinkError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule;
        let added = request.execute().await;
        match added.map_err(|e| classify("add a routing rule".into(), e)) {
            Ok(()) | Err(NetlinkError::Exists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn delete_rule(&self, rule: RuleMessage) -> Result<(), NetlinkError> {
        let request = self.handle.rule().del(rule).execute();
        request
            .await
            .map_err(|e| classify("remove a routing rule".into(), e))
    }
}

/// The same route in the table of copies, without what the kernel says of it beside.
fn copy(mut route: RouteMessage) -> RouteMessage {
    route.header.table = RouteHeader::RT_TABLE_UNSPEC;
    route.header.protocol = PROTOCOL;
    route.attributes.retain(|attribute| {
        !matches!(
            attribute,
            RouteAttribute::Table(_) | RouteAttribute::CacheInfo(_) | RouteAttribute::Preference(_)
        )
    });
    route.attributes.push(RouteAttribute::Table(TABLE));
    route
}

fn rules(version: &IpVersion, port: u16) -> [RuleMessage; 3] {
    let rule = |priority: u32, action: RuleAction| {
        let mut rule = RuleMessage::default();
        rule.header.family = if is_v6(version) {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        };
        rule.header.action = action;
        rule.attributes = vec![
            RuleAttribute::Priority(priority),
            RuleAttribute::Protocol(PROTOCOL),
            RuleAttribute::IpProtocol(IpProtocol::Udp),
            RuleAttribute::SourcePortRange(RulePortRange {
                start: port,
                end: port,
            }),
        ];
        rule
    };
    let mut main = rule(BUT_THE_INTERFACE, RuleAction::ToTable);
    main.header.table = RouteHeader::RT_TABLE_MAIN;
    main.attributes.push(RuleAttribute::SuppressIfGroup(GROUP));
    let mut default = rule(BY_DEFAULT, RuleAction::ToTable);
    default.attributes.push(RuleAttribute::Table(TABLE));
    [main, default, rule(NOWHERE, RuleAction::Unreachable)]
}

/// The source port that a rule is for.
fn from(rule: &RuleMessage) -> Option<u16> {
    let port = |attribute: &RuleAttribute| {
        if let RuleAttribute::SourcePortRange(range) = attribute {
            Some(range.start)
        } else {
            None
        }
    };
    rule.attributes.iter().find_map(port)
}

fn is_v6(version: &IpVersion) -> bool {
    match version {
        IpVersion::V4 => false,
        IpVersion::V6 => true,
    }
}

fn lacks(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
    )
}
