//! What a router offers, and what was mapped on it.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::core::portmap::{self, Outcome};

/// A router of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The router.
    pub gateway: IpAddr,
    /// The protocols that it answered to: `pcp`, `nat-pmp`, `upnp`.
    pub protocols: Vec<String>,
    /// Its address outside, where it has told it.
    pub external: Option<IpAddr>,
    /// `looking`, `none`, `offered`, `mapped`, `refused` or `two-layers`.
    pub state: String,
    /// The port on it that leads to us.
    pub mapped: Option<SocketAddr>,
    /// All of it in words.
    pub summary: String,
}

impl From<&portmap::Report> for PortMapping {
    fn from(report: &portmap::Report) -> Self {
        let gateway = report.gateway;
        let outside = report.external.map(|ip| ip.to_string()).unwrap_or_default();
        let (state, mapped, summary) = match report.outcome {
            Outcome::Looking => ("looking", None, format!("router {gateway} is being asked")),
            Outcome::Nothing => {
                let text = format!("none: router {gateway} speaks no PCP, NAT-PMP or UPnP");
                ("none", None, text)
            }
            Outcome::Offered => {
                let names: Vec<String> = report.protocols.iter().map(|p| p.to_string()).collect();
                let outside = match outside.is_empty() {
                    true => String::new(),
                    false => format!(", {outside} outside"),
                };
                let text = format!("{} on router {gateway}{outside}", names.join(", "));
                ("offered", None, text)
            }
            Outcome::Mapped {
                protocol, external, ..
            } => {
                let text = format!("{external} by {protocol} on router {gateway}");
                ("mapped", Some(external), text)
            }
            Outcome::Refused { protocol, refusal } => {
                let text = format!("refused by {protocol} on router {gateway}: {refusal}");
                ("refused", None, text)
            }
            Outcome::TwoLayers => {
                let text = format!(
                    "of no use: router {gateway} itself is behind a NAT, at {outside} (two layers)"
                );
                ("two-layers", None, text)
            }
        };
        Self {
            gateway,
            protocols: (report.protocols.iter())
                .map(|protocol| protocol.as_str().to_owned())
                .collect(),
            external: report.external,
            state: state.to_owned(),
            mapped,
            summary,
        }
    }
}
