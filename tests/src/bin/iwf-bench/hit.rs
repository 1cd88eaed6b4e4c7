//! What the kernel says a session hit costs: runs of the program on one buffer, without devices around it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::programs::TestRun as _;
use aya::{EbpfLoader, TestRunOptions};
use iwf_common::config::{Config, Prefix};
use iwf_common::flow::{SessionKey, SessionValue};
use iwf_common::nat::mask;
use iwf_common::{csum, names};
use iwf_tests::bench::{Row, median};
use iwf_tests::netns::{Network, veth};
use iwf_tests::packet::Frame;
use iwf_tests::prog::Plane;
use iwf_userspace::daemon::dataplane::object::OBJECT;

use crate::traffic::program;

/// Runs per call. Even, so that the buffer ends as it began, and fewer than the TTL allows.
const RUNS: u32 = 200;

/// Calls of which the median counts.
const CALLS: usize = 101;

const HOST: ([u8; 4], u16) = ([192, 168, 1, 16], 20_000);
const EXTERNAL: ([u8; 4], u16) = ([100, 64, 0, 2], 20_001);
const REMOTE: ([u8; 4], u16) = ([11, 22, 33, 44], 9);
const UDP: u8 = 17;

/// XDP actions.
const PASS: u32 = 2;
const REDIRECT: u32 = 4;

/// The floor and the hit.
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
    let mut frame = Frame::udp(HOST, REMOTE);
    frame.dst_mac = mac;
    frame.ttl = 255;

    let (floor, hit, translated) = router.within(|| -> Result<_> {
        let floor = floor(bench, &frame.bytes())?;
        let mut plane = Plane::load(OBJECT, 1024, 1024)?;
        plane.ready(names::XDP_LAN)?;
        let mut config = Config::empty(250);
        config.external_addr = EXTERNAL.0;
        config.wan = wan;
        config.lan_len = 1;
        config.lan[0] = Prefix {
            addr: [192, 168, 1, 0],
            mask: mask(24),
        };
        plane.configure(config)?;
        plane.set_device(wan)?;
        for (from, to) in [(HOST, EXTERNAL), (EXTERNAL, HOST)] {
            let (key, mut value) = one_way(from, to, mac);
            value.egress = wan;
            value.next_hop_generation = config.next_hop_generation;
            plane.set_session(key, value)?;
        }
        let once = plane.xdp(names::XDP_LAN, &frame.bytes(), lan, 1)?;
        let mut translated = once.action == REDIRECT && is_from(&once.frame, EXTERNAL, 254);
        let mut nanos = Vec::with_capacity(CALLS);
        for _ in 0..CALLS {
            let ran = plane.xdp(names::XDP_LAN, &frame.bytes(), lan, RUNS)?;
            translated &= ran.action == REDIRECT && is_from(&ran.frame, HOST, 55);
            nanos.push(ran.nanos as f64);
        }
        Ok((floor, median(&nanos).unwrap_or(0.0), translated))
    })??;

    let row = |mode: &str, value: f64, share: f64, valid| Row {
        scenario: "session-hit".into(),
        mode: mode.into(),
        sessions: 1,
        packet_bytes: u32::try_from(frame.bytes().len()).unwrap_or(u32::MAX),
        value,
        unit: "ns/packet".into(),
        against: Some("floor".into()),
        ratio: Some(floor / value.max(f64::MIN_POSITIVE)),
        delivered: share,
        translated: if mode == "iwf" { share } else { 0.0 },
        valid,
    };
    let share = if translated { 1.0 } else { 0.0 };
    Ok(vec![
        row("floor", floor, 1.0, floor > 0.0),
        row("iwf", hit, share, translated),
    ])
}

/// A session that makes a packet of `from` one of `to`. With its opposite it turns a buffer back and forth.
fn one_way(from: ([u8; 4], u16), to: ([u8; 4], u16), mac: [u8; 6]) -> (SessionKey, SessionValue) {
    let l3_delta = csum::delta32(from.0, to.0);
    let ports = csum::delta16(from.1.to_be_bytes(), to.1.to_be_bytes());
    let remote_port = REMOTE.1.to_be_bytes();
    let key = SessionKey::new(from.0, from.1.to_be_bytes(), REMOTE.0, remote_port, UDP);
    let value = SessionValue {
        src: to.0,
        dst: REMOTE.0,
        src_port: to.1.to_be_bytes(),
        dst_port: remote_port,
        l3_delta,
        l4_delta: csum::add(l3_delta, ports),
        next_hop_mac: mac,
        egress_mac: mac,
        router_mac: mac,
        mtu: 1500,
        ..SessionValue::default()
    };
    (key, value)
}

/// Whether a frame is whole, checksums included, and as expected.
fn is_from(bytes: &[u8], source: ([u8; 4], u16), ttl: u8) -> bool {
    Frame::parse(bytes).is_ok_and(|frame| {
        (frame.src, frame.src_port(), frame.ttl) == (source.0, Some(source.1), ttl)
    })
}

fn floor(object: &Path, frame: &[u8]) -> Result<f64> {
    let mut ebpf = EbpfLoader::new()
        .load_file(object)
        .with_context(|| format!("load {}", object.display()))?;
    let floor = program(&mut ebpf, "bench_floor")?;
    floor.load().context("load the floor")?;
    let mut nanos = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat: RUNS,
            ..TestRunOptions::new()
        };
        let ran = floor.test_run(options).context("run the floor")?;
        ensure!(ran.return_value == PASS, "the floor does something");
        nanos.push(ran.duration.as_nanos() as f64);
    }
    median(&nanos).context("no runs")
}
