//! What crosses a link, by tcpdump: an observation that no program under test takes part in.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::netns::Namespace;
use crate::pcp::{Opcode, Request, SERVER_PORT};
use crate::process::Process;
use crate::topology::Lab;

/// LINKTYPE_ETHERNET header, IPv4 header without options, UDP header.
const HEADERS: usize = 14 + 20 + 8;

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
        let name = format!("tap-{}-{interface}", host.host());
        let file = lab.dir().join(format!("{name}.pcap"));
        let path = file.display().to_string();
        let argv = [
            "tcpdump",
            "-i",
            interface,
            "-U",
            "--immediate-mode",
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
    /// If the file cannot be read.
    pub fn frames(&self) -> Result<Vec<Vec<u8>>> {
        let bytes = std::fs::read(&self.file).context("read a capture")?;
        Ok(frames(&bytes))
    }

    /// The frames so far, with the time since 1970 at which the kernel saw them.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn timed_frames(&self) -> Result<Vec<(Duration, Vec<u8>)>> {
        let bytes = std::fs::read(&self.file).context("read a capture")?;
        Ok(timed_frames(&bytes))
    }

    /// Ends the capture and returns all frames.
    ///
    /// # Errors
    /// If tcpdump does not end.
    pub fn finish(mut self) -> Result<Vec<Vec<u8>>> {
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(Duration::from_secs(10))?;
        self.frames()
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
