//! New VMs out of snapshots: each reads what its snapshot held, until nobody has a use for it any more. Nobody writes to them.

use vmsnap::model::request::NewVmState;
use vmsnap::model::{CloneMode, DeployVm, RunState, Snapshot};
use vmsnap::model::{Request, VmId};

use crate::node::{Node, at_once};
use crate::oracle::readings;
use crate::simulated::{Disks, ensure};

impl Node {
    /// Asks for one.
    pub fn deploy(&mut self, snapshot: &Snapshot) -> Request {
        let name = self.new_name("deployed");
        self.new_vms.push(name.clone());
        Request::DeployVm(DeployVm {
            snapshot: snapshot.id,
            name: name.parse().unwrap(),
            mode: [CloneMode::Linked, CloneMode::Full][self.dice.usize(0..2)],
            then: [NewVmState::Running, NewVmState::Off][self.dice.usize(0..2)],
            new_serials: false,
            bandwidth: None,
        })
    }

    /// It is there, and does what it was asked to do.
    pub fn is_deployed(&mut self, request: &DeployVm, disks: Option<&Disks>) -> Result<(), String> {
        let name = &request.name;
        let vm = self.sim.find_vm(name.as_str()).ok_or_else(|| format!("{name} is not there"))?;
        let wanted = match request.then {
            NewVmState::Off => RunState::Off,
            NewVmState::Paused | NewVmState::Running => RunState::Running,
        };
        let state = self.sim.run_state(vm);
        ensure(state == Some(wanted), || format!("{name} is {state:?}, not {wanted:?}"))?;
        self.deployed.extend(disks.map(|disks| (vm, disks.clone())));
        self.tally.deployed += 1;
        self.look_at_deployed()
    }

    /// Each reads what it did.
    pub fn look_at_deployed(&self) -> Result<(), String> {
        self.deployed.iter().try_for_each(|(vm, disks)| {
            let reads = readings(&self.sim, *vm);
            ensure(reads == *disks, || format!("the deployed {vm} reads {reads:?}, not {disks:?}"))
        })
    }

    /// They end, and their disks are volumes like any others. One that is still being made is left to those who make it.
    pub fn retire_deployed(&mut self) -> Result<(), String> {
        let open = at_once(self.store.open_operations()).map_err(|error| error.to_string())?;
        let being_made = |name: &str| {
            open.iter().any(|operation| {
                matches!(&operation.request, Request::DeployVm(request) if request.name.as_str() == name)
            })
        };
        let (kept, retired): (Vec<String>, Vec<String>) =
            std::mem::take(&mut self.new_vms).into_iter().partition(|name| {
                // One that was not asked for yet comes later.
                being_made(name) || self.wishes.iter().any(|wish| wish.deploys(name))
            });
        self.new_vms = kept;
        for vm in retired.iter().filter_map(|name| self.sim.find_vm(name)).collect::<Vec<VmId>>() {
            let variables = self.sim.variables(vm);
            self.deployed.remove(&vm);
            self.sim.someone_stops(vm);
            self.sim.someone_undefines(vm);
            if let Some(path) = variables {
                self.sim.someone_removes(&path);
            }
        }
        Ok(())
    }
}
