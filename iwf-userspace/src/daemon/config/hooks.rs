//! Programs run when something happens.

use std::path::Path;

use super::validate::invalid;
use super::{Hook, Invalid, MAX_HOOKS, raw};
use crate::daemon::control::events::EventKind;

pub(super) fn check(written: &[raw::Hook]) -> Result<Vec<Hook>, Invalid> {
    let mut hooks = Vec::new();
    for one in written {
        let hook = Hook {
            events: events(one)?,
            run: run(one)?,
        };
        if hooks.len() >= MAX_HOOKS {
            return Err(invalid(
                &one.run,
                format!("more than {MAX_HOOKS} hooks"),
                "have one program run for several events",
            ));
        }
        if hooks.contains(&hook) {
            return Err(invalid(
                &one.run,
                "this hook is listed twice".to_owned(),
                "write each hook once",
            ));
        }
        hooks.push(hook);
    }
    Ok(hooks)
}

fn events(written: &raw::Hook) -> Result<Vec<EventKind>, Invalid> {
    let mut kinds = Vec::new();
    for name in written.events.get_ref() {
        let known = EventKind::ALL.iter();
        let mut known = known.filter(|(_, known)| known == name.get_ref());
        let Some((kind, _)) = known.next() else {
            return Err(invalid(
                name,
                format!("hook.events: {:?} is no event", name.get_ref()),
                "write kinds that \"iwfctl events --help\" lists",
            ));
        };
        if !kinds.contains(kind) {
            kinds.push(*kind);
        }
    }
    if kinds.is_empty() {
        return Err(invalid(
            &written.events,
            "hook.events is empty".to_owned(),
            "name at least one event, such as \"external-address\"",
        ));
    }
    Ok(kinds)
}

fn run(written: &raw::Hook) -> Result<Vec<String>, Invalid> {
    let words = written.run.get_ref();
    let Some(program) = words.first() else {
        return Err(invalid(
            &written.run,
            "hook.run is empty".to_owned(),
            "write the path of the program, then its arguments",
        ));
    };
    if !Path::new(program.get_ref()).is_absolute() {
        return Err(invalid(
            program,
            format!("hook.run: {:?} is not an absolute path", program.get_ref()),
            "write the whole path of the program; no shell reads it",
        ));
    }
    // The kernel takes no such word.
    if let Some(word) = words.iter().find(|word| word.get_ref().contains('\0')) {
        return Err(invalid(
            word,
            "hook.run: a word has a zero octet".to_owned(),
            "remove it",
        ));
    }
    Ok(words.iter().map(|word| word.get_ref().clone()).collect())
}
