//! Loads the eBPF object, or adopts what an earlier daemon left pinned.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use aya::EbpfLoader;
use aya::programs::raw_trace_point::RawTracePoint;
use aya::programs::{Program, ProgramError, SchedClassifier, Xdp};
use aya_obj::programs::XdpAttachType;
use iwf_common::names;
use tracing::{info, warn};

use super::attach;
use super::maps::{Maps, Sizes, read_build_id, write_build_id};
use super::object;
use super::pins::PinSet;

/// Every program that is loaded and pinned.
const PROGRAMS: [&str; 9] = [
    names::XDP_LAN,
    names::XDP_WAN,
    names::TC_EGRESS,
    names::TC_INGRESS,
    names::TC_LAN,
    names::L3_EGRESS,
    names::L3_INGRESS,
    names::RUN_SWEEP,
    names::RUN_CLOCK,
];

/// How the set in use came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Loaded now; there was nothing, or nothing that fits.
    Created,
    /// Found pinned and taken over without a change.
    Adopted,
    /// Programs of another build were replaced on the maps that were found.
    Upgraded,
}

/// Everything that is pinned, open.
pub(super) struct Opened {
    pub(super) maps: Maps,
    pub(super) programs: Programs,
    pub(super) tools: Tools,
    pub(super) origin: Origin,
}

/// Programs that run when the daemon says so.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) sweep: SchedClassifier,
    pub(super) clock: RawTracePoint,
}

/// Programs that are attached to devices.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) xdp_lan: Xdp,
    pub(super) xdp_wan: Xdp,
    pub(super) egress: SchedClassifier,
    pub(super) ingress: SchedClassifier,
    pub(super) tc_lan: SchedClassifier,
    pub(super) l3_egress: SchedClassifier,
    pub(super) l3_ingress: SchedClassifier,
}

impl Programs {
    fn open(set: &PinSet) -> Result<Self, ProgramError> {
        let xdp = |name| Xdp::from_pin(set.program(name), XdpAttachType::Interface);
        let tc = |name| SchedClassifier::from_pin(set.program(name));
        Ok(Self {
            xdp_lan: xdp(names::XDP_LAN)?,
            xdp_wan: xdp(names::XDP_WAN)?,
            egress: tc(names::TC_EGRESS)?,
            ingress: tc(names::TC_INGRESS)?,
            tc_lan: tc(names::TC_LAN)?,
            l3_egress: tc(names::L3_EGRESS)?,
            l3_ingress: tc(names::L3_INGRESS)?,
        })
    }
}

impl Tools {
    fn open(set: &PinSet) -> Result<Self, ProgramError> {
        Ok(Self {
            sweep: SchedClassifier::from_pin(set.program(names::RUN_SWEEP))?,
            clock: RawTracePoint::from_pin(set.program(names::RUN_CLOCK))?,
        })
    }
}

/// What is loaded: the compiled programs and the constant that is set in them.
struct Object<'a> {
    bytes: &'a [u8],
    log_drops: bool,
}

impl Object<'_> {
    /// Highest level that the programs log at; 0 is none.
    fn log_level(&self) -> u8 {
        match self.log_drops {
            true => aya_log::Level::Debug as u8,
            false => 0,
        }
    }

    /// Tells builds and their constants apart.
    fn build_id(&self) -> [u8; 16] {
        fnv_1a(self.bytes.iter().copied().chain([self.log_level()]))
    }
}

/// FNV-1a with 128 bits. Nobody attacks it, whoever can pin programs is root.
fn fnv_1a(octets: impl Iterator<Item = u8>) -> [u8; 16] {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let hash = octets.fold(OFFSET, |hash, octet| {
        (hash ^ u128::from(octet)).wrapping_mul(PRIME)
    });
    hash.to_be_bytes()
}

/// Opens the current set under `root`, creating, adopting or upgrading it.
pub(super) fn open(root: &Path, object: &[u8], sizes: &Sizes, log_drops: bool) -> Result<Opened> {
    let object = Object {
        bytes: object,
        log_drops,
    };
    let build_id = object.build_id();
    let current = PinSet::current(root);
    resume(root, &current)?;

    let Some(pinned_id) = read_build_id(&current) else {
        create(root, &object, sizes, build_id).context("load the eBPF programs")?;
        return opened(&current, Origin::Created);
    };
    if let Some(misfit) = sizes.misfit(&current) {
        warn!("pinned tables do not fit, sessions begin anew: {misfit}");
        create(root, &object, sizes, build_id).context("load the eBPF programs anew")?;
        return opened(&current, Origin::Created);
    }
    if pinned_id == build_id {
        match opened(&current, Origin::Adopted) {
            Ok(adopted) => return Ok(adopted),
            Err(error) => warn!("pinned programs cannot be adopted, replacing them: {error:#}"),
        }
    }
    upgrade(&current, &object, sizes, build_id).context("replace the eBPF programs")?;
    opened(&current, Origin::Upgraded)
}

fn opened(set: &PinSet, origin: Origin) -> Result<Opened> {
    let maps = Maps::open(set)?;
    let programs = Programs::open(set).context("open the pinned programs")?;
    let tools = Tools::open(set).context("open the pinned programs")?;
    info!(?origin, pinned = %set.dir().display(), "data plane ready");
    Ok(Opened {
        maps,
        programs,
        tools,
        origin,
    })
}

/// Brings an interrupted [`create`] to an end: a complete new set takes over, an incomplete one goes.
fn resume(root: &Path, current: &PinSet) -> Result<()> {
    let fresh = PinSet::fresh(root);
    if !fresh.dir().exists() {
        return Ok(());
    }
    if read_build_id(&fresh).is_none() {
        warn!("removing pins of an interrupted start");
        return fresh.remove().context("remove half-made pins");
    }
    take_over(root, &fresh, current)
}

/// Loads everything into a new set beside whatever is there, then lets it take over.
fn create(root: &Path, object: &Object<'_>, sizes: &Sizes, build_id: [u8; 16]) -> Result<()> {
    let fresh = PinSet::fresh(root);
    fresh.remove().context("remove half-made pins")?;
    fresh.create().context("make the pin directories")?;
    load(&fresh, object, sizes)?;
    write_build_id(&fresh, build_id).context("pin the build id")?;
    take_over(root, &fresh, &PinSet::current(root))
}

/// Moves every link to the programs of a complete set, removes the other sets and puts this one in their
/// place. May be repeated after an interruption anywhere.
fn take_over(root: &Path, fresh: &PinSet, current: &PinSet) -> Result<()> {
    let mut programs = Programs::open(fresh).context("open the new programs")?;
    for old in PinSet::all(root).context("list the pins")? {
        if old.dir() == fresh.dir() {
            continue;
        }
        attach::move_links(&old.links(), &fresh.links(), &mut programs)
            .context("move the links to the new programs")?;
        old.remove().context("remove the old pins")?;
    }
    fs::rename(fresh.dir(), current.dir()).context("put the new pins in place")
}

/// Replaces the programs on the maps that are there. The build id goes last: interrupted, it is done again.
fn upgrade(set: &PinSet, object: &Object<'_>, sizes: &Sizes, build_id: [u8; 16]) -> Result<()> {
    set.create().context("make the pin directories")?;
    load(set, object, sizes)?;
    let mut programs = Programs::open(set).context("open the new programs")?;
    attach::update_links(&set.links(), &mut programs).context("switch the links over")?;
    write_build_id(set, build_id).context("pin the build id")
}

/// Loads the object on the maps of `set`, making those that are missing, and pins the programs over what
/// has their names.
fn load(set: &PinSet, object: &Object<'_>, sizes: &Sizes) -> Result<()> {
    let pins: Vec<_> = names::PINNED_MAPS
        .iter()
        .map(|name| (*name, set.map(name)))
        .collect();
    let mut loader = EbpfLoader::new();
    for (name, path) in &pins {
        loader.map_pin_path(name, path.as_path());
    }
    for (name, entries) in sizes.overrides() {
        loader.map_max_entries(name, entries);
    }
    let level = object.log_level();
    loader.override_global(aya_log::LEVEL, &level, true);
    let fitted = object::fit(object.bytes);
    for (name, value) in &fitted.constants {
        loader.override_global(name, value, true);
    }
    let mut ebpf = loader
        .load(&fitted.object)
        .context("create the maps (needs root, and a kernel with BPF and BTF)")?;
    for name in PROGRAMS {
        let program = ebpf
            .program_mut(name)
            .with_context(|| format!("the object has no program {name}"))?;
        load_program(program)
            .with_context(|| format!("load program {name}"))
            .with_context(too_old)?;
        let path = set.program(name);
        let beside = set.program(&format!("{name}-new"));
        if beside.exists() {
            fs::remove_file(&beside).context("remove a half-made pin")?;
        }
        program
            .pin(&beside)
            .map_err(|error| anyhow!(error).context(format!("pin program {name}")))?;
        fs::rename(&beside, &path).with_context(|| format!("pin program {name}"))?;
    }
    Ok(())
}

/// What to think of a kernel that refuses a program. Only a hint: distributions backport.
fn too_old() -> String {
    let release = nix::sys::utsname::uname().map_or_else(
        |_| "this kernel".to_owned(),
        |name| format!("Linux {}", name.release().display()),
    );
    format!(
        "{release} refuses a packet program; iwf needs Linux {} or later",
        object::MINIMUM_KERNEL
    )
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "30 kinds of programs that the object does not have"
    )]
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_id_is_fnv_1a() {
        // Published vectors of the FNV test suite.
        assert_eq!(
            fnv_1a(b"".iter().copied())
                .map(|b| format!("{b:02x}"))
                .concat(),
            "6c62272e07bb014262b821756295c58d"
        );
        assert_eq!(
            fnv_1a(b"a".iter().copied())
                .map(|b| format!("{b:02x}"))
                .concat(),
            "d228cb696f1a8caf78912b704e4a8964"
        );
        let id = |bytes, log_drops| Object { bytes, log_drops }.build_id();
        assert_ne!(id(b"ab", false), id(b"ba", false));
        assert_ne!(id(b"ab", false), id(b"ab", true));
    }
}
