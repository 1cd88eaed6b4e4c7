//! Frames that must not be corrupted, and segment sizes that are lowered.

use anyhow::Result;
use iwf_common::names;
use iwf_tests::packet::{ETHERNET, Frame};
use iwf_tests::prog::Delta;

use crate::bed::{
    ACK, Bed, DROP, HOST, PASS, REDIRECT, REMOTE, SYN, TC_NEXT, TC_REDIRECT, TCP, WAN, lan_frame,
    translated_out, wan_frame, with_bed,
};

/// A segment with TCP options, checksum right.
fn segment(frame: &Frame, options: &[u8]) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    // The payload of a segment without options, so that the builder sums it up; then the header is made longer.
    let mut with = frame.clone();
    with.payload = [options, &frame.payload].concat();
    let mut bytes = with.bytes();
    let l4 = ETHERNET + 20;
    bytes[l4 + 12] = (((20 + options.len()) / 4) << 4) as u8;
    let (old, new) = (
        0x5000 | u16::from(bytes[l4 + 13]),
        u16::from_be_bytes([bytes[l4 + 12], bytes[l4 + 13]]),
    );
    let field = u16::from_be_bytes([bytes[l4 + 16], bytes[l4 + 17]]);
    let mut total = u32::from(!field) + u32::from(!old) + u32::from(new);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    bytes[l4 + 16..l4 + 18].copy_from_slice(&(!(total as u16)).to_be_bytes());
    bytes
}

/// The options of a segment whose checksums are right.
#[track_caller]
fn options(bytes: &[u8]) -> Vec<u8> {
    Frame::parse(bytes).expect("a good frame");
    let l4 = ETHERNET + 20;
    let len = usize::from(bytes[l4 + 12] >> 4) * 4;
    bytes[l4 + 20..l4 + len].to_vec()
}

fn clamping(bed: &mut Bed) -> Result<()> {
    bed.reconfigure(|config| config.mss = 1400)?;
    bed.map(TCP, (HOST, 80), 80, 0)
}

/// RFC 9293 section 3.7.1: in both directions, in every SYN, wherever the option is.
#[test]
fn segment_sizes_are_lowered() -> Result<()> {
    let cases: [(&[u8], &[u8]); 6] = [
        (&[2, 4, 5, 180], &[2, 4, 5, 120]),
        (&[1, 2, 4, 5, 180, 1, 1, 0], &[1, 2, 4, 5, 120, 1, 1, 0]),
        (
            &[3, 3, 7, 4, 2, 2, 4, 0xff, 0xff, 1, 1, 0],
            &[3, 3, 7, 4, 2, 2, 4, 5, 120, 1, 1, 0],
        ),
        // Small enough, not there, or no such option.
        (&[2, 4, 5, 120], &[2, 4, 5, 120]),
        (&[1, 1, 4, 2], &[1, 1, 4, 2]),
        (&[0, 2, 4, 255], &[0, 2, 4, 255]),
    ];
    with_bed(|bed| {
        clamping(bed)?;
        for (announced, wanted) in cases {
            let lowered = announced != wanted;
            let out = lan_frame(Frame::tcp((HOST, 5000), (REMOTE, 80), SYN));
            let seen = bed.raw(names::XDP_LAN, &segment(&out, announced), bed.lan)?;
            assert_eq!(seen.action, REDIRECT);
            assert_eq!(options(&seen.bytes), wanted);
            let counted = seen.delta.counters.contains_key("mss_clamped");
            assert_eq!(counted, lowered);
            let back = wan_frame(Frame::tcp((REMOTE, 80), (WAN, 5000), SYN | ACK));
            let seen = bed.raw(names::XDP_WAN, &segment(&back, announced), bed.wan)?;
            assert_eq!(seen.action, REDIRECT);
            assert_eq!(options(&seen.bytes), wanted);
            let other = Frame::tcp((REMOTE, 9999), (WAN, 80), SYN);
            let other = wan_frame(other);
            let seen = bed.tc_raw(names::TC_INGRESS, &segment(&other, announced), bed.wan)?;
            assert_eq!(
                (seen.action, options(&seen.bytes)),
                (TC_REDIRECT, wanted.to_vec())
            );
            let seen = bed.tc_raw(names::TC_EGRESS, &segment(&out, announced), bed.bridge)?;
            assert_eq!(
                (seen.action, options(&seen.bytes)),
                (TC_NEXT, wanted.to_vec())
            );
        }
        // Only SYNs have it, and 0 switches it off.
        let data = lan_frame(Frame::tcp((HOST, 5000), (REMOTE, 80), ACK));
        let seen = bed.raw(names::XDP_LAN, &segment(&data, cases[0].0), bed.lan)?;
        assert_eq!(options(&seen.bytes), cases[0].0);
        bed.reconfigure(|config| config.mss = 0)?;
        let syn = lan_frame(Frame::tcp((HOST, 5000), (REMOTE, 80), SYN));
        let seen = bed.raw(names::XDP_LAN, &segment(&syn, cases[0].0), bed.lan)?;
        assert_eq!(options(&seen.bytes), cases[0].0);
        Ok(())
    })
}

/// RFC 791: options are carried as they are; a source route would lead past the translation (RFC 7126).
#[test]
fn options_are_kept_and_source_routes_dropped() -> Result<()> {
    let frame = |options: &[u8]| {
        let mut frame = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        frame.options = options.to_vec();
        frame
    };
    with_bed(|bed| {
        bed.lan_in(&frame(&[]))?;
        // Record route, timestamp, router alert, padding, nothing but padding.
        for options in [
            &[1; 40][..],
            &[7, 7, 4, 0, 0, 0, 0, 0],
            &[68, 8, 5, 0, 0, 0, 0, 0],
            &[0x94, 4, 0, 0],
            &[1, 1, 1, 0],
            &[1, 1, 1, 1, 1, 1, 1, 1],
        ] {
            let seen = bed.lan_in(&frame(options))?;
            seen.is(REDIRECT, Delta::counted(&["forwarded_out"]));
            assert_eq!(seen.frame(), translated_out(&frame(options), 5000));
        }
        for (reason, options) in [
            ("drop_source_route", &[131, 7, 4, 11, 1, 1, 1, 0][..]),
            ("drop_source_route", &[1, 137, 7, 4, 11, 1, 1, 1]),
            ("drop_malformed", &[7, 9, 4, 0, 0, 0, 0, 0]),
            ("drop_malformed", &[7, 1, 4, 0]),
        ] {
            let bytes = frame(options).bytes();
            bed.raw(names::XDP_LAN, &bytes, bed.lan)?
                .is(DROP, Delta::counted(&[reason]));
        }
        Ok(())
    })
}

/// VLANs are other networks: the stack unwraps them.
#[test]
fn tagged_frames_stay_as_they_are() -> Result<()> {
    with_bed(|bed| {
        let plain = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))).bytes();
        for tags in [
            &[0x81, 0x00, 0x00, 0x07][..],
            &[0x88, 0xa8, 0x00, 0x07, 0x81, 0x00, 0x00, 0x08],
        ] {
            let mut tagged = plain[..12].to_vec();
            tagged.extend(tags);
            tagged.extend(&plain[12..]);
            for (name, ingress) in [(names::XDP_LAN, bed.lan), (names::XDP_WAN, bed.wan)] {
                let seen = bed.raw(name, &tagged, ingress)?;
                seen.is(PASS, Delta::counted(&["pass_not_ipv4"]));
                assert_eq!(seen.bytes, tagged);
            }
        }
        Ok(())
    })
}

/// A jumbo frame lies in several buffers; its headers are in the first.
#[test]
fn frames_of_several_buffers_are_translated() -> Result<()> {
    with_bed(|bed| {
        bed.ns.ip("link set wan0 mtu 9000")?;
        bed.ns
            .ip("link set br0 mtu 9000")
            .or_else(|_| bed.ns.ip("link set lan0 mtu 9000"))?;
        let mut frame = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        frame.payload = (0..8000u16).map(|n| (n % 251) as u8).collect();
        let seen = bed.lan_in(&frame)?;
        assert_eq!(seen.action, REDIRECT);
        assert_eq!(seen.frame(), translated_out(&frame, 5000));
        Ok(())
    })
}
