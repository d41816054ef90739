//! No public signature names a type of a broker's client, but the documented native access.
//!
//! Reads the compiler's own description of the public API, which only a `RUSTC_BOOTSTRAP` build writes, and documents every
//! crate for it, so plain `cargo test` leaves it out; `scripts/test` runs it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Crates whose types may stand in public signatures.
const ALLOWED: &[&str] = &[
    "std",
    "core",
    "alloc", // the language
    "queue_core",
    "queue_amqp",
    "queue_kafka",
    "queue_sqs",
    "queue_worker", // this project
    "bytes",
    "tokio",
    "futures_core",
    "futures_sink",
    "futures_util", // the runtime and its types
    "serde_core",
    "serde",         // derived `Deserialize` of options
    "libtest_mimic", // the conformance suite
    "tower_layer",
    "tower_service", // handlers are services
    "prost",         // messages of Protobuf, with the feature `protobuf`
    "tracing",       // the span of the work on a message
    "opentelemetry", // contexts and meters, with the feature `otel`
];

/// Documented native access: function and foreign crate.
const NATIVE: &[(&str, &str)] = &[
    ("from_client", "aws_sdk_sqs"),
    ("from_clients", "aws_sdk_sqs"),
    ("from_clients", "aws_sdk_sns"),
    ("from_config", "aws_types"),
    ("open_channel", "lapin"),
];

#[test]
#[ignore = "documents every crate; run by scripts/test"]
fn public_signatures_name_no_type_of_a_client() {
    for package in ["queue-core", "queue-amqp", "queue-kafka", "queue-sqs", "queue-worker", "anyqueue"] {
        let api = describe(package);
        let mut foreign = BTreeSet::new();
        for item in api["index"].as_object().unwrap().values() {
            // Implementations that the compiler or another crate's blanket makes are nobody's promise.
            let implementation = &item["inner"]["impl"];
            if item["crate_id"] != 0
                || implementation["is_synthetic"] == true
                || !implementation["blanket_impl"].is_null()
            {
                continue;
            }
            let name = item["name"].as_str().unwrap_or_default();
            collect(&item["inner"], &api, &mut |crate_name| {
                if !ALLOWED.contains(&crate_name) && !NATIVE.contains(&(name, crate_name)) {
                    foreign.insert(format!("{package}: {name} names a type of {crate_name}"));
                }
            });
        }
        assert!(foreign.is_empty(), "{foreign:#?}");
    }
}

/// Has the dependencies from where `cargo doc` has them, and builds none of its own.
fn describe(package: &str) -> Value {
    let rustdoc = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lib/rustdoc");
    let json = ["--", "-Z", "unstable-options", "--output-format", "json"];
    cargo(
        Command::new(env!("CARGO"))
            .args(["rustdoc", "--locked", "--lib", "--all-features", "--package", package])
            .args(json)
            .env("RUSTDOC", rustdoc),
    );
    let metadata = cargo(Command::new(env!("CARGO")).args(["metadata", "--locked", "--no-deps", "--format-version=1"]));
    let metadata: Value = serde_json::from_slice(&metadata).unwrap();
    let target = Path::new(metadata["target_directory"].as_str().unwrap());
    let file = target.join("doc").join(format!("{}.json", package.replace('-', "_")));
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// What the command prints, when it succeeds.
fn cargo(command: &mut Command) -> Vec<u8> {
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Tells the crate of every type that is named below `value`.
fn collect(value: &Value, api: &Value, tell: &mut impl FnMut(&str)) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                if key == "resolved_path" || key == "trait" {
                    let path = &api["paths"][field["id"].to_string()];
                    if let Some(id) = path["crate_id"].as_u64().filter(|id| *id != 0) {
                        let external = &api["external_crates"][id.to_string()]["name"];
                        tell(external.as_str().unwrap_or("an unnamed crate"));
                    }
                }
                collect(field, api, tell);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, api, tell)),
        _ => {}
    }
}
