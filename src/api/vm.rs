//! `VmService`: the VMs of this node, as far as their snapshots are concerned.

use std::collections::HashMap;
use std::path::PathBuf;

use tonic::{Request, Response, Status};

use super::status::Violations;
use super::{Answer, Api, Reach, answered, clone, convert, paging, resolve, status};
use crate::host::VmSummary;
use crate::model::vm::DiskView;
use crate::model::{ImageFacts, LayerTree, VmId};
use crate::ops::{OpsError, is_unreadable};
use crate::proto::v1;
use crate::proto::v1::vm_service_server::VmService;

#[tonic::async_trait]
impl VmService for Api {
    async fn list_vms(&self, request: Request<v1::ListVmsRequest>) -> Answer<v1::ListVmsResponse> {
        let reach = self.caller(&request).await?.reach;
        let mut request = request.into_inner();
        let limit = usize::try_from(paging::size(request.page_size)?).unwrap_or(usize::MAX);
        let token = std::mem::take(&mut request.page_token);
        request.page_size = 0;
        let query = status::digest("ListVms", &request);
        let after = paging::position(&query, &token)?.map(place).transpose()?;
        check_order(&request.order_by)?;
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
        let labels = self.engine.labels(None).await.map_err(status::of)?;
        if filter.include_gone {
            vms.extend(gone.clone());
        }
        vms.retain(|vm| vm.name.starts_with(&prefix) && reach.has(vm.id));
        let total_size = i64::try_from(vms.len()).unwrap_or(i64::MAX);
        let (vms, end) = page(vms, after, limit);
        let next_page_token = end.map(|end| paging::token(&query, &end)).unwrap_or_default();
        let mut answer =
            v1::ListVmsResponse { total_size, next_page_token, ..v1::ListVmsResponse::default() };
        for vm in vms {
            let shown = self.without_disks(&vm).await?;
            let labels = labels.get(&vm.id).map(|labels| labels.0.clone()).unwrap_or_default();
            answer.vms.push(reach.shown(v1::Vm { gone: gone.contains(&vm), labels, ..shown }));
        }
        Ok(Response::new(answer))
    }

    async fn get_vm(&self, request: Request<v1::GetVmRequest>) -> Answer<v1::GetVmResponse> {
        let reach = self.caller(&request).await?.reach;
        let mut violations = Violations::default();
        violations.required("vm", &request.get_ref().vm);
        violations.check()?;
        let vm = self.one_vm(&reach, &request.get_ref().vm).await?;
        Ok(Response::new(v1::GetVmResponse { vm: Some(vm) }))
    }

    async fn check_vm(&self, request: Request<v1::CheckVmRequest>) -> Answer<v1::CheckVmResponse> {
        let reach = self.caller(&request).await?.reach;
        let mut violations = Violations::default();
        violations.required("vm", &request.get_ref().vm);
        violations.check()?;
        let id = self.vm_id(&reach, &request.get_ref().vm).await?;
        let found = self.engine.check_vm(id).await.map_err(status::of)?;
        let differences = found.iter().map(convert::difference).collect();
        let vm = self.one_vm(&reach, &request.get_ref().vm).await?;
        Ok(Response::new(v1::CheckVmResponse { vm: Some(vm), differences }))
    }

    async fn deploy_vm(&self, request: Request<v1::DeployVmRequest>) -> Answer<v1::DeployVmResponse> {
        let caller = self.caller(&request).await?;
        clone::deploy_vm(self, caller, request.into_inner()).await
    }

    async fn resolve_vm(&self, request: Request<v1::ResolveVmRequest>) -> Answer<v1::ResolveVmResponse> {
        let caller = self.caller(&request).await?;
        resolve::resolve_vm(self, caller, request.into_inner()).await
    }

    async fn resume_vm(&self, request: Request<v1::ResumeVmRequest>) -> Answer<v1::ResumeVmResponse> {
        let reach = self.caller(&request).await?.reach;
        let mut violations = Violations::default();
        violations.required("vm", &request.get_ref().vm);
        violations.check()?;
        let found = self.found_vm(&reach, &request.get_ref().vm).await.map_err(status::of)?;
        // What a repeated call asks for is so already: that needs no note of the first.
        self.engine.resume_vm(found.id).await.map_err(status::of)?;
        let vm = self.one_vm(&reach, &request.get_ref().vm).await?;
        Ok(answered(v1::ResumeVmResponse { vm: Some(vm) }))
    }
}

impl Api {
    pub(super) async fn one_vm(&self, reach: &Reach, wanted: &str) -> Result<v1::Vm, Status> {
        let found = match self.found_vm(reach, wanted).await {
            Err(OpsError::NoSuchVm(_)) => return self.gone_vm(reach, wanted).await,
            found => found.map_err(status::of)?,
        };
        let labels = self.engine.labels(Some(found.id)).await.map_err(status::of)?.remove(&found.id);
        let vm = self.seen_vm(&found).await?;
        Ok(reach.shown(v1::Vm { labels: labels.unwrap_or_default().0, ..vm }))
    }

    async fn seen_vm(&self, found: &VmSummary) -> Result<v1::Vm, Status> {
        let (view, tree) = match self.engine.vm(found.id).await {
            // It can be shown without its disks, and has to be: somebody wants to know what is wrong with it.
            Err(OpsError::Host(error)) if is_unreadable(&error) => {
                let vm = self.without_disks(found).await?;
                return Ok(v1::Vm { blocked_reason: error.to_string(), ..vm });
            }
            seen => seen.map_err(status::of)?,
        };
        let active = view.disks.iter().filter_map(DiskView::active).map(|image| (&image.path, image.format));
        let pending = tree.pending().map(|layer| (&layer.path, layer.format));
        let sizes = self.engine.sizes(active.chain(pending)).await;
        let vm = convert::vm(&view, &self.known(&tree, sizes));
        Ok(self.with_differences(found.id, vm))
    }

    /// A VM that has left: what the catalog has of it.
    async fn gone_vm(&self, reach: &Reach, wanted: &str) -> Result<v1::Vm, Status> {
        let id = self.vm_id(reach, wanted).await?;
        let gone = self.engine.gone(&[]).await.map_err(status::of)?;
        let found = gone.into_iter().find(|gone| gone.id == id);
        let found = found.ok_or_else(|| status::of(OpsError::NoSuchVm(wanted.to_owned())))?;
        Ok(v1::Vm { gone: true, ..self.without_disks(&found).await? })
    }

    /// What the catalog has of a VM, and what of it can be said without looking at its disks.
    async fn without_disks(&self, vm: &VmSummary) -> Result<v1::Vm, Status> {
        let tree = self.tree(vm.id).await?;
        let sizes = self.engine.sizes(tree.pending().map(|layer| (&layer.path, layer.format))).await;
        let shown = convert::vm_summary(vm, &self.known(&tree, sizes));
        Ok(self.with_differences(vm.id, shown))
    }

    fn known<'a>(&self, tree: &'a LayerTree, sizes: HashMap<PathBuf, ImageFacts>) -> convert::KnownVm<'a> {
        let (holder, waits_for) = (self.engine.under_way(tree.vm), self.engine.waits_for(tree));
        convert::KnownVm { tree, sizes, holder, waits_for }
    }

    /// With what the last look at the VM has found.
    fn with_differences(&self, id: VmId, vm: v1::Vm) -> v1::Vm {
        let differences = self.engine.last_check(id);
        let blocks = differences.iter().find(|difference| difference.blocks);
        v1::Vm {
            blocked_reason: blocks.map(|blocks| blocks.description.clone()).unwrap_or_default(),
            difference_count: u32::try_from(differences.len()).unwrap_or(u32::MAX),
            ..vm
        }
    }
}

/// The page behind a place, and the place where it ends if more follow. One that has gone may have had the name of another.
fn page(
    mut vms: Vec<VmSummary>,
    after: Option<(&str, VmId)>,
    limit: usize,
) -> (Vec<VmSummary>, Option<String>) {
    vms.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    vms.retain(|vm| after.is_none_or(|after| (vm.name.as_str(), vm.id) > after));
    let has_more = vms.len() > limit;
    vms.truncate(limit);
    let last = vms.last().filter(|_| has_more);
    let end = last.map(|last| format!("{} {}", last.id, last.name));
    (vms, end)
}

/// Where a page of VMs ended, as its token spells it.
fn place(text: &str) -> Result<(&str, VmId), Status> {
    let (id, name) = text.split_once(' ').ok_or_else(paging::invalid)?;
    Ok((name, id.parse().map_err(|_| paging::invalid())?))
}

/// This version has one order.
fn check_order(order_by: &str) -> Result<(), Status> {
    let is_known = |field: &str| matches!(field, "name" | "snapshot_count" | "memory_bytes");
    match order_by {
        "" | "name" | "name asc" => Ok(()),
        other if is_known(other.trim_end_matches(" asc").trim_end_matches(" desc")) => {
            Err(status::not_implemented("VMs in another order than name"))
        }
        _ => Err(paging::bad_order(
            "name, snapshot_count or memory_bytes, and if you like \" desc\" behind it",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::vm::RunState;

    #[test]
    fn no_vm_is_left_out_between_pages() {
        let vm = |number, name: &str| VmSummary {
            id: uuid::Uuid::from_u128(number).to_string().parse().unwrap(),
            name: name.to_owned(),
            run_state: RunState::Off,
            full_disks: Vec::new(),
        };
        let all = vec![vm(3, "web"), vm(1, "web two"), vm(2, "web"), vm(4, "db")];
        let (mut seen, mut end) = (Vec::new(), None::<String>);
        loop {
            let after = end.as_deref().map(|end| place(end).unwrap());
            let (vms, next) = page(all.clone(), after, 1);
            seen.extend(vms.into_iter().map(|vm| vm.id));
            if next.is_none() {
                break;
            }
            end = next;
        }
        assert_eq!(seen, [4, 2, 3, 1].map(|number| vm(number, "").id));
    }
}
