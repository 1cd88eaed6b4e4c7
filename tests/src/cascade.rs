//! The usual fixtures: the lab with the daemon on the CPE, and a PCP server on the carrier.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::carrier::{self, Miniupnpd};
use crate::daemon::{Iwfd, Options};
use crate::script::{Manner, ScriptedServer};
use crate::topology::Lab;
use crate::wait;

const SOON: Duration = Duration::from_secs(20);

/// The lab with Debian's miniupnpd as the carrier's server.
#[derive(Debug)]
pub struct Cascade {
    /// The daemon.
    pub iwfd: Iwfd,
    /// The carrier's server; `None` while a test has taken it down.
    pub carrier: Option<Miniupnpd>,
    /// The network. Last, as it goes last.
    pub lab: Lab,
}

impl Cascade {
    /// Builds and starts everything.
    ///
    /// # Errors
    /// If a part does not start.
    pub fn up(options: &Options) -> Result<Self> {
        let lab = Lab::new()?;
        let carrier = Miniupnpd::start(&lab)?;
        let iwfd = Iwfd::start(&lab, options)?;
        Ok(Self {
            iwfd,
            carrier: Some(carrier),
            lab,
        })
    }

    /// The carrier's server loses everything it knew and starts anew.
    ///
    /// # Errors
    /// If it does not start again.
    pub fn restart_carrier(&mut self) -> Result<()> {
        let old = self.carrier.take().context("the carrier runs")?;
        old.lose_state()?;
        self.carrier = Some(Miniupnpd::start(&self.lab)?);
        Ok(())
    }

    /// Protocol, carrier's external port and NAT1 port of each mapping, as the carrier's kernel has them.
    ///
    /// # Errors
    /// If the carrier cannot be asked.
    pub fn at_the_carrier(&self) -> Result<BTreeSet<(String, u16, u16)>> {
        let forwards = carrier::forwards(&self.lab.cgn)?;
        Ok(forwards
            .into_iter()
            .map(|forward| (forward.protocol, forward.external_port, forward.to.1))
            .collect())
    }

    /// Waits until the carrier forwards these ports and no others: what is given back there is asked for, and answered,
    /// after a control point has heard of it.
    ///
    /// # Errors
    /// If it does not come to that.
    pub fn comes_to_hold(&self, wanted: &BTreeSet<(String, u16, u16)>) -> Result<()> {
        wait::until_ok("the carrier to hold what it should", SOON, || {
            let now = self.at_the_carrier()?;
            anyhow::ensure!(now == *wanted, "it holds {now:?}, not {wanted:?}");
            Ok(())
        })
    }

    /// The same, as the daemon lists them. A mapping that its kernel does not hold is an error.
    ///
    /// # Errors
    /// If the daemon cannot be asked, or a kernel entry is missing.
    pub fn at_the_iwf(&self) -> Result<BTreeSet<(String, u16, u16)>> {
        rows(&self.iwfd)?
            .iter()
            .map(|row| {
                anyhow::ensure!(row["kernel"] == true, "the kernel does not hold {row}");
                let protocol = row["protocol"].as_str().context("a protocol")?;
                Ok((
                    protocol.to_lowercase(),
                    endpoint(row, "carrier")?.port(),
                    endpoint(row, "nat1")?.port(),
                ))
            })
            .collect()
    }
}

/// The lab with a scripted PCP server.
#[derive(Debug)]
pub struct Scripted {
    /// The daemon.
    pub iwfd: Iwfd,
    /// The carrier's server.
    pub server: ScriptedServer,
    /// The network. Last, as it goes last.
    pub lab: Lab,
}

impl Scripted {
    /// Builds and starts everything.
    ///
    /// # Errors
    /// If a part does not start.
    pub fn up(manner: Manner) -> Result<Self> {
        Self::up_with(manner, &Options::default())
    }

    /// The same with another configuration.
    ///
    /// # Errors
    /// If a part does not start.
    pub fn up_with(manner: Manner, options: &Options) -> Result<Self> {
        let lab = Lab::new()?;
        let server = ScriptedServer::start(&lab, manner)?;
        let iwfd = Iwfd::start(&lab, options)?;
        Ok(Self { iwfd, server, lab })
    }
}

/// Mappings as `iwfctl mappings --json` lists them.
///
/// # Errors
/// If the daemon cannot be asked.
pub fn rows(iwfd: &Iwfd) -> Result<Vec<Value>> {
    let json = iwfd.ctl().json(&["mappings"])?;
    json.as_array().cloned().context("mappings are a list")
}

/// An endpoint in such a row.
///
/// # Errors
/// If it is absent.
pub fn endpoint(row: &Value, key: &str) -> Result<SocketAddrV4> {
    row[key]
        .as_str()
        .and_then(|text| text.parse().ok())
        .with_context(|| format!("{key} in {row}"))
}

/// Asserts that no table knows a mapping: listing, kernel, leases.
///
/// # Errors
/// If one does, or the daemon cannot be asked.
pub fn nothing_is_left(iwfd: &Iwfd) -> Result<()> {
    let audit = iwfd.ctl().json(&["audit"])?;
    for table in ["mappings", "kernel_entries", "leases"] {
        anyhow::ensure!(audit[table] == 0, "{table} are left: {audit}");
    }
    anyhow::ensure!(audit["clean"] == true, "not clean: {audit}");
    Ok(())
}
