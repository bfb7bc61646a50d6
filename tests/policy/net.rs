//! Addresses and sets of networks, given and from files.

use crate::support::{Bench, Folder, on_worker, settings};
use trackalert::policy::{Failure, PolicySet};

async fn error_of(body: &str) -> String {
    match Bench::handler(body).at(1_000.0).await {
        Err(Failure::Error(text)) => text,
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn sets_are_made_while_the_policy_is_loaded_and_asked_in_a_handler() {
    on_worker(async {
        let folder = Folder::with(&[
            ("lib/lists/vpn.txt", "# a list\n192.0.2.0/24\n!192.0.2.9\n2001:db8::/32\n"),
            ("p/own.txt", "203.0.113.0/24\n"),
            (
                "p/policy.lua",
                "local vpn, own = net.file('../lib/lists/vpn.txt'), net.file('own.txt')
                 local office = net.set { '10.0.0.0/8', '!10.1.0.0/16', '10.1.2.0/24', '::1' }
                 function report(lt)
                   assert(vpn:has(lt.remote) and vpn:has('192.0.2.8') and not vpn:has('192.0.2.9') and vpn:has('2001:db8::5'))
                   assert(vpn:size() == 3 and #vpn == 3 and #own == 1 and own:has('203.0.113.1') and not own:has(lt.remote))
                   assert(office:has('10.1.2.3') and not office:has('10.1.3.4') and office:has('10.9.9.9') and not office:has('11.0.0.1'))
                   assert(#office == 4 and tostring(office) == 'set of 4 networks' and office:has(net.address('::1')))
                   assert(net.set { lt.remote, '198.51.100.0/24' }:has('192.0.2.7') and #net.set {} == 0)
                   local a = net.address('::ffff:192.0.2.7')
                   assert(a == lt.remote and a:isIPv4() and net.address(lt.remote) == a and net.address('nowhere') == nil)
                   assert(net.address('192.0.2.0/24') == nil and net.address('') == nil)
                 end",
            ),
        ]);
        folder.bench().at(1_000.0).await.unwrap();
    });
}

#[test]
fn wrong_arguments_of_net_name_function_argument_file_and_line() {
    on_worker(async {
        for (body, expected) in [
            ("net.address()", "net.address: text: a string is required, got nothing"),
            ("net.address(5)", "net.address: text: a string is required, got the number 5"),
            ("net.set('10.0.0.0/8')", "net.set: networks: a table is required, got a string"),
            (
                "net.set { '10.0.0.0/8', '10.0.0/8' }",
                "net.set: networks[2]: \"10.0.0/8\" is no network, such as 192.0.2.0/24",
            ),
            ("net.set { '10.0.0.0/8', x = '::1' }", "net.set: networks: must be a list; it has the key x"),
            (
                "net.set { true }",
                "net.set: networks[1]: a network such as \"192.0.2.0/24\" is required, got the boolean true",
            ),
            ("net.set({ '::1' }):has('here')", "set:has: address: an address or its text is required, got a string"),
            ("net.set({ '::1' }):has()", "set:has: address: an address or its text is required, got nothing"),
            ("net.file('x')", "net.file: path: works while the policy is loaded only"),
            ("net.file()", "net.file: path: a string is required, got nothing"),
            (
                "local t = {}; for i = 1, 10001 do t[i] = '10.0.' .. math.floor(i / 256) .. '.' .. i % 256 end; net.set(t)",
                "net.set: networks: has more than 10000 networks",
            ),
        ] {
            let text = error_of(body).await;
            assert!(text.starts_with(&format!("p/policy.lua:2: {expected}")), "{body}\n  gave {text}");
        }
    });
}

#[test]
fn sets_that_are_made_and_thrown_away_do_not_pile_up() {
    on_worker(async {
        let make = "local t = {}; for i = 1, 10000 do t[i] = '10.0.' .. math.floor(i / 256) .. '.' .. i % 256 end";
        let mut long = settings();
        long.cpu_limit = std::time::Duration::from_secs(20);
        let run = |body: String| {
            let bench = Bench::with([("p", format!("function report(lt) {make} {body} end").as_str())], &long);
            async move { bench.at(1.0).await.map(drop) }
        };
        run("for _ = 1, 50 do assert(#net.set(t) == 10000) end".to_owned()).await.unwrap();
        let Err(Failure::Error(text)) = run("kept = {}; for i = 1, 50 do kept[i] = net.set(t) end".to_owned()).await
        else {
            panic!()
        };
        assert!(text.contains("net.set: networks: the sets of this machine have more than 200000 networks"), "{text}");
    });
}

#[test]
fn file_that_is_missing_or_wrong_does_not_load() {
    let policy = "local x = 1\nlocal set = net.file('list.txt')\nfunction report(lt) end";
    let folder = Folder::with(&[("p/policy.lua", policy)]);
    assert!(
        folder.problem().starts_with("p/policy.lua:2: net.file: path: p/list.txt: No such file"),
        "{}",
        folder.problem()
    );
    folder.write("p/list.txt", "10.0.0.0/8\n\nnonsense\n");
    assert_eq!(
        folder.problem(),
        "p/policy.lua:2: net.file: path: p/list.txt:3: \"nonsense\" is no network, such as 192.0.2.0/24"
    );
    folder.write("p/list.txt", "10.0.0.0/8\n");
    folder.load().unwrap();
    let text = PolicySet::from_sources([("p", policy)]).check().unwrap_err().to_string();
    assert_eq!(text, "p/policy.lua:2: net.file: path: this policy has no folder; name an absolute path");
}
