//! One router under test between a generator and a far end, in three namespaces of its own.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use iwf_common::limits;
use iwf_tests::cpu::pin;
use iwf_tests::netns::{Namespace, Network, veth};
use iwf_userspace::daemon::config::AttachMode;
use iwf_userspace::daemon::dataplane::kernel::KernelPlane;

use crate::abi::{ENDPOINTS, FLOWS_PER_HOST, MAX_FLOWS, Setup};
use crate::cpu::{self, Placement};
use crate::nat::Nat;
use crate::traffic::{Counters, Counts, Load, Seen, Traffic};

/// Frames of a burst: one full poll of the router, and a quarter of what a veth ring holds.
const BURST: u64 = 64;

/// Calls of the generator after which a stretch ends however little came through.
const MOST_CALLS: u32 = 200;

/// The router on the LAN.
pub(crate) const ROUTER_LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const FIRST_HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 16);
/// The router's external address: the source of everything translated.
pub(crate) const EXTERNAL: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
/// The router's next hop, and the far end.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const DEST: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 44);

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// The kernel's IPv4 forwarding, nothing translated.
    Plain,
    /// The same with nftables masquerade.
    Nftables,
    /// Our data plane, loaded and attached as the daemon does.
    Iwf,
    /// XDP that redirects without looking anything up: what no XDP router can beat.
    Redirect,
}

impl Mode {
    /// All of them, in the order they take turns.
    pub(crate) const ALL: [Self; 4] = [Self::Plain, Self::Nftables, Self::Iwf, Self::Redirect];

    /// Whether packets leave with the router's own address.
    pub(crate) fn translates(self) -> bool {
        match self {
            Self::Nftables | Self::Iwf => true,
            Self::Plain | Self::Redirect => false,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Nftables => "nftables",
            Self::Iwf => "iwf",
            Self::Redirect => "xdp-redirect",
        })
    }
}

/// How much a router is made to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// What the daemon makes by default, and [`SPARE`].
    Ordinary,
    /// A million sessions, and [`SPARE`].
    Million,
    /// A million sessions that are only held, and those of the traffic.
    Held,
}

/// One part in so many more than the flows need: 16 hosts with all they can get leave one part in 17 free.
const SPARE: u32 = 8;
const _: () = assert!(ENDPOINTS / FLOWS_PER_HOST >= SPARE);

impl Room {
    /// How many sessions that is.
    pub(crate) const fn sessions(self) -> u32 {
        match self {
            Self::Ordinary => limits::SESSIONS / 2 + limits::SESSIONS / 2 / SPARE,
            Self::Million => MAX_FLOWS + MAX_FLOWS / SPARE,
            Self::Held => MAX_FLOWS + limits::SESSIONS / 2,
        }
    }
}

/// What one measured stretch showed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Both ends' counters over the stretch.
    pub(crate) counts: Counts,
    /// Flows and ports the far end told apart.
    pub(crate) seen: Seen,
    /// CPU time of the router's packet thread.
    pub(crate) cpu: Duration,
    /// Packets that our programs forwarded by themselves, if they are what is measured.
    pub(crate) fast: Option<u64>,
}

/// What can be looked at while frames are sent.
pub(crate) struct Gauge {
    counters: Counters,
    router_thread: i32,
    /// How often the generator has begun or ended a call: odd while one is under way.
    turns: AtomicU64,
}

/// What a look at it shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// Frames that have left the generator.
    pub(crate) sent: u64,
    /// Frames that have arrived.
    pub(crate) arrived: u64,
    /// CPU time of the router's packet thread.
    pub(crate) router: Duration,
    /// CPU time of the generator.
    pub(crate) generator: Duration,
    /// Which call of the generator was under way; `None` between two.
    pub(crate) call: Option<u64>,
}

impl Gauge {
    /// Everything now.
    ///
    /// # Errors
    /// If something cannot be read.
    pub(crate) fn read(&self) -> Result<Reading> {
        let counts = self.counters.read()?;
        let turns = self.turns.load(Ordering::Relaxed);
        Ok(Reading {
            sent: counts.sent.frames,
            arrived: counts.received.frames,
            router: cpu::time_of(self.router_thread)?,
            generator: cpu::others_time()?,
            call: (turns % 2 == 1).then_some(turns),
        })
    }
}

/// A router with traffic attached.
pub(crate) struct Bed {
    mode: Mode,
    lan: Namespace,
    router_thread: i32,
    placement: Placement,
    traffic: Traffic,
    nat: Option<Nat>,
    // Last: the namespaces go when everything in them is gone.
    _network: Network,
}

impl Bed {
    /// Builds the namespaces and starts the far end.
    ///
    /// # Errors
    /// If a command fails or the kernel lacks something.
    pub(crate) fn new(mode: Mode, room: Room, placement: Placement, object: &Path) -> Result<Self> {
        let network = Network::new()?;
        let lan = network.namespace("lan")?;
        let router = network.namespace("router")?;
        let far = network.namespace("far")?;
        // Kernel threads are named after interfaces alone, so these must be unique on the machine.
        let tag = format!("{}{}", std::process::id(), mode as u8);
        let (router_lan, far_if) = (format!("bl{tag}"), format!("bf{tag}"));
        veth((&lan, "lan0"), (&router, &router_lan))?;
        veth((&router, "wan0"), (&far, &far_if))?;

        lan.ip("link set lan0 up")?;
        far.address(&far_if, GATEWAY, 30)?;
        router.address(&router_lan, ROUTER_LAN, 24)?;
        router.address("wan0", EXTERNAL, 30)?;
        router.sysctl("net/ipv4/ip_forward", "1")?;
        router.ip(&format!("route add default via {GATEWAY}"))?;
        let far_mac = far.mac(&far_if)?;
        let gateway_mac = mac_text(far_mac);
        router.ip(&format!(
            "neigh replace {GATEWAY} lladdr {gateway_mac} dev wan0 nud permanent"
        ))?;
        router.receive_redirected(&router_lan)?;
        if mode == Mode::Nftables {
            masquerade(&router, "wan0")?;
        }

        let setup = Setup {
            ifindex: lan.ifindex("lan0")?,
            flow_mask: 0,
            first_host: FIRST_HOST.octets(),
            dest: DEST.octets(),
            external: if mode.translates() {
                EXTERNAL.octets()
            } else {
                [0; 4]
            },
            router_mac: router.mac(&router_lan)?,
            own_mac: lan.mac("lan0")?,
            wan_mac: router.mac("wan0")?,
            far_mac,
            burst: BURST,
            limit: u64::MAX,
        };
        let mut traffic = Traffic::start(object, setup, &far, &far_if)?;
        // After the far end: only since then does the WAN device take redirected frames.
        let nat = match mode {
            Mode::Iwf => Some(Nat::attach(
                network.dir(),
                &router,
                &router_lan,
                "wan0",
                room,
                AttachMode::Native,
            )?),
            Mode::Plain | Mode::Nftables | Mode::Redirect => None,
        };
        if mode == Mode::Redirect {
            traffic.redirect(&router, &router_lan, router.ifindex("wan0")?)?;
        }
        let router_thread = cpu::thread_of(&router, &router_lan, placement.router)?;
        let far_thread = cpu::thread_of(&far, &far_if, placement.router)?;
        cpu::take_turns([router_thread, far_thread])?;
        Ok(Self {
            mode,
            lan,
            router_thread,
            placement,
            traffic,
            nat,
            _network: network,
        })
    }

    /// Who forwards here.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Sends each flow at least once, so that their sessions exist.
    ///
    /// # Errors
    /// If the generator fails.
    pub(crate) fn warm_up(&mut self, load: Load) -> Result<()> {
        self.traffic.set_load(load)?;
        let target = self.traffic.counts()?.sent.frames + 2 * u64::from(load.flows);
        let mut calls = 0;
        while self.traffic.counts()?.sent.frames < target && calls < MOST_CALLS {
            self.traffic.run(&self.lan, self.placement.generator)?;
            calls += 1;
        }
        Ok(())
    }

    /// Sends until the router has spent `stretch` of CPU time and every flow has been sent; gives up early when
    /// next to nothing gets through.
    ///
    /// # Errors
    /// If the generator fails.
    pub(crate) fn measure(&mut self, load: Load, stretch: Duration) -> Result<Sample> {
        self.traffic.set_load(load)?;
        self.traffic.forget_flows()?;
        let before = self.traffic.counts()?;
        let fast = self.fast()?;
        let start = cpu::time_of(self.router_thread)?;
        let mut sample;
        let mut calls = 0;
        loop {
            self.traffic.run(&self.lan, self.placement.generator)?;
            calls += 1;
            let counts = self.traffic.counts()?.since(&before);
            let cpu = cpu::time_of(self.router_thread)?.saturating_sub(start);
            let stuck = calls >= 3 && counts.received.frames < counts.sent.frames / 2;
            sample = (counts, cpu);
            let complete = cpu >= stretch && counts.sent.frames >= load.flows.into();
            if complete || stuck || calls >= MOST_CALLS {
                break;
            }
        }
        Ok(Sample {
            counts: sample.0,
            cpu: sample.1,
            seen: self.traffic.seen()?,
            fast: self.fast()?.zip(fast).map(|(after, before)| after - before),
        })
    }

    /// Sends each flow once: to a router that knows none of them, the price of a new session.
    ///
    /// # Errors
    /// If the generator fails.
    pub(crate) fn measure_once(&mut self, load: Load) -> Result<Sample> {
        self.traffic.set_load(load)?;
        self.traffic.stop_after(Some(load.flows.into()))?;
        let sample = self.measure(load, Duration::ZERO);
        self.traffic.stop_after(None)?;
        sample
    }

    /// Where the maps of our data plane are pinned.
    ///
    /// # Errors
    /// If this is none of ours.
    pub(crate) fn pins(&self) -> Result<PathBuf> {
        let nat = self.nat.as_ref().context("no data plane of ours here")?;
        Ok(nat.pins.clone())
    }

    /// Lets the daemon's side of our data plane do something.
    ///
    /// # Errors
    /// As `body`, and if this is none of ours.
    pub(crate) fn with_plane<T>(
        &mut self,
        body: impl FnOnce(&mut KernelPlane) -> Result<T>,
    ) -> Result<T> {
        let nat = self.nat.as_mut().context("no data plane of ours here")?;
        body(&mut nat.plane)
    }

    /// Lets the daemon's side of our data plane do something while the generator sends; returns what both ends
    /// counted meanwhile.
    ///
    /// # Errors
    /// As `body`, or if the generator fails, or if this is none of ours.
    pub(crate) fn under_load<T: Send>(
        &mut self,
        load: Load,
        body: impl FnOnce(&mut KernelPlane, &Gauge) -> Result<T> + Send,
    ) -> Result<(Counts, T)> {
        self.traffic.set_load(load)?;
        self.traffic.forget_flows()?;
        let gauge = Gauge {
            counters: self.traffic.counters()?,
            router_thread: self.router_thread,
            turns: AtomicU64::new(0),
        };
        let before = self.traffic.counts()?;
        let nat = self.nat.as_mut().context("no data plane of ours here")?;
        let (plane, traffic) = (&mut nat.plane, &mut self.traffic);
        let (lan, cpu) = (&self.lan, self.placement.generator);
        let result = std::thread::scope(|scope| {
            let side = scope.spawn(|| {
                pin(None, cpu)?;
                body(plane, &gauge)
            });
            let mut sent = Ok(());
            while sent.is_ok() && !side.is_finished() {
                gauge.turns.fetch_add(1, Ordering::Relaxed);
                sent = traffic.run_long(lan, cpu);
                gauge.turns.fetch_add(1, Ordering::Relaxed);
            }
            let result = side
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sent.and(result)
        })?;
        Ok((self.traffic.counts()?.since(&before), result))
    }

    fn fast(&self) -> Result<Option<u64>> {
        self.nat.as_ref().map(Nat::forwarded).transpose()
    }
}

/// The shortest ruleset that translates, and checksum verification left to the network card, as on a router.
///
/// # Errors
/// If `nft` refuses it.
pub(crate) fn masquerade(router: &Namespace, wan: &str) -> Result<()> {
    for command in [
        "add table ip bench".into(),
        "add chain ip bench out { type nat hook postrouting priority srcnat ; }".into(),
        format!("add rule ip bench out oifname {wan} masquerade"),
    ] {
        let mut argv = vec!["nft"];
        argv.extend(command.split_whitespace());
        router.must(&argv).context("load the nftables ruleset")?;
    }
    router.sysctl("net/netfilter/nf_conntrack_checksum", "0")
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}
