//! How the filter names a request's resource.

use crate::world::Setup;

/// Refuses everything with the name, and says which of two requests was refused.
#[track_caller]
fn check_naming(
    filter: &str,
    resource: &str,
    governed: (&str, &[(&str, &str)]),
    other: Option<(&str, &[(&str, &str)])>,
) {
    let rule = format!("{{id: none, resource: '{resource}', threshold: 0}}");
    let world = Setup::with_rules(&[&rule]).workers(1).filter(filter).start();
    let mut client = world.client();

    let (path, headers) = governed;
    assert_eq!(
        client.send("GET", path, headers).unwrap().status,
        429,
        "{path} is {resource}; {world:?}"
    );
    if let Some((path, headers)) = other {
        assert_eq!(
            client.send("GET", path, headers).unwrap().status,
            200,
            "{path} is not {resource}; {world:?}"
        );
    }
}

#[test]
fn by_method_and_path_without_the_query() {
    check_naming("resource: {from: method_path}", "GET:/a", ("/a?b=c", &[]), Some(("/a/b", &[])));
}

#[test]
fn by_path() {
    check_naming("resource: {from: path}", "/a", ("/a?b=c", &[]), Some(("/b", &[])));
}

#[test]
fn by_route() {
    check_naming("resource: {from: route}", "default", ("/a", &[]), None);
}

#[test]
fn by_cluster() {
    check_naming("resource: {from: cluster}", "upstream", ("/a", &[]), None);
}

#[test]
fn by_authority() {
    let other: &[_] = &[("host", "other.local")];
    check_naming(
        "resource: {from: authority}",
        "shop.local",
        ("/a", &[("host", "shop.local")]),
        Some(("/a", other)),
    );
}

#[test]
fn by_a_header() {
    let other: &[_] = &[("x-resource", "search")];
    check_naming(
        "resource: {from: {header: x-resource}}",
        "checkout",
        ("/a", &[("x-resource", "checkout")]),
        Some(("/a", other)),
    );
}

#[test]
fn by_a_template_that_makes_many_paths_one_resource() {
    check_naming(
        "resource: {from: method_path, templates: ['/users/{id}']}",
        "GET:/users/{id}",
        ("/users/17", &[]),
        Some(("/users/17/orders", &[])),
    );
}

#[test]
fn by_method_and_path_when_nothing_is_said() {
    let world = Setup {
        filter: None,
        ..Setup::with_rules(&["{id: none, resource: 'GET:/a', threshold: 0}"])
    }
    .start();

    assert_eq!(world.get("/a").status, 429);
}
