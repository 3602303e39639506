//! Lists of volumes. There are as many as disks on the node: they are looked at, then filtered and ordered here.

use std::cmp::Ordering;

use jiff::Timestamp;
use tonic::{Response, Status};

use super::status::Violations;
use super::{Answer, Api, Reach, convert, paging, status};
use crate::ops::VolumeView;
use crate::proto::v1;

/// A page of volumes.
pub(super) async fn list(
    api: &Api,
    reach: Reach,
    mut request: v1::ListVolumesRequest,
) -> Answer<v1::ListVolumesResponse> {
    let limit = usize::try_from(paging::size(request.page_size)?).unwrap_or(usize::MAX);
    let token = std::mem::take(&mut request.page_token);
    request.page_size = 0;
    let query = status::digest("ListVolumes", &request);
    let order = Order::parse(&request.order_by)?;
    let filter = Filter::parse(request.filter.unwrap_or_default())?;
    let vm = match filter.asked.vm.as_str() {
        "" => None,
        vm => Some(api.found_vm(&reach, vm).await.map_err(status::of)?),
    };
    let volumes = api.engine.volumes(vm.as_ref()).await.map_err(status::of)?;
    let is_within = |volume: &&VolumeView| match &volume.user {
        Some(place) => reach.has(place.vm.id),
        None => !reach.is_scoped(),
    };
    let labels = api.known.labels(&api.engine).await.map_err(status::of)?;
    let shown = |volume: &VolumeView| convert::volume(volume, &labels);
    let mut volumes: Vec<v1::Volume> = volumes.iter().filter(is_within).map(shown).collect();
    volumes.retain(|volume| filter.fits(volume));
    volumes.sort_by_key(|volume| order.place(volume));
    if order.is_descending {
        volumes.reverse();
    }
    let total_size = i64::try_from(volumes.len()).unwrap_or(i64::MAX);
    if let Some(last) = paging::position(&query, &token)? {
        let beyond = if order.is_descending { Ordering::Less } else { Ordering::Greater };
        volumes.retain(|volume| order.place(volume).as_str().cmp(last) == beyond);
    }
    let next_page_token = match volumes.get(limit.saturating_sub(1)) {
        Some(last) if volumes.len() > limit => paging::token(&query, &order.place(last)),
        Some(_) | None => String::new(),
    };
    volumes.truncate(limit);
    Ok(Response::new(v1::ListVolumesResponse { volumes, next_page_token, total_size }))
}

/// By what volumes are ordered.
struct Order {
    by: By,
    is_descending: bool,
}

#[derive(Clone, Copy)]
enum By {
    Name,
    Created,
    Size,
}

impl Order {
    fn parse(order_by: &str) -> Result<Self, Status> {
        let (field, is_descending) = paging::order(order_by);
        let by = match field {
            "" | "name" => By::Name,
            "create_time" => By::Created,
            "virtual_size_bytes" => By::Size,
            _ => {
                let allowed = "name, create_time or virtual_size_bytes, and if you like \" desc\" behind it";
                return Err(paging::bad_order(allowed));
            }
        };
        Ok(Self { by, is_descending })
    }

    /// Where a volume stands: a text that sorts as the volumes do, different for each.
    fn place(&self, volume: &v1::Volume) -> String {
        let key = match self.by {
            By::Name => volume.name.clone(),
            By::Created => format!("{:020}", volume.create_time.map_or(0, |at| at.seconds.max(0))),
            By::Size => format!("{:020}", volume.virtual_size_bytes),
        };
        format!("{key} {}", volume.id)
    }
}

/// Which volumes.
struct Filter {
    asked: v1::VolumeFilter,
    states: Vec<i32>,
    created_after: Option<Timestamp>,
    created_before: Option<Timestamp>,
}

impl Filter {
    fn parse(asked: v1::VolumeFilter) -> Result<Self, Status> {
        let mut violations = Violations::default();
        let created_after = violations.take_time("filter.created_after", asked.created_after);
        let created_before = violations.take_time("filter.created_before", asked.created_before);
        violations.check()?;
        let unspecified = i32::from(v1::VolumeState::Unspecified);
        let states = asked.states.iter().copied().filter(|state| *state != unspecified).collect();
        Ok(Self { asked, states, created_after, created_before })
    }

    fn fits(&self, volume: &v1::Volume) -> bool {
        let asked = &self.asked;
        let is = |wanted: &str, actual: &str| wanted.is_empty() || wanted == actual;
        let has = |wanted: &v1::PropertyFilter| {
            let value = volume.properties.get(&wanted.key);
            value.is_some_and(|value| wanted.value.as_ref().is_none_or(|wanted| wanted == value))
        };
        volume.name.starts_with(&asked.name_prefix)
            && (self.states.is_empty() || self.states.contains(&volume.state))
            && is(&asked.account, &volume.account)
            && is(&asked.domain, &volume.domain)
            && is(&asked.project, &volume.project)
            && asked.properties.iter().all(has)
            && self.fits_time(volume)
    }

    /// Of a disk that was not made by us nobody knows since when it is there.
    fn fits_time(&self, volume: &v1::Volume) -> bool {
        if self.created_after.is_none() && self.created_before.is_none() {
            return true;
        }
        let at = volume.create_time.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok());
        at.is_some_and(|at| {
            self.created_after.is_none_or(|after| at >= after)
                && self.created_before.is_none_or(|before| at < before)
        })
    }
}
