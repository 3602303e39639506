//! What goes wrong, and how long.

use vmsnap::host::Link;
use vmsnap::host::sim::{Call, Complaint, Fault, Hold, Method, Mishap, Moment, Trigger};
use vmsnap::model::VmId;
use vmsnap::model::vm::PauseReason;

use crate::node::{ChooseWeighted, Node};

/// Room for everything, in bytes.
pub const ROOM: u64 = 1 << 40;

impl Node {
    /// One of the next calls goes wrong, or something does at that moment.
    pub fn something_goes_wrong(&mut self) {
        let at = Trigger::Number(self.sim.call_count() + self.dice.usize(1..12));
        let moment = [Moment::Before, Moment::Midway, Moment::After][self.dice.usize(0..3)];
        let vm = *self.pick(&self.vms.clone()).unwrap();
        let mishap = match self.dice.choose_weighted(&[12, 3, 4, 3, 2, 2, 2, 1, 1, 2, 2, 2]) {
            0 => Mishap::Error(self.complaint()),
            1 => Mishap::Blind { looks: self.dice.u32(1..4) },
            2 => Mishap::LinkDown { calls: self.dice.u32(1..4) },
            3 => {
                let hold = Hold::default();
                self.held.push((self.turn + self.dice.u32(1..20), hold.clone()));
                Mishap::Late(hold)
            }
            4 => Mishap::NoSpace,
            5 => {
                self.oracle.vm(vm).may_be_off = true;
                Mishap::VmStops(vm)
            }
            6 => {
                self.oracle.vm(vm).may_be_paused = true;
                Mishap::VmPauses(vm, PauseReason::IoError)
            }
            7 => Mishap::VmResumes(vm),
            8 => Mishap::VmKnownWrongly(vm),
            9 => {
                self.libvirt_dies_in(Method::Pivot);
                return;
            }
            10 => {
                self.libvirt_dies_in(Method::SwitchDisks);
                return;
            }
            _ => {
                self.sim.hold_events(true);
                return;
            }
        };
        self.tally.faults += 1;
        self.trace.push(format!("turn {}: {mishap:?} {moment:?} {at:?}", self.turn));
        self.sim.add_fault(Fault { at, moment, mishap });
    }

    /// libvirt dies when QEMU has pivoted or switched, before it can note that; QEMU dies, too, before libvirt is back.
    fn libvirt_dies_in(&mut self, method: Method) {
        let calls = self.sim.calls();
        let occurrence = 1 + calls.iter().filter(|call| call.method == method).count();
        let at = Trigger::Call(Call { method, occurrence });
        let mishap = Mishap::Error(Complaint::Unreachable);
        self.sim.add_fault(Fault { at, moment: Moment::Midway, mishap });
        let mishap = Mishap::LinkDown { calls: self.dice.u32(1..4) };
        self.sim.add_fault(Fault { at, moment: Moment::After, mishap });
        self.tally.faults += 1;
        self.dies_unnoted = true;
    }

    /// See [`Self::libvirt_dies_in`].
    pub fn qemu_dies_unnoted(&mut self) -> Result<(), String> {
        if !self.dies_unnoted {
            return Ok(());
        }
        // What is written from here on is not in what was left.
        self.look(false)?;
        for vm in self.vms.clone() {
            self.qemu_dies_after_a_pivot(vm);
            self.qemu_dies_after_a_switch(vm);
        }
        Ok(())
    }

    fn qemu_dies_after_a_pivot(&mut self, vm: VmId) {
        let unnoted = self.sim.unnoted_pivots(vm);
        if unnoted.is_empty() {
            return;
        }
        for (disk, base) in unnoted {
            if self.dice.bool() {
                self.write_block(vm, &disk);
            }
            self.trace.push(format!("turn {}: {vm} ends, and {disk} wrote to {base:?}", self.turn));
            self.unseen_pivots.push((vm, disk, base));
        }
        self.tally.unseen_pivots += 1;
        self.oracle.vm(vm).may_be_off = true;
        self.sim.someone_stops(vm);
    }

    fn qemu_dies_after_a_switch(&mut self, vm: VmId) {
        let unnoted = self.sim.unnoted_switches(vm);
        if unnoted.is_empty() {
            return;
        }
        for disk in unnoted {
            if self.dice.bool() {
                self.write_block(vm, &disk);
            }
            self.trace.push(format!("turn {}: {vm} ends, and {disk} wrote to an overlay", self.turn));
        }
        self.tally.unnoted_switches += 1;
        self.oracle.vm(vm).may_be_off = true;
        self.sim.someone_stops(vm);
    }

    fn complaint(&mut self) -> Complaint {
        let complaints = [
            Complaint::Refused,
            Complaint::Busy,
            Complaint::TimedOut,
            Complaint::Unreachable,
            Complaint::AgentUnavailable,
            Complaint::AgentRefused,
            Complaint::NoSpace("/images".into()),
            Complaint::Program,
            Complaint::Garbage,
        ];
        self.pick(&complaints).unwrap().clone()
    }

    /// One of the next calls never returns, and the daemon dies in it.
    pub fn die_in_a_call(&mut self) {
        let call = self.sim.call_count() + self.dice.usize(1..25);
        let moment = [Moment::Before, Moment::Midway, Moment::After][self.dice.usize(0..3)];
        self.trace.push(format!("turn {}: dies {moment:?} call {call}", self.turn));
        self.sim.add_fault(Fault { at: Trigger::Number(call), moment, mishap: Mishap::Hang });
        self.death = Some(call);
    }

    /// What was wrong may be right again.
    pub fn undo_mishaps(&mut self) {
        let turn = self.turn;
        self.held.retain(|(until, hold)| {
            if *until <= turn {
                hold.release();
            }
            *until > turn
        });
        match self.dice.u32(0..24) {
            0 | 1 => self.sim.set_link(Link::Up),
            2 => self.sim.set_free_space(ROOM),
            3 | 4 => self.sim.hold_events(false),
            5 => self.sim.lose_events(),
            _ => {}
        }
    }
}
