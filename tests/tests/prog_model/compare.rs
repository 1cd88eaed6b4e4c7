//! Whether the tables are what the model says.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::fragment::{FragmentFlags, FragmentKey, FragmentValue};
use iwf_common::host::HostValue;
use iwf_common::nat::{EndpointKey, MappingKind, MappingValue};
use iwf_common::tcp::{Phase, phase};

use super::drive::{Driver, HZ, UNDISTURBED};
use super::fragment::{Datagram, Note};
use super::nat::{Bound, Endpoint, Half, Key, Mapping, TCP, Time, Way};
use super::tcp;
use super::tend::filter_facts;
use crate::bed::endpoint;

impl Driver<'_> {
    /// The sums are those of the hosts, and each host's are what it has in the tables.
    fn compare_totals(&self) -> Result<()> {
        let hosts = self.bed.plane.hosts()?;
        let sum = |held: fn(&HostValue) -> u64| hosts.values().map(held).sum::<u64>();
        let totals = self.bed.plane.totals()?;
        let sums = (sum(|host| host.sessions), sum(|host| host.mappings));
        ensure!(
            (totals.sessions, totals.mappings) == sums,
            "{totals:?}, and the hosts have {sums:?}"
        );
        Ok(())
    }

    pub(crate) fn compare(&self) -> Result<()> {
        let elapsed = i64::from(UNDISTURBED);
        // The same moment, or up to so many ticks of the kernel later.
        let since = |stamp: u32, model: Time| {
            let seen = stamp
                .wrapping_sub(self.began)
                .wrapping_add(self.nat.now as u32);
            i64::from(seen.wrapping_sub(model as u32) as i32)
        };
        let same = |what: &str, seen: String, wanted: String| {
            ensure!(seen == wanted, "{what}\n  seen {seen}\nwanted {wanted}");
            Ok(())
        };
        self.compare_totals()?;
        let inner = self.state.internal.iter();
        let inner: BTreeMap<Bound, Endpoint> = inner
            .map(|(key, value)| (bound_of(key), value_endpoint(value)))
            .collect();
        same(
            "MAPPINGS_INT",
            show(inner.iter()),
            show(self.nat.by_internal.iter()),
        )?;
        let outer: BTreeSet<Bound> = self.state.external.keys().map(bound_of).collect();
        same(
            "MAPPINGS_EXT",
            show(outer.iter()),
            show(self.nat.by_external.keys()),
        )?;
        for (key, value) in &self.state.external {
            let model = &self.nat.by_external[&bound_of(key)];
            same(&format!("{key:?}"), facts_of(value), model_facts(model))?;
            // The sweep leaves less than a second to the next time.
            if let Some(expires) = model.explicit.and_then(|terms| terms.expires) {
                let late = since(value.expires, expires);
                ensure!(
                    (0..=elapsed).contains(&late),
                    "{key:?}: ends {late} ticks after {expires}"
                );
            }
            let late = since(value.last_used, model.last_used);
            let lag = -i64::from(HZ);
            ensure!(
                model.explicit.is_some() || (lag..=elapsed).contains(&late),
                "{key:?}: used {late} ticks after {}",
                model.last_used
            );
        }
        let peers = self.state.peers.keys();
        let peers: BTreeSet<(Bound, [u8; 4])> = peers
            .map(|key| (bound_of(&key.external), key.remote))
            .collect();
        same("PEERS", show(peers.iter()), show(self.nat.peers.keys()))?;
        self.compare_fragments()?;
        let keys: BTreeSet<Key> = self.state.sessions.keys().map(session_key).collect();
        same("SESSIONS", show(keys.iter()), show(self.nat.halves.keys()))?;
        let generation = self.bed.config.next_hop_generation;
        for (key, value) in &self.state.sessions {
            let model = &self.nat.halves[&session_key(key)];
            let wanted = model_session(model);
            same(
                &format!("{key:?}"),
                session_facts(value, generation),
                wanted,
            )?;
            let late = since(value.last_seen, model.last);
            let lag = if model.ended { -i64::from(HZ) } else { 0 };
            ensure!(
                (lag..=elapsed).contains(&late),
                "{key:?}: last seen {late} ticks after {}",
                model.last
            );
            self.compare_tcp(key, value, model)?;
        }
        Ok(())
    }

    fn compare_fragments(&self) -> Result<()> {
        let claim = |value: &FragmentValue| value.flags & FragmentFlags::CLAIM != 0;
        let all = self.state.fragments.iter();
        let mut seen: Vec<_> = all
            .clone()
            .filter(|(_, value)| !claim(value))
            .map(|(key, value)| format!("{:?} {}", datagram(key), note_facts(value)))
            .collect();
        let claims = all.filter(|(_, value)| claim(value));
        seen.extend(claims.map(|(key, _)| format!("{:?} claimed", datagram(key))));
        let notes = self.nat.fragments.iter();
        let mut wanted: Vec<_> = notes
            .map(|(key, note)| format!("{key:?} {}", model_note(note)))
            .collect();
        let claims = self.nat.claimed.keys();
        wanted.extend(claims.map(|key| format!("{key:?} claimed")));
        seen.sort_unstable();
        wanted.sort_unstable();
        ensure!(
            seen == wanted,
            "FRAGMENTS\n  seen {seen:#?}\nwanted {wanted:#?}"
        );
        Ok(())
    }

    fn compare_tcp(&self, key: &SessionKey, value: &SessionValue, model: &Half) -> Result<()> {
        let reverse = value.reverse_key(key.proto);
        let (Some(other), Some(other_half)) = (
            self.state.sessions.get(&reverse),
            self.nat.halves.get(&session_key(&reverse)),
        ) else {
            return Ok(());
        };
        if key.proto != TCP || model.ended || other_half.ended {
            return Ok(());
        }
        let seen = phase(value.shown(), other.shown()) == Phase::Established;
        let wanted = tcp::is_open(&model.shown, &other_half.shown);
        ensure!(
            seen == wanted,
            "{key:?}: open {seen} by {:#x} and {:#x}, and it should be {wanted} by {:?} and {:?}",
            value.tcp,
            other.tcp,
            model.shown,
            other_half.shown
        );
        Ok(())
    }
}

fn show<T: std::fmt::Debug>(all: impl Iterator<Item = T>) -> String {
    let lines: Vec<_> = all.map(|one| format!("{one:?}")).collect();
    lines.join("\n       ")
}

pub(crate) fn key_of((proto, at): Bound) -> EndpointKey {
    endpoint((at.addr, at.port), proto)
}

pub(crate) fn bound_of(key: &EndpointKey) -> Bound {
    (key.proto, at(key.addr, key.port))
}

pub(crate) fn at(addr: [u8; 4], port: [u8; 2]) -> Endpoint {
    Endpoint {
        addr,
        port: u16::from_be_bytes(port),
    }
}

fn value_endpoint(value: &MappingValue) -> Endpoint {
    at(value.addr, value.port)
}

fn session_key(key: &SessionKey) -> Key {
    Key {
        proto: key.proto,
        src: at(key.src, key.src_port),
        dst: at(key.dst, key.dst_port),
    }
}

/// What must be the same of a mapping, but for times.
fn facts_of(value: &MappingValue) -> String {
    let explicit = (value.kind == MappingKind::Explicit as u8).then_some((
        value.filter,
        (value.remote_mask != [0; 4]).then_some((value.remote_addr, value.remote_mask)),
        value.flags,
        value.expires != 0,
    ));
    let counted = [
        (value.packets_out, value.octets_out),
        (value.packets_in, value.octets_in),
    ];
    let own = value.kind == MappingKind::Host as u8;
    format!("{:?}", (value_endpoint(value), own, explicit, counted))
}

fn model_facts(mapping: &Mapping) -> String {
    let explicit = mapping.explicit.map(|terms| {
        let (filter, host, flags) = filter_facts(terms.remotes);
        let host = host.map(|host| (host, [255; 4]));
        (filter as u8, host, flags, terms.expires.is_some())
    });
    format!(
        "{:?}",
        (mapping.internal, mapping.own, explicit, mapping.counted)
    )
}

/// The same of one direction of a session.
fn session_facts(value: &SessionValue, generation: u32) -> String {
    let has = |flag: u8| value.flags & flag != 0;
    let way = match (has(SessionFlags::INBOUND), has(SessionFlags::HAIRPIN)) {
        (true, _) => Way::In,
        (false, true) => Way::Turned,
        (false, false) => Way::Out,
    };
    let becomes = (at(value.src, value.src_port), at(value.dst, value.dst_port));
    let [own, ended, invited, explicit] = [
        SessionFlags::HOST,
        SessionFlags::ENDED,
        SessionFlags::INVITED,
        SessionFlags::EXPLICIT,
    ]
    .map(has);
    let resolved = value.next_hop_generation == generation;
    let counted = (value.packets, value.octets());
    format!(
        "{way:?} {becomes:?} own {own} ended {ended} invited {invited} explicit {explicit} resolved {resolved} {counted:?}"
    )
}

fn model_session(half: &Half) -> String {
    let Half {
        way,
        becomes,
        own,
        ended,
        invited,
        explicit,
        resolved,
        ..
    } = half;
    let counted = (half.packets, half.octets);
    format!(
        "{way:?} {becomes:?} own {own} ended {ended} invited {invited} explicit {explicit} resolved {resolved} {counted:?}"
    )
}

fn datagram(key: &FragmentKey) -> Datagram {
    Datagram {
        proto: key.proto,
        src: key.src,
        dst: key.dst,
        id: u16::from_be_bytes(key.id),
    }
}

fn note_facts(value: &FragmentValue) -> String {
    let has = |flag: u16| value.flags & flag != 0;
    let becomes = (!has(FragmentFlags::AS_IS)).then(|| {
        let stack = has(FragmentFlags::STACK);
        let id = u16::from_be_bytes(value.id);
        (value.src, value.dst, id, stack, has(FragmentFlags::HAIRPIN))
    });
    format!("{:?}", (has(FragmentFlags::INBOUND), becomes))
}

fn model_note(note: &Note) -> String {
    let becomes = note
        .becomes
        .map(|b| (b.src, b.dst, b.id, b.stack, b.turned));
    format!("{:?}", (note.inbound, becomes))
}
