//! Texts of UPnP's Internet Gateway Device (UPnP Device Architecture 1.1; WANIPConnection:1 and :2,
//! WANPPPConnection:1): discovery by SSDP, the device's description, and four actions over SOAP.
//!
//! Whoever answers a search names URLs. Only those are taken that are on the gateway's own address:
//! nobody on the LAN can make this node fetch something elsewhere.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::http::{Response, header, request, status_of};
use super::{DESCRIPTION, Refusal};

/// Seconds over which answers are spread (UDA 1.1 §1.3.2 asks for 1 to 5).
const MX: u8 = 1;
/// The longest answer to a search, and the longest path of a URL, that is looked at.
const MAX_SEARCH_REPLY: usize = 2048;
const MAX_PATH: usize = 512;
/// Services that map ports, the better first.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// The most services of one description that are looked at; gateways have three to six.
const MAX_SERVICES: usize = 32;

/// Error codes of WANIPConnection (§2.4 and §2.5 of its specification).
const NO_SUCH_ENTRY: u16 = 714;
const CONFLICTS: [u16; 2] = [718, 729];

/// Something on the gateway that speaks HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The gateway's address and a port of it.
    pub(super) address: SocketAddr,
    /// Absolute, printable.
    pub(super) path: String,
}

/// The service that maps ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    control: Place,
    kind: &'static str,
}

/// What came of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// There is no such mapping.
    NoSuchEntry,
    /// The external port is another's.
    PortTaken,
    /// Anything else.
    Refused(Refusal),
}

/// M-SEARCH for a gateway; those of version 2 answer to version 1 as well (UDA 1.1 §1.3.2).
pub(super) fn search() -> Vec<u8> {
    format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: {MX}\r\n\
         ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
    )
    .into_bytes()
}

/// Where the gateway's description is, by its answer to a search.
pub(super) fn parse_search_reply(message: &[u8], gateway: IpAddr) -> Option<Place> {
    if message.len() > MAX_SEARCH_REPLY {
        return None;
    }
    let head = std::str::from_utf8(message).ok()?;
    if status_of(head)? != 200 || !header(head, "st")?.contains("InternetGatewayDevice") {
        return None;
    }
    parse_url(header(head, "location")?, gateway)
}

/// The best service of a description that is at `at`.
pub(super) fn parse_description(body: &[u8], at: &Place) -> Option<Service> {
    let text = String::from_utf8_lossy(body);
    let gateway = at.address.ip();
    let base = match element(&text, "URLBase").map(str::trim) {
        Some(url) if !url.is_empty() => parse_url(url, gateway)?,
        Some(_) | None => at.clone(),
    };
    let mut rest: &str = &text;
    let mut found: Vec<(usize, &str)> = Vec::new();
    for _ in 0..MAX_SERVICES {
        let Some((inside, after)) = split_element(rest, "service") else {
            break;
        };
        rest = after;
        let kind = element(inside, "serviceType").map(str::trim);
        let rank = SERVICES.iter().position(|service| Some(*service) == kind);
        if let (Some(rank), Some(control)) = (rank, element(inside, "controlURL")) {
            found.push((rank, control.trim()));
        }
    }
    let (rank, control) = found.into_iter().min_by_key(|(rank, _)| *rank)?;
    let control = resolve(&control.replace("&amp;", "&"), &base)?;
    let kind = SERVICES[rank];
    Some(Service { control, kind })
}

/// Asks for the description.
pub(super) fn describe(at: &Place) -> Vec<u8> {
    request("GET", at.address, &at.path, "", "")
}

impl Service {
    /// Where its actions go.
    pub(super) fn address(&self) -> SocketAddr {
        self.control.address
    }

    /// GetExternalIPAddress.
    pub(super) fn external_address(&self) -> Vec<u8> {
        self.action("GetExternalIPAddress", "")
    }

    /// AddPortMapping; with the same arguments it renews.
    pub(super) fn add(&self, local: SocketAddr, external: u16, lifetime: u32) -> Vec<u8> {
        let arguments = format!(
            "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort>\
             <NewProtocol>UDP</NewProtocol><NewInternalPort>{}</NewInternalPort>\
             <NewInternalClient>{}</NewInternalClient><NewEnabled>1</NewEnabled>\
             <NewPortMappingDescription>{DESCRIPTION}</NewPortMappingDescription>\
             <NewLeaseDuration>{lifetime}</NewLeaseDuration>",
            local.port(),
            local.ip()
        );
        self.action("AddPortMapping", &arguments)
    }

    /// GetSpecificPortMappingEntry: whether the mapping is still there.
    pub(super) fn check(&self, external: u16) -> Vec<u8> {
        self.action("GetSpecificPortMappingEntry", &entry(external))
    }

    /// DeletePortMapping.
    pub(super) fn delete(&self, external: u16) -> Vec<u8> {
        self.action("DeletePortMapping", &entry(external))
    }

    fn action(&self, name: &str, arguments: &str) -> Vec<u8> {
        let Self { control, kind } = self;
        let body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
             <u:{name} xmlns:u=\"{kind}\">{arguments}</u:{name}></s:Body></s:Envelope>\r\n"
        );
        let headers = format!(
            "Content-Type: text/xml; charset=\"utf-8\"\r\nSOAPAction: \"{kind}#{name}\"\r\n"
        );
        request("POST", control.address, &control.path, &headers, &body)
    }
}

/// The router's address outside, by its answer.
pub(super) fn parse_external_address(response: &Response) -> Result<Ipv4Addr, Refusal> {
    let text = outcome(response).map_err(|fault| match fault {
        Fault::Refused(refusal) => refusal,
        Fault::NoSuchEntry | Fault::PortTaken => Refusal::Unsupported,
    })?;
    let address = element(&text, "NewExternalIPAddress").map(str::trim);
    match address.and_then(|text| text.parse::<Ipv4Addr>().ok()) {
        Some(address) if !address.is_unspecified() => Ok(address),
        // Empty while the router has no connection.
        Some(_) | None => Err(Refusal::NetworkFailure),
    }
}

/// Whether an action was carried out; the body as text.
pub(super) fn outcome(response: &Response) -> Result<String, Fault> {
    let text = String::from_utf8_lossy(&response.body).into_owned();
    if response.status == 200 {
        return Ok(text);
    }
    let code = element(&text, "errorCode").and_then(|code| code.trim().parse().ok());
    Err(match code {
        Some(NO_SUCH_ENTRY) => Fault::NoSuchEntry,
        Some(code) if CONFLICTS.contains(&code) => Fault::PortTaken,
        // 606 action not authorized, 724 and 726 to 727: other ports or hosts than these.
        Some(606) => Fault::Refused(Refusal::NotAuthorized),
        Some(725) => Fault::Refused(Refusal::PermanentOnly),
        Some(728) => Fault::Refused(Refusal::NoResources),
        Some(501) => Fault::Refused(Refusal::NetworkFailure),
        Some(401 | 602) => Fault::Refused(Refusal::Unsupported),
        Some(code) => Fault::Refused(Refusal::Other(code)),
        None => Fault::Refused(Refusal::Other(response.status)),
    })
}

/// Whether a mapping is there and leads to us. A router that cannot tell is believed.
pub(super) fn is_entry_of(response: &Response, local: SocketAddr) -> bool {
    match outcome(response) {
        Ok(text) => {
            let client = element(&text, "NewInternalClient").map(str::trim);
            client.is_none_or(|client| client == local.ip().to_string())
        }
        Err(Fault::NoSuchEntry) => false,
        Err(Fault::PortTaken | Fault::Refused(_)) => true,
    }
}

fn entry(external: u16) -> String {
    format!(
        "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort>\
         <NewProtocol>UDP</NewProtocol>"
    )
}

/// `http://GATEWAY[:PORT]/PATH`; anything else is not ours to fetch.
fn parse_url(url: &str, gateway: IpAddr) -> Option<Place> {
    let rest = url.strip_prefix("http://")?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let address = match authority.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => SocketAddr::new(authority.parse().ok()?, 80),
    };
    let ours = address.ip() == gateway && address.port() != 0;
    (ours && is_path(path)).then(|| Place {
        address,
        path: path.to_owned(),
    })
}

/// A reference in a description (RFC 3986 §5.2, as far as routers use it).
fn resolve(reference: &str, base: &Place) -> Option<Place> {
    if reference.contains("://") {
        return parse_url(reference, base.address.ip());
    }
    let path = if reference.starts_with('/') {
        reference.to_owned()
    } else {
        let folder = base.path.rfind('/').map_or("/", |at| &base.path[..=at]);
        format!("{folder}{reference}")
    };
    let address = base.address;
    is_path(&path).then_some(Place { address, path })
}

/// Nothing that could end a line of the request.
fn is_path(path: &str) -> bool {
    path.len() <= MAX_PATH && path.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The text inside the first element of this name, whatever its prefix and attributes.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    split_element(text, name).map(|(inside, _)| inside)
}

/// The same, and what follows the element. One pass, no nesting of an element in its like.
fn split_element<'a>(text: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let mut start = None;
    let mut at = 0;
    while let Some(open) = text[at..].find('<').map(|found| at + found) {
        let close = text[open..].find('>').map(|found| open + found)?;
        let tag = &text[open + 1..close];
        at = close + 1;
        let (is_end, tag) = match tag.strip_prefix('/') {
            Some(tag) => (true, tag),
            None => (false, tag),
        };
        let word = tag
            .split([' ', '\t', '\r', '\n', '/'])
            .next()
            .unwrap_or_default();
        let local = word.rsplit(':').next().unwrap_or_default();
        if local != name {
            continue;
        }
        match start {
            None if !is_end && tag.ends_with('/') => return Some(("", &text[at..])),
            None if !is_end => start = Some(at),
            Some(start) if is_end => return Some((&text[start..open], &text[at..])),
            None | Some(_) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 1));

    fn place(text: &str) -> Place {
        parse_url(text, GATEWAY).unwrap()
    }

    fn answer(location: &str) -> Vec<u8> {
        format!(
            "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n\
             ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
             Location: {location}\r\nSERVER: x\r\n\r\n"
        )
        .into_bytes()
    }

    #[test]
    fn a_location_is_taken_on_the_gateway_only() {
        let found = parse_search_reply(&answer("http://192.168.1.1:5000/rootDesc.xml"), GATEWAY);
        assert_eq!(found, Some(place("http://192.168.1.1:5000/rootDesc.xml")));
        let plain = parse_search_reply(&answer("http://192.168.1.1"), GATEWAY).unwrap();
        assert_eq!((plain.address.port(), plain.path.as_str()), (80, "/"));
        for elsewhere in [
            "http://192.168.1.2:5000/x",
            "http://169.254.169.254/latest/meta-data/",
            "http://192.168.1.1@10.0.0.1/",
            "http://192.168.1.1.evil.example/",
            "http://router.lan/x",
            "http://192.168.1.1:0/x",
            "https://192.168.1.1/x",
            "file:///etc/passwd",
            "http://192.168.1.1/a b",
            "http://192.168.1.1/a\u{e9}",
        ] {
            let found = parse_search_reply(&answer(elsewhere), GATEWAY);
            assert_eq!(found, None, "{elsewhere}");
        }
        let other = answer("http://192.168.1.1/x");
        let other = String::from_utf8(other)
            .unwrap()
            .replace("InternetGateway", "Media");
        assert_eq!(parse_search_reply(other.as_bytes(), GATEWAY), None);
    }

    fn description(base: &str, control: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\">{base}<device>\
             <serviceList><service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1\
             </serviceType><controlURL>/ctl/L3F</controlURL></service></serviceList>\
             <deviceList><device><serviceList>\n<service a=\"b\"><serviceType>\
             urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
             <controlURL> {control} </controlURL></service></serviceList></device></deviceList>\
             </device></root>"
        )
    }

    #[test]
    fn the_control_url_is_resolved_on_the_gateway_only() {
        let at = place("http://192.168.1.1:5000/igd/rootDesc.xml");
        let control = |base: &str, control: &str| {
            let found = parse_description(description(base, control).as_bytes(), &at)?;
            assert_eq!(found.kind, SERVICES[1]);
            Some(format!("http://{}{}", found.address(), found.control.path))
        };
        let found = |base, reference, expected: &str| {
            assert_eq!(control(base, reference).as_deref(), Some(expected));
        };
        found("", "/ctl/IP", "http://192.168.1.1:5000/ctl/IP");
        found(
            "",
            "ctl?a=1&amp;b=2",
            "http://192.168.1.1:5000/igd/ctl?a=1&b=2",
        );
        found(
            "",
            "http://192.168.1.1:49152/c",
            "http://192.168.1.1:49152/c",
        );
        let base = "<URLBase>http://192.168.1.1:80/</URLBase>";
        found(base, "c", "http://192.168.1.1:80/c");
        assert_eq!(control("", "http://10.0.0.1/c"), None);
        assert_eq!(control("<URLBase>http://10.0.0.1/</URLBase>", "/c"), None);
        assert_eq!(control("", "/a\r\nX: y"), None);
        assert_eq!(parse_description(b"<service><service>", &at), None);
    }

    #[test]
    fn the_better_service_is_taken() {
        let older = description("", "/one");
        let newer = older.replace("WANIPConnection:1", "WANIPConnection:2");
        let both = newer.replace("/one", "/two") + &older;
        let at = place("http://192.168.1.1/d");
        let found = parse_description((older + &both).as_bytes(), &at).unwrap();
        assert_eq!(
            (found.kind, found.control.path.as_str()),
            (SERVICES[0], "/two")
        );
    }

    #[test]
    fn answers_to_actions_are_read() {
        let response = |status, body: &str| Response {
            status,
            body: body.into(),
        };
        let told = "<s:Envelope><s:Body><u:GetExternalIPAddressResponse xmlns:u=\"x\">\
                    <NewExternalIPAddress>203.0.114.4</NewExternalIPAddress>";
        let address = parse_external_address(&response(200, told));
        assert_eq!(address, Ok(Ipv4Addr::new(203, 0, 114, 4)));
        for nothing in [
            "<NewExternalIPAddress/>",
            "<NewExternalIPAddress>0.0.0.0<",
            "",
        ] {
            let address = parse_external_address(&response(200, nothing));
            assert_eq!(address, Err(Refusal::NetworkFailure));
        }
        for (code, fault) in [
            ("718", Fault::PortTaken),
            ("714", Fault::NoSuchEntry),
            ("606", Fault::Refused(Refusal::NotAuthorized)),
            ("725", Fault::Refused(Refusal::PermanentOnly)),
            ("999999", Fault::Refused(Refusal::Other(500))),
        ] {
            let body = format!("<UPnPError><errorCode>{code}</errorCode></UPnPError>");
            assert_eq!(outcome(&response(500, &body)), Err(fault), "{code}");
        }
    }

    #[test]
    fn actions_are_soap() {
        let service = Service {
            control: place("http://192.168.1.1:5000/ctl/IPConn"),
            kind: SERVICES[1],
        };
        let text = service.add("192.168.1.2:51821".parse().unwrap(), 51822, 7200);
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /ctl/IPConn HTTP/1.1\r\nHost: 192.168.1.1:5000\r\n"));
        let action =
            "SOAPAction: \"urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping\"";
        assert!(head.contains(action), "{head}");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
        assert_eq!(element(body, "NewInternalClient"), Some("192.168.1.2"));
        assert_eq!(element(body, "NewLeaseDuration"), Some("7200"));
        assert_eq!(element(body, "NewRemoteHost"), Some(""));
    }
}
