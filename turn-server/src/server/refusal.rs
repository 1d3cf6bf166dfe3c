//! Why a request was refused, as an operator wants to know it: the client is told a code alone. Bounded in number, so that
//! nobody can fill a log.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::error::ErrorCode;
use super::limiter::{Limiter, Rate};
use super::quota::Exceeded;
use super::types::{ClientAddr, source_of};

/// One source, user and reason is told of once in this time; the next line says how often it happened meanwhile.
const REPEAT: Duration = Duration::from_secs(60);
/// Notices of a thread, of everybody together: a log that is read by people, and no tool to fill a disk.
const RATE: Rate = Rate {
    per_second: 5,
    burst: 50,
};
/// Remembered sources, users and reasons: 16 KiB a thread. Those that share a place are told of less often.
const PLACES: usize = 1024;
/// Notices that wait for the shell, which takes them after each batch.
const MAX_WAITING: usize = 64;
/// Characters of a name in a notice: it was chosen by who was refused.
const MAX_NAME: usize = 64;

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The code says all there is.
    Plain(ErrorCode),
    /// 400: a channel number that is none of this server's.
    ChannelNumber(u16),
    /// 401: no user of that name, and no name with a time in front.
    UnknownUser,
    /// 401: a time-limited name whose time is over.
    Expired,
    /// 401: a user's password.
    WrongPassword,
    /// 401: a time-limited name that none of the secrets made.
    WrongSecret,
    /// 401: another realm.
    WrongRealm,
    /// 403: a peer that the lists do not let through.
    PeerDenied(IpAddr),
    /// 486: which quota.
    Quota(Exceeded),
    /// 508: no new allocations any more.
    Draining,
    /// 508: no relay port is free.
    NoPort,
    /// 508: a relay socket could not be opened.
    NoSocket,
    /// 508: as many permissions or channels as an allocation may have.
    PeersFull,
    /// Nothing is answered: the source had its share of challenges.
    Rationed,
}

impl Refusal {
    /// What the client is told.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Plain(code) => code,
            Self::ChannelNumber(_) => ErrorCode::BadRequest,
            Self::UnknownUser
            | Self::Expired
            | Self::WrongPassword
            | Self::WrongSecret
            | Self::WrongRealm
            | Self::Rationed => ErrorCode::Unauthorized,
            Self::PeerDenied(_) => ErrorCode::Forbidden,
            Self::Quota(_) => ErrorCode::AllocationQuotaReached,
            Self::Draining | Self::NoPort | Self::NoSocket | Self::PeersFull => {
                ErrorCode::InsufficientCapacity
            }
        }
    }

    /// Whether an operator can do something about it. First requests are challenged, nonces go stale, families are asked for in
    /// turn and 5-tuples are used again without anything being wrong.
    fn is_telling(self) -> bool {
        match self {
            Self::Plain(code) => match code {
                ErrorCode::BadRequest
                | ErrorCode::UnknownAttribute
                | ErrorCode::Forbidden
                | ErrorCode::WrongCredentials
                | ErrorCode::UnsupportedTransport
                | ErrorCode::AllocationQuotaReached
                | ErrorCode::InsufficientCapacity => true,
                ErrorCode::Unauthorized
                | ErrorCode::StaleNonce
                | ErrorCode::AllocationMismatch
                | ErrorCode::AddressFamilyNotSupported
                | ErrorCode::PeerAddressFamilyMismatch
                | ErrorCode::ConnectionAlreadyExists
                | ErrorCode::ConnectionFailed => false,
            },
            Self::ChannelNumber(_)
            | Self::UnknownUser
            | Self::Expired
            | Self::WrongPassword
            | Self::WrongSecret
            | Self::WrongRealm
            | Self::PeerDenied(_)
            | Self::Quota(_)
            | Self::Draining
            | Self::NoPort
            | Self::NoSocket
            | Self::PeersFull
            | Self::Rationed => true,
        }
    }
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        Self::Plain(code)
    }
}

/// One line for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Who was refused.
    pub client: ClientAddr,
    /// The method's number.
    pub method: u16,
    /// The name that was given, cut to 64 characters; without control characters.
    pub user: Option<Box<str>>,
    /// Why.
    pub refusal: Refusal,
    /// How often the same happened since it was last told.
    pub repeated: u32,
}

/// Notices of one thread on their way to the shell.
#[derive(Debug)]
pub(super) struct Notices {
    start: Instant,
    secret: u64,
    all: Limiter,
    places: Box<[Place]>,
    waiting: VecDeque<Notice>,
}

/// When a source, user and reason was last told of, and how often it was not.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    told: Option<u32>,
    repeated: u32,
}

impl Notices {
    /// `secret` keeps others from choosing who shares a place.
    pub(super) fn new(start: Instant, secret: u64) -> Self {
        Self {
            start,
            secret,
            all: Limiter::new(start, secret),
            places: vec![Place::default(); PLACES].into_boxed_slice(),
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn push(
        &mut self,
        client: &ClientAddr,
        method: u16,
        user: Option<&str>,
        refusal: Refusal,
        now: Instant,
    ) {
        if !refusal.is_telling() {
            return;
        }
        let mut hasher = DefaultHasher::new();
        let source = source_of(client.remote);
        // A peer more is no other reason.
        let kind = std::mem::discriminant(&refusal);
        (self.secret, source, user, kind, refusal.code().code()).hash(&mut hasher);
        let place = &mut self.places[hasher.finish() as usize % PLACES];
        let second = now.saturating_duration_since(self.start).as_secs() as u32;
        let again = u64::from(second) < u64::from(place.told.unwrap_or(0)) + REPEAT.as_secs();
        let muted = (place.told.is_some() && again)
            || self.waiting.len() >= MAX_WAITING
            || !self.all.allow(RATE, EVERYBODY, now);
        if muted {
            place.repeated = place.repeated.saturating_add(1);
            return;
        }
        let repeated = std::mem::take(&mut place.repeated);
        place.told = Some(second);
        self.waiting.push_back(Notice {
            client: *client,
            method,
            user: user.map(|name| name.chars().take(MAX_NAME).collect()),
            refusal,
            repeated,
        });
    }

    pub(super) fn pop(&mut self) -> Option<Notice> {
        self.waiting.pop_front()
    }
}

/// The one source of [`RATE`].
const EVERYBODY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
