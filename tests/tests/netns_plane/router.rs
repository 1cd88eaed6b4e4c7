//! The lab with a data plane that follows its network, and nothing else.

use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::netns::may_run;
use iwf_tests::topology::{LAN_BRIDGE, Lab, WAN, WAN_IF};
use iwf_tests::wait;
use iwf_userspace::daemon::config::{AttachMode, EphemeralPorts, Ipv6, MssClamp, Timeouts};
use iwf_userspace::daemon::dataplane::inspect::{SessionFilter, SessionRow};
use iwf_userspace::daemon::dataplane::kernel::{KernelPlane, Settings, TcMode};
use iwf_userspace::daemon::dataplane::{DataPlane, kernel};
use iwf_userspace::daemon::netlink::{self, Interfaces};
use iwf_userspace::daemon::netstate::NetState;
use iwf_userspace::types::{
    ExternalEndpoint, ExternalPort, Generation, Instant, InternalEndpoint, InternalPort, NatEntry,
    Protocol, RemotePeer,
};
use tokio::sync::watch;

use crate::SOON;

/// Mappings that the tables have room for.
pub(crate) const MAPPINGS: usize = 256;

/// The lab with a data plane that follows its network, and nothing else.
pub(crate) struct Router {
    pub(crate) plane: KernelPlane,
    pub(crate) settings: Settings,
    pub(crate) host_ports: Vec<(Protocol, u16)>,
    pub(crate) network: watch::Receiver<NetState>,
    /// Ends the watcher's thread.
    _stop: tokio::sync::oneshot::Sender<()>,
    pub(crate) lab: Lab,
}

/// Every session in the kernel.
pub(crate) fn sessions(router: &mut Router) -> Result<Vec<SessionRow>> {
    let mut rows = Vec::new();
    let mut inspector = router.plane.inspector()?;
    inspector.sessions(&SessionFilter::default(), &mut |row| {
        rows.push(row);
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

impl Router {
    /// `None` without the privilege (and the reason printed).
    pub(crate) fn new() -> Result<Option<Self>> {
        Self::with(AttachMode::Auto, |_| Ok(()))
    }

    /// The same attached in another way, in a lab that is prepared for it.
    pub(crate) fn with(
        attach: AttachMode,
        prepare: impl FnOnce(&Lab) -> Result<()>,
    ) -> Result<Option<Self>> {
        if !may_run() {
            return Ok(None);
        }
        let lab = Lab::new()?;
        prepare(&lab)?;
        let settings = Settings {
            bpffs_dir: lab.dir().join("bpf"),
            attach,
            tc: TcMode::Auto,
            ephemeral_ports: EphemeralPorts::Share,
            mss_clamp: MssClamp::Auto,
            sessions: 4096,
            sessions6: 4096,
            ipv6: Ipv6::default(),
            mappings: u32::try_from(MAPPINGS)?,
            log_drops: false,
            timeouts: Timeouts {
                udp_idle: Duration::from_secs(300),
                tcp_established: Duration::from_secs(7440),
                tcp_transitory: Duration::from_secs(240),
                icmp_query: Duration::from_secs(60),
            },
        };
        let interfaces = Interfaces {
            lan: vec![LAN_BRIDGE.to_owned()],
            wan: WAN_IF.to_owned(),
        };
        let (ready, network) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        lab.cpe.thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let (network, _task) = netlink::watch(interfaces).await?;
                ready.send(network)?;
                stopped.await.ok();
                Ok(())
            })
        })?;
        let network = network
            .recv_timeout(SOON * wait::patience())
            .context("the watcher starts")?;
        let plane = lab.cpe.within(|| KernelPlane::open(&settings))??;
        let mut router = Self {
            plane,
            settings,
            host_ports: Vec::new(),
            network,
            _stop: stop,
            lab,
        };
        router.follow(|state| state.ports.len() == 3 && state.wan.gateway.is_some())?;
        Ok(Some(router))
    }

    pub(crate) fn state(&self) -> NetState {
        self.network.borrow().clone()
    }

    /// Configures the plane whenever the network changes, until it is as wanted.
    pub(crate) fn follow(&mut self, wanted: impl Fn(&NetState) -> bool) -> Result<()> {
        wait::until_ok("the network to be as wanted", SOON, || {
            ensure!(wanted(&self.state()), "{:?}", self.state());
            Ok(())
        })?;
        self.configure()
    }

    pub(crate) fn configure(&mut self) -> Result<()> {
        let config = self.state().plane_config(self.host_ports.clone());
        let Self { lab, plane, .. } = self;
        lab.cpe
            .within(|| plane.configure(&config))?
            .context("configure")
    }

    pub(crate) fn count(&self, name: &str) -> Result<u64> {
        let counters = self.plane.counters()?;
        let found = counters.iter().find(|(n, _)| *n == name);
        found.map(|(_, count)| *count).context("a counter")
    }

    /// The boot clock some seconds from now.
    pub(crate) fn instant_in(&self, seconds: u64) -> Result<Instant> {
        let uptime = std::fs::read_to_string("/proc/uptime")?;
        let up: f64 = uptime.split(' ').next().context("/proc/uptime")?.parse()?;
        let now = Instant::from_millis((up * 1000.0) as u64);
        Ok(now + Duration::from_secs(seconds))
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        // Also after a panic: what is pinned would outlive the namespaces.
        let dir = self.settings.bpffs_dir.clone();
        let outcome = self.lab.cpe.within(|| kernel::detach(&dir));
        if !std::thread::panicking() {
            outcome.expect("enter the namespace").expect("detach");
        }
    }
}

/// A mapping for everybody, at the first external address and without an end.
pub(crate) fn entry(
    protocol: Protocol,
    external: u16,
    (addr, port): (Ipv4Addr, u16),
    generation: u32,
) -> NatEntry {
    NatEntry {
        protocol,
        external: ExternalEndpoint {
            addr: WAN,
            port: ExternalPort::new(external).expect("not 0"),
        },
        internal: InternalEndpoint {
            addr,
            port: InternalPort::new(port).expect("not 0"),
        },
        remote: RemotePeer::Any,
        generation: Generation(generation),
        expires: None,
    }
}
