//! Hosts that talk: echo servers and clients over TCP and UDP, with sockets inside the namespaces.
#![expect(
    clippy::disallowed_types,
    reason = "the harness talks to real programs over sockets"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::netns::Namespace;
use crate::wait;

/// How often a blocked thread looks whether it shall end.
const LOOK: Duration = Duration::from_millis(50);
/// One piece of a transfer. Several segments, so that loss and reordering would show.
const PIECE: usize = 16 * 1024;

/// Returns what it receives, over TCP and UDP on one port. Ends and closes its sockets on drop.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
    port: u16,
}

impl Echo {
    /// Listens on that port of a host.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn listen(host: &Namespace, port: u16) -> Result<Self> {
        host.within(|| Self::here(port))?
    }

    /// Listens on that port where the caller is.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn here(port: u16) -> Result<Self> {
        let (tcp, udp) = both(port)?;
        let port = tcp.local_addr()?.port();
        tcp.set_nonblocking(true)?;
        udp.set_read_timeout(Some(LOOK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let accepted = Arc::new(AtomicU64::new(0));
        let threads = vec![
            std::thread::spawn({
                let (stop, accepted) = (Arc::clone(&stop), Arc::clone(&accepted));
                move || echo_tcp(&tcp, &stop, &accepted)
            }),
            std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || echo_udp(&udp, &stop)
            }),
        ];
        Ok(Self {
            stop,
            accepted,
            threads,
            port,
        })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// TCP connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// Sockets of both protocols at that port, or at one port that the kernel chooses.
fn both(port: u16) -> Result<(TcpListener, UdpSocket)> {
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    // It chooses one that is free for TCP, which another socket may have for UDP.
    let mut more = if port == 0 { 20 } else { 0 };
    loop {
        let tcp = TcpListener::bind(any).with_context(|| format!("listen on port {port}"))?;
        match UdpSocket::bind(tcp.local_addr()?) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && more > 0 => more -= 1,
            udp => return Ok((tcp, udp.context("listen on the same UDP port")?)),
        }
    }
}

fn timed_out(error: &std::io::Error) -> bool {
    // Both names occur for an expired SO_RCVTIMEO.
    [
        ErrorKind::WouldBlock,
        ErrorKind::TimedOut,
        ErrorKind::Interrupted,
    ]
    .contains(&error.kind())
}

fn echo_tcp(listener: &TcpListener, stop: &Arc<AtomicBool>, accepted: &AtomicU64) {
    let mut connections = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::park_timeout(Duration::from_millis(5));
            continue;
        };
        accepted.fetch_add(1, Ordering::SeqCst);
        let stop = Arc::clone(stop);
        connections.push(std::thread::spawn(move || {
            // A broken connection is the client's to report.
            echo_stream(stream, &stop).ok();
        }));
    }
    for connection in connections {
        connection.join().ok();
    }
}

fn echo_stream(mut stream: TcpStream, stop: &AtomicBool) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LOOK))?;
    stream.set_nodelay(true)?;
    let mut buf = vec![0; PIECE];
    while !stop.load(Ordering::SeqCst) {
        match stream.read(&mut buf) {
            Ok(0) => break,
            Ok(len) => stream.write_all(&buf[..len])?,
            Err(error) if timed_out(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn echo_udp(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buf = vec![0; 65536];
    while !stop.load(Ordering::SeqCst) {
        if let Ok((len, from)) = socket.recv_from(&mut buf) {
            socket.send_to(&buf[..len], from).ok();
        }
    }
}

/// Opens a TCP connection from a host.
///
/// # Errors
/// If it is refused or nothing answers within `within` times [`wait::patience`].
pub fn connect(host: &Namespace, to: SocketAddrV4, within: Duration) -> Result<TcpStream> {
    let within = within * wait::patience();
    let stream = host
        .within(|| TcpStream::connect_timeout(&SocketAddr::V4(to), within))?
        .with_context(|| format!("connect from {} to {to}", host.host()))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects from a host to an echo server, sends `text` and waits for it to come back.
///
/// # Errors
/// If it does not come back unchanged within `within`.
pub fn tcp_echo(host: &Namespace, to: SocketAddrV4, text: &str, within: Duration) -> Result<()> {
    let mut stream = connect(host, to, within)?;
    stream.set_read_timeout(Some(within * wait::patience()))?;
    stream.write_all(text.as_bytes())?;
    let mut back = vec![0; text.len()];
    stream
        .read_exact(&mut back)
        .with_context(|| format!("read the echo of {to} over TCP"))?;
    ensure!(back == text.as_bytes(), "the echo differs");
    Ok(())
}

/// Sends `text` from a host to an echo server, again every 200 ms, until it comes back.
///
/// # Errors
/// If it does not come back unchanged, from the address it was sent to, within `within`.
pub fn udp_echo(host: &Namespace, to: SocketAddrV4, text: &str, within: Duration) -> Result<()> {
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    let socket = host.within(|| UdpSocket::bind(any))??;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let what = format!("the echo of {to} over UDP");
    let (back, from) = wait::until_ok(&what, within, || {
        socket.send_to(text.as_bytes(), to)?;
        let mut buf = vec![0; 2048];
        let (len, from) = socket.recv_from(&mut buf)?;
        buf.truncate(len);
        Ok((buf, from))
    })?;
    ensure!(back == text.as_bytes(), "the echo differs");
    ensure!(from == SocketAddr::V4(to), "answered from {from}, not {to}");
    Ok(())
}

/// Whether a TCP connection from a host gets nowhere: silence or a refusal, within `within`.
///
/// # Errors
/// If it is accepted.
pub fn tcp_is_closed(host: &Namespace, to: SocketAddrV4, within: Duration) -> Result<()> {
    match connect(host, to, within) {
        Ok(_) => bail!("{to} still accepts connections"),
        Err(_) => Ok(()),
    }
}

/// Whether a datagram from a host stays without an echo for `within`.
///
/// # Errors
/// If an echo comes.
pub fn udp_is_closed(host: &Namespace, to: SocketAddrV4, within: Duration) -> Result<()> {
    match udp_echo(host, to, "is anyone there", within) {
        Ok(()) => bail!("{to} still answers"),
        Err(_) => Ok(()),
    }
}

/// A transfer over one TCP connection to an echo server: numbered pieces out, checked when they come back.
#[derive(Debug)]
pub struct Transfer {
    stop: Arc<AtomicBool>,
    moved: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Transfer {
    /// Connects from a host and starts.
    ///
    /// # Errors
    /// If the connection cannot be made.
    pub fn start(host: &Namespace, to: SocketAddrV4) -> Result<Self> {
        let mut stream = connect(host, to, Duration::from_secs(5))?;
        // Longer than any outage the suites allow, so that a stall shows as missing progress and a lost
        // connection as an error.
        stream.set_read_timeout(Some(Duration::from_secs(30) * wait::patience()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let moved = Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let (stop, moved) = (Arc::clone(&stop), Arc::clone(&moved));
            move || {
                let mut number = 0_u64;
                while !stop.load(Ordering::SeqCst) {
                    let piece: Vec<u8> = number.to_be_bytes().repeat(PIECE / 8);
                    stream.write_all(&piece).context("send a piece")?;
                    let mut back = vec![0; PIECE];
                    stream.read_exact(&mut back).context("receive a piece")?;
                    ensure!(back == piece, "piece {number} came back changed");
                    moved.fetch_add(PIECE as u64, Ordering::SeqCst);
                    number += 1;
                }
                Ok(())
            }
        });
        Ok(Self {
            stop,
            moved,
            thread: Some(thread),
        })
    }

    /// Octets that went there and back unchanged so far.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::SeqCst)
    }

    /// Waits until `more` further octets have been moved.
    ///
    /// # Errors
    /// If they have not within `within`; the reason if the connection broke.
    pub fn goes_on(&mut self, more: u64, within: Duration) -> Result<()> {
        let goal = self.moved() + more;
        let what = format!("{more} further octets of the transfer");
        let outcome = wait::until(&what, within, || {
            let broken = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            (broken || self.moved() >= goal).then_some(())
        });
        if self.moved() < goal && self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            return self.join().and_then(|()| bail!("the transfer ended early"));
        }
        outcome
    }

    /// Ends it; returns how many octets were moved.
    ///
    /// # Errors
    /// If the connection broke on the way.
    pub fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        self.join()?;
        Ok(self.moved())
    }

    fn join(&mut self) -> Result<()> {
        let thread = self.thread.take().context("the transfer has ended")?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .context("the transfer's connection broke")
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// A flow of datagrams over one socket to an echo server: one every few milliseconds, whatever comes back.
#[derive(Debug)]
pub struct Datagrams {
    stop: Arc<AtomicBool>,
    echoed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Datagrams {
    /// Opens the socket on a host and starts.
    ///
    /// # Errors
    /// If there is no socket to be had.
    pub fn start(host: &Namespace, to: SocketAddrV4) -> Result<Self> {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let socket = host.within(|| UdpSocket::bind(any))??;
        socket.connect(to)?;
        // The wait for an answer is what paces the flow.
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let echoed = Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let (stop, echoed) = (Arc::clone(&stop), Arc::clone(&echoed));
            move || {
                let mut back = [0; 64];
                while !stop.load(Ordering::SeqCst) {
                    // What cannot be sent now is lost, as on any network.
                    socket.send(b"one of many").ok();
                    if socket.recv(&mut back).is_ok() {
                        echoed.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        });
        Ok(Self {
            stop,
            echoed,
            thread: Some(thread),
        })
    }

    /// Datagrams that came back so far.
    pub fn echoed(&self) -> u64 {
        self.echoed.load(Ordering::SeqCst)
    }

    /// Waits until `more` further ones have come back.
    ///
    /// # Errors
    /// If they have not within `within`.
    pub fn goes_on(&self, more: u64, within: Duration) -> Result<()> {
        let goal = self.echoed() + more;
        let what = format!("{more} further datagrams to come back");
        wait::until(&what, within, || (self.echoed() >= goal).then_some(()))
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
