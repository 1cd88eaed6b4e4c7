//! What runs with seeds have found, as the shortest stories that show it.

use std::time::Duration;

use super::soap::add;
use super::world::World;
use crate::iwf::EffectError;

/// Seeds 9 and 12 of months: the server had agreed to the shorter lease, store or kernel had not, and what was promised
/// first ended with the shorter one.
#[test]
fn a_shorter_lease_that_fails_here_leaves_the_longer_one() {
    for kernel in [false, true] {
        let mut world = World::new(1);
        assert_eq!(world.ask(20, add(20, 8080, 6000)), Ok(vec![]));
        let made = world.only();
        if kernel {
            let next = world.kernel.next_call();
            world.kernel.faults.insert(next, EffectError::Full);
        } else {
            let next = world.store.next_call();
            world.store.faults.insert(next, EffectError::Full);
        }
        assert_eq!(world.ask(20, add(20, 8080, 255)), Err(728));
        world.run(5000);
        let left = world.only();
        assert_eq!(left.lease_ends, made.lease_ends);
        assert_eq!(world.server.alive(world.now).count(), 1);
        world.run(1000);
        assert_eq!(world.active().len(), 0);
    }
}

/// Seed 39 of months: the power came back a second before the lease ended, and the answer to the renewal after that.
#[test]
fn a_lease_that_is_about_to_end_at_the_start_is_got_back() {
    let mut world = World::new(2);
    world.server.lifetimes = (120, 600);
    assert_eq!(world.ask(20, add(20, 8080, 86_400)), Ok(vec![]));
    world.link.delay = (1500, 1500);
    world.power_cut(Duration::from_secs(599), true);
    world.run(60);
    assert_eq!(world.active().len(), 1);
    assert_eq!(world.server.alive(world.now).count(), 1);
    assert_eq!(world.kernel.alive(world.now).len(), 1);
}

/// Seed 71 of months: a disk that does not confirm may have written. What was refused must not come up in another life.
#[test]
fn what_was_refused_does_not_come_back_when_the_store_had_it() {
    let mut world = World::new(3);
    world.run(1);
    // After that of the mark.
    let next = world.store.next_call() + 1;
    world.store.faults.insert(next, EffectError::Failed);
    world.store.stores_what_fails = true;
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(501));
    assert_eq!(world.store.records.len(), 1, "it was written");
    world.run(2);
    assert!(world.store.records.is_empty());
    world.crash();
    assert_eq!(world.iwf.mappings().count(), 0);
}
