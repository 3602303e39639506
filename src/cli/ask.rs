//! The question before something goes that cannot be had back.

use std::io::{self, IsTerminal};

use super::args::Sure;
use super::failure::{Failure, exit};
use super::{output, words};
use crate::proto::v1;

/// Shows a plan and asks. Without a terminal `--yes` must be there.
pub(super) fn ask(plans: &[v1::Plan], question: &str, sure: Sure) -> Result<(), Failure> {
    if let Some(blocker) = plans.iter().find_map(|plan| plan.blockers.first()) {
        let operation = v1::Operation { error: Some(blocker.clone()), ..v1::Operation::default() };
        return Err(Failure::of_operation(&operation));
    }
    if sure.yes {
        return Ok(());
    }
    for plan in plans {
        output::complaint(&describe(plan));
    }
    confirm(question)
}

/// Asks without a plan.
pub(super) fn confirm(question: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(exit::USAGE, "there is no terminal to ask on", "add --yes"));
    }
    let answer = dialoguer::Confirm::new().with_prompt(question).default(false).interact();
    match answer {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(Failure::new(exit::INTERRUPTED, "nothing was done", "")),
    }
}

/// A plan in lines.
pub(super) fn describe(plan: &v1::Plan) -> String {
    let mut lines = vec![format!("{} ({})", plan.summary, plan.vm_name)];
    for step in &plan.steps {
        let mark = if step.commit_point { "  <- no way back from here" } else { "" };
        lines.push(format!("  {}. {}{mark}", step.index + 1, step.description));
    }
    for blocker in &plan.blockers {
        lines.push(format!("  in the way: {}", blocker.message));
        if !blocker.remedy.is_empty() {
            lines.push(format!("              {}", blocker.remedy));
        }
    }
    for removal in &plan.removals {
        let bytes =
            if removal.bytes > 0 { format!(" ({})", words::size(removal.bytes)) } else { String::new() };
        lines.push(format!("  gone for good: {}{bytes}", removal.description));
    }
    for warning in &plan.warnings {
        lines.push(format!("  note: {warning}"));
    }
    if plan.bytes_to_copy > 0 {
        lines.push(format!("  to be moved: at most {}", words::size(plan.bytes_to_copy)));
    }
    lines.join("\n")
}
