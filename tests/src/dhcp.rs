//! DHCP servers on the carrier, written by others, that say where PCP servers are.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Namespace;
use crate::process::Process;
use crate::topology::{LAN_BRIDGE, Lab};
use crate::{packages, wait};

/// How long a server may take to begin.
const START_WITHIN: Duration = Duration::from_secs(15);

/// The value of option 158 with these lists.
pub fn option158(lists: &[&[Ipv4Addr]]) -> Vec<u8> {
    let list = |addresses: &&[Ipv4Addr]| {
        let octets = addresses.iter().flat_map(|addr| addr.octets());
        let length = u8::try_from(addresses.len() * 4).unwrap_or(u8::MAX);
        std::iter::once(length).chain(octets).collect::<Vec<_>>()
    };
    lists.iter().flat_map(list).collect()
}

/// Octets as hexadecimal digits with that between them.
pub fn hex(octets: &[u8], between: &str) -> String {
    let pairs: Vec<_> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    pairs.join(between)
}

/// A running dnsmasq; ends on drop.
#[derive(Debug)]
pub struct Dnsmasq {
    process: Process,
    leases: PathBuf,
}

impl Dnsmasq {
    /// Starts it on the subscribers' link with that value of option 158, or without the option.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(lab: &Lab, value: Option<&[u8]>) -> Result<Self> {
        let mut lines = "dhcp-range=100.64.0.100,100.64.0.150,255.255.255.0,1h\n".to_owned();
        if let Some(value) = value {
            writeln!(lines, "dhcp-option=158,{}", hex(value, ":"))?;
        }
        Self::run(&lab.cgn, lab, "br0", &lines, "DHCP, IP range")
    }

    /// Starts it on the CPE, for the LAN's hosts.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_lan(lab: &Lab) -> Result<Self> {
        let lines = "dhcp-range=192.168.1.50,192.168.1.60,255.255.255.0,1h\n";
        Self::run(&lab.cpe, lab, LAN_BRIDGE, lines, "DHCP, IP range")
    }

    /// Where it keeps what it has given out.
    pub fn leases(&self) -> &Path {
        &self.leases
    }

    /// The same for DHCPv6, without addresses: lines of its configuration say the rest.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_v6(lab: &Lab, options: &str) -> Result<Self> {
        let lines = format!("dhcp-range=::,constructor:br0,ra-stateless\n{options}");
        Self::run(&lab.cgn, lab, "br0", &lines, "DHCPv6 stateless")
    }

    fn run(host: &Namespace, lab: &Lab, interface: &str, lines: &str, ready: &str) -> Result<Self> {
        let file = lab.dir().join(format!("dnsmasq-{interface}.conf"));
        let leases = lab.dir().join(format!("dnsmasq-{interface}.leases"));
        let text = format!(
            "port=0\ninterface={interface}\nbind-interfaces\nuser=root\nkeep-in-foreground\nlog-facility=-\nlog-dhcp\n\
             no-ping\ndhcp-authoritative\ndhcp-leasefile={}\npid-file\n{lines}",
            leases.display()
        );
        std::fs::write(&file, text).context("write the configuration of dnsmasq")?;
        // That an earlier one was ready says nothing of this one.
        std::fs::remove_file(lab.dir().join("dnsmasq.log")).ok();
        let program = packages::dnsmasq()?.display().to_string();
        let config = format!("--conf-file={}", file.display());
        let process = spawn(host, "dnsmasq", &[program, config])?;
        started(process, ready).map(|process| Self { process, leases })
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// A running Kea of one protocol; ends on drop.
#[derive(Debug)]
pub struct Kea {
    process: Process,
}

impl Kea {
    /// Starts it with that value of option 158.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_v4(lab: &Lab, value: &[u8]) -> Result<Self> {
        let data = hex(value, "");
        Self::run(
            lab,
            4,
            &format!(
                r#""Dhcp4": {{
                    "interfaces-config": {{ "interfaces": ["br0"] }},
                    "lease-database": {{ "type": "memfile", "persist": false }},
                    "option-def": [
                        {{ "name": "pcp-server", "code": 158, "space": "dhcp4", "type": "binary" }}
                    ],
                    "subnet4": [ {{
                        "subnet": "100.64.0.0/24",
                        "pools": [ {{ "pool": "100.64.0.100 - 100.64.0.150" }} ],
                        "option-data": [
                            {{ "code": 158, "space": "dhcp4", "csv-format": false, "data": "{data}" }}
                        ]
                    }} ],"#
            ),
            "DHCP4_STARTED",
        )
    }

    /// Starts it with one instance of option 86 of these addresses, and an AFTR name.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_v6(lab: &Lab, addresses: &[Ipv6Addr], aftr: &str) -> Result<Self> {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let data = addresses.join(", ");
        Self::run(
            lab,
            6,
            &format!(
                r#""Dhcp6": {{
                    "interfaces-config": {{ "interfaces": ["br0"] }},
                    "lease-database": {{ "type": "memfile", "persist": false }},
                    "server-id": {{ "type": "LL", "persist": false }},
                    "option-def": [
                        {{ "name": "pcp-server", "code": 86, "space": "dhcp6", "type": "ipv6-address", "array": true }}
                    ],
                    "option-data": [
                        {{ "code": 86, "space": "dhcp6", "data": "{data}" }},
                        {{ "code": 64, "space": "dhcp6", "data": "{aftr}" }}
                    ],
                    "subnet6": [ {{ "subnet": "2a0c:9::/64", "interface": "br0" }} ],"#
            ),
            "DHCP6_STARTED",
        )
    }

    fn run(lab: &Lab, protocol: u8, body: &str, ready: &str) -> Result<Self> {
        let dir = lab.dir().join("kea");
        std::fs::create_dir_all(&dir).context("create the directory of Kea")?;
        let file = dir.join(format!("dhcp{protocol}.json"));
        let text = format!(
            r#"{{ {body}
                "loggers": [ {{
                    "name": "kea-dhcp{protocol}",
                    "severity": "INFO",
                    "output_options": [ {{ "output": "stdout", "flush": true }} ]
                }} ]
            }} }}"#
        );
        std::fs::write(&file, text).context("write the configuration of Kea")?;
        let place = dir.display();
        let argv = [
            "env".to_owned(),
            format!("KEA_PIDFILE_DIR={place}"),
            format!("KEA_LOCKFILE_DIR={place}"),
            format!("KEA_DHCP_DATA_DIR={place}"),
            packages::kea(protocol)?.display().to_string(),
            "-c".to_owned(),
            file.display().to_string(),
        ];
        let process = spawn(&lab.cgn, &format!("kea-dhcp{protocol}"), &argv)?;
        started(process, ready).map(|process| Self { process })
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

fn spawn(host: &Namespace, name: &str, argv: &[String]) -> Result<Process> {
    let libraries = format!("LD_LIBRARY_PATH={}", packages::library_path()?);
    let mut all = vec!["env".to_owned(), libraries];
    all.extend_from_slice(argv);
    host.spawn(name, &all)
}

fn started(mut process: Process, ready: &str) -> Result<Process> {
    let what = format!("a DHCP server to say {ready:?}");
    let outcome = wait::until(&what, START_WITHIN, || {
        let running = process.running().unwrap_or(false);
        match process.log().contains(ready) {
            true => Some(true),
            false => (!running).then_some(false),
        }
    });
    match outcome {
        Ok(true) => Ok(process),
        Ok(false) => anyhow::bail!("the DHCP server ended at its start:\n{}", process.tail()),
        Err(error) => Err(error.context(process.tail())),
    }
}
