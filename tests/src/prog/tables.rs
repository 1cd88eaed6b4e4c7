//! Writing and reading the tables.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap as BpfHashMap};
use iwf_common::config::{FdbKey, IfaceValue};
use iwf_common::flow::{SessionKey, SessionValue};
use iwf_common::flow6::{
    EndpointKey6, EndpointValue6, PinholeKey, PinholeValue, SessionKey6, SessionValue6,
};
use iwf_common::fragment::{FragmentKey, FragmentValue};
use iwf_common::host::{HostKey, HostValue, Totals};
use iwf_common::names;
use iwf_common::nat::{EndpointKey, FilterList, MappingValue, PeerKey, PeerValue};
use iwf_common::softwire::Softwire;

use super::Plane;

impl Plane {
    /// Enters an interface.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_iface(&mut self, ifindex: u32, value: IfaceValue) -> Result<()> {
        self.put(names::IFACES, ifindex, value)
    }

    /// Writes the remote prefixes of a mapping, by its external endpoint.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_filter(&mut self, key: EndpointKey, list: FilterList) -> Result<()> {
        self.put(names::FILTERS, key, list)
    }

    /// Enters a station behind a bridge port.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_station(&mut self, key: FdbKey, port: u32) -> Result<()> {
        self.put(names::BRIDGE_FDB, key, port)
    }

    /// Lets frames be redirected to an interface of the caller's namespace.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn set_device(&mut self, ifindex: u32) -> Result<()> {
        let map = self.ebpf.map_mut(names::DEVMAP).context("DEVMAP")?;
        let mut map = aya::maps::DevMapHash::try_from(map)?;
        Ok(map.insert(ifindex, ifindex, None, 0)?)
    }

    /// Says where the softwire ends.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_softwire(&mut self, value: Softwire) -> Result<()> {
        Ok(self.array(names::SOFTWIRE)?.set(0, value, 0)?)
    }

    /// Takes an interface out again.
    ///
    /// # Errors
    /// If it was not in.
    pub fn remove_device(&mut self, ifindex: u32) -> Result<()> {
        let map = self.ebpf.map_mut(names::DEVMAP).context("DEVMAP")?;
        let mut map = aya::maps::DevMapHash::try_from(map)?;
        Ok(map.remove(ifindex)?)
    }

    /// Removes a session entry.
    ///
    /// # Errors
    /// If there is none.
    pub fn remove_session(&mut self, key: SessionKey) -> Result<()> {
        let map = self.ebpf.map_mut(names::SESSIONS).context("SESSIONS")?;
        let mut map: BpfHashMap<_, SessionKey, SessionValue> = BpfHashMap::try_from(map)?;
        Ok(map.remove(&key)?)
    }

    /// Writes a session entry.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_session(&mut self, key: SessionKey, value: SessionValue) -> Result<()> {
        self.put(names::SESSIONS, key, value)
    }

    /// Writes a remote address that a mapping has sent to.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_peer(&mut self, key: PeerKey, value: PeerValue) -> Result<()> {
        self.put(names::PEERS, key, value)
    }

    /// Writes what a first fragment has left behind.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_fragment(&mut self, key: FragmentKey, value: FragmentValue) -> Result<()> {
        self.put(names::FRAGMENTS, key, value)
    }

    /// Writes an IPv6 session entry.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_session6(&mut self, key: SessionKey6, value: SessionValue6) -> Result<()> {
        self.put(names::SESSIONS6, key, value)
    }

    /// Writes an open IPv6 endpoint.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_endpoint6(&mut self, key: EndpointKey6, value: EndpointValue6) -> Result<()> {
        self.put(names::ENDPOINTS6, key, value)
    }

    /// Writes a pinhole, and that its host has one of its shape.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_pinhole(&mut self, key: PinholeKey, value: PinholeValue) -> Result<()> {
        let hosts = self.ebpf.map_mut(names::PINHOLE_HOSTS).context("map")?;
        let mut hosts: BpfHashMap<_, [u8; 16], u32> = BpfHashMap::try_from(hosts)?;
        let shapes = hosts.get(&key.internal, 0).unwrap_or(0);
        hosts.insert(key.internal, shapes | 1 << key.shape, 0)?;
        self.put(names::PINHOLES, key, value)
    }

    /// Removes a pinhole; that its host has its shape stays.
    ///
    /// # Errors
    /// If there is none.
    pub fn remove_pinhole(&mut self, key: PinholeKey) -> Result<()> {
        let map = self.ebpf.map_mut(names::PINHOLES).context("PINHOLES")?;
        let mut map: BpfHashMap<_, PinholeKey, PinholeValue> = BpfHashMap::try_from(map)?;
        Ok(map.remove(&key)?)
    }

    /// Lets `ago` ticks pass for first fragments.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn age_fragments6(&mut self, ago: u32) -> Result<()> {
        for (key, mut value) in self.state()?.fragments6 {
            value.since = value.since.wrapping_sub(ago);
            self.put(names::FRAGMENTS6, key, value)?;
        }
        Ok(())
    }

    /// Writes an entry of MAPPINGS_EXT or MAPPINGS_INT.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_mapping(&mut self, map: &str, key: EndpointKey, value: MappingValue) -> Result<()> {
        self.put(map, key, value)
    }

    /// Removes an entry of MAPPINGS_EXT or MAPPINGS_INT.
    ///
    /// # Errors
    /// If there is none.
    pub fn remove_mapping(&mut self, map: &str, key: EndpointKey) -> Result<()> {
        let map = self.ebpf.map_mut(map).context("map")?;
        let mut map: BpfHashMap<_, EndpointKey, MappingValue> = BpfHashMap::try_from(map)?;
        Ok(map.remove(&key)?)
    }

    /// Everything in HOSTS.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn hosts(&self) -> Result<BTreeMap<HostKey, HostValue>> {
        self.entries(names::HOSTS)
    }

    /// Reads TOTALS.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn totals(&self) -> Result<Totals> {
        Ok(Array::try_from(self.map(names::TOTALS)?)?.get(&0, 0)?)
    }

    /// Writes TOTALS.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_totals(&mut self, totals: Totals) -> Result<()> {
        Ok(self.array(names::TOTALS)?.set(0, totals, 0)?)
    }

    /// Writes an entry of HOSTS.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_host(&mut self, key: HostKey, value: HostValue) -> Result<()> {
        self.put(names::HOSTS, key, value)
    }

    /// Removes an entry of HOSTS.
    ///
    /// # Errors
    /// If there is none.
    pub fn remove_host(&mut self, key: HostKey) -> Result<()> {
        let map = self.ebpf.map_mut(names::HOSTS).context("HOSTS")?;
        let mut map: BpfHashMap<_, HostKey, HostValue> = BpfHashMap::try_from(map)?;
        Ok(map.remove(&key)?)
    }

    /// Says that the other mappings of a LAN host follow its explicit ones to an external address.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_paired(&mut self, host: [u8; 4], external: [u8; 4]) -> Result<()> {
        self.put(names::PAIRED, host, external)
    }

    /// Takes that back.
    ///
    /// # Errors
    /// If nobody said so.
    pub fn remove_paired(&mut self, host: [u8; 4]) -> Result<()> {
        let map = self.ebpf.map_mut(names::PAIRED).context("PAIRED")?;
        let mut map: BpfHashMap<_, [u8; 4], [u8; 4]> = BpfHashMap::try_from(map)?;
        Ok(map.remove(&host)?)
    }
}
