//! Steps on UEFI variables: copied, brought back. Each attempt copies anew: what a broken one left says nothing of itself.

use std::path::Path;

use crate::host::HostError;
use crate::model::vm::Format;

use super::{Context, Performed};

/// A file of ours holds the variables.
pub(super) async fn copy(context: &Context<'_>, from: &Path, to: &Path) -> Performed {
    match context.host.images.copy_bytes(from, to).await {
        Ok(()) => Performed::done(),
        Err(error) => Performed::unknown(error),
    }
}

/// The VM's file holds the variables. Never while a process has it open: it would not notice, and write over them.
pub(super) async fn restore(context: &Context<'_>, from: &Path, to: &Path) -> Performed {
    if let Err(error) = context.check_not_elsewhere(&[to]).await {
        return Performed::unknown(error);
    }
    match context.host.images.is_in_use(to, Format::Raw).await {
        Ok(false) | Err(HostError::NoSuchImage(_)) => copy(context, from, to).await,
        Ok(true) => Performed::unknown(HostError::ImageInUse(to.to_owned())),
        Err(error) => Performed::unknown(error),
    }
}
