//! `WHERE` clauses: no text of a client is ever part of the SQL.

use rusqlite::types::Value;

use crate::model::VmId;

/// A `WHERE` clause and its values.
pub(super) struct Conditions {
    /// The clause.
    pub(super) text: String,
    /// A value for each `?` of it.
    pub(super) values: Vec<Value>,
}

impl Conditions {
    /// One that lets all through.
    pub(super) fn none() -> Self {
        Self { text: "TRUE".to_owned(), values: Vec::new() }
    }

    /// Adds a condition with its values.
    pub(super) fn and(&mut self, condition: &str, values: impl IntoIterator<Item = Value>) {
        self.text.push_str(" AND ");
        self.text.push_str(condition);
        self.values.extend(values);
    }

    /// Adds that the VM is one of these, if the choice is limited: to none of them, too.
    pub(super) fn of_vms(&mut self, vms: Option<&[VmId]>) {
        match vms {
            None => {}
            // What an index serves best.
            Some([vm]) => self.and("vm = ?", [vm.to_string().into()]),
            Some(vms) => self.and("vm IN (SELECT value FROM json_each(?))", [json_of_vms(vms).into()]),
        }
    }

    /// Adds that a column has one of these values, if there are any.
    pub(super) fn one_of(&mut self, column: &str, values: Vec<Value>) {
        if !values.is_empty() {
            let marks = vec!["?"; values.len()].join(", ");
            self.and(&format!("{column} IN ({marks})"), values);
        }
    }
}

/// The ids of the operations of which [`Request::makes_clones`] says so. An index has them, as long as this is spelled as there.
///
/// [`Request::makes_clones`]: crate::model::Request::makes_clones
pub(super) const MAKES_CLONES: &str = "(SELECT id FROM operation WHERE
    iif(json_valid(body), json_extract(body, '$.request.request'), '')
    IN ('clone_volume', 'flatten_volume', 'delete_volume', 'deploy_vm'))";

/// VMs as `json_each` takes them: as many as there are, in one value.
fn json_of_vms(vms: &[VmId]) -> String {
    vms.iter().map(ToString::to_string).collect::<serde_json::Value>().to_string()
}
