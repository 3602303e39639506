//! RPCs that a later version serves: each answers UNIMPLEMENTED, with the reason, and nothing made up.

use tokio_stream::Empty;
use tonic::Status;

use super::Api;
use crate::proto::v1;
use crate::proto::v1::schedule_service_server::ScheduleService;

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

impl ScheduleService for Api {
    later! {
        create_schedule(CreateScheduleRequest) -> v1::CreateScheduleResponse;
        get_schedule(GetScheduleRequest) -> v1::GetScheduleResponse;
        list_schedules(ListSchedulesRequest) -> v1::ListSchedulesResponse;
        update_schedule(UpdateScheduleRequest) -> v1::UpdateScheduleResponse;
        delete_schedule(DeleteScheduleRequest) -> v1::DeleteScheduleResponse;
        pause_schedule(PauseScheduleRequest) -> v1::PauseScheduleResponse;
        resume_schedule(ResumeScheduleRequest) -> v1::ResumeScheduleResponse;
        run_schedule(RunScheduleRequest) -> v1::RunScheduleResponse;
        preview_schedule(PreviewScheduleRequest) -> v1::PreviewScheduleResponse;
        list_schedule_runs(ListScheduleRunsRequest) -> v1::ListScheduleRunsResponse;
    }
}
