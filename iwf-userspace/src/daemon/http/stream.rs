//! A connection of TCP whose other end may be slow, or gone.
//!
//! Reading has its limits above (head and body have their times). Here is what belongs to writing and to the end: an answer
//! has to be taken within a time; after the last one, what the host still sends is read for a moment, because closing with
//! unread octets is a reset, which may overtake the answer; and what is dropped in the middle is reset, so that the kernel
//! keeps nothing of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// How long, and how many octets of, what comes after the last answer is read.
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_OCTETS: usize = 256 << 10;

/// The stream under HTTP.
#[derive(Debug)]
pub(super) struct Stream {
    tcp: TcpStream,
    /// How long a host may take to take an answer.
    take_time: Duration,
    /// Runs while an answer is not taken.
    taking: Option<Pin<Box<Sleep>>>,
    end: End,
}

#[derive(Debug)]
enum End {
    Open,
    Lingering { until: Pin<Box<Sleep>>, read: usize },
    Ended,
}

impl Stream {
    pub(super) fn new(tcp: TcpStream, take_time: Duration) -> Self {
        Self {
            tcp,
            take_time,
            taking: None,
            end: End::Open,
        }
    }

    /// What a writing operation came to; waiting for it is limited.
    fn limited<T>(
        &mut self,
        done: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        let take_time = self.take_time;
        if done.is_pending() {
            let taking = self
                .taking
                .get_or_insert_with(|| Box::pin(sleep(take_time)));
            if taking.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        done
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.tcp).poll_write(cx, octets);
        self.limited(done, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.tcp).poll_write_vectored(cx, octets);
        self.limited(done, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    /// Comes when all of an answer has been written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.tcp).poll_flush(cx))?;
        self.taking = None;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, end, .. } = &mut *self;
        loop {
            match end {
                End::Open => {
                    ready!(Pin::new(&mut *tcp).poll_shutdown(cx))?;
                    *end = End::Lingering {
                        until: Box::pin(sleep(LINGER_TIME)),
                        read: 0,
                    };
                }
                End::Lingering { until, read } => {
                    let mut octets = [0; 4096];
                    let mut buf = ReadBuf::new(&mut octets);
                    let come = Pin::new(&mut *tcp).poll_read(cx, &mut buf);
                    *read += buf.filled().len();
                    let over = match come {
                        Poll::Ready(Ok(())) => buf.filled().is_empty() || *read > LINGER_OCTETS,
                        // A reset is an end as well.
                        Poll::Ready(Err(_)) => true,
                        Poll::Pending => {
                            ready!(until.as_mut().poll(cx));
                            true
                        }
                    };
                    if over {
                        *end = End::Ended;
                    }
                }
                End::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !matches!(self.end, End::Ended) {
            reset(&self.tcp);
        }
    }
}

/// Has the kernel forget a connection as soon as it is closed. Where it cannot, it forgets it later.
pub(super) fn reset(tcp: &TcpStream) {
    if let Err(error) = SockRef::from(tcp).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "connection not reset");
    }
}
