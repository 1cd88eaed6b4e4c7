//! Who comes in without a session, and which addresses may cross the WAN (S6-01, S6-04, S6-05, S6-09).

use anyhow::Result;
use iwf_common::config::ConfigFlags;
use iwf_common::nat::Filter;
use iwf_tests::packet6::{Frame6, Upper};
use iwf_tests::prog::Delta;

use super::bed::{HOST, REMOTE, REMOTE2, ROUTER, gone_in, lan_frame, wan_frame, with_bed6};
use crate::bed::{DROP, HZ, PASS, REDIRECT, SYN};

const ADMITTED: [&str; 3] = ["sessions6_created", "next_hops_refreshed", "forwarded6_in"];

fn addr(text: &str) -> [u8; 16] {
    let addr: std::net::Ipv6Addr = text.parse().expect("an address");
    addr.octets()
}

#[test]
fn an_endpoint_that_has_sent_is_open_to_whom_the_configuration_says() -> Result<()> {
    let cases = [
        (Filter::EndpointIndependent, true, true),
        (Filter::AddressDependent, true, false),
        (Filter::AddressAndPortDependent, false, false),
    ];
    for (filter, other_port, other_host) in cases {
        with_bed6(|bed| {
            bed.reconfigure(|config| config.filter6 = filter as u8)?;
            let inside = (HOST, 5000);
            bed.lan_in(&Frame6::udp(inside, (REMOTE, 53)))?;
            for (from, admitted) in [
                ((REMOTE, 54), other_port),
                ((REMOTE2, 53), other_host),
                ((REMOTE2, 9), other_host),
            ] {
                let frame = Frame6::udp(from, inside);
                let seen = bed.wan_in(&frame)?;
                if admitted {
                    seen.is(REDIRECT, Delta::counted(&ADMITTED).sessions6(2));
                    assert_eq!(seen.bytes, gone_in(&frame));
                } else {
                    seen.is(DROP, Delta::counted(&["drop_unsolicited6"]));
                }
            }
            // Another endpoint of the host has not sent.
            bed.wan_in(&Frame6::udp((REMOTE, 53), (HOST, 5001)))?
                .is(DROP, Delta::counted(&["drop_unsolicited6"]));
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn an_endpoint_closes_when_it_has_been_silent() -> Result<()> {
    with_bed6(|bed| {
        let inside = (HOST, 5000);
        bed.lan_in(&Frame6::udp(inside, (REMOTE, 53)))?;
        bed.let_pass(301 * HZ)?;
        // No sweep has been by, and still it is over.
        bed.wan_in(&Frame6::udp((REMOTE2, 53), inside))?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        Ok(())
    })
}

#[test]
fn tcp_endpoints_are_open_only_if_configured() -> Result<()> {
    with_bed6(|bed| {
        let inside = (HOST, 5000);
        let stranger = Frame6::tcp((REMOTE2, 9), inside, SYN);
        bed.lan_in(&Frame6::tcp(inside, (REMOTE, 80), SYN))?;
        bed.wan_in(&stranger)?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        bed.reconfigure(|config| config.flags |= ConfigFlags::IPV6_OPEN_TCP)?;
        bed.lan_in(&Frame6::tcp(inside, (REMOTE, 81), SYN))?;
        bed.wan_in(&stranger)?
            .is(REDIRECT, Delta::counted(&ADMITTED).sessions6(2));
        bed.wan_in(&Frame6::tcp((REMOTE2, 10), inside, 0x10))?
            .is(DROP, Delta::counted(&["drop_tcp_stray"]));
        Ok(())
    })
}

#[test]
fn ipsec_its_key_exchange_and_hip_need_nobody_to_ask() -> Result<()> {
    with_bed6(|bed| {
        // AH in front of something that would not be let in.
        let mut authenticated = Frame6::udp((REMOTE, 1), (HOST, 2));
        authenticated = authenticated.with(51, &[1, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0]);
        for frame in [
            Frame6::new(REMOTE, HOST, Upper::Other(50)),
            Frame6::new(REMOTE, HOST, Upper::Other(139)),
            Frame6::udp((REMOTE, 500), (HOST, 500)),
            Frame6::udp((REMOTE, 1024), (HOST, 500)),
            authenticated,
        ] {
            let seen = bed.wan_in(&frame)?;
            seen.is(REDIRECT, Delta::counted(&ADMITTED).sessions6(2));
            assert_eq!(seen.bytes, gone_in(&frame));
        }
        Ok(())
    })
}

#[test]
fn without_the_filter_everything_passes_and_is_counted() -> Result<()> {
    with_bed6(|bed| {
        bed.reconfigure(|config| config.flags = 0)?;
        let routing0 = Frame6::udp((REMOTE, 1), (HOST, 2)).with(43, &[0, 0, 0, 0, 0, 0, 0]);
        for frame in [
            Frame6::udp((REMOTE, 1), (HOST, 2)),
            Frame6::tcp((REMOTE, 1), (HOST, 2), 0x10),
            Frame6::udp((addr("fd00::1"), 1), (HOST, 2)),
            routing0,
        ] {
            let seen = bed.wan_in(&frame)?;
            seen.is(PASS, Delta::counted(&["pass_ipv6_unfiltered"]));
            assert_eq!(seen.bytes, wan_frame(&frame).bytes());
        }
        bed.lan_in(&Frame6::tcp((HOST, 1), (REMOTE, 2), 0x10))?
            .is(PASS, Delta::counted(&["pass_ipv6_unfiltered"]));
        bed.egress(&Frame6::tcp((HOST, 1), (REMOTE, 2), 0x10), true)?
            .is(crate::bed::TC_NEXT, Delta::counted(&["egress_untouched"]));
        Ok(())
    })
}

#[test]
fn addresses_that_must_not_cross_the_wan_do_not() -> Result<()> {
    let forbidden = [
        "fd00::1",
        "fc00::1",
        "fec0::1",
        "2001:db8::1",
        "::ffff:11.22.33.44",
        "::11.22.33.44",
        "::1",
        "2001:10::1",
        "100::1",
        "3fff::1",
    ];
    with_bed6(|bed| {
        for text in forbidden {
            for frame in [
                Frame6::udp((addr(text), 1), (HOST, 2)),
                Frame6::udp((REMOTE, 1), (addr(text), 2)),
            ] {
                let seen = bed.wan_in(&frame)?;
                seen.is(DROP, Delta::counted(&["drop_forbidden6"]));
            }
            let out = Frame6::udp((addr(text), 1), (REMOTE, 2));
            bed.egress(&out, true)?
                .is(crate::bed::TC_DROP, Delta::counted(&["drop_forbidden6"]));
        }
        for text in ["fd00::1", "2001:db8::1"] {
            let out = Frame6::udp((addr(text), 1), (REMOTE, 2));
            bed.lan_in(&out)?
                .is(DROP, Delta::counted(&["drop_forbidden6"]));
        }
        Ok(())
    })
}

#[test]
fn a_source_must_be_on_its_side() -> Result<()> {
    with_bed6(|bed| {
        bed.wan_in(&Frame6::udp((HOST, 1), (ROUTER, 2)))?
            .is(DROP, Delta::counted(&["drop_spoofed"]));
        bed.wan_in(&Frame6::udp((addr("ff0e::1"), 1), (HOST, 2)))?
            .is(DROP, Delta::counted(&["drop_forbidden6"]));
        let foreign = Frame6::udp((REMOTE2, 1), (REMOTE, 2));
        bed.lan_in(&foreign)?
            .is(DROP, Delta::counted(&["drop_spoofed_lan"]));
        bed.lan_in(&Frame6::udp((addr("ff0e::1"), 1), (REMOTE, 2)))?
            .is(DROP, Delta::counted(&["drop_forbidden6"]));
        Ok(())
    })
}

#[test]
fn what_is_of_the_link_or_not_for_the_wan_is_the_stacks() -> Result<()> {
    with_bed6(|bed| {
        let all_nodes = addr("ff02::1");
        let solicitation = Frame6::new(HOST, ROUTER, Upper::Icmp(135, 0, [0; 4]));
        for (frame, reason) in [
            (Frame6::udp((HOST, 1), (all_nodes, 5353)), "pass_ipv6_local"),
            (
                Frame6::udp((addr("fe80::2"), 1), (addr("fe80::1"), 2)),
                "pass_ipv6_local",
            ),
            (
                Frame6::udp((addr("::"), 1), (all_nodes, 2)),
                "pass_ipv6_local",
            ),
            (Frame6::udp((HOST, 1), (ROUTER, 53)), "pass_not_to_wan"),
            (
                Frame6::udp((HOST, 1), (addr("2a0e:5::9"), 53)),
                "pass_not_to_wan",
            ),
            (solicitation, "pass_ipv6_stack"),
        ] {
            let seen = bed.lan_in(&frame)?;
            seen.is(PASS, Delta::counted(&[reason]));
            assert_eq!(seen.bytes, lan_frame(&frame).bytes());
        }
        let advertisement = Frame6::new(addr("fe80::1"), all_nodes, Upper::Icmp(134, 0, [0; 4]));
        bed.wan_in(&advertisement)?
            .is(PASS, Delta::counted(&["pass_ipv6_local"]));
        // A network that is not the LAN's is not guarded.
        let vpn = Frame6::udp((REMOTE, 1), (addr("2a0e:5::9"), 53));
        bed.wan_in(&vpn)?
            .is(PASS, Delta::counted(&["pass_not_external_addr"]));
        Ok(())
    })
}
