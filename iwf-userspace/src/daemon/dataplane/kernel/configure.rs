//! Makes the kernel follow the network: devices, stations, addresses, services.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;

use iwf_common::config::{
    Config, ConfigFlags, FdbKey, IfaceValue, NO_PREFIX, Prefix, Role as KernelRole,
};
use iwf_common::flow::NO_NEXT_HOP;
use iwf_common::nat::{EndpointKey, Filter, MappingFlags, MappingKind, MappingValue, mask};
use iwf_common::softwire::Softwire as SoftwireValue;
use iwf_common::{limits, tick};
use tracing::{debug, info, warn};

use super::KernelPlane;
use crate::daemon::config::{Filtering, Refusals};
use crate::daemon::dataplane::attach::{self, Attachment, Mode};
use crate::daemon::dataplane::features;
use crate::daemon::dataplane::maps::{self, Maps, refused, to_io};
use crate::daemon::dataplane::pair::{Expect, Side, Tables as _};
use crate::daemon::dataplane::softwire::Softwire;
use crate::daemon::dataplane::{DataPlane as _, DataPlaneError, FdbEntry, PlaneConfig, Port, Role};
use crate::daemon::softwire::inner_mtu;
use crate::types::{NatEntry, Protocol};

/// The parts of the configuration that are in the kernel; `None` is not known yet.
#[derive(Debug, Default)]
pub(super) struct Applied {
    ports: Option<Vec<Port>>,
    /// When a device refused a program, in ticks.
    refused_at: Option<u32>,
    receivers: Option<BTreeSet<u32>>,
    told_stations: Option<Vec<FdbEntry>>,
    next_hops: Option<u32>,
    services: Option<BTreeMap<EndpointKey, Filter>>,
    /// Ports of sockets that a LAN host still has.
    pending: BTreeSet<EndpointKey>,
    pub(super) pinholes: Option<super::ipv6::Wanted>,
    /// The open ports that are among them.
    pub(super) host_ports: Vec<(Protocol, u16)>,
    /// What PAIRED holds; `None`: it is to be looked at again, because a mapping has gone.
    pairs: Option<BTreeMap<[u8; 4], [u8; 4]>>,
    /// The external addresses that this was right for.
    paired_with: Vec<Ipv4Addr>,
}

/// Seconds after which a device that refused a program is tried again.
const RETRY: u32 = 30;

impl KernelPlane {
    /// Changes what differs; goes on after a failure and returns the first.
    pub(super) fn follow(&mut self, config: &PlaneConfig) -> Result<(), DataPlaneError> {
        let next_hops_changed = self.applied.next_hops != Some(config.next_hops)
            || self.applied.ports.as_ref() != Some(&config.ports);
        let outcomes = [
            self.follow_ports(config),
            self.follow_receivers(),
            self.follow_stations(config),
            self.follow_addresses(config, next_hops_changed),
            self.follow_pairs(config),
            self.follow_services(config),
            self.follow_pinholes(&config.pinholes, &config.host_ports),
        ];
        outcomes.into_iter().collect::<Result<(), _>>()?;
        self.applied.next_hops = Some(config.next_hops);
        Ok(())
    }

    fn follow_ports(&mut self, config: &PlaneConfig) -> Result<(), DataPlaneError> {
        let due = self.applied.refused_at.is_some_and(|since| {
            tick::age(self.clock.now(), since) >= RETRY.saturating_mul(self.clock.hz())
        });
        if self.applied.ports.as_ref() == Some(&config.ports) && !due {
            return Ok(());
        }
        self.applied.ports = None;
        // An index may stand for a new device by now.
        self.applied.receivers = None;
        // Which side an interface is on must be known before its first packet.
        let ifaces = config.ports.iter().map(iface_value).collect();
        let mut held =
            maps::contents(&self.tables.maps.ifaces).map_err(refused("list the interfaces"))?;
        maps::replace(&mut self.tables.maps.ifaces, &mut held, &ifaces)
            .map_err(refused("tell the interfaces"))?;
        self.attached =
            attach::reconcile(&self.links, &mut self.programs, &config.ports, self.attach)
                .map_err(refused("attach the programs"))?;
        let complete = config.ports.iter().all(|port| {
            let mut here = self.attached.iter().filter(|a| a.ifindex == port.ifindex);
            here.any(|a| a.is_entrance())
        });
        self.applied.refused_at = (!complete).then_some(self.clock.now());
        self.applied.ports = Some(config.ports.clone());
        Ok(())
    }

    /// Tells which devices frames may be redirected to. What a device can do may change with its peer, so it is
    /// asked every time.
    fn follow_receivers(&mut self) -> Result<(), DataPlaneError> {
        let without = features::without_redirect().unwrap_or_else(|error| {
            debug!("the kernel does not tell XDP features: {error}");
            BTreeSet::new()
        });
        let receivers = receivers(&self.attached, &without);
        if self.applied.receivers.as_ref() == Some(&receivers) {
            return Ok(());
        }
        for attachment in self.attached.iter().filter(|a| a.is_xdp()) {
            if attachment.mode == Mode::Native && !receivers.contains(&attachment.ifindex) {
                warn!(
                    ifindex = attachment.ifindex,
                    "this device cannot send what XDP redirects to it; frames to it take the kernel's stack, which \
                     is slower (a veth needs GRO or XDP at its other end)"
                );
            }
        }
        self.applied.receivers = None;
        replace_devices(&mut self.tables.maps, &receivers)
            .map_err(refused("tell the devices to redirect to"))?;
        self.applied.receivers = Some(receivers);
        Ok(())
    }

    fn follow_stations(&mut self, config: &PlaneConfig) -> Result<(), DataPlaneError> {
        if self.applied.told_stations.as_ref() == Some(&config.fdb) {
            return Ok(());
        }
        // Those an earlier daemon knew stay while their ports do: the bridge has forgotten the ones whose frames
        // all take the short way. The watcher keeps what it was told itself.
        let of_ours = |key: &FdbKey, port: u32| {
            let mut ports = config.ports.iter();
            ports.any(|p| p.ifindex == port && p.bridge == Some(key.bridge))
        };
        let told: BTreeMap<FdbKey, u32> = config.fdb.iter().map(station).collect();
        self.adopted_stations
            .retain(|key, port| of_ours(key, *port) && !told.contains_key(key));
        let room = usize::try_from(limits::BRIDGE_FDB).unwrap_or(usize::MAX);
        let adopted = self.adopted_stations.iter().map(|(k, v)| (*k, *v));
        let wanted = told.into_iter().chain(adopted).take(room).collect();
        maps::replace(&mut self.tables.maps.fdb, &mut self.stations, &wanted)
            .map_err(refused("tell the bridge stations"))?;
        self.applied.told_stations = Some(config.fdb.clone());
        Ok(())
    }

    /// Writes CONFIG. From that moment on no packet uses an external address that is not ours any more: the generation
    /// of the next hops is stepped with the addresses, and a session of an older one asks for both. What has lost its
    /// address is ended then; when there is none at all, it waits for the same one to come back.
    fn follow_addresses(
        &mut self,
        config: &PlaneConfig,
        next_hops_changed: bool,
    ) -> Result<(), DataPlaneError> {
        let held = self
            .tables
            .maps
            .config
            .get(&0, 0)
            .map_err(to_io)
            .map_err(refused("read the configuration"))?;
        let mut new = held;
        new.external_addr = config.external_addr.map_or([0; 4], |addr| addr.octets());
        new.pool = pool_slots(&held, config);
        new.wan = wan_index(&config.ports);
        new.filter = filter(config.rules.filtering) as u8;
        new.flags = answers(config.rules.refusals, held.flags) & !ConfigFlags::ROUTED;
        if config.routed {
            new.flags |= ConfigFlags::ROUTED;
        }
        new.softwire = match config.softwire {
            _ if config.external_addr.is_some() => 0,
            Softwire::Off => 0,
            Softwire::Undecided => held.softwire,
            Softwire::On(path) => path.ifindex,
        };
        new.mss = self.mss_clamp.size(if new.softwire == 0 {
            config.wan_mtu
        } else {
            inner_mtu(config.wan_mtu)
        });
        (new.lan, new.lan_len) = lan_prefixes(&config.lan_prefixes);
        new.lan_ifindex = lan_interfaces(config);
        (new.lan6, new.lan6_len) = super::ipv6::lan_prefixes(&config.lan6_prefixes);
        let redirected = self.follow_softwire(config, &held)?;
        let lan = |config: &Config| config.is_routed().then_some((config.lan, config.lan_len));
        let stands_on = |config: &Config| (config.external_addr, config.pool, lan(config));
        let moved = stands_on(&new) != stands_on(&held);
        if next_hops_changed || moved || redirected || new.softwire != held.softwire {
            step(&mut new);
        }
        if new != held {
            self.write_config(&new)?;
        }
        if !moved {
            return Ok(());
        }
        // The kernel copies CONFIG octet by octet. Who has read half of the old addresses and half of the new ones did so
        // under that generation or an older one.
        step(&mut new);
        self.write_config(&new)?;
        if new.external_addr == [0; 4] && !config.routed {
            info!("no external address");
            return Ok(());
        }
        info!(
            external = %Ipv4Addr::from(new.external_addr),
            pool = ?config.pool,
            routed = config.routed,
            "external addresses changed"
        );
        self.tables
            .keep_ours()
            .map_err(refused("end what used the old address"))
    }

    fn write_config(&mut self, config: &Config) -> Result<(), DataPlaneError> {
        let outcome = self.tables.maps.config.set(0, config, 0);
        outcome
            .map_err(to_io)
            .map_err(refused("write the configuration"))
    }

    /// Writes SOFTWIRE, while CONFIG, which was `held`, does not lead there: the kernel copies it octet by octet. Whether
    /// it was another one.
    fn follow_softwire(
        &mut self,
        config: &PlaneConfig,
        held: &Config,
    ) -> Result<bool, DataPlaneError> {
        let Softwire::On(path) = config.softwire else {
            return Ok(false);
        };
        let failed = refused("tell the softwire");
        let wanted = SoftwireValue {
            local: path.local.octets(),
            remote: path.remote.octets(),
        };
        let map = &self.tables.maps.softwire;
        if map.get(&0, 0).map_err(to_io).map_err(&failed)? == wanted {
            return Ok(false);
        }
        if held.softwire != 0 {
            let mut without = *held;
            without.softwire = 0;
            self.write_config(&without)?;
        }
        let map = &mut self.tables.maps.softwire;
        map.set(0, wanted, 0).map_err(to_io).map_err(failed)?;
        Ok(true)
    }

    /// Tells which LAN hosts have explicit mappings and where: their other mappings follow. With one address there is
    /// nothing to follow.
    fn follow_pairs(&mut self, config: &PlaneConfig) -> Result<(), DataPlaneError> {
        let ours = external_addresses(config);
        if self.applied.pairs.is_some() && self.applied.paired_with == ours {
            return Ok(());
        }
        let failed = refused("tell the external addresses of hosts");
        let mut wanted = BTreeMap::new();
        if ours.len() > 1 {
            let mut explicit = self.observe()?;
            explicit.sort_unstable_by_key(|entry| entry.generation);
            for entry in explicit {
                if ours.contains(&entry.external.addr) {
                    let host = entry.internal.addr.octets();
                    wanted.entry(host).or_insert(entry.external.addr.octets());
                }
            }
        }
        let maps = &mut self.tables.maps;
        let mut held = maps::contents(&maps.paired).map_err(&failed)?;
        self.applied.pairs = None;
        maps::replace(&mut maps.paired, &mut held, &wanted).map_err(&failed)?;
        self.applied.pairs = Some(held);
        self.applied.paired_with = ours;
        Ok(())
    }

    /// The same for a mapping that has just been written: its host's next packet may follow.
    pub(super) fn note_pair(&mut self, entry: &NatEntry) {
        let several = self.applied.paired_with.len() > 1;
        let ours = self.applied.paired_with.contains(&entry.external.addr);
        let host = entry.internal.addr.octets();
        if let Some(pairs) = &mut self.applied.pairs
            && several
            && ours
            && !pairs.contains_key(&host)
        {
            let addr = entry.external.addr.octets();
            match self.tables.maps.paired.insert(host, addr, 0).map_err(to_io) {
                Ok(()) => drop(pairs.insert(host, addr)),
                Err(error) => {
                    debug!(host = %entry.internal.addr, "its other mappings do not follow yet: {error}");
                    self.applied.pairs = None;
                }
            }
        }
    }

    /// A mapping has gone; its host may have no other.
    pub(super) fn forget_pair(&mut self) {
        if self.applied.paired_with.len() > 1 {
            self.applied.pairs = None;
        }
    }

    /// Makes the entries of the CPE's own services and sockets those that are wanted.
    fn follow_services(&mut self, config: &PlaneConfig) -> Result<(), DataPlaneError> {
        let wanted = services(config);
        let failed = refused("reserve the ports of the router itself");
        let before = self.applied.services.take();
        if before.as_ref() != Some(&wanted) {
            for (key, value) in self.tables.list(Side::Ext).map_err(&failed)? {
                if value.flags & MappingFlags::STATIC != 0 && !wanted.contains_key(&key) {
                    self.tables.delete(Side::Ext, &key).map_err(&failed)?;
                }
            }
        }
        for (key, filter) in &wanted {
            let done = before
                .as_ref()
                .is_some_and(|before| before.get(key) == Some(filter));
            if done && !self.applied.pending.contains(key) {
                continue;
            }
            self.applied.pending.remove(key);
            if !self.reserve(key, *filter).map_err(&failed)? {
                self.applied.pending.insert(*key);
            }
        }
        self.applied.pending.retain(|key| wanted.contains_key(key));
        self.applied.services = Some(wanted);
        Ok(())
    }

    /// Writes one of those entries. A service takes its port from whoever has it; what is only a socket waits until
    /// a LAN host's mapping has ended, and `false` says so.
    fn reserve(&mut self, key: &EndpointKey, filter: Filter) -> io::Result<bool> {
        let held = self.tables.get(Side::Ext, key)?;
        let value = service_value(key, filter, self.clock.now());
        let facts = |value: &MappingValue| (value.flags, value.kind, value.filter);
        if held.is_some_and(|held| facts(&held) == facts(&value)) {
            return Ok(true);
        }
        let of_lan = held.is_some_and(|held| held.kind != MappingKind::Host as u8);
        if filter != Filter::EndpointIndependent {
            let expect = match held {
                _ if of_lan => return Ok(false),
                Some(_) => Expect::Anything,
                None => Expect::Nothing,
            };
            return match self.tables.put(Side::Ext, key, &value, expect) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
                outcome => outcome.map(|()| true),
            };
        }
        if held.is_some_and(|held| held.kind == MappingKind::Explicit as u8) {
            warn!(
                port = u16::from_be_bytes(key.port),
                "a service of this router takes a port that a mapping holds"
            );
        }
        self.tables.put(Side::Ext, key, &value, Expect::Anything)?;
        if let Some(held) = held.filter(|_| of_lan) {
            self.tables.end_sessions(key, &held.endpoint(key.proto));
        }
        Ok(true)
    }
}

/// The programs' word for whom an endpoint lets in.
pub(super) fn filter(filtering: Filtering) -> Filter {
    match filtering {
        Filtering::EndpointIndependent => Filter::EndpointIndependent,
        Filtering::AddressDependent => Filter::AddressDependent,
        Filtering::AddressAndPortDependent => Filter::AddressAndPortDependent,
    }
}

/// CONFIG's `flags` with those that say who is answered.
fn answers(refusals: Refusals, flags: u32) -> u32 {
    let others = flags & !(ConfigFlags::ANSWER_WAN | ConfigFlags::ANSWER_LAN);
    match refusals {
        Refusals::Answer => others | ConfigFlags::ANSWER_WAN | ConfigFlags::ANSWER_LAN,
        Refusals::AnswerLan => others | ConfigFlags::ANSWER_LAN,
        Refusals::Silent => others,
    }
}

/// Makes every cached next hop one to be looked up again.
const fn step(config: &mut Config) {
    config.next_hop_generation = match config.next_hop_generation.wrapping_add(1) {
        NO_NEXT_HOP => NO_NEXT_HOP + 1,
        generation => generation,
    };
}

fn iface_value(port: &Port) -> (u32, IfaceValue) {
    let role = match port.role {
        Role::Lan => KernelRole::Lan,
        Role::Wan => KernelRole::Wan,
    };
    let value = IfaceValue {
        role: role as u32,
        l3: port.bridge.unwrap_or(port.ifindex),
        mac: port.mac,
        pad: [0; 2],
    };
    (port.ifindex, value)
}

fn station(entry: &FdbEntry) -> (FdbKey, u32) {
    let key = FdbKey {
        bridge: entry.bridge,
        mac: entry.mac,
        pad: [0; 2],
    };
    (key, entry.port)
}

/// Devices that frames may be redirected to: not those whose driver cannot (`without`), and no generic one if
/// another is native, because then the network core is not there to help.
fn receivers(attached: &BTreeSet<Attachment>, without: &BTreeSet<u32>) -> BTreeSet<u32> {
    let xdp = || attached.iter().filter(|a| a.is_xdp());
    let all_generic = xdp().all(|a| a.mode == Mode::Generic);
    xdp()
        .filter(|a| all_generic || (a.mode == Mode::Native && !without.contains(&a.ifindex)))
        .map(|a| a.ifindex)
        .collect()
}

fn replace_devices(maps: &mut Maps, wanted: &BTreeSet<u32>) -> io::Result<()> {
    let held: Vec<u32> = maps
        .devmap
        .keys()
        .collect::<Result<_, _>>()
        .map_err(to_io)?;
    for index in held.iter().filter(|index| !wanted.contains(index)) {
        match maps.devmap.remove(*index).map_err(to_io) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
    }
    for index in wanted {
        // Also those that are there: an index may be a new device by now.
        maps.devmap
            .insert(*index, *index, None, 0)
            .map_err(maps::device_to_io)?;
    }
    Ok(())
}

/// Every external address, the first one first.
fn external_addresses(config: &PlaneConfig) -> Vec<Ipv4Addr> {
    let first = config.external_addr.into_iter();
    let others = config.pool.iter().copied().take(limits::POOL);
    match config.external_addr {
        Some(_) => first.chain(others).collect(),
        None => Vec::new(),
    }
}

/// The pool with each address where it is: a packet that reads it while it is written finds those that stay.
fn pool_slots(held: &Config, config: &PlaneConfig) -> [[u8; 4]; limits::POOL] {
    const FREE: [u8; 4] = [0; 4];
    let wanted: BTreeSet<[u8; 4]> = external_addresses(config)
        .iter()
        .skip(1)
        .map(Ipv4Addr::octets)
        .collect();
    let mut slots = held.pool;
    for slot in &mut slots {
        if !wanted.contains(slot) {
            *slot = FREE;
        }
    }
    let new: Vec<_> = wanted
        .into_iter()
        .filter(|addr| !held.pool.contains(addr))
        .collect();
    let free = slots.iter_mut().filter(|slot| **slot == FREE);
    for (slot, addr) in free.zip(new) {
        *slot = addr;
    }
    slots
}

/// The interface of each LAN prefix, in the order of [`lan_prefixes`].
fn lan_interfaces(config: &PlaneConfig) -> [u32; limits::LAN_PREFIXES] {
    let mut slots = [0; limits::LAN_PREFIXES];
    for (slot, prefix) in slots.iter_mut().zip(&config.lan_prefixes) {
        *slot = config.lan_interfaces.get(prefix).copied().unwrap_or(0);
    }
    slots
}

fn wan_index(ports: &[Port]) -> u32 {
    let mut wan = ports.iter().filter(|port| port.role == Role::Wan);
    wan.next().map_or(0, |port| port.ifindex)
}

fn lan_prefixes(prefixes: &[(Ipv4Addr, u8)]) -> ([Prefix; limits::LAN_PREFIXES], u32) {
    if prefixes.len() > limits::LAN_PREFIXES {
        warn!(
            "{} LAN prefixes are configured, only the first {} are translated",
            prefixes.len(),
            limits::LAN_PREFIXES
        );
    }
    let mut slots = [NO_PREFIX; limits::LAN_PREFIXES];
    let mut used = 0;
    for (slot, (addr, len)) in slots.iter_mut().zip(prefixes) {
        let bits = u32::from(*addr) & u32::from_be_bytes(mask(*len));
        *slot = Prefix {
            addr: bits.to_be_bytes(),
            mask: mask(*len),
        };
        used += 1;
    }
    (slots, used)
}

/// The CPE's own ports and whom they let in, at each external address: everybody for a service, nobody for what is only
/// a socket.
fn services(config: &PlaneConfig) -> BTreeMap<EndpointKey, Filter> {
    let at = |addr: Ipv4Addr, (protocol, port): &(Protocol, u16)| {
        EndpointKey::new(addr.octets(), port.to_be_bytes(), protocol.number())
    };
    let mut all = BTreeMap::new();
    for addr in external_addresses(config) {
        let sockets = config.own_ports.iter().map(|port| at(addr, port));
        all.extend(sockets.map(|key| (key, Filter::AddressAndPortDependent)));
        // A service is a socket too: the later entry counts.
        let services = config.host_ports.iter().map(|port| at(addr, port));
        all.extend(services.map(|key| (key, Filter::EndpointIndependent)));
    }
    all
}

fn service_value(key: &EndpointKey, filter: Filter, now: u32) -> MappingValue {
    MappingValue {
        addr: key.addr,
        port: key.port,
        kind: MappingKind::Host as u8,
        filter: filter as u8,
        last_used: now,
        flags: MappingFlags::STATIC,
        ..MappingValue::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::dataplane::attach::Hook;

    #[test]
    fn native_frames_are_never_redirected_to_a_generic_device() {
        let on = |ifindex, mode| Attachment {
            ifindex,
            hook: Hook::Lan,
            mode,
        };
        let tc = Attachment {
            ifindex: 9,
            hook: Hook::Egress,
            mode: Mode::Tcx,
        };
        let of =
            |list: &[Attachment]| receivers(&list.iter().copied().collect(), &BTreeSet::from([3]));
        assert_eq!(
            of(&[
                on(1, Mode::Native),
                on(2, Mode::Generic),
                on(3, Mode::Native),
                tc
            ]),
            BTreeSet::from([1])
        );
        assert_eq!(
            of(&[on(1, Mode::Generic), on(3, Mode::Generic), tc]),
            BTreeSet::from([1, 3])
        );
    }

    /// What stays keeps its slot, whatever comes and goes.
    #[test]
    fn pooled_addresses_stay_in_their_slots() {
        let addr = |last| Ipv4Addr::new(100, 64, 0, last);
        let mut held = Config::empty(250);
        let mut follow = |first: Option<u8>, pool: &[u8]| {
            let config = PlaneConfig {
                external_addr: first.map(addr),
                pool: pool.iter().map(|last| addr(*last)).collect(),
                ..PlaneConfig::default()
            };
            held.pool = pool_slots(&held, &config);
            held.pool.map(|slot| slot[3])
        };
        assert_eq!(follow(Some(2), &[5, 4, 3]), [3, 4, 5, 0, 0, 0, 0]);
        assert_eq!(follow(Some(2), &[5, 3]), [3, 0, 5, 0, 0, 0, 0]);
        assert_eq!(follow(Some(2), &[6, 5, 7, 3]), [3, 6, 5, 7, 0, 0, 0]);
        let nine: Vec<u8> = (3..12).collect();
        assert_eq!(
            follow(Some(2), &nine),
            [3, 6, 5, 7, 4, 8, 9],
            "seven at most"
        );
        assert_eq!(follow(None, &nine), [0; 7], "nothing without a first one");
    }

    #[test]
    fn the_routers_ports_are_taken_at_every_address() {
        let config = PlaneConfig {
            external_addr: Some(Ipv4Addr::new(100, 64, 0, 2)),
            pool: vec![Ipv4Addr::new(100, 64, 0, 3)],
            host_ports: vec![(Protocol::Tcp, 22)],
            own_ports: BTreeSet::from([(Protocol::Tcp, 22), (Protocol::Udp, 53)]),
            ..PlaneConfig::default()
        };
        let all = services(&config);
        assert_eq!(all.len(), 4);
        for last in [2, 3] {
            let ssh = EndpointKey::new([100, 64, 0, last], [0, 22], 6);
            let dns = EndpointKey::new([100, 64, 0, last], [0, 53], 17);
            assert_eq!(all[&ssh], Filter::EndpointIndependent);
            assert_eq!(all[&dns], Filter::AddressAndPortDependent);
        }
    }

    #[test]
    fn host_bits_of_a_prefix_do_not_count_and_the_surplus_is_left_out() {
        let many: Vec<_> = (0..10).map(|n| (Ipv4Addr::new(10, n, 0, 1), 16)).collect();
        let (slots, used) = lan_prefixes(&many);
        assert_eq!(usize::try_from(used), Ok(limits::LAN_PREFIXES));
        assert_eq!(slots[7].addr, [10, 7, 0, 0]);
        assert!(slots[7].contains([10, 7, 200, 1]));
        let (slots, used) = lan_prefixes(&[]);
        assert_eq!((used, slots[0]), (0, NO_PREFIX));
    }
}
