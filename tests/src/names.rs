//! The router's DNS server, as most routers have it: Debian's dnsmasq on the CPE, which knows the hosts of the LAN.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::packages;
use crate::process::Process;
use crate::topology::Lab;

/// A running dnsmasq on the CPE's loopback; ends on drop.
#[derive(Debug)]
pub struct Resolver {
    process: Process,
}

impl Resolver {
    /// Starts it with these names and no others; it asks nobody.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(lab: &Lab, names: &[(&str, Ipv4Addr)]) -> Result<Self> {
        Self::start_asking(lab, names, &[])
    }

    /// Starts it with these names; it asks those servers for names of those domains.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_asking(
        lab: &Lab,
        names: &[(&str, Ipv4Addr)],
        others: &[(&str, SocketAddr)],
    ) -> Result<Self> {
        let file = lab.dir().join("names.conf");
        let mut text = "listen-address=127.0.0.1\nbind-interfaces\nuser=root\nkeep-in-foreground\nlog-facility=-\n\
                        log-queries\nno-resolv\nno-hosts\nno-poll\npid-file\n"
            .to_owned();
        for (name, addr) in names {
            writeln!(text, "host-record={name},{addr}")?;
        }
        for (domain, server) in others {
            writeln!(text, "server=/{domain}/{}#{}", server.ip(), server.port())?;
        }
        std::fs::write(&file, text).context("write the configuration of dnsmasq")?;
        let argv = [
            "env".to_owned(),
            format!("LD_LIBRARY_PATH={}", packages::library_path()?),
            packages::dnsmasq()?.display().to_string(),
            format!("--conf-file={}", file.display()),
        ];
        let mut process = lab.cpe.spawn("names", &argv)?;
        process.wait_for_log("started", Duration::from_secs(10))?;
        Ok(Self { process })
    }

    /// What it was asked, a line each.
    pub fn log(&self) -> String {
        self.process.log()
    }
}
