//! `WHERE` clauses: no text of a client is ever part of the SQL.

use rusqlite::types::Value;

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

    /// Adds that a column has one of these values, if there are any.
    pub(super) fn one_of(&mut self, column: &str, values: Vec<Value>) {
        if !values.is_empty() {
            let marks = vec!["?"; values.len()].join(", ");
            self.and(&format!("{column} IN ({marks})"), values);
        }
    }
}
