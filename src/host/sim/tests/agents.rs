//! Guest agents of every kind.

use super::super::super::EmergencyThaw;
use super::*;
use crate::model::vm::AgentChannel;

/// What a freeze comes to, whether the guest is frozen then, and what a thaw comes to.
async fn check(behaviour: AgentBehaviour, channel: AgentChannel, frozen: (&str, bool), thawed: (&str, bool)) {
    let bed = Bed::new(|vm| vm.agent(behaviour));
    assert_eq!(bed.view().await.agent, channel, "{behaviour:?}");
    let freeze = bed.sim.freeze(bed.vm, &[], SOON).await;
    assert_eq!((kind(&freeze), bed.sim.is_guest_frozen(bed.vm)), frozen, "{behaviour:?}");
    let thaw = bed.sim.thaw(bed.vm, SOON).await;
    assert_eq!((kind(&thaw), bed.sim.is_guest_frozen(bed.vm)), thawed, "{behaviour:?}");
}

#[tokio::test]
async fn every_kind() {
    use AgentBehaviour as Agent;
    use AgentChannel::{Absent, Connected, Disconnected};
    let nobody = ("agent unavailable", false);
    check(Agent::Obeys, Connected, ("ok", true), ("ok", false)).await;
    check(Agent::NoChannel, Absent, nobody, nobody).await;
    check(Agent::NotConnected, Disconnected, nobody, nobody).await;
    check(Agent::Hangs, Connected, ("timed out", false), ("timed out", false)).await;
    check(Agent::RefusesToFreeze, Connected, ("agent refused", false), ("ok", false)).await;
    check(Agent::FreezesSilently, Connected, ("timed out", true), ("ok", false)).await;
    check(Agent::FreezesAndFallsSilent, Connected, ("ok", true), ("timed out", true)).await;
    check(Agent::ThawsByItself, Connected, ("ok", false), ("ok", false)).await;
}

#[tokio::test]
async fn file_systems() {
    let bed = Bed::running();
    let freeze = async |mount_points: &[&str]| {
        let mount_points: Vec<_> = mount_points.iter().map(|&point| point.to_owned()).collect();
        bed.sim.freeze(bed.vm, &mount_points, SOON).await
    };
    assert_eq!(freeze(&["/mnt/none"]).await.unwrap(), 0);
    assert_eq!(freeze(&["/mnt/vda", "/mnt/none"]).await.unwrap(), 1);
    assert_eq!(bed.sim.guest_write(bed.vm, &target("vda"), 0, 1), Err(GuestError::Frozen));
    bed.write("vdb", 0, 1);
    assert_eq!(kind(&freeze(&[]).await), "agent refused", "frozen already");
    assert!(bed.sim.is_frozen(bed.vm, SOON).await.unwrap());
    assert_eq!(bed.sim.thaw(bed.vm, SOON).await.unwrap(), 1);
    assert_eq!(bed.sim.thaw(bed.vm, SOON).await.unwrap(), 0);
    assert!(!bed.sim.is_frozen(bed.vm, SOON).await.unwrap());
    assert_eq!(freeze(&[]).await.unwrap(), 2);
}

#[tokio::test]
async fn a_guest_that_stands_still_does_not_answer() {
    let bed = Bed::new(VmBuilder::paused);
    assert_eq!(kind(&bed.sim.freeze(bed.vm, &[], SOON).await), "agent unavailable");
    bed.sim.someone_stops(bed.vm);
    assert_eq!(kind(&bed.sim.freeze(bed.vm, &[], SOON).await), "agent unavailable");
    assert_eq!(bed.view().await.agent, AgentChannel::Disconnected);
}

#[tokio::test]
async fn the_last_resort() {
    let bed = Bed::running();
    bed.sim.freeze(bed.vm, &[], SOON).await.unwrap();
    assert!(bed.sim.thaw_now(bed.vm, SOON).unwrap());
    assert!(!bed.sim.is_guest_frozen(bed.vm));
    bed.sim.set_agent(bed.vm, AgentBehaviour::Hangs);
    assert_eq!(kind(&bed.sim.thaw_now(bed.vm, SOON)), "timed out");
    bed.sim.someone_stops(bed.vm);
    assert!(bed.sim.thaw_now(bed.vm, SOON).unwrap(), "what does not run is not frozen");
}
