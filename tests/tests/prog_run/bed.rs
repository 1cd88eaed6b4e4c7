//! A router with a bridge towards the LAN, a WAN, static neighbours and routes: enough for program runs.

use std::sync::Mutex;

use anyhow::Result;
use iwf_common::config::{Config, FdbKey, IfaceValue, Prefix, Role};
use iwf_common::flow::{SessionFlags, SessionValue};
use iwf_common::names;
use iwf_common::nat::{EndpointKey, Filter, MappingKind, MappingValue, mask};
use iwf_common::refusal::Side;
use iwf_tests::capture::Capture;
use iwf_tests::cpu;
use iwf_tests::netns::{self, Namespace};
use iwf_tests::packet::Frame;
use iwf_tests::prog::{Delta, Plane, Ran, State};
use iwf_userspace::daemon::dataplane::object::OBJECT;
use iwf_userspace::daemon::dataplane::sweep::{self, Judge, SweepMaps, Sweeper, Totals};

pub(crate) const ABORTED: u32 = 0;
pub(crate) const DROP: u32 = 1;
pub(crate) const PASS: u32 = 2;
pub(crate) const REDIRECT: u32 = 4;
/// TC_ACT_UNSPEC: the next program's or the stack's.
pub(crate) const TC_NEXT: u32 = u32::MAX;
pub(crate) const TC_DROP: u32 = 2;
pub(crate) const TC_REDIRECT: u32 = 7;

pub(crate) const UDP: u8 = 17;
pub(crate) const TCP: u8 = 6;
pub(crate) const ICMP: u8 = 1;

pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const RST: u8 = 0x04;

pub(crate) const HOST: [u8; 4] = [192, 168, 1, 10];
pub(crate) const HOST2: [u8; 4] = [192, 168, 1, 11];
pub(crate) const WAN: [u8; 4] = [100, 64, 0, 2];
pub(crate) const REMOTE: [u8; 4] = [11, 22, 33, 4];
pub(crate) const REMOTE2: [u8; 4] = [11, 22, 33, 5];

const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 10];
pub(crate) const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
pub(crate) const BRIDGE_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub(crate) const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];

/// Ticks per second of the configuration; what the kernel really has does not matter to a program run.
pub(crate) const HZ: u32 = 250;

const LINKS: &str = "
link add br0 address 02:00:00:00:01:01 type bridge
link add lan0 type veth peer name lan0p
link set lan0 master br0
link add wan0 address 02:00:00:00:02:02 type veth peer name wan0p
link set br0 up
link set lan0 up
link set lan0p up
link set wan0 up
link set wan0p up
address add 192.168.1.1/24 dev br0
address add 100.64.0.2/24 dev wan0
route add default via 100.64.0.1
neigh add 100.64.0.1 dev wan0 lladdr 02:00:00:00:02:01 nud permanent
neigh add 192.168.1.10 dev br0 lladdr 02:00:00:00:01:0a nud permanent
";

pub(crate) struct Bed {
    pub(crate) through: Through,
    pub(crate) plane: Plane,
    pub(crate) config: Config,
    pub(crate) ns: Namespace,
    pub(crate) bridge: u32,
    pub(crate) lan: u32,
    pub(crate) wan: u32,
    capture: Capture,
}

/// What one packet did.
pub(crate) struct Seen {
    pub(crate) action: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) delta: Delta,
}

impl Seen {
    /// The frame that came out, every length and checksum in it verified.
    #[track_caller]
    pub(crate) fn frame(&self) -> Frame {
        Frame::parse(&self.bytes).expect("a good frame")
    }

    /// What was to happen, and nothing else.
    #[track_caller]
    pub(crate) fn is(&self, action: u32, delta: Delta) -> &Self {
        assert_eq!((self.action, &self.delta), (action, &delta));
        self
    }

    /// That, and the frame is as it was.
    #[track_caller]
    pub(crate) fn is_untouched(&self, action: u32, delta: Delta, frame: &Frame) {
        self.is(action, delta);
        assert_eq!(self.bytes, frame.bytes());
    }
}

/// Runs `test` in a fresh bed, inside its network namespace; not at all without privilege.
pub(crate) fn with_bed(test: impl FnOnce(&mut Bed) -> Result<()> + Send) -> Result<()> {
    run(borrowed, given_back, test)
}

/// Planes of the ordinary size that no test uses now: the verifier takes longer than most tests.
static IDLE: Mutex<Vec<Plane>> = Mutex::new(Vec::new());

/// An empty plane of the ordinary size, which another test may have used.
pub(crate) fn borrowed() -> Result<Plane> {
    let used = IDLE.lock().ok().and_then(|mut idle| idle.pop());
    used.map_or_else(|| Plane::load(OBJECT, 4096, 4096), Ok)
}

/// Leaves a plane to the next test. One that panics keeps its own, so that nobody sees what it left.
pub(crate) fn given_back(mut plane: Plane) -> Result<()> {
    plane.empty()?;
    if let Ok(mut idle) = IDLE.lock() {
        idle.push(plane);
    }
    Ok(())
}

/// Runs `test` twice, with XDP and with tc on both sides, in a fresh bed each.
pub(crate) fn with_both(test: impl Fn(&mut Bed) -> Result<()> + Send + Sync) -> Result<()> {
    for through in [Through::Xdp, Through::Tc] {
        with_bed(|bed| {
            bed.through = through;
            test(bed)
        })?;
    }
    Ok(())
}

/// What frames come in by. The verdicts of tc are told in the words of XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Through {
    Xdp,
    Tc,
}

/// The same with room for so many session entries and mappings.
pub(crate) fn with_sized_bed(
    sessions: u32,
    mappings: u32,
    test: impl FnOnce(&mut Bed) -> Result<()> + Send,
) -> Result<()> {
    run(|| Plane::load(OBJECT, sessions, mappings), |_| Ok(()), test)
}

fn run(
    get: impl FnOnce() -> Result<Plane> + Send,
    put: impl FnOnce(Plane) -> Result<()> + Send,
    test: impl FnOnce(&mut Bed) -> Result<()> + Send,
) -> Result<()> {
    if !netns::may_run() {
        return Ok(());
    }
    // Named after the test, which the thread inside is not.
    let capture = Capture::of_this_test("prog_run")?;
    Namespace::nameless("cpe", move |ns| {
        // What each CPU keeps for itself is asked for by each: how often does not depend on the scheduler here.
        cpu::stay()?;
        ns.sysctl("net/ipv4/ip_forward", "1")?;
        ns.ip_batch(LINKS)?;
        let mut bed = Bed::new(ns, get()?, capture)?;
        test(&mut bed)?;
        put(bed.plane)
    })?
}

impl Bed {
    fn new(ns: Namespace, plane: Plane, capture: Capture) -> Result<Self> {
        let (bridge, lan, wan) = (ns.ifindex("br0")?, ns.ifindex("lan0")?, ns.ifindex("wan0")?);
        let mut config = Config::empty(HZ);
        config.external_addr = WAN;
        config.wan = wan;
        config.lan_len = 1;
        config.lan[0] = Prefix {
            addr: [192, 168, 1, 0],
            mask: mask(24),
        };
        let mut bed = Self {
            through: Through::Xdp,
            plane,
            config,
            ns,
            bridge,
            lan,
            wan,
            capture,
        };
        bed.furnish()?;
        Ok(bed)
    }

    /// Writes into empty tables what all tests begin with.
    pub(crate) fn furnish(&mut self) -> Result<()> {
        let iface = |role: Role, l3: u32, mac: [u8; 6]| IfaceValue {
            role: role as u32,
            l3,
            mac,
            pad: [0; 2],
        };
        let (lan, wan) = (self.lan, self.wan);
        let plane = &mut self.plane;
        plane.set_iface(lan, iface(Role::Lan, self.bridge, BRIDGE_MAC))?;
        plane.set_iface(wan, iface(Role::Wan, wan, WAN_MAC))?;
        plane.set_device(lan)?;
        plane.set_device(wan)?;
        let station = FdbKey {
            bridge: self.bridge,
            mac: HOST_MAC,
            pad: [0; 2],
        };
        plane.set_station(station, lan)?;
        plane.configure(self.config)
    }

    /// Changes the configuration.
    pub(crate) fn reconfigure(&mut self, change: impl FnOnce(&mut Config)) -> Result<()> {
        change(&mut self.config);
        self.plane.configure(self.config)
    }

    /// A frame of a LAN host, addressed to the bridge, into the bridge port.
    pub(crate) fn lan_in(&mut self, frame: &Frame) -> Result<Seen> {
        match self.through {
            Through::Xdp => self.raw(names::XDP_LAN, &frame.bytes(), self.lan),
            Through::Tc => self.tc(names::TC_LAN, frame, self.lan).map(as_xdp),
        }
    }

    /// A frame from the carrier into the WAN.
    pub(crate) fn wan_in(&mut self, frame: &Frame) -> Result<Seen> {
        match self.through {
            Through::Xdp => self.raw(names::XDP_WAN, &frame.bytes(), self.wan),
            Through::Tc => self.tc(names::TC_INGRESS, frame, self.wan).map(as_xdp),
        }
    }

    /// Octets into an XDP program.
    pub(crate) fn raw(&mut self, name: &str, bytes: &[u8], ingress: u32) -> Result<Seen> {
        self.plane.ready(name)?;
        let before = self.plane.state()?;
        let ran = self.plane.xdp(name, bytes, ingress, 1)?;
        assert_ne!(ran.action, ABORTED, "programs name their reasons");
        self.seen(name, bytes, ran, &before)
    }

    /// A packet that the stack sends out of the WAN; `forwarded`: it came from the LAN.
    pub(crate) fn egress(&mut self, frame: &Frame, forwarded: bool) -> Result<Seen> {
        let ingress = if forwarded { self.bridge } else { 0 };
        self.tc(names::TC_EGRESS, frame, ingress)
    }

    /// A packet into a tc program.
    pub(crate) fn tc(&mut self, name: &str, frame: &Frame, ingress: u32) -> Result<Seen> {
        self.tc_raw(name, &frame.bytes(), ingress)
    }

    /// Octets into a tc program.
    pub(crate) fn tc_raw(&mut self, name: &str, bytes: &[u8], ingress: u32) -> Result<Seen> {
        self.tc_segmented(name, bytes, ingress, 0)
    }

    /// The next fragment that waits for its first one: the IPv4 packet.
    pub(crate) fn held(&mut self) -> Result<Option<Vec<u8>>> {
        self.plane.held()
    }

    /// The next refused packet whose sender may be told: where it was met, and its head.
    pub(crate) fn refused(&mut self) -> Result<Option<(Side, Vec<u8>)>> {
        self.plane.refused()
    }

    /// Octets whose payload is to be sent in segments of so many, 0: in one.
    pub(crate) fn tc_segmented(
        &mut self,
        name: &str,
        bytes: &[u8],
        ingress: u32,
        segment: u32,
    ) -> Result<Seen> {
        self.plane.ready(name)?;
        let before = self.plane.state()?;
        let ran = self.plane.tc(name, bytes, ingress, segment)?;
        self.seen(name, bytes, ran, &before)
    }

    fn seen(&mut self, name: &str, sent: &[u8], ran: Ran, before: &State) -> Result<Seen> {
        let delta = Delta::between(before, &self.plane.state()?);
        let text = format!("action {}: {:?}", ran.action, delta.counters);
        self.capture.run(name, sent, &ran.frame, &text)?;
        Ok(Seen {
            action: ran.action,
            bytes: ran.frame,
            delta,
        })
    }

    /// See [`sweep`].
    pub(crate) fn sweep(&mut self) -> Result<Totals> {
        sweep(&mut self.plane)
    }

    /// Ends, with the daemon's own code, what stands on external addresses that are not ours; returns how many session
    /// entries and mappings are left.
    pub(crate) fn keep_ours(&mut self) -> Result<(usize, usize)> {
        let mut sweeper = sweeper(&mut self.plane)?;
        with_judge(&mut self.plane, |judge| Ok(sweeper.keep_ours(judge)?))?;
        while sweeper.is_settling() {
            with_judge(&mut self.plane, |judge| Ok(sweeper.settle(judge)?))?;
        }
        let state = self.plane.state()?;
        let ended = |value: &&SessionValue| value.flags & SessionFlags::ENDED != 0;
        let left = state
            .sessions
            .values()
            .filter(|value| !ended(value))
            .count();
        Ok((left, state.external.len()))
    }

    /// Lets the sessions of these external endpoints follow their mappings, slice by slice with the daemon's own
    /// code; returns how many slices that took.
    pub(crate) fn settle(&mut self, externals: &[EndpointKey]) -> Result<u32> {
        let mut sweeper = sweeper(&mut self.plane)?;
        for external in externals {
            sweeper.recheck(*external, None);
        }
        let mut slices = 0;
        while sweeper.is_settling() {
            with_judge(&mut self.plane, |judge| Ok(sweeper.settle(judge)?))?;
            slices += 1;
        }
        Ok(slices)
    }

    /// See [`sweeper`].
    pub(crate) fn sweeper(&mut self) -> Result<Sweeper> {
        sweeper(&mut self.plane)
    }

    /// See [`sweep_slice`].
    pub(crate) fn sweep_slice(&mut self, sweeper: &mut Sweeper) -> Result<Option<Totals>> {
        sweep_slice(&mut self.plane, sweeper)
    }

    /// The tick now.
    pub(crate) fn now(&mut self) -> Result<u32> {
        Ok(self.plane.clock()?.jiffies as u32)
    }

    /// Writes an explicit mapping of `internal` to the WAN address and `external_port`.
    pub(crate) fn map(
        &mut self,
        proto: u8,
        internal: ([u8; 4], u16),
        external_port: u16,
        expires: u32,
    ) -> Result<()> {
        let value = explicit(internal, expires);
        self.map_with(proto, external_port, value)
    }

    /// The same with all of the inbound entry given.
    pub(crate) fn map_with(
        &mut self,
        proto: u8,
        external_port: u16,
        value: MappingValue,
    ) -> Result<()> {
        self.map_at(proto, (WAN, external_port), value)
    }

    /// The same at any address.
    pub(crate) fn map_at(
        &mut self,
        proto: u8,
        external: ([u8; 4], u16),
        value: MappingValue,
    ) -> Result<()> {
        let external = endpoint(external, proto);
        let back = MappingValue {
            addr: external.addr,
            port: external.port,
            ..value
        };
        let internal = value.endpoint(proto);
        self.plane
            .set_mapping(names::MAPPINGS_EXT, external, value)?;
        self.plane.set_mapping(names::MAPPINGS_INT, internal, back)
    }

    /// Lets `ago` ticks pass for every session and mapping.
    pub(crate) fn let_pass(&mut self, ago: u32) -> Result<()> {
        let state = self.plane.state()?;
        for (key, mut value) in state.sessions {
            value.last_seen = value.last_seen.wrapping_sub(ago);
            self.plane.set_session(key, value)?;
        }
        for (key, mut value) in state.peers {
            value.last_used = value.last_used.wrapping_sub(ago);
            self.plane.set_peer(key, value)?;
        }
        for (map, entries) in [
            (names::MAPPINGS_EXT, state.external),
            (names::MAPPINGS_INT, state.internal),
        ] {
            for (key, mut value) in entries {
                value.last_used = value.last_used.wrapping_sub(ago);
                self.plane.set_mapping(map, key, value)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn as_xdp(seen: Seen) -> Seen {
    let action = verdict_of(Through::Tc, seen.action);
    Seen { action, ..seen }
}

/// A verdict in the words of XDP.
pub(crate) fn verdict_of(through: Through, action: u32) -> u32 {
    match (through, action) {
        (Through::Xdp, action) => action,
        (Through::Tc, TC_REDIRECT) => REDIRECT,
        (Through::Tc, TC_NEXT) => PASS,
        (Through::Tc, TC_DROP) => DROP,
        (Through::Tc, other) => panic!("action {other}"),
    }
}

/// The MAC address of a LAN host, or what would be one.
pub(crate) const fn mac_of(host: [u8; 4]) -> [u8; 6] {
    let [a, b, c, d, e, _] = HOST_MAC;
    let [.., last] = host;
    [a, b, c, d, e, last]
}

/// An explicit mapping's inbound entry for everybody.
pub(crate) fn explicit(internal: ([u8; 4], u16), expires: u32) -> MappingValue {
    MappingValue {
        addr: internal.0,
        port: internal.1.to_be_bytes(),
        kind: MappingKind::Explicit as u8,
        filter: Filter::EndpointIndependent as u8,
        generation: 1,
        expires,
        ..MappingValue::default()
    }
}

pub(crate) fn endpoint(endpoint: ([u8; 4], u16), proto: u8) -> EndpointKey {
    EndpointKey::new(endpoint.0, endpoint.1.to_be_bytes(), proto)
}

/// From a LAN host by way of the bridge.
pub(crate) fn lan_frame(frame: Frame) -> Frame {
    Frame {
        dst_mac: BRIDGE_MAC,
        src_mac: HOST_MAC,
        ..frame
    }
}

/// From the carrier.
pub(crate) fn wan_frame(frame: Frame) -> Frame {
    Frame {
        dst_mac: WAN_MAC,
        src_mac: GATEWAY_MAC,
        ..frame
    }
}

/// What a frame of the LAN must look like when it has left the WAN from `port`.
pub(crate) fn translated_out(frame: &Frame, port: u16) -> Frame {
    let mut out = frame.clone();
    out.src = WAN;
    out.set_src_port(port);
    out.ttl -= 1;
    out.dst_mac = GATEWAY_MAC;
    out.src_mac = WAN_MAC;
    out
}

/// What a frame of the WAN must look like when it has left the bridge port for `internal`.
pub(crate) fn translated_in(frame: &Frame, internal: ([u8; 4], u16)) -> Frame {
    let mut out = frame.clone();
    out.dst = internal.0;
    out.set_dst_port(internal.1);
    out.ttl -= 1;
    out.dst_mac = HOST_MAC;
    out.src_mac = BRIDGE_MAC;
    out
}

/// Runs a whole pass of ageing with the daemon's own code. What it ends is removed as well.
pub(crate) fn sweep(plane: &mut Plane) -> Result<Totals> {
    let mut sweeper = sweeper(plane)?;
    loop {
        if let Some(totals) = sweep_slice(plane, &mut sweeper)? {
            return Ok(totals);
        }
        // What was ended rests for some ticks before it is removed.
        std::thread::yield_now();
    }
}

/// Sweeps these tables slice by slice.
pub(crate) fn sweeper(plane: &mut Plane) -> Result<Sweeper> {
    plane.ready(names::RUN_SWEEP)?;
    let map = |name| plane.map_data(name);
    let maps = SweepMaps {
        sessions: map(names::SESSIONS)?,
        external: map(names::MAPPINGS_EXT)?,
        internal: map(names::MAPPINGS_INT)?,
        sessions6: map(names::SESSIONS6)?,
        endpoints6: map(names::ENDPOINTS6)?,
        peers: map(names::PEERS)?,
        hosts: map(names::HOSTS)?,
        totals: map(names::TOTALS)?,
        request: map(names::SWEEP)?,
        items: map(names::SWEEP_ITEMS)?,
    };
    Ok(Sweeper::new(&maps)?)
}

/// One slice of ageing; what the pass did, if it was the last.
pub(crate) fn sweep_slice(plane: &mut Plane, sweeper: &mut Sweeper) -> Result<Option<Totals>> {
    with_judge(plane, |judge| Ok(sweeper.step(judge)?.done))
}

fn with_judge<T>(plane: &mut Plane, work: impl FnOnce(&Judge<'_>) -> Result<T>) -> Result<T> {
    let config = plane.config()?;
    let now = plane.clock()?.jiffies as u32;
    let program = plane.tc_program(names::RUN_SWEEP)?;
    work(&Judge {
        run: &|count| sweep::run_items(program, count),
        config: &config,
        now,
    })
}
