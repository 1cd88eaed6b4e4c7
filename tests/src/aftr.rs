//! The provider's end of a DS-Lite softwire (RFC 6333), without a kernel module: IPv4 comes out of a tun device, and a
//! raw socket has the kernel reassemble and fragment the IPv6 outside. The interface towards the subscriber must not join
//! segments (GRO): the device would not be told.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::netns::Namespace;
use crate::wire::open;

/// The name of its device.
pub const DEVICE: &str = "aftr0";

/// A running AFTR for one subscriber, the last one that has sent. It ends when the value drops.
#[derive(Debug)]
pub struct Aftr {
    host: Namespace,
    address: Ipv6Addr,
    heard: Arc<Mutex<Heard>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Heard {
    subscriber: Option<SockAddr>,
    sources: BTreeSet<Ipv4Addr>,
}

impl Aftr {
    /// Starts at that address, which the host has. IPv4 for `inside` is routed to the softwire.
    ///
    /// # Errors
    /// If the host has a device of that name, or a privilege is missing.
    pub fn start(host: &Namespace, address: Ipv6Addr, inside: &[&str]) -> Result<Self> {
        let device = host.within(|| open(DEVICE))??;
        host.ip(&format!("link set {DEVICE} mtu 1500 up"))?;
        host.ip(&format!("address add 192.0.0.1/29 dev {DEVICE}"))?;
        for prefix in inside {
            host.ip(&format!("route add {prefix} dev {DEVICE}"))?;
        }
        let socket = host.within(|| raw(address))??;
        let heard = Arc::new(Mutex::new(Heard::default()));
        let inbound = std::thread::spawn({
            let (socket, mut device) = (socket.try_clone()?, device.try_clone()?);
            let heard = Arc::clone(&heard);
            move || {
                let mut packet = vec![0; 65_536];
                while let Ok((len, from)) = receive(&socket, &mut packet) {
                    // A datagram of nothing wakes it up to end.
                    if len < 20 {
                        return;
                    }
                    let source = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]);
                    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    heard.subscriber = Some(from);
                    heard.sources.insert(source);
                    drop(heard);
                    // What the kernel does not take is lost.
                    device.write_all(&packet[..len]).ok();
                }
            }
        });
        let outbound = std::thread::spawn({
            let (mut device, heard) = (device, Arc::clone(&heard));
            move || {
                let mut packet = vec![0; 65_536];
                while let Ok(len) = device.read(&mut packet) {
                    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(subscriber) = &heard.subscriber {
                        socket.send_to(&packet[..len], subscriber).ok();
                    }
                }
            }
        });
        Ok(Self {
            host: host.clone(),
            address,
            heard,
            threads: vec![inbound, outbound],
        })
    }

    /// Who has sent inside.
    pub fn sources(&self) -> BTreeSet<Ipv4Addr> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.sources.clone()
    }

    /// The subscriber's end, as seen last.
    pub fn subscriber(&self) -> Option<Ipv6Addr> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let address = heard.subscriber.as_ref()?.as_socket_ipv6()?;
        Some(*address.ip())
    }
}

impl Drop for Aftr {
    fn drop(&mut self) {
        self.host.ip(&format!("link del {DEVICE}")).ok();
        send(&self.host, self.address, self.address, &[]).ok();
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// Sends an IPv4 packet in IPv6 from one address of a host; the kernel fragments it outside.
///
/// # Errors
/// If the kernel refuses.
pub fn send(host: &Namespace, from: Ipv6Addr, to: Ipv6Addr, packet: &[u8]) -> Result<()> {
    let socket = host.within(|| raw(from))??;
    let to = SocketAddrV6::new(to, 0, 0, 0).into();
    socket.send_to(packet, &to).context("send IPv4 in IPv6")?;
    Ok(())
}

fn raw(address: Ipv6Addr) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(4)))?;
    let address = std::net::SocketAddr::new(IpAddr::V6(address), 0);
    socket.bind(&address.into()).context("bind a raw socket")?;
    socket.set_recv_buffer_size(1 << 20)?;
    Ok(socket)
}

fn receive(socket: &Socket, packet: &mut [u8]) -> std::io::Result<(usize, SockAddr)> {
    let mut room = vec![std::mem::MaybeUninit::uninit(); packet.len()];
    let (len, from) = socket.recv_from(&mut room)?;
    for (to, from) in packet.iter_mut().zip(&room[..len]) {
        // SAFETY: the kernel has written so many octets.
        *to = unsafe { from.assume_init() };
    }
    Ok((len, from))
}
