//! The router: found or not, its connection, the call under way.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::task::{Conduct, Step, Task, address_of};
use super::{Errand, Fetched, Request};
use crate::proto::natpmp_client::other::{Asked, Mapped, Said};
use crate::proto::natpmp_client::{self, NatPmpClient};
use crate::types::Instant;
use crate::wire::control_point::{
    Answer, Connection, Found, Location, MAX_DESCRIPTION, connections, encode_search,
};

/// Waits after each search of a round.
const WAITS: [Duration; 3] = [
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(4),
];
/// The wait after a round that found nothing; each further one is twice as long.
const PAUSE: Duration = Duration::from_secs(60);
const MAX_PAUSE: Duration = Duration::from_secs(15 * 60);
/// A request without an answer after so long is given up. The shell gives up before, if it lives.
const DEADLINE: Duration = Duration::from_secs(10);
/// Time between two looks at address and mappings.
const CHECK: Duration = Duration::from_secs(60);
/// Other descriptions of the same router that are kept in reserve.
const MAX_RESERVE: usize = 4;

#[derive(Debug)]
pub(super) struct Router {
    /// What it is called among servers.
    pub(super) server: SocketAddr,
    /// Where it is.
    pub(super) address: Ipv4Addr,
    /// Whether it has ever been found.
    pub(super) has_answered: bool,
    wanted: bool,
    stage: Stage,
    /// Rounds of searches without success.
    rounds: u32,
    /// Descriptions to try if the one that is tried is of no use.
    reserve: Vec<Location>,
    conduct: Conduct,
    /// What the leases ask, and what is looked after in between.
    asked: Option<Asked>,
    task: Option<(Task, For)>,
    check_at: Instant,
    checked: Option<Mapped>,
    fetch: Option<Fetch>,
    wants: Option<Request>,
    search: bool,
    said: VecDeque<natpmp_client::Input>,
}

/// Who wants to know what comes of the task under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// The leases.
    Lease,
    /// Only who looks after things.
    Look,
    /// The leases did, and ask something else by now.
    Nobody,
}

#[derive(Debug)]
enum Stage {
    /// Not looked for.
    Idle,
    /// So many searches of this round are sent; the next one, or the next round, is due then.
    Searching { sent: usize, at: Instant },
    /// Its description is being fetched.
    Describing(Location),
    /// Its connections are asked for their addresses; the first that has one is used.
    Trying {
        candidates: VecDeque<Connection>,
        fallback: Option<Connection>,
    },
    /// It is used.
    Ready(Connection),
}

/// The request under way.
#[derive(Clone, Copy, Debug)]
struct Fetch {
    id: u64,
    deadline: Instant,
}

impl Router {
    /// `None` for what has no IPv4 address.
    pub(super) fn new(server: SocketAddr) -> Option<Self> {
        let IpAddr::V4(address) = server.ip() else {
            return None;
        };
        Some(Self {
            server,
            address,
            has_answered: false,
            wanted: false,
            stage: Stage::Idle,
            rounds: 0,
            reserve: Vec::new(),
            conduct: Conduct::default(),
            asked: None,
            task: None,
            check_at: Instant::default(),
            checked: None,
            fetch: None,
            wants: None,
            search: false,
            said: VecDeque::new(),
        })
    }

    pub(super) fn want(&mut self, wanted: bool, now: Instant) {
        if self.wanted == wanted {
            return;
        }
        self.wanted = wanted;
        if wanted {
            self.rounds = 0;
            self.search_at(now);
        } else {
            self.drop_work();
            self.stage = Stage::Idle;
        }
    }

    /// Forgets what is under way, and looks for the gateway again.
    pub(super) fn start_over(&mut self, now: Instant) {
        if self.wanted {
            self.rounds = 0;
            self.fail(now);
        }
    }

    pub(super) fn awaits(&self, id: u64) -> bool {
        self.fetch.is_some_and(|fetch| fetch.id == id)
    }

    pub(super) fn ask(&mut self, asked: Asked) {
        self.asked = Some(asked);
        if let Some((_, wanted @ For::Lease)) = &mut self.task {
            *wanted = For::Nobody;
        }
    }

    /// An answer to a search; false if it is of no use. Only descriptions at the router's own address are fetched.
    pub(super) fn found(&mut self, payload: &[u8]) -> bool {
        let Some(found) = Found::decode(payload) else {
            return false;
        };
        let location = Location::parse(&found.location);
        let Some(location) = location.filter(|l| *l.at.ip() == self.address) else {
            return false;
        };
        match &self.stage {
            Stage::Searching { .. } => {
                self.describe(location);
                true
            }
            Stage::Describing(other) if *other != location => {
                let known = self.reserve.contains(&location);
                if !known && self.reserve.len() < MAX_RESERVE {
                    self.reserve.push(location);
                }
                true
            }
            Stage::Idle | Stage::Describing(_) | Stage::Trying { .. } | Stage::Ready(_) => true,
        }
    }

    pub(super) fn fetched(&mut self, answer: Option<Fetched>, now: Instant) {
        self.fetch = None;
        match &mut self.stage {
            Stage::Idle | Stage::Searching { .. } => {}
            Stage::Describing(location) => {
                let good = answer.filter(|answer| answer.status == 200);
                let found = good.and_then(|answer| connections(location, &answer.body).ok());
                let own = |c: &Connection| *c.control.at.ip() == self.address;
                let candidates: VecDeque<_> =
                    found.unwrap_or_default().into_iter().filter(own).collect();
                if candidates.is_empty() {
                    return self.next_description(now);
                }
                self.stage = Stage::Trying {
                    candidates,
                    fallback: None,
                };
                self.try_next(now);
            }
            Stage::Trying {
                candidates,
                fallback,
            } => {
                let Some(tried) = candidates.pop_front() else {
                    return self.next_description(now);
                };
                let answer = answer.and_then(read(Step::Address.action()));
                match answer.as_ref().map(address_of) {
                    Some(Ok(addr)) => self.ready(tried, Some(addr), now),
                    // It talks, and may have an address later.
                    Some(Err(_)) => {
                        fallback.get_or_insert(tried);
                        self.try_next(now);
                    }
                    None => self.try_next(now),
                }
            }
            Stage::Ready(_) => self.stepped(answer, now),
        }
    }

    /// Does everything due.
    pub(super) fn handle_timeout(
        &mut self,
        local: Option<Ipv4Addr>,
        leases: &NatPmpClient,
        now: Instant,
    ) {
        if self.fetch.is_some_and(|fetch| fetch.deadline <= now) {
            self.fetched(None, now);
        }
        if let Stage::Searching { sent, at } = self.stage
            && at <= now
        {
            match WAITS.get(sent) {
                Some(wait) => {
                    self.search = true;
                    let (sent, at) = (sent + 1, now + *wait);
                    self.stage = Stage::Searching { sent, at };
                }
                None => {
                    let pause = PAUSE.saturating_mul(2_u32.saturating_pow(self.rounds));
                    self.rounds = self.rounds.saturating_add(1);
                    let at = now + pause.min(MAX_PAUSE);
                    self.stage = Stage::Searching { sent: 0, at };
                }
            }
        }
        let Some(local) = local else {
            return;
        };
        if !matches!(self.stage, Stage::Ready(_)) {
            // Nobody is there to be asked, unless that is just being found out.
            let hopeless = match self.stage {
                Stage::Idle => true,
                Stage::Searching { sent, .. } => sent == 0 && self.rounds > 0,
                Stage::Describing(_) | Stage::Trying { .. } | Stage::Ready(_) => false,
            };
            if hopeless && self.asked.take().is_some() {
                self.said
                    .push_back(natpmp_client::Input::Unreachable(self.server));
            }
            return;
        }
        if self.task.is_none() {
            if let Some(asked) = self.asked.take() {
                self.task = Some((Task::of(asked, local, &self.conduct), For::Lease));
            } else if self.check_at <= now {
                self.check_at = now + CHECK;
                self.checked = leases.mapped_after(self.server, self.checked);
                self.task = Some((Task::check(self.checked, local), For::Look));
            }
            self.go_on();
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let stage = match &self.stage {
            Stage::Searching { at, .. } => Some(*at),
            Stage::Ready(_) if self.task.is_none() => Some(self.check_at),
            Stage::Idle | Stage::Describing(_) | Stage::Trying { .. } | Stage::Ready(_) => None,
        };
        let fetch = self.fetch.map(|fetch| fetch.deadline);
        stage.into_iter().chain(fetch).min()
    }

    pub(super) fn poll_errand(&mut self, last: &mut u64, now: Instant) -> Option<Errand> {
        if std::mem::take(&mut self.search) {
            let (router, payload) = (self.address, encode_search());
            return Some(Errand::Search { router, payload });
        }
        let request = self.wants.take()?;
        *last += 1;
        self.fetch = Some(Fetch {
            id: *last,
            deadline: now + DEADLINE,
        });
        Some(Errand::Fetch { id: *last, request })
    }

    /// What the leases are to be told, until `None`.
    pub(super) fn poll_said(&mut self) -> Option<natpmp_client::Input> {
        self.said.pop_front()
    }

    fn say(&mut self, said: Said) {
        let from = self.server;
        self.said
            .push_back(natpmp_client::Input::Other { from, said });
    }

    fn search_at(&mut self, at: Instant) {
        self.reserve.clear();
        self.stage = Stage::Searching { sent: 0, at };
    }

    fn describe(&mut self, location: Location) {
        self.wants = Some(Request {
            at: location.at,
            path: location.path.clone(),
            call: None,
            limit: MAX_DESCRIPTION,
        });
        self.stage = Stage::Describing(location);
    }

    fn next_description(&mut self, now: Instant) {
        match self.reserve.pop() {
            Some(location) => self.describe(location),
            // The rest of the round: it may have been starting.
            None => {
                let sent = WAITS.len();
                self.stage = Stage::Searching { sent, at: now };
            }
        }
    }

    fn try_next(&mut self, now: Instant) {
        let Stage::Trying {
            candidates,
            fallback,
        } = &mut self.stage
        else {
            return;
        };
        match candidates.front() {
            Some(connection) => self.wants = Some(Step::Address.request(connection)),
            None => match fallback.take() {
                Some(connection) => self.ready(connection, None, now),
                None => self.next_description(now),
            },
        }
    }

    fn ready(&mut self, connection: Connection, addr: Option<Ipv4Addr>, now: Instant) {
        self.conduct = Conduct::of(&connection);
        self.stage = Stage::Ready(connection);
        (self.has_answered, self.rounds) = (true, 0);
        self.said
            .push_back(natpmp_client::Input::Alive(self.server));
        if let Some(addr) = addr {
            self.say(Said::Address(addr));
        }
        // It may have lost what it granted.
        self.check_at = now;
    }

    /// The gateway is not there any more, or not where it was: it is searched for.
    fn fail(&mut self, now: Instant) {
        self.drop_work();
        self.search_at(now);
        self.said
            .push_back(natpmp_client::Input::Unreachable(self.server));
    }

    fn drop_work(&mut self) {
        (self.task, self.asked, self.fetch) = (None, None, None);
        self.wants = None;
    }

    /// An answer to the step under way.
    fn stepped(&mut self, answer: Option<Fetched>, now: Instant) {
        let Some((task, wanted)) = &mut self.task else {
            return;
        };
        // Nothing, or what is no control URL any more.
        let Some(answer) = answer.filter(|answer| matches!(answer.status, 200 | 500)) else {
            return self.fail(now);
        };
        let answer = task.step().and_then(|step| read(step.action())(answer));
        task.answered(answer, &mut self.conduct);
        if *wanted == For::Nobody {
            self.task = None;
            return;
        }
        self.go_on();
    }

    /// Makes the next call of the task, or says what came of it.
    fn go_on(&mut self) {
        let (Some((task, _)), Stage::Ready(connection)) = (&mut self.task, &self.stage) else {
            return;
        };
        if let Some(step) = task.step() {
            let trying = step.trying();
            self.wants = Some(step.request(connection));
            if let Some(port) = trying {
                self.say(Said::Trying(port));
            }
            return;
        }
        let outcome = task.outcome();
        self.task = None;
        for said in outcome {
            self.say(said);
        }
    }
}

/// Reads the answer to an action; `None` for what is none.
fn read(action: &'static str) -> impl Fn(Fetched) -> Option<Answer> {
    move |answer| Answer::decode(action, &answer.body).ok()
}
