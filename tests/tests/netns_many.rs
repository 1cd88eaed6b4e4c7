//! Ten thousand mappings: what they cost in memory and time, and that one more costs what it costs with ten.
//!
//! `IWF_IDLE_MINUTES` lets each daemon do nothing for so long, with a run of the reconciler each minute as by default, and
//! says what that costs in an hour and in a day.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "the suites measure real programs in real time, and say what they saw"
)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use iwf_tests::daemon::{Files, Iwfd, Options};
use iwf_tests::igd::Gateway;
use iwf_tests::netns::may_run;
use iwf_tests::topology::{LAN1, Lab, WAN};
use iwf_tests::wait;
use iwf_userspace::daemon::store::{self, Store};
use iwf_userspace::iwf::StoreChange;
use iwf_userspace::mapping::Owner;
use iwf_userspace::mapping::record::MappingRecord;
use iwf_userspace::types::{
    ExternalEndpoint, ExternalPort, Generation, InternalEndpoint, InternalPort, Lifetime, Protocol,
    RemotePeer, UnixTime,
};
use nix::sys::signal::Signal;

const FEW: u32 = 10;
const MANY: u32 = 10_000;
/// Mappings added on top of them.
const ADDED: u16 = 100;
/// Runs of the reconciler, one each second.
const RUNS: u64 = 8;
const SOON: Duration = Duration::from_secs(60);
const CONFIG: &str = "[reconcile]\ninterval_seconds = 1\n[limits]\nexplicit_mappings = 20000\n";

/// What one daemon cost.
struct Cost {
    resident_kib: u64,
    start: Duration,
    /// Processor time of a second in which nothing happens but one run of the reconciler.
    idle: Duration,
    /// Turns of the event loop that a run takes, and the most processor time that one of them takes.
    turns: u64,
    longest_turn: Duration,
    /// Processor time of one AddPortMapping.
    add: Duration,
}

fn measure(count: u32) -> Result<Cost> {
    let lab = Lab::new()?;
    fill(&Files::of(&lab), count)?;
    let began = Instant::now();
    let options = Options {
        mode: "local",
        log: "warn",
        more: CONFIG,
        ..Options::default()
    };
    let mut iwfd = Iwfd::start(&lab, &options)?;
    agrees(&iwfd, count)?;
    let start = began.elapsed();
    // Runs that have ended, when none is under way.
    let runs = |iwfd: &Iwfd| -> Result<u64> {
        wait::until_ok("the run to end", SOON, || {
            let status = iwfd.ctl().json(&["status"])?;
            let reconciler = &status["reconciler"];
            ensure!(reconciler["running"] == false, "{reconciler}");
            reconciler["runs"].as_u64().context("a number")
        })
    };
    let (first, before, since) = (runs(&iwfd)?, cpu(&mut iwfd)?, Instant::now());
    // Nobody asks the daemon anything meanwhile.
    wait::until("some runs of the reconciler", SOON, || {
        (since.elapsed() >= Duration::from_secs(RUNS)).then_some(())
    })?;
    let idle = (cpu(&mut iwfd)? - before).div_f64(since.elapsed().as_secs_f64());
    // On a busy machine each of them comes a little later than a second after the one before.
    wait::until_ok("as many runs as seconds", SOON, || {
        let done = runs(&iwfd)? - first;
        ensure!(done + 1 >= RUNS, "{done} runs in {:?}", since.elapsed());
        Ok(())
    })?;
    let status = iwfd.ctl().json(&["status"])?;
    let figure = |name: &str| status["reconciler"][name].as_u64().context("a number");
    let (turns, longest_turn) = (
        figure("turns")?,
        Duration::from_micros(figure("longest_turn_micros")?),
    );
    let resident_kib = iwfd.resident_kib()?;

    let reads_again = |iwfd: &mut Iwfd, interval: u32| -> Result<()> {
        let config = std::fs::read_to_string(&iwfd.files().config)?;
        let mut lines: Vec<&str> = config.lines().collect();
        let line = format!("interval_seconds = {interval}");
        let found = lines.iter().position(|l| l.starts_with("interval_sec"));
        lines[found.context("the interval")?] = &line;
        std::fs::write(&iwfd.files().config, lines.join("\n"))?;
        let done = runs(iwfd)?;
        iwfd.process().signal(Signal::SIGHUP)?;
        wait::until_ok("the configuration to be read", SOON, || {
            ensure!(runs(iwfd)? > done, "not yet");
            Ok(())
        })
    };
    if let Ok(minutes) = std::env::var("IWF_IDLE_MINUTES") {
        let time = Duration::from_secs(60 * minutes.parse::<u64>().context("IWF_IDLE_MINUTES")?);
        reads_again(&mut iwfd, 60)?;
        do_nothing(&mut iwfd, time, count)?;
    }
    // From here on no run comes by itself.
    reads_again(&mut iwfd, 3600)?;
    let gateway = Gateway::discover(&lab.lan1)?;
    let (quiet, before) = (runs(&iwfd)?, cpu(&mut iwfd)?);
    for port in 0..ADDED {
        gateway
            .add("UDP", 2000 + port, LAN1, 2000 + port, 3600)?
            .ok()?;
    }
    let add = (cpu(&mut iwfd)? - before) / u32::from(ADDED);
    ensure!(
        runs(&iwfd)? == quiet,
        "a run of the reconciler came between"
    );
    agrees(&iwfd, count + u32::from(ADDED))?;
    Ok(Cost {
        resident_kib,
        start,
        idle,
        turns,
        longest_turn,
        add,
    })
}

/// Says what a daemon costs that does nothing for so long.
fn do_nothing(iwfd: &mut Iwfd, time: Duration, count: u32) -> Result<()> {
    let commits = iwfd.ctl().counter("store_commits")?;
    let (before, since) = (cpu(iwfd)?, Instant::now());
    wait::until("nothing", time + SOON, || {
        (since.elapsed() >= time).then_some(())
    })?;
    let (used, passed) = (cpu(iwfd)? - before, since.elapsed());
    let commits = iwfd.ctl().counter("store_commits")? - commits;
    let hour = used.mul_f64(3600.0 / passed.as_secs_f64());
    let days = passed.as_secs_f64() / 86_400.0;
    println!(
        "{count} mappings, idle for {passed:.0?}: {used:?} processor time, which is {hour:?} in an hour; {commits} commits \
         of the store, which is {:.0} a day; {} KiB resident",
        f64::from(u32::try_from(commits)?) / days,
        iwfd.resident_kib()?
    );
    Ok(())
}

/// A store with so many mappings of control points, of many hosts.
fn fill(files: &Files, count: u32) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let (mut store, _) = store::open(&files.state_dir, UnixTime::from_secs(now))?;
    let port = |n: u32| u16::try_from(10_000 + n).context("a port");
    let mut changes = Vec::new();
    for n in 0..count {
        let [_, _, high, low] = n.to_be_bytes();
        let external = ExternalEndpoint {
            addr: WAN,
            port: ExternalPort::new(port(n)?).context("not 0")?,
        };
        changes.push(StoreChange::Put(MappingRecord {
            generation: Generation(n + 1),
            protocol: Protocol::Tcp,
            internal: InternalEndpoint {
                addr: [192, 168, 1, 20 + (low & 0x7f)].into(),
                port: InternalPort::new(1024 + (u16::from(high) << 8) + u16::from(low))
                    .context("not 0")?,
            },
            nat1: external,
            external,
            remote: RemotePeer::Any,
            description: "one of many".to_owned(),
            requested: Lifetime(604_800),
            lease_ends: UnixTime::from_secs(now + 600_000),
            any_port: false,
            owner: Owner::ControlPoint,
            upstream: None,
        }));
    }
    Ok(store.commit(&changes)?)
}

fn agrees(iwfd: &Iwfd, count: u32) -> Result<()> {
    wait::until_ok("all mappings to be in force", SOON, || {
        let audit = iwfd.ctl().json(&["audit"])?;
        ensure!(
            audit["clean"] == true && audit["mappings"] == count,
            "not yet"
        );
        Ok(())
    })
}

/// Processor time of the daemon so far.
fn cpu(iwfd: &mut Iwfd) -> Result<Duration> {
    let path = format!("/proc/{}/schedstat", iwfd.process().pid());
    let text = std::fs::read_to_string(path)?;
    let nanos = text.split(' ').next().context("a number")?.parse()?;
    Ok(Duration::from_nanos(nanos))
}

#[test]
fn one_more_costs_the_same_with_ten_and_with_ten_thousand() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let [few, many] = [measure(FEW)?, measure(MANY)?];
    for (count, cost) in [(FEW, &few), (MANY, &many)] {
        println!(
            "{count} mappings: in force {:?} after the start, {} KiB resident, {:?} processor time in a second with a run of \
             the reconciler ({} turns of at most {:?}), {:?} to add one more",
            cost.start, cost.resident_kib, cost.idle, cost.turns, cost.longest_turn, cost.add
        );
    }
    let ratio = many.add.as_secs_f64() / few.add.as_secs_f64();
    let run = many.idle.saturating_sub(few.idle);
    println!("adding one more: ratio {ratio:.2}; a run of the reconciler over {MANY}: {run:?}");
    println!(
        "a turn of it: {:.1} times that with {FEW}, {:.3} of the whole run",
        many.longest_turn.as_secs_f64() / few.longest_turn.as_secs_f64(),
        many.longest_turn.as_secs_f64() / run.as_secs_f64()
    );
    // Bounded: at least as many turns as the entries need. On a busy machine one of them may seem long.
    ensure!(many.turns >= u64::from(MANY / 128), "{} turns", many.turns);
    ensure!(
        many.longest_turn < run / 3,
        "{:?} of {run:?} in one turn",
        many.longest_turn
    );
    ensure!(ratio < 2.0, "one more costs {ratio:.2} times as much");
    ensure!(
        many.resident_kib < few.resident_kib + 64 * 1024,
        "{} KiB",
        many.resident_kib
    );
    Ok(())
}
