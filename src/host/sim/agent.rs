//! Simulated guest agents. Each disk of a guest has one file system, mounted at `/mnt/` and the disk's name.
//!
//! Decides how an agent behaves, from the obedient one to the one that freezes and falls silent.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;

use super::super::{EmergencyThaw, GuestAgent, HostError, HostEvent, Result};
use super::SimHost;
use super::fault::Method;
use super::machine::Live;
use super::world::{Answer, World};
use crate::model::vm::{AgentChannel, RunState};
use crate::model::{DiskTarget, VmId};

/// How a guest agent behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentBehaviour {
    /// It does what it is told.
    Obeys,
    /// The VM has no channel for one.
    NoChannel,
    /// Nobody has opened the channel.
    NotConnected,
    /// It never answers.
    Hangs,
    /// It answers, and refuses to freeze.
    RefusesToFreeze,
    /// It freezes without an answer. Everything else it answers.
    FreezesSilently,
    /// It freezes, says so, and answers nothing any more.
    FreezesAndFallsSilent,
    /// It freezes, says so, and thaws by itself at once.
    ThawsByItself,
}

impl AgentBehaviour {
    pub(super) fn channel(self, is_live: bool) -> AgentChannel {
        match self {
            Self::NoChannel => AgentChannel::Absent,
            Self::NotConnected => AgentChannel::Disconnected,
            Self::Obeys
            | Self::Hangs
            | Self::RefusesToFreeze
            | Self::FreezesSilently
            | Self::FreezesAndFallsSilent
            | Self::ThawsByItself => {
                if is_live {
                    AgentChannel::Connected
                } else {
                    AgentChannel::Disconnected
                }
            }
        }
    }
}

impl World {
    pub(super) fn set_agent(&mut self, vm: VmId, behaviour: AgentBehaviour) {
        if let Some(machine) = self.machines.get_mut(&vm) {
            machine.agent = behaviour;
            self.emit(HostEvent::AgentChanged(vm));
        }
    }

    /// The agent's guest, if the agent answers at all.
    fn ask(&mut self, vm: VmId, deadline: Duration) -> Result<(AgentBehaviour, &mut Live)> {
        let machine = self.machine(vm)?;
        let behaviour = machine.agent;
        let unavailable = |why: &str| HostError::AgentUnavailable(Some(why.into()));
        let live = machine.live.as_mut().ok_or_else(|| unavailable("the VM is off"))?;
        match behaviour {
            AgentBehaviour::NoChannel => return Err(unavailable("there is no channel")),
            AgentBehaviour::NotConnected => return Err(unavailable("nobody has opened the channel")),
            AgentBehaviour::Hangs => return Err(no_answer(deadline)),
            AgentBehaviour::FreezesAndFallsSilent if !live.frozen.is_empty() => {
                return Err(no_answer(deadline));
            }
            AgentBehaviour::Obeys
            | AgentBehaviour::RefusesToFreeze
            | AgentBehaviour::FreezesSilently
            | AgentBehaviour::FreezesAndFallsSilent
            | AgentBehaviour::ThawsByItself => {}
        }
        match live.run_state {
            RunState::Running => Ok((behaviour, live)),
            RunState::Paused(_) | RunState::Off | RunState::Migrated | RunState::Unsettled => {
                Err(unavailable("the guest stands still"))
            }
        }
    }

    fn freeze(&mut self, vm: VmId, mount_points: &[String], deadline: Duration) -> Result<u32> {
        let (behaviour, live) = self.ask(vm, deadline)?;
        if behaviour == AgentBehaviour::RefusesToFreeze {
            return Err(HostError::AgentRefused("it does not freeze".into()));
        }
        if !live.frozen.is_empty() {
            return Err(HostError::AgentRefused("the agent is in frozen state".into()));
        }
        let is_meant =
            |disk: &&DiskTarget| mount_points.is_empty() || mount_points.contains(&mount_point(disk));
        let frozen: BTreeSet<DiskTarget> = live.chains.keys().filter(is_meant).cloned().collect();
        let count = count(&frozen);
        live.frozen = frozen;
        match behaviour {
            AgentBehaviour::FreezesSilently => return Err(no_answer(deadline)),
            AgentBehaviour::ThawsByItself => live.frozen.clear(),
            AgentBehaviour::Obeys
            | AgentBehaviour::NoChannel
            | AgentBehaviour::NotConnected
            | AgentBehaviour::Hangs
            | AgentBehaviour::RefusesToFreeze
            | AgentBehaviour::FreezesAndFallsSilent => {}
        }
        Ok(count)
    }

    fn thaw(&mut self, vm: VmId, deadline: Duration) -> Result<u32> {
        let (_, live) = self.ask(vm, deadline)?;
        let count = count(&live.frozen);
        live.frozen.clear();
        Ok(count)
    }

    fn thaw_and_prove(&mut self, vm: VmId, deadline: Duration) -> Result<bool> {
        match self.thaw(vm, deadline) {
            Ok(_) => Ok(true),
            Err(error) => match self.machines.get(&vm) {
                Some(machine) if machine.live.is_some() => Err(error),
                Some(_) | None => Ok(true),
            },
        }
    }
}

/// Where the file system of a disk is mounted.
fn mount_point(disk: &DiskTarget) -> String {
    format!("/mnt/{disk}")
}

fn count(frozen: &BTreeSet<DiskTarget>) -> u32 {
    u32::try_from(frozen.len()).unwrap_or(u32::MAX)
}

fn no_answer(after: Duration) -> HostError {
    HostError::TimedOut { call: "the guest agent", after }
}

#[async_trait]
impl GuestAgent for SimHost {
    async fn freeze(&self, vm: VmId, mount_points: &[String], deadline: Duration) -> Result<u32> {
        self.call(Method::Freeze, |world, _| world.freeze(vm, mount_points, deadline)).await
    }

    async fn thaw(&self, vm: VmId, deadline: Duration) -> Result<u32> {
        self.call(Method::Thaw, |world, _| world.thaw(vm, deadline)).await
    }

    async fn is_frozen(&self, vm: VmId, deadline: Duration) -> Result<bool> {
        let status = |world: &mut World, _| Ok(!world.ask(vm, deadline)?.1.frozen.is_empty());
        self.call(Method::IsFrozen, status).await
    }
}

impl EmergencyThaw for SimHost {
    fn thaw_now(&self, vm: VmId, deadline: Duration) -> Result<bool> {
        self.at_once(Method::ThawNow, deadline, |world| world.thaw_and_prove(vm, deadline))
    }

    fn resume_now(&self, vm: VmId, deadline: Duration) -> Result<bool> {
        self.at_once(Method::ResumeNow, deadline, |world| world.resume_and_prove(vm))
    }
}

impl SimHost {
    /// A thread is never held up for longer than its deadline.
    fn at_once(
        &self,
        method: Method,
        deadline: Duration,
        effect: impl FnOnce(&mut World) -> Result<bool>,
    ) -> Result<bool> {
        match self.world().perform(method, |world, _| effect(world)) {
            Answer::Given(result) => result,
            Answer::Late(..) | Answer::Never => Err(no_answer(deadline)),
        }
    }
}
