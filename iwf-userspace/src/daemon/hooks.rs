//! Programs that the owner has run when something happens, such as one that publishes the address.
//!
//! Each has its own place in the journal and is run for one event at a time, in their order. The bound on what waits is
//! therefore the journal's: who is slower than the events is told how many went by.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::config::Hook;
use super::control::events::{EventFilter, EventRow};
use super::journal::{Journal, Reader, Start};

/// How long a program may take. After it, it and its children are killed.
pub const TIME_LIMIT: Duration = Duration::from_secs(60);
/// Where programs look for others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The hooks that are followed.
#[derive(Debug)]
pub struct Hooks {
    journal: Journal,
    control_socket: PathBuf,
    running: Vec<(Hook, JoinHandle<()>)>,
}

impl Hooks {
    /// None yet. `control_socket` is where programs can ask for more.
    pub fn new(journal: Journal, control_socket: PathBuf) -> Self {
        Self {
            journal,
            control_socket,
            running: Vec::new(),
        }
    }

    /// Follows these and no others. One that was followed before goes on where it is; a new one hears of what comes
    /// after this.
    pub fn follow(&mut self, hooks: &[Hook]) {
        self.running.retain(|(hook, task)| {
            let stays = hooks.contains(hook);
            if !stays {
                task.abort();
            }
            stays
        });
        for hook in hooks {
            if self.running.iter().any(|(running, _)| running == hook) {
                continue;
            }
            let filter = EventFilter {
                kinds: hook.events.clone(),
                ..EventFilter::default()
            };
            // Now, not when the task first runs.
            let reader = self.journal.reader(filter, Start::Newest);
            let task = serve(hook.clone(), reader, self.control_socket.clone());
            self.running.push((hook.clone(), tokio::spawn(task)));
        }
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        for (_, task) in &self.running {
            task.abort();
        }
    }
}

async fn serve(hook: Hook, mut reader: Reader, control_socket: PathBuf) {
    while let Some(page) = reader.next().await {
        let program = &hook.run;
        if page.lost > 0 {
            warn!(
                ?program,
                events = page.lost,
                "slower than the events: some went by"
            );
        }
        for event in &page.events {
            run(&hook, event, &control_socket).await;
        }
    }
}

async fn run(hook: &Hook, event: &EventRow, control_socket: &Path) {
    let program = &hook.run;
    match timeout(TIME_LIMIT, outcome(hook, event, control_socket)).await {
        Ok(Ok(None)) => debug!(?program, event = %event.kind, "hook ran"),
        Ok(Ok(Some(status))) => info!(?program, event = %event.kind, %status, "hook failed"),
        Ok(Err(error)) => warn!(?program, event = %event.kind, %error, "hook cannot be run"),
        Err(_) => warn!(?program, event = %event.kind, "hook takes too long: killed"),
    }
}

/// How a program ended, if not well.
async fn outcome(
    hook: &Hook,
    event: &EventRow,
    control_socket: &Path,
) -> io::Result<Option<std::process::ExitStatus>> {
    let Some((program, args)) = hook.run.split_first() else {
        return Ok(None);
    };
    let child = Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .env("IWF_CONTROL_SOCKET", control_socket)
        .envs(variables(event))
        .current_dir("/")
        .stdin(Stdio::null())
        // Of its own, so that what it has started can be killed with it.
        .process_group(0)
        .spawn()?;
    let status = Group(child).0.wait().await?;
    Ok((!status.success()).then_some(status))
}

/// A program and its children; none of them survives it unless it has ended by itself.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // The id is `None` once its end has been seen.
        let id = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(id) = id
            && let Err(error) = killpg(Pid::from_raw(id), Signal::SIGKILL)
        {
            debug!(%error, "cannot kill a hook");
        }
    }
}

/// What a program hears of an event.
fn variables(event: &EventRow) -> Vec<(&'static str, String)> {
    let time = event.time.0.as_secs().to_string();
    let mut variables = vec![
        ("IWF_EVENT", event.kind.to_string()),
        ("IWF_TIME", time),
        ("IWF_DETAIL", event.detail.clone()),
    ];
    let particulars = [
        ("IWF_PROTOCOL", event.protocol.map(|it| it.to_string())),
        ("IWF_INTERNAL", event.internal.map(|it| it.to_string())),
        ("IWF_EXTERNAL", event.external.map(|it| it.to_string())),
        ("IWF_REMOTE", event.remote.map(|it| it.to_string())),
    ];
    let known = particulars
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    variables.extend(known);
    variables
}

#[cfg(test)]
mod tests {
    use tokio::time::{interval, timeout};

    use super::*;
    use crate::daemon::control::events::{EventKind, Source};
    use crate::types::UnixTime;

    fn event(kind: EventKind, detail: &str) -> EventRow {
        EventRow {
            detail: detail.to_owned(),
            external: "203.0.113.7:5000".parse().ok(),
            ..EventRow::new(UnixTime::from_secs(7), Source::ControlPlane, kind)
        }
    }

    fn hook(events: &[EventKind], run: &[&str]) -> Hook {
        Hook {
            events: events.to_vec(),
            run: run.iter().map(|&word| word.to_owned()).collect(),
        }
    }

    async fn until(what: &str, holds: impl Fn() -> bool) {
        let looks = async {
            let mut next = interval(Duration::from_millis(5));
            while !holds() {
                next.tick().await;
            }
        };
        let came = timeout(Duration::from_secs(20), looks).await;
        assert!(came.is_ok(), "{what} never came");
    }

    async fn until_is(file: &Path, content: &str) {
        let read = || std::fs::read_to_string(file).unwrap_or_default();
        until(content, || read() == content).await;
    }

    #[tokio::test]
    async fn a_program_hears_of_its_events_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("heard");
        let say =
            "echo $IWF_EVENT $IWF_TIME $IWF_EXTERNAL $IWF_DETAIL $IWF_CONTROL_SOCKET $HOME >> $1";
        let path = file.to_str().unwrap();
        let hook = hook(
            &[EventKind::ExternalAddress],
            &["/bin/sh", "-c", say, "sh", path],
        );
        let journal = Journal::default();
        let mut hooks = Hooks::new(journal.clone(), "/run/x".into());
        hooks.follow(std::slice::from_ref(&hook));
        journal.write(event(EventKind::WanChanged, "no"));
        journal.write(event(EventKind::ExternalAddress, "one"));
        let mut heard = "external-address 7 203.0.113.7:5000 one /run/x\n".to_owned();
        until_is(&file, &heard).await;
        // The same one goes on, and is not run twice.
        hooks.follow(std::slice::from_ref(&hook));
        journal.write(event(EventKind::ExternalAddress, "two $(three)"));
        heard += "external-address 7 203.0.113.7:5000 two $(three) /run/x\n";
        until_is(&file, &heard).await;
        hooks.follow(&[]);
        assert!(hooks.running.is_empty());
    }

    #[tokio::test]
    async fn a_program_that_fails_or_is_not_there_hinders_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("heard");
        let path = file.to_str().unwrap();
        let say = "echo $IWF_DETAIL >> $1; exit 1";
        let journal = Journal::default();
        let mut hooks = Hooks::new(journal.clone(), "/run/x".into());
        let of = |run: &[&str]| hook(&[EventKind::ExternalAddress], run);
        hooks.follow(&[
            of(&["/nonexistent"]),
            of(&["/bin/sh", "-c", say, "sh", path]),
        ]);
        journal.write(event(EventKind::ExternalAddress, "one"));
        journal.write(event(EventKind::ExternalAddress, "two"));
        until_is(&file, "one\ntwo\n").await;
    }

    #[tokio::test]
    async fn who_is_given_up_goes_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let path = file.to_str().unwrap();
        // The child outlives a shell that alone is killed.
        let stay = "sleep 1000 & echo $! > $1.new; mv $1.new $1; wait";
        let journal = Journal::default();
        let mut hooks = Hooks::new(journal.clone(), "/run/x".into());
        hooks.follow(&[hook(
            &[EventKind::ExternalAddress],
            &["/bin/sh", "-c", stay, "sh", path],
        )]);
        journal.write(event(EventKind::ExternalAddress, ""));
        until("its beginning", || file.exists()).await;
        let child: i32 = std::fs::read_to_string(&file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        drop(hooks);
        until("the child's end", || {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat"));
            // Gone, or dead and not yet fetched by whoever adopts it.
            stat.map_or(true, |stat| stat.contains(") Z "))
        })
        .await;
    }
}
