//! iwfd and iwfctl on the CPE of a [`Lab`].

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::netns::Namespace;
use crate::process::{Finished, Process};
use crate::topology::{LAN_BRIDGE, Lab, WAN_IF};
use crate::{packages, wait};

/// How long the daemon may take from its start to the first answer on its control socket.
const START_WITHIN: Duration = Duration::from_secs(20);
/// How long it may take to end on SIGTERM.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// What a test changes in the configuration. Everything else is the daemon's default.
#[derive(Clone, Debug)]
pub struct Options {
    /// `auto`, `cascaded`, `no-nat`, `ds-lite` or `local`.
    pub mode: &'static str,
    /// Interfaces of the LAN.
    pub lan: &'static [&'static str],
    /// Upstream PCP servers; `default-router` finds the carrier. Addresses with spaces between are those of one server.
    pub pcp_servers: Vec<String>,
    /// Whether requests upstream may name LAN hosts.
    pub third_party: bool,
    /// `auto`, `native` or `generic`.
    pub attach: &'static str,
    /// Filter of the daemon's log.
    pub log: &'static str,
    /// Whether each dropped packet is logged.
    pub log_drops: bool,
    /// Ports of services of the CPE that the WAN may reach, for TCP and UDP.
    pub open_ports: Vec<u16>,
    /// Whether names are asked of the CPE itself ([`crate::names`]) and not of whom this machine asks.
    pub own_resolver: bool,
    /// Lines of `[wan]` that are added as they are.
    pub wan: &'static str,
    /// Lines of `[upstream]` that are added as they are.
    pub upstream: &'static str,
    /// Sections of the configuration that are added as they are.
    pub more: &'static str,
    /// Where the store is; `None`: with the other files.
    pub state_dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: "cascaded",
            lan: &[LAN_BRIDGE],
            pcp_servers: vec!["default-router".to_owned()],
            third_party: false,
            attach: "native",
            log: "info",
            log_drops: false,
            open_ports: Vec::new(),
            own_resolver: false,
            wan: "",
            upstream: "",
            more: "",
            state_dir: None,
        }
    }
}

/// Where one daemon keeps its files: all below the lab's private directory.
#[derive(Clone, Debug)]
pub struct Files {
    /// The configuration.
    pub config: PathBuf,
    /// The store.
    pub state_dir: PathBuf,
    /// Pinned programs, links and maps.
    pub bpffs_dir: PathBuf,
    /// For `iwfctl`.
    pub control_socket: PathBuf,
    /// Whom it asks for names, if the file is there.
    pub resolv_conf: PathBuf,
}

impl Files {
    /// Those of the daemon in that lab.
    pub fn of(lab: &Lab) -> Self {
        let dir = lab.dir();
        Self {
            config: dir.join("iwf.toml"),
            state_dir: dir.join("state"),
            bpffs_dir: dir.join("bpf"),
            control_socket: dir.join("control.sock"),
            resolv_conf: dir.join("resolv.conf"),
        }
    }

    fn write(&self, options: &Options) -> Result<()> {
        let servers = options.pcp_servers.iter().map(|server| {
            match server.split(' ').collect::<Vec<_>>().as_slice() {
                [one] => Value::from(*one),
                several => Value::from(several),
            }
        });
        // Lists of strings are written alike in both languages.
        let servers = serde_json::to_string(&servers.collect::<Vec<_>>())?;
        let show = |path: &Path| path.display().to_string();
        let text = format!(
            "mode = \"{}\"\n\
             [lan]\n\
             interfaces = {:?}\n\
             [wan]\n\
             interface = \"{WAN_IF}\"\n\
             open_tcp_ports = {:?}\n\
             open_udp_ports = {:?}\n\
             {}\n\
             [upstream]\n\
             pcp_servers = {servers}\n\
             {}\n\
             third_party = {}\n\
             [paths]\n\
             state_dir = \"{}\"\n\
             bpffs_dir = \"{}\"\n\
             control_socket = \"{}\"\n\
             [xdp]\n\
             attach = \"{}\"\n\
             [log]\n\
             filter = \"{}\"\n\
             drops = {}\n\
             {}",
            options.mode,
            options.lan,
            options.open_ports,
            options.open_ports,
            options.wan,
            options.upstream,
            options.third_party,
            show(&self.state_dir),
            show(&self.bpffs_dir),
            show(&self.control_socket),
            options.attach,
            options.log,
            options.log_drops,
            options.more,
        );
        if options.own_resolver {
            std::fs::write(&self.resolv_conf, "nameserver 127.0.0.1\n")
                .context("write the daemon's resolver")?;
        }
        std::fs::write(&self.config, text).context("write the daemon's configuration")
    }
}

/// A running iwfd. Dropping it kills it; what it pinned goes with the lab's directory.
#[derive(Debug)]
pub struct Iwfd {
    cpe: Namespace,
    files: Files,
    process: Process,
}

impl Iwfd {
    /// Starts it with that configuration and waits until it answers.
    ///
    /// # Errors
    /// If it does not answer in time or ends; its log's tail is in the error.
    pub fn start(lab: &Lab, options: &Options) -> Result<Self> {
        let mut files = Files::of(lab);
        if let Some(dir) = &options.state_dir {
            files.state_dir.clone_from(dir);
        }
        files.write(options)?;
        let mut iwfd = Self {
            process: spawn(&lab.cpe, &files)?,
            cpe: lab.cpe.clone(),
            files,
        };
        iwfd.wait_until_it_answers()?;
        Ok(iwfd)
    }

    /// Starts it again, after a kill or a stop, with the same configuration.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.cpe, &self.files)?;
        self.wait_until_it_answers()
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let what = "iwfd to answer on its control socket";
        let answered = wait::until(what, START_WITHIN, || {
            if !self.process.running().unwrap_or(false) {
                return Some(false);
            }
            let status = self.ctl().json(&["status"]).ok()?;
            (status["ready"] == true).then_some(true)
        });
        match answered {
            Ok(true) => Ok(()),
            Ok(false) => anyhow::bail!("iwfd ended at its start:\n{}", self.process.tail()),
            Err(error) => Err(error.context(self.process.tail())),
        }
    }

    /// The process, for signals and its log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The command line that talks to it.
    pub fn ctl(&self) -> Ctl {
        Ctl {
            cpe: self.cpe.clone(),
            files: self.files.clone(),
        }
    }

    /// Writes another configuration and has it read.
    ///
    /// # Errors
    /// If it cannot be written, or the daemon does not say that it has read it.
    pub fn reload(&mut self, options: &Options) -> Result<()> {
        self.files.write(options)?;
        self.read_again()
    }

    /// Has it read its configuration again, with other text in place of some.
    ///
    /// # Errors
    /// If that text is not there; and as for [`reload`](Self::reload).
    pub fn reload_with(&mut self, from: &str, to: &str) -> Result<()> {
        let text = std::fs::read_to_string(&self.files.config)?;
        ensure!(text.contains(from), "the configuration has no {from:?}");
        std::fs::write(&self.files.config, text.replace(from, to))
            .context("change the configuration")?;
        self.read_again()
    }

    fn read_again(&mut self) -> Result<()> {
        let says = "configuration read again";
        let before = self.process.log().matches(says).count();
        self.process.signal(Signal::SIGHUP)?;
        let what = "the daemon to read its configuration again";
        wait::until_ok(what, STOP_WITHIN, || {
            let now = self.process.log().matches(says).count();
            ensure!(now > before, "{}", self.process.tail());
            Ok(())
        })
    }

    /// Kills it as a crash would.
    ///
    /// # Errors
    /// If it had ended before.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill_hard()
    }

    /// Ends it in good order.
    ///
    /// # Errors
    /// If it does not end in time or not well.
    pub fn stop(&mut self) -> Result<()> {
        self.process.terminate(STOP_WITHIN)
    }

    /// Leaves it running without a guard.
    pub fn leave_running(self) -> u32 {
        self.process.leave_running()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Resident memory in KiB.
    ///
    /// # Errors
    /// If it has ended.
    pub fn resident_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse().ok())
            .context("read VmRSS")
    }
}

fn spawn(cpe: &Namespace, files: &Files) -> Result<Process> {
    let iwfd = packages::built("iwfd")?;
    let argv: [&OsStr; 3] = [iwfd.as_ref(), "--config".as_ref(), files.config.as_ref()];
    if !files.resolv_conf.exists() {
        return cpe.spawn("iwfd", &argv);
    }
    // Nobody else sees what is mounted for it.
    let own_mounts: [&OsStr; 8] = [
        "unshare".as_ref(),
        "--mount".as_ref(),
        "--propagation=slave".as_ref(),
        "sh".as_ref(),
        "-c".as_ref(),
        "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"".as_ref(),
        files.resolv_conf.as_ref(),
        iwfd.as_ref(),
    ];
    cpe.spawn("iwfd", &[&own_mounts[..], &argv[1..]].concat())
}

/// iwfctl, pointed at one daemon. Works without the daemon where the subcommand does.
#[derive(Clone, Debug)]
pub struct Ctl {
    cpe: Namespace,
    files: Files,
}

impl Ctl {
    /// For the daemon of that lab, running or not.
    pub fn of(lab: &Lab) -> Self {
        Self {
            cpe: lab.cpe.clone(),
            files: Files::of(lab),
        }
    }

    /// The words of a call, as a user would type them.
    ///
    /// # Errors
    /// If iwfctl has not been built.
    pub fn argv(&self, args: &[&str]) -> Result<Vec<String>> {
        let mut argv = vec![
            packages::built("iwfctl")?.display().to_string(),
            "--socket".to_owned(),
            self.files.control_socket.display().to_string(),
        ];
        argv.extend(args.iter().map(|arg| (*arg).to_owned()));
        Ok(argv)
    }

    /// Runs it, whatever its exit status.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn run(&self, args: &[&str]) -> Result<Finished> {
        self.cpe.run(&self.argv(args)?)
    }

    /// Runs it; it must succeed. Returns what it printed.
    ///
    /// # Errors
    /// If it fails.
    pub fn must(&self, args: &[&str]) -> Result<String> {
        self.cpe.must(&self.argv(args)?)
    }

    /// What one of the data plane's counters or the daemon's own stands at.
    ///
    /// # Errors
    /// If the daemon does not answer, or has no such counter.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let stats = self.json(&["stats"])?;
        ["counters", "daemon"]
            .iter()
            .filter_map(|list| stats[list].as_array())
            .flatten()
            .find(|counter| counter["name"] == name)
            .and_then(|counter| counter["value"].as_u64())
            .with_context(|| format!("no counter {name}"))
    }

    /// Removes everything the daemon put into the kernel; the daemon need not run.
    ///
    /// # Errors
    /// If it fails.
    pub fn detach(&self) -> Result<String> {
        let bpffs = self.files.bpffs_dir.display().to_string();
        self.must(&["detach", "--bpffs", &bpffs])
    }

    /// Runs it with `--json`; it must succeed.
    ///
    /// # Errors
    /// If it fails or prints no JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut full = args.to_vec();
        full.push("--json");
        let text = self.must(&full)?;
        serde_json::from_str(&text).with_context(|| format!("read the JSON of {args:?}: {text}"))
    }
}
