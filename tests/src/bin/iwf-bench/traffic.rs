//! The two ends of the loop: the generator, run from here, and the far end, attached to an interface.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, DevMap, Map, MapData};
use aya::programs::{TestRun, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, Pod, TestRunAttrs, TestRunOptions};
use iwf_tests::cpu;
use iwf_tests::netns::Namespace;
use iwf_tests::wait;

use crate::abi::{ENDPOINTS, LARGE, MAX_FLOWS, Received, SMALL, Sent, Setup};

/// Frames the kernel runs the generator on before it hands them over: its own default.
const BATCH: u32 = 64;

/// Runs of the generator per call, most of them waiting. A call costs milliseconds to set up, and Ctrl-C
/// waits for its end.
const RUNS_PER_CALL: u32 = 100_000;

/// The same where a pause would show.
const RUNS_PER_LONG_CALL: u32 = 2_000_000;

/// How long the last frames of a call may take to arrive.
const DRAIN: Duration = Duration::from_millis(100);

/// Wrappers so that the shared structs may be map values.
macro_rules! pod {
    ($name:ident, $inner:ty) => {
        #[repr(transparent)]
        #[derive(Clone, Copy)]
        struct $name($inner);
        // SAFETY: repr(C) integers and byte arrays laid out without padding (asserted below), and any bit
        // pattern is a value.
        unsafe impl Pod for $name {}
    };
}
pod!(SetupPod, Setup);
pod!(SentPod, Sent);
pod!(ReceivedPod, Received);
const _: () = assert!(size_of::<Setup>() == 5 * 4 + 4 * 6 + 4 + 2 * 8);
const _: () = assert!(size_of::<Sent>() == 32);
const _: () = assert!(size_of::<Received>() == 64);

/// Counters of both ends since they were loaded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// What left the generator.
    pub(crate) sent: Sent,
    /// What the far end saw.
    pub(crate) received: Received,
}

impl Counts {
    /// What happened since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let (a, b) = (&self.received, &earlier.received);
        Self {
            sent: Sent {
                frames: self.sent.frames - earlier.sent.frames,
                written_off: self.sent.written_off - earlier.sent.written_off,
                waits: self.sent.waits,
                complete: self.sent.complete,
            },
            received: Received {
                frames: a.frames - b.frames,
                good: a.good - b.good,
                bad_source: a.bad_source - b.bad_source,
                bad_port: a.bad_port - b.bad_port,
                bad_checksum: a.bad_checksum - b.bad_checksum,
                bad_header: a.bad_header - b.bad_header,
                longest: a.longest,
                late: a.late - b.late,
            },
        }
    }
}

/// Frames of one length and as many flows as are chosen among.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Load {
    /// A power of two, at most [`MAX_FLOWS`].
    pub(crate) flows: u32,
    /// Octets of a frame: [`SMALL`] or [`LARGE`].
    pub(crate) frame: usize,
}

/// Distinct flows seen since [`Traffic::forget_flows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// By the number in the payload.
    pub(crate) flows: usize,
    /// By what is outside: source port and remote address.
    pub(crate) outside: usize,
}

/// The counters of both ends, for whoever looks at them while frames are sent.
pub(crate) struct Counters {
    sent: Array<MapData, SentPod>,
    received: Array<MapData, ReceivedPod>,
}

impl Counters {
    /// The counters now.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub(crate) fn read(&self) -> Result<Counts> {
        Ok(Counts {
            sent: self.sent.get(&0, 0)?.0,
            received: self.received.get(&0, 0)?.0,
        })
    }
}

/// A generator and a far end with shared counters.
pub(crate) struct Traffic {
    ebpf: Ebpf,
    setup: Setup,
    frame: usize,
}

impl Traffic {
    /// Loads the programs and attaches the far end.
    ///
    /// # Errors
    /// If the kernel refuses one of them.
    pub(crate) fn start(
        object: &Path,
        setup: Setup,
        far: &Namespace,
        far_if: &str,
    ) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .load_file(object)
            .with_context(|| format!("load {}", object.display()))?;
        for generator in [SMALL, LARGE].map(generator) {
            program(&mut ebpf, generator)?
                .load()
                .context("load the generator")?;
        }
        let receive = program(&mut ebpf, "bench_receive")?;
        receive.load().context("load the far end")?;
        far.within(|| receive.attach(far_if, XdpMode::Driver))?
            .context("attach the far end")?;
        let mut traffic = Self {
            ebpf,
            setup,
            frame: SMALL,
        };
        traffic.store_setup()?;
        Ok(traffic)
    }

    /// Attaches the forwarder without lookups to the router's LAN port.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn redirect(&mut self, router: &Namespace, lan: &str, wan: u32) -> Result<()> {
        let map = self.ebpf.map_mut("WAN").context("map WAN")?;
        let mut devices = DevMap::try_from(map)?;
        // The kernel takes the index for one of the caller's namespace.
        router.within(|| devices.set(0, wan, None, 0))??;
        let redirect = program(&mut self.ebpf, "bench_redirect")?;
        redirect.load().context("load the forwarder")?;
        router
            .within(|| redirect.attach(lan, XdpMode::Driver))?
            .context("attach the forwarder")?;
        Ok(())
    }

    /// Sends this load from now on.
    ///
    /// # Errors
    /// If the flows are no power of two or too many.
    pub(crate) fn set_load(&mut self, load: Load) -> Result<()> {
        let flows = load.flows;
        ensure!(
            flows.is_power_of_two() && flows <= MAX_FLOWS,
            "{flows} flows: not a power of two up to {MAX_FLOWS}"
        );
        self.setup.flow_mask = flows - 1;
        self.frame = load.frame;
        self.store_setup()
    }

    /// Sends no more than so many further frames; `None`: as many as there is time for.
    ///
    /// # Errors
    /// If the setup cannot be written.
    pub(crate) fn stop_after(&mut self, frames: Option<u64>) -> Result<()> {
        self.setup.limit = match frames {
            Some(frames) => self.counts()?.sent.frames + frames,
            None => u64::MAX,
        };
        self.store_setup()
    }

    /// Runs the generator once from `from`, on `cpu`, and waits for what is under way.
    ///
    /// # Errors
    /// If the kernel refuses the run.
    pub(crate) fn run(&mut self, from: &Namespace, cpu: usize) -> Result<()> {
        self.call(from, cpu, RUNS_PER_CALL)
    }

    /// The same for a second or more: between two calls is a pause.
    ///
    /// # Errors
    /// If the kernel refuses the run.
    pub(crate) fn run_long(&mut self, from: &Namespace, cpu: usize) -> Result<()> {
        self.call(from, cpu, RUNS_PER_LONG_CALL)
    }

    fn call(&mut self, from: &Namespace, cpu: usize, runs: u32) -> Result<()> {
        let frame = vec![0; self.frame];
        let generate = program(&mut self.ebpf, generator(self.frame))?;
        from.within(|| {
            cpu::pin(None, cpu)?;
            let options = TestRunOptions {
                data_in: Some(&frame),
                repeat: runs,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::new()
            };
            generate.test_run(options).context("run the generator")
        })??;
        // Frames that do not come are the caller's to count.
        drop(wait::until("frames to arrive", DRAIN, || {
            let counts = self.counts().ok()?;
            let arrived = counts.received.frames + counts.sent.written_off;
            (arrived >= counts.sent.frames).then_some(())
        }));
        Ok(())
    }

    /// The counters by themselves.
    ///
    /// # Errors
    /// If a map cannot be opened once more.
    pub(crate) fn counters(&self) -> Result<Counters> {
        let again = |name| -> Result<Map> {
            let Map::Array(data) = map(&self.ebpf, name)? else {
                anyhow::bail!("{name} is no array");
            };
            let again = data.fd().as_fd().try_clone_to_owned()?;
            Ok(Map::Array(MapData::from_fd(again)?))
        };
        Ok(Counters {
            sent: Array::try_from(again("SENT")?)?,
            received: Array::try_from(again("RECEIVED")?)?,
        })
    }

    /// The counters now.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub(crate) fn counts(&self) -> Result<Counts> {
        let sent: Array<_, SentPod> = Array::try_from(map(&self.ebpf, "SENT")?)?;
        let received: Array<_, ReceivedPod> = Array::try_from(map(&self.ebpf, "RECEIVED")?)?;
        Ok(Counts {
            sent: sent.get(&0, 0)?.0,
            received: received.get(&0, 0)?.0,
        })
    }

    /// Makes the far end take the next port of each flow as the right one, and the next burst as the slowest.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub(crate) fn forget_flows(&mut self) -> Result<()> {
        let map = self.ebpf.map_mut("FLOWS").context("map FLOWS")?;
        let mut flows: Array<_, u32> = Array::try_from(map)?;
        for flow in 0..=self.setup.flow_mask {
            flows.set(flow, 0, 0)?;
        }
        // Nothing is under way, so nobody else writes it.
        let map = self.ebpf.map_mut("RECEIVED").context("map RECEIVED")?;
        let mut received: Array<_, ReceivedPod> = Array::try_from(map)?;
        let mut counts = received.get(&0, 0)?;
        counts.0.longest = 0;
        received.set(0, counts, 0)?;
        Ok(())
    }

    /// What was seen since.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub(crate) fn seen(&self) -> Result<Seen> {
        let table: Array<_, u32> = Array::try_from(map(&self.ebpf, "FLOWS")?)?;
        let mut flows = 0;
        let mut outside = BTreeSet::new();
        for flow in 0..=self.setup.flow_mask {
            let port = table.get(&flow, 0)?;
            if port != 0 {
                flows += 1;
                outside.insert((flow / ENDPOINTS, port));
            }
        }
        Ok(Seen {
            flows,
            outside: outside.len(),
        })
    }

    fn store_setup(&mut self) -> Result<()> {
        let map = self.ebpf.map_mut("SETUP").context("map SETUP")?;
        let mut setup: Array<_, SetupPod> = Array::try_from(map)?;
        setup.set(0, SetupPod(self.setup), 0)?;
        Ok(())
    }
}

/// The program that writes frames of so many octets.
fn generator(frame: usize) -> &'static str {
    if frame == LARGE {
        "bench_large"
    } else {
        "bench_generate"
    }
}

/// A program of the bench object.
pub(crate) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    ebpf.program_mut(name)
        .with_context(|| format!("no program {name} in the bench object"))?
        .try_into()
        .with_context(|| format!("{name} is no XDP program"))
}

fn map<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a Map> {
    ebpf.map(name)
        .with_context(|| format!("no map {name} in the bench object"))
}
