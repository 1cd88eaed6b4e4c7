//! Devices that leave the LAN (RFC 6970 section 5.10; requirements IWF-080, FW6-008).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::pinholes;
use super::soap::add;
use super::world::{World, host};
use crate::iwf::departed::Departure;
use crate::iwf::pinholes::Ending;
use crate::iwf::{Input, Notice};
use crate::mapping::StaticMapping;
use crate::mapping::policy::LanPrefix;
use crate::types::caller::{Caller, Mac};
use crate::types::device::{DhcpLease, LanDevices, Leases, Neighbour};
use crate::types::{ExternalPort, InternalEndpoint, InternalPort, Protocol, RemotePeer};

const MAC: Mac = [2, 0, 0, 0, 0, 0x20];
const OTHER: Mac = [2, 0, 0, 0, 0, 0x99];
const PERIOD: u64 = 5;

/// A LAN as the shell would see it.
#[derive(Clone, Default)]
struct Lan {
    answering: Vec<IpAddr>,
    leases: Option<Vec<DhcpLease>>,
    blind: bool,
    unreadable: bool,
}

impl Lan {
    fn with(hosts: &[IpAddr]) -> Self {
        Self {
            answering: hosts.to_vec(),
            ..Self::default()
        }
    }

    fn leased(mut self, leases: &[DhcpLease]) -> Self {
        self.leases = Some(leases.to_vec());
        self
    }

    fn seen(&self) -> LanDevices {
        let mac = Some(MAC);
        let answers = true;
        let neighbours = self.answering.iter();
        let neighbours: BTreeMap<_, _> = neighbours
            .map(|addr| (*addr, Neighbour { mac, answers }))
            .collect();
        let leases = self.leases.iter().flatten();
        let known = || leases.map(|lease| (lease.addr, lease.clone())).collect();
        LanDevices {
            neighbours: (!self.blind).then_some(neighbours),
            leases: match (self.unreadable, &self.leases) {
                (true, _) => Leases::Unreadable(BTreeMap::new()),
                (false, None) => Leases::Nowhere,
                (false, Some(_)) => Leases::Known(known()),
            },
        }
    }
}

fn lease(addr: Ipv4Addr, mac: Mac) -> DhcpLease {
    DhcpLease {
        addr: addr.into(),
        mac: Some(mac),
        name: None,
        ends: None,
    }
}

/// So long the LAN looks like that.
fn look(world: &mut World, lan: &Lan, seconds: u64) {
    for _ in 0..seconds.div_ceil(PERIOD) {
        world.input(Input::Devices(lan.seen()));
        world.run(PERIOD);
    }
}

/// A mapping of 192.168.1.20, an hour's time for devices that are away.
fn world() -> World {
    let mut world = World::new(1);
    assert_eq!(world.ask(20, add(20, 8080, 86_400)), Ok(vec![]));
    world
}

fn reasons(world: &World) -> Vec<String> {
    let why = |notice: &Notice| {
        let Notice::Withdrawn { why, .. } = notice else {
            return None;
        };
        Some(why.clone())
    };
    world.notices.iter().filter_map(why).collect()
}

#[test]
fn a_device_that_is_silent_for_the_stated_time_leaves_nothing_open() {
    let mut world = world();
    look(&mut world, &Lan::with(&[host(20).into()]), 600);
    assert!(world.solicited.is_empty(), "who answers is not asked");
    let left = world.now;
    look(&mut world, &Lan::default(), 3600);
    assert_eq!(
        world.active().len(),
        1,
        "an hour from when it was asked first"
    );
    look(&mut world, &Lan::default(), 120);
    assert!(world.active().is_empty());
    assert!(world.server.mappings.is_empty(), "the server was told");
    assert!(reasons(&world)[0].starts_with("its device has no lease and has not answered for 36"));
    assert!(
        world
            .notices
            .iter()
            .any(|n| matches!(n, Notice::Removed(_)))
    );
    let asked: Vec<_> = world.solicited.iter().map(|(at, _)| *at).collect();
    assert!(asked.iter().all(|at| *at >= left));
    let apart = asked
        .windows(2)
        .map(|pair| pair[1].saturating_duration_since(pair[0]));
    assert!(
        apart.clone().all(|gap| (60..=65).contains(&gap.as_secs())),
        "{apart:?}"
    );
}

#[test]
fn whoever_answers_once_in_time_keeps_what_it_has() {
    let mut world = world();
    for _ in 0..4 {
        look(&mut world, &Lan::default(), 3000);
        look(&mut world, &Lan::with(&[host(20).into()]), 5);
    }
    assert_eq!(world.active().len(), 1);
}

#[test]
fn a_lease_keeps_what_a_sleeping_device_has() {
    let mut world = world();
    let lan = Lan::default().leased(&[lease(host(20), MAC)]);
    look(&mut world, &lan, 4 * 3600);
    assert_eq!(world.active().len(), 1);
    assert!(world.solicited.is_empty(), "nobody is woken");
    // Not when it has ended, though its server still has it in the file.
    let over = DhcpLease {
        ends: Some(world.wall()),
        ..lease(host(20), MAC)
    };
    look(&mut world, &Lan::default().leased(&[over]), 20);
    assert!(world.active().is_empty());
    assert_eq!(reasons(&world), [Departure::Released.to_string()]);
}

#[test]
fn a_released_lease_deletes_at_once_unless_the_device_answers() {
    let mut world = world();
    let leased = Lan::default().leased(&[lease(host(20), MAC)]);
    let none = Lan::default().leased(&[]);
    look(&mut world, &leased, 60);
    // The file was being written, or its server has lost it: the device is there.
    look(&mut world, &none, 5);
    assert_eq!(world.solicited.len(), 1);
    let answering = Lan::with(&[host(20).into()]).leased(&[]);
    look(&mut world, &answering, 60);
    assert_eq!(world.active().len(), 1);
    look(&mut world, &leased, 60);
    let released = world.now;
    look(&mut world, &none, 15);
    assert!(world.active().is_empty());
    assert_eq!(reasons(&world), [Departure::Released.to_string()]);
    assert!(world.now.saturating_duration_since(released) <= Duration::from_secs(15));
    assert!(world.server.mappings.is_empty());
}

/// A kernel believes for most of a minute that a neighbour is there, which a device that has just given its lease back has
/// been until then.
#[test]
fn a_released_lease_is_not_kept_by_what_the_device_has_answered_before() {
    let mut world = world();
    let answering = Lan::with(&[host(20).into()]);
    look(
        &mut world,
        &answering.clone().leased(&[lease(host(20), MAC)]),
        60,
    );
    let released = world.now;
    look(&mut world, &answering.clone().leased(&[]), 5);
    assert_eq!(
        world.solicited.len(),
        1,
        "it is asked, whatever the kernel believes"
    );
    look(&mut world, &Lan::default().leased(&[]), 10);
    assert!(world.active().is_empty());
    assert_eq!(reasons(&world), [Departure::Released.to_string()]);
    assert!(world.now.saturating_duration_since(released) <= Duration::from_secs(15));
}

#[test]
fn an_address_that_another_device_got_is_closed_but_not_what_that_one_opens() {
    let mut world = world();
    let lan = |mac| Lan::with(&[host(20).into()]).leased(&[lease(host(20), mac)]);
    look(&mut world, &lan(MAC), 60);
    // Between two looks.
    assert_eq!(world.ask(20, add(20, 9090, 86_400)), Ok(vec![]));
    look(&mut world, &lan(OTHER), 10);
    let left: Vec<_> = world
        .active()
        .into_iter()
        .filter_map(|m| m.claim.port)
        .collect();
    assert_eq!(left, [ExternalPort::new(9090).expect("a port")]);
    assert_eq!(reasons(&world), [Departure::Replaced.to_string()]);
    look(&mut world, &lan(OTHER), 4 * 3600);
    assert_eq!(world.active().len(), 1);
}

#[test]
fn nothing_is_concluded_from_not_being_able_to_look() {
    let gone = || Lan::default().leased(&[]);
    // Neighbours cannot be asked for, or a lease file not be read.
    for blind in [true, false] {
        let mut world = world();
        let leased = Lan::default().leased(&[lease(host(20), MAC)]);
        look(&mut world, &leased, 60);
        let lan = Lan {
            blind,
            unreadable: !blind,
            ..gone()
        };
        look(&mut world, &lan, 8 * 3600);
        assert_eq!(world.active().len(), 1, "blind: {blind}");
        // What was known before is not, and time that nobody has looked does not count.
        look(&mut world, &gone(), 3500);
        assert_eq!(world.active().len(), 1, "blind: {blind}");
        look(&mut world, &gone(), 200);
        assert!(world.active().is_empty(), "blind: {blind}");
    }
    // Nobody has looked for hours, as when the machine was suspended.
    let mut suspended = world();
    look(&mut suspended, &gone(), 1800);
    suspended.run(8 * 3600);
    look(&mut suspended, &gone(), 3500);
    assert_eq!(suspended.active().len(), 1);
    // The LAN's interface is down.
    let mut down = world();
    look(&mut down, &gone(), 1800);
    down.input(Input::Lan(Vec::new()));
    look(&mut down, &gone(), 8 * 3600);
    assert_eq!(down.active().len(), 1);
    down.input(Input::Lan(vec![LanPrefix {
        own: host(1),
        len: 24,
        interface: 2,
    }]));
    look(&mut down, &gone(), 3500);
    assert_eq!(down.active().len(), 1);
    look(&mut down, &gone(), 200);
    assert!(down.active().is_empty());
}

#[test]
fn mappings_of_the_configuration_never_leave_and_the_owner_may_switch_it_off() {
    let mut settings = World::new(1).settings;
    settings.departed_after = None;
    let mut world = World::with(1, settings);
    assert_eq!(world.ask(20, add(20, 8080, 86_400)), Ok(vec![]));
    look(&mut world, &Lan::default().leased(&[]), 8 * 3600);
    assert_eq!(world.active().len(), 1);

    let mut world = World::new(1);
    let port = 9000;
    world.state(&[StaticMapping {
        protocol: Protocol::Tcp,
        external: ExternalPort::new(port).expect("a port"),
        internal: InternalEndpoint {
            addr: host(20),
            port: InternalPort::new(port).expect("a port"),
        },
        remote: RemotePeer::Any,
        description: String::new(),
    }]);
    world.run(10);
    assert_eq!(world.active().len(), 1);
    look(&mut world, &Lan::default().leased(&[]), 8 * 3600);
    assert_eq!(world.active().len(), 1);
    assert!(world.solicited.is_empty());
}

#[test]
fn a_pinhole_ends_with_its_hosts_address() {
    let mut world = pinholes::world();
    let addr = pinholes::host(0x10);
    let caller = Caller {
        mac: Some(MAC),
        ..IpAddr::from(addr).into()
    };
    let id = world.call_from(caller, pinholes::add(addr, 8080, 86_400));
    assert!(world.wait_for(id).is_ok());
    // The host is there, at another address.
    let other = Lan::with(&[pinholes::host(0x11).into(), host(20).into()]);
    look(&mut world, &Lan::with(&[addr.into()]), 60);
    look(&mut world, &other, 3600);
    assert_eq!(world.iwf.pinholes().count(), 1);
    look(&mut world, &other, 200);
    assert_eq!(world.iwf.pinholes().count(), 0);
    let closed = |n: &Notice| {
        matches!(
            n,
            Notice::PinholeClosed(_, Ending::Departed(Departure::Silent(_)))
        )
    };
    assert!(world.notices.iter().any(closed));
    assert!(world.kernel.pinholes.is_empty());
}

#[test]
fn so_many_are_asked_at_a_look_and_all_within_some() {
    let mut world = World::new(1);
    for last in 20..120 {
        assert_eq!(
            world.ask(last, add(last, 2000 + u16::from(last), 86_400)),
            Ok(vec![])
        );
    }
    world.input(Input::Devices(Lan::default().seen()));
    assert_eq!(world.solicited.len(), 64);
    world.run(PERIOD);
    world.input(Input::Devices(Lan::default().seen()));
    assert_eq!(world.solicited.len(), 100);
}
