//! The contract, as code generated from `proto/`.
//!
//! It decides nothing. The daemon serves it (`api`), the client calls it (`cli`); nothing else may know it. Both crate
//! roots, the library and the client, include this file.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::BufferSettings;
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

pub use generated::vmsnap::{controller, v1};

/// Every file of the contract with its comments, and the files they import: an encoded
/// `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vmsnap_descriptor.bin"));

/// The messages of these files, and nothing else of them.
pub const MESSAGE_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vmsnap_messages.bin"));

/// How messages are written and read: as tonic does it, with buffers that fit ours. A watch keeps its own for hours, and with
/// tonic's a thousand of them take 64 MiB more.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

/// Bytes that a buffer begins with, and at which messages that follow each other are handed on. A longer message takes what it
/// needs.
const BUFFER: (usize, usize) = (1024, 4096);

fn buffers() -> BufferSettings {
    BufferSettings::new(BUFFER.0, BUFFER.1)
}

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(buffers())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(buffers())
    }
}

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
