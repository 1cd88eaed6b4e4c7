//! The data plane's pinned state against a live kernel: attach, adopt, upgrade, repair, detach.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::MapInfo;
use iwf_common::names;
use iwf_tests::bpf::{self, Objects};
use iwf_tests::netns::{self, Namespace, Network};
use iwf_tests::wait;
use iwf_userspace::daemon::config::{AttachMode, EphemeralPorts, Ipv6, MssClamp, Timeouts};
use iwf_userspace::daemon::dataplane::kernel::{self, KernelPlane, Origin, Settings, TcMode};
use iwf_userspace::daemon::dataplane::object::OBJECT;
use iwf_userspace::daemon::dataplane::{DataPlane, PlaneConfig, Port, Role};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

const FREED: Duration = Duration::from_secs(5);

#[test]
fn a_daemon_that_goes_leaves_everything_and_the_next_one_adopts_it() -> Result<()> {
    let Some(router) = Router::new()? else {
        return Ok(());
    };
    let plane = router.open()?;
    assert_eq!(plane.origin(), Origin::Created);
    drop(plane);
    let before = router.objects()?;
    assert_eq!(
        before.xdp,
        [("lan0".to_owned(), "native"), ("wan0".to_owned(), "native")]
    );
    assert_eq!(before.programs.len(), 3, "XDP twice, tc egress once");
    assert_eq!(before.links.len(), 3);

    let plane = router.open()?;
    assert_eq!(plane.origin(), Origin::Adopted);
    assert_eq!(router.objects()?, before, "nothing was made anew");
    drop(plane);

    router.detach()?;
    router.runs_nothing()?;
    before.are_gone(FREED)
}

#[test]
fn detach_works_twice_and_beside_a_running_daemon() -> Result<()> {
    let Some(router) = Router::new()? else {
        return Ok(());
    };
    let plane = router.open()?;
    let before = router.objects()?;
    router.detach()?;
    router.runs_nothing()?;
    drop(plane);
    before.are_gone(FREED)?;
    assert_eq!(router.leftovers()?, Vec::<PathBuf>::new());
    router.detach()
}

#[test]
fn the_log_of_drops_is_a_matter_of_loading() -> Result<()> {
    let Some(router) = Router::new()? else {
        return Ok(());
    };
    drop(router.open()?);
    let quiet = router.settings();
    let loud = Settings {
        log_drops: true,
        ..quiet.clone()
    };
    for (settings, origin) in [
        (&loud, Origin::Upgraded),
        (&loud, Origin::Adopted),
        (&quiet, Origin::Upgraded),
    ] {
        let mut plane = router.open_with(OBJECT, settings)?;
        assert_eq!(plane.origin(), origin);
        router.configure(&mut plane, &router.config()?)?;
        plane.sweep()?;
    }
    router.detach()
}

#[test]
fn only_one_daemon_works_on_a_set_of_pins() -> Result<()> {
    let Some(router) = Router::new()? else {
        return Ok(());
    };
    let plane = router.open()?;
    let dir = router.settings().bpffs_dir;
    assert!(!kernel::is_claimed(&dir)?);
    let first = kernel::claim(&dir)?;
    assert!(kernel::is_claimed(&dir)?);
    let refused = kernel::claim(&dir)
        .expect_err("a second daemon")
        .to_string();
    assert!(refused.contains("paths.bpffs_dir"), "{refused}");
    drop(first);
    drop(kernel::claim(&dir)?);
    drop(plane);
    router.detach()?;
    assert!(!kernel::is_claimed(&dir)?, "nothing is there any more");
    Ok(())
}

#[test]
fn a_device_without_native_xdp_runs_it_generically() -> Result<()> {
    let Some(router) = Router::new()? else {
        return Ok(());
    };
    // A bridge has no XDP of its own, whatever its role.
    router.cpe.ip("link add wanbr type bridge")?;
    router.cpe.ip("link set wanbr up")?;
    let mut config = router.config()?;
    config.ports[1] = router.port("wanbr", Role::Wan)?;
    let mut plane = router.open_with(OBJECT, &router.settings())?;
    router.configure(&mut plane, &config)?;
    let found = router.objects()?;
    assert_eq!(
        found.xdp,
        [
            ("lan0".to_owned(), "native"),
            ("wanbr".to_owned(), "generic")
        ]
    );
    assert_eq!(
        plane.generic_interfaces(),
        [router.cpe.ifindex("wanbr")?],
        "the operator can be told"
    );
    drop(plane);
    let mut plane = router.open_with(OBJECT, &router.settings())?;
    router.configure(&mut plane, &config)?;
    assert_eq!(router.objects()?, found, "adopted as it was");
    drop(plane);
    router.detach()?;
    found.are_gone(FREED)
}

#[test]
fn native_only_leaves_a_device_alone_that_cannot() -> Result<()> {
    let Some(router) = Router::new()? else {
        return Ok(());
    };
    router.cpe.ip("link add wanbr type bridge")?;
    let mut config = router.config()?;
    config.ports[1] = router.port("wanbr", Role::Wan)?;
    let settings = Settings {
        attach: AttachMode::Native,
        ..router.settings()
    };
    let mut plane = router.open_with(OBJECT, &settings)?;
    router.configure(&mut plane, &config)?;
    assert_eq!(router.objects()?.xdp, [("lan0".to_owned(), "native")]);
    drop(plane);

    // The next daemon is told otherwise.
    let settings = Settings {
        attach: AttachMode::Generic,
        ..router.settings()
    };
    let mut plane = router.open_with(OBJECT, &settings)?;
    router.configure(&mut plane, &config)?;
    assert_eq!(
        router.objects()?.xdp,
        [
            ("lan0".to_owned(), "generic"),
            ("wanbr".to_owned(), "generic")
        ]
    );
    router.detach()
}

#[test]
fn kernels_without_tcx_get_a_filter_that_is_adopted_and_removed() -> Result<()> {
    let Some(router) = Router::new()? else {
        return Ok(());
    };
    let settings = Settings {
        tc: TcMode::Filter,
        ..router.settings()
    };
    let filters = || -> Result<usize> {
        let text = router
            .cpe
            .must(&["tc", "filter", "show", "dev", "wan0", "egress"])?;
        Ok(text.matches("direct-action").count())
    };
    for _ in 0..2 {
        let mut plane = router.open_with(OBJECT, &settings)?;
        router.configure(&mut plane, &router.config()?)?;
        assert_eq!(filters()?, 1);
        assert_eq!(bpf::classifier_qdiscs(&router.cpe)?.len(), 1);
    }
    router.detach()?;
    assert_eq!(bpf::classifier_qdiscs(&router.cpe)?, Vec::<String>::new());

    // Somebody else's filter keeps its qdisc.
    let mut plane = router.open_with(OBJECT, &settings)?;
    router.configure(&mut plane, &router.config()?)?;
    drop(plane);
    let program = bpf::pinned(&router.bpffs, "progs/iwf_tc_ingress");
    let program = program.display().to_string();
    router.cpe.must(&[
        "tc",
        "filter",
        "add",
        "dev",
        "wan0",
        "ingress",
        "bpf",
        "da",
        "object-pinned",
        &program,
    ])?;
    router.detach()?;
    assert_eq!(filters()?, 0);
    assert_eq!(bpf::classifier_qdiscs(&router.cpe)?.len(), 1);
    Ok(())
}

#[test]
fn another_build_takes_over_links_and_maps() -> Result<()> {
    let Some(router) = Router::new()? else {
        return Ok(());
    };
    drop(router.open()?);
    let (before, maps) = (router.objects()?, router.pinned_maps()?);
    // The loader ignores what follows the last section; the build id does not.
    let other = [OBJECT, b"another build"].concat();
    let mut plane = router.open_with(&other, &router.settings())?;
    assert_eq!(plane.origin(), Origin::Upgraded);
    let after = router.objects()?;
    assert_eq!(after.links, before.links, "no moment without a program");
    assert_eq!(router.pinned_maps()?, maps, "no session lost");
    assert!(
        after
            .maps
            .is_superset(&maps.intersection(&before.maps).copied().collect())
    );
    assert!(after.programs.is_disjoint(&before.programs));
    router.configure(&mut plane, &router.config()?)?;
    assert_eq!(router.objects()?, after);
    drop(plane);
    assert_eq!(
        router.open_with(&other, &router.settings())?.origin(),
        Origin::Adopted
    );
    router.detach()
}

#[test]
fn other_table_sizes_begin_anew_without_a_gap() -> Result<()> {
    let Some(router) = Router::new()? else {
        return Ok(());
    };
    drop(router.open()?);
    let before = router.objects()?;
    let larger = Settings {
        sessions: 4096,
        ..router.settings()
    };
    let mut plane = router.open_with(OBJECT, &larger)?;
    assert_eq!(plane.origin(), Origin::Created);
    router.configure(&mut plane, &router.config()?)?;
    let after = router.objects()?;
    assert_eq!(after.links, before.links, "no moment without a program");
    assert!(after.maps.is_disjoint(&before.maps));
    drop(plane);
    router.detach()?;
    before.are_gone(FREED)?;
    after.are_gone(FREED)
}

#[test]
fn a_start_killed_half_way_is_begun_again() -> Result<()> {
    let Some(router) = Router::new()? else {
        return Ok(());
    };
    // Killed before the set was complete: pins, but no build id.
    drop(router.open_with(OBJECT, &router.settings())?);
    let current = bpf::pinned(&router.bpffs, "");
    let fresh = router.bpffs.join(format!("v{}-new", names::LAYOUT_VERSION));
    fs::remove_file(current.join("meta"))?;
    fs::remove_file(current.join("progs/iwf_xdp_wan"))?;
    fs::rename(&current, &fresh)?;
    let plane = router.open()?;
    assert_eq!(plane.origin(), Origin::Created);
    assert!(!fresh.exists());
    drop(plane);
    let objects = router.objects()?;
    assert_eq!(objects.programs.len(), 3);

    // Killed between completing the set and putting it in place.
    fs::rename(&current, &fresh)?;
    let plane = router.open()?;
    assert_eq!(plane.origin(), Origin::Adopted);
    assert_eq!(router.objects()?, objects);
    drop(plane);

    // Something took a pin away.
    fs::remove_file(current.join("progs/iwf_sweep"))?;
    let mut plane = router.open()?;
    assert_eq!(plane.origin(), Origin::Upgraded);
    plane.sweep()?;
    drop(plane);
    fs::remove_file(current.join("maps/SESSIONS"))?;
    let mut plane = router.open()?;
    assert_eq!(plane.origin(), Origin::Created);
    plane.sweep()?;
    drop(plane);
    router.detach()
}

#[test]
fn attachments_follow_the_devices() -> Result<()> {
    let Some(router) = Router::new()? else {
        return Ok(());
    };
    let mut plane = router.open()?;
    let mut config = router.config()?;

    netns::veth((&router.cpe, "lan1"), (&router.peer, "lan1p"))?;
    config.ports.push(router.port("lan1", Role::Lan)?);
    router.configure(&mut plane, &config)?;
    assert_eq!(router.objects()?.xdp.len(), 3);

    // A device that vanished while nobody looked and came back under the same name.
    router.cpe.ip("link del lan1")?;
    netns::veth((&router.cpe, "lan1"), (&router.peer, "lan1p"))?;
    config.ports.pop();
    config.ports.push(router.port("lan1", Role::Lan)?);
    drop(plane);
    let mut plane = router.open_with(OBJECT, &router.settings())?;
    router.configure(&mut plane, &config)?;
    assert_eq!(router.objects()?.xdp.len(), 3);
    assert_eq!(router.pinned_links()?, 4, "no pin of the dead device");

    // The same device on the other side, then gone from the configuration.
    config.ports[2].role = Role::Wan;
    config.ports.remove(1);
    router.configure(&mut plane, &config)?;
    router.settles_with(2)?;
    assert_eq!(router.pinned_links()?, 3, "both XDP, tc egress");
    config.ports.truncate(1);
    router.configure(&mut plane, &config)?;
    router.settles_with(1)?;
    assert_eq!(router.pinned_links()?, 1);
    drop(plane);
    router.detach()
}

#[test]
fn a_device_that_runs_anothers_program_is_left_alone() -> Result<()> {
    let Some(router) = Router::new()? else {
        return Ok(());
    };
    let mut first = router.open()?;
    let second_dir = Settings {
        bpffs_dir: router.bpffs.with_extension("second"),
        ..router.settings()
    };
    let mut second = router.open_with(OBJECT, &second_dir)?;
    router.configure(&mut second, &router.config()?)?;
    assert!(second.generic_interfaces().is_empty());
    let before = router.objects()?;
    router.configure(&mut first, &router.config()?)?;
    assert_eq!(router.objects()?, before);
    drop((first, second));
    router
        .cpe
        .within(|| kernel::detach(&second_dir.bpffs_dir))??;
    assert_eq!(
        router.objects()?.xdp.len(),
        2,
        "only its own was taken away"
    );
    router.detach()
}

/// Nothing can be made below /sys, so a file system must be mounted where distributions do.
#[test]
fn the_usual_directory_works_where_nobody_has_mounted_a_bpf_file_system() -> Result<()> {
    let Some(router) = Router::new()? else {
        return Ok(());
    };
    let dir = PathBuf::from(format!("/sys/fs/bpf/iwf-{}", std::process::id()));
    let settings = Settings {
        bpffs_dir: dir.clone(),
        ..router.settings()
    };
    let config = router.config()?;
    router.cpe.within(|| -> Result<()> {
        // A view of the file systems for this thread alone, as on a machine that has just started.
        unshare(CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        while is_mounted(Path::new("/sys/fs/bpf"))? {
            umount2("/sys/fs/bpf", MntFlags::MNT_DETACH)?;
        }
        for origin in [Origin::Created, Origin::Adopted] {
            let mut plane = KernelPlane::open(&settings)?;
            assert_eq!(plane.origin(), origin);
            plane.configure(&config)?;
        }
        assert!(is_mounted(Path::new("/sys/fs/bpf"))?);
        // Somebody else's pins keep the file system.
        let theirs = Path::new("/sys/fs/bpf/theirs");
        fs::create_dir(theirs)?;
        kernel::detach(&dir)?;
        assert!(theirs.exists() && !dir.exists());
        fs::remove_dir(theirs)?;
        kernel::detach(&dir)?;
        assert!(!is_mounted(Path::new("/sys/fs/bpf"))?);
        kernel::detach(&dir)
    })??;
    router.runs_nothing()
}

/// A router with a LAN and a WAN device, and the other ends of both.
struct Router {
    cpe: Namespace,
    peer: Namespace,
    bpffs: PathBuf,
    /// Dropped last: it removes the namespaces and what is mounted in its directory.
    _network: Network,
}

impl Router {
    /// `None` without the privilege (and the reason printed).
    fn new() -> Result<Option<Self>> {
        if !netns::may_run() {
            return Ok(None);
        }
        let network = Network::new()?;
        let (cpe, peer) = (network.namespace("cpe")?, network.namespace("peer")?);
        for device in ["lan0", "wan0"] {
            netns::veth((&cpe, device), (&peer, &format!("{device}p")))?;
            cpe.ip(&format!("link set {device} up"))?;
        }
        Ok(Some(Self {
            cpe,
            peer,
            bpffs: network.dir().join("bpf"),
            _network: network,
        }))
    }

    fn settings(&self) -> Settings {
        Settings {
            bpffs_dir: self.bpffs.clone(),
            attach: AttachMode::Auto,
            tc: TcMode::Auto,
            ephemeral_ports: EphemeralPorts::Share,
            mss_clamp: MssClamp::Auto,
            sessions: 1024,
            sessions6: 1024,
            ipv6: Ipv6::default(),
            mappings: 512,
            log_drops: false,
            timeouts: Timeouts {
                udp_idle: Duration::from_secs(300),
                tcp_established: Duration::from_secs(7440),
                tcp_transitory: Duration::from_secs(240),
                icmp_query: Duration::from_secs(60),
            },
        }
    }

    fn port(&self, name: &str, role: Role) -> Result<Port> {
        Ok(Port {
            ifindex: self.cpe.ifindex(name)?,
            name: name.to_owned(),
            role,
            bridge: None,
            mac: self.cpe.mac(name)?,
        })
    }

    fn config(&self) -> Result<PlaneConfig> {
        Ok(PlaneConfig {
            external_addr: Some([100, 64, 0, 2].into()),
            lan_prefixes: vec![([192, 168, 1, 0].into(), 24)],
            ports: vec![self.port("lan0", Role::Lan)?, self.port("wan0", Role::Wan)?],
            ..PlaneConfig::default()
        })
    }

    /// Opens as a daemon does: this build, the usual settings, configured.
    fn open(&self) -> Result<KernelPlane> {
        let mut plane = self.open_with(OBJECT, &self.settings())?;
        self.configure(&mut plane, &self.config()?)?;
        Ok(plane)
    }

    fn open_with(&self, object: &[u8], settings: &Settings) -> Result<KernelPlane> {
        self.cpe
            .within(|| KernelPlane::open_object(settings, object))?
    }

    fn configure(&self, plane: &mut KernelPlane, config: &PlaneConfig) -> Result<()> {
        self.cpe
            .within(|| plane.configure(config))?
            .context("configure")
    }

    fn objects(&self) -> Result<Objects> {
        Objects::of(&self.cpe)
    }

    /// Detaching is a matter of milliseconds, but not of none.
    fn settles_with(&self, devices: usize) -> Result<()> {
        wait::until_ok("programs to be detached", FREED, || {
            let xdp = self.objects()?.xdp;
            ensure!(xdp.len() == devices, "{xdp:?}");
            Ok(())
        })
    }

    /// The same for all of them.
    fn runs_nothing(&self) -> Result<()> {
        wait::until_ok("nothing to run on any device", FREED, || {
            let left = self.objects()?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
    }

    fn pinned_links(&self) -> Result<usize> {
        Ok(fs::read_dir(bpf::pinned(&self.bpffs, "links"))?.count())
    }

    fn pinned_maps(&self) -> Result<BTreeSet<u32>> {
        names::PINNED_MAPS
            .iter()
            .map(|name| Ok(MapInfo::from_pin(bpf::pinned(&self.bpffs, "maps").join(name))?.id()))
            .collect()
    }

    fn detach(&self) -> Result<()> {
        self.cpe.within(|| kernel::detach(&self.bpffs))??;
        ensure!(
            self.leftovers()?.is_empty(),
            "left behind: {:?}",
            self.leftovers()?
        );
        ensure!(!is_mounted(&self.bpffs)?, "the file system is still there");
        Ok(())
    }

    fn leftovers(&self) -> Result<Vec<PathBuf>> {
        if !self.bpffs.exists() {
            return Ok(Vec::new());
        }
        Ok(fs::read_dir(&self.bpffs)?
            .map(|entry| entry.map(|e| e.path()))
            .collect::<std::io::Result<_>>()?)
    }
}

fn is_mounted(dir: &Path) -> Result<bool> {
    // Of this thread: it may have a view of its own.
    let mounts = fs::read_to_string("/proc/thread-self/mounts")?;
    let dir = dir.display().to_string();
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(&dir)))
}
