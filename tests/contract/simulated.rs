//! The simulated node.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use tokio::sync::broadcast;
use vmsnap::host::sim::{AgentBehaviour, SimHost};
use vmsnap::host::{GuestAgent, HostEvent, Hypervisor, Images};
use vmsnap::model::VmId;
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::{Format, PauseReason};

use crate::node::{BLOCKS, Node, target};

pub struct Simulated {
    sim: SimHost,
    vms: AtomicU32,
}

impl Simulated {
    pub fn new() -> Self {
        let sim = SimHost::new();
        // So slow that a block job is seen half way.
        sim.set_job_notches(4);
        Self { sim, vms: AtomicU32::new(0) }
    }
}

#[async_trait]
impl Node for Simulated {
    fn hypervisor(&self) -> &dyn Hypervisor {
        &self.sim
    }

    fn agent(&self) -> &dyn GuestAgent {
        &self.sim
    }

    fn images(&self) -> &dyn Images {
        &self.sim
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new("/images").join(name)
    }

    fn put_image(&self, path: &Path, format: Format, size: u64) {
        self.sim.put_image(path, format, size, false).unwrap();
    }

    fn define(&self, disks: &[(&str, &ImageRef)]) -> VmId {
        let name = format!("vm-{}", self.vms.fetch_add(1, Ordering::Relaxed));
        let mut vm = self.sim.vm(&name).agent(AgentBehaviour::NoChannel).off();
        vm = vm.captures_behind_its_back(2);
        for (disk, image) in disks {
            vm = vm.image(disk, (*image).clone());
        }
        vm.build()
    }

    fn suspend(&self, vm: VmId) {
        self.sim.someone_pauses(vm, PauseReason::User);
    }

    fn managed_save(&self, vm: VmId) {
        self.sim.someone_saves(vm);
    }

    fn redefine(&self, vm: VmId, image: &ImageRef) {
        self.sim.someone_redefines(vm, &target("vda"), image.clone());
    }

    fn undefine(&self, vm: VmId) {
        self.sim.someone_undefines(vm);
    }

    fn write_image(&self, image: &ImageRef, block: u64, value: u8) {
        self.sim.write_image(&image.path, block, value.into()).unwrap();
    }

    fn write_disk(&self, vm: VmId, disk: &str, block: u64, value: u8) {
        self.sim.guest_write(vm, &target(disk), block, value.into()).unwrap();
    }

    fn read_image(&self, image: &ImageRef) -> Vec<u8> {
        let content = self.sim.read_image(&image.path).unwrap();
        let value = |block| content.get(&block).map_or(0, |value| u8::try_from(*value).unwrap());
        (0..BLOCKS).map(value).collect()
    }

    async fn job_moves(&self, _events: &mut broadcast::Receiver<HostEvent>, _vm: VmId) {
        // A look is what moves it.
    }

    fn check_violations(&self, expected: usize) {
        let found = self.sim.violations();
        assert_eq!(found.len(), expected, "{found:?}");
    }
}
