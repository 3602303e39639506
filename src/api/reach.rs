//! Who calls, and which VMs a caller may know of.
//!
//! Decides that what lies outside of a scope is to its caller as if it were not there: the same error, the same lists, and no
//! name of it in any answer. Leaves to `model` which labels are within, to `daemon` who a caller is.
//!
//! A VM that libvirt does not know any more has no labels, and is in nobody's scope; while libvirt is down nobody knows of any,
//! and callers with a scope have to wait.

use std::collections::BTreeSet;

use tonic::{Request, Status};

use super::status::Violations;
use super::{Api, calls, status};
use crate::host::VmSummary;
use crate::model::access::{Demand, Grant, Role, Scope};
use crate::model::request::Request as Asking;
use crate::model::snapshot::Owner;
use crate::model::{Operation, OperationId, VmId};
use crate::ops::{OperationView, OpsError, VolumeView};
use crate::proto::v1;

/// What is said of an owner outside of the caller's scope.
pub(super) const NOT_YOURS: &str = "it is not the one of your scope";

/// Which VMs a caller may know of.
#[derive(Debug, Clone)]
pub(super) enum Reach {
    /// All, those that have gone too, and what belongs to none.
    Node,
    /// These, which are within its scope now.
    Vms {
        /// The scope.
        scope: Scope,
        /// The VMs.
        vms: BTreeSet<VmId>,
    },
}

/// Who calls, and which VMs it may know of.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Under which name: what snapshots and operations are noted to be made by.
    pub(super) by: String,
    /// Which VMs.
    pub(super) reach: Reach,
    pub(super) grant: Grant,
}

/// As much as can be asked for.
const ALL: Demand = Demand { role: Role::Admin, within_scope: false };

/// The call that begins such an operation: what it asks for is asked of whoever steers one.
fn call_of(request: &Asking) -> &'static str {
    match request {
        Asking::CreateSnapshot(_) => "/vmsnap.v1.SnapshotService/CreateSnapshot",
        Asking::TakeFromSnapshot(_) => "/vmsnap.v1.VolumeService/CreateVolumeSnapshot",
        Asking::RevertSnapshot(_) => "/vmsnap.v1.SnapshotService/RevertSnapshot",
        Asking::RevertVolume(_) => "/vmsnap.v1.VolumeService/RevertVolume",
        // The daemon begins the second, behind one of the first.
        Asking::DeleteSnapshots(_) | Asking::Collapse { .. } => "/vmsnap.v1.SnapshotService/DeleteSnapshot",
        Asking::PurgeSnapshot(_) => "/vmsnap.v1.SnapshotService/PurgeSnapshot",
        Asking::CloneVolume(_) => "/vmsnap.v1.VolumeService/CloneVolume",
        Asking::FlattenVolume(_) => "/vmsnap.v1.VolumeService/FlattenVolume",
        Asking::DeleteVolume(_) => "/vmsnap.v1.VolumeService/DeleteVolume",
        Asking::DeployVm(_) => "/vmsnap.v1.VmService/DeployVm",
        Asking::ResolveDifference(_) => "/vmsnap.v1.VmService/ResolveVm",
    }
}

impl Reach {
    pub(super) fn has(&self, vm: VmId) -> bool {
        match self {
            Self::Node => true,
            Self::Vms { vms, .. } => vms.contains(&vm),
        }
    }

    /// Whether it is less than the node.
    pub(super) fn is_scoped(&self) -> bool {
        matches!(self, Self::Vms { .. })
    }

    /// Whether an operation is one to be seen. Those that make clones are about what belongs to no VM, or to another one.
    pub(super) fn sees(&self, operation: &Operation) -> bool {
        match self {
            Self::Node => true,
            Self::Vms { vms, .. } => vms.contains(&operation.vm) && !operation.request.makes_clones(),
        }
    }

    /// A VM as its caller may see it: with a scope, without the words that name what others have made of it.
    pub(super) fn shown(&self, mut vm: v1::Vm) -> v1::Vm {
        if self.is_scoped() {
            let debt = vm.merge_debt.iter_mut();
            for waits_for in debt.map(|debt| &mut debt.waits_for).filter(|waits_for| !waits_for.is_empty()) {
                *waits_for = vec!["something that whoever runs the node can tell of".to_owned()];
            }
            if !vm.blocked_reason.is_empty() {
                "ask whoever runs the node: its check tells why".clone_into(&mut vm.blocked_reason);
            }
        }
        vm
    }

    /// As a filter of the catalog: None for no limit.
    pub(super) fn vms(&self) -> Option<Vec<VmId>> {
        match self {
            Self::Node => None,
            Self::Vms { vms, .. } => Some(vms.iter().copied().collect()),
        }
    }

    /// Whether a caller may write this down as an owner: with a scope, the one that it is given alone.
    pub(super) fn may_own(&self, field: &str, value: &str) -> bool {
        match self {
            Self::Node => true,
            Self::Vms { scope, .. } => scope.label(field).is_none_or(|own| own == value),
        }
    }

    /// Fills in what a caller with a scope left out of an owner, and refuses another one.
    pub(super) fn check_owner(&self, violations: &mut Violations, owner: &mut Owner) {
        let Self::Vms { scope, .. } = self else { return };
        let fields =
            [("account", &mut owner.account), ("domain", &mut owner.domain), ("project", &mut owner.project)];
        for (field, value) in fields {
            if value.is_empty() {
                scope.label(field).unwrap_or_default().clone_into(value);
            } else if !self.may_own(field, value) {
                violations.add(field, NOT_YOURS);
            }
        }
    }
}

impl Api {
    /// Who makes this request, as the daemon has found out, and what it may know of now.
    pub(super) async fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let grant = request.extensions().get::<Grant>().cloned();
        let grant = grant.ok_or_else(|| Status::internal("nobody has asked who calls"))?;
        let by = grant.principal.to_string();
        let reach = self.known.reach(&self.engine, grant.scope.clone()).await.map_err(status::of)?;
        Ok(Caller { by, reach, grant })
    }

    /// The VMs that a request is about: the one that it names, or all that its caller may know of. None for no limit.
    pub(super) async fn vms_of(&self, reach: &Reach, vm: &str) -> Result<Option<Vec<VmId>>, Status> {
        match vm {
            "" => Ok(reach.vms()),
            vm => Ok(Some(vec![self.vm_id(reach, vm).await?])),
        }
    }

    /// The VM of a name or an id that the hypervisor knows.
    pub(super) async fn found_vm(&self, reach: &Reach, wanted: &str) -> Result<VmSummary, OpsError> {
        let found = self.engine.find_vm(wanted).await?;
        if reach.has(found.id) { Ok(found) } else { Err(OpsError::NoSuchVm(wanted.to_owned())) }
    }

    pub(super) async fn found_volume(&self, reach: &Reach, wanted: &str) -> Result<VolumeView, Status> {
        let within = match reach {
            Reach::Node => None,
            Reach::Vms { vms, .. } => Some(vms),
        };
        self.engine.find_volume(wanted, within).await.map_err(status::of)
    }

    /// The operation of an id, as it is now. A text that is no id names none.
    pub(super) async fn found_operation(&self, reach: &Reach, wanted: &str) -> Result<OperationView, Status> {
        let none = || OpsError::NoSuchOperation(wanted.to_owned());
        let id = wanted.parse().map_err(|_| status::of(none()))?;
        let found = self.engine.operation(id).await.map_err(status::of)?;
        if reach.sees(&found.operation) { Ok(found) } else { Err(status::of(none())) }
    }

    /// An operation that its caller steers: as somebody who might have begun it.
    pub(super) async fn steered_operation(
        &self,
        caller: &Caller,
        wanted: &str,
    ) -> Result<OperationId, Status> {
        let found = self.found_operation(&caller.reach, wanted).await?;
        let call = calls::call(call_of(&found.operation.request));
        // What no call begins is for those who may do all.
        let demand = call.and_then(|call| call.demand).unwrap_or(ALL);
        caller.grant.check(demand).map_err(|denial| status::denied(&denial))?;
        Ok(found.operation.id)
    }
}
