//! What a process holds, as the kernel has it (`proc(5)`).

use std::fs;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

use crate::bed::process::status;

#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    /// Memory that is resident.
    pub kib: u64,
    pub descriptors: u64,
}

impl Footprint {
    pub fn of(process: u32) -> Self {
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
        Self { kib: status(process, "VmRSS:"), descriptors: descriptors.try_into().unwrap() }
    }

    /// The same with nobody connected: the fewest descriptors of some looks, as files come and go for a moment.
    pub fn at_rest(process: u32) -> Self {
        (0..20).map(|_| Self::of(process)).min_by_key(|seen| seen.descriptors).unwrap()
    }

    /// Most memory that was resident since [`forget_peak`].
    pub fn peak_kib(process: u32) -> u64 {
        status(process, "VmHWM:")
    }
}

/// Lets the peak be what is resident now.
pub fn forget_peak(process: u32) {
    fs::write(format!("/proc/{process}/clear_refs"), "5").unwrap();
}

/// What it has had of the processors.
pub fn processor_time(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The name before them may have blanks in it.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u32 = fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap();
    let per_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
    Duration::from_secs(ticks.into()) / u32::try_from(per_second).unwrap()
}
