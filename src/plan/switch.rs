//! Whether a VM was switched to its overlays, where the hypervisor knows nothing of it and the process that was asked may have
//! ended since.
//!
//! ```text
//!   asked ---> QEMU writes to the overlays ---> libvirt notes it
//!         |                               `---> libvirt dies, then the process: the overlays are newer, the definition
//!         |                                     names the bases
//!         `--> QEMU is not reached, or refuses: the overlays are as they were made
//! ```
//! The overlays tell: nobody but that process has ever written to them. All disks go over at one instant, so one of them
//! speaks for all. Whoever starts the VM in between boots the bases: then both hold what nobody else has, and only a person
//! can say which is wanted.

use std::time::SystemTime;

use crate::model::step::PointedDisk;

/// What is seen of a disk whose definition, and process if there is one, names the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Whether a process writes to the base.
    pub is_live: bool,
    /// When the base was written to last, if ever.
    pub base: Option<SystemTime>,
    /// When the overlay was written to last, if ever.
    pub overlay: Option<SystemTime>,
}

/// What follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Switched {
    /// The bases hold everything.
    No,
    /// The overlays hold what the guest wrote last: the definition has to name them.
    Unnoted,
    /// Both may. What to do about it, for a person.
    Undecided(String),
}

/// Looks at all disks of a switch.
#[must_use]
pub fn switched(disks: &[(&PointedDisk, Seen)]) -> Switched {
    let Some(first_write) = disks.iter().filter_map(|(_, seen)| seen.overlay).min() else {
        return Switched::No;
    };
    // The last write to a base was before the switch, the first one to an overlay after it.
    let is_newer = |seen: &Seen| seen.is_live || seen.base.is_some_and(|base| base > first_write);
    match disks.iter().find(|(_, seen)| is_newer(seen)) {
        Some((disk, _)) => Switched::Undecided(words(disk)),
        None => Switched::Unnoted,
    }
}

fn words(disk: &PointedDisk) -> String {
    let (from, to) = (disk.from.path.display(), disk.to.path.display());
    format!(
        "the VM wrote to {to} until its process ended, which libvirt has not noted, and was started on {from} since: each \
         holds what the other lacks. To keep the latter, move the former to another directory; to keep the former, stop the \
         VM and let its definition name it, though what lies below has changed. The same for the VM's other disks. Then let \
         the operation try again"
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::step::ImageRef;
    use crate::model::vm::Format;

    fn disk(name: &str) -> PointedDisk {
        let image = |path: String| ImageRef { path: path.into(), format: Format::Qcow2 };
        PointedDisk {
            target: name.parse().unwrap(),
            from: image(format!("/{name}")),
            to: image(format!("/{name}-overlay")),
        }
    }

    #[test]
    fn what_the_overlays_tell() {
        let at = |second| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(second));
        let off = |base, overlay| Seen { is_live: false, base, overlay };
        let live = |base, overlay| Seen { is_live: true, base, overlay };
        let (vda, vdb) = (disk("vda"), disk("vdb"));
        let undecided = |disk: &PointedDisk| Switched::Undecided(words(disk));
        let cases = [
            // Nothing was ever written to any overlay.
            ([off(at(1), None), off(at(9), None)], Switched::No),
            ([live(at(1), None), live(None, None)], Switched::No),
            // Written to, and nothing below since.
            ([off(at(1), at(2)), off(at(1), at(3))], Switched::Unnoted),
            ([off(at(2), at(2)), off(None, at(2))], Switched::Unnoted),
            // One speaks for all.
            ([off(at(1), at(2)), off(at(1), None)], Switched::Unnoted),
            // Started on the bases since.
            ([off(at(1), at(2)), off(at(3), None)], undecided(&vdb)),
            ([off(at(3), at(2)), off(at(1), at(4))], undecided(&vda)),
            ([live(at(1), at(2)), live(at(1), None)], undecided(&vda)),
        ];
        for ([first, second], expected) in cases {
            assert_eq!(switched(&[(&vda, first), (&vdb, second)]), expected, "{first:?} {second:?}");
        }
    }
}
