//! Who may call: white and black lists by origin.

use crate::hotspot::statuses;
use crate::world::Setup;

#[test]
fn a_white_list_admits_only_whom_it_names_and_a_black_list_all_others() {
    let world = Setup::new()
        .rules(
            "AuthorityRules",
            &[
                "{id: white, resource: 'GET:/staff', limitApp: 'shop,back office', strategy: 0}",
                "{id: black, resource: 'GET:/open', limitApp: 'crawler,shop2', strategy: 1}",
            ],
        )
        .start();
    let status = |path: &str, origin: &str| {
        let headers = [("x-origin", origin)];
        // On several connections, so that several workers answer.
        let statuses = statuses(&world, path, &headers, 8);
        assert!(
            statuses.iter().all(|status| *status == statuses[0]),
            "{path} {origin}: {statuses:?}"
        );
        statuses[0]
    };

    for (origin, white, black) in [
        ("shop", 200, 200),
        ("back office", 200, 200),
        ("crawler", 403, 403),
        ("shop2", 403, 403),
        // Whole names only.
        ("sho", 403, 200),
        ("shop,back office", 403, 200),
        ("Shop", 403, 200),
    ] {
        assert_eq!((status("/staff", origin), status("/open", origin)), (white, black), "{origin}");
    }
    // Nobody knows who calls: Sentinel lets him pass.
    assert_eq!(statuses(&world, "/staff", &[], 8), [200; 8]);
    assert_eq!(statuses(&world, "/open", &[], 8), [200; 8]);

    let answer = world.client().send("GET", "/staff", &[("x-origin", "crawler")]).unwrap();
    assert_eq!(answer.header("x-sentinel-block"), Some("Authority"));
    assert_eq!(answer.header("x-sentinel-rule"), Some("white"));
    world.assert_nothing_trapped();
}

#[test]
fn the_clients_address_can_be_the_origin() {
    let world = Setup::new()
        .rules(
            "AuthorityRules",
            &[
                "{id: nobody, resource: 'GET:/nobody', limitApp: '127.0.0.1', strategy: 1}",
                "{id: local, resource: 'GET:/local', limitApp: '127.0.0.1', strategy: 0}",
            ],
        )
        .filter("{resource: {from: method_path}, origin: client_ip}")
        .start();

    assert_eq!(world.get("/nobody").status, 403);
    assert_eq!(world.get("/local").status, 200);
}
