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
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{MAX_REQUEST, Request, Response};

/// Clients served at once; more wait in the backlog of the socket.
const MAX_CLIENTS: usize = 8;

/// Lists and followers served at once; further ones are refused, so that there is always a place for a question.
const MAX_STREAMS: usize = 4;

/// A client that neither asks nor reads for this long is let go.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same for one that is shown a list: somebody may be reading it page by page.
const STREAM_PATIENCE: Duration = Duration::from_secs(600);

/// A request with the place for its answers.
pub type Call = (Request, Replies);

/// Takes the answers to one request. The end of it is the end of the answers.
#[derive(Debug)]
pub struct Replies(mpsc::Sender<Response>);

/// Nobody waits for the answer any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the asker has gone before the answer")]
pub struct Gone;

impl Replies {
    /// With the place where the answers come out. Few wait there: who makes a long list waits for its reader.
    pub fn channel() -> (Self, mpsc::Receiver<Response>) {
        let (sender, answers) = mpsc::channel(2);
        (Self(sender), answers)
    }

    /// The only answer.
    pub fn answer(self, response: Response) {
        // There is room for the first one, and nobody misses it if the other side has gone.
        if self.0.try_send(response).is_err() {
            debug!("{Gone}");
        }
    }

    /// One of several answers.
    ///
    /// # Errors
    /// If nobody waits for it.
    pub async fn send(&self, response: Response) -> Result<(), Gone> {
        self.0.send(response).await.map_err(|_| Gone)
    }

    /// As [`Self::send`], on a thread that may block.
    ///
    /// # Errors
    /// If nobody waits for it.
    pub fn blocking_send(&self, response: Response) -> Result<(), Gone> {
        self.0.blocking_send(response).map_err(|_| Gone)
    }

    /// Waits until nobody waits for answers.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

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
        let streams = Arc::new(Semaphore::new(MAX_STREAMS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (calls, streams) = (calls.clone(), Arc::clone(&streams));
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, &calls, &streams).await {
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

async fn converse(
    stream: UnixStream,
    calls: &mpsc::Sender<Call>,
    streams: &Semaphore,
) -> Result<()> {
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
        match serde_json::from_slice::<Request>(&line) {
            Ok(request) if request.is_stream() => match streams.try_acquire() {
                Ok(_place) => show(request, calls, &mut reading, &mut writing).await?,
                Err(_) => {
                    let busy = format!(
                        "{MAX_STREAMS} lists or followers are served already; try again when one has ended"
                    );
                    write(&mut writing, &Response::Error(busy), PATIENCE).await?;
                }
            },
            Ok(request) => {
                let answer = answer(request, calls).await;
                write(&mut writing, &answer, PATIENCE).await?;
            }
            Err(e) => {
                let error = Response::Error(format!("not a request: {e}"));
                write(&mut writing, &error, PATIENCE).await?;
            }
        }
    }
}

async fn write(
    writing: &mut OwnedWriteHalf,
    response: &Response,
    patience: Duration,
) -> Result<()> {
    let mut line = serde_json::to_vec(response).context("encode the answer")?;
    line.push(b'\n');
    timeout(patience, writing.write_all(&line))
        .await
        .context("wait for the reader")??;
    Ok(())
}

async fn answer(request: Request, calls: &mpsc::Sender<Call>) -> Response {
    let (replies, mut answers) = Replies::channel();
    if calls.send((request, replies)).await.is_err() {
        return stopping();
    }
    answers.recv().await.unwrap_or_else(stopping)
}

fn stopping() -> Response {
    Response::Error("iwfd is stopping".to_owned())
}

/// Writes every answer, until the last one or until the client hangs up: it may have nothing to read for long.
async fn show(
    request: Request,
    calls: &mpsc::Sender<Call>,
    reading: &mut BufReader<OwnedReadHalf>,
    writing: &mut OwnedWriteHalf,
) -> Result<()> {
    let (replies, mut answers) = Replies::channel();
    let mut ended = false;
    if calls.send((request, replies)).await.is_ok() {
        loop {
            let response = tokio::select! {
                response = answers.recv() => response,
                () = hung_up(reading) => bail!("the reader has hung up"),
            };
            let Some(response) = response else { break };
            write(writing, &response, STREAM_PATIENCE).await?;
            ended = matches!(response, Response::End(_) | Response::Error(_));
        }
    }
    if ended {
        return Ok(());
    }
    write(writing, &stopping(), PATIENCE).await
}

/// Ends when the client has closed its side; never, if it has sent the next request.
async fn hung_up(reading: &mut BufReader<OwnedReadHalf>) {
    match reading.fill_buf().await {
        Ok([]) | Err(_) => {}
        Ok(_) => std::future::pending().await,
    }
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
                    reply.answer(Response::Done);
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

    /// Followers take at most half of the places, each is let go when it hangs up, and a question is always answered.
    #[test]
    fn followers_are_bounded_and_go_when_they_hang_up() {
        let path = scratch("follow");
        runtime().block_on(async {
            let socket = ControlSocket::bind(&path).unwrap();
            let (calls, mut received) = mpsc::channel::<Call>(1);
            let server = tokio::spawn(socket.serve(calls));
            let (followed, mut followers) = mpsc::channel::<Replies>(16);
            tokio::spawn(async move {
                while let Some((request, replies)) = received.recv().await {
                    if request.is_stream() {
                        followed.send(replies).await.unwrap();
                    } else {
                        replies.answer(Response::Done);
                    }
                }
            });
            let mut open = Vec::new();
            let mut held = Vec::new();
            for _ in 0..MAX_STREAMS {
                let mut stream = UnixStream::connect(&path).await.unwrap();
                stream
                    .write_all(b"{\"command\":\"events\",\"follow\":true}\n")
                    .await
                    .unwrap();
                open.push(stream);
                held.push(followers.recv().await.unwrap());
            }
            let mut late = BufReader::new(UnixStream::connect(&path).await.unwrap());
            late.write_all(b"{\"command\":\"sessions\"}\n{\"command\":\"audit\"}\n")
                .await
                .unwrap();
            let mut lines = late.lines();
            let refused = lines.next_line().await.unwrap().unwrap();
            assert!(refused.contains("try again"), "{refused}");
            assert_eq!(lines.next_line().await.unwrap().unwrap(), "\"done\"");

            open.pop();
            held.pop().unwrap().closed().await;
            let mut again = BufReader::new(UnixStream::connect(&path).await.unwrap());
            again
                .write_all(b"{\"command\":\"sessions\"}\n{\"command\":\"audit\"}\n")
                .await
                .unwrap();
            let replies = followers.recv().await.unwrap();
            let end = super::super::ListEnd {
                matched: 7,
                more: 0,
            };
            replies.send(Response::Sessions(Vec::new())).await.unwrap();
            replies.send(Response::End(end)).await.unwrap();
            drop(replies);
            let mut lines = again.lines();
            for expected in [
                "{\"sessions\":[]}",
                "{\"end\":{\"matched\":7,\"more\":0}}",
                "\"done\"",
            ] {
                assert_eq!(lines.next_line().await.unwrap().unwrap(), expected);
            }

            // One that is cut short is told so.
            let mut stream = open.pop().unwrap();
            held.pop();
            let mut lines = BufReader::new(&mut stream).lines();
            let cut = lines.next_line().await.unwrap().unwrap();
            assert!(cut.contains("stopping"), "{cut}");
            server.abort();
        });
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
