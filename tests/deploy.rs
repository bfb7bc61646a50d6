//! What `deploy/` holds: the manifests are what Kubernetes takes and what the program serves, the image is built with the compiler of the
//! repository.
//!
//! The settings that two places must agree on (a grace period and a drain, a limit of memory and what it is for) are computed from the
//! configuration in force, so that neither can be changed alone.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use trackalert::config::Roles;

use support::program::{Site, free_address};
use support::wire;

/// Where the ConfigMaps say that things are, in a pod.
const SECRETS: &str = "/etc/trackalert-secrets/";
const POLICIES: &str = "/usr/share/trackalert/policies";
const DATA: &str = "/var/lib/trackalert";

/// What the clients of brokers hold for themselves, and the program without any load.
const BESIDES_MIB: f64 = 320.0;
/// For the reports whose machine failed.
const MACHINES_APART: f64 = 4.0;
/// What the regexes of User-Agents take, and more for each worker where somebody sends texts made for that: measured with uap-core 0.16.
const REGEXES_MIB: (f64, f64) = (30.0, 40.0);

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn kubernetes() -> PathBuf {
    repository().join("deploy/kubernetes")
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn folder(name: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(kubernetes().join(name)).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn documents(path: &Path) -> Vec<Value> {
    serde_saphyr::from_multiple(&text(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The objects of a folder, without what only kustomize reads.
fn objects(name: &str) -> Vec<Value> {
    let manifests = folder(name).into_iter().filter(|path| !path.ends_with("kustomization.yaml"));
    manifests.flat_map(|path| documents(&path)).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

fn container(set: &Value) -> &Value {
    let containers = set["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1, "{}", name(set));
    &containers[0]
}

fn roles(set: &Value) -> String {
    let args: Vec<&str> = container(set)["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    assert_eq!(args[..4], ["run", "-C", "/etc/trackalert/trackalert.toml", "--roles"]);
    args[4].to_owned()
}

/// The mode that the manifests give to files of a ConfigMap and a Secret.
const MODE: u32 = 0o440;

fn for_its_group(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(MODE)).unwrap();
}

/// A site with the configuration of a ConfigMap: the same text, with the places of a pod made places of the test.
fn site(broker: &str) -> Site {
    let objects = objects(broker);
    let config = of_kind(&objects, "ConfigMap")[0]["data"]["trackalert.toml"].as_str().unwrap().to_owned();
    let site = Site::new("");
    let secrets = site.folder.path().join("secrets/");
    std::fs::create_dir(&secrets).unwrap();
    for path in config.split('"').filter_map(|part| part.strip_prefix(SECRETS)) {
        let file = secrets.join(path);
        std::fs::write(&file, "a secret\n").unwrap();
        for_its_group(&file);
    }
    let config = config
        .replace(SECRETS, &format!("{}/", secrets.display()))
        .replace(POLICIES, &repository().join("policies").display().to_string())
        .replace(DATA, &site.folder.path().join("data").display().to_string());
    std::fs::write(site.config(), config).unwrap();
    for_its_group(&site.config());
    site
}

fn trackalert(site: &Site, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trackalert")).args(args).arg("-C").arg(site.config()).output().unwrap()
}

/// Every setting in force, by its key.
fn settings(site: &Site) -> BTreeMap<String, Value> {
    let output = trackalert(site, &["config", "--format", "json"]);
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    all.into_iter().map(|one| (one["key"].as_str().unwrap().to_owned(), one["value"].clone())).collect()
}

fn seconds(value: &Value) -> f64 {
    value.as_str().unwrap().parse::<humantime::Duration>().unwrap().as_secs_f64()
}

fn mib(value: &Value) -> f64 {
    let bytes = match value {
        Value::Number(bytes) => bytes.as_u64().unwrap(),
        // "2Gi" and "2 GiB" are the same to this library.
        text => text.as_str().unwrap().parse::<bytesize::ByteSize>().unwrap().as_u64(),
    };
    bytes as f64 / 1024.0 / 1024.0
}

#[test]
fn every_file_is_one_that_kustomize_takes_and_none_is_left_out() {
    for (name, bases) in [("base", vec![]), ("kafka", vec!["../base"]), ("amqp", vec!["../base"])] {
        let list = documents(&kubernetes().join(name).join("kustomization.yaml")).remove(0);
        let named: Vec<&str> = list["resources"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
        let files = folder(name).into_iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
        let mut expected: Vec<String> = bases.into_iter().map(str::to_owned).collect();
        expected.extend(files.filter(|file| file != "kustomization.yaml"));
        let mut named: Vec<String> = named.into_iter().map(str::to_owned).collect();
        named.sort();
        expected.sort();
        assert_eq!(named, expected, "{name}");
    }
}

#[test]
fn every_manifest_fits_the_schemas_of_the_oldest_and_the_newest_kubernetes() {
    let script = repository().join("tests/tools/kubernetes.sh");
    let installed = Command::new(&script).arg("install").output().unwrap();
    let said = String::from_utf8_lossy(&installed.stderr);
    if !installed.status.success() {
        assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true"), "no schemas to hold the manifests against: {said}");
        println!("skipped: no schemas to hold the manifests against: {said}");
        return;
    }
    let files: Vec<PathBuf> = ["base", "kafka", "amqp"].into_iter().flat_map(folder).collect();
    let files: Vec<PathBuf> = files.into_iter().filter(|path| !path.ends_with("kustomization.yaml")).collect();
    let check = |version: &str, files: &[PathBuf]| {
        let output = Command::new(&script).args(["check", version]).args(files).output().unwrap();
        (output.status.success(), format!("{output:?}"))
    };
    for version in ["1.25.0", "1.37.0"] {
        let (fits, said) = check(version, &files);
        assert!(fits, "{version}: {said}");
    }
    // The checker itself must see a field that no schema knows.
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.yaml");
    std::fs::write(&wrong, text(&files[0]).replace("terminationGracePeriodSeconds", "gracePeriod")).unwrap();
    let (fits, said) = check("1.37.0", &[wrong]);
    assert!(!fits && said.contains("gracePeriod"), "{said}");
}

#[test]
fn the_configurations_are_well_for_the_roles_that_run_with_them_and_hold_no_secret() {
    let base = objects("base");
    for broker in ["kafka", "amqp"] {
        let site = site(broker);
        for set in of_kind(&base, "StatefulSet") {
            let roles = roles(set);
            let output = trackalert(&site, &["check", "--format", "json", "--roles", &roles]);
            let found: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(found["ok"], true, "{broker}, {roles}: {found}");
            let findings = found["findings"].as_array().unwrap();
            // Each house has its own files of GeoIP, or none; the regexes of User-Agents are in the image, and here perhaps not.
            let elsewhere = ["geoip.files", "detect.device_regexes"];
            let others = findings.iter().filter(|finding| !elsewhere.iter().any(|key| finding["key"] == *key));
            assert_eq!(others.count(), 0, "{broker}, {roles}: {found}");
        }
        let settings = settings(&site);
        assert_eq!(settings["queue.kind"], broker);
        for (key, value) in settings.iter().filter(|(key, _)| key.ends_with("_file")) {
            // A file that is no secret, such as that of an authority, has no twin.
            let Some(twin) = settings.get(key.trim_end_matches("_file")) else { continue };
            let set = !value.as_str().unwrap_or_default().is_empty();
            let is_secret = twin.as_str().is_some_and(|text| !text.is_empty());
            assert!(set || !is_secret || key == "queue.amqp.url_file", "{broker}: {key}");
        }
        let config = text(&kubernetes().join(broker).join("config.yaml"));
        assert!(!config.contains("password ="), "a secret stands in the configuration of {broker}");
    }
    assert!(of_kind(&base, "Secret").is_empty(), "a secret that comes with the manifests is known to everybody");
}

#[test]
fn probes_ask_what_the_program_serves_on_the_port_that_it_listens_on_without_a_password() {
    let base = objects("base");
    let site = site("kafka");
    let listen = settings(&site)["http.listen"][0].as_str().unwrap().to_owned();
    for set in of_kind(&base, "StatefulSet") {
        let container = container(set);
        let port = &container["ports"][0];
        assert_eq!(listen, format!("0.0.0.0:{}", port["containerPort"]), "{}", name(set));
        let address = free_address();
        let mut command = Command::new(env!("CARGO_BIN_EXE_trackalert"));
        command.args(["run", "-C"]).arg(site.config()).args(["--roles", &roles(set)]);
        command.args(["--set", "queue.kind=embedded", "--set", &format!("http.listen={address}")]);
        let at = Site { folder: tempfile::tempdir().unwrap(), address };
        let program = at.start_command(command);
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            let get = &container[probe]["httpGet"];
            assert_eq!(get["port"], port["name"], "{probe}");
            let answer = wire::get(&program.address, get["path"].as_str().unwrap(), "");
            assert_eq!(answer.status, 200, "{probe} of {}: {answer:?}", name(set));
        }
        // And a password is asked for where the manifests say so.
        assert_eq!(wire::get(&program.address, "/metrics", "").status, 401);
        assert_eq!(program.terminate(), Some(0));
    }
}

#[test]
fn time_is_left_for_a_start_that_waits_for_the_broker_and_for_a_drain() {
    let base = objects("base");
    for broker in ["kafka", "amqp"] {
        let settings = settings(&site(broker));
        let drain = seconds(&settings["detect.drain_timeout"]);
        let start = seconds(&settings[&format!("queue.{broker}.start_timeout")]);
        for set in of_kind(&base, "StatefulSet") {
            let (pod, name) = (&set["spec"]["template"]["spec"], name(set));
            let container = container(set);
            let before_stop =
                container["lifecycle"]["preStop"]["exec"]["command"][1].as_str().map_or(0.0, |s| s.parse().unwrap());
            let grace = pod["terminationGracePeriodSeconds"].as_f64().unwrap();
            // What the last steps of a drain get where the earlier ones used up its time.
            assert!(grace >= drain + before_stop + 5.0, "{name}: {grace} s for a drain of {drain} s ({broker})");
            let probe = &container["startupProbe"];
            let patience = probe["periodSeconds"].as_f64().unwrap() * probe["failureThreshold"].as_f64().unwrap();
            assert!(
                patience > start + 30.0,
                "{name}: killed after {patience} s of a start that may take {start} s ({broker})"
            );
        }
    }
}

#[test]
fn memory_limits_hold_what_the_settings_let_in() {
    let base = objects("base");
    for broker in ["kafka", "amqp"] {
        let settings = settings(&site(broker));
        let size = |key: &str| mib(&settings[key]);
        let count = |key: &str| settings[key].as_f64().unwrap();
        assert!(count("detect.workers") > 0.0, "a pod sees all cores of its node");
        for set in of_kind(&base, "StatefulSet") {
            let mut needed = BESIDES_MIB + size("queue.embedded.cache");
            match roles(set).as_str() {
                "receive" => needed += size("http.max_bodies"),
                "detect,schedule" => {
                    needed += size("detect.unsettled_bytes") + size("history.writer_memory");
                    let machines = count("detect.workers") + MACHINES_APART;
                    needed +=
                        machines * size("policy.memory") + count("detect.workers") * REGEXES_MIB.1 + REGEXES_MIB.0;
                }
                "notify" => needed += count("notify.in_flight") * size("policy.max_alert"),
                other => panic!("what does {other} need?"),
            }
            let resources = &container(set)["resources"];
            let limit = mib(&resources["limits"]["memory"]);
            assert!(limit >= needed, "{}: {limit} MiB for {needed} MiB ({broker})", name(set));
            assert!(mib(&resources["requests"]["memory"]) <= limit);
            assert!(!resources["requests"]["cpu"].is_null());
        }
    }
}

#[test]
fn pods_run_without_any_right_and_write_to_their_volume_alone() {
    let base = objects("base");
    let sets = of_kind(&base, "StatefulSet");
    assert_eq!(sets.len(), 3);
    for set in sets {
        let pod = &set["spec"]["template"]["spec"];
        let security = &pod["securityContext"];
        assert_eq!(security["runAsNonRoot"], true);
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["automountServiceAccountToken"], false);
        let user = security["runAsUser"].as_u64().unwrap();
        let dockerfile = text(&repository().join("deploy/Dockerfile"));
        assert!(user > 0 && dockerfile.contains(&format!("\nUSER {user}:{user}\n")), "the user of the image");
        assert_eq!((&security["fsGroup"], &security["runAsGroup"]), (&Value::from(user), &Value::from(user)));

        let container = container(set);
        let security = &container["securityContext"];
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["runAsNonRoot"], true);
        assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));
        assert!(
            security["capabilities"]["add"].is_null() && container["env"].is_null() && container["envFrom"].is_null()
        );

        let mounts = container["volumeMounts"].as_array().unwrap();
        let writable: Vec<_> = mounts.iter().filter(|mount| mount["readOnly"] != true).collect();
        assert_eq!(writable.len(), 1, "{}", name(set));
        assert_eq!(writable[0]["mountPath"], DATA);
        let claims = set["spec"]["volumeClaimTemplates"].as_array().unwrap();
        assert_eq!(claims[0]["metadata"]["name"], writable[0]["name"]);
        let volumes = pod["volumes"].as_array().unwrap();
        let modes =
            volumes.iter().map(|volume| volume["secret"].get("defaultMode").or(volume["configMap"].get("defaultMode")));
        assert!(modes.eq([Some(&MODE.into()); 2]), "{}: not for everybody in the container", name(set));
    }
}

#[test]
fn each_role_is_run_by_one_set() {
    let base = objects("base");
    let sets: Vec<String> = of_kind(&base, "StatefulSet").into_iter().map(roles).collect();
    let mut run: Vec<&str> = sets.iter().flat_map(|roles| roles.split(',')).collect();
    let mut all = Roles::all().names();
    run.sort();
    all.sort();
    assert_eq!(run, all);
}

#[test]
fn each_set_has_a_service_and_a_disruption_budget_that_mean_its_pods_and_let_a_node_be_drained() {
    let base = objects("base");
    let services = of_kind(&base, "Service");
    let budgets = of_kind(&base, "PodDisruptionBudget");
    for set in of_kind(&base, "StatefulSet") {
        let labels = &set["spec"]["template"]["metadata"]["labels"];
        assert_eq!(&set["spec"]["selector"]["matchLabels"], labels);
        let mine: Vec<_> =
            budgets.iter().filter(|budget| budget["spec"]["selector"]["matchLabels"] == *labels).collect();
        assert_eq!(mine.len(), 1, "{}", name(set));
        assert_eq!(mine[0]["spec"]["maxUnavailable"], 1);
        let pods = services.iter().find(|service| set["spec"]["serviceName"] == name(service)).unwrap();
        assert_eq!(pods["spec"]["clusterIP"], "None");
        for service in services.iter().filter(|service| service["spec"]["selector"] == *labels) {
            assert_eq!(service["spec"]["ports"][0]["targetPort"], container(set)["ports"][0]["name"]);
        }
        // What a process remembers is its own in this release: a second one would miss half of it.
        let most = if roles(set) == "receive" { 2 } else { 1 };
        assert_eq!(set["spec"]["replicas"], most, "{}", name(set));
    }
    assert_eq!(budgets.len(), 3);
    assert!(
        base.iter().all(|object| object["metadata"]["namespace"].is_null()),
        "the namespace is whoever applies them's"
    );
}

#[test]
fn the_image_is_built_by_the_compiler_of_the_repository_from_files_that_are_let_in() {
    let dockerfile = text(&repository().join("deploy/Dockerfile"));
    let toolchain = text(&repository().join("rust-toolchain.toml"));
    let channel = toolchain.split("channel = \"").nth(1).unwrap().split('"').next().unwrap();
    assert!(
        dockerfile.contains(&format!("FROM rust:{channel}-")) && dockerfile.contains(&format!("TOOLCHAIN={channel}"))
    );
    // The regexes of User-Agents are where the program looks for them by itself.
    assert!(dockerfile.contains(" uap-core "));
    assert!(dockerfile.contains("--locked") && dockerfile.contains("ENTRYPOINT [\"trackalert\"]"));
    let ignored: Vec<String> = text(&repository().join(".dockerignore")).lines().map(str::to_owned).collect();
    for needed in [".cargo", "Cargo.toml", "Cargo.lock", "src", "config", "policies", "benches"] {
        assert!(!ignored.iter().any(|line| line == needed), "{needed} is kept out of the image's context");
    }
}
