//! Steps on the image of a volume that no VM has: a second name for it, another file in its place.

use std::path::Path;

use crate::host::{HostError, Result};
use crate::model::vm::Format;

use super::clone::is_renamed;
use super::{Context, Performed, images, make_so};

/// The image has a second name.
pub(super) async fn link(context: &Context<'_>, from: &Path, to: &Path) -> Performed {
    let images = &context.host.images;
    let link = || async {
        context.check_not_elsewhere(&[from]).await?;
        images.hard_link(from, to).await
    };
    make_so(|| is_linked(context, from, to), link).await
}

/// The image has no second name. What has lost the first one is never taken the second one too.
pub(super) async fn unlink(context: &Context<'_>, from: &Path, to: &Path) -> Performed {
    match is_linked(context, from, to).await {
        Ok(false) => Performed::done(),
        Ok(true) => images::remove_unused(context, to).await,
        Err(error) => Performed::unknown(error),
    }
}

/// Whether both are names of one file. An error if they are names of two.
async fn is_linked(context: &Context<'_>, from: &Path, to: &Path) -> Result<bool> {
    let images = &context.host.images;
    let second = match images.inspect(to, Format::Qcow2).await {
        Ok(facts) => facts,
        Err(HostError::NoSuchImage(_)) => return Ok(false),
        Err(error) => return Err(error),
    };
    if images.inspect(from, Format::Qcow2).await?.identity == second.identity {
        return Ok(true);
    }
    Err(HostError::BadImage { path: to.to_owned(), problem: "another file stands there".to_owned() })
}

/// The file that was made stands in the place of the other one. Whoever had that one open would go on with a file that
/// nobody finds again.
pub(super) async fn replace(context: &Context<'_>, from: &Path, to: &Path) -> Performed {
    let images = &context.host.images;
    let replace = || async {
        context.check_not_elsewhere(&[to]).await?;
        if images.is_in_use(to, Format::Qcow2).await? {
            return Err(HostError::ImageInUse(to.to_owned()));
        }
        images.replace(from, to).await
    };
    make_so(|| is_renamed(context, from, to), replace).await
}
