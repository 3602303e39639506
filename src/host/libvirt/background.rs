//! Memory that QEMU writes behind a running guest's back (its capability `background-snapshot`), into a save image whose
//! header is there already.
//!
//! Decides how QEMU is asked, and which of what it tells is about our image. Leaves to `given` how QEMU gets what it writes to,
//! the pause and the resume around it to the caller. Must never leave the capability behind: nobody could migrate the VM any
//! more, or worse.
//!
//! ```text
//!   prepare: [file given] -> [capability on]
//!   begin:   [migrate] -> pages made known to the kernel --QEMU alone-->
//!   prove:             -> changes kept apart --QEMU alone--> completed | failed
//!   end:     [cancelled, if under way] -> [capability off] -> [file taken back]
//! ```
//! The VM stands still from before the beginning until after the proof. Somebody may have resumed it and paused it again, and a pause
//! does not tell whose it is: as long as it has not used its disks, what it did in between is of no matter.
//!
//! libvirt has no job of this: it takes the events of a migration that it has not asked for as none of its own. QEMU gets
//! an open file, so that it is confined as it was. Only one prepared by [`prepare`] has that file: by its name in QEMU it is known.
//! Whoever has prepared it holds a lock on that file for as long as it lives: another process ends only what nobody waits for.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use virt::domain::Domain;
use virt::sys;

use super::awaited::{Awaited, Carrier};
use super::connection::Connection;
use super::description::Description;
use super::migration::{Migration, Told};
use super::monitor::{self, Nothing, query, tell};
use super::refusal::LibvirtSays;
use super::{given, requests, vms};
use crate::host::images::{Compressed, Compression, MemoryPlace, where_memory_goes};
use crate::host::{BackgroundCapture, HostError, Result};
use crate::model::VmId;
use crate::model::vm::{MemoryFormat, PauseReason, RunState};

/// The guest stands still meanwhile, and QEMU has no event for it: `query-migrate` alone tells.
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// Changes are kept apart within milliseconds per GiB, or something is wrong.
const BEGINS_WITHIN: Duration = Duration::from_secs(20);

/// QEMU gives a migration up between two pages.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// See [`crate::host::Hypervisor::background_blocker`].
///
/// QEMU looks whether the kernel and the guest's memory allow it when it is switched on (`migrate_caps_check`).
pub(super) fn blocker(line: &Connection, awaited: &Awaited, vm: VmId) -> Result<Option<String>> {
    let domain = vms::lookup(line, vm)?;
    if let Some(blocker) = monitor::version(&domain, vm)?.background_blocker() {
        return Ok(Some(blocker));
    }
    let images = given::images(&domain, vm)?;
    if awaited.by_others(vm, images.iter().map(PathBuf::as_path)) {
        // Whoever switches it off lets what that one begins be another migration.
        return Err(is_of_another());
    }
    let described = Description::read(&vms::xml(&domain, vm, sys::VIR_DOMAIN_NONE)?)?;
    if let Some(blocker) = described.background_blocker {
        return Ok(Some(blocker));
    }
    let asked = set_capability(&domain, vm, true);
    // Whatever came of it, it does not stay on.
    let off = set_capability(&domain, vm, false).or_else(|_| set_capability(&domain, vm, false));
    match asked {
        Ok(()) => off.map(|()| None),
        Err(HostError::Refused { cause, .. }) => Ok(Some(cause.to_string())),
        Err(error) => Err(error),
    }
}

/// See [`crate::host::Hypervisor::prepare_background_capture`].
pub(super) fn prepare(line: &Connection, awaited: &Awaited, vm: VmId, image: &Path) -> Result<()> {
    let domain = vms::lookup(line, vm)?;
    let MemoryPlace { format, .. } = where_memory_goes(image)?;
    awaited.give_up(vm);
    if !end_on(&domain, awaited, vm)? || !awaited.wait_for(vm, image)? {
        return Err(is_of_another());
    }
    let given = given::give(&domain, vm, image, format).and_then(|()| set_capability(&domain, vm, true));
    or_end(given, &domain, awaited, vm)
}

/// See [`crate::host::Hypervisor::begin_background_capture`].
pub(super) fn begin(line: &Connection, awaited: &Awaited, vm: VmId, image: &Path) -> Result<()> {
    let domain = vms::lookup(line, vm)?;
    check_paused(&domain, vm)?;
    let place = where_memory_goes(image)?;
    if !awaited.is_for(vm, image) {
        return Err(refused("nobody has prepared it"));
    }
    or_end(begin_on(&domain, awaited, vm, (image, place)), &domain, awaited, vm)
}

/// What was begun, or nothing.
fn or_end(begun: Result<()>, domain: &Domain, awaited: &Awaited, vm: VmId) -> Result<()> {
    if begun.is_err() {
        end_on(domain, awaited, vm)?;
        awaited.wait_no_more(vm);
    }
    begun
}

/// See [`crate::host::Hypervisor::prove_background_capture`].
pub(super) fn prove(line: &Connection, awaited: &Awaited, vm: VmId, image: &Path) -> Result<()> {
    let domain = vms::lookup(line, vm)?;
    let before = awaited.requests(vm, image).ok_or_else(|| refused("nobody has begun it"))?;
    // As long as it is under way QEMU lets nobody change that (`migrate_caps_check`). Without it this is another migration, which
    // takes in what the guest changes.
    if !is_on(&domain, vm)? {
        return Err(refused("somebody has switched background snapshots off"));
    }
    wait_for_pages(&domain, awaited, vm)?;
    // In this order: one that stands still has nothing under way that is not counted yet. What it does from here on is kept apart.
    check_paused(&domain, vm)?;
    if requests::look(&domain, vm)? != before {
        return Err(refused(
            "the guest has used its disks meanwhile: somebody has resumed it, and paused it again",
        ));
    }
    Ok(())
}

/// What it changes would be in its memory and not in its disks, or the other way round. One that stands still for another reason
/// than that it was asked to has run.
fn check_paused(domain: &Domain, vm: VmId) -> Result<()> {
    let is_paused = vms::state(domain, vm)? == RunState::Paused(PauseReason::User);
    if !is_paused || monitor::is_running(domain, vm)? {
        return Err(refused("somebody has resumed the VM"));
    }
    Ok(())
}

fn begin_on(
    domain: &Domain,
    awaited: &Awaited,
    vm: VmId,
    (image, place): (&Path, MemoryPlace),
) -> Result<()> {
    // Before QEMU may be asked to begin.
    awaited.note_requests(vm, requests::look(domain, vm)?);
    match place.format {
        MemoryFormat::Raw => migrate(domain, vm, format!("file:{},offset={}", given::place(), place.at)),
        MemoryFormat::Zstd => migrate_through_pipe(domain, awaited, vm, (image, place.at)),
    }
}

/// From then on what the guest changes is kept apart.
fn wait_for_pages(domain: &Domain, awaited: &Awaited, vm: VmId) -> Result<()> {
    let began = Instant::now();
    loop {
        match migration(domain, vm)?.judge() {
            // "Active" alone is too early: until there are pages QEMU may not have begun to keep changes apart.
            Told::Active { pages: 1.., .. } | Told::Complete { .. } => return Ok(()),
            Told::Failed(problem) => {
                // QEMU only knows that nobody reads any more.
                let problem = match awaited.carrier(vm) {
                    Carrier::Us(Compressed::Failed(ours)) => ours,
                    _ => problem,
                };
                return Err(refused(LibvirtSays::new(problem)));
            }
            Told::Nothing | Told::Active { .. } if began.elapsed() > BEGINS_WITHIN => {
                return Err(HostError::TimedOut {
                    call: "the beginning of the capture",
                    after: BEGINS_WITHIN,
                });
            }
            Told::Nothing | Told::Active { .. } => thread::sleep(BETWEEN_LOOKS),
        }
    }
}

/// We compress what QEMU writes. It has the image all the same: by that it is known whose capture it is.
fn migrate_through_pipe(
    domain: &Domain,
    awaited: &Awaited,
    vm: VmId,
    (image, memory_at): (&Path, u64),
) -> Result<()> {
    let (compression, sink) = Compression::begin(image, memory_at)?;
    awaited.compress(vm, compression);
    let uri = given::give_pipe(domain, vm, sink.as_fd())?;
    // The memory ends when nobody has this end any more: QEMU alone has it now.
    drop(sink);
    let migrated = migrate(domain, vm, uri);
    if migrated.is_err() {
        given::take_pipe_back(domain, vm);
    }
    migrated
}

/// See [`crate::host::Hypervisor::background_capture`].
pub(super) fn look(
    line: &Connection,
    awaited: &Awaited,
    vm: VmId,
    image: &Path,
) -> Result<BackgroundCapture> {
    let domain = vms::lookup(line, vm)?;
    if !vms::is_active(&domain, vm)? {
        return Ok(BackgroundCapture::None);
    }
    // Until it is begun QEMU tells of the one before.
    let is_only_prepared = awaited.is_for(vm, image) && awaited.requests(vm, image).is_none();
    if is_only_prepared || !given::images(&domain, vm)?.iter().any(|given| given == image) {
        return Ok(BackgroundCapture::None);
    }
    let told = migration(&domain, vm)?.judge();
    let is_complete = matches!(told, Told::Complete { .. });
    let carrier = match awaited.carrier(vm) {
        // What was left in a pipe went with whoever read it, and QEMU does not know.
        Carrier::Unknown if is_complete && where_memory_goes(image)?.format == MemoryFormat::Raw => {
            Carrier::Qemu
        }
        carrier => carrier,
    };
    Ok(judge(told, carrier))
}

/// All of it is written once QEMU has written all, and whoever brings it to the image has brought it there.
fn judge(told: Told, carrier: Carrier) -> BackgroundCapture {
    match (told, carrier) {
        (Told::Nothing, _) => BackgroundCapture::None,
        (_, Carrier::Us(Compressed::Failed(problem))) => BackgroundCapture::Failed(problem),
        (Told::Failed(problem), _) => BackgroundCapture::Failed(LibvirtSays::new(problem).to_string()),
        (Told::Active { done, total, .. }, _) => BackgroundCapture::Active { done, total },
        (Told::Complete { .. }, Carrier::Qemu | Carrier::Us(Compressed::Whole)) => {
            BackgroundCapture::Complete
        }
        (Told::Complete { total }, Carrier::Us(Compressed::Partly)) => BackgroundCapture::Following { total },
        (Told::Complete { .. }, Carrier::Unknown) => {
            BackgroundCapture::Failed("whoever compressed the memory is gone, or another process".to_owned())
        }
    }
}

/// See [`crate::host::Hypervisor::end_background_capture`].
pub(super) fn end(line: &Connection, awaited: &Awaited, vm: VmId) -> Result<()> {
    let ended = vms::lookup(line, vm).and_then(|domain| {
        // What another one waits for it ends, or whoever finds it after that one's death.
        if vms::is_active(&domain, vm)? { end_on(&domain, awaited, vm).map(drop) } else { Ok(()) }
    });
    if matches!(ended, Ok(()) | Err(HostError::NoSuchVm(_))) {
        awaited.wait_no_more(vm);
    }
    ended
}

/// Our file is given first, and taken back last: without it what is under way is none of ours. But nobody wants the capability
/// to stay on where nothing is. False if another process waits for it: then nothing was done.
fn end_on(domain: &Domain, awaited: &Awaited, vm: VmId) -> Result<bool> {
    let images = given::images(domain, vm)?;
    if awaited.by_others(vm, images.iter().map(PathBuf::as_path)) {
        return Ok(false);
    }
    // QEMU before 9.1 forgets a file that it does not use when libvirtd is started anew.
    let is_ours = !images.is_empty() || awaited.by_us(vm);
    if is_ours {
        // Whether it is a background one or not: it writes to our image.
        cancel(domain, vm)?;
    }
    if is_on(domain, vm)? && !matches!(migration(domain, vm)?.judge(), Told::Active { .. }) {
        set_capability(domain, vm, false)?;
    }
    if !images.is_empty() {
        given::take_back(domain, vm)?;
    }
    Ok(true)
}

fn cancel(domain: &Domain, vm: VmId) -> Result<()> {
    let began = Instant::now();
    while let Told::Active { .. } = migration(domain, vm)?.judge() {
        if began.elapsed() > ENDS_WITHIN {
            return Err(HostError::TimedOut { call: "the end of the capture", after: ENDS_WITHIN });
        }
        tell(domain, vm, "migrate_cancel", Nothing {})?;
        thread::sleep(BETWEEN_LOOKS);
    }
    Ok(())
}

fn migration(domain: &Domain, vm: VmId) -> Result<Migration> {
    query(domain, vm, "query-migrate")
}

fn migrate(domain: &Domain, vm: VmId, uri: String) -> Result<()> {
    tell(domain, vm, "migrate", Migrate { uri })
}

/// Whether what is captured next is captured so.
fn is_on(domain: &Domain, vm: VmId) -> Result<bool> {
    let capabilities: Vec<Capability> = query(domain, vm, "query-migrate-capabilities")?;
    Ok(capabilities.iter().any(|it| it.capability == CAPABILITY && it.state))
}

fn refused(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> HostError {
    HostError::Refused { call: "capture memory", cause: cause.into() }
}

fn is_of_another() -> HostError {
    HostError::Busy("another process captures the VM's memory".into())
}

const CAPABILITY: &str = "background-snapshot";

fn set_capability(domain: &Domain, vm: VmId, state: bool) -> Result<()> {
    let capabilities = [Capability { capability: CAPABILITY.to_owned(), state }];
    tell(domain, vm, "migrate-set-capabilities", SetCapabilities { capabilities })
}

#[derive(Debug, Serialize)]
struct Migrate {
    uri: String,
}

#[derive(Debug, Serialize)]
struct SetCapabilities {
    capabilities: [Capability; 1],
}

#[derive(Debug, Serialize, Deserialize)]
struct Capability {
    capability: String,
    state: bool,
}

#[cfg(test)]
mod tests {
    use super::super::monitor::Custom;
    use super::*;

    #[test]
    fn what_a_capture_has_come_to() {
        let check = |told: Told, carrier: Carrier, expected: BackgroundCapture| {
            let case = format!("{told:?}, {carrier:?}");
            assert_eq!(judge(told, carrier), expected, "{case}");
        };
        let us = |compressed| Carrier::Us(compressed);
        let full = || us(Compressed::Failed("no room".to_owned()));
        let failed = |why: &str| BackgroundCapture::Failed(why.to_owned());
        let (following, active) =
            (BackgroundCapture::Following { total: 9 }, BackgroundCapture::Active { done: 4, total: 9 });
        let under_way = || Told::Active { pages: 1, done: 4, total: 9 };
        check(Told::Complete { total: 9 }, Carrier::Qemu, BackgroundCapture::Complete);
        check(Told::Complete { total: 9 }, us(Compressed::Whole), BackgroundCapture::Complete);
        check(Told::Complete { total: 9 }, us(Compressed::Partly), following);
        check(Told::Complete { total: 9 }, full(), failed("no room"));
        check(
            Told::Complete { total: 9 },
            Carrier::Unknown,
            failed("whoever compressed the memory is gone, or another process"),
        );
        check(under_way(), us(Compressed::Partly), active.clone());
        check(under_way(), us(Compressed::Whole), active.clone());
        check(under_way(), Carrier::Unknown, active);
        check(under_way(), full(), failed("no room"));
        check(Told::Failed("broken pipe".to_owned()), full(), failed("no room"));
        check(Told::Failed("its own".to_owned()), us(Compressed::Whole), failed("its own"));
        check(Told::Nothing, full(), BackgroundCapture::None);
    }

    #[test]
    fn how_qemu_is_asked() {
        let spelled = monitor::spell(&Custom {
            execute: "migrate-set-capabilities",
            arguments: SetCapabilities {
                capabilities: [Capability { capability: CAPABILITY.to_owned(), state: true }],
            },
        });
        let expected = concat!(
            r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":"#,
            r#"[{"capability":"background-snapshot","state":true}]}}"#
        );
        assert_eq!(spelled.unwrap(), expected);
    }
}
