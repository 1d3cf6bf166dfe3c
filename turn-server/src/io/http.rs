//! `/metrics`, `/healthz` and `/readyz`, read-only, one request a connection. Meant for loopback.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A scraper sends its request at once and reads the answer at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a request: scrapers send a few hundred.
const MAX_REQUEST: usize = 8 << 10;

/// What the pages say.
pub(super) trait Pages: Send + Sync + 'static {
    /// `/metrics`.
    fn metrics(&self) -> String;
    /// `/readyz`: takes new clients.
    fn ready(&self) -> bool;
}

/// Serves until the process ends.
pub(super) fn serve(address: SocketAddr, pages: Arc<dyn Pages>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let local = listener.local_addr()?;
    std::thread::Builder::new()
        .name("turn-http".into())
        .spawn(move || {
            for connection in listener.incoming().flatten() {
                // One that stalls holds up the next for the time of its patience, not more.
                let _ = answer(connection, &*pages);
            }
        })?;
    Ok(local)
}

fn answer(mut connection: TcpStream, pages: &dyn Pages) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let request = read_head(&mut connection)?;
    let line = request.split(|byte| *byte == b'\r').next();
    let (status, kind, body) = match line.unwrap_or_default() {
        b"GET /metrics HTTP/1.1" | b"GET /metrics HTTP/1.0" => {
            ("200 OK", "text/plain; version=0.0.4", pages.metrics())
        }
        b"GET /healthz HTTP/1.1" | b"GET /healthz HTTP/1.0" => {
            ("200 OK", "text/plain", "ok\n".into())
        }
        b"GET /readyz HTTP/1.1" | b"GET /readyz HTTP/1.0" if pages.ready() => {
            ("200 OK", "text/plain", "ready\n".into())
        }
        b"GET /readyz HTTP/1.1" | b"GET /readyz HTTP/1.0" => {
            ("503 Service Unavailable", "text/plain", "draining\n".into())
        }
        _ => ("404 Not Found", "text/plain", "not found\n".into()),
    };
    write!(
        connection,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Everything up to the empty line: closing on unread bytes would reset the connection under the answer.
fn read_head(connection: &mut TcpStream) -> io::Result<Vec<u8>> {
    let start = Instant::now();
    let mut head = Vec::new();
    let mut buffer = [0; MAX_REQUEST];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_REQUEST || start.elapsed() > PATIENCE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match connection.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            len => head.extend_from_slice(&buffer[..len]),
        }
    }
    Ok(head)
}
