//! Results on stdout, everything else on stderr. The only place that prints.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::OnceLock;

use clap::CommandFactory;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

use super::args::{Args, Format, Global};
use super::failure::{Failure, exit};
use super::table::Table;
use crate::proto::MESSAGE_SET;

/// How results are printed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    format: Format,
    headers: bool,
}

/// A result in all its forms.
pub(super) struct Shown<'a, M> {
    /// The response.
    pub(super) message: &'a M,
    /// Its name in the contract, without the package.
    pub(super) name: &'static str,
    /// What `-o name` prints, one a line.
    pub(super) ids: Vec<String>,
    /// What a person sees.
    pub(super) text: Text,
}

/// What a person sees.
pub(super) enum Text {
    /// Rows.
    Table(Table),
    /// Lines as they are.
    Lines(String),
}

impl Output {
    pub(super) fn new(global: &Global) -> Self {
        Self { format: global.output, headers: !global.no_headers }
    }

    /// Prints a result.
    pub(super) fn show<M: Message>(self, shown: &Shown<'_, M>) -> Result<(), Failure> {
        match (self.format, &shown.text) {
            (Format::Table, Text::Table(table)) => line(&table.render(self.headers)),
            (Format::Table, Text::Lines(text)) => line(text),
            (Format::Name, _) => shown.ids.iter().for_each(|id| line(id)),
            (Format::Json, _) => {
                let json = serde_json::to_string_pretty(&value(shown.message, shown.name)?);
                line(&json.map_err(|error| unprintable(&error))?);
            }
            (Format::Yaml, _) => {
                let yaml = serde_saphyr::to_string(&value(shown.message, shown.name)?);
                line(yaml.map_err(|error| unprintable(&error))?.trim_end());
            }
        }
        Ok(())
    }
}

impl Output {
    /// Prints one result of many: JSON on one line, YAML as one document of a stream.
    pub(super) fn show_line<M: Message>(self, shown: &Shown<'_, M>) -> Result<(), Failure> {
        match self.format {
            Format::Json => {
                let json = serde_json::to_string(&value(shown.message, shown.name)?);
                line(&json.map_err(|error| unprintable(&error))?);
                Ok(())
            }
            Format::Yaml => {
                line("---");
                self.show(shown)
            }
            Format::Table | Format::Name => self.show(shown),
        }
    }
}

/// A message in the JSON mapping of protobuf, with the field names of the protos; every field is there, so that scripts need not guess.
fn value<M: Message>(message: &M, name: &str) -> Result<serde_json::Value, Failure> {
    json_with(message, &format!("vmsnap.v1.{name}"), &SerializeOptions::new().skip_default_fields(false))
}

/// The same without fields that have their default. `name` is the message's full name.
pub(super) fn json<M: Message>(message: &M, name: &str) -> Result<serde_json::Value, Failure> {
    json_with(message, name, &SerializeOptions::new())
}

fn json_with<M: Message>(
    message: &M,
    name: &str,
    options: &SerializeOptions,
) -> Result<serde_json::Value, Failure> {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    let pool = POOL.get_or_init(|| DescriptorPool::decode(MESSAGE_SET).expect("the build has written it"));
    let descriptor = pool.get_message_by_name(name);
    let descriptor = descriptor.ok_or_else(|| unprintable(&format!("the contract has no message {name}")))?;
    let message = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice());
    let message = message.map_err(|error| unprintable(&error))?;
    let options = options.clone().use_proto_field_name(true);
    let value = message.serialize_with_options(serde_json::value::Serializer, &options);
    value.map_err(|error| unprintable(&error))
}

fn unprintable(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(exit::FAILED, format!("the answer cannot be printed: {error}"), "use another output format")
}

/// A line on stdout. Whoever reads may have left: that is no error.
pub(super) fn line(text: &str) {
    let _ = try_line(text);
}

/// A line on stdout, where it matters whether somebody reads.
pub(super) fn try_line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// A line on stderr.
pub(super) fn complaint(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether a person looks at stderr.
pub(super) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// Completions for a shell, on stdout.
pub(super) fn completions(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut Args::command(), "vmsnap", &mut io::stdout());
}

/// The manual pages, one per verb, into a directory.
pub(super) fn manuals(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Args::command(), directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1;

    #[test]
    fn json_has_the_names_of_the_protos_and_every_field() {
        let snapshot = v1::Snapshot {
            id: "1".to_owned(),
            state: v1::SnapshotState::Ready.into(),
            memory_bytes: 5,
            ..v1::Snapshot::default()
        };
        let value = value(&snapshot, "Snapshot").unwrap();
        assert_eq!(value["state"], "SNAPSHOT_STATE_READY");
        assert_eq!(value["memory_bytes"], "5", "ProtoJSON writes 64-bit numbers as strings");
        assert_eq!(value["current"], false);
        assert_eq!(value["display_name"], "");
    }
}
