//! What a session hit costs by the kernel's own clock: runs of the programs on one buffer, without devices.
//!
//! The floor is a program of the same object that reads the headers, looks the session up, rewrites and
//! redirects, and nothing else. Both run on the same tables in turn, so that the harness costs both the same.
//!
//! The sessions of a run are links of a chain: each makes a packet of its flow one of the next flow's, in an
//! order that jumps about. So a buffer that is run again and again visits them all, and the caches see what
//! they see of as many flows. A program of the bench's own restores the TTL each time and goes on to the one
//! that is measured; what that costs is in both figures, and in a row by itself.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::maps::ProgramArray;
use aya::programs::{TestRun as _, Xdp};
use aya::{Ebpf, EbpfLoader, TestRunOptions};
use iwf_common::config::{Config, Prefix};
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::nat::mask;
use iwf_common::{csum, names};
use iwf_tests::bench::{Row, median};
use iwf_tests::netns::{Network, veth};
use iwf_tests::packet::Frame;
use iwf_tests::prog::Plane;
use iwf_userspace::daemon::dataplane::object::OBJECT;

use crate::abi::{SMALL, TTL};
use crate::traffic::program;

/// Sessions of a run: powers of two.
const SESSIONS: [u32; 4] = [1, 1 << 10, 1 << 16, 1 << 20];

/// Runs per call: a call costs milliseconds to set up.
const RUNS: u32 = 1 << 18;

/// Calls of which the median counts. Each program walks the largest chain twice.
const CALLS: usize = 9;

/// Ethernet, IPv4 and UDP.
const HEADERS: usize = 14 + 20 + 8;

const REMOTE: ([u8; 4], u16) = ([11, 22, 33, 44], 9);
const UDP: u8 = 17;

/// XDP actions.
const PASS: u32 = 2;
const REDIRECT: u32 = 4;

/// A direction: what the packets of its flows differ in, and its program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Of many internal endpoints.
    Out,
    /// For many external endpoints.
    In,
}

impl Way {
    fn program(self) -> &'static str {
        match self {
            Self::Out => names::XDP_LAN,
            Self::In => names::XDP_WAN,
        }
    }

    fn scenario(self) -> &'static str {
        match self {
            Self::Out => "session-hit-out",
            Self::In => "session-hit-in",
        }
    }
}

/// The figures of one way and number of sessions.
struct Figures {
    harness: f64,
    floor: f64,
    hit: f64,
    /// Whether every packet came out right.
    right: bool,
}

/// Floor and hit, each way, at each number of sessions.
///
/// # Errors
/// If the kernel refuses something.
pub(crate) fn measure(bench: &Path) -> Result<Vec<Row>> {
    let network = Network::new()?;
    let router = network.namespace("router")?;
    veth((&router, "lan0"), (&router, "lan0p"))?;
    veth((&router, "wan0"), (&router, "wan0p"))?;
    for name in ["lan0", "wan0"] {
        router.ip(&format!("link set {name} up"))?;
    }
    let (lan, wan) = (router.ifindex("lan0")?, router.ifindex("wan0")?);
    let mac = router.mac("lan0")?;
    let mut rows = Vec::new();
    for sessions in SESSIONS {
        let figures = router.within(|| walk(bench, sessions, lan, wan, mac))??;
        for (way, figures) in figures {
            rows.extend(figures.rows(way, sessions));
        }
    }
    Ok(rows)
}

impl Figures {
    fn rows(&self, way: Way, sessions: u32) -> [Row; 3] {
        let share = if self.right { 1.0 } else { 0.0 };
        let row = |mode: &str, value: f64| Row {
            scenario: way.scenario().into(),
            mode: mode.into(),
            sessions,
            packet_bytes: SMALL as u32,
            value,
            unit: "ns/packet".into(),
            against: Some("floor".into()),
            ratio: Some(self.floor / value.max(f64::MIN_POSITIVE)),
            delivered: share,
            translated: share,
            valid: self.right,
        };
        [
            row("harness", self.harness),
            row("floor", self.floor),
            row("iwf", self.hit),
        ]
    }
}

/// Both ways at one number of sessions, in tables of their own.
fn walk(
    bench: &Path,
    sessions: u32,
    lan: u32,
    wan: u32,
    mac: [u8; 6],
) -> Result<Vec<(Way, Figures)>> {
    let mut plane = Plane::load(OBJECT, 2 * sessions, 1024)?;
    let mut harness = Harness::load(bench)?;
    for name in [
        names::XDP_PASS,
        names::FLOOR,
        names::XDP_LAN,
        names::XDP_WAN,
    ] {
        plane.ready(name)?;
    }
    let mut config = Config::empty(250);
    config.external_addr = [100, 64, 0, 2];
    config.wan = wan;
    config.lan_len = 1;
    config.lan[0] = Prefix {
        addr: [10, 0, 0, 0],
        mask: mask(8),
    };
    plane.configure(config)?;
    plane.set_device(wan)?;
    for flow in 0..sessions {
        for way in [Way::Out, Way::In] {
            let (key, mut value) = link(way, flow, next(flow, sessions), mac);
            value.egress = wan;
            value.next_hop_generation = config.next_hop_generation;
            plane.set_session(key, value)?;
        }
    }
    [Way::Out, Way::In]
        .into_iter()
        .map(|way| Ok((way, chain(&mut harness, &plane, way, sessions, lan, mac)?)))
        .collect()
}

/// Floor and hit in turn along the chain.
fn chain(
    harness: &mut Harness,
    plane: &Plane,
    way: Way,
    sessions: u32,
    ingress: u32,
    mac: [u8; 6],
) -> Result<Figures> {
    let mut frame = match way {
        Way::Out => Frame::udp(end(0), REMOTE),
        Way::In => Frame::udp(REMOTE, end(0)),
    };
    frame.dst_mac = mac;
    frame.payload.resize(SMALL - HEADERS, 0);
    let mut flow = 0;
    let mut right = true;
    let mut samples: [Vec<f64>; 3] = Default::default();
    for _ in 0..CALLS {
        for (samples, name) in
            samples
                .iter_mut()
                .zip([names::XDP_PASS, names::FLOOR, way.program()])
        {
            let (action, nanos, out) = harness.run(plane, name, &frame.bytes(), ingress)?;
            samples.push(nanos);
            if name == names::XDP_PASS {
                ensure!(action == PASS, "the harness does something");
                continue;
            }
            ensure!(action == REDIRECT, "{name} does not forward");
            flow = (0..RUNS).fold(flow, |flow, _| next(flow, sessions));
            let out = Frame::parse(&out).map_err(anyhow::Error::msg)?;
            let varying = match way {
                Way::Out => (out.src, out.src_port()),
                Way::In => (out.dst, out.dst_port()),
            };
            right &= varying == (end(flow).0, Some(end(flow).1)) && out.ttl == TTL - 1;
            frame = out;
            frame.dst_mac = mac;
        }
    }
    let [harness, floor, hit] = samples.map(|samples| median(&samples).unwrap_or(0.0));
    Ok(Figures {
        harness,
        floor,
        hit,
        right,
    })
}

/// The bench's program that restores the TTL, which would be used up soon, and goes on to another.
struct Harness {
    ebpf: Ebpf,
}

impl Harness {
    fn load(bench: &Path) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .load_file(bench)
            .with_context(|| format!("load {}", bench.display()))?;
        program(&mut ebpf, "bench_renew")?
            .load()
            .context("load the harness")?;
        Ok(Self { ebpf })
    }

    /// Runs a program on a frame, from its own output on: the last action, nanoseconds per run, the frame.
    fn run(
        &mut self,
        plane: &Plane,
        name: &str,
        frame: &[u8],
        ingress: u32,
    ) -> Result<(u32, f64, Vec<u8>)> {
        let map = self.ebpf.map_mut("NEXT").context("map NEXT")?;
        ProgramArray::try_from(map)?.set(0, plane.fd(name)?, 0)?;
        let harness: &Xdp = self
            .ebpf
            .program("bench_renew")
            .context("program bench_renew")?
            .try_into()?;
        let len = u32::try_from(frame.len())?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: Vec<u8> = [0, len, 0, ingress, 0, 0]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        let mut out = vec![0; frame.len()];
        let ran = harness.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            repeat: RUNS,
            ..TestRunOptions::new()
        })?;
        Ok((ran.return_value, ran.duration.as_nanos() as f64, out))
    }
}

/// The flow that follows in the chain, which comes back to its first after all (Hull and Dobell's theorem).
const fn next(flow: u32, sessions: u32) -> u32 {
    flow.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f) & (sessions - 1)
}

/// The endpoint that tells a flow from the others.
const fn end(flow: u32) -> ([u8; 4], u16) {
    let host = flow >> 14;
    let addr = [10, 0, (host >> 8) as u8, host as u8];
    (addr, 20_000 + (flow & 0x3fff) as u16)
}

/// The session that makes a packet of `flow` one of `next`.
fn link(way: Way, flow: u32, next: u32, mac: [u8; 6]) -> (SessionKey, SessionValue) {
    let (from, to) = (end(flow), end(next));
    let remote = (REMOTE.0, REMOTE.1.to_be_bytes());
    let (from, to) = ((from.0, from.1.to_be_bytes()), (to.0, to.1.to_be_bytes()));
    let l3_delta = csum::delta32(from.0, to.0);
    let (key, ends, flags) = match way {
        Way::Out => (
            SessionKey::new(from.0, from.1, remote.0, remote.1, UDP),
            (to, remote),
            0,
        ),
        Way::In => (
            SessionKey::new(remote.0, remote.1, from.0, from.1, UDP),
            (remote, to),
            SessionFlags::INBOUND,
        ),
    };
    let ((src, src_port), (dst, dst_port)) = ends;
    let value = SessionValue {
        src,
        dst,
        src_port,
        dst_port,
        l3_delta,
        l4_delta: csum::add(l3_delta, csum::delta16(from.1, to.1)),
        next_hop_mac: mac,
        egress_mac: mac,
        router_mac: mac,
        mtu: 1500,
        flags,
        ..SessionValue::default()
    };
    (key, value)
}
