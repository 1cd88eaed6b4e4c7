//! A carrier whose server speaks NAT-PMP only: PCP requests to it are answered as RFC 6886 section 3.5 says.
#![expect(
    clippy::disallowed_types,
    reason = "the harness talks to real programs over sockets, in real time"
)]

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use crate::netns::Namespace;
use crate::pcp;
use crate::topology::{CARRIER, Lab};

/// The version error: version 0, opcode 0, result 1, and some seconds since the start of epoch.
const VERSION_ERROR: [u8; 8] = [0, 0, 0, 1, 0, 0, 2, 0];
const TABLE: &str = "natpmp_only";

/// Stands before the carrier's server, whoever that is; what is not PCP gets to it. Ends on drop.
#[derive(Debug)]
pub struct NatPmpOnly {
    cgn: Namespace,
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NatPmpOnly {
    /// Answers every PCP request to the carrier from now on.
    ///
    /// # Errors
    /// If the carrier's kernel does not take the rules.
    pub fn start(lab: &Lab) -> Result<Self> {
        let socket = lab.cgn.within(|| UdpSocket::bind((CARRIER, 0)))??;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let (asked, stop) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let port = socket.local_addr()?.port();
        let thread = std::thread::spawn({
            let (asked, stop) = (Arc::clone(&asked), Arc::clone(&stop));
            move || {
                let mut buffer = [0; pcp::MAX_LEN];
                while !stop.load(Ordering::SeqCst) {
                    if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                        asked.fetch_add(1, Ordering::SeqCst);
                        socket.send_to(&VERSION_ERROR, from).ok();
                    }
                }
            }
        });
        let this = Self {
            cgn: lab.cgn.clone(),
            asked,
            stop,
            thread: Some(thread),
        };
        // One flow carries both protocols, so connection tracking must not see it.
        let server = pcp::SERVER_PORT;
        let rules = format!(
            "table ip {TABLE} {{\n\
             chain in {{ type filter hook prerouting priority raw;\n\
             ip daddr {CARRIER} udp dport {server} @th,64,8 2 notrack udp dport set {port}\n}}\n\
             chain out {{ type filter hook output priority raw;\n\
             ip saddr {CARRIER} udp sport {port} notrack udp sport set {server}\n}}\n\
             }}\n"
        );
        let file = lab.dir().join("natpmp-only.nft");
        std::fs::write(&file, rules)?;
        this.cgn.must(&["nft", "-f", &file.display().to_string()])?;
        Ok(this)
    }

    /// PCP requests answered so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for NatPmpOnly {
    fn drop(&mut self) {
        self.cgn.must(&["nft", "delete", "table", "ip", TABLE]).ok();
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
