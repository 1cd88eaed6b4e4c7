//! The shell's half of a run: what is done, counted and told.

use super::super::dataplane::fake::{FakePlane, Fault};
use super::*;
use crate::mapping::policy::Limits;
use crate::mapping::table::Table;
use crate::mapping::tests::mapping;
use crate::types::Instant;

fn table(of: &[(u32, u16)]) -> Table {
    let mut table = Table::new(Limits::default());
    for (generation, port) in of {
        let mapping = mapping(*generation, 20, *port, *port);
        table.put(mapping).expect("room");
    }
    table
}

fn entry(generation: u32, port: u16) -> NatEntry {
    mapping(generation, 20, port, port).nat_entry()
}

/// A whole run.
fn run(
    plane: &mut FakePlane,
    table: &Table,
    repairs: &mut Vec<Repair>,
) -> Result<Outcome, DataPlaneError> {
    let mut running = Running::begin(plane);
    while !running.at_pinholes {
        let began = busy();
        let wanted = Wanted::new(table, Instant::from_millis(0));
        repairs.extend(running.turn(plane, wanted)?);
        running.count_turn(began);
    }
    assert!(running.cost.turns > 0);
    Ok(running.outcome)
}

#[test]
fn repairs_all_three_kinds_of_drift_and_then_rests() {
    let mut plane = FakePlane::new();
    for held in [(1, 1000), (2, 2000), (5, 4000), (6, 5000)] {
        plane.write(&entry(held.0, held.1)).unwrap();
    }
    let table = table(&[(3, 2000), (4, 3000), (6, 5000)]);
    let mut repairs = Vec::new();
    let outcome = run(&mut plane, &table, &mut repairs).unwrap();
    assert_eq!((outcome.repaired(), outcome.failed), (4, 0));
    assert_eq!(
        plane.observe().unwrap(),
        [entry(3, 2000), entry(4, 3000), entry(6, 5000)]
    );
    let told: Vec<_> = repairs.iter().map(|r| r.what).collect();
    assert_eq!(
        told,
        [Kind::Removed, Kind::Removed, Kind::Updated, Kind::Created],
        "removals first, and then by age"
    );
    assert_eq!(
        run(&mut plane, &table, &mut Vec::new()).unwrap(),
        Outcome::default()
    );
}

#[test]
fn one_failure_does_not_stop_the_rest() {
    let mut plane = FakePlane::new();
    plane.fail_change(1, Fault::Full);
    let table = table(&[(1, 1000), (2, 2000)]);
    let mut repairs = Vec::new();
    let outcome = run(&mut plane, &table, &mut repairs).unwrap();
    assert_eq!((outcome.repaired(), outcome.failed), (1, 1));
    let told = repairs.iter().map(|r| (r.what, r.failure.is_some()));
    assert_eq!(
        told.collect::<Vec<_>>(),
        [(Kind::Created, true), (Kind::Created, false)]
    );
    let outcome = run(&mut plane, &table, &mut Vec::new()).unwrap();
    assert_eq!((outcome.repaired(), outcome.failed), (1, 0));
    assert_eq!(plane.observe().unwrap(), [entry(1, 1000), entry(2, 2000)]);
}

#[test]
fn a_run_that_cannot_look_ends_and_the_next_one_does_all() {
    let mut plane = FakePlane::new();
    for port in 1..=9 {
        plane.write(&entry(u32::from(port), port)).unwrap();
    }
    plane.go_blind_after(1);
    let table = table(&[]);
    let mut repairs = Vec::new();
    assert!(run(&mut plane, &table, &mut repairs).is_err());
    assert_eq!(repairs.len(), 3, "one slice");
    let outcome = run(&mut plane, &table, &mut repairs).unwrap();
    assert_eq!((outcome.removed, outcome.failed), (6, 0));
    assert_eq!(plane.observe().unwrap(), []);
}
