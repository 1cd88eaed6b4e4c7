//! tc on WAN egress: what the stack forwards, and what the CPE sends itself.

use anyhow::Result;
use iwf_common::names;
use iwf_common::nat::{Filter, MappingFlags, MappingKind, MappingValue};
use iwf_tests::packet::{Frame, Transport};
use iwf_tests::prog::Delta;

use crate::bed::{
    ACK, DROP, HOST, PASS, REMOTE, RST, SYN, TC_DROP, TC_NEXT, Through, UDP, WAN, endpoint,
    explicit, lan_frame, wan_frame, with_bed,
};

fn opened(reason: &'static str) -> Delta {
    Delta::counted(&[reason, "mappings_created", "sessions_created"])
        .sessions(2)
        .mappings(1)
}

/// Translated; TTL and MAC addresses are the stack's business.
fn from_port(frame: &Frame, port: u16) -> Frame {
    let mut out = frame.clone();
    out.src = WAN;
    out.set_src_port(port);
    out
}

#[test]
fn what_the_stack_forwards_is_translated() -> Result<()> {
    let mut unchecked = Frame::udp((HOST, 5000), (REMOTE, 53));
    unchecked.transport = Transport::Udp {
        ports: (5000, 53),
        checksum: false,
    };
    let mut with_options = Frame::tcp((HOST, 5000), (REMOTE, 80), SYN);
    with_options.options = vec![1, 1, 1, 0];
    for frame in [
        Frame::udp((HOST, 5000), (REMOTE, 53)),
        unchecked,
        Frame::tcp((HOST, 5000), (REMOTE, 80), SYN),
        with_options,
        Frame::icmp(HOST, REMOTE, 8, 5000),
    ] {
        with_bed(|bed| {
            let seen = bed.egress(&frame, true)?;
            seen.is(TC_NEXT, opened("translated_egress"));
            assert_eq!(seen.frame(), from_port(&frame, 5000));
            let seen = bed.egress(&frame, true)?;
            seen.is(TC_NEXT, Delta::counted(&["translated_egress"]));
            assert_eq!(seen.frame(), from_port(&frame, 5000));
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_port_of_another_is_replaced_here_too() -> Result<()> {
    with_bed(|bed| {
        bed.map(UDP, ([192, 168, 1, 99], 1), 5000, 0)?;
        let frame = Frame::udp((HOST, 5000), (REMOTE, 53));
        let seen = bed.egress(&frame, true)?;
        let got = seen.frame().src_port().expect("UDP has ports");
        assert!(got >= 1024 && got != 5000);
        assert_eq!(seen.frame(), from_port(&frame, got));
        Ok(())
    })
}

/// Architecture decision 5: an untranslated private source never leaves the WAN.
#[test]
fn nothing_private_leaves_untranslated() -> Result<()> {
    let other = |number| {
        let mut frame = Frame::udp((HOST, 5000), (REMOTE, 53));
        frame.transport = Transport::Other(number);
        frame
    };
    let cases = [
        ("drop_private_source", other(47), true),
        ("drop_private_source", other(47), false),
        ("drop_private_source", Frame::icmp(HOST, REMOTE, 3, 1), true),
        ("drop_private_source", Frame::icmp(HOST, REMOTE, 0, 1), true),
        (
            "drop_private_source",
            Frame::udp((HOST, 1), ([224, 0, 0, 9], 1)),
            true,
        ),
        (
            "drop_private_source",
            Frame::udp(([10, 0, 0, 1], 1), (REMOTE, 1)),
            true,
        ),
        (
            "drop_private_source",
            Frame::udp(([172, 31, 0, 1], 1), (REMOTE, 1)),
            true,
        ),
        (
            "drop_private_source",
            Frame::udp(([100, 127, 0, 1], 1), (REMOTE, 1)),
            true,
        ),
        (
            "drop_private_source",
            Frame::udp(([169, 254, 0, 1], 1), (REMOTE, 1)),
            true,
        ),
        (
            "drop_tcp_stray",
            Frame::tcp((HOST, 1), (REMOTE, 1), ACK),
            true,
        ),
    ];
    with_bed(|bed| {
        for (reason, frame, forwarded) in cases {
            bed.egress(&frame, forwarded)?
                .is_untouched(TC_DROP, Delta::counted(&[reason]), &frame);
        }
        bed.reconfigure(|config| config.external_addr = [0; 4])?;
        for frame in [
            Frame::udp((HOST, 5000), (REMOTE, 53)),
            Frame::tcp((HOST, 5000), (REMOTE, 53), SYN),
        ] {
            bed.egress(&frame, true)?.is_untouched(
                TC_DROP,
                Delta::counted(&["drop_private_source"]),
                &frame,
            );
        }
        Ok(())
    })
}

#[test]
fn what_is_not_private_leaves_as_it_is() -> Result<()> {
    with_bed(|bed| {
        for (frame, forwarded) in [
            // Routed addresses of the LAN's own.
            (Frame::udp(([11, 99, 0, 1], 1), (REMOTE, 1)), true),
            // A DHCP client's first words, and a second address of the WAN.
            (Frame::udp(([0; 4], 68), ([255; 4], 67)), false),
            (Frame::udp(([10, 0, 0, 1], 1), (REMOTE, 1)), false),
        ] {
            bed.egress(&frame, forwarded)?.is_untouched(
                TC_NEXT,
                Delta::counted(&["egress_untouched"]),
                &frame,
            );
        }
        Ok(())
    })
}

/// An ICMP error of the stack about a packet that was translated for it would show the LAN outside.
#[test]
fn an_icmp_error_that_quotes_the_lan_is_dropped() -> Result<()> {
    with_bed(|bed| {
        let quoted = Frame::udp((REMOTE, 9999), (HOST, 5000)).bytes()[14..].to_vec();
        let mut error = Frame::icmp(WAN, REMOTE, 3, 0);
        error.payload = quoted;
        bed.egress(&error, false)?.is_untouched(
            TC_DROP,
            Delta::counted(&["drop_icmp_error_private"]),
            &error,
        );
        let about_us = Frame::udp((REMOTE, 9999), (WAN, 5000)).bytes()[14..].to_vec();
        error.payload = about_us;
        bed.egress(&error, false)?.is_untouched(
            TC_NEXT,
            Delta::counted(&["egress_untouched"]),
            &error,
        );
        Ok(())
    })
}

/// cilium 45492: the NAT must not take a port that the host itself uses.
#[test]
fn a_flow_of_the_cpe_gets_a_mapping_and_its_answer_reaches_the_stack() -> Result<()> {
    with_bed(|bed| {
        let frame = Frame::tcp((WAN, 5000), (REMOTE, 80), SYN);
        bed.egress(&frame, false)?
            .is_untouched(TC_NEXT, opened("host_out"), &frame);
        let reply = wan_frame(Frame::tcp((REMOTE, 80), (WAN, 5000), SYN | ACK));
        let seen = bed.wan_in(&reply)?;
        seen.is_untouched(
            PASS,
            Delta::counted(&["pass_host"]).sessions_changed(1),
            &reply,
        );
        // And a LAN host's same port becomes another one.
        let lan = lan_frame(Frame::tcp((HOST, 5000), (REMOTE, 80), SYN));
        assert_ne!(bed.lan_in(&lan)?.frame().src_port(), Some(5000));
        Ok(())
    })
}

/// A resolver's ephemeral port is not a service, whatever filter the LAN's mappings have.
#[test]
fn a_flow_of_the_cpe_lets_no_stranger_in() -> Result<()> {
    with_bed(|bed| {
        bed.reconfigure(|config| config.filter = Filter::EndpointIndependent as u8)?;
        bed.egress(&Frame::udp((WAN, 5000), (REMOTE, 53)), false)?;
        let stranger = wan_frame(Frame::udp((REMOTE, 54), (WAN, 5000)));
        bed.wan_in(&stranger)?
            .is_untouched(DROP, Delta::counted(&["drop_unsolicited"]), &stranger);
        Ok(())
    })
}

#[test]
fn a_flow_of_the_cpe_from_a_lan_hosts_port_is_translated() -> Result<()> {
    with_bed(|bed| {
        bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))))?;
        let frame = Frame::udp((WAN, 5000), (REMOTE, 53));
        let seen = bed.egress(&frame, false)?;
        seen.is(TC_NEXT, opened("host_out"));
        let got = seen.frame().src_port().expect("UDP has ports");
        assert_ne!(got, 5000);
        assert_eq!(seen.frame(), from_port(&frame, got));

        let reply = wan_frame(Frame::udp((REMOTE, 53), (WAN, got)));
        let seen = bed.wan_in(&reply)?;
        seen.is(PASS, Delta::counted(&["pass_host"]).sessions_changed(1));
        let mut expected = reply;
        expected.set_dst_port(5000);
        assert_eq!(seen.frame(), expected);
        Ok(())
    })
}

#[test]
fn what_begins_no_flow_of_the_cpe_leaves_no_trace() -> Result<()> {
    with_bed(|bed| {
        let service = MappingValue {
            kind: MappingKind::Host as u8,
            flags: MappingFlags::STATIC,
            ..explicit((WAN, 68), 0)
        };
        bed.map_with(UDP, 68, service)?;
        for frame in [
            Frame::udp((WAN, 68), (REMOTE, 67)),
            Frame::udp((WAN, 5350), ([224, 0, 0, 1], 5350)),
            Frame::icmp(WAN, REMOTE, 0, 7),
            Frame::tcp((WAN, 81), (REMOTE, 80), RST | ACK),
        ] {
            bed.egress(&frame, false)?
                .is_untouched(TC_NEXT, Delta::counted(&["host_out"]), &frame);
        }
        // Its RST must not end the connection of a LAN host on that port.
        bed.lan_in(&lan_frame(Frame::tcp((HOST, 81), (REMOTE, 80), SYN)))?;
        let got = bed
            .plane
            .state()?
            .external
            .keys()
            .find(|key| key.proto == 6)
            .copied();
        let port = u16::from_be_bytes(got.expect("a mapping").port);
        let reset = Frame::tcp((WAN, port), (REMOTE, 80), RST);
        bed.egress(&reset, false)?.is_untouched(
            TC_DROP,
            Delta::counted(&["drop_tcp_stray"]),
            &reset,
        );
        Ok(())
    })
}

/// A socket of the CPE holds its port without letting anybody in; its own flows are followed as ever.
#[test]
fn a_port_kept_for_a_socket_is_the_cpes_alone() -> Result<()> {
    with_bed(|bed| {
        let socket = MappingValue {
            kind: MappingKind::Host as u8,
            filter: Filter::AddressAndPortDependent as u8,
            flags: MappingFlags::STATIC,
            ..explicit((WAN, 123), 0)
        };
        let key = endpoint((WAN, 123), UDP);
        bed.plane.set_mapping(names::MAPPINGS_EXT, key, socket)?;

        let stranger = wan_frame(Frame::udp((REMOTE, 9), (WAN, 123)));
        bed.wan_in(&stranger)?
            .is_untouched(DROP, Delta::counted(&["drop_unsolicited"]), &stranger);
        let of_lan = bed.lan_in(&lan_frame(Frame::udp((HOST, 123), (REMOTE, 123))))?;
        assert_ne!(of_lan.frame().src_port(), Some(123));

        let question = Frame::udp((WAN, 123), (REMOTE, 123));
        let seen = bed.egress(&question, false)?;
        assert_eq!(seen.action, TC_NEXT);
        assert_eq!(seen.frame(), question);
        let answer = wan_frame(Frame::udp((REMOTE, 123), (WAN, 123)));
        let seen = bed.wan_in(&answer)?;
        seen.is(PASS, Delta::counted(&["pass_host"]).sessions_changed(1));
        assert_eq!(seen.frame(), answer);
        Ok(())
    })
}

/// What the program at LAN ingress has translated and sent here is not translated again.
#[test]
fn what_lan_ingress_has_translated_leaves_as_it_is() -> Result<()> {
    for frame in [
        Frame::udp((HOST, 5000), (REMOTE, 53)),
        Frame::tcp((HOST, 5000), (REMOTE, 80), SYN),
        Frame::icmp(HOST, REMOTE, 8, 5000),
    ] {
        with_bed(|bed| {
            bed.through = Through::Tc;
            let sent = bed.lan_in(&lan_frame(frame))?.frame();
            let (name, ingress) = (names::TC_EGRESS, bed.lan);
            bed.tc(name, &sent, ingress)?.is_untouched(
                TC_NEXT,
                Delta::counted(&["egress_untouched"]),
                &sent,
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// And what somebody else on this machine has translated is a flow of the CPE.
#[test]
fn what_others_have_translated_is_the_cpes() -> Result<()> {
    with_bed(|bed| {
        let frame = Frame::udp((WAN, 5000), (REMOTE, 53));
        bed.egress(&frame, true)?
            .is_untouched(TC_NEXT, opened("host_out"), &frame);
        Ok(())
    })
}
