//! Whom rules speak for, and what they let through.

use super::*;

fn identity(text: &str) -> Identity {
    text.parse().unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn rule(who: &[&str], role: Role, scope: &[(&str, &str)]) -> Rule {
    let who = who.iter().map(|who| identity(who)).collect();
    Rule { who, role, scope: Scope::new(labels(scope)) }
}

fn rules() -> Rules {
    Rules::new(vec![
        rule(&["uri:spiffe://cloud/acme"], Role::Operator, &[("account", "acme")]),
        rule(&["uri:spiffe://cloud/controller", "dns:controller.example"], Role::Restorer, &[]),
        rule(&["gid:70"], Role::Viewer, &[]),
        rule(&["uid:1000"], Role::Operator, &[]),
    ])
}

#[test]
fn the_first_rule_that_names_a_caller_speaks_for_it() {
    let check = |proven: &[&str], expected: Option<(&str, Role)>| {
        let proven: Vec<Identity> = proven.iter().map(|proven| identity(proven)).collect();
        let grant = rules().grant(&proven).ok();
        let grant = grant.as_ref().map(|grant| (grant.principal.to_string(), grant.role));
        assert_eq!(grant, expected.map(|(principal, role)| (principal.to_owned(), role)), "{proven:?}");
    };
    check(&["uid:1000", "gid:1000", "socket"], Some(("uid:1000", Role::Operator)));
    // In the order of the rules, not of what is proven. A member of a group is still himself.
    check(&["uid:1000", "gid:70", "socket"], Some(("uid:1000", Role::Viewer)));
    check(&["uid:1001", "gid:70", "socket"], Some(("uid:1001", Role::Viewer)));
    check(&["uid:0", "gid:0", "socket"], Some(("uid:0", Role::Admin)));
    check(&["uid:1001", "gid:1001", "socket"], None);
    check(&["dns:CONTROLLER.example"], Some(("dns:controller.example", Role::Restorer)));
    check(
        &["dns:other.example", "uri:spiffe://cloud/controller"],
        Some(("uri:spiffe://cloud/controller", Role::Restorer)),
    );
    // Not a part of a name, and not another kind of one.
    check(&["uri:spiffe://cloud/controller/x"], None);
    check(&["dns:sub.controller.example"], None);
    check(&["uri:uid:0"], None);
    check(&["loopback"], None);
    check(&[], None);
}

#[test]
fn what_no_rule_says() {
    let nobody = |proven: &str| Rules::unwritten().grant(&[identity(proven)]).is_err();
    assert!(nobody("uri:spiffe://cloud/controller") && nobody("dns:controller"));
    // Whoever opens a port has not shown that the socket would let him in.
    assert!(nobody("loopback"));
    let anybody = Rules::unwritten().grant(&[identity("uid:7"), Identity::Socket]).unwrap();
    assert_eq!((anybody.role, anybody.principal), (Role::Admin, identity("uid:7")));
}

#[test]
fn what_a_role_may() {
    let roles = [Role::Viewer, Role::Operator, Role::Restorer, Role::Admin];
    for has in roles {
        for needs in roles {
            for (scope, within_scope) in
                [(None, false), (None, true), (Some("acme"), false), (Some("acme"), true)]
            {
                let scope = scope.and_then(|account| Scope::new(labels(&[("account", account)])));
                let is_scoped = scope.is_some();
                let grant = Grant { principal: Identity::User(7), role: has, scope };
                let may = grant.check(Demand { role: needs, within_scope }).is_ok();
                assert_eq!(may, has >= needs && (within_scope || !is_scoped), "{has} {needs} {is_scoped}");
            }
        }
    }
}

#[test]
fn a_scope_wants_all_of_its_labels() {
    assert_eq!(Scope::new(BTreeMap::new()), None);
    let scope = Scope::new(labels(&[("account", "acme"), ("project", "web")])).unwrap();
    let has = |pairs: &[(&str, &str)]| scope.has(&Labels(labels(pairs)));
    assert!(has(&[("account", "acme"), ("project", "web"), ("more", "")]));
    assert!(!has(&[("account", "acme")]));
    assert!(!has(&[("account", "acme"), ("project", "")]));
    assert!(!has(&[]));
}

#[test]
fn identities_are_spelled_in_one_way() {
    for (text, expected) in [
        ("socket", "socket"),
        ("uid:0", "uid:0"),
        ("gid:4294967295", "gid:4294967295"),
        ("uri:spiffe://a/b:c", "uri:spiffe://a/b:c"),
        ("dns:Node.Example", "dns:node.example"),
        ("loopback", "loopback"),
        ("basic:Backup", "basic:Backup"),
    ] {
        assert_eq!(identity(text).to_string(), expected);
    }
    for wrong in [
        "",
        "uid",
        "uid:",
        "uid:+5",
        "uid:05",
        "uid:-1",
        "uid:4294967296",
        "socket:",
        "uri:",
        "dns:",
        "cn:x",
        "loopback:",
        "basic:",
    ] {
        assert!(wrong.parse::<Identity>().is_err(), "{wrong}");
    }
}
