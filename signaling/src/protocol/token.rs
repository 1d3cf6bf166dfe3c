//! The token: all that a machine needs to join, as one text to paste.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::url::MAX_URL_LEN;
use super::wire::{Reader, check_text, put_long, put_text};
use super::{Invite, MAX_NAME_LEN, NetworkId, NetworkKey, RecordError, SignalUrl};

/// What a token begins with: program and version.
const PREFIX: &str = "wice1";

/// Length of the whole in 2 bytes, and 2 bytes to know it by: with them, a token that was cut off
/// is told from a text that never was one.
const HEAD_LEN: usize = 4;

/// Bytes of SHA-256 at the end: a mistyped character is found, whoever forges cannot join anyway.
const CHECKSUM_LEN: usize = 4;

/// The longest token in bytes: 32 bytes of seed and 1 KiB of certificate, 1 KiB of the rest.
const MAX_TOKEN_LEN: usize = 2048;

const HEAD_LABEL: &[u8] = b"wice-token-head-v1\0";
const CHECKSUM_LABEL: &[u8] = b"wice-token-v1\0";

/// Not strict about bits behind the last byte: a cut may leave some. Re-encoding is checked instead.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));

/// SHA-256 of the service's certificate (DER), where no public authority vouches for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ServerPin(pub [u8; 32]);

impl ServerPin {
    /// The pin of a certificate in DER.
    #[must_use]
    pub fn of_certificate(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }

    /// The first bytes, as people compare them: `sha256:9f2c…`.
    #[must_use]
    pub fn short(&self) -> String {
        format!("sha256:{}…", hex::encode(&self.0[..2]))
    }
}

impl fmt::Display for ServerPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for ServerPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What `wice invite` prints and `wice up` takes. It holds secrets: whoever has it can join.
///
/// Text: `wice1` and base64url (RFC 4648 §5, no padding) of: length of it all in bytes (2),
/// first 2 bytes of SHA-256 over a label and that length, URL (length in 2 bytes, text),
/// pin (0, or 1 and 32 bytes), network id (32), network key (32), network name (length in 1 byte,
/// text), invite seed (32), invite certificate, first 4 bytes of SHA-256 over a label and all
/// bytes before them.
#[derive(Clone)]
pub struct Token {
    /// The signaling service.
    pub url: SignalUrl,
    /// Its certificate's hash; `None` where a public authority vouches for it.
    pub pin: Option<ServerPin>,
    /// The network.
    pub network: NetworkId,
    /// What its records are sealed under.
    pub network_key: NetworkKey,
    /// For people: at most 63 bytes.
    pub network_name: String,
    /// The right to join.
    pub invite: Invite,
}

/// Why a text is not a token, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not look like one.
    #[error("this is no wice token: one begins with wice1 (make one with `wice invite`)")]
    NotAToken,
    /// Its end is missing.
    #[error("token is cut short: paste it whole")]
    CutShort,
    /// Something follows it.
    #[error("token has text after its end: paste the token alone")]
    TooLong,
    /// A character in it changed.
    #[error("token is damaged: a character was changed on the way (copy it again)")]
    Damaged,
    /// It is well, but this program cannot read it.
    #[error("token cannot be used: {0} (make a new one with `wice invite`)")]
    Invalid(#[from] RecordError),
    /// The URL within is none.
    #[error("token cannot be used: {0}")]
    Url(#[from] super::UrlError),
}

impl Token {
    /// The text. Fails when a name is too long or holds control characters.
    pub fn encode(&self) -> Result<Zeroizing<String>, RecordError> {
        let url = self.url.to_string();
        check_text(&url, MAX_URL_LEN, "url")?;
        check_text(&self.network_name, MAX_NAME_LEN, "network name")?;
        let mut out = Zeroizing::new(Vec::with_capacity(MAX_TOKEN_LEN));
        out.extend_from_slice(&[0; HEAD_LEN]);
        put_long(&mut out, url.as_bytes());
        match self.pin {
            Some(pin) => {
                out.push(1);
                out.extend_from_slice(&pin.0);
            }
            None => out.push(0),
        }
        out.extend_from_slice(&self.network.0);
        out.extend_from_slice(self.network_key.expose_secret());
        put_text(&mut out, &self.network_name);
        self.invite.put(&mut out);
        let head = head_of(out.len() + CHECKSUM_LEN);
        out[..HEAD_LEN].copy_from_slice(&head);
        let checksum = checksum_of(&out);
        out.extend_from_slice(&checksum);
        Ok(Zeroizing::new(format!(
            "{PREFIX}{}",
            *Zeroizing::new(BASE64.encode(&*out))
        )))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    /// White space around and within is skipped: mail programs break lines.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        // Bounded before anything is copied; the factor leaves room for line breaks.
        if text.len() > 2 * MAX_TOKEN_LEN {
            return Err(TokenError::NotAToken);
        }
        let text: Zeroizing<String> =
            Zeroizing::new(text.chars().filter(|c| !c.is_ascii_whitespace()).collect());
        let encoded = text.strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        let bytes = decode_base64(encoded).ok_or(TokenError::NotAToken)?;
        let whole = whole_len(&bytes)?;
        if bytes.len() < whole {
            return Err(TokenError::CutShort);
        }
        if bytes.len() > whole {
            return Err(TokenError::TooLong);
        }
        let Some((body, checksum)) = bytes.split_last_chunk::<CHECKSUM_LEN>() else {
            return Err(TokenError::NotAToken);
        };
        if *checksum != checksum_of(body) || BASE64.encode(&*bytes) != encoded {
            return Err(TokenError::Damaged);
        }
        parse_body(&body[HEAD_LEN..])
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("url", &self.url)
            .field("pin", &self.pin)
            .field("network", &self.network)
            .field("network_name", &self.network_name)
            .finish_non_exhaustive()
    }
}

fn parse_body(body: &[u8]) -> Result<Token, TokenError> {
    let mut reader = Reader::new(body);
    let url = std::str::from_utf8(reader.long(MAX_URL_LEN)?)
        .map_err(|_| RecordError::BadValue("url"))?
        .parse()?;
    let pin = match reader.u8()? {
        0 => None,
        1 => Some(ServerPin(reader.array()?)),
        _ => return Err(RecordError::BadValue("pin").into()),
    };
    let network = NetworkId(reader.array()?);
    let network_key = NetworkKey::from_bytes(reader.array()?);
    let network_name = reader.text(MAX_NAME_LEN, "network name")?.to_owned();
    let invite = Invite::take(&mut reader, &network)?;
    reader.finish()?;
    Ok(Token {
        url,
        pin,
        network,
        network_key,
        network_name,
        invite,
    })
}

/// The bytes, without a last character that is not enough for one.
fn decode_base64(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let whole = if text.len() % 4 == 1 {
        text.len() - 1
    } else {
        text.len()
    };
    BASE64
        .decode(text.as_bytes().get(..whole)?)
        .ok()
        .map(Zeroizing::new)
}

/// How many bytes the token has, by its head.
fn whole_len(bytes: &[u8]) -> Result<usize, TokenError> {
    let Some(head) = bytes.first_chunk::<HEAD_LEN>() else {
        // Too short even for its head: `wice1` alone is a cut-off token.
        return Err(TokenError::CutShort);
    };
    let len = usize::from(u16::from_be_bytes([head[0], head[1]]));
    if *head != head_of(len) || len < HEAD_LEN + CHECKSUM_LEN {
        return Err(TokenError::NotAToken);
    }
    Ok(len)
}

fn head_of(len: usize) -> [u8; HEAD_LEN] {
    let len = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    let check = Sha256::new()
        .chain_update(HEAD_LABEL)
        .chain_update(len)
        .finalize();
    [len[0], len[1], check[0], check[1]]
}

fn checksum_of(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    let digest = Sha256::new()
        .chain_update(CHECKSUM_LABEL)
        .chain_update(bytes)
        .finalize();
    [digest[0], digest[1], digest[2], digest[3]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::AdminKey;
    use crate::protocol::testing::Random;

    fn token() -> Token {
        let admin = AdminKey::from_seed(&[1; 32]);
        let prefixes = ["10.1.0.0/16".parse().unwrap()];
        Token {
            url: "wss://signal.example:8443".parse().unwrap(),
            pin: Some(ServerPin([2; 32])),
            network: admin.network_id(),
            network_key: NetworkKey::from_bytes([3; 32]),
            network_name: "lab".to_owned(),
            invite: Invite::new(&admin, &[4; 32], 1_800_000_000, "for b", &prefixes).unwrap(),
        }
    }

    fn error(text: &str) -> TokenError {
        text.parse::<Token>().unwrap_err()
    }

    #[test]
    fn round_trip_also_over_broken_lines() {
        for pin in [None, token().pin] {
            let text = Token { pin, ..token() }.encode().unwrap();
            assert_eq!(*text.parse::<Token>().unwrap().encode().unwrap(), *text);
            let (a, b) = text.split_at(100);
            let broken = format!("  {a}\r\n   {b}\n");
            assert_eq!(*broken.parse::<Token>().unwrap().encode().unwrap(), *text);
        }
    }

    #[test]
    fn what_went_wrong_is_told_apart() {
        let text = token().encode().unwrap();
        for len in 0..text.len() {
            let expected = if len < 5 {
                TokenError::NotAToken
            } else {
                TokenError::CutShort
            };
            assert_eq!(error(&text[..len]), expected, "cut to {len}");
        }
        assert_eq!(error(&format!("{}AAAA", *text)), TokenError::TooLong);
        for garbage in [
            "",
            "hello",
            "wice2abcdef",
            "wice1!!!!!!!!",
            "wice1AAAAAAAAAAAAAAAAAAAA",
        ] {
            assert_eq!(error(garbage), TokenError::NotAToken, "{garbage}");
        }
        assert_eq!(error(&"w".repeat(100_000)), TokenError::NotAToken);
    }

    #[test]
    fn every_changed_character_is_found() {
        let text = token().encode().unwrap();
        let mut random = Random::new(30);
        for at in 0..text.len() {
            let mut bytes = text.as_bytes().to_vec();
            while bytes[at] == text.as_bytes()[at] {
                bytes[at] = b"ABCDEFabcdef0123456789-_"[random.below(24)];
            }
            let changed = String::from_utf8(bytes).unwrap();
            let expected = if at < 11 {
                TokenError::NotAToken
            } else {
                TokenError::Damaged
            };
            assert_eq!(error(&changed), expected, "character {at}");
        }
    }

    #[test]
    fn a_certificate_of_another_network_is_refused() {
        let foreign = AdminKey::from_seed(&[9; 32]).network_id();
        let text = Token {
            network: foreign,
            ..token()
        }
        .encode()
        .unwrap();
        assert_eq!(error(&text), TokenError::Invalid(RecordError::BadSignature));
    }

    #[test]
    fn a_token_is_never_printed() {
        let printed = format!("{:?}", token());
        assert!(
            !printed.contains("030303") && !printed.contains("040404"),
            "{printed}"
        );
        assert!(
            !printed.contains("3, 3") && !printed.contains("4, 4"),
            "{printed}"
        );
    }
}
