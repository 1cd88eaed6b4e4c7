//! What a DHCP server of the LAN has given out, as its lease file says.
//!
//! Read before editing: dnsmasq(8) on `--dhcp-leasefile`; odhcpd's README on its state file.
//!
//! ```text
//! dnsmasq   1764331200 02:00:5e:10:00:0a 192.168.1.10 console 01:02:00:5e:10:00:0a
//!           duid 00:01:00:01:...
//!           1764331200 1578107 2a0b:1:2:3::10 console 00:01:00:01:...
//! odhcpd    # br-lan 02005e10000a ipv4 console 1764331200 c0a8010a 32 192.168.1.10/32
//!           # br-lan 00010001... 18143b console 1764331200 10 128 2a0b:1:2:3::10/128
//!           192.168.1.10<TAB>console.lan<TAB>console
//! ```
//!
//! Since the end of 2025 odhcpd writes `2:0:5e:10:0:a` where it wrote `02005e10000a` before, and nothing for the resolver.
//! Of a name that is none it writes `broken\x20` in front.
//!
//! Which of the two wrote a line shows in the line. A server may be writing just now, and anything may be in a file, so a
//! line that is neither is counted, and whoever reads decides what a file with such lines is worth.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::types::UnixTime;
use crate::types::caller::{Mac, parse_mac};
use crate::types::device::DhcpLease;

/// Largest lease file that is read, in octets.
pub const MAX_FILE: usize = 1 << 20;
/// Most leases that are kept; a LAN has fewer.
pub const MAX_LEASES: usize = 4096;
/// RFC 1035 section 2.3.4: longest name.
const MAX_NAME: usize = 255;
/// A server on a machine without a clock writes how long a lease is instead of when it ends. No lease is that long, and no
/// clock is that wrong: the year 2001.
const FIRST_TIME: u64 = 1_000_000_000;

/// A lease file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseFile {
    /// The leases, in the order of the file.
    pub leases: Vec<DhcpLease>,
    /// Lines that could not be understood, and leases beyond [`MAX_LEASES`].
    pub damaged: usize,
}

impl LeaseFile {
    /// Reads one.
    pub fn parse(octets: &[u8]) -> Self {
        let mut file = Self::default();
        if octets.len() > MAX_FILE {
            file.damaged = 1;
            return file;
        }
        for line in octets.split(|octet| *octet == b'\n') {
            let parsed = std::str::from_utf8(line).map_err(|_| Damaged);
            match parsed.and_then(|line| read(line.trim_end_matches('\r'))) {
                Ok(leases) => {
                    for lease in leases {
                        if file.leases.len() < MAX_LEASES {
                            file.leases.push(lease);
                        } else {
                            file.damaged += 1;
                        }
                    }
                }
                Err(Damaged) => file.damaged += 1,
            }
        }
        // A server that is writing has not come to the end of its last line.
        if octets.last().is_some_and(|last| *last != b'\n') {
            file.damaged += 1;
        }
        file
    }
}

/// The line is of neither server.
struct Damaged;

fn read(line: &str) -> Result<Vec<DhcpLease>, Damaged> {
    if line.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(rest) = line.strip_prefix("# ") {
        return odhcpd(rest);
    }
    let first = line.split_ascii_whitespace().next().unwrap_or_default();
    // The server's own DUID, and odhcpd's lines for the resolver.
    if first == "duid" || first.parse::<IpAddr>().is_ok() {
        return Ok(Vec::new());
    }
    dnsmasq(line).map(|lease| vec![lease])
}

fn dnsmasq(line: &str) -> Result<DhcpLease, Damaged> {
    let mut fields = line.split(' ');
    let mut next = || fields.next().ok_or(Damaged);
    let ends: u64 = next()?.parse().map_err(|_| Damaged)?;
    let hardware = next()?;
    let addr: IpAddr = next()?.parse().map_err(|_| Damaged)?;
    let name = next()?;
    // The client's identifier, or `*`.
    next()?;
    if fields.next().is_some() {
        return Err(Damaged);
    }
    let mac = match addr {
        // Another hardware type than Ethernet is written before the address.
        IpAddr::V4(_) if hardware.contains('-') => None,
        IpAddr::V4(_) => Some(parse_mac(hardware).ok_or(Damaged)?),
        // Of IPv6 it is the number of the client's association, `T` before it for a temporary address.
        IpAddr::V6(_) => {
            let number = hardware.trim_start_matches('T');
            number.parse::<u32>().map_err(|_| Damaged)?;
            None
        }
    };
    Ok(DhcpLease {
        addr,
        mac,
        name: host_name(name).filter(|name| name != "*"),
        ends: (ends >= FIRST_TIME).then(|| UnixTime::from_secs(ends)),
    })
}

fn odhcpd(line: &str) -> Result<Vec<DhcpLease>, Damaged> {
    let mut fields = line.split(' ');
    let mut next = || fields.next().ok_or(Damaged);
    let _interface = next()?;
    let client = next()?;
    let association = next()?;
    let name = next()?;
    let ends: i64 = next()?.parse().map_err(|_| Damaged)?;
    let _assigned = next()?;
    let _length = next()?;
    let mac = match association {
        "ipv4" => {
            let mac = packed_mac(client).or_else(|| parse_mac(client));
            Some(mac.ok_or(Damaged)?)
        }
        // A DUID may have a MAC address in it, of whichever interface it was made from.
        _ => None,
    };
    let ends = match u64::try_from(ends) {
        Err(_) => None,
        // It is over, and its addresses are not listed any more.
        Ok(0) => return Ok(Vec::new()),
        Ok(ends) => Some(UnixTime::from_secs(ends)),
    };
    let mut leases = Vec::new();
    for prefix in fields.filter(|prefix| !prefix.is_empty()) {
        let (addr, len) = prefix.split_once('/').ok_or(Damaged)?;
        let addr: IpAddr = addr.parse().map_err(|_| Damaged)?;
        let len: u8 = len.parse().map_err(|_| Damaged)?;
        let whole = if addr.is_ipv4() { 32 } else { 128 };
        // Shorter ones are prefixes for other routers.
        if len == whole {
            leases.push(DhcpLease {
                addr,
                mac: mac.filter(|_| addr.is_ipv4()),
                name: host_name(name).filter(|name| name != "-"),
                ends,
            });
        }
    }
    Ok(leases)
}

/// Twelve digits.
fn packed_mac(text: &str) -> Option<Mac> {
    let mut mac = [0; 6];
    let mut pairs = text.as_bytes().chunks_exact(2);
    for octet in &mut mac {
        let pair = std::str::from_utf8(pairs.next()?).ok()?;
        let digits = pair.bytes().all(|digit| digit.is_ascii_hexdigit());
        *octet = u8::from_str_radix(pair, 16).ok().filter(|_| digits)?;
    }
    (pairs.next().is_none() && pairs.remainder().is_empty()).then_some(mac)
}

/// A name as it is compared. What is no name of a host is none: the device has sent it.
fn host_name(text: &str) -> Option<String> {
    let fits = (1..=MAX_NAME).contains(&text.len());
    let clean = text
        .bytes()
        .all(|octet| octet.is_ascii_graphic() && octet != b'\\');
    (fits && clean).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DNSMASQ: &str = "1764331200 02:00:5e:10:00:0a 192.168.1.10 Console 01:02:00:5e:10:00:0a\n\
        0 02:00:5e:10:00:0b 192.168.1.11 * *\n\
        43200 02:00:5e:10:00:0c 192.168.1.12 tv *\n\
        1764331200 06-02:00:5e:10:00:0d 192.168.1.13 odd ff:1\n\
        duid 00:01:00:01:2f:00:00:00:02:00:5e:10:00:01\n\
        1764331200 1578107 2a0b:1:2:3::10 console 00:01:00:01:2f:00:00:00:02:00:5e:10:00:0a\n\
        1764331200 T77 2a0b:1:2:3::11 * 00:03\n";
    const ODHCPD: &str = "# br-lan 02005e10000a ipv4 Console 1764331200 c0a8010a 32 192.168.1.10/32\n\
        192.168.1.10\tConsole.lan\tConsole\n\
        # br-lan 02005e10000b ipv4 - -1 c0a8010b 32 192.168.1.11/32\n\
        # br-lan 0001000130000000 18143b nas 1764331200 10 128 2a0b:1:2:3::10/128 fd00:1::10/128\n\
        2a0b:1:2:3::10\tnas\n\
        # br-lan 0001000130000001 18143c - 1764331200 4 62 2a0b:1:2:4::/62\n\
        # br-lan 0001000130000002 18143d - 0 5 128 \n\
        # br-lan 02005e10000e ipv4 broken\\x20x 1764331200 c0a8010e 32 192.168.1.14/32\n\
        # br-lan 2:0:5e:10:0:f ipv4 desk 1764331200 c0a8010f 32 192.168.1.15/32\n";

    fn lease(addr: &str, mac: Option<u8>, name: Option<&str>, ends: Option<u64>) -> DhcpLease {
        DhcpLease {
            addr: addr.parse().expect("an address"),
            mac: mac.map(|last| [2, 0, 0x5e, 0x10, 0, last]),
            name: name.map(str::to_owned),
            ends: ends.map(UnixTime::from_secs),
        }
    }

    #[test]
    fn what_dnsmasq_has_given_out() {
        let file = LeaseFile::parse(DNSMASQ.as_bytes());
        let end = Some(1_764_331_200);
        let expected = [
            lease("192.168.1.10", Some(0x0a), Some("console"), end),
            lease("192.168.1.11", Some(0x0b), None, None),
            lease("192.168.1.12", Some(0x0c), Some("tv"), None),
            lease("192.168.1.13", None, Some("odd"), end),
            lease("2a0b:1:2:3::10", None, Some("console"), end),
            lease("2a0b:1:2:3::11", None, None, end),
        ];
        assert_eq!(file.leases, expected);
        assert_eq!(file.damaged, 0);
    }

    #[test]
    fn what_odhcpd_has_given_out() {
        let file = LeaseFile::parse(ODHCPD.as_bytes());
        let end = Some(1_764_331_200);
        let expected = [
            lease("192.168.1.10", Some(0x0a), Some("console"), end),
            lease("192.168.1.11", Some(0x0b), None, None),
            lease("2a0b:1:2:3::10", None, Some("nas"), end),
            lease("fd00:1::10", None, Some("nas"), end),
            lease("192.168.1.14", Some(0x0e), None, end),
            lease("192.168.1.15", Some(0x0f), Some("desk"), end),
        ];
        assert_eq!(file.leases, expected);
        assert_eq!(file.damaged, 0);
    }

    #[test]
    fn what_is_no_lease_is_counted_and_nothing_else() {
        for line in [
            "x",
            "1764331200",
            "1764331200 02:00:5e:10:00:0a 192.168.1.10 a",
            "1764331200 02:00:5e:10:00:0a 192.168.1.10 a b c",
            "-1 02:00:5e:10:00:0a 192.168.1.10 a b",
            "1764331200 02:00:5e:10:00 192.168.1.10 a b",
            "1764331200 02:00:5e:10:00:0a 192.168.1.300 a b",
            "1764331200 x 2a0b::1 a b",
            "# br-lan 02005e10000a ipv4",
            "# br-lan 02005e1000 ipv4 a 1 c0a8010a 32 192.168.1.10/32",
            "# br-lan 2:0:5e:10:0 ipv4 a 1 c0a8010a 32 192.168.1.10/32",
            "# br-lan 2:0:5e:10:0:100 ipv4 a 1 c0a8010a 32 192.168.1.10/32",
            "# br-lan 02005e10000a ipv4 a 1 c0a8010a 32 192.168.1.10",
            "# br-lan 02005e10000a ipv4 a b c0a8010a 32 192.168.1.10/32",
            "\u{fffd}",
        ] {
            let good = "1764331200 02:00:5e:10:00:0a 192.168.1.10 a *";
            let file = LeaseFile::parse(format!("{line}\n{good}\n").as_bytes());
            assert_eq!((file.leases.len(), file.damaged), (1, 1), "{line}");
        }
        let file = LeaseFile::parse(b"\xff\xfe\n");
        assert_eq!((file.leases.len(), file.damaged), (0, 1));
        assert_eq!(LeaseFile::parse(b""), LeaseFile::default());
    }

    #[test]
    fn a_file_cut_anywhere_is_damaged_or_has_whole_lines() {
        for text in [DNSMASQ, ODHCPD] {
            let whole = LeaseFile::parse(text.as_bytes());
            for end in 0..text.len() {
                let cut = text.as_bytes().get(..end).expect("within");
                let file = LeaseFile::parse(cut);
                let at_a_line = end == 0 || cut.last() == Some(&b'\n');
                assert_eq!(file.damaged == 0, at_a_line, "{end}");
                if at_a_line {
                    assert_eq!(
                        file.leases,
                        whole.leases.get(..file.leases.len()).expect("a part")
                    );
                }
            }
        }
    }

    #[test]
    fn size_and_number_are_bounded() {
        let line = "0 02:00:5e:10:00:0a 192.168.1.10 a *\n";
        let many = LeaseFile::parse(line.repeat(MAX_LEASES + 3).as_bytes());
        assert_eq!((many.leases.len(), many.damaged), (MAX_LEASES, 3));
        let huge = LeaseFile::parse(&vec![b'\n'; MAX_FILE + 1]);
        assert_eq!((huge.leases.len(), huge.damaged), (0, 1));
        let long = "a".repeat(MAX_NAME + 1);
        let file =
            LeaseFile::parse(format!("0 02:00:5e:10:00:0a 192.168.1.10 {long} *\n").as_bytes());
        assert_eq!(file.leases.first().expect("a lease").name, None);
    }
}
