//! The files that a definition names for a disk of any kind, also one that we do not handle.
//!
//! Decides nothing about them: whoever wants to remove a file must know that somebody names it.

use std::path::PathBuf;

use roxmltree::Node;

/// All that are named for a disk: its own, those below, the one that a block job writes to.
pub(super) fn named(disk: Node<'_, '_>) -> Vec<PathBuf> {
    let named = sources(disk).filter_map(|source| {
        let attribute = match source.parent()?.attribute("type")? {
            "file" => "file",
            "block" => "dev",
            _ => return None,
        };
        source.attribute(attribute)
    });
    named.map(PathBuf::from).filter(|path| path.is_absolute()).collect()
}

/// Whether one of the files is only known to the pool that it is in.
pub(super) fn is_unnamed(disk: Node<'_, '_>) -> bool {
    sources(disk).any(|source| source.attribute("pool").is_some())
}

fn sources<'a>(disk: Node<'a, 'a>) -> impl Iterator<Item = Node<'a, 'a>> {
    disk.descendants().filter(|node| node.has_tag_name("source"))
}
