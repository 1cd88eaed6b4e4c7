//! What is known of PCP servers that nobody has configured: by our own questions, and by what the DHCP client of the
//! system was told.

use std::net::{IpAddr, Ipv6Addr};

use tracing::info;

use super::super::control::{Discovered as Row, Family};
use super::super::dataplane::DataPlane;
use super::super::discovery::{Report, Side};
use super::super::softwire::Hint;
use super::super::store::Store;
use super::{Datagrams, Shell};
use crate::iwf::{Discovered, Input};
use crate::types::Instant;
use crate::wire::pcp_servers::{Servers, from_hex};

/// Both sources for both protocols. What the client of the system was told comes from its lease, so it counts more.
#[derive(Clone, Debug, Default)]
pub(super) struct FoundServers {
    report: Option<Report>,
    told4: Option<Servers>,
    told6: Option<Servers>,
    /// What the AFTR's name stands for.
    aftr_address: Option<Ipv6Addr>,
}

impl FoundServers {
    /// Where the network says a DS-Lite tunnel ends.
    pub(super) fn aftr(&self) -> Option<String> {
        self.report.as_ref()?.v6.known.aftr.clone()
    }

    /// The same, and whether silence is an answer by now.
    pub(super) fn aftr_hint(&self) -> Hint {
        let known = self.report.as_ref().map(|report| &report.v6.known);
        Hint {
            name: known.and_then(|known| known.aftr.clone()),
            settled: known.is_some_and(|known| known.settled),
        }
    }

    fn discovered(&self) -> Discovered {
        let report = self.report.as_ref();
        let settled = |told: &Option<Servers>, side: Option<&Side>| {
            told.is_some() || side.is_some_and(|side| side.known.settled)
        };
        let (v4, v6) = (report.map(|r| &r.v4), report.map(|r| &r.v6));
        Discovered {
            settled: settled(&self.told4, v4) && settled(&self.told6, v6),
            dhcp4: lists(self.told4.as_ref(), v4),
            dhcp6: lists(self.told6.as_ref(), v6),
            aftr: self.aftr_address,
        }
    }

    /// One row for each protocol that something is known by.
    pub(super) fn rows(&self) -> Vec<Row> {
        let report = self.report.as_ref();
        let all = [
            (Family::Dhcp4, &self.told4, report.map(|r| &r.v4)),
            (Family::Dhcp6, &self.told6, report.map(|r| &r.v6)),
        ];
        let rows = all.into_iter().filter_map(|(family, told, side)| {
            if told.is_none() && side.is_none() {
                return None;
            }
            let heard = side.map(|side| side.heard).unwrap_or_default();
            let state = match side {
                _ if told.is_some() => "told",
                Some(side) if !side.known.settled => "asking",
                Some(_) if heard.answers > 0 => "answered",
                Some(_) | None => "unanswered",
            };
            Some(Row {
                family,
                state: state.to_owned(),
                servers: lists(told.as_ref(), side),
                answers: heard.answers,
                ignored: heard.ignored,
                discarded: heard.discarded,
            })
        });
        rows.collect()
    }
}

fn lists(told: Option<&Servers>, side: Option<&Side>) -> Vec<Vec<IpAddr>> {
    let own = side.map(|side| &side.known.servers);
    let servers = told.or(own);
    servers
        .map(|servers| servers.lists.clone())
        .unwrap_or_default()
}

impl<P: DataPlane, S: Store> Shell<P, S> {
    /// The DHCP servers of the WAN have said something.
    pub fn discovered(&mut self, report: Report, out: &mut impl Datagrams, now: Instant) {
        self.servers_found.report = Some(report);
        self.tell_found(out, now);
    }

    /// The name of the AFTR was resolved, or there is none any more.
    pub fn aftr_found(&mut self, at: Option<Ipv6Addr>, out: &mut impl Datagrams, now: Instant) {
        self.servers_found.aftr_address = at;
        self.tell_found(out, now);
    }

    /// The DHCP client of the system was told something.
    pub(super) fn dhcp_option(
        &mut self,
        family: Family,
        values: &[String],
        forget: bool,
        out: &mut impl Datagrams,
        now: Instant,
    ) -> Result<(), String> {
        let octets: Vec<_> = values
            .iter()
            .map(|text| from_hex(text).ok_or(format!("{text:?} is not hexadecimal")))
            .collect::<Result<_, _>>()?;
        let servers = match (family, octets.as_slice()) {
            (Family::Dhcp4, []) => Servers::default(),
            (Family::Dhcp4, [value]) => {
                Servers::from_option158(value).map_err(|error| error.to_string())?
            }
            (Family::Dhcp4, _) => return Err("option 158 has one value".to_owned()),
            (Family::Dhcp6, instances) => match Servers::from_option86(instances) {
                (servers, None) => servers,
                (_, Some(error)) => return Err(error.to_string()),
            },
        };
        info!(
            ?family,
            servers = ?servers.lists,
            forget,
            "the DHCP client of the system tells of PCP servers"
        );
        let told = match family {
            Family::Dhcp4 => &mut self.servers_found.told4,
            Family::Dhcp6 => &mut self.servers_found.told6,
        };
        *told = (!forget).then_some(servers);
        self.tell_found(out, now);
        if !forget {
            self.renewed(out, now);
        }
        Ok(())
    }

    /// The DHCP client of the system has renewed its lease.
    pub fn renewed(&mut self, out: &mut impl Datagrams, now: Instant) {
        self.input(Input::Renewed, out, now);
    }

    fn tell_found(&mut self, out: &mut impl Datagrams, now: Instant) {
        let discovered = self.servers_found.discovered();
        self.input(Input::Discovered(discovered), out, now);
    }
}
