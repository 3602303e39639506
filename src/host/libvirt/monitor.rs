//! QEMU's monitor, asked through libvirt (`virDomainQemuMonitorCommand`).
//!
//! Decides how a question is spelled and what an answer must look like. Leaves to `graph` what it says. Asks only
//! what changes nothing behind libvirt's back, with three exceptions: [`activate_images`], [`pause`], and what `background`
//! asks for.

use std::fs::read_to_string;

use qapi::Execute;
use qapi::qmp::{query_block, query_cpus_fast, query_status, query_version, stop};
use serde::{Deserialize, Serialize};
use virt::domain::Domain;

use super::graph::BlockDevice;
use super::refusal::{LibvirtSays, on_vm};
use crate::host::{HostError, Result};
use crate::model::{ProcessId, VmId};

/// Longest answer that is read: 64 disks with long chains stay far below.
const LONGEST_REPLY: usize = 32 * 1024 * 1024;

/// An answer of QEMU or of its guest agent.
#[derive(Debug, Deserialize)]
pub(super) struct Reply<T> {
    /// What was asked for.
    #[serde(rename = "return")]
    pub(super) value: T,
}

/// The disks as QEMU has them (QMP `query-block`), each with its chain of images.
///
/// The command is `qapi`'s, the answer's type is our own: `qapi` has closed enums, and a newer QEMU adds values.
pub(super) fn block_devices(domain: &Domain, vm: VmId) -> Result<Vec<BlockDevice>> {
    ask(domain, vm, &Execute::<query_block>::from(query_block {}))
}

/// The version of the process (QMP `query-version`). It may be older than the program that is installed now.
pub(super) fn version(domain: &Domain, vm: VmId) -> Result<Version> {
    ask::<VersionInfo>(domain, vm, &Execute::<query_version>::from(query_version {})).map(|info| info.qemu)
}

/// Whether the processors run, whatever libvirt believes (QMP `query-status`).
pub(super) fn is_running(domain: &Domain, vm: VmId) -> Result<bool> {
    ask::<Status>(domain, vm, &Execute::<query_status>::from(query_status {})).map(|status| status.running)
}

/// Lets the processors stand still (QMP `stop`). libvirt is told by QEMU.
pub(super) fn pause(domain: &Domain, vm: VmId) -> Result<()> {
    let _: serde_json::Value = ask(domain, vm, &Execute::<stop>::from(stop {}))?;
    Ok(())
}

#[derive(Debug, Deserialize)]
struct Status {
    running: bool,
}

/// The process: its first virtual processor's thread (QMP `query-cpus-fast`), which runs as long as it does, in this boot of
/// the node. libvirt's own number of a domain is given again after a restart of libvirtd.
pub(super) fn process(domain: &Domain, vm: VmId) -> Result<ProcessId> {
    let boot = read_to_string(BOOT_ID).map_err(|error| HostError::Io {
        action: "read",
        path: BOOT_ID.into(),
        cause: error,
    })?;
    let threads: Vec<Processor> = ask(domain, vm, &Execute::<query_cpus_fast>::from(query_cpus_fast {}))?;
    process_of(&boot, &threads)
}

/// Another one for each boot of the node.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

fn process_of(boot: &str, processors: &[Processor]) -> Result<ProcessId> {
    let first = processors
        .iter()
        .min_by_key(|processor| processor.index)
        .ok_or(HostError::Malformed { what: "the answer of QEMU", cause: "it has no processors".into() })?;
    Ok(ProcessId(format!("{}/{}", boot.trim(), first.thread)))
}

#[derive(Debug, Deserialize)]
struct Processor {
    #[serde(rename = "cpu-index")]
    index: u64,
    #[serde(rename = "thread-id")]
    thread: u64,
}

#[derive(Debug, Deserialize)]
struct VersionInfo {
    qemu: Version,
}

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Version {
    major: u32,
    minor: u32,
    micro: u32,
}

impl Version {
    /// The first that ends a pull safely. Before it, QEMU keeps the filter of a pull that has ended (`copy-on-read`,
    /// without a child) until libvirt dismisses the job, and crashes if anybody asks for its nodes meanwhile
    /// (`query-named-block-nodes`): libvirt does, when another pull of the VM ends, and for statistics. QEMU issue 3149,
    /// commit "block: Drop `detach_subchain` for `bdrv_replace_node`".
    const PULLS_SAFELY: Self = Self { major: 10, minor: 2, micro: 0 };

    /// The first that leaves a paused VM paused in a background snapshot (commit "migration: preserve suspended for
    /// `bg_migration`"). Since 8.2 it writes memory to an offset in a file (migration to `file:`), but lets the VM run.
    const CAPTURES_PAUSED_VMS: Self = Self { major: 9, minor: 0, micro: 0 };

    /// What stands in the way of a background capture, in words.
    pub(super) fn background_blocker(self) -> Option<String> {
        let Self { major, minor, micro } = self;
        let words =
            format!("QEMU {major}.{minor}.{micro} cannot capture the memory of a paused VM behind its back");
        (self < Self::CAPTURES_PAUSED_VMS).then_some(words)
    }

    /// What makes a pull dangerous, in words.
    pub(super) fn pull_blocker(self) -> Option<String> {
        let Self { major, minor, micro } = self;
        let words = format!("QEMU {major}.{minor}.{micro} may crash when a pull ends (QEMU issue 3149)");
        (self < Self::PULLS_SAFELY).then_some(words)
    }
}

/// Lets QEMU own the images of a paused VM again, if it has let go of them.
///
/// QEMU lets go of them (`inactive` nodes) when it has written out the memory of a paused VM, and when it has read
/// memory and was told to stay paused. It then holds no lock on them, and refuses block jobs ("Inactive '...' can't be
/// a backing child of active '...'", libvirt issue 626). It takes them back when the VM resumes, or when asked by
/// `blockdev-set-active`, which QEMU has since 10.0. libvirt itself has no call for it, and need not know: it treats
/// both alike.
pub(super) fn activate_images(domain: &Domain, vm: VmId) -> Result<()> {
    let devices = block_devices(domain, vm)?;
    if devices.iter().all(BlockDevice::is_active) {
        return Ok(());
    }
    let command = Custom { execute: "blockdev-set-active", arguments: SetActive { active: true } };
    let _: serde_json::Value = ask(domain, vm, &command)?;
    Ok(())
}

/// A command that `qapi` does not know yet.
#[derive(Debug, Serialize)]
pub(super) struct Custom<A> {
    pub(super) execute: &'static str,
    pub(super) arguments: A,
}

#[derive(Debug, Serialize)]
struct SetActive {
    active: bool,
}

/// A command as JSON. libvirt takes a C string: JSON has no NUL, because it is escaped.
pub(super) fn spell(command: &impl Serialize) -> Result<String> {
    serde_json::to_string(command)
        .map_err(|error| HostError::Malformed { what: "a command to QEMU", cause: error.into() })
}

/// Asks QEMU, and reads its answer.
pub(super) fn ask<T: for<'a> Deserialize<'a>>(
    domain: &Domain,
    vm: VmId,
    command: &impl Serialize,
) -> Result<T> {
    let reply = domain.qemu_monitor_command(&spell(command)?, 0);
    read(&reply.map_err(on_vm(vm, "pass a question on to QEMU"))?)
}

/// Tells QEMU to do something that has no answer of its own.
pub(super) fn tell(
    domain: &Domain,
    vm: VmId,
    execute: &'static str,
    arguments: impl Serialize,
) -> Result<()> {
    ask::<serde_json::Value>(domain, vm, &Custom { execute, arguments }).map(drop)
}

/// Asks QEMU something that takes nothing.
pub(super) fn query<T: for<'a> Deserialize<'a>>(
    domain: &Domain,
    vm: VmId,
    execute: &'static str,
) -> Result<T> {
    ask(domain, vm, &Custom { execute, arguments: Nothing {} })
}

/// No arguments.
#[derive(Debug, Serialize)]
pub(super) struct Nothing {}

/// What QEMU was asked for, out of its answer.
pub(super) fn read<T: for<'a> Deserialize<'a>>(reply: &str) -> Result<T> {
    let malformed = |cause| HostError::Malformed { what: "the answer of QEMU", cause };
    if reply.len() > LONGEST_REPLY {
        return Err(malformed(format!("it is {} bytes long", reply.len()).into()));
    }
    match serde_json::from_str::<Reply<T>>(reply) {
        Ok(reply) => Ok(reply.value),
        // An error of QEMU comes as an object without `return`; its text says more than that of the parser.
        Err(error) => match serde_json::from_str::<Refusal>(reply) {
            Ok(refusal) => Err(HostError::Refused {
                call: "do what its monitor was asked",
                cause: LibvirtSays::new(refusal.error.desc).into(),
            }),
            Err(_) => Err(malformed(error.into())),
        },
    }
}

#[derive(Debug, Deserialize)]
struct Refusal {
    error: RefusalText,
}

#[derive(Debug, Deserialize)]
struct RefusalText {
    desc: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_first_processor() {
        let json = r#"[{"thread-id":42,"props":{},"qom-path":"/machine/b","cpu-index":1,"target":"x86_64"},
                       {"thread-id":41,"qom-path":"/machine/a","cpu-index":0,"target":"later"}]"#;
        let processors: Vec<Processor> = serde_json::from_str(json).unwrap();
        assert_eq!(process_of("boot\n", &processors).unwrap(), ProcessId("boot/41".to_owned()));
        assert!(matches!(process_of("boot", &[]), Err(HostError::Malformed { .. })));
    }

    #[test]
    fn which_qemu_captures_memory_in_the_background() {
        let blocker = |major, minor| Version { major, minor, micro: 0 }.background_blocker();
        let words = "QEMU 8.2.0 cannot capture the memory of a paused VM behind its back";
        assert_eq!(blocker(8, 2).as_deref(), Some(words));
        assert_eq!((blocker(9, 0), blocker(10, 0)), (None, None));
    }

    #[test]
    fn which_qemu_pulls_safely() {
        let check = |json: &str, expected: Option<&str>| {
            let info: VersionInfo = serde_json::from_str(json).unwrap();
            assert_eq!(info.qemu.pull_blocker().as_deref(), expected, "{json}");
        };
        let debian = r#"{"qemu":{"micro":2,"minor":0,"major":10},"package":"Debian 1:10.0.2+ds-2"}"#;
        check(debian, Some("QEMU 10.0.2 may crash when a pull ends (QEMU issue 3149)"));
        check(
            r#"{"qemu":{"micro":50,"minor":1,"major":10}}"#,
            Some("QEMU 10.1.50 may crash when a pull ends (QEMU issue 3149)"),
        );
        check(r#"{"qemu":{"micro":0,"minor":2,"major":10}}"#, None);
        check(r#"{"qemu":{"micro":0,"minor":0,"major":11}}"#, None);
    }
}
