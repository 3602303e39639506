//! What is written on VMs, in the metadata of their definitions.
//!
//! Decides whose metadata are read: our own, and nova's for the project that a VM belongs to. Leaves to libvirt to keep them:
//! they survive everything that the definition survives, and no guest can reach them.

use std::collections::{BTreeMap, HashMap};

use roxmltree::Node;

use super::connection::Connection;
use super::description::{child, malformed, parse};
use super::vms::{list, lookup, xml};
use crate::host::{HostError, Result};
use crate::model::{Labels, VmId};

/// Our own element, `labels`, with an element `label` for each key and value. `virsh metadata` writes it, and gives the
/// namespace to the outer element alone.
const OURS: &str = "urn:vmsnap:labels:1";

/// Nova's: `instance`, `owner`, `project` with a `uuid` (nova, `LibvirtConfigGuestMetaNovaOwner`).
const NOVA: [&str; 2] =
    ["http://openstack.org/xmlns/libvirt/nova/1.0", "http://openstack.org/xmlns/libvirt/nova/1.1"];

/// Most labels of a VM, and the longest key or value in bytes. Others are left out.
const MOST: usize = 64;
const LONGEST: usize = 255;

/// Of a VM that has none, its process'.
const STORED: u32 = virt::sys::VIR_DOMAIN_XML_INACTIVE;

/// See [`crate::host::Hypervisor::labels`]. Of the stored definition: that of a process may come from a snapshot with memory, in
/// which stands whose the VM was then.
pub(super) fn written(line: &Connection, only: Option<VmId>) -> Result<HashMap<VmId, Labels>> {
    let vms = match only {
        Some(vm) => vec![vm],
        None => list(line)?.into_iter().map(|vm| vm.id).collect(),
    };
    let mut written = HashMap::with_capacity(vms.len());
    for vm in vms {
        match lookup(line, vm).and_then(|domain| xml(&domain, vm, STORED)) {
            // One that cannot be understood has none: it keeps nobody from the others.
            Ok(xml) => drop(written.insert(vm, read(&xml).unwrap_or_default())),
            // Undefined since it was listed.
            Err(HostError::NoSuchVm(_)) => {}
            Err(error) if only.is_some() => return Err(error),
            // It has none either, until it can be asked.
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::debug!(%vm, error, "the labels of a VM cannot be read");
            }
        }
    }
    Ok(written)
}

/// The labels in a `<domain>`.
pub(super) fn read(xml: &str) -> Result<Labels> {
    let document = parse(xml)?;
    let domain = document.root_element();
    if !domain.has_tag_name("domain") {
        return Err(malformed("its root is no <domain>"));
    }
    let mut labels = BTreeMap::new();
    let Some(metadata) = child(domain, "metadata") else { return Ok(Labels::default()) };
    for element in metadata.children().filter(Node::is_element) {
        let name = element.tag_name();
        match name.namespace() {
            Some(OURS) if name.name() == "labels" => labels.extend(ours(element)),
            Some(namespace) if NOVA.contains(&namespace) => {
                // What is written on purpose goes before what is taken from elsewhere.
                project_of_nova(element).map(|project| labels.entry("project".to_owned()).or_insert(project));
            }
            Some(_) | None => {}
        }
    }
    Ok(Labels(labels))
}

fn ours<'a>(element: Node<'a, 'a>) -> impl Iterator<Item = (String, String)> {
    let labels = element.children().filter(|child| child.tag_name().name() == "label");
    let pair = |label: Node<'a, 'a>| Some((label.attribute("key")?, label.attribute("value")?));
    let is_kept =
        |(key, value): &(&str, &str)| !key.is_empty() && key.len() <= LONGEST && value.len() <= LONGEST;
    labels.filter_map(pair).filter(is_kept).take(MOST).map(|(key, value)| (key.to_owned(), value.to_owned()))
}

fn project_of_nova(instance: Node<'_, '_>) -> Option<String> {
    let below = |node: Node<'_, '_>, name: &str| {
        node.children().find(|child| child.tag_name().name() == name).map(|found| found.id())
    };
    let document = instance.document();
    let owner = document.get_node(below(instance, "owner")?)?;
    let project = document.get_node(below(owner, "project")?)?;
    project.attribute("uuid").filter(|uuid| uuid.len() <= LONGEST).map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(metadata: &str, expected: &[(&str, &str)]) {
        let xml = format!("<domain><name>a</name>{metadata}</domain>");
        let labels = read(&xml).unwrap().0;
        let labels: Vec<(&str, &str)> =
            labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(labels, expected, "{metadata}");
    }

    #[test]
    fn labels() {
        check("", &[]);
        check("<metadata/>", &[]);
        // As virsh writes it: the namespace is the outer element's alone.
        let ours = "<v:labels xmlns:v='urn:vmsnap:labels:1'><label key='account' value='acme'/><label key='x' value=''/></v:labels>";
        check(&format!("<metadata>{ours}</metadata>"), &[("account", "acme"), ("x", "")]);
        let nova = "<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'><nova:name>n</nova:name>\
                    <nova:owner><nova:user uuid='u'>admin</nova:user><nova:project uuid='p'>demo</nova:project></nova:owner>\
                    </nova:instance>";
        check(&format!("<metadata>{nova}</metadata>"), &[("project", "p")]);
        let both = "<v:labels xmlns:v='urn:vmsnap:labels:1'><v:label key='project' value='ours'/></v:labels>";
        check(&format!("<metadata>{nova}{both}</metadata>"), &[("project", "ours")]);
        check(&format!("<metadata>{both}{nova}</metadata>"), &[("project", "ours")]);
    }

    #[test]
    fn what_is_no_label() {
        check("<labels xmlns='urn:vmsnap:labels:1'><label key='account' value='acme'/></labels>", &[]);
        check("<metadata><labels><label key='account' value='acme'/></labels></metadata>", &[]);
        check(
            "<metadata><labels xmlns='urn:other'><label key='account' value='acme'/></labels></metadata>",
            &[],
        );
        let long = "a".repeat(256);
        let odd = format!(
            "<label/><label key='k'/><label value='v'/><label key='' value='v'/><label key='k' value='{long}'/>"
        );
        check(&format!("<metadata><labels xmlns='urn:vmsnap:labels:1'>{odd}</labels></metadata>"), &[]);
        let nova = "http://openstack.org/xmlns/libvirt/nova/1.1";
        check(&format!("<metadata><instance xmlns='{nova}'><owner/></instance></metadata>"), &[]);
    }
}
