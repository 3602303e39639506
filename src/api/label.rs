//! What people write on a snapshot when they ask for it: the same fields in several requests.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Reach;
use super::status::Violations;
use crate::model::Label;
use crate::model::snapshot::Owner;
use crate::proto::v1;

/// The fields as a client gave them.
pub(super) struct Written<'a> {
    name: &'a str,
    display_name: &'a str,
    description: &'a str,
    owner: [&'a str; 3],
    properties: &'a BTreeMap<String, String>,
    expire_time: Option<prost_types::Timestamp>,
}

macro_rules! written {
    ($request:ty) => {
        impl<'a> From<&'a $request> for Written<'a> {
            fn from(request: &'a $request) -> Self {
                Self {
                    name: &request.name,
                    display_name: &request.display_name,
                    description: &request.description,
                    owner: [&request.account, &request.domain, &request.project],
                    properties: &request.properties,
                    expire_time: request.expire_time,
                }
            }
        }
    };
}

written!(v1::CreateSnapshotRequest);
written!(v1::CreateVolumeSnapshotRequest);

impl Violations {
    /// A label, as far as it is well-formed.
    pub(super) fn take_label<'a>(&mut self, written: impl Into<Written<'a>>, reach: &Reach) -> Label {
        let written = written.into();
        self.label("display_name", written.display_name);
        self.text("description", written.description);
        let mut owner = self.take_owner(written.owner);
        reach.check_owner(self, &mut owner);
        self.properties("properties", written.properties.iter());
        let name = match written.name {
            "" => None,
            name => self.take("name", name.parse()),
        };
        Label {
            name,
            display_name: written.display_name.to_owned(),
            description: written.description.to_owned(),
            owner,
            properties: written.properties.clone(),
            expires_at: self.take_expiry(written.expire_time),
            schedule: None,
        }
    }

    /// When a snapshot is to be deleted by itself, if ever. A time that has passed is a slip, not a wish.
    pub(super) fn take_expiry(&mut self, at: Option<prost_types::Timestamp>) -> Option<Timestamp> {
        let at = self.take_time("expire_time", at);
        if at.is_some_and(|at| at <= Timestamp::now()) {
            self.add("expire_time", "it has passed already");
        }
        at
    }

    /// Account, domain and project, in this order.
    pub(super) fn take_owner(&mut self, owner: [&str; 3]) -> Owner {
        for (field, label) in ["account", "domain", "project"].into_iter().zip(owner) {
            self.label(field, label);
        }
        let [account, domain, project] = owner.map(str::to_owned);
        Owner { account, domain, project }
    }
}
