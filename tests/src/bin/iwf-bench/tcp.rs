//! TCP through a router whose devices take large segments: our programs by tc against the kernel's own translation.
//!
//! The sender sends from the page cache and the receiver throws away without copying, so that as much as possible
//! of what a segment costs is the router's. All of it runs on one CPU: throughput then goes by the sum of all costs,
//! and does not depend on which end of the pipe happens to wait. The router's own share cannot be told: between devices
//! with segmentation offload, a veth hands segments to the softirq of whoever sends, not to a thread of its own.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "measures real sockets on the machine's own clock"
)]

use std::fmt;
use std::fs::File;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use iwf_tests::bench::{LEAST_SHARE, Row, median};
use iwf_tests::cpu;
use iwf_tests::netns::{Namespace, Network, veth};
use iwf_userspace::daemon::config::AttachMode;
use socket2::{Domain, Socket, Type};

use crate::bed::{EXTERNAL, GATEWAY, ROUTER_LAN, Room, masquerade};
use crate::nat::Nat;

const LAN: &str = "lan0";
const WAN: &str = "wan0";
const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 16);

/// How long an end waits for the other before the run fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// Octets per system call of either end.
const CHUNK: usize = 1 << 20;

/// How many rounds there are for one of the other parts.
const ROUNDS: u32 = 3;

/// Packets that are none of the connection's data: ARP, and the connection's beginning and end.
const STRAY: u64 = 16;

/// What a full segment has at least if it was not cut up: several of an ordinary Ethernet's.
const LEAST_SEGMENT: f64 = 4.0 * 1514.0;

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Plain,
    Nftables,
    /// Our data plane by tc.
    Tc,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Plain, Self::Nftables, Self::Tc];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Nftables => "nftables",
            Self::Tc => "iwf-tc",
        })
    }
}

/// One connection.
#[derive(Clone, Copy, Debug)]
struct Sample {
    sent: u64,
    received: u64,
    took: Duration,
    /// Who the receiver says had called.
    caller: Ipv4Addr,
    /// Packets and octets that the router's LAN port took in.
    packets: u64,
    octets: u64,
    /// Packets that our programs forwarded themselves, if they are what is measured.
    fast: Option<u64>,
}

/// Throughput of each mode, in turn.
///
/// # Errors
/// If something cannot be set up, or a connection breaks.
pub(crate) fn measure(cpu: usize, rounds: u32, stretch: Duration) -> Result<Vec<Row>> {
    let beds = Mode::ALL
        .map(|mode| Bed::new(mode, cpu).with_context(|| format!("set up {mode} for TCP")))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let mut samples: [Vec<Sample>; 3] = Default::default();
    // Rounds are short and cheap here, and a ratio is all that counts.
    for round in 0..=rounds.saturating_mul(ROUNDS) {
        for (bed, samples) in beds.iter().zip(&mut samples) {
            let sample = bed.measure(stretch)?;
            // The first round learns neighbours and warms caches.
            if round > 0 {
                eprintln!("{}", progress(bed.mode, &sample));
                samples.push(sample);
            }
        }
    }
    let [plain, nftables, tc] = &samples;
    Ok(Mode::ALL
        .into_iter()
        .zip([plain, nftables, tc])
        .map(|(mode, samples)| row(mode, samples, nftables))
        .collect())
}

/// Gigabits received in a second.
fn rate(sample: &Sample) -> f64 {
    sample.received as f64 * 8.0 / 1e9 / sample.took.as_secs_f64().max(f64::MIN_POSITIVE)
}

fn row(mode: Mode, samples: &[Sample], base: &[Sample]) -> Row {
    let rates: Vec<_> = samples.iter().map(rate).collect();
    let ratios: Vec<_> = samples
        .iter()
        .zip(base)
        .map(|(sample, base)| rate(sample) / rate(base))
        .filter(|ratio| ratio.is_finite())
        .collect();
    let sizes: Vec<_> = samples.iter().map(segment).collect();
    let delivered = samples
        .iter()
        .map(|sample| sample.received as f64 / (sample.sent as f64).max(1.0))
        .fold(1.0, f64::min);
    let translated = mode != Mode::Plain && samples.iter().all(|s| s.caller == EXTERNAL);
    Row {
        scenario: "tcp-gso".into(),
        mode: mode.to_string(),
        sessions: 1,
        packet_bytes: median(&sizes).unwrap_or(0.0) as u32,
        value: median(&rates).unwrap_or(0.0),
        unit: "Gbit/s".into(),
        against: Some(Mode::Nftables.to_string()),
        ratio: median(&ratios),
        delivered,
        translated: if translated { delivered } else { 0.0 },
        valid: !samples.is_empty() && samples.iter().all(|sample| valid(mode, sample)),
    }
}

fn segment(sample: &Sample) -> f64 {
    sample.octets as f64 / (sample.packets as f64).max(1.0)
}

/// All of it arrived, from the address it should come from, in segments that nobody has cut up, and by our programs
/// if those are measured.
fn valid(mode: Mode, sample: &Sample) -> bool {
    let caller = match mode {
        Mode::Plain => HOST,
        Mode::Nftables | Mode::Tc => EXTERNAL,
    };
    let by_program = sample
        .fast
        .is_none_or(|fast| fast.saturating_add(STRAY) as f64 > LEAST_SHARE * sample.packets as f64);
    sample.received > 0
        && sample.received == sample.sent
        && sample.caller == caller
        && segment(sample) > LEAST_SEGMENT
        && by_program
}

fn progress(mode: Mode, sample: &Sample) -> String {
    let mut line = format!(
        "tcp-gso      {:<12} {:>6.2} Gbit/s  {} octets as {} packets of {:.0}, from {}",
        mode.to_string(),
        rate(sample),
        sample.received,
        sample.packets,
        segment(sample),
        sample.caller,
    );
    if !valid(mode, sample) {
        line += &format!("  VOID: {sample:?}");
    }
    line
}

/// A router with a host on each side.
struct Bed {
    mode: Mode,
    cpu: usize,
    host: Namespace,
    router: Namespace,
    far: Namespace,
    /// What is sent again and again.
    file: PathBuf,
    nat: Option<Nat>,
    // Last: the namespaces go when everything in them is gone.
    _network: Network,
}

impl Bed {
    fn new(mode: Mode, cpu: usize) -> Result<Self> {
        let network = Network::new()?;
        let host = network.namespace("host")?;
        let router = network.namespace("router")?;
        let far = network.namespace("far")?;
        veth((&host, "host0"), (&router, LAN))?;
        veth((&router, WAN), (&far, "far0"))?;
        host.address("host0", HOST, 24)?;
        router.address(LAN, ROUTER_LAN, 24)?;
        router.address(WAN, EXTERNAL, 30)?;
        far.address("far0", GATEWAY, 30)?;
        host.ip(&format!("route add default via {ROUTER_LAN}"))?;
        router.ip(&format!("route add default via {GATEWAY}"))?;
        far.ip(&format!("route add default via {EXTERNAL}"))?;
        router.sysctl("net/ipv4/ip_forward", "1")?;
        if mode == Mode::Nftables {
            masquerade(&router, WAN)?;
        }
        let nat = match mode {
            Mode::Tc => Some(Nat::attach(
                network.dir(),
                &router,
                LAN,
                WAN,
                Room::Ordinary,
                AttachMode::Tc,
            )?),
            Mode::Plain | Mode::Nftables => None,
        };
        let file = network.dir().join("zeroes");
        std::fs::write(&file, vec![0; CHUNK]).context("write what is sent")?;
        Ok(Self {
            mode,
            cpu,
            host,
            router,
            far,
            file,
            nat,
            _network: network,
        })
    }

    /// One connection that sends for as long as `stretch`.
    fn measure(&self, stretch: Duration) -> Result<Sample> {
        let cpu = self.cpu;
        let listener = self.far.within(|| TcpListener::bind((GATEWAY, 0)))??;
        let SocketAddr::V4(to) = listener.local_addr().context("read a port")? else {
            anyhow::bail!("no IPv4 listener");
        };
        let receiver = self.far.thread(move || {
            cpu::pin(None, cpu)?;
            receive(&listener)
        })?;
        let fast = self.fast()?;
        let (packets, octets) = self.taken_in()?;
        let start = Instant::now();
        let sent = self.host.within(|| {
            cpu::pin(None, cpu)?;
            send(to, &self.file, stretch)
        })??;
        let received = receiver
            .join()
            .map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
        let took = start.elapsed();
        let now = self.taken_in()?;
        Ok(Sample {
            sent,
            received: received.1,
            took,
            caller: received.0,
            packets: now.0 - packets,
            octets: now.1 - octets,
            fast: self.fast()?.zip(fast).map(|(after, before)| after - before),
        })
    }

    fn fast(&self) -> Result<Option<u64>> {
        self.nat.as_ref().map(Nat::forwarded).transpose()
    }

    /// Packets and octets.
    fn taken_in(&self) -> Result<(u64, u64)> {
        let text = self.router.ip(&format!("-s -j link show dev {LAN}"))?;
        let value: serde_json::Value = serde_json::from_str(&text).context("read what ip says")?;
        let rx = &value[0]["stats64"]["rx"];
        let field = |name| rx[name].as_u64().context("no statistics of a device");
        Ok((field("packets")?, field("bytes")?))
    }
}

/// The caller's address, and octets until it closed.
fn receive(listener: &TcpListener) -> Result<(Ipv4Addr, u64)> {
    let listener = Socket::from(listener.try_clone().context("share a listener")?);
    listener.set_read_timeout(Some(PATIENCE))?;
    let (stream, caller) = listener.accept().context("wait for the caller")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![MaybeUninit::uninit(); CHUNK];
    let mut octets = 0;
    loop {
        // With this flag TCP throws away instead of copying.
        let len = stream
            .recv_with_flags(&mut buffer, libc::MSG_TRUNC)
            .context("receive")?;
        if len == 0 {
            break;
        }
        octets += len as u64;
    }
    let caller = caller.as_socket_ipv4().context("no IPv4 caller")?;
    Ok((*caller.ip(), octets))
}

/// Octets that were taken from us.
fn send(to: SocketAddrV4, file: &Path, stretch: Duration) -> Result<u64> {
    let file = File::open(file).context("open what is sent")?;
    let stream = Socket::new(Domain::IPV4, Type::STREAM, None).context("make a socket")?;
    stream.connect_timeout(&to.into(), PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let start = Instant::now();
    let mut octets = 0;
    while start.elapsed() < stretch {
        let mut offset = 0;
        while offset < CHUNK {
            let len = NonZeroUsize::new(CHUNK - offset);
            let sent = stream.sendfile(&file, offset, len).context("send")?;
            ensure!(sent > 0, "nothing is sent");
            offset += sent;
        }
        octets += CHUNK as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Sample {
        Sample {
            sent: 1 << 20,
            received: 1 << 20,
            took: Duration::from_millis(1),
            caller: EXTERNAL,
            packets: 20,
            octets: 1 << 20,
            fast: None,
        }
    }

    #[test]
    fn what_is_not_translated_or_not_whole_is_void() {
        assert!(valid(Mode::Nftables, &sample()));
        let plain = Sample {
            caller: HOST,
            ..sample()
        };
        assert!(valid(Mode::Plain, &plain));
        for mode in [Mode::Nftables, Mode::Tc] {
            assert!(!valid(mode, &plain), "not translated");
        }
        let cut = Sample {
            packets: 800,
            ..sample()
        };
        assert!(!valid(Mode::Nftables, &cut), "segmented");
        let lost = Sample {
            received: 1000,
            ..sample()
        };
        assert!(!valid(Mode::Nftables, &lost));
        let slow = Sample {
            packets: 100,
            octets: 6_400_000,
            fast: Some(10),
            ..sample()
        };
        assert!(!valid(Mode::Tc, &slow), "by the stack");
    }

    #[test]
    fn a_ratio_is_of_a_round() {
        let at = |millis| Sample {
            took: Duration::from_millis(millis),
            ..sample()
        };
        let base = [at(10), at(100), at(30)];
        let ours = [at(5), at(50), at(30)];
        let row = row(Mode::Tc, &ours, &base);
        assert_eq!(row.ratio, Some(2.0));
        assert!(row.valid);
    }
}
