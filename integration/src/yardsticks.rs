//! What a filter costs at least: two written by hand, without an SDK.
//!
//! One has two callbacks and does nothing in either, so that what it costs is Envoy's own price of a Wasm filter that sees
//! where a request begins and where it ends. The other makes the calls that ours makes for a request which one flow rule
//! admits out of what it has in hand, and nothing else: no code of ours, however good, costs less than that. A third
//! yardstick, a filter that does nothing on the stock SDK, is the crate in `integration/stock_filter`.

use wasm_encoder::{
    CodeSection, EntityType, ExportKind, ExportSection, Function, FunctionSection, ImportSection,
    InstructionSink, MemorySection, MemoryType, Module, TypeSection, ValType,
};

/// Two callbacks, nothing else.
pub(crate) fn two_callbacks() -> Vec<u8> {
    module(&[], &[ABI, MALLOC, LOG, Exported { body: |_| (), ..REQUEST_HEADERS }])
}

/// The callbacks of ours, and its calls.
pub(crate) fn same_calls() -> Vec<u8> {
    module(
        &IMPORTS,
        &[
            ABI,
            MALLOC,
            Exported { name: "proxy_on_context_create", parameters: 2, ..ABI },
            REQUEST_HEADERS,
            Exported { body: ask_the_time, ..LOG },
            Exported { name: "proxy_on_delete", parameters: 1, ..ABI },
        ],
    )
}

/// A function that Envoy has.
struct Imported {
    module: &'static str,
    name: &'static str,
    parameters: &'static [ValType],
}

const IMPORTS: [Imported; 3] = [
    Imported {
        module: "wasi_snapshot_preview1",
        name: "clock_time_get",
        parameters: &[ValType::I32, ValType::I64, ValType::I32],
    },
    Imported {
        module: "env",
        name: "proxy_get_header_map_pairs",
        parameters: &[ValType::I32, ValType::I32, ValType::I32],
    },
    Imported { module: "env", name: "proxy_set_effective_context", parameters: &[ValType::I32] },
];

/// A function that Envoy looks for.
#[derive(Clone, Copy)]
struct Exported {
    name: &'static str,
    parameters: usize,
    /// What it always answers, if anything, after its body.
    answer: Option<i32>,
    body: fn(&mut InstructionSink<'_>),
}

const ABI: Exported =
    Exported { name: "proxy_abi_version_0_2_1", parameters: 0, answer: None, body: |_| () };
/// There is one thing at a time that Envoy returns as bytes, and nobody reads it.
const MALLOC: Exported =
    Exported { name: "malloc", parameters: 1, answer: Some(1024), body: |_| () };
const LOG: Exported = Exported { name: "proxy_on_log", parameters: 1, ..ABI };
const REQUEST_HEADERS: Exported = Exported {
    name: "proxy_on_request_headers",
    parameters: 3,
    // The request goes on to the next filter.
    answer: Some(0),
    body: |code| {
        ask_the_time(code);
        code.i32_const(0).i32_const(8).i32_const(12).call(1).drop();
        // There is no such context: the one that speaks stays the same.
        code.local_get(0).i32_const(1).i32_add().call(2).drop();
    },
};

fn ask_the_time(code: &mut InstructionSink<'_>) {
    code.i32_const(1).i64_const(1).i32_const(16).call(0).drop();
}

fn module(imported: &[Imported], exported: &[Exported]) -> Vec<u8> {
    let mut types = TypeSection::new();
    let mut imports = ImportSection::new();
    let mut functions = FunctionSection::new();
    let mut exports = ExportSection::new();
    let mut code = CodeSection::new();
    for (index, Imported { module, name, parameters }) in (0..).zip(imported) {
        types.ty().function(parameters.iter().copied(), [ValType::I32]);
        imports.import(module, name, EntityType::Function(index));
    }
    let first = types.len();
    for (index, Exported { name, parameters, answer, body }) in (first..).zip(exported) {
        types.ty().function(vec![ValType::I32; *parameters], answer.map(|_| ValType::I32));
        functions.function(index);
        exports.export(name, ExportKind::Func, index);
        let mut function = Function::new([]);
        body(&mut function.instructions());
        if let Some(answer) = answer {
            function.instructions().i32_const(*answer);
        }
        function.instructions().end();
        code.function(&function);
    }
    let mut memories = MemorySection::new();
    memories.memory(MemoryType {
        minimum: 2,
        maximum: None,
        memory64: false,
        shared: false,
        page_size_log2: None,
    });
    exports.export("memory", ExportKind::Memory, 0);
    let mut module = Module::new();
    module.section(&types).section(&imports).section(&functions).section(&memories);
    module.section(&exports).section(&code);
    module.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_a_module_of_a_few_hundred_bytes() {
        for bytes in [two_callbacks(), same_calls()] {
            wasmparser::validate(&bytes).unwrap();
            assert!(bytes.len() < 600, "{} bytes", bytes.len());
        }
    }
}
