//! Generates the gRPC code from `proto/`, without a protoc binary.
//!
//! The descriptor set is written beside the code, with its comments: the daemon serves it by reflection. The client prints
//! JSON by the messages alone: reading all the rest would take it most of its time.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message;

const PROTO_DIRECTORY: &str = "proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO_DIRECTORY}");
    println!("cargo::rerun-if-changed=build.rs");

    let mut files = Vec::new();
    collect_proto_files(Path::new(PROTO_DIRECTORY), &mut files)?;
    // The order of a directory is arbitrary; the output should not be.
    files.sort();

    let descriptors = protox::Compiler::new([PROTO_DIRECTORY])?
        .include_imports(true)
        .include_source_info(true)
        .open_files(&files)?
        .file_descriptor_set();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("vmsnap_descriptor.bin"), descriptors.encode_to_vec())?;
    let mut messages = descriptors.clone();
    for file in &mut messages.file {
        file.source_code_info = None;
        file.service.clear();
    }
    fs::write(out.join("vmsnap_messages.bin"), messages.encode_to_vec())?;

    // Ordered maps: one request encodes to one sequence of bytes, by which a repetition is recognised.
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}

fn collect_proto_files(directory: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect_proto_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
