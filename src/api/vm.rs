//! `VmService`: the VMs of this node, as far as their snapshots are concerned.

use tonic::{Request, Response};

use super::later::later;
use super::status::Violations;
use super::{Answer, Api, caller, clone, convert, paging, status};
use crate::model::vm::DiskView;
use crate::ops::OpsError;
use crate::proto::v1;
use crate::proto::v1::vm_service_server::VmService;

#[tonic::async_trait]
impl VmService for Api {
    async fn list_vms(&self, request: Request<v1::ListVmsRequest>) -> Answer<v1::ListVmsResponse> {
        let mut request = request.into_inner();
        let limit = usize::try_from(paging::size(request.page_size)?).unwrap_or(usize::MAX);
        let token = std::mem::take(&mut request.page_token);
        request.page_size = 0;
        let query = status::digest("ListVms", &request);
        let after = paging::position(&query, &token)?.unwrap_or_default();
        let filter = request.filter.unwrap_or_default();
        let prefix = filter.name_prefix.clone();
        let known = v1::VmFilter {
            name_prefix: prefix.clone(),
            include_gone: filter.include_gone,
            ..v1::VmFilter::default()
        };
        if filter != known {
            return Err(status::not_implemented("a filter of VMs by more than name_prefix and include_gone"));
        }
        let mut vms = self.engine.vms().await.map_err(status::of)?;
        let gone = self.engine.gone(&vms).await.map_err(status::of)?;
        if filter.include_gone {
            vms.extend(gone.clone());
        }
        vms.retain(|vm| vm.name.starts_with(&prefix));
        vms.sort_by(|a, b| a.name.cmp(&b.name));
        let total_size = i64::try_from(vms.len()).unwrap_or(i64::MAX);
        vms.retain(|vm| vm.name.as_str() > after);
        let next_page_token = match vms.get(limit.saturating_sub(1)) {
            Some(last) if vms.len() > limit => paging::token(&query, &last.name),
            Some(_) | None => String::new(),
        };
        vms.truncate(limit);
        let mut answer =
            v1::ListVmsResponse { total_size, next_page_token, ..v1::ListVmsResponse::default() };
        for vm in vms {
            let tree = self.tree(vm.id).await?;
            let sizes = self.engine.sizes(tree.pending().map(|layer| (&layer.path, layer.format))).await;
            let shown = convert::vm_summary(&vm, &tree, &sizes, self.engine.holder(vm.id));
            answer.vms.push(v1::Vm { gone: gone.contains(&vm), ..shown });
        }
        Ok(Response::new(answer))
    }

    async fn get_vm(&self, request: Request<v1::GetVmRequest>) -> Answer<v1::GetVmResponse> {
        let mut violations = Violations::default();
        violations.required("vm", &request.get_ref().vm);
        violations.check()?;
        let found = match self.engine.find_vm(&request.get_ref().vm).await {
            Err(OpsError::NoSuchVm(_)) => return self.get_gone(&request.get_ref().vm).await,
            found => found.map_err(status::of)?,
        };
        let (view, tree) = self.engine.vm(found.id).await.map_err(status::of)?;
        let active = view.disks.iter().filter_map(DiskView::active).map(|image| (&image.path, image.format));
        let pending = tree.pending().map(|layer| (&layer.path, layer.format));
        let sizes = self.engine.sizes(active.chain(pending)).await;
        let vm = convert::vm(&view, &tree, &sizes, self.engine.holder(found.id));
        Ok(Response::new(v1::GetVmResponse { vm: Some(vm) }))
    }

    async fn deploy_vm(&self, request: Request<v1::DeployVmRequest>) -> Answer<v1::DeployVmResponse> {
        let by = caller(&request);
        clone::deploy_vm(self, by, request.into_inner()).await
    }

    later! {
        check_vm(CheckVmRequest) -> v1::CheckVmResponse;
        resolve_vm(ResolveVmRequest) -> v1::ResolveVmResponse;
        resume_vm(ResumeVmRequest) -> v1::ResumeVmResponse;
    }
}

impl Api {
    /// A VM that has left: what the catalog has of it.
    async fn get_gone(&self, vm: &str) -> Answer<v1::GetVmResponse> {
        let id = self.vm_id(vm).await?;
        let gone = self.engine.gone(&[]).await.map_err(status::of)?;
        let found = gone.into_iter().find(|gone| gone.id == id);
        let found = found.ok_or_else(|| status::of(OpsError::NoSuchVm(vm.to_owned())))?;
        let tree = self.tree(id).await?;
        let sizes = self.engine.sizes(tree.pending().map(|layer| (&layer.path, layer.format))).await;
        let shown = convert::vm_summary(&found, &tree, &sizes, self.engine.holder(id));
        Ok(Response::new(v1::GetVmResponse { vm: Some(v1::Vm { gone: true, ..shown }) }))
    }
}
