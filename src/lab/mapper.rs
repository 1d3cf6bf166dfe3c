//! A router that maps ports on request: miniupnpd, which speaks PCP, NAT-PMP and UPnP.

use std::path::Path;
use std::process::Command;

use super::error::{Doing as _, LabError};
use super::netns::NetNs;
use super::tools;

/// What a home's router maps ports by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapper {
    /// PCP (RFC 6887).
    pub pcp: bool,
    /// NAT-PMP (RFC 6886).
    pub natpmp: bool,
    /// UPnP Internet Gateway Device.
    pub upnp: bool,
    /// Whether it grants what is asked for.
    pub grants: bool,
}

impl Mapper {
    /// One that grants by all three.
    pub const ALL: Self = Self {
        pcp: true,
        natpmp: true,
        upnp: true,
        grants: true,
    };

    /// The chains that miniupnpd fills, and what keeps PCP or NAT-PMP from it: both have one port,
    /// and are told apart by the version in their first byte.
    pub(super) fn ruleset(self) -> String {
        let deaf = |works: bool, version: u8| match works {
            true => String::new(),
            false => format!("  iifname \"lan\" udp dport 5351 @th,64,8 {version} drop\n"),
        };
        format!(
            r#"table inet filter {{
 chain deaf {{ type filter hook input priority 1; policy accept;
{}{} }}
 chain prerouting {{ type nat hook prerouting priority dstnat; policy accept;
  jump prerouting_miniupnpd
 }}
 chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;
  jump postrouting_miniupnpd
 }}
 chain miniupnpd {{ }}
 chain prerouting_miniupnpd {{ }}
 chain postrouting_miniupnpd {{ }}
}}
"#,
            deaf(self.natpmp, 0),
            deaf(self.pcp, 2)
        )
    }

    /// The daemon of the router of `home`. Its epoch starts with it.
    pub(super) fn command(
        self,
        home: &str,
        ns: &NetNs,
        folder: &Path,
    ) -> Result<Command, LabError> {
        let yes = |on: bool| if on { "yes" } else { "no" };
        let rule = if self.grants { "allow" } else { "deny" };
        let text = format!(
            "ext_ifname=wan\nlistening_ip=lan\nenable_natpmp={}\nenable_upnp={}\nsecure_mode=yes\n\
             system_uptime=no\nuuid=00000000-0000-4000-8000-000000000001\n\
             {rule} 1024-65535 0.0.0.0/0 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
            yes(self.pcp || self.natpmp),
            yes(self.upnp)
        );
        let file = folder.join(format!("{home}.miniupnpd.conf"));
        std::fs::write(&file, text).doing(|| format!("configuring the router of {home}"))?;
        let program = tools::find("miniupnpd").ok_or_else(missing)?;
        let mut command = ns.command(program);
        command.arg("-d").arg("-f").arg(file);
        command
            .arg("-P")
            .arg(folder.join(format!("{home}.miniupnpd.pid")));
        Ok(command)
    }
}

fn missing() -> LabError {
    LabError::Missing {
        programs: vec!["miniupnpd"],
        packages: vec!["miniupnpd-nftables"],
    }
}
