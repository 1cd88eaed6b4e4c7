//! A link without Ethernet headers between two hosts, as PPP and tunnels are: a tun device at each end, and what one host
//! sends is carried to the other. No kernel module but tun is needed.

use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};

use crate::netns::Namespace;

/// The link. It goes when the value drops.
#[derive(Debug)]
pub struct Wire {
    ends: [(Namespace, String); 2],
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Makes a device of that name at each host and sets it up; it has no address yet.
    ///
    /// # Errors
    /// If a host has a device of that name, or a privilege is missing.
    pub fn between(a: (&Namespace, &str), b: (&Namespace, &str)) -> Result<Self> {
        let mut files = Vec::new();
        for (host, name) in [a, b] {
            files.push(host.within(|| open(name))??);
            host.ip(&format!("link set {name} up"))?;
        }
        let mut threads = Vec::new();
        for (from, to) in [(0, 1), (1, 0)] {
            let (mut from, mut to) = (files[from].try_clone()?, files[to].try_clone()?);
            threads.push(std::thread::spawn(move || {
                let mut packet = vec![0; 65_536];
                while let Ok(len) = from.read(&mut packet) {
                    // What the far end does not take is lost, as on any wire.
                    to.write_all(&packet[..len]).ok();
                }
            }));
        }
        Ok(Self {
            ends: [(a.0.clone(), a.1.to_owned()), (b.0.clone(), b.1.to_owned())],
            threads,
        })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The threads end when the devices go.
        for (host, name) in &self.ends {
            host.ip(&format!("link del {name}")).ok();
        }
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// A device that carries bare IP packets, and the descriptor its packets come out of.
pub(crate) fn open(name: &str) -> Result<std::fs::File> {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("open /dev/net/tun")?;
    // struct ifreq: 16 octets of name, then flags, padded to 40.
    let mut request = [0u8; 40];
    ensure!(name.len() < 16, "{name} is no name of a device");
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = u16::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the descriptor is open and the request is as large as struct ifreq; the kernel keeps no pointer.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    ensure!(
        outcome == 0,
        "make {name}: {}",
        std::io::Error::last_os_error()
    );
    Ok(file)
}
