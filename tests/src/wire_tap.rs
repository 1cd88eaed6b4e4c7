//! What crosses a link, by tcpdump: an observation that no program under test takes part in.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::netns::Namespace;
use crate::pcp::{Opcode, Request, SERVER_PORT};
use crate::process::Process;
use crate::topology::Lab;
use crate::wait;

/// LINKTYPE_ETHERNET header, IPv4 header without options, UDP header.
const HEADERS: usize = 14 + 20 + 8;
/// Memory for frames that tcpdump has not come to yet, in KiB. Of its own choice it has room for 32 on a link with
/// offloads, and says nothing of those that it loses.
const BUFFER: &str = "16384";

/// A running capture on one interface; ends on drop.
#[derive(Debug)]
pub struct Tap {
    process: Process,
    file: PathBuf,
}

impl Tap {
    /// Captures what fits `filter` (pcap syntax) and waits until the capture runs.
    ///
    /// # Errors
    /// If tcpdump does not start.
    pub fn start(lab: &Lab, host: &Namespace, interface: &str, filter: &str) -> Result<Self> {
        // What an earlier one at the same place has said and written is not this one's.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tap-{number}-{}-{interface}", host.host());
        let file = lab.dir().join(format!("{name}.pcap"));
        let path = file.display().to_string();
        let argv = [
            "tcpdump",
            "-i",
            interface,
            "-U",
            "--immediate-mode",
            "-B",
            BUFFER,
            "-n",
            "-Z",
            "root",
            "-w",
            &path,
            filter,
        ];
        let mut process = host.spawn(&name, &argv)?;
        process.wait_for_log("listening on", Duration::from_secs(10))?;
        Ok(Self { process, file })
    }

    /// The frames so far.
    ///
    /// # Errors
    /// If tcpdump has ended, or the file cannot be read.
    pub fn frames(&self) -> Result<Vec<Vec<u8>>> {
        self.catch_up()?;
        Ok(frames(&self.read()?))
    }

    /// The frames so far, with the time since 1970 at which the kernel saw them.
    ///
    /// # Errors
    /// If tcpdump has ended, or the file cannot be read.
    pub fn timed_frames(&self) -> Result<Vec<(Duration, Vec<u8>)>> {
        self.catch_up()?;
        Ok(timed_frames(&self.read()?))
    }

    /// Ends the capture and returns all frames.
    ///
    /// # Errors
    /// If tcpdump does not end.
    pub fn finish(mut self) -> Result<Vec<Vec<u8>>> {
        // The signal ends it at once, whatever it has not come to.
        self.catch_up()?;
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(Duration::from_secs(10))?;
        Ok(frames(&self.read()?))
    }

    /// Waits until tcpdump has written every frame that the kernel has kept for it: it sleeps only when there is none.
    fn catch_up(&self) -> Result<()> {
        let stat = format!("/proc/{}/stat", self.process.pid());
        wait::until_ok("tcpdump to catch up", Duration::from_secs(10), || {
            let line = std::fs::read_to_string(&stat).context("look at tcpdump")?;
            ensure!(line.contains(") S "), "it works: {line}");
            Ok(())
        })
    }

    fn read(&self) -> Result<Vec<u8>> {
        std::fs::read(&self.file).context("read a capture")
    }
}

/// Frames of a pcap file as tcpdump writes it here: 24 octets of header, then per frame 16 octets (seconds,
/// microseconds, length, length on the wire; the machine's byte order) and the frame. A frame that is still
/// being written is left out.
fn frames(file: &[u8]) -> Vec<Vec<u8>> {
    let timed = timed_frames(file).into_iter();
    timed.map(|(_, frame)| frame).collect()
}

fn timed_frames(file: &[u8]) -> Vec<(Duration, Vec<u8>)> {
    let mut found = Vec::new();
    let mut rest = file.get(24..).unwrap_or_default();
    while let Some(length) = rest.get(8..12).and_then(|octets| octets.try_into().ok()) {
        let end = 16 + u32::from_ne_bytes(length) as usize;
        let Some(frame) = rest.get(16..end) else {
            break;
        };
        let number = |at: usize| {
            let octets = rest.get(at..at + 4).and_then(|o| o.try_into().ok());
            u64::from(octets.map_or(0, u32::from_ne_bytes))
        };
        let at = Duration::from_secs(number(0)) + Duration::from_micros(number(4));
        found.push((at, frame.to_vec()));
        rest = rest.get(end..).unwrap_or_default();
    }
    found
}

/// The PCP requests that leave the CPE.
#[derive(Debug)]
pub struct PcpTap(Tap);

impl PcpTap {
    /// Listens on the carrier's side of the link.
    ///
    /// # Errors
    /// If tcpdump does not start.
    pub fn start(lab: &Lab) -> Result<Self> {
        let filter = format!("ip and udp dst port {SERVER_PORT}");
        Tap::start(lab, &lab.cgn, "br0", &filter).map(Self)
    }

    /// MAP requests so far, repetitions included.
    ///
    /// # Errors
    /// If the capture cannot be read.
    pub fn map_requests(&self) -> Result<Vec<Request>> {
        let timed = self.timed_map_requests()?;
        Ok(timed.into_iter().map(|(_, request)| request).collect())
    }

    /// The same, with the time since 1970 at which the kernel saw each.
    ///
    /// # Errors
    /// If the capture cannot be read.
    pub fn timed_map_requests(&self) -> Result<Vec<(Duration, Request)>> {
        let frames = self.0.timed_frames()?.into_iter();
        let requests = frames.filter_map(|(at, frame)| {
            let request = Request::decode(frame.get(HEADERS..)?).ok()?;
            (request.opcode == Opcode::Map).then_some((at, request))
        });
        Ok(requests.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::frames;

    #[test]
    fn a_half_written_frame_is_left_out() {
        let mut file = vec![0; 24];
        for (length, present) in [(3_u32, 3), (5, 2)] {
            file.extend([0; 8]);
            file.extend(length.to_ne_bytes());
            file.extend(length.to_ne_bytes());
            file.extend(vec![7; present]);
        }
        assert_eq!(frames(&file), [vec![7; 3]]);
    }
}
