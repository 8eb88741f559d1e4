//! A module's bytes: what is taken out before it ships, and what must hold for what remains.
//!
//! Envoy reads neither DWARF nor the list of producers, and compiles a module on its main thread, so they go. The
//! `name` section stays: without it a crash in the field has no function names. Custom sections stand behind or
//! between the others without changing the code, so addresses from the field fit the copy that kept its DWARF.

use anyhow::{Context as _, Result};
use wasm_encoder::{Module, RawSection};
use wasmparser::{ExternalKind, Parser, Payload, Validator};

/// The module without the entry points that Envoy would call for nothing, and without what only they used. The SDK exports
/// one for every callback there is; each that stays is 0.7 µs for every request. Function names are written as people
/// read them: a third of the bytes, and a backtrace that fits a line.
///
/// # Errors
/// If the bytes are no WebAssembly module.
pub(crate) fn pruned(bytes: &[u8], used_exports: &[&str]) -> Result<Vec<u8>> {
    let mut config = walrus::ModuleConfig::new();
    config.generate_name_section(true).generate_dwarf(true).generate_producers_section(false);
    let mut module = config.parse(bytes).context("the compiler wrote no WebAssembly module")?;
    let unused: Vec<_> = module
        .exports
        .iter()
        .filter(|export| matches!(export.item, walrus::ExportItem::Function(_)))
        .filter(|export| !used_exports.contains(&export.name.as_str()))
        .map(walrus::Export::id)
        .collect();
    for export in unused {
        module.exports.delete(export);
    }
    walrus::passes::gc::run(&mut module);
    for function in module.funcs.iter_mut() {
        function.name = function.name.take().map(|name| readable(&name));
    }
    Ok(module.emit_wasm())
}

/// A symbol as people read it in a backtrace: of our own code the whole path without generics, of others'
/// the crate and the function. Names are a tenth of a module, and only ours tell where to look.
fn readable(symbol: &str) -> String {
    let full = format!("{:#}", rustc_demangle::demangle(symbol));
    // Of `<Type as Trait>::method` the type is what tells.
    let path = match full.strip_prefix('<').and_then(|rest| rest.split_once(" as ")) {
        Some((of, rest)) => {
            let method = rest.rsplit_once(">::").map_or("", |(_, method)| method);
            format!("{of}::{method}")
        }
        None => full,
    };
    let mut name = String::new();
    let mut depth = 0_u32;
    for char in path.chars() {
        match char {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            _ if depth == 0 => name.push(char),
            _ => {}
        }
    }
    let segments: Vec<&str> = name.split("::").filter(|segment| !segment.is_empty()).collect();
    match segments.as_slice() {
        [first, .., last] if !first.starts_with("sentinel_") => format!("{first}::{last}"),
        segments => segments.join("::").replacen("sentinel_", "", 1),
    }
}

/// The module without its custom sections, except for `name`.
///
/// # Errors
/// If the bytes are no WebAssembly module.
pub(crate) fn without_debug(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut shipped = Module::new();
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.context("the compiler wrote no WebAssembly module")?;
        if matches!(&payload, Payload::CustomSection(section) if section.name() != "name") {
            continue;
        }
        if let Some((id, range)) = payload.as_section() {
            let range = usize::try_from(range.start)?..usize::try_from(range.end)?;
            let data = bytes.get(range).context("a section ends behind the module")?;
            shipped.section(&RawSection { id, data });
        }
    }
    Ok(shipped.finish())
}

/// What is wrong with a module that is to run in Envoy, one sentence each; nothing if all is well. `private` are
/// paths of this machine that must not stand in it.
pub(crate) fn faults(bytes: &[u8], private: &[String]) -> Vec<String> {
    let mut faults = match Outline::of(bytes) {
        Ok(outline) => outline.faults(),
        Err(error) => vec![format!("it is not valid: {error:#}")],
    };
    for path in private {
        if !path.is_empty() && bytes.windows(path.len()).any(|window| window == path.as_bytes()) {
            faults.push(format!("it tells where it was built ({path}): remap that path"));
        }
    }
    faults
}

/// What is wrong with the size of a module that ships, one sentence; `None` if all is well.
pub(crate) fn too_large(bytes: &[u8], most: u64) -> Option<String> {
    let compiled = compiled_bytes(bytes);
    (compiled >= most).then(|| {
        format!(
            "it has {compiled} bytes besides the names, and Envoy's main thread stands still while it compiles: stay under {most}"
        )
    })
}

/// What a module asks for and offers.
#[derive(Debug, Default)]
struct Outline {
    /// Module and name of each function.
    imports: Vec<(String, String)>,
    exports: Vec<String>,
}

impl Outline {
    fn of(bytes: &[u8]) -> Result<Self> {
        Validator::new().validate_all(bytes)?;
        let mut outline = Self::default();
        for payload in Parser::new(0).parse_all(bytes) {
            #[expect(
                clippy::wildcard_enum_match_arm,
                reason = "of the dozens of sections two are read"
            )]
            match payload? {
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import?;
                        outline.imports.push((import.module.to_owned(), import.name.to_owned()));
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        let export = export?;
                        if matches!(export.kind, ExternalKind::Func | ExternalKind::Memory) {
                            outline.exports.push(export.name.to_owned());
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(outline)
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (module, name) in &self.imports {
            let is_offered = match module.as_str() {
                "env" => {
                    name.strip_prefix("proxy_").is_some_and(|call| PROXY_CALLS.contains(&call))
                }
                "wasi_snapshot_preview1" => WASI_CALLS.contains(&name.as_str()),
                _ => false,
            };
            if !is_offered {
                faults.push(format!("it imports {module}.{name}, which Envoy does not offer"));
            }
        }
        for one_of in NEEDED_EXPORTS {
            if !one_of.iter().any(|name| self.exports_name(name)) {
                faults
                    .push(format!("it does not export {}, which Envoy calls", one_of.join(" or ")));
            }
        }
        if self.exports_name(STATS_UPDATE) {
            faults.push(format!(
                "it exports {STATS_UPDATE}, for which Envoy doubles a buffer with every gauge until it crashes"
            ));
        }
        faults
    }

    fn exports_name(&self, name: &str) -> bool {
        self.exports.iter().any(|export| export == name)
    }
}

/// What Envoy compiles: it takes the custom sections out before.
pub(crate) fn compiled_bytes(bytes: &[u8]) -> u64 {
    let payloads = Parser::new(0).parse_all(bytes).filter_map(Result::ok);
    payloads
        .filter(|payload| !matches!(payload, Payload::CustomSection(_)))
        .filter_map(|payload| payload.as_section())
        .map(|(_, range)| range.end.saturating_sub(range.start))
        .sum()
}

/// 300 KB: Envoy compiles about 1.6 KB a millisecond.
pub(crate) const BYTES_MAX: u64 = 300 << 10;
const STATS_UPDATE: &str = "envoy_on_stats_update";

/// Of each line one is enough.
const NEEDED_EXPORTS: [&[&str]; 4] = [
    &["memory"],
    &["proxy_abi_version_0_2_1"],
    &["_initialize", "_start"],
    &["proxy_on_memory_allocate", "malloc"],
];

/// Proxy-Wasm 0.2.1 as Envoy 1.36 to 1.40 offer it.
const PROXY_CALLS: [&str; 39] = [
    "add_header_map_value",
    "call_foreign_function",
    "close_stream",
    "continue_stream",
    "define_metric",
    "dequeue_shared_queue",
    "done",
    "enqueue_shared_queue",
    "get_buffer_bytes",
    "get_buffer_status",
    "get_current_time_nanoseconds",
    "get_header_map_pairs",
    "get_header_map_size",
    "get_header_map_value",
    "get_log_level",
    "get_metric",
    "get_property",
    "get_shared_data",
    "get_status",
    "grpc_call",
    "grpc_cancel",
    "grpc_close",
    "grpc_send",
    "grpc_stream",
    "http_call",
    "increment_metric",
    "log",
    "record_metric",
    "register_shared_queue",
    "remove_header_map_value",
    "replace_header_map_value",
    "resolve_shared_queue",
    "send_local_response",
    "set_buffer_bytes",
    "set_effective_context",
    "set_header_map_pairs",
    "set_property",
    "set_shared_data",
    "set_tick_period_milliseconds",
];

const WASI_CALLS: [&str; 6] =
    ["clock_time_get", "environ_get", "environ_sizes_get", "fd_write", "proc_exit", "random_get"];

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use wasm_encoder::{
        CodeSection, CustomSection, EntityType, ExportKind, ExportSection, Function,
        FunctionSection, ImportSection, MemorySection, MemoryType, TypeSection,
    };

    use super::*;

    #[test]
    fn what_envoy_needs_and_offers_has_no_fault() {
        let module = module(
            &[("env", "proxy_log"), ("wasi_snapshot_preview1", "clock_time_get")],
            &GOOD_EXPORTS,
        );
        assert_eq!(faults(&module, &[]), NONE);
    }

    #[test]
    fn an_import_that_envoy_does_not_offer_is_named() {
        let imports = [
            ("env", "proxy_fly"),
            ("env", "log"),
            ("wasi_snapshot_preview1", "fd_read"),
            ("wbg", "proxy_log"),
        ];
        assert_eq!(
            faults(&module(&imports, &GOOD_EXPORTS), &[]),
            [
                "it imports env.proxy_fly, which Envoy does not offer",
                "it imports env.log, which Envoy does not offer",
                "it imports wasi_snapshot_preview1.fd_read, which Envoy does not offer",
                "it imports wbg.proxy_log, which Envoy does not offer",
            ]
        );
    }

    #[test]
    fn an_export_that_is_missing_or_dangerous_is_named() {
        assert_eq!(
            faults(
                &module(&[], &["proxy_abi_version_0_2_1", "_initialize", "envoy_on_stats_update"]),
                &[]
            ),
            [
                "it does not export proxy_on_memory_allocate or malloc, which Envoy calls",
                "it exports envoy_on_stats_update, for which Envoy doubles a buffer with every gauge until it crashes",
            ]
        );
    }

    #[test]
    fn a_path_of_the_machine_that_built_it_is_found() {
        let mut module = module(&[], &GOOD_EXPORTS);
        custom(&mut module, "name-like", b"built in /there/crates/filter");
        assert_eq!(
            faults(&module, &["/there/crates".to_owned(), String::new(), "/elsewhere".to_owned()]),
            ["it tells where it was built (/there/crates): remap that path"]
        );
    }

    #[test]
    fn a_module_is_refused_for_too_much_code_and_not_for_its_names() {
        let mut named = module(&[], &GOOD_EXPORTS);
        custom(&mut named, "name", &vec![0; 300 << 10]);
        assert_eq!(too_large(&named, BYTES_MAX), None);

        let mut large = module(&[], &GOOD_EXPORTS);
        let data = vec![0; 300 << 10];
        let mut segments = wasm_encoder::DataSection::new();
        segments.passive(data);
        let mut alone = Module::new();
        alone.section(&segments);
        large.extend_from_slice(alone.finish().get(8..).unwrap());
        assert!(too_large(&large, BYTES_MAX).unwrap().contains("stay under 307200"));
    }

    #[track_caller]
    fn check_name(symbol: &str, name: &str) {
        assert_eq!(readable(symbol), name);
    }

    #[test]
    fn names_are_as_people_read_them() {
        check_name(
            "_ZN15sentinel_engine6worker6Worker7take_up17hd0ff048d6db6f8fdE",
            "engine::worker::Worker::take_up",
        );
        check_name(
            "_ZN85_$LT$sentinel_filter..root..FilterRoot$u20$as$u20$proxy_wasm..traits..RootContext$GT$12on_configure17h2b331d413fea1f13E",
            "filter::root::FilterRoot::on_configure",
        );
        check_name(
            "_ZN13saphyr_parser6parser15Parser$LT$T$GT$10peek_token17h1b932192583a4f88E",
            "saphyr_parser::peek_token",
        );
        check_name("proxy_on_tick", "proxy_on_tick");
    }

    #[test]
    fn bytes_that_are_no_module_are_said_to_be_none() {
        assert!(faults(b"#!/bin/sh", &[]).concat().starts_with("it is not valid: "));
        assert!(without_debug(b"#!/bin/sh").is_err());
    }

    #[test]
    fn of_the_custom_sections_only_the_names_ship() {
        let bare = module(&[("env", "proxy_log")], &GOOD_EXPORTS);
        let mut named = bare.clone();
        custom(&mut named, "name", &[]);
        let mut full = bare;
        custom(&mut full, ".debug_info", b"DWARF");
        custom(&mut full, "name", &[]);
        custom(&mut full, "producers", &[0]);

        assert_eq!(without_debug(&full).unwrap(), named);
        assert_eq!(without_debug(&named).unwrap(), named);
    }

    fn module(imports: &[(&str, &str)], exports: &[&str]) -> Vec<u8> {
        let mut types = TypeSection::new();
        types.ty().function([], []);
        let mut imported = ImportSection::new();
        for (module, name) in imports {
            imported.import(module, name, EntityType::Function(0));
        }
        let mut functions = FunctionSection::new();
        functions.function(0);
        let mut memories = MemorySection::new();
        memories.memory(MemoryType {
            minimum: 1,
            maximum: None,
            memory64: false,
            shared: false,
            page_size_log2: None,
        });
        let mut exported = ExportSection::new();
        exported.export("memory", ExportKind::Memory, 0);
        for name in exports {
            exported.export(name, ExportKind::Func, u32::try_from(imports.len()).unwrap());
        }
        let mut code = CodeSection::new();
        let mut body = Function::new([]);
        body.instructions().end();
        code.function(&body);
        let mut module = Module::new();
        module
            .section(&types)
            .section(&imported)
            .section(&functions)
            .section(&memories)
            .section(&exported);
        module.section(&code);
        module.finish()
    }

    fn custom(module: &mut Vec<u8>, name: &str, data: &[u8]) {
        let section = CustomSection { name: Cow::Borrowed(name), data: Cow::Borrowed(data) };
        let mut alone = Module::new();
        alone.section(&section);
        module.extend_from_slice(alone.finish().get(8..).unwrap());
    }

    const GOOD_EXPORTS: [&str; 3] =
        ["proxy_abi_version_0_2_1", "_initialize", "proxy_on_memory_allocate"];
    const NONE: [&str; 0] = [];
}
