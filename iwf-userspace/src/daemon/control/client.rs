//! The blocking client of `iwfctl`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{MAX_RESPONSE, Request, Response};

/// How long the daemon may take. A removal waits for the PCP server, which may take most of half a minute.
const PATIENCE: Duration = Duration::from_secs(40);
/// The same from one page of a list to the next: a walk through millions of sessions in which few are wanted.
const LIST_PATIENCE: Duration = Duration::from_secs(300);

/// Whether a daemon listens there.
pub fn is_alive(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// Sends one request and waits for its answer.
///
/// # Errors
/// No daemon listens there, it took longer than 40 s, or what it sent is no answer.
pub fn call(socket: &Path, request: &Request) -> Result<Response> {
    let mut stream = ask(socket, request, Some(PATIENCE))?;
    read(&mut stream)
}

/// Sends one request and hands every answer to `each`, up to and including the last one, or until it has enough. A
/// follower waits for as long as it takes.
///
/// # Errors
/// As [`call`], or the daemon ended before the last answer, or `each` failed.
pub fn stream(
    socket: &Path,
    request: &Request,
    mut each: impl FnMut(Response) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let follows = matches!(request, Request::Events { follow: true, .. });
    let patience = (!follows).then_some(LIST_PATIENCE);
    let mut stream = ask(socket, request, patience)?;
    loop {
        let response = read(&mut stream)?;
        let last = matches!(response, Response::End(_) | Response::Error(_));
        if each(response)?.is_break() || last {
            return Ok(());
        }
    }
}

fn ask(
    socket: &Path,
    request: &Request,
    patience: Option<Duration>,
) -> Result<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(socket).map_err(|error| unreachable(socket, error))?;
    stream
        .set_read_timeout(patience)
        .context("set a time limit")?;
    stream
        .set_write_timeout(Some(PATIENCE))
        .context("set a time limit")?;
    let mut line = serde_json::to_vec(request).context("encode the request")?;
    line.push(b'\n');
    stream.write_all(&line).context("send the request")?;
    Ok(BufReader::new(stream))
}

/// What is most likely wrong.
fn unreachable(socket: &Path, error: io::Error) -> anyhow::Error {
    let remedy = if error.kind() == io::ErrorKind::PermissionDenied {
        "only root may ask iwfd"
    } else {
        "is iwfd running, and is this the paths.control_socket of its configuration?"
    };
    anyhow::Error::new(error).context(format!("connect to {} ({remedy})", socket.display()))
}

fn read(stream: &mut BufReader<UnixStream>) -> Result<Response> {
    let mut answer = String::new();
    stream
        .take(MAX_RESPONSE)
        .read_line(&mut answer)
        .context("read the answer")?;
    if answer.is_empty() {
        bail!("iwfd closed the connection without an answer");
    }
    serde_json::from_str(&answer)
        .context("understand the answer (do iwfctl and iwfd have the same version?)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_root_is_told_so() {
        let denied = unreachable(Path::new("/run/x"), io::ErrorKind::PermissionDenied.into());
        assert!(denied.to_string().contains("only root"), "{denied}");
        let gone = unreachable(Path::new("/run/x"), io::ErrorKind::ConnectionRefused.into());
        assert!(gone.to_string().contains("is iwfd running"), "{gone}");
    }
}
