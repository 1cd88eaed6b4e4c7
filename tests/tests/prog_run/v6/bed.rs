//! A router with IPv6 on both sides: static neighbours and routes.

use std::time::Duration;

use anyhow::{Result, ensure};
use iwf_common::config::{Config, FdbKey, IfaceValue, NO_PREFIX6, Prefix6, Role};
use iwf_common::flow6::{PinholeKey, PinholeValue};
use iwf_common::host::HostKey;
use iwf_common::names;
use iwf_tests::cpu;
use iwf_tests::netns::{self, Namespace};
use iwf_tests::packet::ETHERNET;
use iwf_tests::packet6::Frame6;
use iwf_tests::prog::{Delta, Plane};
use iwf_tests::wait;
use iwf_userspace::daemon::dataplane::object::OBJECT;

use crate::bed::{ABORTED, BRIDGE_MAC, HZ, Seen, WAN_MAC, borrowed, given_back};

/// 2a0b:1:86dd:3::/64. Where these octets lie an Ethernet header has its type: a run of a tc program takes any packet
/// for a frame, and so one without Ethernet headers for IPv6.
const LAN: [u8; 8] = [0x2a, 0x0b, 0, 1, 0x86, 0xdd, 0, 3];

pub(crate) const HOST: [u8; 16] = in_lan(0x10);
/// The router in the LAN's prefix.
pub(crate) const ROUTER: [u8; 16] = in_lan(1);
/// The router on the WAN, 2a0c:9::2.
pub(crate) const WAN: [u8; 16] = outside(2);
pub(crate) const REMOTE: [u8; 16] = remote(4);
pub(crate) const REMOTE2: [u8; 16] = remote(5);

pub(crate) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 10];
/// Another address of the same host.
pub(crate) const HOST_ALIAS: [u8; 16] = in_lan(0x11);
pub(crate) const OTHER: [u8; 16] = in_lan(0x20);
pub(crate) const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 20];
/// A router on the LAN, with a prefix behind it: 2a0b:1:86dd:4::/64.
pub(crate) const BEHIND: [u8; 8] = [0x2a, 0x0b, 0, 1, 0x86, 0xdd, 0, 4];
pub(crate) const DOWNSTREAM_MAC: [u8; 6] = [2, 0, 0, 0, 1, 30];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];

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
address add 2a0b:1:86dd:3::1/64 dev br0 nodad
address add 2a0c:9::2/64 dev wan0 nodad
route add default via fe80::1 dev wan0
neigh add fe80::1 dev wan0 lladdr 02:00:00:00:02:01 nud permanent
neigh add 2a0b:1:86dd:3::10 dev br0 lladdr 02:00:00:00:01:0a nud permanent
neigh add 2a0b:1:86dd:3::11 dev br0 lladdr 02:00:00:00:01:0a nud permanent
neigh add 2a0b:1:86dd:3::20 dev br0 lladdr 02:00:00:00:01:14 nud permanent
neigh add 2a0b:1:86dd:3::30 dev br0 lladdr 02:00:00:00:01:1e nud permanent
route add 2a0b:1:86dd:4::/64 via 2a0b:1:86dd:3::30 dev br0
link add vpn0 type veth peer name vpn0p
link set vpn0 up
link set vpn0p up
route add 2a0e:5::/64 dev vpn0
";

pub(crate) const fn in_lan(last: u8) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h] = LAN;
    [a, b, c, d, e, f, g, h, 0, 0, 0, 0, 0, 0, 0, last]
}

/// 2a0d:7:86dd::/64, for the same reason.
const fn remote(last: u8) -> [u8; 16] {
    [
        0x2a, 0x0d, 0, 7, 0x86, 0xdd, 0, 0, 0, 0, 0, 0, 0, 0, 0, last,
    ]
}

const fn outside(last: u8) -> [u8; 16] {
    [0x2a, 0x0c, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

pub(crate) struct Bed6 {
    pub(crate) plane: Plane,
    pub(crate) config: Config,
    pub(crate) bridge: u32,
    pub(crate) lan: u32,
    pub(crate) wan: u32,
}

/// Runs `test` in a fresh bed with room for `sessions` session entries, inside its network namespace; not at all
/// without privilege.
pub(crate) fn with_sized_bed6(
    sessions: u32,
    test: impl FnOnce(&mut Bed6) -> Result<()> + Send,
) -> Result<()> {
    run(|| Plane::load(OBJECT, sessions, 64), |_| Ok(()), test)
}

const SOON: Duration = Duration::from_secs(5);

/// The same with room for 4096, in a plane that another test may have used.
pub(crate) fn with_bed6(test: impl FnOnce(&mut Bed6) -> Result<()> + Send) -> Result<()> {
    run(borrowed, given_back, test)
}

fn run(
    get: impl FnOnce() -> Result<Plane> + Send,
    put: impl FnOnce(Plane) -> Result<()> + Send,
    test: impl FnOnce(&mut Bed6) -> Result<()> + Send,
) -> Result<()> {
    if !netns::may_run() {
        return Ok(());
    }
    Namespace::nameless("cpe", move |ns| {
        cpu::stay()?;
        for (key, value) in [
            ("all/disable_ipv6", "0"),
            ("default/disable_ipv6", "0"),
            ("all/forwarding", "1"),
        ] {
            ns.sysctl(&format!("net/ipv6/conf/{key}"), value)?;
        }
        ns.ip_batch(LINKS)?;
        // A link that has just been set up is not ready at once.
        for (addr, route) in [
            ("2a0b:1:86dd:3::1", "local"),
            ("2a0c:9::2", "local"),
            ("2a0b:1:86dd:3::10", "dev br0"),
            ("2a0b:1:86dd:4::1", "dev br0"),
            ("2a0d:7:86dd::4", "dev wan0"),
        ] {
            wait::until_ok("the routes", SOON, || {
                let found = ns.ip(&format!("-6 route get {addr}"))?;
                ensure!(found.contains(route), "{found}");
                Ok(())
            })?;
        }
        let mut bed = Bed6::new(&ns, get()?)?;
        test(&mut bed)?;
        put(bed.plane)
    })?
}

impl Bed6 {
    fn new(ns: &Namespace, mut plane: Plane) -> Result<Self> {
        let (bridge, lan, wan) = (ns.ifindex("br0")?, ns.ifindex("lan0")?, ns.ifindex("wan0")?);
        let iface = |role: Role, l3: u32, mac: [u8; 6]| IfaceValue {
            role: role as u32,
            l3,
            mac,
            pad: [0; 2],
        };
        plane.set_iface(lan, iface(Role::Lan, bridge, BRIDGE_MAC))?;
        plane.set_iface(wan, iface(Role::Wan, wan, WAN_MAC))?;
        plane.set_device(lan)?;
        plane.set_device(wan)?;
        let station = FdbKey {
            bridge,
            mac: HOST_MAC,
            pad: [0; 2],
        };
        plane.set_station(station, lan)?;
        let mut config = Config::empty(HZ);
        config.wan = wan;
        config.lan6_len = 2;
        for (slot, prefix) in config.lan6.iter_mut().zip([LAN, BEHIND]) {
            *slot = Prefix6 {
                addr: [0; 16],
                ..NO_PREFIX6
            };
            slot.addr[..8].copy_from_slice(&prefix);
            slot.mask[..8].fill(0xff);
        }
        plane.configure(config)?;
        Ok(Self {
            plane,
            config,
            bridge,
            lan,
            wan,
        })
    }

    /// Changes the configuration.
    pub(crate) fn reconfigure(&mut self, change: impl FnOnce(&mut Config)) -> Result<()> {
        change(&mut self.config);
        self.plane.configure(self.config)
    }

    /// A frame of the LAN host into XDP on the bridge port.
    pub(crate) fn lan_in(&mut self, frame: &Frame6) -> Result<Seen> {
        self.raw(names::XDP_LAN, &lan_frame(frame).bytes(), self.lan)
    }

    /// A frame from the provider into XDP on the WAN.
    pub(crate) fn wan_in(&mut self, frame: &Frame6) -> Result<Seen> {
        self.raw(names::XDP_WAN, &wan_frame(frame).bytes(), self.wan)
    }

    /// Octets into an XDP program.
    pub(crate) fn raw(&mut self, name: &str, bytes: &[u8], ingress: u32) -> Result<Seen> {
        self.plane.ready(name)?;
        let before = self.plane.state()?;
        let ran = self.plane.xdp(name, bytes, ingress, 1)?;
        assert_ne!(ran.action, ABORTED, "programs name their reasons");
        Ok(Seen {
            action: ran.action,
            bytes: ran.frame,
            delta: Delta::between(&before, &self.plane.state()?),
        })
    }

    /// A packet that the stack sends out of the WAN; `forwarded`: it came from the LAN.
    pub(crate) fn egress(&mut self, frame: &Frame6, forwarded: bool) -> Result<Seen> {
        let ingress = if forwarded { self.bridge } else { 0 };
        self.tc(names::TC_EGRESS, frame, ingress)
    }

    /// A packet into a tc program.
    pub(crate) fn tc(&mut self, name: &str, frame: &Frame6, ingress: u32) -> Result<Seen> {
        self.plane.ready(name)?;
        let before = self.plane.state()?;
        let ran = self.plane.tc(name, &frame.bytes(), ingress, 0)?;
        Ok(Seen {
            action: ran.action,
            bytes: ran.frame,
            delta: Delta::between(&before, &self.plane.state()?),
        })
    }

    /// A packet without Ethernet headers into a tc program; its source must be in one of the bed's prefixes.
    pub(crate) fn bare(&mut self, name: &str, frame: &Frame6, ingress: u32) -> Result<Seen> {
        assert_eq!(frame.src[4..6], [0x86, 0xdd], "taken for IPv6");
        self.plane.ready(name)?;
        let before = self.plane.state()?;
        let packet = frame.bytes().split_off(ETHERNET);
        let ran = self.plane.tc(name, &packet, ingress, 0)?;
        assert_eq!(ran.frame, packet, "nothing changes in a packet");
        Ok(Seen {
            action: ran.action,
            bytes: ran.frame,
            delta: Delta::between(&before, &self.plane.state()?),
        })
    }

    /// The tick now.
    pub(crate) fn now(&mut self) -> Result<u32> {
        Ok(self.plane.clock()?.jiffies as u32)
    }

    /// Ends what is over, and removes it.
    pub(crate) fn age(&mut self) -> Result<()> {
        crate::bed::sweep(&mut self.plane)?;
        let marked = self.now()?;
        // What was ended rests for some ticks before it is removed.
        while !iwf_common::sweep::is_at_rest(self.now()?, marked) {
            std::thread::yield_now();
        }
        crate::bed::sweep(&mut self.plane)?;
        Ok(())
    }

    /// Sessions that a station is counted to have.
    pub(crate) fn counted(&self, mac: [u8; 6]) -> Result<u64> {
        let hosts = self.plane.hosts()?;
        Ok(hosts
            .get(&HostKey::station(mac))
            .map_or(0, |value| value.sessions))
    }

    /// Opens a pinhole with this id that ends at a tick, 0 for never.
    pub(crate) fn pinhole(&mut self, key: PinholeKey, id: u16, expires: u32) -> Result<()> {
        let value = PinholeValue {
            id,
            expires,
            ..PinholeValue::default()
        };
        self.plane.set_pinhole(key, value)
    }

    /// Lets `ago` ticks pass for every session and endpoint.
    pub(crate) fn let_pass(&mut self, ago: u32) -> Result<()> {
        let state = self.plane.state()?;
        for (key, mut value) in state.sessions6 {
            value.last_seen = value.last_seen.wrapping_sub(ago);
            self.plane.set_session6(key, value)?;
        }
        for (key, mut value) in state.endpoints6 {
            value.last_used = value.last_used.wrapping_sub(ago);
            self.plane.set_endpoint6(key, value)?;
        }
        Ok(())
    }
}

pub(crate) fn lan_frame(frame: &Frame6) -> Frame6 {
    Frame6 {
        dst_mac: BRIDGE_MAC,
        src_mac: HOST_MAC,
        ..frame.clone()
    }
}

pub(crate) fn wan_frame(frame: &Frame6) -> Frame6 {
    Frame6 {
        dst_mac: WAN_MAC,
        src_mac: GATEWAY_MAC,
        ..frame.clone()
    }
}

/// What a frame of the LAN must look like when it has left the WAN.
pub(crate) fn gone_out(frame: &Frame6) -> Vec<u8> {
    hop(frame, GATEWAY_MAC, WAN_MAC)
}

/// What a frame of the WAN must look like when it has left the bridge port.
pub(crate) fn gone_in(frame: &Frame6) -> Vec<u8> {
    hop(frame, HOST_MAC, BRIDGE_MAC)
}

fn hop(frame: &Frame6, dst_mac: [u8; 6], src_mac: [u8; 6]) -> Vec<u8> {
    let hop = Frame6 {
        dst_mac,
        src_mac,
        hop_limit: frame.hop_limit - 1,
        ..frame.clone()
    };
    let bytes = hop.bytes();
    assert_eq!(Frame6::check(&bytes), Ok(()));
    bytes
}
