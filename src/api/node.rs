//! `NodeService`: this node and this daemon.

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use tonic::{Request, Response, Status};

use super::status::Violations;
use super::{Answer, Api, asked, convert, paging, status};
use crate::host::{About, Link};
use crate::model::Space;
use crate::proto::v1;
use crate::proto::v1::node_service_server::NodeService;
use crate::store::{OperationFilter, Page, SnapshotFilter};

#[tonic::async_trait]
impl NodeService for Api {
    async fn get_node(&self, _: Request<v1::GetNodeRequest>) -> Answer<v1::GetNodeResponse> {
        Ok(Response::new(v1::GetNodeResponse { node: Some(self.node().await?) }))
    }

    async fn check_node(&self, _: Request<v1::CheckNodeRequest>) -> Answer<v1::CheckNodeResponse> {
        let found = self.engine.check_node().await.map_err(status::of)?;
        Ok(Response::new(v1::CheckNodeResponse {
            differences: found.differences.iter().map(convert::difference).collect(),
            vms_checked: u32::try_from(found.vms).unwrap_or(u32::MAX),
            images_checked: u32::try_from(found.images).unwrap_or(u32::MAX),
            vm_ids_skipped: found.skipped.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn back_up_catalog(
        &self,
        request: Request<v1::BackUpCatalogRequest>,
    ) -> Answer<v1::BackUpCatalogResponse> {
        let by = self.caller(&request).await?.by;
        let message = request.into_inner();
        let mut violations = Violations::default();
        violations.request_id(&message.request_id);
        violations.check()?;
        let digest = status::digest("BackUpCatalog", &message);
        let backup = self.engine.back_up_catalog(asked(by, &message.request_id, digest, false)).await;
        let backup = backup.map_err(status::of)?;
        let path = backup.path.display().to_string();
        Ok(Response::new(v1::BackUpCatalogResponse { path, bytes: backup.bytes }))
    }

    async fn reload_configuration(
        &self,
        request: Request<v1::ReloadConfigurationRequest>,
    ) -> Answer<v1::ReloadConfigurationResponse> {
        super::reload::reload(self, request.into_inner()).await
    }
}

impl Api {
    /// The node as it is now.
    pub(super) async fn node(&self) -> Result<v1::Node, Status> {
        let hypervisor = &self.engine.host().hypervisor;
        let link = hypervisor.link().borrow().clone();
        // One that is down has no versions to tell; the node is described all the same.
        let about = match &link {
            Link::Up => hypervisor.about().await.ok(),
            Link::Down(_) => None,
        };
        let of_open = OperationFilter { only_open: true, ..OperationFilter::default() };
        let (open, _) = self.engine.operations(of_open, None, 1000).await.map_err(status::of)?;
        let everything = SnapshotFilter::default();
        let one = Page { limit: 1, ..Page::default() };
        let snapshots = self.engine.snapshots(everything, one).await.map_err(status::of)?;
        let vms = self.engine.vms().await.unwrap_or_default();
        let storage = self.engine.storage(&self.state_directory).await.map_err(status::of)?;
        let uptime = self.started.elapsed();
        let now = Timestamp::now();
        let started = SignedDuration::try_from(uptime).ok().and_then(|uptime| now.checked_sub(uptime).ok());
        Ok(v1::Node {
            id: self.identity.id.to_string(),
            // libvirt's has the domain, too.
            name: about.as_ref().map_or(&self.identity.host_name, |about| &about.host_name).clone(),
            versions: Some(versions(about)),
            capabilities: Some(v1::Capabilities {
                memory: true,
                volumes: true,
                schedules: true,
                max_page_size: paging::MOST,
                ..v1::Capabilities::default()
            }),
            parts: self.parts().await,
            start_time: started.map(convert::timestamp),
            uptime: uptime.try_into().ok(),
            state_directory: self.state_directory.display().to_string(),
            vm_count: u32::try_from(vms.len()).unwrap_or(u32::MAX),
            snapshot_count: snapshots.total,
            open_operation_ids: open.iter().map(|operation| operation.id.to_string()).collect(),
            draining: self.engine.draining().is_cancelled(),
            storage: storage.into_iter().map(storage_space).collect(),
            time: Some(convert::timestamp(now)),
            ..v1::Node::default()
        })
    }

    /// How each part of the daemon is.
    pub(super) async fn parts(&self) -> Vec<v1::PartHealth> {
        let link = self.engine.host().hypervisor.link().borrow().clone();
        let catalog = self.engine.store().probe().await.err().map(|error| error.to_string());
        let controller = self.reporting.as_ref().map(|reporting| reporting.borrow().clone().err());
        let mut parts = vec![part("libvirt", link_problem(&link)), part("catalog", catalog)];
        parts.extend(controller.map(|problem| part("controller", problem)));
        parts
    }
}

fn versions(about: Option<About>) -> v1::Versions {
    let (libvirt, qemu) = about.map(|about| (about.libvirt, about.qemu)).unwrap_or_default();
    v1::Versions { agent: env!("CARGO_PKG_VERSION").to_owned(), libvirt, qemu, ..v1::Versions::default() }
}

fn storage_space((directory, space): (PathBuf, Space)) -> v1::StorageSpace {
    let path = directory.display().to_string();
    v1::StorageSpace { path, total_bytes: space.total, free_bytes: space.free }
}

fn link_problem(link: &Link) -> Option<String> {
    match link {
        Link::Up => None,
        Link::Down(reason) => Some(reason.clone()),
    }
}

fn part(name: &str, problem: Option<String>) -> v1::PartHealth {
    let state = if problem.is_none() { v1::HealthState::Serving } else { v1::HealthState::NotServing };
    let reason = problem.unwrap_or_default();
    v1::PartHealth { name: name.to_owned(), state: state.into(), reason, ..v1::PartHealth::default() }
}
