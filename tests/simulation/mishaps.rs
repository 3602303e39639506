//! What goes wrong, and how long.

use vmsnap::host::Link;
use vmsnap::host::sim::{Complaint, Fault, Hold, Method, Mishap, Moment, Trigger};
use vmsnap::model::vm::PauseReason;
use vmsnap::model::{RunState, VmId};

use crate::node::{ChooseWeighted, Node, UnseenPivot, at_once};

/// Room for everything, in bytes.
pub const ROOM: u64 = 1 << 40;

/// A fault that stops a VM, or pauses it.
pub struct Strike {
    /// The number of the call at which it does.
    call: usize,
    vm: VmId,
    stops: bool,
}

impl Node {
    /// One of the next calls goes wrong, or something does at that moment.
    pub fn something_goes_wrong(&mut self) {
        if let Some(at) = self.weak_call() {
            self.tally.lies += 1;
            let mishap = Mishap::Error(if self.dice.bool() { Complaint::Refused } else { self.complaint() });
            return self.add_fault(at, Moment::After, mishap);
        }
        let call = self.sim.call_count() + self.dice.usize(1..12);
        let at = Trigger::Number(call);
        let moment = [Moment::Before, Moment::Midway, Moment::After][self.dice.usize(0..3)];
        let vm = *self.pick(&self.vms.clone()).unwrap();
        let mishap = match self.dice.choose_weighted(&[12, 3, 4, 3, 2, 2, 2, 1, 1, 2, 2, 2]) {
            0 => Mishap::Error(self.complaint()),
            1 => Mishap::Blind { looks: self.dice.u32(1..4) },
            2 => {
                self.tally.broken_links += 1;
                Mishap::LinkDown { calls: self.dice.u32(1..4) }
            }
            3 => {
                let hold = Hold::default();
                self.held.push((self.turn + self.dice.u32(1..20), hold.clone()));
                Mishap::Late(hold)
            }
            4 => {
                self.tally.full_disks += 1;
                Mishap::NoSpace
            }
            5 => {
                self.strikes.push(Strike { call, vm, stops: true });
                Mishap::VmStops(vm)
            }
            6 => {
                self.strikes.push(Strike { call, vm, stops: false });
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
                self.tally.held_events += 1;
                self.sim.hold_events(true);
                return;
            }
        };
        self.add_fault(at, moment, mishap);
    }

    fn add_fault(&mut self, at: Trigger, moment: Moment, mishap: Mishap) {
        self.tally.faults += 1;
        self.trace.push(format!("turn {}: {mishap:?} {moment:?} {at:?}", self.turn));
        self.sim.add_fault(Fault { at, moment, mishap });
    }

    /// The next call of a method that has its effect in this node, and says otherwise, more often than others: what is rare by
    /// chance, and matters, comes about in some nodes often. None half of the time, and in nodes without a weakness.
    fn weak_call(&mut self) -> Option<Trigger> {
        if self.dice.bool() {
            return None;
        }
        let method = *self.pick(&self.weaknesses.clone())?;
        Some(Trigger::Call(self.sim.next_call(method)))
    }

    /// libvirt dies when QEMU has pivoted or switched, before it can note that; QEMU dies, too, before libvirt is back.
    fn libvirt_dies_in(&mut self, method: Method) {
        let at = Trigger::Call(self.sim.next_call(method));
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
            self.trace.push(format!("turn {}: {vm} ends, and {disk} wrote to the base", self.turn));
            self.unseen_pivots.push(UnseenPivot { vm, disk, older: None, newer: base });
        }
        self.tally.unseen_pivots += 1;
        self.oracle.vm(vm).may_be_off = true;
        self.sim.someone_stops(vm);
        for pivot in self.unseen_pivots.iter_mut().filter(|pivot| pivot.vm == vm && pivot.older.is_none()) {
            pivot.older = self.sim.image_of(vm, &pivot.disk);
        }
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
        let number = self.sim.call_count() + self.dice.usize(1..25);
        let at = self.weak_call().unwrap_or(Trigger::Number(number));
        let moment = [Moment::Before, Moment::Midway, Moment::After][self.dice.usize(0..3)];
        self.trace.push(format!("turn {}: dies {moment:?} {at:?}", self.turn));
        self.sim.add_fault(Fault { at, moment, mishap: Mishap::Hang });
        self.death = Some(at);
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
            5 => {
                self.tally.lost_events += 1;
                self.sim.lose_events();
            }
            _ => {}
        }
    }

    /// A VM that a fault has stopped or paused may be so.
    pub fn note_strikes(&mut self) {
        let calls = self.sim.call_count();
        for strike in self.strikes.extract_if(.., |strike| strike.call <= calls) {
            let truth = self.oracle.vm(strike.vm);
            truth.may_be_off |= strike.stops;
            truth.may_be_paused |= !strike.stops;
        }
    }

    /// One that runs, and that nobody wants anything of, is not to be found off or paused later without another reason: what is
    /// asked for leaves it as it was when that was planned.
    pub fn drop_excuses(&mut self) -> Result<(), String> {
        let (sim, oracle) = (&self.sim, &mut self.oracle);
        let is_excused = |vm: &VmId| oracle.vms[vm].may_be_off || oracle.vms[vm].may_be_paused;
        let runs = |vm: &VmId| sim.run_state(*vm) == Some(RunState::Running);
        let excused: Vec<VmId> = self.vms.iter().copied().filter(|vm| is_excused(vm) && runs(vm)).collect();
        if excused.is_empty() {
            return Ok(());
        }
        let open = at_once(self.store.open_operations()).map_err(|error| error.to_string())?;
        let is_wanted = |vm: &VmId| self.wishes.iter().any(|wish| wish.vm == *vm);
        let is_held = |vm: &VmId| open.iter().any(|operation| operation.vm == *vm) || is_wanted(vm);
        for vm in excused.into_iter().filter(|vm| !is_held(vm)) {
            let truth = oracle.vm(vm);
            (truth.may_be_off, truth.may_be_paused) = (false, false);
        }
        Ok(())
    }
}
