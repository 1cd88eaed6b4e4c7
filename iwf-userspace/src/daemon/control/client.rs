//! The blocking client of `iwfctl`.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{MAX_RESPONSE, Request, Response};

/// How long the daemon may take. A removal waits for the PCP server, which may take most of half a minute.
const PATIENCE: Duration = Duration::from_secs(40);

/// Whether a daemon listens there.
pub fn is_alive(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// Sends one request and waits for its answer.
///
/// # Errors
/// No daemon listens there, it took longer than 40 s, or what it sent is no answer.
pub fn call(socket: &Path, request: &Request) -> Result<Response> {
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!(
            "connect to {} (is iwfd running, and is this the paths.control_socket of its configuration?)",
            socket.display()
        )
    })?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .context("set a time limit")?;
    stream
        .set_write_timeout(Some(PATIENCE))
        .context("set a time limit")?;
    let mut line = serde_json::to_vec(request).context("encode the request")?;
    line.push(b'\n');
    stream.write_all(&line).context("send the request")?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_RESPONSE))
        .read_line(&mut answer)
        .context("read the answer")?;
    if answer.is_empty() {
        bail!("iwfd closed the connection without an answer");
    }
    serde_json::from_str(&answer)
        .context("understand the answer (do iwfctl and iwfd have the same version?)")
}
