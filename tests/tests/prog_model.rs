//! The packet programs against the model of what they are to do: the same random packets, and after each of them the same
//! verdict, octets and tables.
//!
//! Deterministic: the seed is `IWF_MODEL_SEED`, or one that never changes, and a failure names it with the shortest run
//! that still fails. `IWF_MODEL_RUNS` says how many runs there are.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use iwf_tests::netns;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

#[path = "prog_model/address.rs"]
mod address;
#[path = "prog_model/ageing.rs"]
mod ageing;
#[expect(
    dead_code,
    reason = "the other suite's bed, with more than is needed here"
)]
#[path = "prog_run/bed.rs"]
mod bed;
#[path = "prog_model/begin.rs"]
mod begin;
#[path = "prog_model/compare.rs"]
mod compare;
#[path = "prog_model/drive.rs"]
mod drive;
#[path = "prog_model/egress.rs"]
mod egress;
#[path = "prog_model/filter.rs"]
mod filter;
#[path = "prog_model/fragment.rs"]
mod fragment;
#[path = "prog_model/mapping.rs"]
mod mapping;
#[path = "prog_model/nat.rs"]
mod nat;
#[path = "prog_model/pieces.rs"]
mod pieces;
#[path = "prog_model/quota.rs"]
mod quota;
#[path = "prog_model/send.rs"]
mod send;
#[path = "prog_model/session.rs"]
mod session;
#[path = "prog_model/step.rs"]
mod step;
#[path = "prog_model/tcp.rs"]
mod tcp;
#[path = "prog_model/tend.rs"]
mod tend;

use drive::{Driver, Shown};

/// Events of one run, at most.
const STEPS: usize = 60;
/// Runs, if the environment does not say.
const RUNS: u32 = 200;

/// Fates that so many runs must have led to, or they show less than they seem to.
const MET: [&str; 17] = [
    "drop_fragment_early",
    "fragments_forwarded",
    "pass_fragment",
    "drop_address_gone",
    "drop_icmp_error_private",
    "drop_private_source",
    "host_out",
    "pass_host",
    "translated_egress",
    "forwarded_out",
    "forwarded_in",
    "hairpinned",
    "icmp_errors_translated",
    "drop_filtered",
    "drop_hairpin_refused",
    "drop_mapping_expired",
    "drop_unsolicited",
];

fn number(name: &str) -> Result<Option<u64>> {
    let Some(text) = std::env::var_os(name) else {
        return Ok(None);
    };
    let number = text.to_str().and_then(|text| text.parse().ok());
    number
        .with_context(|| format!("{name} is no number"))
        .map(Some)
}

#[test]
fn programs_and_model_agree() -> Result<()> {
    if !netns::may_run() {
        return Ok(());
    }
    let seed = number("IWF_MODEL_SEED")?.unwrap_or(4787);
    let runs = number("IWF_MODEL_RUNS")?.map_or(Ok(RUNS), u32::try_from)?;
    bed::with_bed(|bed| {
        bed.ns
            .ip("neigh add 192.168.1.11 dev br0 lladdr 02:00:00:00:01:0b nud permanent")?;
        for addr in ["100.64.0.77", "100.64.0.78"] {
            bed.ns.ip(&format!(
                "neigh add {addr} dev wan0 lladdr 02:00:00:00:02:01 nud permanent"
            ))?;
        }
        let mut octets = [0; 32];
        octets[..8].copy_from_slice(&seed.to_be_bytes());
        let config = Config {
            cases: runs,
            failure_persistence: None,
            max_shrink_iters: 4096,
            ..Config::default()
        };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &octets);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let disturbed = Cell::new(0u32);
        let shared = RefCell::new((bed, BTreeMap::new()));
        let outcome = runner.run(
            &(step::setting(), step::steps(STEPS)),
            |(setting, steps)| {
                let (bed, fates) = &mut *shared.borrow_mut();
                let shown = Driver::new(bed, setting, fates)
                    .and_then(|driver| driver.run(&steps))
                    .map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
                if shown == Shown::Nothing {
                    disturbed.set(disturbed.get() + 1);
                }
                Ok(())
            },
        );
        match outcome {
            Ok(()) => {}
            Err(TestError::Fail(reason, (setting, steps))) => {
                let steps: Vec<_> = steps.iter().map(|step| format!("\n  {step:?}")).collect();
                anyhow::bail!("seed {seed}: {reason}\n{setting:?}{}", steps.concat());
            }
            Err(TestError::Abort(reason)) => anyhow::bail!("seed {seed}: {reason}"),
        }
        let disturbed = disturbed.get();
        ensure!(
            disturbed <= runs / 2,
            "the machine was too busy in {disturbed} of {runs} runs"
        );
        let (_, fates) = shared.into_inner();
        eprintln!("seed {seed}: {runs} runs, {disturbed} of them disturbed; {fates:?}");
        if runs >= RUNS {
            for name in MET {
                ensure!(fates.contains_key(name), "no packet was {name}");
            }
        }
        Ok(())
    })
}
