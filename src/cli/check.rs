//! `vmsnap vm check` and `vmsnap node check`: what differs between the catalog and what is there.
//!
//! To find something is not to fail: it has an exit code of its own.

use prost::Message;

use super::failure::{Failure, exit};
use super::output::{Shown, Text};
use super::table::Table;
use super::{Session, output, words};
use crate::proto::v1;

/// So much of an id tells the few differences of a node apart. The whole of it is in the other formats.
const SHORT_ID: usize = 8;

pub(super) async fn vm(session: &Session, vm: String) -> Result<u8, Failure> {
    let answer = session.daemon.vms().check_vm(v1::CheckVmRequest { vm }).await?.into_inner();
    let name = answer.vm.as_ref().map(|vm| vm.name.clone()).unwrap_or_default();
    let well = format!("{name}: the catalog and what is there agree");
    show(session, &answer, "CheckVmResponse", &answer.differences, well)
}

pub(super) async fn node(session: &Session) -> Result<u8, Failure> {
    let answer = session.daemon.nodes().check_node(v1::CheckNodeRequest {}).await?.into_inner();
    let (vms, images) = (answer.vms_checked, answer.images_checked);
    let well = format!("{vms} VMs with {images} images: the catalog and what is there agree");
    let code = show(session, &answer, "CheckNodeResponse", &answer.differences, well)?;
    let skipped = &answer.vm_ids_skipped;
    if skipped.is_empty() {
        return Ok(code);
    }
    output::complaint(&format!(
        "left out, for an operation holds them or they gave no answer: {}",
        skipped.join(", ")
    ));
    Ok(if code == 0 { exit::PARTLY } else { code })
}

fn show(
    session: &Session,
    message: &impl Message,
    name: &'static str,
    differences: &[v1::Difference],
    well: String,
) -> Result<u8, Failure> {
    let mut table = Table::new(&["ID", "VM", "DISK", "DIFFERENCE", "BLOCKS", "WAYS", "WHAT"]);
    for difference in differences {
        let ways: Vec<String> = difference.actions().map(words::difference_action).collect();
        table.row(vec![
            difference.id.chars().take(SHORT_ID).collect(),
            difference.vm_name.clone(),
            difference.disk.clone(),
            words::difference(difference.kind()),
            if difference.blocks { "yes" } else { "no" }.to_owned(),
            ways.join(", "),
            difference.description.clone(),
        ]);
    }
    let text = if differences.is_empty() { Text::Lines(well) } else { Text::Table(table) };
    let ids = differences.iter().map(|difference| difference.id.clone()).collect();
    session.output.show(&Shown { message, name, ids, text })?;
    Ok(if differences.is_empty() { 0 } else { exit::DIFFERS })
}
