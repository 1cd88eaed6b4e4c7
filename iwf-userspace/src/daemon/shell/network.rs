//! What the configuration and the network say: to the data plane first, then to the core.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use tracing::{info, warn};

use super::{Datagrams, RETRY, Shell, log_plane};
use crate::daemon::config::FlowRules;
use crate::daemon::control::events::EventKind;
use crate::daemon::dataplane::softwire::Softwire;
use crate::daemon::dataplane::{DataPlane, Pinhole};
use crate::daemon::netstate::NetState;
use crate::daemon::softwire::Hint;
use crate::daemon::store::Store;
use crate::iwf::pinholes::Lan6;
use crate::iwf::policy::Wanted;
use crate::iwf::{Asking, Input, Translation};
use crate::mapping::StaticMapping;
use crate::mapping::policy::LanPrefix;
use crate::proto::gena;
use crate::types::device::LanDevices;
use crate::types::{Instant, Protocol};

impl<P: DataPlane, S: Store> Shell<P, S> {
    /// Interfaces or addresses changed. The data plane goes first, so that nothing is translated to an address
    /// that is no longer ours.
    pub fn network(&mut self, network: NetState, out: &mut impl Datagrams, now: Instant) {
        if self.network.wan != network.wan {
            info!(address = ?network.wan.address, gateway = ?network.wan.gateway, "WAN changed");
            let shown = |addr: Option<Ipv4Addr>| {
                addr.map_or_else(|| "none".to_owned(), |addr| addr.to_string())
            };
            let (address, gateway) = (shown(network.wan.address), shown(network.wan.gateway));
            let detail = format!("address {address}, gateway {gateway}");
            self.tell_text(EventKind::WanChanged, None, detail);
        }
        if let Some((prefix, len)) = network.conflict().filter(|_| {
            let told = self.network.conflict();
            told != network.conflict()
        }) {
            warn!(
                external = ?network.external_addr,
                "the provider's network overlaps with {prefix}/{len} of the LAN: hosts there are not reached from here; \
                 give the LAN another prefix"
            );
        }
        let stations_only = self.network.is_same_but_for_stations(&network);
        self.network = network;
        self.configure(now);
        let lan = self.network.lan.iter().map(|link| LanPrefix {
            own: link.addr,
            len: link.prefix_len,
            interface: link.ifindex,
        });
        let (lan, wan) = (lan.collect(), self.network.wan.clone());
        let lan6 = Lan6 {
            prefixes: self.network.lan6.clone(),
            own: self.network.own6.clone(),
            interfaces: self.network.lan6_interfaces.clone(),
        };
        let links = self.network.served().into_iter().map(|link| gena::Link {
            at: gena::At {
                own: link.addr,
                interface: link.ifindex,
            },
            len: link.prefix_len,
        });
        let links = Input::Links {
            links: links.collect(),
            own: self.network.own6.clone(),
        };
        self.input(Input::Lan(lan), out, now);
        self.input(links, out, now);
        self.input(Input::Lan6(lan6), out, now);
        self.input(Input::Wan(wan), out, now);
        // Stations come and go all the time.
        if !stations_only {
            self.nudge(now);
        }
    }

    /// Other services of this machine are open to the WAN.
    pub fn set_host_ports(
        &mut self,
        host_ports: Vec<(Protocol, u16)>,
        out: &mut impl Datagrams,
        now: Instant,
    ) {
        self.host_ports = host_ports.clone();
        self.input(Input::Reserved(host_ports), out, now);
        self.configure(now);
    }

    /// The mappings that the configuration states.
    pub fn set_statics(
        &mut self,
        statics: Vec<StaticMapping>,
        out: &mut impl Datagrams,
        now: Instant,
    ) {
        self.input(Input::Statics(statics), out, now);
    }

    /// The owner has changed the policy.
    pub fn set_policy(&mut self, policy: Wanted, out: &mut impl Datagrams, now: Instant) {
        self.input(Input::Policy(policy), out, now);
    }

    /// Who is on the LAN.
    pub fn set_devices(&mut self, devices: LanDevices, out: &mut impl Datagrams, now: Instant) {
        self.input(Input::Devices(devices), out, now);
    }

    /// The ports this machine uses itself, as they are now. The data plane hears of them when it is configured next.
    pub fn set_own_ports(
        &mut self,
        own_ports: BTreeSet<(Protocol, u16)>,
        out: &mut impl Datagrams,
        now: Instant,
    ) {
        if self.own_ports != own_ports {
            self.own_ports = own_ports;
            self.input(Input::OwnPorts(self.own_ports.clone()), out, now);
        }
    }

    /// Makes the data plane follow again. Never before the network was told: without interfaces it would let go of all.
    pub fn follow_again(&mut self, now: Instant) {
        self.configure(now);
    }

    /// Other pinholes are open. Takes effect with the next change of the network or of the services.
    pub fn set_pinholes(&mut self, pinholes: Vec<Pinhole>) {
        self.pinholes.stated = pinholes;
    }

    /// Other rules hold for new flows. Takes effect as [`Shell::set_pinholes`] does.
    pub fn set_rules(&mut self, rules: FlowRules) {
        self.rules = rules;
    }

    /// IPv4 goes another way through IPv6, or none. Takes effect at once, unless the network was not told yet.
    pub fn set_softwire(&mut self, softwire: Softwire, out: &mut impl Datagrams, now: Instant) {
        self.softwire = softwire;
        if self.network != NetState::default() {
            self.configure(now);
        }
        // While it is not decided, what was said before holds.
        match softwire {
            Softwire::Off => self.aftr_found(None, out, now),
            Softwire::Undecided => {}
            Softwire::On(path) => self.aftr_found(Some(path.remote), out, now),
        }
    }

    /// What DHCP has said of the AFTR.
    pub fn aftr_hint(&self) -> Hint {
        self.servers_found.aftr_hint()
    }

    /// Whom the configuration wants asked now.
    pub fn set_asking(&mut self, asking: Asking, out: &mut impl Datagrams, now: Instant) {
        self.input(Input::Asking(asking), out, now);
    }

    fn configure(&mut self, now: Instant) {
        self.routed = self.is_routed();
        let host_ports = self.host_ports.clone();
        let mut config = match self.routed {
            true => self.network.routed_config(host_ports),
            false => self.network.plane_config(host_ports),
        };
        config.own_ports = self.own_ports.clone();
        config.pinholes = self.wanted_pinholes();
        config.rules = self.rules;
        config.softwire = self.softwire;
        if let Err(error) = self.plane.configure(&config) {
            log_plane("configure", error);
            self.runs.due = Some(now + RETRY);
        }
    }

    /// The programs know who translates before they are told what it means for mappings. Never before the network was
    /// told.
    pub(super) fn follow_translation(&mut self, now: Instant) {
        if self.routed != self.is_routed() && self.network != NetState::default() {
            self.configure(now);
        }
    }

    /// Whether packets keep their addresses on the way by the WAN. In a softwire they do without having been told.
    fn is_routed(&self) -> bool {
        self.core.translation() == Translation::Routed
    }
}
