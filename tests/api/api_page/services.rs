//! The table of services is that of the descriptors, and what is said not to be served is just what is not.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::{DescriptorPool, MethodDescriptor, ServiceDescriptor};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;
use vmsnap::proto::DESCRIPTOR_SET;

use super::PAGE;
use crate::node::{Node, PATIENCE};
use crate::page::code;

fn services() -> Vec<ServiceDescriptor> {
    let contract = DescriptorPool::decode(DESCRIPTOR_SET).unwrap();
    contract.services().filter(|service| service.package_name() == "vmsnap.v1").collect()
}

#[test]
fn the_table_has_every_service_and_call() {
    let owned = |names: Vec<&str>| names.into_iter().map(ToOwned::to_owned).collect::<Vec<String>>();
    let rows = PAGE.part("## Services").rows();
    let table: BTreeMap<_, _> =
        rows.iter().map(|row| (code(row[0])[0].to_owned(), owned(code(row[2])))).collect();
    let contract = services().into_iter().map(|service| {
        let calls: Vec<String> = service.methods().map(|method| method.name().to_owned()).collect();
        (service.name().to_owned(), calls)
    });
    assert_eq!(table, contract.collect());
}

/// An empty request, and what comes of it. The answer, or the begin of it: a watch has no end.
async fn ask(node: &Node, method: &MethodDescriptor) -> Code {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let mut client = Grpc::new(node.channel());
    client.ready().await.unwrap();
    let path: PathAndQuery = path.parse().unwrap();
    let codec = ProstCodec::<(), ()>::default();
    let answer = if method.is_server_streaming() {
        client.server_streaming(Request::new(()), path, codec).await.map(drop)
    } else {
        client.unary(Request::new(()), path, codec).await.map(drop)
    };
    answer.err().map_or(Code::Ok, |status| status.code())
}

#[tokio::test]
async fn what_is_not_served_is_said() {
    let node = Node::start();
    let named: BTreeSet<&str> = code(PAGE.part("### Not served yet").0).into_iter().collect();
    let mut wrong = Vec::new();
    for service in services() {
        for method in service.methods() {
            let asked = tokio::time::timeout(PATIENCE, ask(&node, &method)).await;
            let is_served = asked.unwrap_or_else(|_| panic!("{}", method.full_name())) != Code::Unimplemented;
            let is_named = named.contains(method.name()) || named.contains(service.name());
            if is_served == is_named {
                wrong.push(method.full_name().to_owned());
            }
        }
    }
    assert!(wrong.is_empty(), "the page is wrong about {wrong:?}");
}
