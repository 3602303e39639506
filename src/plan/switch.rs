//! Whether a VM was switched to its overlays, and what its definition is to name: libvirt may have died before it noted the
//! switch, and the process that was asked may have ended since.
//!
//! ```text
//!   asked ---> QEMU writes to the overlays ---> libvirt notes it
//!         |                               `---> libvirt dies, then the process: the overlays are newer, the definition
//!         |                                     names the bases
//!         `--> QEMU is not reached, or refuses: the overlays are as they were made
//! ```
//! A process tells by itself. Where there is none the overlays tell: nobody but the one that was asked has ever written to
//! them. All disks go over at one instant, so one of them speaks for all. Whoever starts the VM in between boots the bases:
//! then each image of a disk holds what the other one lacks, and only a person can say what is wanted.

use crate::model::step::PointedDisk;
use crate::model::vm::LastWritten;

/// One of the two images of a disk, or neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What it wrote to before.
    Base,
    /// What it was to write to.
    Overlay,
    /// Something that the switch knows nothing of.
    Other,
}

/// What is seen of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What its process writes to; None if the VM has none.
    pub live: Option<Side>,
    /// What the definition names; None if the VM has none that lasts.
    pub stored: Option<Side>,
    /// When the base was written to last.
    pub base: LastWritten,
    /// When the overlay was.
    pub overlay: LastWritten,
}

/// What follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing: the process and the definition tell all there is to tell.
    Nothing,
    /// The definition is to name the overlays: they hold what the guest wrote last.
    PointAtOverlays,
    /// The definition is to name the bases, which a process writes to: it was changed while somebody started the VM.
    PointAtBases,
    /// Both may hold what nobody else has. What to do about it, for a person.
    Undecided(String),
}

/// Looks at all disks of a switch that is not being taken back: once it is, overlays tell nothing of it any more.
#[must_use]
pub fn next(disks: &[(&PointedDisk, Seen)]) -> Next {
    let any = |is: fn(&Seen) -> bool| disks.iter().any(|(_, seen)| is(seen));
    if any(|seen| seen.live == Some(Side::Overlay)) {
        return next_of_live(disks);
    }
    let is_noted = any(|seen| seen.stored == Some(Side::Overlay));
    if any(|seen| seen.live.or(seen.stored).is_none_or(|side| side == Side::Other)) {
        // A process tells what it writes to, and so does what was noted; else nothing may be taken for granted.
        let is_told = is_noted || any(|seen| seen.live.is_some());
        return written(disks).filter(|_| !is_told).map_or(Next::Nothing, undecided);
    }
    if any(|seen| seen.live == Some(Side::Base)) {
        return if is_noted { Next::PointAtBases } else { written(disks).map_or(Next::Nothing, undecided) };
    }
    let is_all_noted = disks.iter().all(|(_, seen)| seen.stored == Some(Side::Overlay));
    if is_all_noted || (!is_noted && written(disks).is_none()) {
        return Next::Nothing;
    }
    let is_in_doubt = |seen: &Seen| seen.stored == Some(Side::Base) && may_be_newer(seen, disks);
    let in_doubt = disks.iter().find(|(_, seen)| is_in_doubt(seen));
    in_doubt.map_or(Next::PointAtOverlays, |(disk, _)| undecided(disk))
}

/// What matters of a VM that writes to the overlays is that the next cold start does so, too.
#[must_use]
pub fn next_of_live(disks: &[(&PointedDisk, Seen)]) -> Next {
    let is_behind = |seen: &Seen| seen.live == Some(Side::Overlay) && seen.stored == Some(Side::Base);
    if disks.iter().any(|(_, seen)| is_behind(seen)) { Next::PointAtOverlays } else { Next::Nothing }
}

/// A disk whose overlay was written to, or may have been.
fn written<'a>(disks: &[(&'a PointedDisk, Seen)]) -> Option<&'a PointedDisk> {
    disks.iter().find(|(_, seen)| seen.overlay != LastWritten::Never).map(|(disk, _)| *disk)
}

/// Whether a base may have been written to after the switch. Its last write was before that if it was before the last one to
/// an overlay; each file system has a clock of its own.
fn may_be_newer(seen: &Seen, disks: &[(&PointedDisk, Seen)]) -> bool {
    let (device, time) = match seen.base {
        LastWritten::Never => return false,
        LastWritten::Untold => return true,
        LastWritten::At { device, time } => (device, time),
    };
    let by_its_clock = disks.iter().filter_map(|(_, seen)| match seen.overlay {
        LastWritten::At { device: on, time } if on == device => Some(time),
        LastWritten::At { .. } | LastWritten::Never | LastWritten::Untold => None,
    });
    // Where none is by its clock the disks next to it speak for one whose overlay was not written to.
    by_its_clock.min().map_or(seen.overlay != LastWritten::Never, |overlay| time > overlay)
}

/// Whether a process has written to a base between two looks, neither of which saw one.
#[must_use]
pub fn was_started_between(before: &[(&PointedDisk, Seen)], now: &[(&PointedDisk, Seen)]) -> Option<String> {
    let is_newer = |(before, now): &(&(&PointedDisk, Seen), &(&PointedDisk, Seen))| {
        before.1.live.is_none() && now.1.live.is_none() && before.1.base != now.1.base
    };
    before.iter().zip(now).find(is_newer).map(|(_, (disk, _))| words(disk))
}

fn undecided(disk: &PointedDisk) -> Next {
    Next::Undecided(words(disk))
}

fn words(disk: &PointedDisk) -> String {
    let (target, from, to) = (&disk.target, disk.from.path.display(), disk.to.path.display());
    format!(
        "libvirt has not noted that the VM was switched, its process has ended, and it may have been started on its former \
         images since: of disk {target}, {to} and {from} may each hold what the other lacks. The VM can go on with the latter \
         alone: move the former, and those of its other disks, to another directory, and let the operation try again; where \
         they lie in different directories, give the operation up instead. If you know that the VM was not started, let its \
         definition name the former of all disks while it is off, and let the operation try again"
    )
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::model::step::ImageRef;
    use crate::model::vm::Format;
    use LastWritten::{Never, Untold};
    use Side::{Base, Other, Overlay};

    fn disk(name: &str) -> PointedDisk {
        let image = |path: String| ImageRef { path: path.into(), format: Format::Qcow2 };
        PointedDisk {
            target: name.parse().unwrap(),
            from: image(format!("/{name}")),
            to: image(format!("/{name}-overlay")),
        }
    }

    fn at(second: u64) -> LastWritten {
        LastWritten::At { device: 1, time: SystemTime::UNIX_EPOCH + Duration::from_secs(second) }
    }

    fn elsewhere(second: u64) -> LastWritten {
        LastWritten::At { device: 2, time: SystemTime::UNIX_EPOCH + Duration::from_secs(second) }
    }

    fn off(stored: Side, base: LastWritten, overlay: LastWritten) -> Seen {
        Seen { live: None, stored: Some(stored), base, overlay }
    }

    fn live(live: Side, stored: Side, overlay: LastWritten) -> Seen {
        Seen { live: Some(live), stored: Some(stored), base: at(1), overlay }
    }

    #[test]
    fn what_a_vm_that_is_off_is_to_write_to() {
        let (vda, vdb) = (disk("vda"), disk("vdb"));
        let cases = [
            // Nothing was ever written to any overlay.
            ([off(Base, at(1), Never), off(Base, at(9), Never)], Next::Nothing),
            ([off(Base, Untold, Never), off(Base, Never, Never)], Next::Nothing),
            // Written to, and nothing below since.
            ([off(Base, at(1), at(2)), off(Base, at(1), at(3))], Next::PointAtOverlays),
            ([off(Base, at(2), at(2)), off(Base, Never, at(2))], Next::PointAtOverlays),
            // One speaks for all, each by its own clock.
            ([off(Base, at(1), at(2)), off(Base, at(1), Never)], Next::PointAtOverlays),
            ([off(Base, at(1), at(2)), off(Base, elsewhere(9), Never)], Next::PointAtOverlays),
            // Noted, or half of it is.
            ([off(Overlay, at(1), at(2)), off(Overlay, at(9), at(3))], Next::Nothing),
            ([off(Overlay, at(1), Never), off(Base, at(1), Never)], Next::PointAtOverlays),
            ([off(Overlay, at(1), at(2)), off(Base, at(3), Never)], undecided(&vdb)),
            // Started on the bases since, or that cannot be told.
            ([off(Base, at(1), at(2)), off(Base, at(3), Never)], undecided(&vdb)),
            ([off(Base, at(3), at(2)), off(Base, at(1), at(4))], undecided(&vda)),
            ([off(Base, Untold, at(2)), off(Base, at(1), at(2))], undecided(&vda)),
            ([off(Base, at(1), Untold), off(Base, at(1), Never)], undecided(&vda)),
            ([off(Base, elsewhere(1), at(2)), off(Base, at(1), at(2))], undecided(&vda)),
            // What is it then?
            ([off(Base, at(1), Never), off(Other, at(1), Never)], Next::Nothing),
            ([off(Base, at(1), at(2)), off(Other, at(1), Never)], undecided(&vda)),
            ([off(Overlay, at(1), at(2)), off(Other, at(1), Never)], Next::Nothing),
        ];
        for ([first, second], expected) in cases {
            assert_eq!(next(&[(&vda, first), (&vdb, second)]), expected, "{first:?} {second:?}");
        }
    }

    #[test]
    fn what_a_process_tells() {
        let (vda, vdb) = (disk("vda"), disk("vdb"));
        let cases = [
            ([live(Base, Base, Never), live(Base, Base, Never)], Next::Nothing),
            ([live(Overlay, Overlay, at(2)), live(Overlay, Overlay, Never)], Next::Nothing),
            ([live(Overlay, Base, at(2)), live(Overlay, Overlay, Never)], Next::PointAtOverlays),
            // It was started on the bases since.
            ([live(Base, Base, at(2)), live(Base, Base, Never)], undecided(&vda)),
            // While the definition was being changed.
            ([live(Base, Overlay, at(2)), live(Base, Overlay, Never)], Next::PointAtBases),
        ];
        for ([first, second], expected) in cases {
            assert_eq!(next(&[(&vda, first), (&vdb, second)]), expected, "{first:?} {second:?}");
        }
    }

    #[test]
    fn a_process_that_came_and_went() {
        let vda = disk("vda");
        let before = [(&vda, off(Base, at(1), at(2)))];
        assert_eq!(was_started_between(&before, &[(&vda, off(Overlay, at(1), at(2)))]), None);
        assert_eq!(was_started_between(&before, &[(&vda, off(Overlay, at(3), at(2)))]), Some(words(&vda)));
    }
}
