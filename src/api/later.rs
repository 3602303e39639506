//! RPCs that a later version serves: each answers UNIMPLEMENTED, with the reason, and nothing made up.

use tokio_stream::Empty;
use tonic::Status;

/// A stream that there is none of yet.
pub(super) type Never<T> = Empty<Result<T, Status>>;

/// Methods that answer UNIMPLEMENTED, in the form that `async_trait` gives a method.
macro_rules! later {
    ($($name:ident($request:ident) -> $response:ty;)*) => {
        $(
            fn $name<'life0, 'async_trait>(
                &'life0 self,
                _: tonic::Request<$crate::proto::v1::$request>,
            ) -> std::pin::Pin<Box<dyn Future<Output = $crate::api::Answer<$response>> + Send + 'async_trait>>
            where
                'life0: 'async_trait,
                Self: 'async_trait,
            {
                Box::pin(async { Err($crate::api::status::not_implemented(stringify!($name))) })
            }
        )*
    };
}

pub(super) use later;
