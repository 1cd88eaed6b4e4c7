//! Whatever happens to the kernel's tables behind the daemon's back, one nudge brings them back to what is wanted, and
//! nothing else is touched.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Result, ensure};
use aya::maps::HashMap;
use iwf_common::names;
use iwf_common::nat::{EndpointKey, Filter, MappingKind, MappingValue};
use iwf_tests::cascade::{Cascade, rows};
use iwf_tests::daemon::Options;
use iwf_tests::igd::Gateway;
use iwf_tests::netns::may_run;
use iwf_tests::peers::{self, Echo};
use iwf_tests::topology::{LAN1, REMOTE, WAN};
use iwf_tests::wait;
use nix::sys::signal::Signal;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestCaseError, TestRunner};

const SOON: Duration = Duration::from_secs(10);
/// Mappings of control points.
const ASKED: u16 = 8;
/// No run comes by itself.
const CONFIG: &str = "[reconcile]\ninterval_seconds = 3600\n\
    [[mapping]]\nprotocol = \"tcp\"\nexternal_port = 20000\ninternal = \"192.168.1.10:8080\"\n\
    [[mapping]]\nprotocol = \"udp\"\nexternal_port = 20001\ninternal = \"192.168.1.11:8081\"\n";

type Table = HashMap<aya::maps::MapData, EndpointKey, MappingValue>;

/// What happens to an entry; the number picks which.
#[derive(Clone, Debug)]
enum Drift {
    /// One direction is gone, or the other, or both.
    Deleted(usize, bool, bool),
    /// It leads to another port of its host.
    Bent(usize),
    /// It is of another life.
    Aged(usize),
    /// It has no end, or has ended.
    Ends(usize, u32),
    /// Only one remote host may come in.
    Narrowed(usize),
    /// An entry that nobody asked for.
    Orphan(u16, bool),
}

fn drift() -> impl Strategy<Value = Drift> {
    prop_oneof![
        3 => (any::<usize>(), any::<bool>(), any::<bool>())
            .prop_map(|(which, ext, int)| Drift::Deleted(which, ext, int || !ext)),
        1 => any::<usize>().prop_map(Drift::Bent),
        1 => any::<usize>().prop_map(Drift::Aged),
        1 => (any::<usize>(), 0u32..2).prop_map(|(which, end)| Drift::Ends(which, end)),
        1 => any::<usize>().prop_map(Drift::Narrowed),
        2 => (1024u16..2048, any::<bool>()).prop_map(|(port, both)| Drift::Orphan(port, both)),
    ]
}

struct Tables {
    ext: Table,
    int: Table,
}

impl Tables {
    fn open(cascade: &Cascade) -> Result<Self> {
        let dir = cascade
            .iwfd
            .files()
            .bpffs_dir
            .join(format!("v{}/maps", names::LAYOUT_VERSION));
        let open = |name: &str| -> Result<Table> {
            let map = aya::maps::MapData::from_pin(dir.join(name))?;
            Ok(aya::maps::Map::from_map_data(map)?.try_into()?)
        };
        Ok(Self {
            ext: open(names::MAPPINGS_EXT)?,
            int: open(names::MAPPINGS_INT)?,
        })
    }

    /// Those of a kind.
    fn of(&self, kind: MappingKind) -> Result<Vec<(EndpointKey, MappingValue)>> {
        let mut found = Vec::new();
        for entry in self.ext.iter() {
            let entry = entry?;
            if entry.1.kind == kind as u8 {
                found.push(entry);
            }
        }
        found.sort_by_key(|(key, _)| *key);
        Ok(found)
    }

    fn apply(&mut self, drift: &Drift, entries: &[(EndpointKey, MappingValue)]) -> Result<()> {
        let pick = |which: usize| entries[which % entries.len()];
        match *drift {
            Drift::Deleted(which, ext, int) => {
                let (key, value) = pick(which);
                // Of what another drift has taken already nothing is left to take.
                if ext {
                    self.ext.remove(&key).ok();
                }
                if int {
                    self.int.remove(&value.endpoint(key.proto)).ok();
                }
            }
            Drift::Bent(which) => self.change(pick(which).0, |value| value.port = [0x77, 0x77])?,
            Drift::Aged(which) => self.change(pick(which).0, |value| value.generation += 1000)?,
            Drift::Ends(which, end) => self.change(pick(which).0, |value| {
                value.expires = if value.expires == 0 { 1 } else { end };
            })?,
            Drift::Narrowed(which) => self.change(pick(which).0, |value| {
                (value.remote_addr, value.remote_mask) = ([192, 0, 2, 1], [255; 4]);
            })?,
            Drift::Orphan(port, both) => {
                let ext = EndpointKey::new(WAN.octets(), port.to_be_bytes(), 6);
                let int = EndpointKey::new(LAN1.octets(), port.to_be_bytes(), 6);
                let to = |other: EndpointKey| MappingValue {
                    addr: other.addr,
                    port: other.port,
                    kind: MappingKind::Explicit as u8,
                    filter: Filter::EndpointIndependent as u8,
                    generation: 5,
                    ..MappingValue::default()
                };
                self.ext.insert(ext, to(int), 0)?;
                if both {
                    self.int.insert(int, to(ext), 0)?;
                }
            }
        }
        Ok(())
    }

    fn change(&mut self, key: EndpointKey, how: impl FnOnce(&mut MappingValue)) -> Result<()> {
        if let Ok(mut value) = self.ext.get(&key, 0) {
            how(&mut value);
            self.ext.insert(key, value, 0)?;
        }
        Ok(())
    }
}

#[test]
fn any_drift_of_the_kernel_is_repaired_by_one_nudge() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options {
        more: CONFIG,
        ..Options::default()
    })?;
    let gateway = Gateway::discover(&cascade.lab.lan1)?;
    for port in 0..ASKED {
        gateway
            .add("TCP", 8000 + port, LAN1, 9000 + port, 3600)?
            .ok()?;
    }
    // Dynamic mappings are not the daemon's: they must survive everything.
    let far = Echo::listen(&cascade.lab.inet, 0)?;
    for host in [&cascade.lab.lan1, &cascade.lab.lan2] {
        peers::udp_echo(host, SocketAddrV4::new(REMOTE, far.port()), "hello", SOON)?;
    }
    wait::until_ok("everything to be in force", SOON, || {
        let rows = rows(&cascade.iwfd)?;
        ensure!(rows.len() == usize::from(ASKED) + 2, "{rows:?}");
        ensure!(rows.iter().all(|row| row["kernel"] == true), "{rows:?}");
        Ok(())
    })?;
    let mut tables = Tables::open(&cascade)?;
    let good = tables.of(MappingKind::Explicit)?;
    let dynamic: Vec<_> = keys(&tables.of(MappingKind::Dynamic)?);
    ensure!(dynamic.len() >= 2, "{dynamic:?}");

    let cell = std::cell::RefCell::new((cascade, &mut tables));
    let cases = Cases {
        cases: 24,
        failure_persistence: None,
        ..Cases::default()
    };
    TestRunner::new(cases)
        .run(&prop::collection::vec(drift(), 1..8), |drifts| {
            let (cascade, tables) = &mut *cell.borrow_mut();
            repaired(cascade, tables, &good, &dynamic, &drifts)
                .map_err(|error| TestCaseError::fail(format!("{error:#}")))
        })
        .map_err(|error| anyhow::anyhow!("{error}"))?;

    let (cascade, _) = cell.into_inner();
    let audit = cascade.iwfd.ctl().json(&["audit"])?;
    let total = &audit["reconciler"]["total"];
    for kind in ["removed", "created", "updated"] {
        ensure!(total[kind].as_u64() > Some(0), "no {kind} in {audit}");
    }
    let status = cascade.iwfd.ctl().json(&["status"])?;
    ensure!(status["reconciler"]["total"] == *total, "{status}");
    let counted = cascade.iwfd.ctl().counter("reconciler_created")?;
    ensure!(total["created"].as_u64() == Some(counted));
    Ok(())
}

fn keys(entries: &[(EndpointKey, MappingValue)]) -> Vec<EndpointKey> {
    entries.iter().map(|(key, _)| *key).collect()
}

fn repaired(
    cascade: &mut Cascade,
    tables: &mut Tables,
    good: &[(EndpointKey, MappingValue)],
    dynamic: &[EndpointKey],
    drifts: &[Drift],
) -> Result<()> {
    let quiet = cascade.iwfd.ctl().counter("reconciler_runs")?;
    for drift in drifts {
        tables.apply(drift, good)?;
    }
    let found = cascade.iwfd.ctl().run(&["audit"])?;
    let before = cascade.iwfd.ctl().counter("reconciler_runs")?;
    // The nudge before this one, or news of the kernel, may have led to a run of its own that was quicker than the audit.
    ensure!(
        found.code == Some(1) || before > quiet,
        "the audit sees nothing of {drifts:?}"
    );
    cascade.iwfd.process().signal(Signal::SIGHUP)?;
    wait::until_ok("the reconciler to repair it", SOON, || {
        ensure!(
            cascade.iwfd.ctl().counter("reconciler_runs")? > before,
            "no run yet"
        );
        let audit = cascade.iwfd.ctl().json(&["audit"])?;
        ensure!(audit["clean"] == true, "{audit}");
        ensure!(audit["reconciler"]["failed"] == 0, "{audit}");
        Ok(())
    })?;
    let same = |(key, value): &(EndpointKey, MappingValue)| {
        (
            *key,
            value.endpoint(key.proto),
            value.generation,
            value.remote_mask,
        )
    };
    let now = tables.of(MappingKind::Explicit)?;
    ensure!(
        now.iter().map(same).eq(good.iter().map(same)),
        "{now:?} instead of {good:?}"
    );
    for (key, value) in &now {
        let back = tables.int.get(&value.endpoint(key.proto), 0)?;
        ensure!(
            back.endpoint(key.proto) == *key,
            "half of {key:?} is missing"
        );
    }
    ensure!(
        keys(&tables.of(MappingKind::Dynamic)?) == dynamic,
        "dynamic mappings were touched"
    );
    let rows = rows(&cascade.iwfd)?;
    ensure!(rows.iter().all(|row| row["kernel"] == true), "{rows:?}");
    Ok(())
}
