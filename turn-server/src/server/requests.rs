//! Refresh, CreatePermission and ChannelBind (RFC 8656 §7.3 on, §10, §12).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::allocate::{granted, lifetime, requested_family};
use super::allocation::{BindError, Family, Relayed};
use super::error::ErrorCode;
use super::policy::Verdict;
use super::refusal::Refusal;
use super::types::PeerAddr;
use super::{AllocationId, Reply, Server};
use crate::codec::{Class, Message, Writer, attribute};

/// Channel numbers (RFC 8656 §12).
const CHANNELS: std::ops::RangeInclusive<u16> = 0x4000..=0x4FFF;
/// Those before RFC 8656 (RFC 5766 §11).
const OLD_CHANNELS: std::ops::RangeInclusive<u16> = 0x4000..=0x7FFE;

impl Server {
    /// RFC 8656 §8.2. A family that is named is refreshed alone.
    pub(super) fn refresh(
        &mut self,
        reply: &Reply,
        message: &Message<'_>,
        id: AllocationId,
        now: Instant,
    ) -> Result<(), Refusal> {
        let requested = requested_family(message);
        if requested == Err(ErrorCode::AddressFamilyNotSupported) {
            // A family that nobody knows is none of the allocation's either.
            return Err(ErrorCode::PeerAddressFamilyMismatch.into());
        }
        let requested = requested?;
        let wish = lifetime(message)?;
        let allocation = self.get_mut(id).ok_or(ErrorCode::AllocationMismatch)?;
        if requested.is_some_and(|family| allocation.relayed(family).is_none()) {
            return Err(ErrorCode::PeerAddressFamilyMismatch.into());
        }
        let chosen = allocation
            .all_relayed()
            .filter(|(family, _)| requested.is_none_or(|requested| requested == *family));
        let granted = if wish == Some(Duration::ZERO) {
            for (family, _) in chosen {
                self.close_relay(id, family);
            }
            Duration::ZERO
        } else {
            let granted = granted(wish);
            for (family, Relayed { relay, .. }) in chosen {
                let expires = now + granted;
                allocation.set_relayed(family, Some(Relayed { relay, expires }));
            }
            granted
        };
        self.settle(id);
        let mut writer = Writer::new(Class::Success, reply.method, reply.id);
        let seconds = granted.as_secs() as u32;
        writer.add(attribute::LIFETIME, &seconds.to_be_bytes());
        if message.has(attribute::MOBILITY_TICKET)
            && let Some(ticket) = self.ticket(id)
        {
            writer.add(attribute::MOBILITY_TICKET, &ticket);
        }
        self.send(reply, writer);
        Ok(())
    }

    /// RFC 8656 §10.2: all of the addresses, or none.
    pub(super) fn create_permission(
        &mut self,
        reply: &Reply,
        message: &Message<'_>,
        id: AllocationId,
        now: Instant,
    ) -> Result<(), Refusal> {
        let mut peers: Vec<IpAddr> = Vec::new();
        for (kind, value) in message.attributes() {
            if kind == attribute::XOR_PEER_ADDRESS {
                let peer = message.xor_address(value).ok_or(ErrorCode::BadRequest)?;
                peers.push(peer.ip());
            }
        }
        if peers.is_empty() {
            return Err(ErrorCode::BadRequest.into());
        }
        for peer in &peers {
            self.check_peer(id, *peer)?;
        }
        let max = self.config.max_permissions;
        let allocation = self.get_mut(id).ok_or(ErrorCode::AllocationMismatch)?;
        if !allocation.has_room(&peers, max, now) {
            return Err(Refusal::PeersFull);
        }
        for peer in peers {
            allocation.permit(peer, now);
        }
        self.send(reply, Writer::new(Class::Success, reply.method, reply.id));
        Ok(())
    }

    /// RFC 8656 §12.2.
    pub(super) fn channel_bind(
        &mut self,
        reply: &Reply,
        message: &Message<'_>,
        id: AllocationId,
        now: Instant,
    ) -> Result<(), Refusal> {
        let number = message.word(attribute::CHANNEL_NUMBER);
        let [high, low, ..] = number.ok_or(ErrorCode::BadRequest)?;
        let number = u16::from_be_bytes([high, low]);
        let numbers = if self.config.old_clients {
            OLD_CHANNELS
        } else {
            CHANNELS
        };
        if !numbers.contains(&number) {
            return Err(Refusal::ChannelNumber(number));
        }
        let peer = self.peer_asked_for(message, id)?;
        if self.get(id).is_some_and(|a| a.connections.is_some()) {
            // RFC 6062 §5: a TCP allocation has no channels.
            return Err(ErrorCode::Forbidden.into());
        }
        let (max_channels, max_permissions) =
            (self.config.max_channels, self.config.max_permissions);
        let allocation = self.get_mut(id).ok_or(ErrorCode::AllocationMismatch)?;
        if !allocation.has_room(&[peer.0.ip()], max_permissions, now) {
            return Err(Refusal::PeersFull);
        }
        match allocation.bind(number, peer, max_channels, now) {
            Ok(()) => {}
            Err(BindError::Taken) => return Err(ErrorCode::BadRequest.into()),
            Err(BindError::Full) => return Err(Refusal::PeersFull),
        }
        allocation.permit(peer.0.ip(), now);
        self.send(reply, Writer::new(Class::Success, reply.method, reply.id));
        Ok(())
    }

    /// The one peer that a request names, if this allocation may reach it.
    pub(super) fn peer_asked_for(
        &self,
        message: &Message<'_>,
        id: AllocationId,
    ) -> Result<PeerAddr, Refusal> {
        let peer = message
            .get(attribute::XOR_PEER_ADDRESS)
            .and_then(|value| message.xor_address(value));
        let peer = PeerAddr(peer.ok_or(ErrorCode::BadRequest)?);
        self.check_peer(id, peer.0.ip())?;
        if !self.may_send_to(peer) {
            return Err(Refusal::PeerDenied(peer.0.ip()));
        }
        Ok(peer)
    }

    /// Whether payloads may go to this address and port: relayed addresses of ours only while they are that.
    pub(super) fn may_send_to(&self, peer: PeerAddr) -> bool {
        match self.config.policy.judge(peer.0.ip()) {
            Verdict::Allowed => peer.0.port() != 0,
            Verdict::RelayPorts => self.is_relayed(peer.0),
            Verdict::Denied => false,
        }
    }

    /// Whether an address is one of our relayed addresses now, of this thread or another.
    pub(super) fn is_relayed(&self, address: SocketAddr) -> bool {
        self.relay_config(Family::of(address.ip()))
            .is_some_and(|relay| {
                relay.external == address.ip() && relay.ports.is_relayed(address.port())
            })
    }

    pub(super) fn check_peer(&self, id: AllocationId, peer: IpAddr) -> Result<(), Refusal> {
        // Before the family: IPv4 in the disguise of IPv6 is forbidden, not mismatched.
        if self.config.policy.judge(peer) == Verdict::Denied {
            return Err(Refusal::PeerDenied(peer));
        }
        let allocation = self.get(id).ok_or(ErrorCode::AllocationMismatch)?;
        match allocation.relayed(Family::of(peer)) {
            Some(_) => Ok(()),
            None => Err(ErrorCode::PeerAddressFamilyMismatch.into()),
        }
    }
}
