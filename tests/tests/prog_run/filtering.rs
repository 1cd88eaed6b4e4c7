//! Whom a mapping lets in that its host has sent by (RFC 4787 section 5, RFC 5382 section 5).

use anyhow::Result;
use iwf_common::flow::SessionFlags;
use iwf_common::names;
use iwf_common::nat::{Filter, MappingValue};
use iwf_tests::packet::Frame;
use iwf_tests::prog::Delta;

use crate::bed::{
    Bed, DROP, HOST, HOST2, HZ, PASS, REDIRECT, REMOTE, REMOTE2, SYN, TCP, UDP, WAN, endpoint,
    explicit, lan_frame, translated_in, wan_frame, with_bed, with_both, with_sized_bed,
};

const OPENED: [&str; 3] = ["forwarded_in", "next_hops_refreshed", "sessions_created"];

fn set(bed: &mut Bed, filter: Filter) -> Result<()> {
    bed.reconfigure(|config| config.filter = filter as u8)
}

fn from(remote: ([u8; 4], u16), port: u16) -> Frame {
    wan_frame(Frame::udp(remote, (WAN, port)))
}

#[track_caller]
fn comes_in(bed: &mut Bed, frame: &Frame, internal: ([u8; 4], u16)) -> Result<()> {
    let seen = bed.wan_in(frame)?;
    seen.is(REDIRECT, Delta::counted(&OPENED).sessions(2));
    assert_eq!(seen.frame(), translated_in(frame, internal));
    Ok(())
}

#[track_caller]
fn stays_out(bed: &mut Bed, frame: &Frame) -> Result<()> {
    bed.wan_in(frame)?
        .is_untouched(DROP, Delta::counted(&["drop_unsolicited"]), frame);
    Ok(())
}

fn age(bed: &mut Bed) -> Result<()> {
    bed.sweep()?;
    Ok(())
}

/// RFC 4787 REQ-8, the choice between its two.
#[test]
fn every_port_of_an_address_that_was_sent_to_may_come_in() -> Result<()> {
    with_both(|bed| {
        set(bed, Filter::AddressDependent)?;
        let out = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        let made = ["forwarded_out", "mappings_created", "sessions_created"];
        let made = Delta::counted(&made).sessions(2).mappings(1).peers(1);
        bed.lan_in(&out)?.is(REDIRECT, made);
        // A hit notes nothing.
        bed.lan_in(&out)?
            .is(REDIRECT, Delta::counted(&["forwarded_out"]));
        comes_in(bed, &from((REMOTE, 54), 5000), (HOST, 5000))?;
        stays_out(bed, &from((REMOTE2, 53), 5000))?;
        // By another port of the host's nobody comes in, and by another protocol neither.
        stays_out(bed, &from((REMOTE, 54), 5001))?;
        let syn = wan_frame(Frame::tcp((REMOTE, 53), (WAN, 5000), SYN));
        stays_out(bed, &syn)
    })
}

#[test]
fn a_connection_lets_other_ports_of_its_peer_connect() -> Result<()> {
    with_both(|bed| {
        set(bed, Filter::AddressDependent)?;
        bed.lan_in(&lan_frame(Frame::tcp((HOST, 5000), (REMOTE, 21), SYN)))?;
        let syn = wan_frame(Frame::tcp((REMOTE, 20), (WAN, 5000), SYN));
        comes_in(bed, &syn, (HOST, 5000))?;
        stays_out(bed, &wan_frame(Frame::tcp((REMOTE2, 20), (WAN, 5000), SYN)))
    })
}

/// What the configuration says holds for mappings that were made before it said so.
#[test]
fn another_filtering_holds_at_once() -> Result<()> {
    with_both(|bed| {
        bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))))?;
        stays_out(bed, &from((REMOTE2, 1), 5000))?;
        set(bed, Filter::EndpointIndependent)?;
        comes_in(bed, &from((REMOTE2, 1), 5000), (HOST, 5000))?;
        set(bed, Filter::AddressAndPortDependent)?;
        stays_out(bed, &from((REMOTE2, 2), 5000))?;
        // Who was sent to before that was of any interest is known after one pass of the sweep. The stranger was let
        // in, but the host has not sent to it.
        set(bed, Filter::AddressDependent)?;
        stays_out(bed, &from((REMOTE, 54), 5000))?;
        age(bed)?;
        comes_in(bed, &from((REMOTE, 54), 5000), (HOST, 5000))?;
        stays_out(bed, &from((REMOTE2, 3), 5000))
    })
}

/// The CPE's own sockets are open to nobody, whatever is configured for the LAN.
#[test]
fn the_routers_own_flows_are_not_meant() -> Result<()> {
    with_bed(|bed| {
        set(bed, Filter::AddressDependent)?;
        let own = Frame::udp((WAN, 3000), (REMOTE, 53));
        bed.egress(&own, false)?;
        assert!(bed.plane.state()?.peers.is_empty());
        stays_out(bed, &from((REMOTE, 54), 3000))
    })
}

#[test]
fn an_address_is_forgotten_with_its_last_session() -> Result<()> {
    with_bed(|bed| {
        set(bed, Filter::AddressDependent)?;
        let out = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        // Before, as that takes the verifier's time.
        bed.plane.ready(names::RUN_SWEEP)?;
        bed.lan_in(&out)?;
        bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE2, 53))))?;
        // One of the two goes on, and only a sweep knows it.
        bed.let_pass(299 * HZ)?;
        bed.lan_in(&out)?;
        age(bed)?;
        bed.let_pass(2 * HZ)?;
        age(bed)?;
        let state = bed.plane.state()?;
        let known: Vec<_> = state.peers.keys().map(|peer| peer.remote).collect();
        assert_eq!(known, [REMOTE]);
        comes_in(bed, &from((REMOTE, 54), 5000), (HOST, 5000))?;
        stays_out(bed, &from((REMOTE2, 54), 5000))
    })
}

/// Also while no sweep comes by.
#[test]
fn an_address_that_was_sent_to_long_ago_may_not_come_in() -> Result<()> {
    with_both(|bed| {
        set(bed, Filter::AddressDependent)?;
        let out = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        bed.lan_in(&out)?;
        bed.let_pass(301 * HZ)?;
        // The host sends to somebody else: the mapping is in use.
        bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE2, 53))))?;
        stays_out(bed, &from((REMOTE, 54), 5000))
    })
}

/// The external endpoint becomes another host's: what its last owner has sent opens nothing.
/// Of several flows to one address the last one counts, in whatever order the sweep reads them.
#[test]
fn an_address_is_as_fresh_as_its_freshest_flow() -> Result<()> {
    with_bed(|bed| {
        set(bed, Filter::AddressDependent)?;
        for to in [53, 54] {
            for port in 5000..5016 {
                bed.lan_in(&lan_frame(Frame::udp((HOST, port), (REMOTE, to))))?;
            }
            age(bed)?;
            bed.let_pass(200 * HZ)?;
        }
        for port in 5000..5016 {
            comes_in(bed, &from((REMOTE, 55), port), (HOST, port))?;
        }
        Ok(())
    })
}

#[test]
fn a_new_owner_of_a_port_is_not_open_to_the_old_ones_peers() -> Result<()> {
    with_both(|bed| {
        set(bed, Filter::AddressDependent)?;
        bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))))?;
        let external = endpoint((WAN, 5000), UDP);
        bed.plane.remove_mapping(names::MAPPINGS_EXT, external)?;
        bed.plane
            .remove_mapping(names::MAPPINGS_INT, endpoint((HOST, 5000), UDP))?;
        bed.lan_in(&lan_frame(Frame::udp((HOST2, 5000), (REMOTE2, 53))))?;
        stays_out(bed, &from((REMOTE, 54), 5000))?;
        age(bed)?;
        assert_eq!(bed.plane.state()?.peers.len(), 1);
        let made = Delta::counted(&["pass_unresolved", "sessions_created"]);
        bed.wan_in(&from((REMOTE2, 54), 5000))?
            .is(PASS, made.sessions(2));
        Ok(())
    })
}

/// A mapping that was asked for may have a filter of its own.
#[test]
fn a_mapping_goes_by_its_own_filter() -> Result<()> {
    with_both(|bed| {
        let value = MappingValue {
            filter: Filter::AddressDependent as u8,
            ..explicit((HOST, 5000), 0)
        };
        bed.map_with(TCP, 40000, value)?;
        let syn = |remote| wan_frame(Frame::tcp(remote, (WAN, 40000), SYN));
        stays_out(bed, &syn((REMOTE, 80)))?;
        let out = lan_frame(Frame::tcp((HOST, 5000), (REMOTE, 443), SYN));
        let made = Delta::counted(&["forwarded_out", "sessions_created"]);
        bed.lan_in(&out)?.is(REDIRECT, made.sessions(2).peers(1));
        comes_in(bed, &syn((REMOTE, 80)), (HOST, 5000))?;
        stays_out(bed, &syn((REMOTE2, 80)))?;
        // The configuration speaks of dynamic ones only.
        set(bed, Filter::EndpointIndependent)?;
        stays_out(bed, &syn((REMOTE2, 80)))
    })
}

/// Sessions that it would not let in any more end when its filter becomes narrower; what the host began goes on.
#[test]
fn a_narrower_filter_of_a_mapping_ends_what_it_would_not_let_in() -> Result<()> {
    for (filter, left) in [
        (Filter::AddressDependent, vec![REMOTE, REMOTE]),
        (Filter::AddressAndPortDependent, vec![REMOTE]),
    ] {
        with_bed(|bed| {
            let narrow = |filter: Filter| MappingValue {
                filter: filter as u8,
                ..explicit((HOST, 5000), 0)
            };
            bed.map_with(UDP, 40000, narrow(Filter::AddressDependent))?;
            bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))))?;
            bed.map_with(UDP, 40000, narrow(Filter::EndpointIndependent))?;
            for remote in [(REMOTE, 54), (REMOTE2, 55)] {
                comes_in(bed, &from(remote, 40000), (HOST, 5000))?;
            }
            bed.map_with(UDP, 40000, narrow(filter))?;
            bed.settle(&[endpoint((WAN, 40000), UDP)])?;
            let sessions = bed.plane.state()?.sessions;
            let goes_on = sessions.iter().filter(|(_, value)| {
                value.flags & (SessionFlags::INBOUND | SessionFlags::ENDED) == 0
            });
            let goes_on: Vec<_> = goes_on.map(|(key, _)| key.dst).collect();
            assert_eq!(goes_on, left, "{filter:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A hairpinned flow is one to the external address: all of the LAN is behind it.
#[test]
fn hosts_that_meet_at_the_external_address_have_sent_to_it() -> Result<()> {
    with_bed(|bed| {
        set(bed, Filter::AddressDependent)?;
        bed.map(UDP, (HOST2, 6000), 40000, 0)?;
        bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (WAN, 40000))))?;
        let peers = bed.plane.state()?.peers;
        let known: Vec<_> = peers
            .keys()
            .map(|peer| (peer.external, peer.remote))
            .collect();
        assert_eq!(known, [(endpoint((WAN, 5000), UDP), WAN)]);
        Ok(())
    })
}

/// Full, the table costs a flow nothing but that.
#[test]
fn a_full_table_refuses_no_flow() -> Result<()> {
    with_sized_bed(4096, 64, |bed| {
        set(bed, Filter::AddressDependent)?;
        for last in 0..64 {
            let to = ([11, 22, 44, last], 53);
            bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), to)))?;
        }
        assert_eq!(bed.plane.state()?.peers.len(), 64);
        let made = Delta::counted(&["forwarded_out", "sessions_created", "peers_lost"]);
        bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))))?
            .is(REDIRECT, made.sessions(2));
        stays_out(bed, &from((REMOTE, 54), 5000))?;
        let answer = from((REMOTE, 53), 5000);
        let answered = ["forwarded_in", "next_hops_refreshed"];
        bed.wan_in(&answer)?
            .is(REDIRECT, Delta::counted(&answered).sessions_changed(1));
        Ok(())
    })
}
