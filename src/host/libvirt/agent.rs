//! The guest agent, asked through libvirt (`virDomainQemuAgentCommand`).
//!
//! Decides how its commands are spelled, and how little of its answers is believed. Leaves when to freeze and thaw,
//! and what an answer means, to `ops`.
//!
//! libvirt's own `virDomainFSFreeze` waits for ever by default; a command of its own carries its own time limit.

use std::time::Duration;

use async_trait::async_trait;
use qapi::qga::{
    GuestFsfreezeStatus, guest_fsfreeze_freeze, guest_fsfreeze_freeze_list, guest_fsfreeze_status,
    guest_fsfreeze_thaw, guest_ping,
};
use qapi::{Command, Execute};
use serde::de::DeserializeOwned;

use super::change;
use super::connection::Connection;
use super::lane::Lane;
use super::monitor::{self, Reply};
use super::refusal::of_agent;
use super::vms;
use crate::host::{EmergencyThaw, GuestAgent, HostError, Result};
use crate::model::VmId;

/// How long an agent may take to show that it is there at all. libvirt synchronises with it within the same time.
const PROBE: Duration = Duration::from_secs(2);

/// What the way to the agent may take beyond the time that the agent is given.
const MARGIN: Duration = Duration::from_secs(1);

/// Longest answer that is read. The ones that we ask for take a few bytes.
const LONGEST_REPLY: usize = 64 * 1024;

/// Guest agents, over one lane.
#[derive(Debug)]
pub struct AgentLane(pub(super) Lane);

#[async_trait]
impl GuestAgent for AgentLane {
    async fn freeze(&self, vm: VmId, mount_points: &[String], deadline: Duration) -> Result<u32> {
        let mount_points = mount_points.to_vec();
        self.0
            .run("the guest agent's freeze", deadline + PROBE + MARGIN, move |line| {
                freeze(line, vm, mount_points, deadline)
            })
            .await
    }

    async fn thaw(&self, vm: VmId, deadline: Duration) -> Result<u32> {
        self.0.run(THAW, deadline + MARGIN, move |line| thaw(line, vm, deadline)).await
    }

    async fn is_frozen(&self, vm: VmId, deadline: Duration) -> Result<bool> {
        self.0.run(STATUS, deadline + MARGIN, move |line| is_frozen(line, vm, deadline)).await
    }
}

impl EmergencyThaw for AgentLane {
    fn thaw_now(&self, vm: VmId, deadline: Duration) -> Result<bool> {
        self.0.run_blocking(THAW, deadline + MARGIN, move |line| thaw_and_prove(line, vm, deadline / 2))
    }

    fn resume_now(&self, vm: VmId, deadline: Duration) -> Result<bool> {
        self.0.run_blocking("the resume of the VM", deadline, move |line| change::resume_and_prove(line, vm))
    }
}

const THAW: &str = "the guest agent's thaw";
const STATUS: &str = "the guest agent's freeze status";

fn freeze(line: &Connection, vm: VmId, mount_points: Vec<String>, deadline: Duration) -> Result<u32> {
    // A dead agent is to be seen now, not when the time for the freeze has passed.
    ask(line, vm, guest_ping {}, PROBE)?;
    let frozen = if mount_points.is_empty() {
        ask(line, vm, guest_fsfreeze_freeze {}, deadline)?
    } else {
        ask(line, vm, guest_fsfreeze_freeze_list { mountpoints: Some(mount_points) }, deadline)?
    };
    count(frozen)
}

/// Without a probe before it: the thaw itself finds out, and a frozen guest is not to wait longer.
fn thaw(line: &Connection, vm: VmId, deadline: Duration) -> Result<u32> {
    count(ask(line, vm, guest_fsfreeze_thaw {}, deadline)?)
}

/// Whatever becomes of the thaw, the guest's own word about its state counts, and so does its end.
fn thaw_and_prove(line: &Connection, vm: VmId, deadline: Duration) -> Result<bool> {
    if let Err(error) = thaw(line, vm, deadline) {
        tracing::warn!(%vm, error = ?error, "a thaw failed; asking the guest for its state");
    }
    match is_frozen(line, vm, deadline) {
        Ok(is_frozen) => Ok(!is_frozen),
        Err(error) if has_ended(line, vm)? => {
            tracing::debug!(%vm, error = ?error, "the guest has ended: nothing is frozen any more");
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

/// Whether there is no process that could be frozen.
fn has_ended(line: &Connection, vm: VmId) -> Result<bool> {
    match vms::lookup(line, vm).and_then(|domain| vms::is_active(&domain, vm)) {
        Ok(is_active) => Ok(!is_active),
        Err(HostError::NoSuchVm(_)) => Ok(true),
        Err(error) => Err(error),
    }
}

fn is_frozen(line: &Connection, vm: VmId, deadline: Duration) -> Result<bool> {
    Ok(match ask(line, vm, guest_fsfreeze_status {}, deadline)? {
        GuestFsfreezeStatus::frozen => true,
        GuestFsfreezeStatus::thawed => false,
    })
}

fn ask<C: Command>(line: &Connection, vm: VmId, command: C, deadline: Duration) -> Result<C::Ok>
where
    C::Ok: DeserializeOwned,
{
    let text = monitor::spell(&Execute::<C>::from(command))?;
    let domain = vms::lookup(line, vm)?;
    let reply =
        domain.qemu_agent_command(&text, whole_seconds(deadline), 0).map_err(of_agent(vm, C::NAME))?;
    read(&reply)
}

/// libvirt counts in whole seconds, and zero would mean not to wait for an answer.
fn whole_seconds(deadline: Duration) -> i32 {
    let seconds = deadline.as_secs() + u64::from(deadline.subsec_nanos() > 0);
    i32::try_from(seconds.max(1)).unwrap_or(i32::MAX)
}

/// What an agent was asked for, out of its answer.
pub(super) fn read<T: DeserializeOwned>(reply: &str) -> Result<T> {
    if reply.len() > LONGEST_REPLY {
        return Err(malformed(format!("it is {} bytes long", reply.len())));
    }
    let reply: Reply<T> = serde_json::from_str(reply).map_err(malformed)?;
    Ok(reply.value)
}

/// The agent's word for a number of file systems.
pub(super) fn count(number: i64) -> Result<u32> {
    u32::try_from(number).map_err(malformed)
}

fn malformed(cause: impl Into<crate::host::error::Cause>) -> HostError {
    HostError::Malformed { what: "the answer of the guest agent", cause: cause.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_count(reply: &str, expected: Option<u32>) {
        assert_eq!(read::<i64>(reply).and_then(count).ok(), expected, "{reply:.80}");
    }

    #[test]
    fn counts_of_file_systems() {
        check_count(r#"{"return":2}"#, Some(2));
        check_count(r#"{"return":0,"id":"x"}"#, Some(0));
        check_count(r#"{"return":-1}"#, None);
        check_count(r#"{"return":4294967296}"#, None);
        check_count(r#"{"return":"2"}"#, None);
        check_count(r#"{"error":{"class":"GenericError","desc":"no"}}"#, None);
        check_count("", None);
        check_count("\u{1b}[2J", None);
        check_count(&format!(r#"{{"return":2,"pad":"{}"}}"#, "x".repeat(LONGEST_REPLY)), None);
        check_count(&"[".repeat(LONGEST_REPLY), None);
    }

    #[test]
    fn time_limits_are_whole_seconds_and_never_none() {
        let check = |millis, expected| assert_eq!(whole_seconds(Duration::from_millis(millis)), expected);
        check(0, 1);
        check(1, 1);
        check(1000, 1);
        check(1001, 2);
        check(u64::MAX, i32::MAX);
    }
}
