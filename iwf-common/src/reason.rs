//! Every fate of a packet has a name and a counter.
//!
//! One list for both sides: the programs count by slot, the daemon prints by name. New reasons go to the end
//! of their group, so that pinned counters keep their meaning.
#![forbid(unsafe_code)]

macro_rules! counters {
    ($(#[$meta:meta])* $name:ident from $base:literal { $( $(#[$vmeta:meta])* $variant:ident = $text:literal, )+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum $name {
            $( $(#[$vmeta])* $variant, )+
        }

        impl $name {
            /// Every member, in the order of the slots.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )+ ];

            /// First slot of this group in COUNTERS.
            pub const BASE: u32 = $base;

            /// Index in COUNTERS.
            #[inline(always)]
            pub const fn slot(self) -> u32 {
                Self::BASE + self as u32
            }

            /// Name for people and metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$variant => $text, )+
                }
            }
        }
    };
}

counters! {
    /// What went well, in packets unless named otherwise.
    Done from 0 {
        /// Outbound, translated and redirected.
        ForwardedOut = "forwarded_out",
        /// Inbound, translated and redirected.
        ForwardedIn = "forwarded_in",
        /// Outbound, by way of the stack and translated on WAN egress.
        TranslatedEgress = "translated_egress",
        /// Sent by the CPE itself.
        HostOut = "host_out",
        /// Not for translation: left the WAN as it was.
        EgressUntouched = "egress_untouched",
        /// Dynamic mappings made.
        MappingCreated = "mappings_created",
        /// Sessions made.
        SessionCreated = "sessions_created",
        /// Next hops looked up again because the generation had changed.
        NextHopRefreshed = "next_hops_refreshed",
        /// Events the ring or the budget had no room for.
        EventLost = "events_lost",
        /// Claims of an external port given back because another CPU had mapped the internal endpoint first.
        ClaimReturned = "claims_returned",
        /// From a LAN host by the external address to a LAN host, translated twice and redirected.
        Hairpinned = "hairpinned",
        /// ICMP errors translated with the packet they quote, in any direction.
        IcmpErrorTranslated = "icmp_errors_translated",
        /// Fragments after the first, translated like it.
        FragmentForwarded = "fragments_forwarded",
        /// Fragments that came before their first one and were given to the daemon to wait for it.
        FragmentHeld = "fragments_held",
        /// TCP maximum segment sizes lowered.
        MssClamped = "mss_clamped",
        /// IPv6 to the WAN, redirected.
        Forwarded6Out = "forwarded6_out",
        /// IPv6 from the WAN, redirected.
        Forwarded6In = "forwarded6_in",
        /// IPv6 sessions made.
        Session6Created = "sessions6_created",
        /// IPv6 of LAN hosts to the WAN, by way of the stack.
        Egress6 = "egress6",
        /// IPv6 endpoints that ENDPOINTS6 had no room for.
        Endpoint6Lost = "endpoints6_lost",
        /// Remote addresses of mappings with address-dependent filtering that PEERS had no room for.
        PeerLost = "peers_lost",
        /// Refused packets given to the daemon, which may tell their senders.
        RefusalNoted = "refusals_noted",
        /// Refused packets that the ring or the budget had no room for.
        RefusalLost = "refusals_lost",
        /// Senders of refused packets that were told by an ICMP error. Counted by the daemon.
        RefusalTold = "refusals_told",
        /// Refused packets whose senders were not told, because too many wait or were told. Counted by the daemon.
        RefusalUntold = "refusals_untold",
        /// IPv4 of LAN hosts put into the softwire and redirected.
        SoftwireOut = "softwire_out",
        /// IPv4 for LAN hosts taken out of the softwire and redirected.
        SoftwireIn = "softwire_in",
        /// Put into the softwire by the daemon, which counts them.
        SoftwireRelayedOut = "softwire_relayed_out",
        /// Taken out of the softwire by the daemon, which counts them.
        SoftwireRelayedIn = "softwire_relayed_in",
    }
}

counters! {
    /// Why a packet was given to the stack.
    PassReason from 48 {
        /// Not IPv4: ARP, IPv6, VLAN and others.
        NotIpv4 = "pass_not_ipv4",
        /// Too short for the headers it announces; the stack judges and counts it.
        Malformed = "pass_malformed",
        /// A fragment.
        Fragment = "pass_fragment",
        /// Multicast, broadcast or an unspecified address.
        NotUnicast = "pass_not_unicast",
        /// A transport protocol that is not translated.
        OtherProtocol = "pass_other_protocol",
        /// An ICMP error about no packet of a session, a redirect or a source quench.
        IcmpError = "pass_icmp_error",
        /// The frame is not addressed to the CPE's MAC address.
        NotOurMac = "pass_not_our_mac",
        /// No configuration, no external address, or the interface is unknown.
        NotConfigured = "pass_not_configured",
        /// The source is no LAN host, and the packet is not for the WAN, or the source is routed to the LAN.
        NotLanSource = "pass_not_lan_source",
        /// The routing table does not send it out of the WAN: local, LAN to LAN, unreachable.
        NotToWan = "pass_not_to_wan",
        /// From the LAN to the external address, on a port that is mapped for no LAN host.
        Hairpin = "pass_hairpin",
        /// The next hop is not resolved yet.
        Unresolved = "pass_unresolved",
        /// The egress cannot receive redirected frames.
        NoRedirect = "pass_no_redirect",
        /// TTL used up; the stack answers.
        TtlExceeded = "pass_ttl_exceeded",
        /// Larger than the egress takes; the stack answers or fragments.
        TooBig = "pass_too_big",
        /// For the CPE itself, with a session or a static entry.
        Host = "pass_host",
        /// An echo request to the WAN address.
        EchoRequest = "pass_echo_request",
        /// To an address that is not ours: routed, not translated.
        NotExternalAddr = "pass_not_external_addr",
        /// IPv6 for the router itself, or of the link: neighbour discovery and multicast.
        Ipv6Local = "pass_ipv6_local",
        /// IPv6 that the filter is switched off for.
        Ipv6Unfiltered = "pass_ipv6_unfiltered",
        /// IPv6 that was admitted and goes on by way of the stack.
        Ipv6Stack = "pass_ipv6_stack",
        /// Of the softwire and not for the short way: in fragments outside, or with options or extension headers.
        Softwire = "pass_softwire",
    }
}

counters! {
    /// Why a packet was dropped.
    DropReason from 96 {
        /// Inbound without a mapping, or the mapping lets only known peers in.
        Unsolicited = "drop_unsolicited",
        /// Inbound and the mapping admits another remote prefix only.
        Filtered = "drop_filtered",
        /// From the WAN with a LAN source, or from either side with our own external address.
        Spoofed = "drop_spoofed",
        /// A TCP segment that belongs to no session and may not begin one.
        TcpStray = "drop_tcp_stray",
        /// The mapping's lifetime is over.
        MappingExpired = "drop_mapping_expired",
        /// No free external port.
        PortsExhausted = "drop_ports_exhausted",
        /// A mapping table is full.
        MappingsFull = "drop_mappings_full",
        /// The session table is full.
        SessionsFull = "drop_sessions_full",
        /// An untranslated private source on its way out of the WAN.
        PrivateSource = "drop_private_source",
        /// A fragment with a private source on its way out of the WAN.
        PrivateFragment = "drop_private_fragment",
        /// The TTL is used up and the stack could not tell the sender.
        TtlExceeded = "drop_ttl_exceeded",
        /// An ICMP error that would show a LAN address outside.
        IcmpErrorPrivate = "drop_icmp_error_private",
        /// A header field contradicts the frame or another field.
        Malformed = "drop_malformed",
        /// The kernel refused to change the packet.
        RewriteFailed = "drop_rewrite_failed",
        /// Source and destination address are the same.
        Land = "drop_land",
        /// A source address that no host can have: multicast, broadcast, loopback.
        BadSource = "drop_bad_source",
        /// From a LAN port to the WAN with a source that is in no LAN prefix of that interface; of IPv4, one that the
        /// routing table sends back there is not spoofed.
        SpoofedLan = "drop_spoofed_lan",
        /// The host has as many sessions as one host may have.
        HostSessions = "drop_host_sessions",
        /// The host has as many mappings as one host may have.
        HostMappings = "drop_host_mappings",
        /// A first fragment without all of the transport header, or a fragment that would overlap it.
        TinyFragment = "drop_tiny_fragment",
        /// A fragment whose first one was not seen in time, or was not let through.
        FragmentUnknown = "drop_fragment_unknown",
        /// More fragments wait for their first one than may.
        FragmentsFull = "drop_fragments_full",
        /// An ICMP error with a wrong checksum of its own or of the header it quotes, cut short, or not addressed
        /// to the sender of what it quotes.
        IcmpErrorBad = "drop_icmp_error_bad",
        /// An ICMP error that quotes no packet of a session.
        IcmpErrorStray = "drop_icmp_error_stray",
        /// To a LAN host's external endpoint from the LAN, where nothing lets it in.
        HairpinRefused = "drop_hairpin_refused",
        /// IPv6 from the WAN that nothing lets in.
        Unsolicited6 = "drop_unsolicited6",
        /// IPv6 with an address that must not cross the WAN.
        Forbidden6 = "drop_forbidden6",
        /// IPv6 with extension headers out of bounds, or a type 0 routing header.
        Headers6 = "drop_headers6",
        /// No room for an IPv6 session.
        Sessions6Full = "drop_sessions6_full",
        /// The remote endpoint has a session with the host by another external endpoint of the same internal one.
        SessionCollision = "drop_session_collision",
        /// No room to count one more LAN host.
        HostsFull = "drop_hosts_full",
        /// A fragment that came before its first one; if it was counted as held as well, a copy of it waits.
        FragmentEarly = "drop_fragment_early",
        /// A packet with a source route among its IPv4 options (RFC 7126 section 4.3).
        SourceRoute = "drop_source_route",
        /// Of a session whose external address is no longer ours, or whose remote address has become ours.
        AddressGone = "drop_address_gone",
        /// IPv4 in IPv6 to our end of the softwire from somebody who is not the AFTR.
        SoftwireStranger = "drop_softwire_stranger",
        /// From the AFTR, and what is inside is no IPv4 for a LAN host or the CPE, or not from outside.
        SoftwireInner = "drop_softwire_inner",
        /// Not carried through the softwire by the daemon, which counts them: no IPv4, or not from where or to where it
        /// belongs, or the network refused it.
        SoftwireRelay = "drop_softwire_relay",
    }
}

/// Slots of COUNTERS, with room in each group.
pub const SLOTS: u32 = 160;

/// Slot and name of every counter, in the order of the slots.
pub fn all() -> impl Iterator<Item = (u32, &'static str)> {
    let done = Done::ALL.iter().map(|c| (c.slot(), c.name()));
    let pass = PassReason::ALL.iter().map(|c| (c.slot(), c.name()));
    let drop = DropReason::ALL.iter().map(|c| (c.slot(), c.name()));
    done.chain(pass).chain(drop)
}

const _: () = assert!(Done::BASE + Done::ALL.len() as u32 <= PassReason::BASE);
const _: () = assert!(PassReason::BASE + PassReason::ALL.len() as u32 <= DropReason::BASE);
const _: () = assert!(DropReason::BASE + DropReason::ALL.len() as u32 <= SLOTS);

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;

    use super::*;

    /// Who gets only the names tells the groups by it.
    #[test]
    fn names_begin_with_what_became_of_the_packet() {
        let begins = |name: &str| [name.starts_with("pass_"), name.starts_with("drop_")];
        assert!(Done::ALL.iter().all(|c| begins(c.name()) == [false, false]));
        assert!(
            PassReason::ALL
                .iter()
                .all(|c| begins(c.name()) == [true, false])
        );
        assert!(
            DropReason::ALL
                .iter()
                .all(|c| begins(c.name()) == [false, true])
        );
    }

    #[test]
    fn slots_and_names_are_unique() {
        let slots: BTreeSet<u32> = all().map(|(slot, _)| slot).collect();
        let names: BTreeSet<&str> = all().map(|(_, name)| name).collect();
        assert_eq!(slots.len(), all().count());
        assert_eq!(names.len(), all().count());
    }
}
