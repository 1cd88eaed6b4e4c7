//! Attaches the programs to devices through pinned links, which outlive the daemon.
//!
//! A link is pinned as `<hook>-<mode>-<ifindex>`, so that a restarted daemon knows from the names alone what is
//! attached where.
#![forbid(unsafe_code)]
#![expect(
    clippy::disallowed_methods,
    reason = "waits for the kernel with a deadline"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::xdp::XdpLink;
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode, tc};
use aya::sys::SyscallError;
use tracing::{info, warn};

use super::kernel::TcMode;
use super::programs::Programs;
use super::{Port, Role};
use crate::daemon::config::AttachMode;

/// Priority and handle of our filter where there is no tcx (kernels before 6.6): fixed, to know it again.
const FILTER: (u16, TcHandle) = (0x4957, TcHandle::new(0, 1));

/// The kernel frees what is unpinned after a grace period of some milliseconds. Longer than this, somebody
/// else holds it.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hook {
    /// XDP of a LAN port.
    Lan,
    /// XDP of the WAN port.
    Wan,
    /// tc egress of the WAN.
    Egress,
    /// tc ingress of a WAN that does not run XDP.
    Ingress,
    /// tc ingress of a LAN port that does not run XDP.
    LanIngress,
    /// tc egress of a WAN without Ethernet headers.
    BareEgress,
    /// tc ingress of a WAN without Ethernet headers.
    BareIngress,
}

impl Hook {
    /// With how each is called in the name of a link.
    const NAMES: [(Self, &'static str); 7] = [
        (Self::Lan, "lan"),
        (Self::Wan, "wan"),
        (Self::Egress, "egress"),
        (Self::Ingress, "ingress"),
        (Self::LanIngress, "laningress"),
        (Self::BareEgress, "bareegress"),
        (Self::BareIngress, "bareingress"),
    ];

    /// Which side of a device, for tc.
    pub(super) fn direction(self) -> TcAttachType {
        match self {
            Self::Ingress | Self::LanIngress | Self::BareIngress => TcAttachType::Ingress,
            Self::Lan | Self::Wan | Self::Egress | Self::BareEgress => TcAttachType::Egress,
        }
    }
}

/// How it runs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    /// XDP in the driver.
    Native,
    /// XDP in the network core.
    Generic,
    /// A tcx link.
    Tcx,
    /// A filter of a clsact qdisc; what is pinned is the program, as a mark.
    Clsact,
}

/// One program on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Attachment {
    pub(super) ifindex: u32,
    pub(super) hook: Hook,
    pub(super) mode: Mode,
}

impl Attachment {
    fn name(self) -> String {
        let hook = Hook::NAMES.iter().find(|(hook, _)| *hook == self.hook);
        let hook = hook.map_or("", |(_, name)| name);
        let mode = match self.mode {
            Mode::Native => "native",
            Mode::Generic => "generic",
            Mode::Tcx => "tcx",
            Mode::Clsact => "clsact",
        };
        format!("{hook}-{mode}-{}", self.ifindex)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        let hook = parts.next()?;
        let (hook, _) = *Hook::NAMES.iter().find(|(_, name)| *name == hook)?;
        let mode = match parts.next()? {
            "native" => Mode::Native,
            "generic" => Mode::Generic,
            "tcx" => Mode::Tcx,
            "clsact" => Mode::Clsact,
            _ => return None,
        };
        let ifindex = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some(Self {
            ifindex,
            hook,
            mode,
        })
    }

    /// Whether the configuration allows this mode.
    fn suits(self, how: AttachMode) -> bool {
        match how {
            AttachMode::Auto => true,
            AttachMode::Native => self.mode != Mode::Generic,
            AttachMode::Generic => self.mode != Mode::Native,
            AttachMode::Tc => !self.is_xdp(),
        }
    }

    /// Whether packets that come in by the device meet it.
    pub(super) fn is_entrance(self) -> bool {
        !matches!(self.hook, Hook::Egress | Hook::BareEgress)
    }

    /// Whether this is XDP, whatever the side.
    pub(super) fn is_xdp(self) -> bool {
        matches!(self.hook, Hook::Lan | Hook::Wan)
    }
}

/// Lists what is pinned in a directory of links.
pub(super) fn list(links: &Path) -> io::Result<BTreeSet<Attachment>> {
    let entries = match fs::read_dir(links) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let mut found = BTreeSet::new();
    for entry in entries {
        found.extend(entry?.file_name().to_str().and_then(Attachment::parse));
    }
    Ok(found)
}

/// Attaches to every port what belongs there and detaches the rest; returns what is attached now. A device
/// that refuses costs only itself: its traffic takes the stack. It is told once here and can be told from the
/// result.
pub(super) fn reconcile(
    links: &Path,
    programs: &mut Programs,
    ports: &[Port],
    how: (AttachMode, TcMode),
) -> io::Result<BTreeSet<Attachment>> {
    let mut there = list(links)?;
    let mut released = BTreeSet::new();
    let wanted: BTreeSet<(u32, Hook)> = ports.iter().flat_map(hooks).collect();
    there.retain(|&attachment| {
        if !refresh(links, attachment, programs) {
            unpin(links, attachment);
            return false;
        }
        let fits =
            wanted.contains(&(attachment.ifindex, attachment.hook)) && attachment.suits(how.0);
        if !fits {
            release(links, attachment);
            released.insert(attachment.ifindex);
        }
        fits
    });
    for port in ports {
        let here = |there: &BTreeSet<Attachment>, hook| {
            let mut there = there.iter();
            there.any(|a| a.ifindex == port.ifindex && a.hook == hook)
        };
        let mut attach = |hook: Hook| {
            if !here(&there, hook) {
                let busy = released.contains(&port.ifindex);
                there.extend(attach_one(links, port, hook, programs, how, busy));
            }
            here(&there, hook)
        };
        let (xdp, stand_in) = match (port.role, port.is_bare()) {
            (Role::Lan, true) => {
                warn!(
                    interface = port.name,
                    "a LAN port without Ethernet headers is not translated for"
                );
                continue;
            }
            (Role::Wan, true) => {
                attach(Hook::BareEgress);
                attach(Hook::BareIngress);
                continue;
            }
            (Role::Lan, false) => (Hook::Lan, Hook::LanIngress),
            (Role::Wan, false) => {
                attach(Hook::Egress);
                (Hook::Wan, Hook::Ingress)
            }
        };
        if how.0 == AttachMode::Tc || !attach(xdp) {
            attach(stand_in);
            continue;
        }
        // Both would translate twice.
        let over = |a: &&Attachment| a.ifindex == port.ifindex && a.hook == stand_in;
        if let Some(&attachment) = there.iter().find(over) {
            release(links, attachment);
            there.remove(&attachment);
        }
    }
    Ok(there)
}

/// Lets the links of `old` run the new programs and moves their pins to `new`. Dead ones are dropped.
pub(super) fn move_links(old: &Path, new: &Path, programs: &mut Programs) -> io::Result<()> {
    for attachment in list(old)? {
        let name = attachment.name();
        if attachment.mode == Mode::Clsact {
            if update(old, attachment, programs).is_ok() {
                repin_mark(&new.join(&name), attachment.hook, programs)?;
            }
        } else if let Ok(link) = update(old, attachment, programs) {
            let target = new.join(&name);
            if !target.exists()
                && let Some(link) = link
            {
                link.pin(&target).map_err(io::Error::other)?;
            }
        }
        fs::remove_file(old.join(&name))?;
    }
    Ok(())
}

/// Lets every link of a directory run the current programs. Dead ones stay for [`reconcile`] to drop.
pub(super) fn update_links(links: &Path, programs: &mut Programs) -> io::Result<()> {
    for attachment in list(links)? {
        if let Err(error) = update(links, attachment, programs) {
            warn!(
                link = attachment.name(),
                "not switched to the new program: {error}"
            );
        } else if attachment.mode == Mode::Clsact {
            repin_mark(&links.join(attachment.name()), attachment.hook, programs)?;
        }
    }
    Ok(())
}

/// Detaches one program. The kernel does so a little after the pin is gone (a grace period, then a worker).
pub(super) fn release(links: &Path, attachment: Attachment) {
    if attachment.mode == Mode::Clsact
        && let Err(error) = super::clsact::remove(attachment.ifindex, FILTER, attachment.hook)
    {
        warn!(link = attachment.name(), "filter not removed: {error}");
    }
    unpin(links, attachment);
}

/// Polls until `done`, at most [`PATIENCE`] long; whether it was.
pub(super) fn until(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}

/// Removes a pin. What is already gone is fine.
fn unpin(links: &Path, attachment: Attachment) {
    match fs::remove_file(links.join(attachment.name())) {
        Ok(()) => info!(link = attachment.name(), "detached"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => warn!(link = attachment.name(), "pin not removed: {error}"),
    }
}

/// The hooks a port may have: tc ingress stands in for XDP.
fn hooks(port: &Port) -> Vec<(u32, Hook)> {
    let hooks: &[Hook] = match (port.role, port.is_bare()) {
        (Role::Lan, false) => &[Hook::Lan, Hook::LanIngress],
        (Role::Lan, true) => &[],
        (Role::Wan, false) => &[Hook::Wan, Hook::Egress, Hook::Ingress],
        (Role::Wan, true) => &[Hook::BareEgress, Hook::BareIngress],
    };
    hooks.iter().map(|hook| (port.ifindex, *hook)).collect()
}

/// Whether a link is alive. It is given the current program, which changes nothing if it has it.
fn refresh(links: &Path, attachment: Attachment, programs: &mut Programs) -> bool {
    match update(links, attachment, programs) {
        Ok(_) => true,
        Err(error) => {
            info!(
                link = attachment.name(),
                "its device is gone or changed: {error}"
            );
            false
        }
    }
}

/// Gives a pinned link the current program; the link, if there is one.
fn update(
    links: &Path,
    attachment: Attachment,
    programs: &mut Programs,
) -> Result<Option<FdLink>, AttachError> {
    let pin = links.join(attachment.name());
    match attachment.hook {
        Hook::Lan => update_xdp(&mut programs.xdp_lan, &pin).map(Some),
        Hook::Wan => update_xdp(&mut programs.xdp_wan, &pin).map(Some),
        Hook::Egress | Hook::Ingress | Hook::LanIngress | Hook::BareEgress | Hook::BareIngress => {
            let (program, direction) = classifier(programs, attachment.hook);
            if attachment.mode == Mode::Clsact {
                return update_filter(program, direction, attachment.ifindex).map(|()| None);
            }
            let link = SchedClassifierLink::try_from(FdLink::from(PinnedLink::from_pin(&pin)?))?;
            let id = program.attach_to_link(link)?;
            Ok(Some(program.take_link(id)?.try_into()?))
        }
    }
}

fn update_xdp(program: &mut Xdp, pin: &Path) -> Result<FdLink, AttachError> {
    let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(pin)?))?;
    let id = program.attach_to_link(link)?;
    Ok(program.take_link(id)?.try_into()?)
}

fn attach_one(
    links: &Path,
    port: &Port,
    hook: Hook,
    programs: &mut Programs,
    (xdp, tc): (AttachMode, TcMode),
    busy: bool,
) -> Option<Attachment> {
    let attachment = |mode| Attachment {
        ifindex: port.ifindex,
        hook,
        mode,
    };
    let outcome = match hook {
        Hook::Lan => attach_xdp(&mut programs.xdp_lan, port, xdp, busy, |mode| {
            links.join(attachment(mode).name())
        }),
        Hook::Wan => attach_xdp(&mut programs.xdp_wan, port, xdp, busy, |mode| {
            links.join(attachment(mode).name())
        }),
        Hook::Egress | Hook::Ingress | Hook::LanIngress | Hook::BareEgress | Hook::BareIngress => {
            let (program, direction) = classifier(programs, hook);
            attach_tc(program, port, direction, tc, |mode| {
                links.join(attachment(mode).name())
            })
        }
    };
    match outcome {
        Ok(mode) => {
            if mode == Mode::Generic {
                warn!(
                    interface = port.name,
                    ?hook,
                    "attached in generic mode, which is slower"
                );
            } else {
                info!(interface = port.name, ?hook, ?mode, "attached");
            }
            Some(attachment(mode))
        }
        Err(error) if matches!(hook, Hook::Lan | Hook::Wan) => {
            warn!(
                interface = port.name,
                "XDP cannot run here; falling back to tc: {error}"
            );
            None
        }
        Err(error) => {
            warn!(
                interface = port.name,
                ?hook,
                "cannot attach, its traffic takes the kernel's stack: {error}"
            );
            None
        }
    }
}

/// In the driver if that is possible and allowed, else in the network core. A device that we have just detached
/// from is `busy` for a moment.
fn attach_xdp(
    program: &mut Xdp,
    port: &Port,
    how: AttachMode,
    busy: bool,
    pin: impl Fn(Mode) -> PathBuf,
) -> Result<Mode, AttachError> {
    let mut attach = |mode: Mode, flag: XdpMode| -> Result<Mode, AttachError> {
        let mut outcome = program.attach_to_if_index(port.ifindex, flag);
        if busy {
            until(|| {
                if outcome.as_ref().is_err_and(is_busy) {
                    outcome = program.attach_to_if_index(port.ifindex, flag);
                }
                !outcome.as_ref().is_err_and(is_busy)
            });
        }
        // A link that came by way of netlink cannot be pinned: dropping it here detaches it.
        let link: FdLink = program.take_link(outcome?)?.try_into()?;
        pin_link(link, &pin(mode))?;
        Ok(mode)
    };
    if how != AttachMode::Generic {
        match attach(Mode::Native, XdpMode::Driver) {
            Err(reason) if how == AttachMode::Auto => {
                warn!(
                    interface = port.name,
                    %reason,
                    "XDP does not run in this driver; falling back to generic mode, which is slower"
                );
            }
            outcome => return outcome,
        }
    }
    attach(Mode::Generic, XdpMode::Skb)
}

/// Whether another program is there: `EBUSY` of the same mode, `EEXIST` of the other.
fn is_busy(error: &ProgramError) -> bool {
    matches!(
        error,
        ProgramError::SyscallError(SyscallError { io_error, .. })
            if matches!(io_error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
    )
}

/// A tcx link where the kernel has them (6.6), else a filter.
fn attach_tc(
    program: &mut SchedClassifier,
    port: &Port,
    direction: TcAttachType,
    how: TcMode,
    pin: impl Fn(Mode) -> PathBuf,
) -> Result<Mode, AttachError> {
    if how == TcMode::Auto {
        let tcx = TcAttachOptions::TcxOrder(LinkOrder::default());
        match program.attach_with_options(&port.name, direction, tcx) {
            Ok(id) => {
                let link: FdLink = program.take_link(id)?.try_into()?;
                pin_link(link, &pin(Mode::Tcx))?;
                return Ok(Mode::Tcx);
            }
            Err(reason) => {
                info!(interface = port.name, %reason, "no tcx link; using a clsact filter");
            }
        }
    }
    attach_filter(program, &port.name, direction)?;
    program.pin(pin(Mode::Clsact)).map_err(io::Error::other)?;
    Ok(Mode::Clsact)
}

/// Adds our filter, and the qdisc it hangs on if there is none.
fn attach_filter(
    program: &mut SchedClassifier,
    interface: &str,
    direction: TcAttachType,
) -> Result<(), AttachError> {
    // Refused if there is one already, which is as good; anything else shows in the next step.
    if let Err(error) = tc::qdisc_add_clsact(interface) {
        tracing::debug!(interface, "clsact: {error}");
    }
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: FILTER.0,
        handle: FILTER.1,
        classid: None,
    });
    let id = program.attach_with_options(interface, direction, options)?;
    // Dropping the handle would take the filter away again, and it has no descriptor to leak.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Replaces the program of our filter.
fn update_filter(
    program: &mut SchedClassifier,
    direction: TcAttachType,
    ifindex: u32,
) -> Result<(), AttachError> {
    let name = nix::net::if_::if_indextoname(ifindex).map_err(io::Error::from)?;
    let name = name.to_string_lossy();
    let link = SchedClassifierLink::attached(&name, direction, FILTER.0, FILTER.1, None)?;
    let id = program.attach_to_link(link)?;
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

fn repin_mark(pin: &Path, hook: Hook, programs: &mut Programs) -> io::Result<()> {
    if pin.exists() {
        fs::remove_file(pin)?;
    }
    let (program, _) = classifier(programs, hook);
    program.pin(pin).map_err(io::Error::other)
}

fn pin_link(link: FdLink, pin: &Path) -> Result<(), AttachError> {
    match link.pin(pin) {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::other(error).into()),
    }
}

fn classifier(programs: &mut Programs, hook: Hook) -> (&mut SchedClassifier, TcAttachType) {
    let program = match hook {
        Hook::Ingress => &mut programs.ingress,
        Hook::LanIngress => &mut programs.tc_lan,
        Hook::BareIngress => &mut programs.l3_ingress,
        Hook::BareEgress => &mut programs.l3_egress,
        Hook::Lan | Hook::Wan | Hook::Egress => &mut programs.egress,
    };
    (program, hook.direction())
}

/// Why one device could not be attached to.
#[derive(Debug, thiserror::Error)]
enum AttachError {
    #[error("{}", chain(.0))]
    Program(#[from] ProgramError),
    #[error("{}", chain(.0))]
    Link(#[from] LinkError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The error with what caused it: the libraries say "`bpf_link_create` failed" and hide the reason below.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_are_read_back() {
        for (hook, _) in Hook::NAMES {
            for mode in [Mode::Native, Mode::Generic, Mode::Tcx, Mode::Clsact] {
                let attachment = Attachment {
                    ifindex: 4_000_000_000,
                    hook,
                    mode,
                };
                assert_eq!(Attachment::parse(&attachment.name()), Some(attachment));
            }
        }
        for other in [
            "",
            "lan",
            "lan-native",
            "lan-native-x",
            "lan-native-1-2",
            "wlan-native-1",
        ] {
            assert_eq!(Attachment::parse(other), None, "{other}");
        }
    }
}
