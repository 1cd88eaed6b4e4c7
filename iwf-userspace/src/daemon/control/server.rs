//! The control socket.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::stat::{Mode, umask};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{MAX_REQUEST, Request, Response};

/// Clients served at once; more wait in the backlog of the socket.
const MAX_CLIENTS: usize = 8;

/// A client that neither asks nor reads for this long is let go.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request with the place for its answer.
pub type Call = (Request, oneshot::Sender<Response>);

/// A bound control socket; its file goes away with it.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ControlSocket {
    /// Binds `path` so that only its owner may connect. Makes the directory if there is none; takes the place
    /// of a socket that nobody listens on any more.
    ///
    /// # Errors
    /// The path is in use by a living daemon or by something that is no socket, or cannot be made.
    pub fn bind(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(dir)
                .with_context(|| format!("make the directory {}", dir.display()))?;
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => bail!(
                "another iwfd listens on {}; stop it, or give this one its own paths.control_socket",
                path.display()
            ),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                use std::os::unix::fs::FileTypeExt;
                let is_socket = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
                if !is_socket {
                    bail!(
                        "{} exists and is no socket; remove it, or name another path",
                        path.display()
                    );
                }
                fs::remove_file(path)
                    .with_context(|| format!("remove the stale {}", path.display()))?;
            }
            Err(_) => {}
        }
        // The mode must be right from the first instant, and bind(2) offers only the umask for that. No other
        // thread makes files now: the runtime has one.
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener.with_context(|| format!("bind {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            listener,
        })
    }

    /// Serves clients until dropped; requests go to `calls`.
    pub async fn serve(self, calls: mpsc::Sender<Call>) {
        let places = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let calls = calls.clone();
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, &calls).await {
                            debug!(%error, "control client let go");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: others must close some first.
                    warn!(%error, "cannot accept a control client");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            debug!(%error, path = %self.path.display(), "control socket was gone already");
        }
    }
}

async fn converse(stream: UnixStream, calls: &mpsc::Sender<Call>) -> Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    loop {
        let mut line = Vec::new();
        let limit = MAX_REQUEST as u64 + 1;
        let mut bounded = (&mut reading).take(limit);
        let read = bounded.read_until(b'\n', &mut line);
        let length = timeout(PATIENCE, read)
            .await
            .context("wait for a request")??;
        if length == 0 {
            return Ok(());
        }
        if length > MAX_REQUEST {
            bail!("request longer than {MAX_REQUEST} octets");
        }
        let response = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => answer(request, calls).await,
            Err(e) => Response::Error(format!("not a request: {e}")),
        };
        let mut line = serde_json::to_vec(&response).context("encode the answer")?;
        line.push(b'\n');
        timeout(PATIENCE, writing.write_all(&line))
            .await
            .context("wait for the reader")??;
    }
}

async fn answer(request: Request, calls: &mpsc::Sender<Call>) -> Response {
    let (reply, answer) = oneshot::channel();
    let stopping = || Response::Error("iwfd is stopping".to_owned());
    if calls.send((request, reply)).await.is_err() {
        return stopping();
    }
    answer.await.unwrap_or_else(|_| stopping())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::client;
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("iwf-ctl-{}-{name}", std::process::id()))
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }

    #[test]
    fn answers_requests_and_survives_nonsense() {
        let path = scratch("answers");
        runtime().block_on(async {
            let socket = ControlSocket::bind(&path).unwrap();
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let (calls, mut received) = mpsc::channel::<Call>(1);
            let server = tokio::spawn(socket.serve(calls));
            tokio::spawn(async move {
                while let Some((request, reply)) = received.recv().await {
                    assert_eq!(request, Request::Audit {});
                    reply.send(Response::Done).unwrap();
                }
            });

            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream
                .write_all(b"{\"command\":\"au\n{\"command\":\"audit\"}\n")
                .await
                .unwrap();
            let mut lines = BufReader::new(&mut stream).lines();
            let first = lines.next_line().await.unwrap().unwrap();
            assert!(first.contains("not a request"), "{first}");
            assert_eq!(lines.next_line().await.unwrap().unwrap(), "\"done\"");

            let mut greedy = UnixStream::connect(&path).await.unwrap();
            // The server may close while we still write.
            let _refused = greedy.write_all(&vec![b'x'; MAX_REQUEST * 3]).await;
            let mut rest = Vec::new();
            let ended = greedy.read_to_end(&mut rest).await;
            assert!(ended.is_err() || rest.is_empty());

            let at = path.clone();
            let called = tokio::task::spawn_blocking(move || client::call(&at, &Request::Audit {}));
            assert_eq!(called.await.unwrap().unwrap(), Response::Done);
            server.abort();
        });
        assert!(!path.exists(), "the file goes with the server");
    }

    #[test]
    fn takes_over_a_stale_socket_but_not_a_living_one() {
        let path = scratch("stale");
        runtime().block_on(async {
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            assert!(path.exists());
            let living = ControlSocket::bind(&path).unwrap();
            let error = ControlSocket::bind(&path).unwrap_err();
            assert!(error.to_string().contains("another iwfd"), "{error}");
            drop(living);
        });
    }

    #[test]
    fn no_daemon_is_an_error_with_a_remedy() {
        let error =
            client::call(Path::new("/nonexistent/x.sock"), &Request::Status {}).unwrap_err();
        assert!(error.to_string().contains("is iwfd running"), "{error}");
    }
}
