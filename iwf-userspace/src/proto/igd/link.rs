//! WANCommonInterfaceConfig:1.

use super::Total;

/// WANAccessType: how the line reaches the provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessType {
    /// Ethernet, or not known.
    #[default]
    Ethernet,
    /// A DSL line.
    Dsl,
    /// A cable network.
    Cable,
    /// A telephone line.
    Pots,
}

impl AccessType {
    /// As WANCommonInterfaceConfig:1 section 2.2.1 writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ethernet => "Ethernet",
            Self::Dsl => "DSL",
            Self::Cable => "Cable",
            Self::Pots => "POTS",
        }
    }
}

/// What the WAN link has carried and what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Octets sent.
    pub tx_bytes: u64,
    /// Octets received.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Upstream bits per second; 0 if not known.
    pub up_bits_per_second: u64,
    /// Downstream bits per second; 0 if not known.
    pub down_bits_per_second: u64,
    /// What kind of line it is.
    pub access: AccessType,
    /// Whether the link has a carrier.
    pub carrier: bool,
}

/// The out arguments of GetCommonLinkProperties.
pub fn common_link_properties(link: &LinkCounters) -> Vec<(&'static str, String)> {
    vec![
        ("NewWANAccessType", link.access.name().to_owned()),
        ("NewLayer1UpstreamMaxBitRate", rate(link.up_bits_per_second)),
        (
            "NewLayer1DownstreamMaxBitRate",
            rate(link.down_bits_per_second),
        ),
        ("NewPhysicalLinkStatus", physical_status(link).to_owned()),
    ]
}

/// Every counter.
pub const TOTALS: [Total; 4] = [
    Total::BytesSent,
    Total::BytesReceived,
    Total::PacketsSent,
    Total::PacketsReceived,
];

/// A rate as it is told: one that does not fit is the largest there is.
fn rate(bits_per_second: u64) -> String {
    u32::try_from(bits_per_second)
        .unwrap_or(u32::MAX)
        .to_string()
}

/// PhysicalLinkStatus.
const fn physical_status(link: &LinkCounters) -> &'static str {
    if link.carrier { "Up" } else { "Down" }
}

/// The out argument of one of the GetTotal actions. The counters wrap at 2^32 (WCIC-002).
pub fn total(link: &LinkCounters, which: Total) -> (&'static str, String) {
    let (name, value) = match which {
        Total::BytesSent => ("NewTotalBytesSent", link.tx_bytes),
        Total::BytesReceived => ("NewTotalBytesReceived", link.rx_bytes),
        Total::PacketsSent => ("NewTotalPacketsSent", link.tx_packets),
        Total::PacketsReceived => ("NewTotalPacketsReceived", link.rx_packets),
    };
    (name, (value % (1 << 32)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_wrap_and_rates_do_not() {
        let link = LinkCounters {
            tx_bytes: (1 << 32) + 7,
            rx_bytes: u64::from(u32::MAX),
            tx_packets: (5 << 32) + 9,
            rx_packets: 11,
            up_bits_per_second: 10_000_000_000,
            down_bits_per_second: 50_000_000,
            access: AccessType::Dsl,
            ..LinkCounters::default()
        };
        let totals = TOTALS.map(|which| total(&link, which).1);
        assert_eq!(totals, ["7", "4294967295", "9", "11"]);
        let properties = common_link_properties(&link);
        assert_eq!(properties[0].1, "DSL");
        assert_eq!(properties[1].1, u32::MAX.to_string());
        assert_eq!(properties[2].1, "50000000");
        assert_eq!(properties[3].1, "Down");
    }
}
