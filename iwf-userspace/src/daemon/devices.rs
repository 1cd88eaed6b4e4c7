//! Who is on the LAN: the kernel's neighbours there.
//!
//! Read before editing: rtnetlink(7), ip-neighbour(8).
//!
//! Looked at from time to time, whole, because rules and quotas are about devices that may not be calling just now. Who
//! calls is asked for at that moment, in `neighbours.rs`.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use rtnetlink::Handle;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::neighbours;
use super::netstate::NetState;
use crate::types::device::LanDevices;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(10);

/// Begins to look, on a task of its own that ends when nobody listens any more.
///
/// # Errors
/// There is no netlink socket to be had.
pub fn watch(network: watch::Receiver<NetState>) -> io::Result<watch::Receiver<LanDevices>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let (sender, receiver) = watch::channel(LanDevices::default());
    tokio::spawn(async move {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut fails = false;
        loop {
            tokio::select! {
                () = sender.closed() => return,
                _ = look.tick() => {}
            }
            let seen = now(&handle, &network).await;
            match &seen {
                Err(error) if !fails => warn!(%error, "cannot ask for the neighbours"),
                Err(error) => debug!(%error, "cannot ask for the neighbours"),
                Ok(_) => {}
            }
            fails = seen.is_err();
            let seen = seen.unwrap_or_default();
            sender.send_if_modified(|last| {
                let changed = *last != seen;
                if changed {
                    *last = seen;
                }
                changed
            });
        }
    });
    Ok(receiver)
}

async fn now(
    handle: &Handle,
    network: &watch::Receiver<NetState>,
) -> Result<LanDevices, rtnetlink::Error> {
    let links: BTreeSet<u32> = {
        let network = network.borrow();
        network.served().iter().map(|link| link.ifindex).collect()
    };
    Ok(LanDevices {
        neighbours: Some(neighbours::of_links(handle, &links).await?),
        leases: None,
    })
}
