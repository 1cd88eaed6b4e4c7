//! A PCP server on the carrier's address that answers as a script says, and remembers what it was asked.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the harness talks to real programs over sockets, in real time"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::fault::Fault;
use crate::pcp::{self, Map, Opcode, Request, Response, result};
use crate::topology::{CARRIER, EXTERNAL, Lab};
use crate::wait;

/// Epoch of a server that has just been started, in seconds: not new, so that a restart is a step back that
/// RFC 6887 section 8.5 lets no client overlook.
const AGE: u32 = 1000;

/// How the server answers MAP requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Not at all, nothing whatsoever.
    Silent,
    /// Every one with this result code.
    Refuse(u8),
    /// With the suggested port; another one is granted if a different client port holds it.
    Grant,
    /// Always with a port that was not asked for.
    GrantOther(u16),
    /// Octets that are no PCP answer.
    Garbage,
}

/// One datagram as it arrived.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Time since the server's start.
    pub at: Duration,
    /// Who sent it.
    pub from: SocketAddr,
    /// What it asked; `None` if it could not be read.
    pub request: Option<Request>,
}

#[derive(Debug)]
struct State {
    manner: Manner,
    /// The epoch when the counting began, and when that was.
    epoch: (u32, Instant),
    leases: BTreeMap<(u8, u16), Map>,
    /// External ports of these.
    taken: BTreeSet<(u8, u16)>,
    arrivals: Vec<Arrival>,
    /// What is done to the answers of the next MAP requests, one after another; each may be answered several times.
    faults: VecDeque<Vec<Fault>>,
    /// What is done to every answer when that is over.
    always: Vec<Fault>,
    late: Vec<(Instant, Vec<u8>, SocketAddr)>,
}

/// The running server; ends on drop.
#[derive(Debug)]
pub struct ScriptedServer {
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    socket: UdpSocket,
    thread: Option<JoinHandle<()>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl ScriptedServer {
    /// Listens where the CPE looks for the carrier's server.
    ///
    /// # Errors
    /// If something else listens there.
    pub fn start(lab: &Lab, manner: Manner) -> Result<Self> {
        Self::start_at(lab, CARRIER, manner)
    }

    /// Listens at another address of the carrier, which has it already.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_at(lab: &Lab, address: Ipv4Addr, manner: Manner) -> Result<Self> {
        let socket = lab
            .cgn
            .within(|| UdpSocket::bind((address, pcp::SERVER_PORT)))??;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let start = Instant::now();
        let state = Arc::new(Mutex::new(State {
            manner,
            epoch: (AGE, start),
            leases: BTreeMap::new(),
            taken: BTreeSet::new(),
            arrivals: Vec::new(),
            faults: VecDeque::new(),
            always: Vec::new(),
            late: Vec::new(),
        }));
        let other_port = lab.cgn.within(|| UdpSocket::bind((CARRIER, 0)))??;
        // Of several servers the first one has it; the others have another port there.
        let other_address = lab.cgn.within(|| {
            UdpSocket::bind((EXTERNAL, pcp::SERVER_PORT))
                .or_else(|_in_use| UdpSocket::bind((EXTERNAL, 0)))
        })??;
        let others = [other_port, other_address];
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (state, stop, socket) =
                (Arc::clone(&state), Arc::clone(&stop), socket.try_clone()?);
            move || serve(&socket, &others, &state, &stop, start)
        });
        Ok(Self {
            state,
            stop,
            socket,
            thread: Some(thread),
        })
    }

    /// Changes the manner from now on.
    pub fn set(&self, manner: Manner) {
        lock(&self.state).manner = manner;
    }

    /// Spoils the answers to the next MAP requests, one of these each. Several spoiled ones are sent one after another;
    /// none in a list means the right one.
    pub fn spoil_next(&self, faults: &[&[Fault]]) {
        let faults = faults.iter().map(|all| all.to_vec());
        lock(&self.state).faults.extend(faults);
    }

    /// Spoils every answer to a MAP request from now on, until it is said otherwise.
    pub fn spoil_all(&self, faults: &[Fault]) {
        lock(&self.state).always = faults.to_vec();
    }

    /// Everything that has arrived so far.
    pub fn arrivals(&self) -> Vec<Arrival> {
        lock(&self.state).arrivals.clone()
    }

    /// Forgets what has arrived: of a hundred thousand requests nobody asks.
    pub fn forget_arrivals(&self) {
        lock(&self.state).arrivals = Vec::new();
    }

    /// MAP requests so far.
    pub fn map_requests(&self) -> Vec<(Duration, Request)> {
        let with_time = |arrival: Arrival| Some((arrival.at, arrival.request?));
        self.arrivals()
            .into_iter()
            .filter_map(with_time)
            .filter(|(_, request)| request.opcode == Opcode::Map)
            .collect()
    }

    /// Age of its state in seconds.
    pub fn epoch(&self) -> u32 {
        lock(&self.state).epoch()
    }

    /// Leases that are held now.
    pub fn leases(&self) -> Vec<Map> {
        lock(&self.state).leases.values().copied().collect()
    }

    /// Forgets every lease and starts the epoch anew, as a device that restarted.
    pub fn lose_state(&self) {
        let mut state = lock(&self.state);
        state.leases.clear();
        state.taken.clear();
        state.epoch = (0, Instant::now());
    }

    /// Sends octets to a client from the server's port.
    ///
    /// # Errors
    /// If they cannot be sent.
    pub fn send(&self, octets: &[u8], to: SocketAddr) -> Result<()> {
        self.socket.send_to(octets, to)?;
        Ok(())
    }

    /// Announces the epoch to all nodes of the subscribers' link (RFC 6887 section 14.1.2).
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn announce(&self, lab: &Lab) -> Result<()> {
        let response = Response {
            opcode: Opcode::Announce,
            result: result::SUCCESS,
            lifetime: 0,
            epoch: lock(&self.state).epoch(),
            map: None,
        };
        lab.cgn.ip("route replace 224.0.0.0/4 dev br0")?;
        self.send(&response.encode(), SocketAddr::V4(pcp::ANNOUNCEMENTS))
    }

    /// Waits until a MAP request fits.
    ///
    /// # Errors
    /// If none has within `within`.
    pub fn wait_for_map(
        &self,
        what: &str,
        within: Duration,
        fits: impl Fn(&Request) -> bool,
    ) -> Result<Request> {
        wait::until(what, within, || {
            let all = self.map_requests();
            all.into_iter()
                .map(|(_, request)| request)
                .find(|request| fits(request))
        })
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn serve(
    socket: &UdpSocket,
    others: &[UdpSocket; 2],
    state: &Mutex<State>,
    stop: &AtomicBool,
    start: Instant,
) {
    let mut buf = [0; pcp::MAX_LEN];
    while !stop.load(Ordering::SeqCst) {
        let received = socket.recv_from(&mut buf);
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut lock(state).late)
            .into_iter()
            .partition(|(at, ..)| *at <= now);
        lock(state).late = later;
        let due: Vec<(Instant, Vec<u8>, SocketAddr)> = due;
        for (_, octets, to) in due {
            socket.send_to(&octets, to).ok();
        }
        let Ok((len, from)) = received else {
            continue;
        };
        let request = Request::decode(&buf[..len]).ok();
        let mut state = lock(state);
        state.arrivals.push(Arrival {
            at: start.elapsed(),
            from,
            request: request.clone(),
        });
        let is_map = request.as_ref().is_some_and(|r| r.map.is_some());
        let mut faults = Vec::new();
        if is_map {
            let next = state.faults.pop_front();
            faults = next.unwrap_or_else(|| state.always.clone());
        }
        // Who refuses holds nothing.
        let refuses = faults.iter().any(|fault| fault.refuses());
        let answer = request.and_then(|request| match refuses {
            true => Some(state.echo(&request).encode()),
            false => state.answer(&request),
        });
        let Some(right) = answer else {
            continue;
        };
        if faults.is_empty() {
            socket.send_to(&right, from).ok();
        }
        for fault in faults {
            let Some(octets) = fault.spoil(&right) else {
                continue;
            };
            let times = if fault == Fault::Twice { 2 } else { 1 };
            if let Fault::Late(after) = fault {
                state.late.push((now + after, octets, from));
                continue;
            }
            let [other_port, other_address] = others;
            let by = if fault == Fault::OtherPort {
                other_port
            } else if fault == Fault::OtherAddress {
                other_address
            } else {
                socket
            };
            for _ in 0..times {
                by.send_to(&octets, from).ok();
            }
        }
    }
}

impl State {
    fn epoch(&self) -> u32 {
        let (base, since) = self.epoch;
        base.saturating_add(u32::try_from(since.elapsed().as_secs()).unwrap_or(u32::MAX))
    }

    fn echo(&self, request: &Request) -> Response {
        Response {
            opcode: request.opcode,
            result: result::SUCCESS,
            lifetime: request.lifetime,
            epoch: self.epoch(),
            map: request.map,
        }
    }

    fn answer(&mut self, request: &Request) -> Option<Vec<u8>> {
        let mut response = self.echo(request);
        match self.manner {
            Manner::Silent => return None,
            Manner::Garbage => return Some(vec![0xff; 24]),
            _ if request.map.is_none() => {}
            Manner::Refuse(code) => {
                response.result = code;
                response.lifetime = 30;
            }
            Manner::Grant => {
                response.map = request
                    .map
                    .map(|map| self.grant(map, request.lifetime, None))
            }
            Manner::GrantOther(port) => {
                response.map = request
                    .map
                    .map(|map| self.grant(map, request.lifetime, Some(port)));
            }
        }
        Some(response.encode())
    }

    fn grant(&mut self, mut map: Map, lifetime: u32, port: Option<u16>) -> Map {
        let key = (map.protocol, map.internal_port);
        map.external_addr = EXTERNAL;
        let held = self.leases.remove(&key);
        if let Some(held) = held {
            self.taken.remove(&(held.protocol, held.external_port));
        }
        if lifetime == 0 {
            return map;
        }
        if let Some(port) = port {
            map.external_port = port;
        }
        if let Some(held) = held {
            map.external_port = held.external_port;
        }
        let is_taken = |port: u16| self.taken.contains(&(map.protocol, port));
        while map.external_port == 0 || is_taken(map.external_port) {
            map.external_port = map.external_port.wrapping_add(1).max(1024);
        }
        self.taken.insert((map.protocol, map.external_port));
        self.leases.insert(key, map);
        map
    }
}
