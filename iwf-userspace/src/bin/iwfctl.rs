//! The command line: asks a running daemon, or cleans up after one that is gone.

use std::io::{self, BufRead as _, Write as _};
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use rand::TryRng as _;
use rand::rngs::SysRng;

use iwf_userspace::daemon::clock;
use iwf_userspace::daemon::config::Config;
use iwf_userspace::daemon::control::events::{EventFilter, EventKind, Stamp};
use iwf_userspace::daemon::control::lists::{EVENTS, Lister};
use iwf_userspace::daemon::control::policy::PolicyTest;
use iwf_userspace::daemon::control::stats_text::{self, Interval, View};
use iwf_userspace::daemon::control::{Family, Request, Response, Stats, client, table, terminal};
use iwf_userspace::daemon::dataplane::inspect::{
    DynamicFilter, SessionFilter, State, Station, Transport as IpProtocol,
};
use iwf_userspace::daemon::dataplane::kernel;
use iwf_userspace::proto::protection::{OwnerCommand, verifier};
use iwf_userspace::types::Protocol;
use iwf_userspace::types::access::{Roles, Who};
use iwf_userspace::types::prefix::Prefix;
use iwf_userspace::wire::protection::good_name;

/// Talk to iwfd. Exit codes: 0 good, 1 failed (for audit: differences found), 2 usage.
#[derive(Parser)]
#[command(name = "iwfctl", version)]
struct Arguments {
    /// Control socket of the daemon (paths.control_socket in its configuration).
    #[arg(
        long,
        global = true,
        default_value = "/run/iwf/control.sock",
        value_name = "PATH"
    )]
    socket: PathBuf,
    /// Print one line of JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// How the daemon is doing.
    Status,
    /// Mapping table, kernel table and upstream leases side by side.
    Mappings(Mappings),
    /// Flows that are translated or filtered: endpoints, state, packets and octets, time left.
    ///
    /// The tables are read while packets change them: a session that comes or goes meanwhile is in the list or not, and
    /// one that comes again may be in it twice. Sessions of all LAN hosts are looked at, a million of them for some
    /// seconds, whatever is asked for; forwarding does not wait for it.
    ///
    /// States are opening, established, closing (one side has sent a FIN), closed and reset for TCP, unanswered (only
    /// one side has sent) and answered for the rest. "left" is the time until the session ends if nothing more comes,
    /// or until its mapping's lease ends if that is sooner.
    ///
    /// With --json: one object with "sessions", "matched" and "more".
    Sessions(Sessions),
    /// LAN hosts with what they hold of the tables and may hold, those with the most sessions first.
    ///
    /// With --json: one object with "hosts", "matched" and "more".
    Hosts {
        /// Show at most so many, and say how many more there are.
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
    /// What happened: mappings made, refused and displaced, tables full, servers lost, repairs.
    ///
    /// The daemon keeps the newest 1024 events of the packet programs and as many of its own; it keeps none over a
    /// restart. The programs tell of at most 256 a second and CPU (events_lost counts the others). Dropped packets are no
    /// events: an event that belongs to a counter of `iwfctl stats` names it.
    ///
    /// With --json: one object and line for each; {"lost": N} stands where N were missed by reading too slowly.
    Events(Events),
    /// What the PCP server has granted.
    Leases,
    /// LAN programs that have subscribed to UPnP events, and whether these get through.
    Subscriptions,
    /// What is let in over IPv6 unasked: pinholes of the configuration and those that LAN hosts have asked for.
    Pinholes,
    /// Who may do more than everybody: control points and users (device_protection in the configuration).
    Protection(Protection),
    /// Compare the three tables now; exit 1 if they differ.
    Audit,
    /// Counters of the data plane, and how full its tables are.
    Stats(StatsArguments),
    /// The owner's rules for what LAN hosts may have opened, and what they would say to a wish.
    #[command(subcommand)]
    Policy(Policy),
    /// Ask the DHCP servers of the WAN for PCP servers again, now.
    Discover,
    /// Tell what the DHCP client of this machine was told of PCP servers (RFC 7291). For its hooks.
    ///
    /// VALUE is what the option contains, in hexadecimal digits, with or without colons: the one of option 158, or that of
    /// each instance of option 86. Without any, the network names no PCP server. What is told counts until something else
    /// is, or the daemon restarts; the daemon asks by itself as well, for the case that it is told nothing.
    DhcpOption(DhcpOption),
    /// Remove a mapping.
    Delete {
        /// tcp or udp.
        protocol: Transport,
        /// External port as `iwfctl mappings` shows it: the carrier's if there is one, else ours.
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        external_port: u16,
    },
    /// Remove every program, link, map and qdisc from the kernel; forwarding ends. Only when iwfd does not run.
    Detach {
        /// Configuration of the daemon, which names its bpffs directory and its control socket.
        #[arg(long, default_value = "/etc/iwf/iwf.toml", value_name = "FILE")]
        config: PathBuf,
        /// The bpffs directory itself, without a configuration.
        #[arg(long, value_name = "DIR", conflicts_with = "config")]
        bpffs: Option<PathBuf>,
    },
}

#[derive(Args)]
struct Mappings {
    /// Also what went through each. Walks all sessions, which takes a moment if there are many.
    #[arg(long, conflicts_with = "dynamic")]
    counters: bool,
    /// Instead those that nobody asked for: what outbound traffic made, and what the router itself uses.
    ///
    /// With --json: one object with "mappings", "matched" and "more".
    #[arg(long)]
    dynamic: bool,
    /// Only those of this LAN host or prefix.
    #[arg(long, value_name = "ADDR[/LEN]", requires = "dynamic")]
    host: Option<Prefix>,
    /// Only this protocol: tcp, udp, icmp or a number.
    #[arg(long, value_name = "PROTOCOL", requires = "dynamic")]
    protocol: Option<IpProtocol>,
    /// Only this internal port.
    #[arg(long, value_name = "PORT", requires = "dynamic")]
    port: Option<u16>,
    /// Only this external port.
    #[arg(long, value_name = "PORT", requires = "dynamic")]
    external_port: Option<u16>,
    /// Show at most so many, and say how many more there are.
    #[arg(long, value_name = "N", requires = "dynamic")]
    limit: Option<u64>,
}

#[derive(Args)]
struct Sessions {
    /// Only those of this LAN host or prefix.
    #[arg(long, value_name = "ADDR[/LEN]")]
    host: Option<Prefix>,
    /// Only those with this remote host or prefix.
    #[arg(long, value_name = "ADDR[/LEN]")]
    remote: Option<Prefix>,
    /// Only this protocol: tcp, udp, icmp, icmpv6, sctp, dccp, udplite, esp, gre or a number.
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<IpProtocol>,
    /// Only this internal or remote port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only this external port.
    #[arg(long, value_name = "PORT")]
    external_port: Option<u16>,
    /// Only this state.
    #[arg(long, value_name = "STATE", value_parser = states())]
    state: Option<State>,
    /// Show at most so many, and say how many more there are.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

#[derive(Args)]
struct Events {
    /// Go on with what comes, until interrupted. At most 4 lists and followers are served at once.
    #[arg(long, short)]
    follow: bool,
    /// Only what comes, not what is kept.
    #[arg(long, requires = "follow")]
    new: bool,
    /// Only these kinds; may be given several times, or with commas.
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',', value_parser = kinds())]
    kinds: Vec<EventKind>,
    /// Only those about this LAN host or prefix.
    #[arg(long, value_name = "ADDR[/LEN]")]
    host: Option<Prefix>,
    /// Only those about IPv6 flows of this station.
    #[arg(long, value_name = "MAC|unknown|router")]
    station: Option<Station>,
}

#[derive(Subcommand)]
enum Policy {
    /// The rules in their order, as they are in force.
    Show,
    /// Which rule decides about a wish, and whether it would be granted now. Nothing is opened, and nobody is asked.
    ///
    /// What is known of the device is used where it is not given: its MAC address by the kernel's neighbours, its name by
    /// the lease files. A client with
    /// an IPv6 address wants a pinhole, one with an IPv4 address a mapping for itself.
    Test(PolicyWish),
}

#[derive(Args)]
struct PolicyWish {
    /// Address of the LAN host.
    #[arg(long, value_name = "ADDR")]
    client: IpAddr,
    /// Its MAC address, if another one than is known.
    #[arg(long, value_name = "MAC")]
    mac: Option<String>,
    /// Its name by DHCP, if another one than is known.
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// External port; of a pinhole the host's. Without it any port will do, and a pinhole is for every port.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The host's port, if it is another one.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    internal_port: Option<u16>,
    /// tcp or udp; of pinholes also another one.
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp")]
    protocol: IpProtocol,
    /// A pinhole for every protocol.
    #[arg(long, conflicts_with = "protocol")]
    any_protocol: bool,
}

#[derive(Args)]
struct Protection {
    #[command(subcommand)]
    command: Option<ProtectionCommand>,
}

#[derive(Subcommand)]
enum ProtectionCommand {
    /// Show who may what; the same as without a command.
    List,
    /// Add a user, or give a known one another password and other roles. The password is the first line of standard input,
    /// 8 to 128 octets; it does not leave this program.
    AddUser {
        /// Name, at most 64 octets.
        name: String,
        /// basic: may map for other hosts and low ports, and see and delete all mappings. admin: may also change who may
        /// what. May be given several times.
        #[arg(long = "role", value_name = "ROLE", default_value = "basic")]
        roles: Vec<Role>,
    },
    /// Show a PIN by which one control point can be introduced, and may then do what basic may.
    ///
    /// Type it into the program on the phone or computer that is to be known. It is another one each time, good for ten
    /// minutes, for one control point, and until three wrong ones were tried; an earlier one is not good any more.
    /// `iwfctl events` tells what came of it.
    ///
    /// With --json: one object with "pin" and "good_for_seconds".
    Pin {
        /// Instead let the PIN that was shown be good no more.
        #[arg(long)]
        withdraw: bool,
    },
    /// Say what a user or a control point may.
    Roles {
        /// Name of a user, or UUID of a control point.
        who: String,
        /// All of its roles; none: what everybody may.
        #[arg(value_name = "ROLE")]
        roles: Vec<Role>,
    },
    /// Remove a user or a control point from the list.
    Remove {
        /// Name of a user, or UUID of a control point.
        who: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Role {
    Basic,
    Admin,
}

#[derive(Args)]
struct DhcpOption {
    /// 158 of DHCPv4, or 86 of DHCPv6.
    #[arg(value_parser = ["158", "86"])]
    code: String,
    /// What it contains.
    #[arg(value_name = "VALUE")]
    values: Vec<String>,
    /// Nothing is known any more: what the daemon finds out by itself counts.
    #[arg(long, conflicts_with = "values")]
    forget: bool,
}

#[derive(Args)]
struct StatsArguments {
    /// Also counters that are zero. --json always has them.
    #[arg(long)]
    all: bool,
    /// Only counters and tables with this in their name.
    #[arg(long = "match", value_name = "TEXT")]
    matching: Option<String>,
    /// Every so many seconds, what was counted meanwhile and how much that is in a second, until interrupted. With --json
    /// an object and line each time.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

fn states() -> impl TypedValueParser<Value = State> {
    let names = State::ALL.map(|(_, name)| name);
    PossibleValuesParser::new(names).try_map(|text| named(&State::ALL, &text))
}

fn kinds() -> impl TypedValueParser<Value = EventKind> {
    let names = EventKind::ALL.iter().map(|(_, name)| *name);
    PossibleValuesParser::new(names).try_map(|text| named(EventKind::ALL, &text))
}

fn named<T: Copy>(all: &[(T, &'static str)], text: &str) -> Result<T, &'static str> {
    let found = all.iter().find(|(_, name)| *name == text);
    found.map(|(value, _)| *value).ok_or("not one of the names")
}

#[derive(Clone, Copy, ValueEnum)]
enum Transport {
    Tcp,
    Udp,
}

fn main() -> ExitCode {
    // clap prints usage errors and leaves with 2.
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("iwfctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let request = match &arguments.command {
        Command::Status => Request::Status {},
        Command::Mappings(wanted) if wanted.dynamic => {
            let request = Request::Dynamic {
                filter: DynamicFilter {
                    host: wanted.host,
                    protocol: wanted.protocol,
                    port: wanted.port,
                    external_port: wanted.external_port,
                },
                limit: wanted.limit,
            };
            return list(arguments, &request, "mappings");
        }
        Command::Mappings(wanted) if wanted.counters => Request::MappingUsage {},
        Command::Mappings(_) => Request::Mappings {},
        Command::Sessions(wanted) => {
            let request = Request::Sessions {
                filter: SessionFilter {
                    host: wanted.host,
                    remote: wanted.remote,
                    protocol: wanted.protocol,
                    port: wanted.port,
                    external_port: wanted.external_port,
                    state: wanted.state,
                },
                limit: wanted.limit,
            };
            return list(arguments, &request, "sessions");
        }
        Command::Hosts { limit } => {
            return list(arguments, &Request::Hosts { limit: *limit }, "hosts");
        }
        Command::Events(wanted) => {
            let request = Request::Events {
                filter: EventFilter {
                    kinds: wanted.kinds.clone(),
                    host: wanted.host,
                    station: wanted.station,
                },
                follow: wanted.follow,
                new: wanted.new,
            };
            return list(arguments, &request, EVENTS);
        }
        Command::Leases => Request::Leases {},
        Command::Subscriptions => Request::Subscriptions {},
        Command::Pinholes => Request::Pinholes {},
        Command::Protection(wanted) => protection(wanted.command.as_ref())?,
        Command::Audit => Request::Audit {},
        Command::Stats(wanted) => return stats(arguments, wanted),
        Command::Discover => Request::Discover {},
        Command::DhcpOption(told) => Request::DhcpOption {
            family: match told.code.as_str() {
                "158" => Family::Dhcp4,
                _ => Family::Dhcp6,
            },
            values: told.values.clone(),
            forget: told.forget,
        },
        Command::Policy(Policy::Show) => Request::Policy { test: None },
        Command::Policy(Policy::Test(wish)) => Request::Policy {
            test: Some(PolicyTest {
                client: wish.client,
                mac: wish.mac.clone(),
                name: wish.host.clone(),
                protocol: (!wish.any_protocol).then_some(wish.protocol),
                external_port: wish.port,
                internal_port: wish.internal_port,
            }),
        },
        Command::Delete {
            protocol,
            external_port,
        } => Request::Delete {
            protocol: match protocol {
                Transport::Tcp => Protocol::Tcp,
                Transport::Udp => Protocol::Udp,
            },
            external_port: *external_port,
        },
        Command::Detach { config, bpffs } => return detach(arguments, config, bpffs.as_deref()),
    };
    ask(&arguments.socket, &request, arguments.json)
}

fn protection(command: Option<&ProtectionCommand>) -> Result<Request> {
    let change = match command {
        None | Some(ProtectionCommand::List) => return Ok(Request::Protection {}),
        Some(ProtectionCommand::AddUser { name, roles }) => {
            let name = good_name(Some(name)).context("take the name")?;
            OwnerCommand::PutUser {
                verifier: verifier(name, &password()?, salt()?),
                name: name.to_owned(),
                roles: all(roles),
            }
        }
        Some(ProtectionCommand::Roles { who, roles }) => OwnerCommand::SetRoles {
            who: named_identity(who),
            roles: all(roles),
        },
        Some(ProtectionCommand::Pin { withdraw: false }) => OwnerCommand::ShowPin,
        Some(ProtectionCommand::Pin { withdraw: true }) => OwnerCommand::WithdrawPin,
        Some(ProtectionCommand::Remove { who }) => OwnerCommand::Remove(named_identity(who)),
    };
    Ok(Request::Access { change })
}

fn named_identity(who: &str) -> Who {
    let id = who.parse().map(Who::ControlPoint);
    id.unwrap_or_else(|_| Who::User(who.trim().to_owned()))
}

fn all(roles: &[Role]) -> Roles {
    roles.iter().fold(Roles::default(), |all, role| {
        all.with(match role {
            Role::Basic => Roles::BASIC,
            Role::Admin => Roles::ADMIN,
        })
    })
}

fn password() -> Result<String> {
    let mut line = String::new();
    let input = io::stdin().lock();
    io::Read::take(input, 4096)
        .read_line(&mut line)
        .context("read the password from standard input")?;
    let password = line.trim_end_matches(['\r', '\n']);
    if !(8..=128).contains(&password.len()) {
        bail!(
            "the password on standard input has {} octets; 8 to 128 are good",
            password.len()
        );
    }
    Ok(password.to_owned())
}

fn salt() -> Result<[u8; 16]> {
    let mut salt = [0; 16];
    SysRng.try_fill_bytes(&mut salt).context("get entropy")?;
    Ok(salt)
}

/// A running daemon would attach again what is taken away under it, so it has to be stopped first.
fn detach(arguments: &Arguments, config: &Path, bpffs: Option<&Path>) -> Result<ExitCode> {
    let (bpffs_dir, socket) = match bpffs {
        Some(dir) => (dir.to_owned(), arguments.socket.clone()),
        None => match Config::load(config) {
            Ok(config) => (config.paths.bpffs_dir, config.paths.control_socket),
            Err(error) => {
                eprintln!("iwfctl: {error}");
                return Ok(ExitCode::from(2));
            }
        },
    };
    if client::is_alive(&socket) {
        bail!(
            "iwfd is running ({} answers); stop it first",
            socket.display()
        );
    }
    let in_use = kernel::is_claimed(&bpffs_dir)
        .with_context(|| format!("look at {}", bpffs_dir.display()))?;
    if in_use {
        bail!("iwfd is running on {}; stop it first", bpffs_dir.display());
    }
    kernel::detach(&bpffs_dir).with_context(|| format!("detach {}", bpffs_dir.display()))?;
    show(&Response::Done, arguments.json)?;
    Ok(ExitCode::SUCCESS)
}

fn ask(socket: &Path, request: &Request, json: bool) -> Result<ExitCode> {
    let response = client::call(socket, request)?;
    show(&response, json)?;
    let failed = match &response {
        Response::Error(_) => true,
        Response::Audit(audit) => !audit.clean,
        Response::Status(_)
        | Response::Mappings(_)
        | Response::Pinholes(_)
        | Response::Protection(_)
        | Response::Pin(_)
        | Response::Leases(_)
        | Response::Subscriptions(_)
        | Response::Stats(_)
        | Response::Sessions(_)
        | Response::Dynamic(_)
        | Response::Hosts(_)
        | Response::Events(_)
        | Response::Policy(_)
        | Response::PolicyTest(_)
        | Response::End(_)
        | Response::Done => false,
    };
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Prints a list as it comes.
fn list(arguments: &Arguments, request: &Request, name: &'static str) -> Result<ExitCode> {
    let mut lister = match arguments.json {
        true => Lister::json(name),
        false => Lister::text(),
    };
    let mut code = ExitCode::SUCCESS;
    client::stream(&arguments.socket, request, |response| {
        if let Response::Error(_) = response {
            code = ExitCode::FAILURE;
        }
        print(&lister.take(&response), arguments.json)
    })?;
    Ok(code)
}

/// Prints counters and tables, once or again and again.
fn stats(arguments: &Arguments, wanted: &StatsArguments) -> Result<ExitCode> {
    let view = View {
        all: wanted.all,
        matching: wanted.matching.clone(),
    };
    let Some(mut before) = look(arguments, &view)? else {
        return Ok(ExitCode::FAILURE);
    };
    let Some(seconds) = wanted.watch else {
        let text = match arguments.json {
            true => format!(
                "{}\n",
                serde_json::to_string(&before).context("encode the answer")?
            ),
            false => stats_text::render(&before, &view),
        };
        return print(&text, arguments.json).map(|_| ExitCode::SUCCESS);
    };
    let mut at = clock::now();
    loop {
        std::thread::sleep(Duration::from_secs(seconds));
        let Some(after) = look(arguments, &view)? else {
            return Ok(ExitCode::FAILURE);
        };
        let now = clock::now();
        let millis = now.saturating_duration_since(at).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        let interval = Interval::between(&before, &after, millis, Stamp(clock::wall()));
        let text = match arguments.json {
            true => format!(
                "{}\n",
                serde_json::to_string(&interval).context("encode the answer")?
            ),
            false => interval.render(view.all),
        };
        if print(&text, arguments.json)?.is_break() {
            return Ok(ExitCode::SUCCESS);
        }
        (before, at) = (after, now);
    }
}

/// What matches now. An error is printed, and then there is none.
fn look(arguments: &Arguments, view: &View) -> Result<Option<Stats>> {
    let response = client::call(&arguments.socket, &Request::Stats {})?;
    if let Response::Stats(mut stats) = response {
        view.narrow(&mut stats);
        return Ok(Some(stats));
    }
    show(&response, arguments.json)?;
    Ok(None)
}

fn show(response: &Response, json: bool) -> Result<()> {
    let text = match json {
        true => format!("{}\n", response.to_json().context("encode the answer")?),
        false => table::render(response),
    };
    print(&text, json).map(drop)
}

/// Breaks off when nobody reads any more, as `head` does. Everything that is printed comes by here: LAN hosts have written some
/// of it.
fn print(text: &str, json: bool) -> Result<ControlFlow<()>> {
    let text = match json {
        true => terminal::json(text),
        false => terminal::lines(text),
    };
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(error).context("print"),
    }
}
