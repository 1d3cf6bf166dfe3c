//! The signaling service: keeps each host's last advert and fans it out, late, twice, out of order, or
//! not while it is down.

use std::time::Duration;

use wice_signaling::protocol::Presence;

use crate::network::HostId;
use crate::world::{Happening, Record, World};

impl World {
    /// A record has come to the service.
    pub(crate) fn published(&mut self, record: Record) {
        if !self.signaling.up {
            self.signaling.waiting.push(record);
            return;
        }
        self.signaling.records.insert(record.0, record.clone());
        for id in 0..self.hosts.len() {
            if id != record.0 && self.knows(id, record.0) && self.hosts[id].node.is_some() {
                self.fan_out(id, &record);
            }
        }
    }

    pub(crate) fn signaling_up(&mut self) {
        self.signaling.up = true;
        for record in std::mem::take(&mut self.signaling.waiting) {
            self.published(record);
        }
    }

    /// The service tells all others of a host.
    pub(crate) fn presence(&mut self, of: HostId, presence: Presence) {
        let (key, now) = (self.hosts[of].public, self.now);
        for (id, _) in self.others(of) {
            if let Some(node) = &mut self.hosts[id].node {
                node.handle_presence(&key, presence, now);
            }
            self.drain(id);
        }
    }

    pub(crate) fn fan_out(&mut self, to: HostId, record: &Record) {
        let copies = 1 + usize::from(self.random.chance(self.signaling.duplication));
        for _ in 0..copies {
            let late = if self.random.chance(self.signaling.late) {
                Duration::from_secs(1)
            } else {
                Duration::ZERO
            };
            let delay = self.signaling.delay + late + self.random.up_to(self.signaling.jitter);
            self.schedule(self.now + delay, Happening::Advert(to, record.clone()));
        }
    }

    pub(crate) fn advert(&mut self, id: HostId, record: &Record) {
        let now = self.now;
        let host = &mut self.hosts[id];
        let Some(node) = &mut host.node else { return };
        host.known.extend(&record.2);
        // An old one that comes late is refused, which is as it should be.
        if node.handle_advert(&record.1, now).is_ok() && record.0 != id {
            host.stored.insert(record.0, record.1.clone());
        }
        self.drain(id);
    }
}
