//! The device that the kernel routes IPv4 to while there is a softwire.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use iwf_common::softwire::{B4_ADDR, B4_PREFIX_LEN};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};
use tracing::debug;

use crate::daemon::dataplane::tun::{self, SOFTWIRE as NAME};

/// Octets of the largest packet inside, whatever the path outside takes: what is larger than that is fragmented
/// outside (RFC 6333 section 5.3).
pub(super) const MTU: usize = 1500;
/// Of the default route. Others are preferred, so that nothing changes for who has one.
const METRIC: u32 = 4096;

/// The open device. It stays when this is dropped, and so does what XDP does by its route.
#[derive(Debug)]
pub(super) struct Device {
    handle: OwnedFd,
    ifindex: u32,
}

impl Device {
    /// Makes it, or takes over what an earlier daemon left.
    pub(super) fn open() -> io::Result<Self> {
        let handle = tun::open(NAME)?;
        let ifindex = nix::net::if_::if_nametoindex(NAME).map_err(io::Error::from)?;
        // It carries IPv4 only; the kernel would ask for routers on it.
        let path = format!("/proc/sys/net/ipv6/conf/{NAME}/disable_ipv6");
        if let Err(error) = std::fs::write(path, "1") {
            debug!(%error, "IPv6 is not switched off there");
        }
        Ok(Self { handle, ifindex })
    }

    pub(super) const fn handle(&self) -> &OwnedFd {
        &self.handle
    }

    pub(super) const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Its MTU, the CPE's address inside (RFC 6333 section 5.7) and the default route, which may be there already.
    pub(super) async fn configure(&self) -> Result<()> {
        let (connection, netlink, _) = rtnetlink::new_connection().context("open rtnetlink")?;
        let connection = tokio::spawn(connection);
        let outcome = self.configure_by(&netlink).await;
        connection.abort();
        outcome
    }

    async fn configure_by(&self, netlink: &rtnetlink::Handle) -> Result<()> {
        let link = LinkUnspec::new_with_index(self.ifindex)
            .mtu(MTU as u32)
            .up();
        netlink
            .link()
            .set(link.build())
            .execute()
            .await
            .context("set it up")?;
        let own = Ipv4Addr::from(B4_ADDR);
        netlink
            .address()
            .add(self.ifindex, IpAddr::V4(own), B4_PREFIX_LEN)
            .replace()
            .execute()
            .await
            .context("give it its address")?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(self.ifindex)
            .pref_source(own)
            .priority(METRIC)
            .build();
        netlink
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .context("route IPv4 to it")
    }

    /// Removes it with its address and its route.
    pub(super) fn release(self) -> io::Result<()> {
        tun::release(&self.handle)
    }
}
