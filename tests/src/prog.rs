//! Runs the packet programs without a network: maps in, frame in, verdict, frame and every change out.

mod rings;
mod state;
mod tables;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData, PerCpuArray};
use aya::programs::{
    Program, ProgramError, ProgramFd, RawTracePoint, RawTracePointRunOptions, SchedClassifier,
    TestRun as _, TestRunOptions, Xdp,
};
use aya::{Ebpf, EbpfLoader, Pod};
use iwf_common::config::Config;
use iwf_common::tick::ClockSample;
use iwf_common::{names, reason};

pub use state::{Change, Delta, State};

/// What a program did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The program's return value: an XDP or a tc action.
    pub action: u32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// Average time of one run, as the kernel measured it.
    pub nanos: u64,
}

/// The loaded object with maps of its own, freed on drop.
pub struct Plane {
    ebpf: Ebpf,
}

impl Plane {
    /// Makes the maps, with tables for `sessions` entries and `mappings` entries. Programs are loaded when they
    /// are first run, since the verifier takes its time.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn load(object: &[u8], sessions: u32, mappings: u32) -> Result<Self> {
        Self::load_with(object, &[], sessions, mappings)
    }

    /// The same with constants of the object set.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(
        object: &[u8],
        constants: &[(&'static str, u8)],
        sessions: u32,
        mappings: u32,
    ) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for (name, value) in constants {
            loader.override_global(name, value, true);
        }
        let ebpf = loader
            .map_max_entries(names::SESSIONS, sessions)
            .map_max_entries(names::SESSIONS6, sessions)
            .map_max_entries(names::ENDPOINTS6, sessions)
            .map_max_entries(names::PEERS, mappings)
            .map_max_entries(names::MAPPINGS_INT, mappings)
            .map_max_entries(names::MAPPINGS_EXT, mappings)
            .load(object)
            .context("load the maps")?;
        Ok(Self { ebpf })
    }

    /// Loads a program, if it is not.
    ///
    /// # Errors
    /// If the verifier refuses; its log is in the error.
    pub fn ready(&mut self, name: &str) -> Result<()> {
        let program = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name}"))?;
        if program.fd().is_ok() {
            return Ok(());
        }
        let loaded = if let Ok(program) = <&mut Xdp>::try_from(&mut *program) {
            program.load()
        } else if let Ok(program) = <&mut SchedClassifier>::try_from(&mut *program) {
            program.load()
        } else {
            <&mut RawTracePoint>::try_from(program)?.load()
        };
        loaded.with_context(|| format!("load {name}"))
    }

    /// A program that is [ready](Self::ready), for a map of programs.
    ///
    /// # Errors
    /// If it is not.
    pub fn fd(&self, name: &str) -> Result<&ProgramFd> {
        let program = self.ebpf.program(name);
        Ok(program
            .with_context(|| format!("no program {name}"))?
            .fd()?)
    }

    /// Instructions the verifier went through for a program that is [ready](Self::ready).
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn verified(&self, name: &str) -> Result<u32> {
        let program = self.ebpf.program(name).context("program")?;
        let count = program.info()?.verified_instruction_count();
        count.context("the kernel does not count")
    }

    /// Names of all programs of the object.
    pub fn programs(&self) -> Vec<String> {
        let names = self.ebpf.programs();
        names.map(|(name, _)| name.to_owned()).collect()
    }

    /// Runs an XDP program that is [ready](Self::ready) on a frame that came in by `ingress`, an interface of the
    /// caller's namespace.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn xdp(&self, name: &str, frame: &[u8], ingress: u32, repeat: u32) -> Result<Ran> {
        let program: &Xdp = self
            .ebpf
            .program(name)
            .context("program")?
            .try_into()
            .context("an XDP program")?;
        let len = u32::try_from(frame.len())?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = words(&[0, len, 0, ingress, 0, 0]);
        // A header may come before it, or one go.
        let mut out = vec![0; frame.len() + GROWS];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: (ingress != 0).then_some(&context),
            repeat,
            ..TestRunOptions::new()
        };
        let result = program.test_run(options).context("run")?;
        out.truncate(usize::try_from(result.data_size_out)?);
        Ok(Ran {
            action: result.return_value,
            frame: out,
            nanos: u64::try_from(result.duration.as_nanos())?,
        })
    }

    /// Runs a tc program that is [ready](Self::ready) on a packet that came in by `ingress` (0: made here) and is to
    /// be sent in segments of `segment` octets (0: as it is).
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn tc(&self, name: &str, frame: &[u8], ingress: u32, segment: u32) -> Result<Ran> {
        let program: &SchedClassifier = self
            .ebpf
            .program(name)
            .context("program")?
            .try_into()
            .context("a tc program")?;
        // struct __sk_buff: ingress_ifindex is its tenth word; the kernel takes it for a run as `skb_iif`. The last
        // but three is gso_size.
        let mut context = [0; 48];
        context[9] = ingress;
        context[44] = segment;
        let context = words(&context);
        let mut out = vec![0; frame.len()];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: (ingress != 0 || segment != 0).then_some(&context),
            ..TestRunOptions::new()
        };
        let result = program.test_run(options).context("run")?;
        Ok(Ran {
            action: result.return_value,
            frame: out,
            nanos: u64::try_from(result.duration.as_nanos())?,
        })
    }

    /// A map that is an array or a hash table.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn map_data(&self, name: &str) -> Result<&MapData> {
        let map = self.map(name)?;
        let (Map::Array(data) | Map::HashMap(data)) = map else {
            bail!("{name} is of another kind");
        };
        Ok(data)
    }

    /// A tc program that is [ready](Self::ready).
    ///
    /// # Errors
    /// There is none of that name.
    pub fn tc_program(&self, name: &str) -> Result<&SchedClassifier> {
        let program = self.ebpf.program(name).context("no such program")?;
        Ok(program.try_into()?)
    }

    /// Reads CONFIG.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn config(&mut self) -> Result<Config> {
        Ok(self.array(names::CONFIG)?.get(&0, 0)?)
    }

    /// Reads both clocks.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn clock(&mut self) -> Result<ClockSample> {
        self.run(names::RUN_CLOCK)?;
        Ok(self.array(names::CLOCK)?.get(&0, 0)?)
    }

    /// Writes CONFIG.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn configure(&mut self, config: Config) -> Result<()> {
        Ok(self.array(names::CONFIG)?.set(0, config, 0)?)
    }

    /// Everything the programs can change.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn state(&self) -> Result<State> {
        let counters = PerCpuArray::<_, u64>::try_from(self.map(names::COUNTERS)?)?;
        let mut by_name = BTreeMap::new();
        for (slot, name) in reason::all() {
            let total: u64 = counters.get(&slot, 0)?.iter().sum();
            if total > 0 {
                by_name.insert(name, total);
            }
        }
        Ok(State {
            sessions: self.entries(names::SESSIONS)?,
            internal: self.entries(names::MAPPINGS_INT)?,
            external: self.entries(names::MAPPINGS_EXT)?,
            peers: self.entries(names::PEERS)?,
            fragments: self.entries(names::FRAGMENTS)?,
            sessions6: self.entries(names::SESSIONS6)?,
            endpoints6: self.entries(names::ENDPOINTS6)?,
            fragments6: self.entries(names::FRAGMENTS6)?,
            pinholes: self.entries(names::PINHOLES)?,
            counters: by_name,
        })
    }

    fn run(&mut self, name: &str) -> Result<()> {
        self.ready(name)?;
        let program: &mut RawTracePoint = program(&mut self.ebpf, name)?;
        let result = program
            .test_run(RawTracePointRunOptions::new())
            .with_context(|| format!("run {name}"))?;
        ensure!(
            result.return_value == 0,
            "{name} failed: {}",
            result.return_value
        );
        Ok(())
    }

    fn map(&self, name: &str) -> Result<&Map> {
        self.ebpf
            .map(name)
            .with_context(|| format!("no map {name}"))
    }

    fn array<T: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, T>> {
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("no map {name}"))?;
        Ok(Array::try_from(map)?)
    }

    fn put<K: Pod, V: Pod>(&mut self, name: &str, key: K, value: V) -> Result<()> {
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("no map {name}"))?;
        let mut map: BpfHashMap<_, K, V> = BpfHashMap::try_from(map)?;
        Ok(map.insert(key, value, 0)?)
    }

    fn entries<K: Pod + Ord, V: Pod>(&self, name: &str) -> Result<BTreeMap<K, V>> {
        let map: BpfHashMap<_, K, V> = BpfHashMap::try_from(self.map(name)?)?;
        Ok(map.iter().collect::<Result<_, _>>()?)
    }
}

/// Octets that a program may put before a frame: an IPv6 header.
const GROWS: usize = 40;

fn program<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    Ok(ebpf
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?
        .try_into()?)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
