//! Choice of the external port of our NAT (NAT1).
#![forbid(unsafe_code)]

use rand::{Rng, RngExt};

use super::table::Table;
use crate::mapping::policy::Policy;
use crate::types::{ExternalPort, InternalPort, Protocol};

/// Lowest port handed out: below are the well-known ones.
const LOWEST: u16 = 1024;

/// Random draws before the search becomes a walk.
const DRAWS: usize = 32;

/// The port for a new mapping: the wanted external one, else the internal one, else any other from 1024 up, as
/// long as nobody holds it and it is not barred. `None`: every port of that protocol is taken.
pub fn choose_nat1(
    table: &Table,
    policy: &Policy,
    protocol: Protocol,
    wanted: Option<ExternalPort>,
    internal: InternalPort,
    barred: impl Fn(ExternalPort) -> bool,
    rng: &mut impl Rng,
) -> Option<ExternalPort> {
    let free = |port: ExternalPort| {
        table.by_nat1(protocol, port).is_none()
            && !policy.is_reserved(protocol, port.get())
            && !policy.is_own(protocol, port.get())
            && !barred(port)
    };
    let same = ExternalPort::new(internal.get()).filter(|port| port.get() >= LOWEST);
    let preferred = [wanted, same].into_iter().flatten().find(|p| free(*p));
    preferred.or_else(|| random_port(free, rng))
}

/// A random port from 1024 up that `free` accepts. Walks on from the last draw when the table is crowded, so
/// that the only free port is found too.
pub fn random_port(
    free: impl Fn(ExternalPort) -> bool,
    rng: &mut impl Rng,
) -> Option<ExternalPort> {
    let mut start = LOWEST;
    for _ in 0..DRAWS {
        start = rng.random_range(LOWEST..=u16::MAX);
        if let Some(port) = ExternalPort::new(start).filter(|p| free(*p)) {
            return Some(port);
        }
    }
    (start..=u16::MAX)
        .chain(LOWEST..start)
        .filter_map(ExternalPort::new)
        .find(|p| free(*p))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::super::policy::Limits;
    use super::super::tests::mapping;
    use super::*;

    #[test]
    fn prefers_the_wanted_then_the_internal_port() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut table = Table::new(Limits::default());
        let policy = Policy::default();
        let wanted = ExternalPort::new(8080);
        let internal = InternalPort::new(9090).expect("not 0");
        let mut choose = |table: &Table| {
            let barred = |port: ExternalPort| port.get() == 7070;
            choose_nat1(
                table,
                &policy,
                Protocol::Tcp,
                wanted,
                internal,
                barred,
                &mut rng,
            )
            .expect("room")
            .get()
        };
        assert_eq!(choose(&table), 8080);
        table.put(mapping(1, 20, 8080, 8080)).expect("room");
        assert_eq!(choose(&table), 9090);
        table.put(mapping(2, 20, 9090, 9090)).expect("room");
        let other = choose(&table);
        assert!(other >= LOWEST && ![7070, 8080, 9090].contains(&other));
    }

    #[test]
    fn finds_the_only_free_port() {
        let mut rng = StdRng::seed_from_u64(2);
        let only = |port: ExternalPort| port.get() == 40_000;
        assert_eq!(random_port(only, &mut rng), ExternalPort::new(40_000));
        assert_eq!(random_port(|_| false, &mut rng), None);
    }
}
