//! The WAN's link: what the kernel has counted on it, and what it is.

mod ethtool;

use std::fs;

use tracing::debug;

use super::config::Line;
use crate::iwf::LinkCounters;

/// What the kernel counted on an interface, zeros if it is not there; and how fast it is, as configured, or as its device
/// says while it has a carrier.
///
/// `/proc/net` shows the network namespace of the reader, unlike a `/sys` that was mounted in another one.
pub(super) fn counters(
    interface: &str,
    ifindex: Option<u32>,
    line: Line,
    carrier: bool,
) -> LinkCounters {
    let table = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let is_told = line.up.is_some() && line.down.is_some();
    let device = ifindex.filter(|_| carrier && !is_told).and_then(speed);
    LinkCounters {
        carrier,
        access: line.access,
        up_bits_per_second: line.up.or(device).unwrap_or(0),
        down_bits_per_second: line.down.or(device).unwrap_or(0),
        ..parse(&table, interface).unwrap_or_default()
    }
}

/// Devices of PPP, tunnels and some drivers know none.
fn speed(ifindex: u32) -> Option<u64> {
    ethtool::speed(ifindex)
        .inspect_err(|error| debug!(%error, "the WAN's device does not say how fast it is"))
        .ok()
        .flatten()
}

/// The columns of proc_pid_net(5): eight of what was received, then eight of what was sent.
fn parse(table: &str, interface: &str) -> Option<LinkCounters> {
    let row = table.lines().find_map(|line| {
        let (name, row) = line.split_once(':')?;
        (name.trim() == interface).then_some(row)
    })?;
    let column = |n| row.split_ascii_whitespace().nth(n)?.parse().ok();
    Some(LinkCounters {
        rx_bytes: column(0)?,
        rx_packets: column(1)?,
        tx_bytes: column(8)?,
        tx_packets: column(9)?,
        ..LinkCounters::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Inter-|   Receive                            |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     111       2    0    0    0     0          0         0      111       2    0    0    0     0       0          0
  wan0: 1000000     900    0    0    0     0          0         0   500000     400    0    0    0     0       0          0
";

    #[test]
    fn reads_the_row_of_the_interface() {
        let counters = parse(TABLE, "wan0").unwrap();
        assert_eq!((counters.rx_bytes, counters.rx_packets), (1_000_000, 900));
        assert_eq!((counters.tx_bytes, counters.tx_packets), (500_000, 400));
        assert_eq!(parse(TABLE, "wan"), None);
        assert_eq!(parse(" wan0: 1 2", "wan0"), None);
    }
}
