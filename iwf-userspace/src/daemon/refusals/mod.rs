//! Tells the senders of refused packets by ICMP errors: LAN hosts whose new flow there is no room for, and remote hosts
//! whose SYN nobody has answered for six seconds.
//!
//! The packet programs give copies of such packets, if `nat.refusals` says so. What is told to whom and when is
//! decided in [`queue`], what the errors look like in [`crate::wire::refused`]; here are the sockets. The kernel's own program on
//! WAN egress lets these errors pass, because nothing that they quote belongs to a session.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use iwf_common::reason::Done;
use iwf_common::refusal::Side;
use socket2::Socket;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::dataplane::fragments::sender as sender4;
use super::dataplane::refusals::{RefusalTables, Refusals, sender6};
use crate::wire::refused::{Refused, Speaker};
use queue::{Answers, Effect};

mod queue;

/// Answers what the programs refuse, until the daemon ends.
///
/// # Errors
/// The ring cannot be waited for, or there are no raw sockets.
pub(super) async fn serve(opened: RefusalTables, wan: &str) -> Result<()> {
    let sockets = Sockets::open(wan).context("open raw sockets")?;
    let (mut ring, mut tables) = opened.watch().context("wait for the ring")?;
    let mut answers = Answers::default();
    loop {
        let due = answers.poll_timeout();
        tokio::select! {
            taken = ring.take() => {
                let now = Instant::now();
                for taken in taken.context("wait for the ring")? {
                    if let Some(refused) = Refused::read(taken.side, taken.head) {
                        answers.handle_input(refused, now);
                    }
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        answers.handle_timeout(Instant::now(), |connection| {
            tables.has_session(connection.from.into(), connection.to.into())
        });
        while let Some(effect) = answers.poll_effect() {
            let counted = match effect {
                // The configuration may have changed while it waited.
                Effect::Tell(refused) if !tables.allows(refused.side, refused.to) => continue,
                Effect::Tell(refused) => match sockets.tell(&refused, speaker(&tables, &refused)) {
                    Ok(()) => Done::RefusalTold,
                    Err(error) => {
                        debug!(to = %refused.from, %error, "a refusal was not told");
                        Done::RefusalUntold
                    }
                },
                Effect::Count => Done::RefusalUntold,
            };
            if let Err(error) = tables.count(counted) {
                debug!(%error, "a refusal was not counted");
            }
        }
    }
}

/// A NAT answers for whoever might be behind it. What was for a host with an address of its own is the router's to say.
fn speaker(tables: &Refusals, refused: &Refused) -> Speaker {
    if refused.side == Side::Wan && tables.is_external(refused.to) {
        Speaker::Addressee
    } else {
        Speaker::Router
    }
}

/// What sends the errors. To the LAN the kernel finds the way and its own address there; what came by the WAN is
/// answered by the WAN, wherever the kernel would look for its sender.
struct Sockets {
    lan4: Socket,
    lan6: Socket,
    wan4: Socket,
    wan6: Socket,
    wan: String,
}

impl Sockets {
    fn open(wan: &str) -> std::io::Result<Self> {
        Ok(Self {
            lan4: sender4()?,
            lan6: sender6()?,
            wan4: sender4()?,
            wan6: sender6()?,
            wan: wan.to_owned(),
        })
    }

    fn tell(&self, refused: &Refused, speaker: Speaker) -> std::io::Result<()> {
        let v4 = refused.from.is_ipv4();
        let socket = match (refused.side, v4) {
            (Side::Wan, true) => &self.wan4,
            (Side::Wan, false) => &self.wan6,
            (Side::Lan | Side::Forwarded, true) => &self.lan4,
            (Side::Lan | Side::Forwarded, false) => &self.lan6,
        };
        if refused.side == Side::Wan {
            // Each time: an interface may go and come back.
            socket.bind_device(Some(self.wan.as_bytes()))?;
        }
        let to: IpAddr = refused.from;
        socket.send_to(&refused.error(speaker), &SocketAddr::new(to, 0).into())?;
        debug!(%to, about = %refused.to, "told that a packet was refused");
        Ok(())
    }
}

/// Runs [`serve`]; without it refused packets are dropped in silence.
pub(super) async fn run(tables: Result<RefusalTables>, wan: String) {
    let outcome = match tables {
        Ok(tables) => serve(tables, &wan).await,
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        warn!("nobody is told about refused packets: {error:#}");
    }
}
