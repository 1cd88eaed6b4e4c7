//! `cargo xtask demo`: the main job, step by step, on real parts.
//!
//! Real means: an unmodified UPnP client, a carrier's NAT and PCP server written by others, the kernel of
//! this machine. Each step says what was asked and what was seen, and the first that fails ends it.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use comfy_table::Table;
use iwf_tests::bpf::{self, Objects};
use iwf_tests::carrier::{self, Miniupnpd};
use iwf_tests::cascade;
use iwf_tests::daemon::{Ctl, Iwfd, Options};
use iwf_tests::pcp::Request;
use iwf_tests::peers::{self, Echo, Transfer};
use iwf_tests::topology::{EXTERNAL, LAN1, Lab};
use iwf_tests::wire_tap::PcpTap;
use iwf_tests::{netns, upnpc};

use crate::{build, setup};

/// Show the main job: open a port through two NATs and prove each step.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Attach the programs in generic mode, as on a device whose driver cannot run them.
    #[arg(long)]
    generic: bool,
}

/// Ports the application on lan1 listens on and asks for.
const TCP_PORT: u16 = 8080;
const UDP_PORT: u16 = 8081;

const SOON: Duration = Duration::from_secs(5);
/// A connection attempt that must fail is given this long.
const SILENCE: Duration = Duration::from_secs(2);
/// A transfer counts as going on when it moved this much more.
const MORE: u64 = 4 << 20;

/// Runs the demonstration.
///
/// # Errors
/// At the first step that fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    netns::privileged().context("the demonstration builds networks and loads programs")?;
    setup::toolchain()?;
    setup::lab()?;
    build::workspace(false)?;
    show(args)?;
    println!("\nAll of it worked. The network is removed.");
    Ok(())
}

/// Numbers the steps and prints what was asked and seen.
#[derive(Default)]
struct Story {
    steps: u32,
}

impl Story {
    fn step(&mut self, title: &str) {
        self.steps += 1;
        println!("\n{}. {title}", self.steps);
    }

    fn asked(&self, what: &str) {
        println!("   asked: {what}");
    }

    fn saw(&self, what: &str) {
        let mut lines = what.trim_end().lines();
        println!("   seen:  {}", lines.next().unwrap_or_default());
        for line in lines {
            println!("          {line}");
        }
    }
}

fn show(args: &Args) -> Result<()> {
    let mut story = Story::default();
    let options = Options {
        attach: if args.generic { "generic" } else { "native" },
        ..Options::default()
    };

    story.step("A home network behind a carrier's NAT");
    let lab = Lab::new()?;
    let _carrier = Miniupnpd::start(&lab)?;
    let tap = PcpTap::start(&lab)?;
    story.asked(
        "five network namespaces: lan1, lan2 - cpe - cgn - inet; miniupnpd on cgn; iwfd on cpe",
    );
    let mut iwfd = Iwfd::start(&lab, &options)?;
    let kernel = Objects::of(&lab.cpe)?;
    let attached: Vec<String> = kernel
        .xdp
        .iter()
        .map(|(name, mode)| format!("{name} ({mode})"))
        .collect();
    ensure!(!attached.is_empty(), "no XDP program is attached");
    story.saw(&format!("XDP programs run on {}", attached.join(", ")));

    find(&mut story, &lab)?;
    let (tcp, udp) = open(&mut story, &lab)?;
    tables(&mut story, &lab, &iwfd)?;
    let echoes = [
        Echo::listen(&lab.lan1, TCP_PORT)?,
        Echo::listen(&lab.lan1, UDP_PORT)?,
    ];
    reach(&mut story, &lab, tcp, udp)?;
    let before = Before::read(&lab, &tap)?;
    let transfer = kill(&mut story, &lab, &mut iwfd, tcp)?;
    adopt(&mut story, &lab, &mut iwfd, &tap, &before, transfer)?;
    close(&mut story, &lab, tcp, udp)?;
    drop(echoes);
    detach(&mut story, &lab, &mut iwfd)
}

fn find(story: &mut Story, lab: &Lab) -> Result<()> {
    story.step("An unmodified UPnP client finds the gateway");
    let (call, address) = upnpc::external_address(&lab.lan1)?;
    story.asked(&format!("on lan1: {}", call.command));
    story.saw(call.line("Found valid IGD")?);
    story.saw(call.line("ExternalIPAddress")?);
    ensure!(
        address == EXTERNAL,
        "it should name the carrier's address {EXTERNAL}"
    );
    story.saw("that is the address of the carrier's NAT, not the one of the router's WAN");
    Ok(())
}

fn open(story: &mut Story, lab: &Lab) -> Result<(SocketAddrV4, SocketAddrV4)> {
    story.step("It opens a TCP and a UDP port");
    let mut opened = Vec::new();
    for (port, protocol) in [(TCP_PORT, "TCP"), (UDP_PORT, "UDP")] {
        let (call, endpoint) = upnpc::open(&lab.lan1, LAN1, port, port, protocol)?;
        story.asked(&format!("on lan1: {}", call.command));
        story.saw(call.line("is redirected")?);
        ensure!(
            *endpoint.ip() == EXTERNAL,
            "the external address should be {EXTERNAL}"
        );
        opened.push(endpoint);
    }
    match opened.as_slice() {
        [tcp, udp] => Ok((*tcp, *udp)),
        _ => anyhow::bail!("two ports were asked for"),
    }
}

fn tables(story: &mut Story, lab: &Lab, iwfd: &Iwfd) -> Result<()> {
    story.step("Three tables agree: the IWF's, this kernel's, the carrier's");
    story.asked("iwfctl mappings; the pinned eBPF map; on cgn: nft list chain");
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header([
        "protocol",
        "IWF mapping table",
        "eBPF NAT table of the router",
        "nftables of the carrier",
    ]);
    let kernel = bpf::nat_mappings(&iwfd.files().bpffs_dir)?;
    let carrier = carrier::all_forwards(&lab.cgn)?;
    let rows = cascade::rows(iwfd)?;
    for row in &rows {
        let protocol = row["protocol"].as_str().unwrap_or_default().to_lowercase();
        let internal = cascade::endpoint(row, "internal")?;
        let nat1 = cascade::endpoint(row, "nat1")?;
        let outer = cascade::endpoint(row, "carrier")?;
        let here = kernel
            .iter()
            .find(|held| held.protocol == protocol && held.external == nat1)
            .with_context(|| format!("the kernel does not hold {nat1}"))?;
        ensure!(
            here.internal == internal,
            "the kernel leads {nat1} to {}, not {internal}",
            here.internal
        );
        let there = carrier
            .iter()
            .find(|held| held.protocol == protocol && held.external_port == outer.port())
            .with_context(|| format!("the carrier does not forward {outer}"))?;
        let (addr, port) = there.to;
        ensure!(
            SocketAddrV4::new(addr, port) == nat1,
            "the carrier leads {outer} to {addr}:{port}, not {nat1}"
        );
        table.add_row([
            protocol.clone(),
            format!("{outer} -> {internal}"),
            format!("{} -> {}", here.external, here.internal),
            format!("{EXTERNAL}:{} -> {addr}:{port}", there.external_port),
        ]);
    }
    story.saw(&table.to_string());
    ensure!(
        rows.len() == 2 && kernel.len() == 2,
        "two mappings were made, {} are listed and {} in the kernel",
        rows.len(),
        kernel.len()
    );
    for other in carrier {
        if other.asks_for_the_address() {
            story.saw(&format!(
                "(the carrier also holds UDP {}: how the router learnt the external address; it runs out)",
                other.external_port
            ));
        }
    }
    story.asked("iwfctl audit");
    story.saw(&iwfd.ctl().must(&["audit"])?);
    Ok(())
}

fn reach(story: &mut Story, lab: &Lab, tcp: SocketAddrV4, udp: SocketAddrV4) -> Result<()> {
    story.step("A host on the Internet reaches lan1 through both NATs");
    let text = "hello from the Internet";
    story.asked(&format!(
        "on inet: connect to {tcp} over TCP, say {text:?}, wait for the echo"
    ));
    peers::tcp_echo(&lab.inet, tcp, text, SOON)?;
    story.saw("the echo of lan1, unchanged");
    story.asked(&format!("on inet: the same over UDP to {udp}"));
    peers::udp_echo(&lab.inet, udp, text, SOON)?;
    story.saw("the echo of lan1, unchanged");
    Ok(())
}

fn kill(story: &mut Story, lab: &Lab, iwfd: &mut Iwfd, tcp: SocketAddrV4) -> Result<Transfer> {
    story.step("The daemon is killed in the middle of a transfer");
    let mut transfer = Transfer::start(&lab.inet, tcp)?;
    transfer.goes_on(MORE, SOON)?;
    let at_kill = transfer.moved();
    story.asked(&format!(
        "a transfer from inet to lan1 and back; SIGKILL to iwfd (pid {}) after {} KiB",
        iwfd.process().pid(),
        at_kill >> 10
    ));
    iwfd.kill()?;
    transfer.goes_on(MORE, SOON)?;
    story.saw(&format!(
        "the transfer goes on without it: {} KiB more on the same connection",
        (transfer.moved() - at_kill) >> 10
    ));
    Ok(transfer)
}

/// Whose mapping a MAP request is about: nonce, protocol and port of our NAT.
fn owner(request: &Request) -> Option<([u8; 12], u8, u16)> {
    let map = request.map?;
    Some((map.nonce, map.protocol, map.internal_port))
}

/// What must be the same after the restart as before the kill.
struct Before {
    kernel: Objects,
    carrier: Vec<carrier::Forward>,
    rows: Vec<[String; 5]>,
    map_requests: usize,
}

impl Before {
    fn read(lab: &Lab, tap: &PcpTap) -> Result<Self> {
        Ok(Self {
            kernel: Objects::of(&lab.cpe)?,
            carrier: carrier::forwards(&lab.cgn)?,
            rows: identities(&Ctl::of(lab))?,
            map_requests: tap.map_requests()?.len(),
        })
    }
}

/// Each mapping without what changes by itself, the time left.
fn identities(ctl: &Ctl) -> Result<Vec<[String; 5]>> {
    let rows = ctl.json(&["mappings"])?;
    let rows = rows.as_array().context("mappings are a list")?;
    Ok(rows
        .iter()
        .map(|row| {
            ["generation", "protocol", "internal", "nat1", "carrier"]
                .map(|key| row[key].to_string())
        })
        .collect())
}

fn adopt(
    story: &mut Story,
    lab: &Lab,
    iwfd: &mut Iwfd,
    tap: &PcpTap,
    before: &Before,
    mut transfer: Transfer,
) -> Result<()> {
    story.step("The daemon starts again and adopts what it finds");
    story.asked("iwfd --config with the same file, then iwfctl audit");
    iwfd.restart()?;
    let audit = iwfd.ctl().must(&["audit"])?;
    story.saw(&audit);

    let after = Objects::of(&lab.cpe)?;
    ensure!(
        after == before.kernel,
        "kernel objects were made anew: {:?}, before {:?}",
        after,
        before.kernel
    );
    story.saw(&format!(
        "the same kernel objects by id: {} programs, {} maps, {} links",
        after.programs.len(),
        after.maps.len(),
        after.links.len()
    ));
    ensure!(
        identities(&iwfd.ctl())? == before.rows,
        "the mappings differ"
    );
    ensure!(
        carrier::forwards(&lab.cgn)? == before.carrier,
        "the carrier's table differs"
    );
    story.saw("the same mappings, and the same entries at the carrier");
    let requests = tap.map_requests()?;
    let new = requests
        .get(before.map_requests..)
        .context("a capture only grows")?;
    let known: BTreeSet<_> = requests[..before.map_requests].iter().map(owner).collect();
    ensure!(
        new.iter().all(|request| known.contains(&owner(request))),
        "a mapping was asked for with another nonce or port: {new:?}"
    );
    story.saw(&match new.len() {
        0 => "on the wire to the carrier since the kill: no MAP request at all".to_owned(),
        count => {
            format!("on the wire since the kill: {count} MAP requests, with the nonces of before")
        }
    });
    transfer.goes_on(MORE, SOON)?;
    let moved = transfer.finish()?;
    story.saw(&format!(
        "the transfer ended well after {} KiB; its connection was never lost",
        moved >> 10
    ));
    Ok(())
}

fn close(story: &mut Story, lab: &Lab, tcp: SocketAddrV4, udp: SocketAddrV4) -> Result<()> {
    story.step("The ports are closed, and the Internet side gets no answer any more");
    for (endpoint, protocol) in [(tcp, "TCP"), (udp, "UDP")] {
        let call = upnpc::close(&lab.lan1, endpoint.port(), protocol)?;
        story.asked(&format!("on lan1: {}", call.command));
        story.saw(call.line("returned")?);
    }
    story.asked(&format!("on inet: connect to {tcp}, send to {udp}"));
    peers::tcp_is_closed(&lab.inet, tcp, SILENCE)?;
    peers::udp_is_closed(&lab.inet, udp, SILENCE)?;
    let left = carrier::forwards(&lab.cgn)?;
    ensure!(left.is_empty(), "the carrier still forwards {left:?}");
    story.saw("no connection, no echo, and the carrier forwards nothing any more");
    Ok(())
}

fn detach(story: &mut Story, lab: &Lab, iwfd: &mut Iwfd) -> Result<()> {
    story.step("The daemon is stopped, and detach leaves nothing behind");
    let kernel = Objects::of(&lab.cpe)?;
    iwfd.stop()?;
    ensure!(
        Objects::of(&lab.cpe)? == kernel,
        "stopping the daemon must not stop the forwarding"
    );
    story.asked("SIGTERM to iwfd, then iwfctl detach");
    story.saw(&Ctl::of(lab).detach()?);
    kernel.are_gone(SOON)?;
    let left = Objects::of(&lab.cpe)?;
    ensure!(left.is_empty(), "still attached: {left:?}");
    let qdiscs = bpf::classifier_qdiscs(&lab.cpe)?;
    ensure!(qdiscs.is_empty(), "qdiscs are left: {qdiscs:?}");
    story.saw("none of its programs, maps and links exists any more; no qdisc is left");
    Ok(())
}
