//! Watches interfaces, addresses, routes, neighbours and bridge stations over rtnetlink.
//!
//! One task folds what the kernel tells into [`state::State`] and publishes a whole [`NetState`] when it has
//! changed. Readers that are slow see the latest one and have missed nothing.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{Stream, StreamExt, TryStreamExt};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::daemon::netstate::NetState;
pub use state::Interfaces;
use state::State;

mod state;

/// Quiet time after which a burst of messages counts as over.
const SETTLE: Duration = Duration::from_millis(10);
/// A burst that does not end is published all the same after this time.
const SETTLE_AT_MOST: Duration = Duration::from_millis(100);
/// Pause before a lost connection to the kernel is opened again.
const RECONNECT: Duration = Duration::from_secs(1);

/// Begins to watch; the first state is there when this returns. The task ends when every receiver is gone.
///
/// # Errors
/// Netlink is not available, or a dump failed.
pub async fn watch(interfaces: Interfaces) -> Result<(watch::Receiver<NetState>, JoinHandle<()>)> {
    let mut state = State::new(interfaces);
    let mut kernel = Kernel::connect(&mut state).await?;
    let (sender, receiver) = watch::channel(state.snapshot());
    let task = tokio::spawn(async move {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                alive = kernel.next_burst(&mut state) => {
                    publish(&sender, &state);
                    if alive.is_ok() {
                        continue;
                    }
                }
            }
            warn!("connection to rtnetlink lost");
            kernel = loop {
                tokio::time::sleep(RECONNECT).await;
                match Kernel::connect(&mut state).await {
                    Ok(kernel) => break kernel,
                    Err(error) => warn!("cannot watch the network: {error:#}"),
                }
            };
            publish(&sender, &state);
        }
    });
    Ok((receiver, task))
}

fn publish(sender: &watch::Sender<NetState>, state: &State) {
    let now = state.snapshot();
    sender.send_if_modified(|last| {
        let changed = *last != now;
        if changed {
            debug!(wan = ?now.wan, ports = now.ports.len(), next_hops = now.next_hops, "network changed");
            *last = now;
        }
        changed
    });
}

/// The subscription, and a handle for dumps on the same socket.
struct Kernel<M> {
    handle: Handle,
    messages: M,
    connection: AbortHandle,
}

/// The connection to the kernel is gone.
struct Lost;

impl<M> Drop for Kernel<M> {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Kernel<()> {
    async fn connect(
        state: &mut State,
    ) -> Result<Kernel<impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin + use<>>>
    {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
        ])
        .context("subscribe to rtnetlink")?;
        let kernel = Kernel {
            handle,
            messages: messages.map(|(message, _)| message),
            connection: tokio::spawn(connection).abort_handle(),
        };
        // After the subscription: what changes during the dump is told afterwards, and folding it twice is harmless.
        state.resync(&dump(&kernel.handle).await?);
        Ok(kernel)
    }
}

impl<M: Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin> Kernel<M> {
    /// Waits for a message, then folds until it is quiet.
    async fn next_burst(&mut self, state: &mut State) -> Result<(), Lost> {
        let mut lost_messages = false;
        let first = self.messages.next().await.ok_or(Lost)?;
        lost_messages |= fold(state, &first);
        let deadline = Instant::now() + SETTLE_AT_MOST;
        loop {
            let until = deadline.min(Instant::now() + SETTLE);
            match tokio::time::timeout_at(until, self.messages.next()).await {
                Ok(Some(message)) => lost_messages |= fold(state, &message),
                Ok(None) => return Err(Lost),
                Err(_) => break,
            }
        }
        if lost_messages {
            warn!("rtnetlink overran; reading everything again");
            let dump = dump(&self.handle).await.map_err(|error| {
                warn!("cannot read the network: {error:#}");
                Lost
            })?;
            state.resync(&dump);
        }
        Ok(())
    }
}

/// Whether messages were lost before this one.
fn fold(state: &mut State, message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    if let NetlinkPayload::InnerMessage(inner) = &message.payload {
        state.fold(inner);
    }
    matches!(message.payload, NetlinkPayload::Overrun(_))
}

/// Everything [`State`] folds, links first because the rest refers to them.
async fn dump(handle: &Handle) -> Result<Vec<RouteNetlinkMessage>> {
    let mut all = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.context("list links")? {
        all.push(RouteNetlinkMessage::NewLink(link));
    }
    let mut addresses = handle.address().get().execute();
    while let Some(address) = addresses.try_next().await.context("list addresses")? {
        all.push(RouteNetlinkMessage::NewAddress(address));
    }
    let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    for family in [v4, v6] {
        let routes = handle.route().get(family).execute();
        let mut routes = std::pin::pin!(routes);
        while let Some(route) = routes.try_next().await.context("list routes")? {
            all.push(RouteNetlinkMessage::NewRoute(route));
        }
    }
    for family in [
        AddressFamily::Inet,
        AddressFamily::Inet6,
        AddressFamily::Bridge,
    ] {
        let mut request = handle.neighbours().get();
        request.message_mut().header.family = family;
        let mut neighbours = request.execute();
        while let Some(entry) = neighbours.try_next().await.context("list neighbours")? {
            all.push(RouteNetlinkMessage::NewNeighbour(entry));
        }
    }
    Ok(all)
}
