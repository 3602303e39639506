//! The commands for grpcurl. The program cannot be had here, so they are not run: each names options that it has, a call that
//! there is, and a request of that call.

use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use vmsnap::proto::DESCRIPTOR_SET;

use super::PAGE;

/// Options of grpcurl, and whether a value follows.
const OPTIONS: [(&str, bool); 6] = [
    ("-plaintext", false),
    ("-unix", false),
    ("-d", true),
    ("-cacert", true),
    ("-cert", true),
    ("-key", true),
];

/// What a command asks for.
struct Asked<'a> {
    request: Option<&'a str>,
    rest: Vec<&'a str>,
}

/// As a shell parts them, of quotes the single ones.
fn words(command: &str) -> Vec<&str> {
    let pieces = command.split('\'').enumerate();
    let words = pieces.flat_map(|(number, piece)| match number % 2 {
        0 => piece.split_whitespace().collect(),
        _ => vec![piece],
    });
    words.collect()
}

fn read(command: &str) -> Asked<'_> {
    let words = words(command);
    let mut words = words.into_iter().skip(1);
    let mut asked = Asked { request: None, rest: Vec::new() };
    while let Some(word) = words.next() {
        let Some((option, has_value)) = OPTIONS.iter().find(|(option, _)| *option == word) else {
            assert!(!word.starts_with('-'), "nobody knows the option {word:?}");
            asked.rest.push(word);
            continue;
        };
        let value = has_value.then(|| words.next().expect("a value"));
        asked.request = value.filter(|_| *option == "-d").or(asked.request);
    }
    asked
}

fn method(name: &str) -> MethodDescriptor {
    let contract = DescriptorPool::decode(DESCRIPTOR_SET).unwrap();
    let (service, call) = name.split_once('/').unwrap();
    let service = contract.get_service_by_name(service).unwrap_or_else(|| panic!("there is no {service}"));
    service.methods().find(|method| method.name() == call).unwrap_or_else(|| panic!("there is no {name}"))
}

fn check(command: &str) {
    let asked = read(command);
    let [_address, call] = asked.rest[..] else { panic!("{command}: {:?}", asked.rest) };
    if call == "list" {
        return;
    }
    let mut json = serde_json::Deserializer::from_str(asked.request.unwrap_or("{}"));
    DynamicMessage::deserialize(method(call).input(), &mut json)
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    json.end().unwrap();
}

fn commands() -> Vec<&'static str> {
    PAGE.part("### grpcurl").commands()
}

#[test]
fn each_command_is_of_the_contract() {
    assert!(commands().len() > 4, "{:?}", commands());
    for command in commands() {
        assert!(command.starts_with("grpcurl "), "{command}");
        check(command);
    }
}

#[test]
#[should_panic(expected = "unrecognized field name 'nob'")]
fn a_field_that_there_is_not() {
    check("grpcurl -plaintext -unix -d '{\"nob\": 1}' /socket vmsnap.v1.VmService/ListVms");
}

#[test]
#[should_panic(expected = "there is no vmsnap.v1.VmService/Listen")]
fn a_call_that_there_is_not() {
    check("grpcurl -plaintext -unix /socket vmsnap.v1.VmService/Listen");
}
