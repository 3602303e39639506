//! The contract, as code generated from `proto/`.
//!
//! It decides nothing. The daemon serves it (`api`), the client calls it (`cli`); nothing else may know it. Both crate
//! roots, the library and the client, include this file.

pub use generated::vmsnap::{controller, v1};

/// Every file of the contract with its comments, and the files they import: an encoded
/// `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vmsnap_descriptor.bin"));

/// The messages of these files, and nothing else of them.
pub const MESSAGE_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vmsnap_messages.bin"));

// The modules must nest as the packages do: code of one package reaches another by `super`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    reason = "the code is generated; its documentation is that of the protos, which lack a place for some items"
)]
mod generated {
    pub mod vmsnap {
        pub mod v1 {
            tonic::include_proto!("vmsnap.v1");
        }
        pub mod controller {
            pub mod v1 {
                tonic::include_proto!("vmsnap.controller.v1");
            }
        }
    }
}
