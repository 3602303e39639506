//! What libvirt tells by itself: kinds of events, and how a connection ends. Decides nothing.

/// What an event is about. Its details are looked up again by whoever cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventKind {
    /// `VIR_DOMAIN_EVENT_ID_LIFECYCLE`: defined, started, paused, resumed, stopped, undefined.
    Lifecycle,
    /// The same, of a VM that has stopped because it goes on elsewhere (`VIR_DOMAIN_EVENT_STOPPED_MIGRATED`).
    Migrated,
    /// `VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED`: a device was unplugged while the guest ran.
    DeviceRemoved,
    /// `VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2`: a block job became ready or ended.
    BlockJob,
    /// `VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE`: the guest agent connected or went away.
    Agent,
    /// `VIR_DOMAIN_EVENT_ID_BLOCK_THRESHOLD`: an image is about to grow beyond the length that was set.
    Threshold,
    /// QEMU's own `MIGRATION`: one, or a background capture of memory, has come to another state.
    Migration,
}

/// What a closed connection was closed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CloseReason {
    /// An input or output error.
    Error,
    /// The other side closed it.
    EndOfFile,
    /// No keepalive answer came.
    Keepalive,
    /// We closed it.
    Client,
}
