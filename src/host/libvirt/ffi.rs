//! The calls of libvirt's C library that the `virt` crate lacks, and one of the C library itself. The only unsafe code of
//! the crate.
//!
//! Decides nothing: each function is one call, with its pointers kept alive and its memory given back. Errors are
//! read on the calling thread, right after the call, because libvirt keeps them per thread.
#![allow(unsafe_code, reason = "libvirt is a C library; every block says why it is sound")]

use std::ffi::{CStr, c_char, c_int, c_longlong, c_uint, c_ulonglong, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

use super::told::{CloseReason, EventKind};

/// Called for each event, on the event loop's thread: must not block, must not call libvirt.
pub(super) type OnEvent = Box<dyn Fn(EventKind, Uuid) + Send + Sync>;

/// Called once when the connection is lost, on the event loop's thread: must not block, must not call libvirt.
pub(super) type OnClose = Box<dyn Fn(CloseReason) + Send + Sync>;

/// Gives the pages that the allocator keeps, and nobody uses, back to the system (`malloc_trim(3)`). Blocks while it looks at
/// each arena: some milliseconds.
pub fn give_back_memory() {
    // SAFETY: it takes no pointer, and glibc locks each arena that it looks at.
    unsafe { nix::libc::malloc_trim(0) };
}

struct EventSink {
    kind: EventKind,
    call: OnEvent,
}

/// A kind of event that is told to us. Until [`deregister_event`] it keeps the connection open.
#[derive(Debug)]
pub(super) struct Subscription {
    kind: EventKind,
    callback: c_int,
}

/// Subscribes to one kind of event of all domains (`virConnectDomainEventRegisterAny`).
pub(super) fn register_event(
    connect: &Connect,
    kind: EventKind,
    call: OnEvent,
) -> Result<Subscription, Error> {
    let (id, callback) = match kind {
        // SAFETY: libvirt calls back with the signature that belongs to the event's id, and stores it as the generic
        // type meanwhile: that is the documented way (VIR_DOMAIN_EVENT_CALLBACK). Function pointers have one size.
        EventKind::Lifecycle | EventKind::Migrated => (sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, unsafe {
            std::mem::transmute::<LifecycleCallback, GenericCallback>(on_lifecycle)
        }),
        // SAFETY: as above.
        EventKind::DeviceRemoved => (sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, unsafe {
            std::mem::transmute::<DeviceCallback, GenericCallback>(on_device)
        }),
        // SAFETY: as above.
        EventKind::BlockJob => (sys::VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, unsafe {
            std::mem::transmute::<BlockJobCallback, GenericCallback>(on_block_job)
        }),
        // SAFETY: as above.
        EventKind::Agent => (sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, unsafe {
            std::mem::transmute::<AgentCallback, GenericCallback>(on_agent)
        }),
        // SAFETY: as above.
        EventKind::Threshold => (sys::VIR_DOMAIN_EVENT_ID_BLOCK_THRESHOLD, unsafe {
            std::mem::transmute::<ThresholdCallback, GenericCallback>(on_threshold)
        }),
        EventKind::Migration => return register_migration(connect, EventSink { kind, call }),
    };
    let id = c_int::try_from(id).expect("libvirt's event ids are small");
    let sink = Box::into_raw(Box::new(EventSink { kind, call }));
    // SAFETY: the connection is open; a null domain means all; `sink` is a live box that libvirt gives back through
    // `free_event_sink` exactly once, after the last callback.
    let registered = unsafe {
        sys::virConnectDomainEventRegisterAny(
            connect.as_ptr(),
            ptr::null_mut(),
            id,
            Some(callback),
            sink.cast(),
            Some(free_event_sink),
        )
    };
    if registered < 0 {
        let error = Error::last_error();
        // SAFETY: libvirt does not call the free callback for a registration that failed, so the box is still ours.
        drop(unsafe { Box::from_raw(sink) });
        return Err(error);
    }
    Ok(Subscription { kind, callback: registered })
}

/// The same of an event of QEMU itself, which libvirt passes on (`virConnectDomainQemuMonitorEventRegister`).
fn register_migration(connect: &Connect, sink: EventSink) -> Result<Subscription, Error> {
    let kind = sink.kind;
    let sink = Box::into_raw(Box::new(sink));
    // SAFETY: the connection is open; a null domain means all; the name is a static string; `sink` is a live box that libvirt
    // gives back through `free_event_sink` exactly once, after the last callback.
    let registered = unsafe {
        sys::virConnectDomainQemuMonitorEventRegister(
            connect.as_ptr(),
            ptr::null_mut(),
            c"MIGRATION".as_ptr(),
            Some(on_monitor_event),
            sink.cast(),
            Some(free_event_sink),
            0,
        )
    };
    if registered < 0 {
        let error = Error::last_error();
        // SAFETY: libvirt does not call the free callback for a registration that failed, so the box is still ours.
        drop(unsafe { Box::from_raw(sink) });
        return Err(error);
    }
    Ok(Subscription { kind, callback: registered })
}

/// Ends a subscription (`virConnectDomainEventDeregisterAny`, `virConnectDomainQemuMonitorEventDeregister`). Of a lost
/// connection the error has no meaning: the callback is gone on this side.
pub(super) fn deregister_event(connect: &Connect, Subscription { kind, callback }: &Subscription) {
    let deregister = match kind {
        EventKind::Migration => sys::virConnectDomainQemuMonitorEventDeregister,
        EventKind::Lifecycle
        | EventKind::Migrated
        | EventKind::DeviceRemoved
        | EventKind::BlockJob
        | EventKind::Agent
        | EventKind::Threshold => sys::virConnectDomainEventDeregisterAny,
    };
    // SAFETY: the connection is open as an object, even if its line is cut; an unknown id is an error, not a fault.
    unsafe { deregister(connect.as_ptr(), *callback) };
}

/// Asks to be told when the connection is lost (`virConnectRegisterCloseCallback`).
pub(super) fn register_close(connect: &Connect, call: OnClose) -> Result<(), Error> {
    let sink = Box::into_raw(Box::new(call));
    // SAFETY: the connection is open; `sink` is a live box that libvirt gives back through `free_close_sink` exactly
    // once, when the callback is deregistered.
    let done = unsafe {
        sys::virConnectRegisterCloseCallback(
            connect.as_ptr(),
            Some(on_close),
            sink.cast(),
            Some(free_close_sink),
        )
    };
    if done < 0 {
        let error = Error::last_error();
        // SAFETY: libvirt does not call the free callback for a registration that failed, so the box is still ours.
        drop(unsafe { Box::from_raw(sink) });
        return Err(error);
    }
    Ok(())
}

/// Takes back [`register_close`] (`virConnectUnregisterCloseCallback`).
pub(super) fn deregister_close(connect: &Connect) {
    // SAFETY: the connection is open as an object; without a registration of this function it is an error, not a
    // fault.
    unsafe { sys::virConnectUnregisterCloseCallback(connect.as_ptr(), Some(on_close)) };
}

/// Starts to merge the images from `top` down to `base` (`virDomainBlockCommit`).
pub(super) fn block_commit(
    domain: &Domain,
    disk: &CStr,
    base: &CStr,
    top: &CStr,
    bandwidth: u64,
    flags: sys::virDomainBlockCommitFlags,
) -> Result<(), Error> {
    // SAFETY: the domain and all three strings outlive the call, which keeps none of them.
    let done = unsafe {
        sys::virDomainBlockCommit(
            domain.as_ptr(),
            disk.as_ptr(),
            base.as_ptr(),
            top.as_ptr(),
            bandwidth,
            flags,
        )
    };
    succeeded(done)
}

/// Starts to copy into the active layer what lies between it and `base` (`virDomainBlockRebase`); all that lies below it
/// if there is no `base`. `bandwidth` is in bytes per second; 0 for no limit.
pub(super) fn block_pull(
    domain: &Domain,
    disk: &CStr,
    base: Option<&CStr>,
    bandwidth: u64,
) -> Result<(), Error> {
    let base = base.map_or(std::ptr::null(), CStr::as_ptr);
    let flags = sys::VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES;
    // SAFETY: the domain and both strings outlive the call, which keeps none of them; `base` may be null.
    let done = unsafe { sys::virDomainBlockRebase(domain.as_ptr(), disk.as_ptr(), base, bandwidth, flags) };
    succeeded(done)
}

/// Limits a block job to so many bytes per second; 0 for no limit (`virDomainBlockJobSetSpeed`).
pub(super) fn block_job_set_speed(domain: &Domain, disk: &CStr, bandwidth: u64) -> Result<(), Error> {
    let flags = sys::VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES;
    // SAFETY: the domain and the string outlive the call, which keeps neither.
    let done = unsafe { sys::virDomainBlockJobSetSpeed(domain.as_ptr(), disk.as_ptr(), bandwidth, flags) };
    succeeded(done)
}

/// The block job of a disk, if it has one, with its limit in bytes per second (`virDomainGetBlockJobInfo`).
pub(super) fn block_job_info(
    domain: &Domain,
    disk: &CStr,
) -> Result<Option<sys::virDomainBlockJobInfo>, Error> {
    let mut info = sys::virDomainBlockJobInfo { type_: 0, bandwidth: 0, cur: 0, end: 0 };
    let flags = sys::VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES;
    // SAFETY: the domain and the string outlive the call; `info` is a whole struct of the library's own layout.
    let found =
        unsafe { sys::virDomainGetBlockJobInfo(domain.as_ptr(), disk.as_ptr(), &raw mut info, flags) };
    match found {
        0 => Ok(None),
        1.. => Ok(Some(info)),
        ..0 => Err(Error::last_error()),
    }
}

/// Ends a block job, or pivots (`virDomainBlockJobAbort`).
pub(super) fn block_job_abort(
    domain: &Domain,
    disk: &CStr,
    flags: sys::virDomainBlockJobAbortFlags,
) -> Result<(), Error> {
    // SAFETY: the domain and the string outlive the call, which keeps neither.
    let done = unsafe { sys::virDomainBlockJobAbort(domain.as_ptr(), disk.as_ptr(), flags) };
    succeeded(done)
}

/// The I/O limits of a disk, by name; text and numbers (`virDomainGetBlockIoTune`).
pub(super) fn block_io_tune(domain: &Domain, disk: &CStr) -> Result<Vec<(String, Value)>, Error> {
    let flags = sys::VIR_DOMAIN_AFFECT_LIVE | sys::VIR_TYPED_PARAM_STRING_OKAY;
    let mut count: c_int = 0;
    // SAFETY: the domain and the string outlive the call; without an array it only counts.
    let counted = unsafe {
        sys::virDomainGetBlockIoTune(domain.as_ptr(), disk.as_ptr(), ptr::null_mut(), &raw mut count, flags)
    };
    succeeded(counted)?;
    typed_parameters(count, |parameters, count| {
        // SAFETY: the domain and the string outlive the call; the array has room for `count` parameters.
        unsafe { sys::virDomainGetBlockIoTune(domain.as_ptr(), disk.as_ptr(), parameters, count, flags) }
    })
}

/// libvirt has nine counters, and is asked for no more than these at once (`REMOTE_DOMAIN_BLOCK_STATS_PARAMETERS_MAX`); to ask how
/// many there are would ask QEMU for all of them once more.
const COUNTERS: c_int = 16;

/// What a disk of a running domain has served, by name; numbers (`virDomainBlockStatsFlags`). Asks QEMU.
pub(super) fn block_stats(domain: &Domain, disk: &CStr) -> Result<Vec<(String, Value)>, Error> {
    typed_parameters(COUNTERS, |parameters, count| {
        // SAFETY: as for the limits.
        unsafe { sys::virDomainBlockStatsFlags(domain.as_ptr(), disk.as_ptr(), parameters, count, 0) }
    })
}

/// What a call gives that fills an array of the caller's, with room for so many.
fn typed_parameters(
    mut count: c_int,
    call: impl Fn(sys::virTypedParameterPtr, *mut c_int) -> c_int,
) -> Result<Vec<(String, Value)>, Error> {
    let room = usize::try_from(count).unwrap_or(0);
    if room == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: a typed parameter is plain data, and zeros are a valid one: an empty name and no value.
    let empty: sys::virTypedParameter = unsafe { std::mem::zeroed() };
    let mut parameters = vec![empty; room];
    succeeded(call(parameters.as_mut_ptr(), &raw mut count))?;
    // Never more than there is room for, whatever it says.
    parameters.truncate(usize::try_from(count).unwrap_or(0));
    let found = parameters.iter().filter_map(value).collect();
    let filled = c_int::try_from(parameters.len()).expect("it was a c_int when it was told");
    // SAFETY: these parameters were filled by libvirt, which allocated their strings; none is used again.
    unsafe { sys::virTypedParamsClear(parameters.as_mut_ptr(), filled) };
    Ok(found)
}

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// A limit, or a counter.
    Number(u64),
    /// The name of a group of disks; empty for none.
    Text(String),
}

/// None for a kind of value that nothing we ask for has today, and for a counter that is not kept.
fn value(parameter: &sys::virTypedParameter) -> Option<(String, Value)> {
    // SAFETY: libvirt ends the name within its array.
    let name = unsafe { CStr::from_ptr(parameter.field.as_ptr()) }.to_string_lossy().into_owned();
    let value = match u32::try_from(parameter.type_) {
        // SAFETY: the type says that this is the member that was written.
        Ok(sys::VIR_TYPED_PARAM_ULLONG) => Value::Number(unsafe { parameter.value.ul }),
        // SAFETY: as above.
        Ok(sys::VIR_TYPED_PARAM_LLONG) => Value::Number(u64::try_from(unsafe { parameter.value.l }).ok()?),
        Ok(sys::VIR_TYPED_PARAM_STRING) => {
            // SAFETY: as above.
            let text = unsafe { parameter.value.s };
            if text.is_null() {
                return None;
            }
            // SAFETY: libvirt's string, ended by NUL, not freed before the parameters are cleared.
            Value::Text(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        }
        Ok(_) | Err(_) => return None,
    };
    Some((name, value))
}

/// Changes I/O limits of a disk of a running domain, and of the process only (`virDomainSetBlockIoTune`).
pub(super) fn set_block_io_tune(domain: &Domain, disk: &CStr, limits: &[(&CStr, u64)]) -> Result<(), Error> {
    let mut parameters: sys::virTypedParameterPtr = ptr::null_mut();
    let (mut count, mut room): (c_int, c_int) = (0, 0);
    let added = limits.iter().try_for_each(|(name, value)| {
        // SAFETY: libvirt owns the array behind `parameters` and grows it; it copies the name.
        succeeded(unsafe {
            sys::virTypedParamsAddULLong(
                &raw mut parameters,
                &raw mut count,
                &raw mut room,
                name.as_ptr(),
                *value,
            )
        })
    });
    let done = added.and_then(|()| {
        // SAFETY: the domain, the string and the array outlive the call, which keeps none of them.
        succeeded(unsafe {
            sys::virDomainSetBlockIoTune(
                domain.as_ptr(),
                disk.as_ptr(),
                parameters,
                count,
                sys::VIR_DOMAIN_AFFECT_LIVE,
            )
        })
    });
    // SAFETY: the array is libvirt's own, null if nothing was added, and not used again.
    unsafe { sys::virTypedParamsFree(parameters, count) };
    done
}

/// The disks of a domain that have failed for lack of space (`virDomainGetDiskErrors`), in libvirt's names. Asks QEMU.
pub(super) fn full_disks(domain: &Domain) -> Result<Vec<String>, Error> {
    // SAFETY: the domain outlives the call; without an array to fill it gives the largest number there can be.
    let most = unsafe { sys::virDomainGetDiskErrors(domain.as_ptr(), ptr::null_mut(), 0, 0) };
    let most = usize::try_from(most).map_err(|_| Error::last_error())?;
    let mut errors = vec![sys::virDomainDiskError { disk: ptr::null_mut(), error: 0 }; most];
    let room = u32::try_from(errors.len()).expect("a domain has fewer disks than a u32 counts");
    // SAFETY: the domain outlives the call, and the array has the length that is told.
    let count = unsafe { sys::virDomainGetDiskErrors(domain.as_ptr(), errors.as_mut_ptr(), room, 0) };
    let count = usize::try_from(count).map_err(|_| Error::last_error())?;
    let mut full = Vec::new();
    for found in &errors[..count.min(most)] {
        // SAFETY: the library has set as many entries as it told, each with a string of its own that is the caller's to
        // free, and that is not used after that.
        let name = unsafe { CStr::from_ptr(found.disk) }.to_string_lossy().into_owned();
        // SAFETY: as above.
        unsafe { nix::libc::free(found.disk.cast()) };
        if u32::try_from(found.error) == Ok(sys::VIR_DOMAIN_DISK_ERROR_NO_SPACE) {
            full.push(name);
        }
    }
    Ok(full)
}

/// Whether libvirt, or QEMU for it, is at work on a domain (`virDomainGetControlInfo`). Waits for nothing.
pub(super) fn is_at_work(domain: &Domain) -> Result<bool, Error> {
    let mut info = sys::virDomainControlInfo { state: 0, details: 0, stateTime: 0 };
    // SAFETY: the domain outlives the call, which writes to the structure and keeps nothing.
    succeeded(unsafe { sys::virDomainGetControlInfo(domain.as_ptr(), &raw mut info, 0) })?;
    Ok(info.state != sys::VIR_DOMAIN_CONTROL_OK)
}

/// Passes a command on to QEMU, and an open file with it (`virDomainQemuMonitorCommandWithFiles`, since libvirt 8.2). Gives
/// QEMU's answer.
pub(super) fn monitor_command_with_file(
    domain: &Domain,
    command: &CStr,
    file: BorrowedFd<'_>,
) -> Result<String, Error> {
    let mut files = [file.as_raw_fd()];
    let mut answer: *mut c_char = ptr::null_mut();
    // SAFETY: the domain, the command and the array of one descriptor outlive the call, which sends a copy of it; without a
    // place to put them no descriptors are handed back.
    let done = unsafe {
        sys::virDomainQemuMonitorCommandWithFiles(
            domain.as_ptr(),
            command.as_ptr(),
            1,
            files.as_mut_ptr(),
            ptr::null_mut(),
            ptr::null_mut(),
            &raw mut answer,
            0,
        )
    };
    succeeded(done)?;
    // SAFETY: a call that succeeded has set a string of its own, which is the caller's to free.
    let text = unsafe { CStr::from_ptr(answer) }.to_string_lossy().into_owned();
    // SAFETY: as above; it is not used after that.
    unsafe { nix::libc::free(answer.cast()) };
    Ok(text)
}

/// Ends the job that holds the domain, such as a capture of its memory (`virDomainAbortJob`).
pub(super) fn abort_job(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the domain outlives the call.
    let done = unsafe { sys::virDomainAbortJob(domain.as_ptr()) };
    succeeded(done)
}

fn succeeded(status: c_int) -> Result<(), Error> {
    if status < 0 { Err(Error::last_error()) } else { Ok(()) }
}

type GenericCallback =
    unsafe extern "C" fn(conn: sys::virConnectPtr, dom: sys::virDomainPtr, opaque: *mut c_void);
type LifecycleCallback =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
type DeviceCallback = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, *mut c_void);
type AgentCallback = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void);
type BlockJobCallback =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, c_int, c_int, *mut c_void);

type ThresholdCallback = unsafe extern "C" fn(
    sys::virConnectPtr,
    sys::virDomainPtr,
    *const c_char,
    *const c_char,
    c_ulonglong,
    c_ulonglong,
    *mut c_void,
);

unsafe extern "C" fn on_lifecycle(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    let is = |what: c_int, kind: u32| u32::try_from(what) == Ok(kind);
    let has_migrated =
        is(event, sys::VIR_DOMAIN_EVENT_STOPPED) && is(detail, sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED);
    let kind = if has_migrated { EventKind::Migrated } else { EventKind::Lifecycle };
    // SAFETY: libvirt hands over the domain of the event and the pointer that was registered, both live.
    unsafe { forward_as(Some(kind), domain, opaque) };
    0
}

unsafe extern "C" fn on_agent(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _state: c_int,
    _reason: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt hands over the domain of the event and the pointer that was registered, both live.
    unsafe { forward(domain, opaque) };
}

unsafe extern "C" fn on_device(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt hands over the domain of the event and the pointer that was registered, both live.
    unsafe { forward(domain, opaque) };
}

unsafe extern "C" fn on_block_job(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _disk: *const c_char,
    _job: c_int,
    _status: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt hands over the domain of the event and the pointer that was registered, both live.
    unsafe { forward(domain, opaque) };
}

unsafe extern "C" fn on_monitor_event(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _event: *const c_char,
    _seconds: c_longlong,
    _micros: c_uint,
    _details: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt hands over the domain of the event and the pointer that was registered, both live.
    unsafe { forward(domain, opaque) };
}

unsafe extern "C" fn on_threshold(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _disk: *const c_char,
    _path: *const c_char,
    _threshold: c_ulonglong,
    _excess: c_ulonglong,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt hands over the domain of the event and the pointer that was registered, both live.
    unsafe { forward(domain, opaque) };
}

/// # Safety
/// `domain` is a live domain, `opaque` comes from [`register_event`] and was not given back yet.
unsafe fn forward(domain: sys::virDomainPtr, opaque: *mut c_void) {
    // SAFETY: by this function's own condition.
    unsafe { forward_as(None, domain, opaque) };
}

/// As [`forward`], of a kind that the event's details tell; None for the one that was registered.
///
/// # Safety
/// As for [`forward`].
unsafe fn forward_as(kind: Option<EventKind>, domain: sys::virDomainPtr, opaque: *mut c_void) {
    let mut bytes = [0_u8; sys::VIR_UUID_BUFLEN as usize];
    // SAFETY: the buffer has the length that the call writes. It only copies out of the handle: no request is made.
    if unsafe { sys::virDomainGetUUID(domain, bytes.as_mut_ptr()) } < 0 {
        return;
    }
    // SAFETY: by this function's own condition. Only shared references exist: the box is never changed.
    let sink = unsafe { &*opaque.cast::<EventSink>() };
    contain("an event callback", || (sink.call)(kind.unwrap_or(sink.kind), Uuid::from_bytes(bytes)));
}

unsafe extern "C" fn on_close(_connection: sys::virConnectPtr, reason: c_int, opaque: *mut c_void) {
    // SAFETY: the pointer is the one that was registered, and is given back only after deregistration.
    let call = unsafe { &*opaque.cast::<OnClose>() };
    let reason = match u32::try_from(reason) {
        Ok(sys::VIR_CONNECT_CLOSE_REASON_EOF) => CloseReason::EndOfFile,
        Ok(sys::VIR_CONNECT_CLOSE_REASON_KEEPALIVE) => CloseReason::Keepalive,
        Ok(sys::VIR_CONNECT_CLOSE_REASON_CLIENT) => CloseReason::Client,
        Ok(_) | Err(_) => CloseReason::Error,
    };
    contain("a close callback", || call(reason));
}

unsafe extern "C" fn free_event_sink(opaque: *mut c_void) {
    // SAFETY: libvirt calls this once per registration, after the last callback: the box is ours again.
    let sink = unsafe { Box::from_raw(opaque.cast::<EventSink>()) };
    contain("dropping an event callback", || drop(sink));
}

unsafe extern "C" fn free_close_sink(opaque: *mut c_void) {
    // SAFETY: as above.
    let sink = unsafe { Box::from_raw(opaque.cast::<OnClose>()) };
    contain("dropping a close callback", || drop(sink));
}

/// A panic must not unwind into C.
fn contain(what: &str, run: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        tracing::error!("{what} panicked");
    }
}
