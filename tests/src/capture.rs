//! A packet test as a file that any analyser opens: what went in, what came out, and what was said about it.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use pcap_file::DataLink;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};

/// An open file in the pcapng format. Time in it is the order of events, one microsecond apart.
pub struct Capture {
    writer: PcapNgWriter<BufWriter<File>>,
    hooks: Vec<String>,
    events: u32,
}

/// Direction bits of a packet's flags (pcapng, epb_flags).
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

impl Capture {
    /// The file of the running test, `<suite>/<test>.pcapng` below `directory()`. A test with several cases
    /// gets a number behind the name of each but the first.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn of_this_test(suite: &str) -> Result<Self> {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed").replace("::", ".");
        let directory = directory().join(suite);
        fs::create_dir_all(&directory)?;
        let numbered = |n: u32| match n {
            1 => directory.join(format!("{name}.pcapng")),
            n => directory.join(format!("{name}.{n}.pcapng")),
        };
        let taken = TAKEN.with(|taken| {
            taken.set(taken.get() + 1);
            taken.get()
        });
        Self::create(&numbered(taken))
    }

    /// A new file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self {
            writer: PcapNgWriter::new(BufWriter::new(file))?,
            hooks: Vec::new(),
            events: 0,
        })
    }

    /// One run of a program: the frame that `hook` was given, the one it left, and what the test saw it do.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn run(&mut self, hook: &str, before: &[u8], after: &[u8], seen: &str) -> Result<()> {
        let interface = self.interface(hook)?;
        self.packet(interface, before, INBOUND, hook)?;
        self.packet(interface, after, OUTBOUND, seen)
    }

    /// Hooks are interfaces of the file, described when they first appear.
    fn interface(&mut self, hook: &str) -> Result<u32> {
        if let Some(known) = self.hooks.iter().position(|known| known == hook) {
            return Ok(u32::try_from(known)?);
        }
        self.writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: 0,
            options: vec![InterfaceDescriptionOption::IfName(Cow::Borrowed(hook))],
        })?;
        self.hooks.push(hook.to_owned());
        Ok(u32::try_from(self.hooks.len() - 1)?)
    }

    fn packet(&mut self, interface: u32, data: &[u8], flags: u32, comment: &str) -> Result<()> {
        self.events += 1;
        self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id: interface,
            // The crate writes nanoseconds where the interface says microseconds.
            timestamp: Duration::from_nanos(self.events.into()),
            original_len: u32::try_from(data.len())?,
            data: Cow::Borrowed(data),
            options: vec![
                EnhancedPacketOption::Flags(flags),
                EnhancedPacketOption::Comment(Cow::Borrowed(comment)),
            ],
        })?;
        Ok(())
    }
}

thread_local! {
    static TAKEN: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Where captures go: `IWF_CAPTURES`, or `target/captures`.
pub fn directory() -> PathBuf {
    match std::env::var_os("IWF_CAPTURES") {
        Some(directory) => directory.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/captures"),
    }
}
