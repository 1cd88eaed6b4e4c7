//! The carrier's PCP server: Debian's miniupnpd, written by others, or a script of our own.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Namespace;
use crate::pcp::{self, Request};
use crate::topology::{CARRIER, Lab, WAN};
use crate::{aftr, packages, process, wait};

const CHAINS: [&str; 3] = ["miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd"];

/// Debian's miniupnpd as PCP and NAT-PMP server of the carrier. It goes to the background by itself, as
/// its foreground mode delays answers by its logging; the guard ends it by its pid file.
#[derive(Debug)]
pub struct Miniupnpd {
    cgn: Namespace,
    dir: PathBuf,
    pid: i32,
}

impl Miniupnpd {
    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// If it is not in the cache, or does not answer within 10 s.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::start_at(lab, "br0", CARRIER)
    }

    /// Starts it as UPnP gateway that speaks neither PCP nor NAT-PMP, at a port of its own choice, and waits until it
    /// listens.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_upnp(lab: &Lab) -> Result<Self> {
        let server = Self::spawn(
            lab,
            "br0",
            "enable_upnp=yes\nenable_natpmp=no\nhttp_port=0\n",
        )?;
        listens(&lab.cgn, ":1900")?;
        Ok(server)
    }

    /// Starts it as the PCP server of an AFTR, which has no IPv4 towards its subscribers: asked over IPv6, at any address
    /// of the carrier, on behalf of the hosts behind a softwire and of the B4 itself.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_for_the_softwire(lab: &Lab) -> Result<Self> {
        let more = "enable_upnp=no\nenable_natpmp=yes\npcp_allow_thirdparty=yes\n\
                    allow 1024-65535 192.168.1.0/24 1024-65535\n\
                    allow 1024-65535 192.0.0.2/32 1024-65535\n";
        let server = Self::spawn(lab, aftr::DEVICE, more)?;
        listens(&lab.cgn, ":5351")?;
        Ok(server)
    }

    /// The same where `listening` says (an interface, or an address with its prefix length), asked at `address`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_at(lab: &Lab, listening: &str, address: Ipv4Addr) -> Result<Self> {
        Self::start_with(lab, listening, address, "")
    }

    /// The same for a CPE that does not translate: hosts of its LAN may be named, and their addresses mapped.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_for_the_lan(lab: &Lab) -> Result<Self> {
        let more = "pcp_allow_thirdparty=yes\nallow 1024-65535 192.168.1.0/24 1024-65535\n";
        Self::start_with(lab, "br0", CARRIER, more)
    }

    fn start_with(lab: &Lab, listening: &str, address: Ipv4Addr, more: &str) -> Result<Self> {
        let protocols = format!("enable_upnp=no\nenable_natpmp=yes\n{more}");
        let server = Self::spawn(lab, listening, &protocols)?;
        pcp::ask(
            &lab.cpe,
            address,
            &Request::announce(WAN),
            Duration::from_secs(10),
        )
        .context("wait for miniupnpd")?;
        Ok(server)
    }

    /// Starts it with those protocols.
    fn spawn(lab: &Lab, listening: &str, protocols: &str) -> Result<Self> {
        let dir = lab.dir().join("miniupnpd");
        std::fs::create_dir_all(&dir).context("create the server's directory")?;
        let pid_file = dir.join("pid");
        std::fs::remove_file(&pid_file).ok();
        let config = dir.join("miniupnpd.conf");
        let text = format!(
            "ext_ifname=ext0\n\
             listening_ip={listening}\n\
             {protocols}\
             min_lifetime=120\n\
             max_lifetime=86400\n\
             secure_mode=yes\n\
             system_uptime=no\n\
             lease_file={}\n\
             upnp_table_name=filter\n\
             upnp_nat_table_name=filter\n\
             upnp_forward_chain={}\n\
             upnp_nat_chain={}\n\
             upnp_nat_postrouting_chain={}\n\
             uuid=00000000-0000-4000-8000-0000000000c9\n\
             allow 1024-65535 100.64.0.0/10 1024-65535\n\
             deny 0-65535 0.0.0.0/0 0-65535\n",
            dir.join("leases").display(),
            CHAINS[0],
            CHAINS[1],
            CHAINS[2],
        );
        std::fs::write(&config, text).context("write the server's configuration")?;
        lab.cgn.must(&[
            "env".to_owned(),
            format!("LD_LIBRARY_PATH={}", packages::library_path()?),
            packages::miniupnpd()?.display().to_string(),
            "-f".to_owned(),
            config.display().to_string(),
            "-P".to_owned(),
            pid_file.display().to_string(),
        ])?;
        let pid = wait::until("miniupnpd to write its pid", Duration::from_secs(5), || {
            std::fs::read_to_string(&pid_file).ok()?.trim().parse().ok()
        })?;
        Ok(Self {
            cgn: lab.cgn.clone(),
            dir,
            pid,
        })
    }

    /// Leaves it running without a guard.
    pub fn leave_running(mut self) -> i32 {
        std::mem::take(&mut self.pid)
    }

    /// Ends it and forgets everything it knew, as a carrier's device that lost its state.
    ///
    /// # Errors
    /// If its rules cannot be flushed.
    pub fn lose_state(mut self) -> Result<()> {
        self.end();
        std::fs::remove_file(self.dir.join("leases")).ok();
        for chain in CHAINS {
            self.cgn
                .must(&["nft", "flush", "chain", "inet", "filter", chain])?;
        }
        Ok(())
    }

    fn end(&mut self) {
        let pid = std::mem::take(&mut self.pid);
        if pid == 0 {
            return;
        }
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        // Not our child: gone when its directory in /proc is, or a zombie of whoever adopted it.
        wait::until("miniupnpd to end", Duration::from_secs(5), || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.map_or(true, |line| line.contains(") Z "))
                .then_some(())
        })
        .ok();
    }
}

impl Drop for Miniupnpd {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits until something listens to that port of UDP.
fn listens(host: &Namespace, port: &str) -> Result<()> {
    wait::until("miniupnpd to listen", Duration::from_secs(10), || {
        let argv = ["ss", "-Hlun", "sport", "=", port];
        let listening = host.must(&argv).ok()?;
        (!listening.trim().is_empty()).then_some(())
    })
}

/// One port that the carrier forwards, as its kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forward {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// External port.
    pub external_port: u16,
    /// Where it leads: the CPE and its NAT1 port.
    pub to: (Ipv4Addr, u16),
}

impl Forward {
    /// Whether it is the short lease by which a client learns its external address: UDP, the discard port or
    /// its stand-in above the system ports (RFC 6887 section 11.6). It runs out by itself.
    pub fn asks_for_the_address(&self) -> bool {
        self.protocol == "udp" && [9, 49_161].contains(&self.to.1)
    }
}

/// What the carrier's kernel forwards now, sorted; without [`Forward::asks_for_the_address`].
///
/// # Errors
/// If `nft` fails or prints something unknown.
pub fn forwards(cgn: &Namespace) -> Result<Vec<Forward>> {
    let mut found = all_forwards(cgn)?;
    found.retain(|forward| !forward.asks_for_the_address());
    Ok(found)
}

/// What the carrier's kernel forwards now, sorted.
///
/// # Errors
/// If `nft` fails or prints something unknown.
pub fn all_forwards(cgn: &Namespace) -> Result<Vec<Forward>> {
    let text = cgn.must(&["nft", "-n", "list", "chain", "inet", "filter", CHAINS[1]])?;
    let mut found = Vec::new();
    for line in text.lines().filter(|line| line.contains("dnat")) {
        found.push(forward(line).with_context(|| format!("read the rule {line:?}"))?);
    }
    found.sort();
    Ok(found)
}

fn forward(rule: &str) -> Option<Forward> {
    let words: Vec<&str> = rule.split_whitespace().collect();
    let after = |word: &str| {
        let at = words.iter().position(|found| *found == word)?;
        words.get(at + 1).copied()
    };
    let (addr, port) = words.iter().find_map(|word| word.split_once(':'))?;
    // miniupnpd compares the octet of the IPv4 header itself.
    let protocol = match after("@nh,72,8").or_else(|| after("l4proto"))? {
        "0x6" | "6" | "tcp" => "tcp",
        "0x11" | "17" | "udp" => "udp",
        _ => return None,
    };
    Some(Forward {
        protocol: protocol.to_owned(),
        external_port: after("dport")?.parse().ok()?,
        to: (addr.parse().ok()?, port.parse().ok()?),
    })
}

/// The carrier's own listing, for people.
///
/// # Errors
/// If `nft` fails.
pub fn listing(cgn: &Namespace) -> Result<String> {
    process::must(&[
        "nsenter",
        &format!("--net={}", cgn.path().display()),
        "nft",
        "-n",
        "list",
        "chain",
        "inet",
        "filter",
        CHAINS[1],
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_nft_prints_them() {
        let rule = "iif \"ext0\" @nh,72,8 0x6 th dport 8080 dnat ip to 100.64.0.2:18080";
        let expected = Forward {
            protocol: "tcp".to_owned(),
            external_port: 8080,
            to: (Ipv4Addr::new(100, 64, 0, 2), 18080),
        };
        assert_eq!(forward(rule), Some(expected));
        assert_eq!(forward("iif \"ext0\" accept"), None);
    }
}
