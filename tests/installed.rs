//! The client runs on an operator's laptop, where there is no libvirt: it must not ask the loader for it.

use std::fs;

/// What a program that links libvirt names in its dynamic string table.
const LIBVIRT: &[u8] = b"libvirt.so";

fn names_libvirt(program: &str) -> bool {
    let bytes = fs::read(program).expect("cargo built the program");
    bytes.windows(LIBVIRT.len()).any(|window| window == LIBVIRT)
}

#[test]
fn the_client_links_no_libvirt() {
    assert!(!names_libvirt(env!("CARGO_BIN_EXE_vmsnap")));
}
