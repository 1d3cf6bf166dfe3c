//! As much of HTTP/1.1 (RFC 9112) as a router's UPnP needs: one exchange a connection, small bodies.

use std::net::SocketAddr;

/// The longest response that is read: descriptions of routers have some 3 to 20 KiB.
pub const MAX_RESPONSE: usize = 64 << 10;
/// The longest head of it.
const MAX_HEAD: usize = 8 << 10;

/// A whole response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status, 100 to 999.
    pub status: u16,
    /// The body; at most [`MAX_RESPONSE`] bytes.
    pub body: Vec<u8>,
}

/// What was read so far is no response, or one that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an HTTP response of at most 64 KiB")]
pub struct Malformed;

/// A request. `path` and `headers` must be free of line breaks; `headers` end each with one.
pub(super) fn request(
    method: &str,
    host: SocketAddr,
    path: &str,
    headers: &str,
    body: &str,
) -> Vec<u8> {
    let length = match body.is_empty() {
        true => String::new(),
        false => format!("Content-Length: {}\r\n", body.len()),
    };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}{length}Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Reads a response from what has come so far; `ended` once no more will. `None` while some is
/// missing.
pub fn parse(bytes: &[u8], ended: bool) -> Result<Option<Response>, Malformed> {
    let Some(end) = bytes
        .windows(4)
        .take(MAX_HEAD)
        .position(|w| w == b"\r\n\r\n")
    else {
        let hopeless = ended || bytes.len() >= MAX_HEAD;
        return if hopeless { Err(Malformed) } else { Ok(None) };
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| Malformed)?;
    let body = &bytes[end + 4..];
    let status = status_of(head).ok_or(Malformed)?;
    let whole = |body: Vec<u8>| Ok(Some(Response { status, body }));
    if bytes.len() > MAX_RESPONSE {
        return Err(Malformed);
    }
    if header(head, "transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        return match chunks(body)? {
            Some(body) => whole(body),
            None if ended => Err(Malformed),
            None => Ok(None),
        };
    }
    match header(head, "content-length") {
        Some(text) => {
            let length: usize = text.parse().map_err(|_| Malformed)?;
            match body.get(..length) {
                Some(body) => whole(body.to_vec()),
                None if ended || length > MAX_RESPONSE => Err(Malformed),
                None => Ok(None),
            }
        }
        None if ended => whole(body.to_vec()),
        None => Ok(None),
    }
}

/// A header's value, without white space around it.
pub(super) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The status of a head's first line.
pub(super) fn status_of(head: &str) -> Option<u16> {
    let rest = head.strip_prefix("HTTP/1.")?;
    let status: u16 = rest.get(2..5)?.parse().ok()?;
    (100..=999).contains(&status).then_some(status)
}

/// The chunked transfer coding (RFC 9112 §7.1); trailers are not looked at.
fn chunks(mut rest: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    /// Eight hexadecimal digits are more than fit in [`MAX_RESPONSE`].
    const MAX_LINE: usize = 256;
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).take(MAX_LINE).position(|w| w == b"\r\n") else {
            return if rest.len() > MAX_LINE {
                Err(Malformed)
            } else {
                Ok(None)
            };
        };
        let line = std::str::from_utf8(&rest[..end]).map_err(|_| Malformed)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let length = usize::from_str_radix(digits, 16).map_err(|_| Malformed)?;
        if length > MAX_RESPONSE {
            return Err(Malformed);
        }
        if length == 0 {
            return Ok(Some(body));
        }
        let data = &rest[end + 2..];
        let (Some(chunk), Some(after)) = (data.get(..length), data.get(length + 2..)) else {
            return Ok(None);
        };
        body.extend_from_slice(chunk);
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_whole_by_its_length_its_chunks_or_its_end() {
        let ok = |body: &str| {
            let body = body.into();
            Ok(Some(Response { status: 200, body }))
        };
        let sized = b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 5\r\n\r\nhello, and more";
        assert_eq!(parse(sized, false), ok("hello"));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n2\r\n!!\r\n0\r\n\r\n";
        assert_eq!(parse(chunked, false), ok("hello!!"));
        let open = b"HTTP/1.0 200 OK\r\n\r\nhello";
        assert_eq!(parse(open, false), Ok(None));
        assert_eq!(parse(open, true), ok("hello"));
        for whole in [&sized[..43], chunked] {
            for length in 0..whole.len() - 2 {
                let parsed = parse(&whole[..length], false);
                assert!(!matches!(parsed, Err(Malformed)), "{length} bytes");
                assert!(
                    parsed == Ok(None) || length + 3 > whole.len(),
                    "{length} bytes: {parsed:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_too_long_or_no_response_ends_the_reading() {
        for bad in [
            &b"SSH-2.0-OpenSSH_9.2\r\n\r\n"[..],
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffffff\r\n",
            &[b'a'; MAX_HEAD],
        ] {
            assert_eq!(parse(bad, false), Err(Malformed));
        }
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\n", true), Err(Malformed));
        let mut long = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        long.resize(MAX_RESPONSE + 1, b'x');
        assert_eq!(parse(&long, false), Err(Malformed));
    }
}
