//! Our data plane on the router under test, through the daemon's own loader.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_common::limits;
use iwf_tests::netns::Namespace;
use iwf_userspace::daemon::config::{AttachMode, EphemeralPorts, Ipv6, MssClamp, Timeouts};
use iwf_userspace::daemon::dataplane::kernel::{KernelPlane, Settings, TcMode};
use iwf_userspace::daemon::dataplane::{DataPlane as _, PlaneConfig, Port, Role};

use crate::bed::{EXTERNAL, Room};

/// Loaded and attached. Pinned below the run's directory: it goes with that.
pub(crate) struct Nat {
    /// The daemon's side.
    pub(crate) plane: KernelPlane,
    /// Where it is pinned.
    pub(crate) pins: PathBuf,
}

impl Nat {
    /// Attaches the packet programs to both ports of `router`: natively if at all by XDP.
    ///
    /// # Errors
    /// If the kernel refuses something.
    pub(crate) fn attach(
        dir: &Path,
        router: &Namespace,
        lan: &str,
        wan: &str,
        room: Room,
        attach: AttachMode,
    ) -> Result<Self> {
        let pins = dir.join("bpf");
        let settings = Settings {
            bpffs_dir: pins.clone(),
            attach,
            tc: TcMode::Auto,
            ephemeral_ports: EphemeralPorts::Share,
            mss_clamp: MssClamp::Auto,
            sessions: room.sessions(),
            sessions6: 256,
            ipv6: Ipv6::default(),
            mappings: limits::MAPPINGS,
            log_drops: false,
            timeouts: Timeouts {
                udp_idle: Duration::from_secs(limits::UDP_IDLE.into()),
                tcp_established: Duration::from_secs(limits::TCP_ESTABLISHED_IDLE.into()),
                tcp_transitory: Duration::from_secs(limits::TCP_TRANSITORY_IDLE.into()),
                icmp_query: Duration::from_secs(limits::ICMP_IDLE.into()),
            },
        };
        let port = |name: &str, role| -> Result<Port> {
            Ok(Port {
                ifindex: router.ifindex(name)?,
                name: name.to_owned(),
                role,
                bridge: None,
                mac: router.mac(name)?,
            })
        };
        let config = PlaneConfig {
            external_addr: Some(EXTERNAL),
            lan_prefixes: vec![(Ipv4Addr::new(192, 168, 1, 0), 24)],
            ports: vec![port(lan, Role::Lan)?, port(wan, Role::Wan)?],
            ..PlaneConfig::default()
        };
        let plane = router.within(|| -> Result<_> {
            let mut plane = KernelPlane::open(&settings)?;
            plane
                .configure(&config)
                .context("configure the data plane")?;
            Ok(plane)
        })??;
        ensure!(
            plane.generic_interfaces().is_empty(),
            "the programs are not in the driver"
        );
        Ok(Self { plane, pins })
    }

    /// Packets the fast path has sent to the WAN.
    ///
    /// # Errors
    /// If the counters cannot be read.
    pub(crate) fn forwarded(&self) -> Result<u64> {
        let counters = self.plane.counters().context("read the counters")?;
        counters
            .iter()
            .find(|(name, _)| *name == "forwarded_out")
            .map(|(_, count)| *count)
            .context("no counter forwarded_out")
    }
}
