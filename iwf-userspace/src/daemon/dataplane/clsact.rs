//! Takes filters away again where there is no tcx (kernels before 6.6).
#![forbid(unsafe_code)]

use std::io;

use aya::programs::tc::{SchedClassifierLink, TcHandle};
use futures_util::TryStreamExt as _;
use netlink_packet_route::tc::{TcHandle as Handle, TcMessage};

use super::attach::Hook;

/// Removes our filter of a device, and the clsact qdisc with it when no other filter is left. A device that is
/// gone took both along.
pub(super) fn remove(
    ifindex: u32,
    (priority, handle): (u16, TcHandle),
    hook: Hook,
) -> io::Result<()> {
    let Ok(name) = nix::net::if_::if_indextoname(ifindex) else {
        return Ok(());
    };
    let direction = hook.direction();
    // Dropping the link detaches it.
    drop(SchedClassifierLink::attached(
        &name.to_string_lossy(),
        direction,
        priority,
        handle,
        None,
    )?);
    let index = i32::try_from(ifindex).map_err(io::Error::other)?;
    apart(move || remove_qdisc_if_unused(index))
}

/// Runs on a thread of its own: the caller may be inside a runtime, and this must not be left half done.
fn apart(work: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(work);
        match thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn remove_qdisc_if_unused(index: i32) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let outcome = async {
            for filters in [
                handle.traffic_filter(index).get().ingress(),
                handle.traffic_filter(index).get().egress(),
            ] {
                let listed: Vec<TcMessage> = filters.execute().try_collect().await?;
                if !listed.is_empty() {
                    return Ok(());
                }
            }
            let mut removal = handle.qdisc().del(index);
            removal.message_mut().header.parent = Handle::CLSACT;
            removal.execute().await
        }
        .await;
        connection.abort();
        outcome.map_err(io::Error::other)
    })
}
