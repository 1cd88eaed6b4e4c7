//! Carries what the packet programs leave: what is too large for the path, fragments of the outside, packets with
//! options, the CPE's own, and everything where XDP does not run.
//!
//! A thread of its own, because it moves packets: between a device, to which the kernel routes IPv4, and a raw socket
//! towards the AFTR. The kernel fragments what is sent by the socket to what the path takes, and reassembles what is
//! received (RFC 6333 section 5.3). It also joins segments of TCP before it gives them to a socket (GRO); they are cut
//! again, because the device is told nothing of that.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddrV6;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use iwf_common::reason::{Done, DropReason};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::{debug, warn};

use super::device::MTU;
use crate::daemon::dataplane::softwire::Counts;
use crate::proto::softwire::Ends;
use crate::wire::softwire::{Inside, segments};

/// Octets of the largest packet inside: an IPv6 packet's, less nothing that matters.
const LARGEST: usize = 65_535;
/// Packets of one side before the other has its turn.
const TURN: usize = 64;
/// Octets that the kernel may hold in each direction, if it allows that many.
const BUFFER: usize = 1 << 20;
/// IPv4 in IPv6 (RFC 2473).
const PROTOCOL: i32 = 4;

/// A running relay. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Relay {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts between the device and the AFTR, by the interface of this name only: nobody on the LAN speaks for the
    /// AFTR.
    ///
    /// # Errors
    /// There is no such socket, or the address is not ours (yet).
    pub(super) fn start(
        device: &OwnedFd,
        wan: &str,
        ends: Ends,
        inside: Inside,
        counts: Counts,
    ) -> io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let mut carrier = Carrier {
            device: device.try_clone()?.into(),
            socket: socket(wan, ends)?,
            stopped,
            inside,
            counts,
            buffer: vec![0; LARGEST],
        };
        let thread = thread::Builder::new()
            .name("softwire".to_owned())
            .spawn(move || {
                if let Err(error) = carrier.run() {
                    warn!(%error, "the softwire's relay ended: only what XDP carries goes through");
                }
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Relay {
    /// Whether it carries nothing any more, and never will.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Its other end wakes up.
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the softwire's relay has panicked");
        }
    }
}

/// Packets of the AFTR in, and to it out.
fn socket(wan: &str, ends: Ends) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(PROTOCOL)))?;
    socket.set_nonblocking(true)?;
    // First, so that nothing of another interface waits already.
    socket.bind_device(Some(wan.as_bytes()))?;
    socket.bind(&SocketAddrV6::new(ends.local, 0, 0, 0).into())?;
    socket.connect(&SocketAddrV6::new(ends.remote, 0, 0, 0).into())?;
    // Asked for; the kernel has a limit of its own.
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_send_buffer_size(BUFFER)?;
    Ok(socket)
}

struct Carrier {
    device: File,
    socket: Socket,
    stopped: UnixStream,
    inside: Inside,
    counts: Counts,
    buffer: Vec<u8>,
}

impl Carrier {
    fn run(&mut self) -> io::Result<()> {
        loop {
            let wants = PollFlags::POLLIN;
            let mut sources = [
                PollFd::new(self.device.as_fd(), wants),
                PollFd::new(self.socket.as_fd(), wants),
                PollFd::new(self.stopped.as_fd(), wants),
            ];
            match poll(&mut sources, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            let [device, socket, stopped] = sources.map(|source| source.any().unwrap_or_default());
            if stopped {
                return Ok(());
            }
            let mut carried = [
                (Done::SoftwireRelayedOut.slot(), 0),
                (Done::SoftwireRelayedIn.slot(), 0),
            ];
            let mut refused = 0;
            if device {
                self.turn(Self::out, &mut carried[0].1, &mut refused)?;
            }
            if socket {
                self.turn(Self::back, &mut carried[1].1, &mut refused)?;
            }
            let refused = (DropReason::SoftwireRelay.slot(), refused);
            for (slot, packets) in carried.into_iter().chain([refused]) {
                self.counts.add(slot, packets);
            }
        }
    }

    /// Some packets of one side.
    fn turn(
        &mut self,
        one: fn(&mut Self) -> io::Result<bool>,
        carried: &mut u64,
        refused: &mut u64,
    ) -> io::Result<()> {
        for _ in 0..TURN {
            match one(self) {
                Ok(true) => *carried += 1,
                Ok(false) => *refused += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_passing(&error) => {
                    debug!(%error, "the softwire's relay has lost a packet");
                    *refused += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One packet of the kernel to the AFTR; whether it went.
    fn out(&mut self) -> io::Result<bool> {
        let len = self.device.read(&mut self.buffer)?;
        let packet = self.buffer.get_mut(..len).unwrap_or_default();
        match self.inside.outbound(packet) {
            Ok(len) => {
                let packet = packet.get(..len).unwrap_or_default();
                Ok(sent(self.socket.send(packet), "to the AFTR"))
            }
            Err(refused) => {
                debug!(%refused, "not put into the softwire");
                Ok(false)
            }
        }
    }

    /// One packet of the AFTR to the kernel; whether it went.
    fn back(&mut self) -> io::Result<bool> {
        let len = self.socket.read(&mut self.buffer)?;
        let packet = self.buffer.get_mut(..len).unwrap_or_default();
        match self.inside.inbound(packet) {
            Ok(len) if len > MTU => {
                // Of one that is too large for the LAN after all the kernel tells the sender.
                let packet = packet.get(..len).unwrap_or_default();
                let mut went = true;
                for segment in segments(packet, MTU) {
                    went &= sent(self.device.write(&segment), "to the kernel");
                }
                Ok(went)
            }
            Ok(len) => {
                let packet = packet.get(..len).unwrap_or_default();
                Ok(sent(self.device.write(packet), "to the kernel"))
            }
            Err(refused) => {
                debug!(%refused, "not let out of the softwire");
                Ok(false)
            }
        }
    }
}

/// A full queue loses packets, as everywhere.
fn sent(outcome: io::Result<usize>, whom: &str) -> bool {
    if let Err(error) = &outcome {
        debug!(%error, "a packet of the softwire was not sent {whom}");
    }
    outcome.is_ok()
}

/// Whether the next packet may go: what a socket tells of one that was sent before, or of a network that is away.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionRefused, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable,
        PermissionDenied,
    };
    let kinds = [
        ConnectionRefused,
        HostUnreachable,
        Interrupted,
        NetworkDown,
        NetworkUnreachable,
        PermissionDenied,
    ];
    let numbers = [libc::EMSGSIZE, libc::EPROTO, libc::EIO];
    kinds.contains(&error.kind()) || error.raw_os_error().is_some_and(|n| numbers.contains(&n))
}
