//! Leaves nothing behind.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{MapInfo, loaded_maps};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramInfo, loaded_links, loaded_programs};
use iwf_common::names;
use tracing::{info, warn};

use super::attach;
use super::pins::{self, PinSet};
use super::tun;

/// See [`super::kernel::detach`].
pub(super) fn detach(bpffs_dir: &Path) -> Result<()> {
    let sets = PinSet::all(bpffs_dir).context("list the pins")?;
    let doomed = Ids::of(&sets);
    for set in &sets {
        for attachment in attach::list(&set.links()).context("list the pinned links")? {
            attach::release(&set.links(), attachment);
        }
        set.remove()
            .with_context(|| format!("remove {}", set.dir().display()))?;
        info!(pins = %set.dir().display(), "removed");
    }
    tun::remove(tun::SOFTWIRE).context("remove the softwire's device")?;
    pins::release_bpffs(bpffs_dir)?;
    if !attach::until(|| doomed.are_gone()) {
        warn!("the kernel still holds some objects: a running daemon has them open");
    }
    Ok(())
}

/// Numbers of kernel objects.
#[derive(Debug, Default)]
struct Ids {
    links: BTreeSet<u32>,
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl Ids {
    fn of(sets: &[PinSet]) -> Self {
        let mut ids = Self::default();
        for set in sets {
            let links = std::fs::read_dir(set.links())
                .into_iter()
                .flatten()
                .flatten();
            ids.links.extend(links.filter_map(|entry| {
                let link = FdLink::from(PinnedLink::from_pin(entry.path()).ok()?);
                Some(link.info().ok()?.id())
            }));
            let programs = std::fs::read_dir(set.program("").parent().unwrap_or(set.dir()));
            ids.programs.extend(
                programs
                    .into_iter()
                    .flatten()
                    .flatten()
                    .filter_map(|entry| ProgramInfo::from_pin(entry.path()).ok().map(|i| i.id())),
            );
            let maps = names::PINNED_MAPS.iter().map(|name| set.map(name));
            ids.maps.extend(
                maps.chain([set.meta()])
                    .filter_map(|pin| MapInfo::from_pin(pin).ok().map(|i| i.id())),
            );
        }
        ids
    }

    fn are_gone(&self) -> bool {
        let links = loaded_links().flatten().map(|l| l.id());
        let programs = loaded_programs().flatten().map(|p| p.id());
        let maps = loaded_maps().flatten().map(|m| m.id());
        !links.into_iter().any(|id| self.links.contains(&id))
            && !programs.into_iter().any(|id| self.programs.contains(&id))
            && !maps.into_iter().any(|id| self.maps.contains(&id))
    }
}
