//! The order of the start: store, kernel, core, repair, listeners, ready.
//!
//! Each step needs the one before it: the locks of the store and of the pins say that no other daemon works here, the
//! kernel's entries tell which identities were ever used, and nobody is served before the tables agree.

use std::path::PathBuf;

use anyhow::{Context, Result};
use rand::TryRng;
use rand::rngs::SysRng;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::config::Config;
use super::control::server::ControlSocket;
use super::dataplane::DataPlane;
use super::dataplane::kernel::{self, KernelPlane, Settings as PlaneSettings};
use super::descriptors;
use super::devices::Devices;
use super::discovery::Discovery;
use super::eventloop::{
    Daemon, Inputs, MAX_WAITING_CALLS, MAX_WAITING_DATAGRAMS, MAX_WAITING_REQUESTS, warn_of,
};
use super::gena::Courier;
use super::hooks::Hooks;
use super::http::{OpenConnections, Protected, Site};
use super::lan::LanServices;
use super::logging::LogFilter;
use super::metrics::Metrics;
use super::neighbours::Neighbours;
use super::netstate::NetState;
use super::shell::Shell;
use super::softwire::{self, Softwires};
use super::ssdp::Identity;
use super::store::Snapshot;
use super::upstream::Upstream;
use super::{clock, fragments, netlink, refusals, settings, signals, store};
use crate::iwf::{Iwf, Saved};
use crate::types::UnixTime;
use crate::types::access::ControlPointId;
use crate::wire::description::{Description, DeviceUuid};

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// Something it cannot do without is missing: privileges, the state directory, the bpf file system, rtnetlink.
pub fn run(config: Config, config_path: PathBuf, log_filter: LogFilter) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let ended = runtime.block_on(serve(config, config_path, log_filter));
    // What threads are still at when everything is stored is nobody's any more: an answer of the resolver, a listing.
    runtime.shutdown_background();
    ended
}

async fn serve(config: Config, config_path: PathBuf, log_filter: LogFilter) -> Result<()> {
    warn_of(&config);
    let wishes = signals::wishes().context("handle signals")?;
    let (store, snapshot) = store::open(&config.paths.state_dir, clock::wall())?;
    let _claim = kernel::claim(&config.paths.bpffs_dir)?;
    let control = ControlSocket::bind(&config.paths.control_socket)?;
    let plane =
        KernelPlane::open(&PlaneSettings::from(&config)).context("load the packet programs")?;
    let (network, _watcher) = netlink::watch(netlink::Interfaces {
        lan: config
            .lan_interfaces
            .iter()
            .map(ToString::to_string)
            .collect(),
        wan: config.wan_interface.to_string(),
    })
    .await
    .context("watch the network")?;
    accept_hairpins(&config);
    report_absent(&config, &network.borrow().ports);

    let uuid = DeviceUuid::parse(&snapshot.device_uuid).context("read the device's identity")?;
    let protection = Protected::prepare(config.device_protection, &config.paths.state_dir)?;
    let description = settings::description(uuid, protection.is_some());
    let boot_id = snapshot.boot_id;
    let certificate = protection.as_ref().map(Protected::id);
    let core = core(&config, &description, certificate, snapshot, &plane)?;
    let fragment_tables = plane.fragments();
    let refusal_tables = plane.refusals();
    let (courier, outcomes) = Courier::new();
    let softwires = softwires(&config, &plane, &network);
    let open = OpenConnections::default();
    let (closed_sender, closed) = mpsc::channel(MAX_WAITING_CALLS);
    let secure = match protection {
        Some(protected) => Some(protected.listen(open.clone(), closed_sender)?),
        None => None,
    };
    let ports = settings::host_ports(&config);
    let mut shell = Shell::new(core, plane, store, ports, courier, open);
    shell.set_pinholes(settings::pinholes(&config));
    shell.set_rules(config.rules);

    let (call_sender, calls) = mpsc::channel(MAX_WAITING_CALLS);
    let (subscription_sender, subscriptions) = mpsc::channel(MAX_WAITING_CALLS);
    let (request_sender, requests) = mpsc::channel(MAX_WAITING_REQUESTS);
    let (datagram_sender, datagrams) = mpsc::channel(MAX_WAITING_DATAGRAMS);
    let site = Site::new(
        description,
        settings::server_name(),
        descriptors::provide(config.http),
        call_sender,
        subscription_sender,
        Neighbours::connect(network.clone()).context("open netlink")?,
    );
    shell.set_http_counts(site.counts());
    let identity = Identity {
        site,
        boot_id,
        config: config.ssdp,
    };
    // Tasks of their own, because they share nothing with the core but the kernel's tables.
    let fragments = tokio::spawn(fragments::run(fragment_tables));
    let wan = config.wan_interface.to_string();
    let discovery = if config.asks_dhcp() {
        Discovery::start(wan.clone(), uuid.octets(), network.clone())?
    } else {
        Discovery::off()
    };
    let refusals = tokio::spawn(refusals::run(refusal_tables, wan));
    let metrics = Metrics::new(request_sender.clone());
    let control = tokio::spawn(control.serve(request_sender));
    let mut hooks = Hooks::new(shell.journal().clone(), config.paths.control_socket.clone());
    hooks.follow(&config.hooks);
    let devices = Devices::watch(network.clone(), config.policy.lease_files.clone())
        .context("open netlink")?;
    shell.set_solicit(devices.solicit());
    let daemon = Daemon {
        shell,
        devices,
        discovery,
        softwires,
        upstream: Upstream::new(config.wan_interface.to_string(), datagram_sender),
        lan: LanServices::new(identity, config.http.port, secure),
        hooks,
        metrics,
        uuid: uuid.octets(),
        config,
        config_path,
        log_filter,
    };
    let inputs = Inputs {
        calls,
        subscriptions,
        closed,
        outcomes,
        requests,
        datagrams,
        network,
        wishes,
    };
    daemon.run(inputs).await;
    fragments.abort();
    refusals.abort();
    // Takes the socket's file with it.
    control.abort();
    if let Err(error) = control.await
        && !error.is_cancelled()
    {
        warn!(%error, "the control socket ended badly");
    }
    Ok(())
}

/// The core with what the store kept. Identities continue behind everything that was ever used: in the store,
/// and in a kernel that an earlier store, since lost, has written to.
fn core(
    config: &Config,
    description: &Description,
    certificate: Option<ControlPointId>,
    snapshot: Snapshot,
    plane: &impl DataPlane,
) -> Result<Iwf> {
    let observed = plane.observe().context("read the kernel's mappings")?;
    let in_kernel = observed
        .iter()
        .map(|entry| entry.generation.0)
        .max()
        .unwrap_or(0);
    info!(
        stored = snapshot.mappings.len(),
        in_kernel = observed.len(),
        "mappings found"
    );
    let saved = Saved {
        mappings: snapshot.mappings,
        marks: snapshot.marks,
        last_generation: snapshot.last_generation.max(in_kernel),
        epochs: snapshot
            .epochs
            .into_iter()
            .map(|(server, epoch, seen)| (server, epoch, UnixTime::from_millis(seen)))
            .collect(),
        update_id: snapshot.update_id,
        held: observed,
        pinholes: snapshot.pinholes,
        last_pinhole: snapshot.last_pinhole,
        identities: snapshot.identities,
        held_pinholes: plane
            .observe_pinholes()
            .context("read the kernel's pinholes")?,
    };
    let mut seed = [0; 32];
    SysRng.try_fill_bytes(&mut seed).context("get entropy")?;
    let now = clock::now();
    let mut core = Iwf::new(
        settings::core(config, description, certificate),
        seed,
        clock::wall(),
        now,
    );
    core.restore(saved, now);
    Ok(core)
}

fn softwires(
    config: &Config,
    plane: &KernelPlane,
    network: &watch::Receiver<NetState>,
) -> Softwires {
    let Some(source) = config.ds_lite.clone() else {
        softwire::remove_device();
        return Softwires::off();
    };
    let settings = softwire::Settings {
        source,
        wan: config.wan_interface.to_string(),
        mss_clamp: config.mss_clamp,
        counters: plane.softwire_counters(),
    };
    Softwires::start(settings, network.clone())
}

/// Lets the kernel forward what has been hairpinned and cannot be redirected yet: such a packet comes in by the LAN
/// with our own external address as its source. The programs drop it from anybody else.
fn accept_hairpins(config: &Config) {
    for name in &config.lan_interfaces {
        let path = std::path::Path::new("/proc/sys/net/ipv4/conf")
            .join(name.as_str())
            .join("accept_local");
        if path.exists()
            && let Err(error) = std::fs::write(&path, "1")
        {
            warn!(interface = %name, "cannot set accept_local, hairpinning waits for neighbours: {error}");
        }
    }
}

/// An interface may come later; a misspelled one never will.
fn report_absent(config: &Config, ports: &[super::dataplane::Port]) {
    let configured = config.lan_interfaces.iter().chain([&config.wan_interface]);
    for name in configured {
        let there = std::path::Path::new("/proc/sys/net/ipv4/conf")
            .join(name.as_str())
            .exists();
        if !there {
            warn!(interface = %name, "interface is not there yet");
        }
    }
    if ports.is_empty() {
        warn!("no interface to attach to yet");
    }
}
