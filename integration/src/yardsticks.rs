//! What a filter costs at least: one written by hand that has two callbacks and does nothing in either.
//!
//! It has no SDK, keeps no context of a request and calls nothing, so that what it costs is Envoy's own price of a Wasm
//! filter that sees where a request begins and where it ends. The other yardstick, a filter that does nothing on the
//! stock SDK, is the crate in `integration/stock_filter`.

use wasm_encoder::{
    CodeSection, ExportKind, ExportSection, Function, FunctionSection, MemorySection, MemoryType,
    Module, TypeSection, ValType,
};

/// The module.
pub(crate) fn two_callbacks() -> Vec<u8> {
    let mut types = TypeSection::new();
    let mut functions = FunctionSection::new();
    let mut exports = ExportSection::new();
    let mut code = CodeSection::new();
    for (index, Exported { name, parameters, answer }) in (0..).zip(&EXPORTS) {
        let results: &[ValType] = if answer.is_some() { &[ValType::I32] } else { &[] };
        types.ty().function(vec![ValType::I32; *parameters], results.iter().copied());
        functions.function(index);
        exports.export(name, ExportKind::Func, index);
        let mut body = Function::new([]);
        if let Some(answer) = answer {
            body.instructions().i32_const(*answer);
        }
        body.instructions().end();
        code.function(&body);
    }
    let mut memories = MemorySection::new();
    memories.memory(MemoryType {
        minimum: 1,
        maximum: None,
        memory64: false,
        shared: false,
        page_size_log2: None,
    });
    exports.export("memory", ExportKind::Memory, 0);
    let mut module = Module::new();
    module.section(&types).section(&functions).section(&memories).section(&exports).section(&code);
    module.finish()
}

/// A function that Envoy looks for, and what it always answers.
struct Exported {
    name: &'static str,
    parameters: usize,
    answer: Option<i32>,
}

const EXPORTS: [Exported; 4] = [
    Exported { name: "proxy_abi_version_0_2_1", parameters: 0, answer: None },
    // Nothing is ever written there, since nothing is ever asked for.
    Exported { name: "malloc", parameters: 1, answer: Some(1024) },
    Exported { name: "proxy_on_request_headers", parameters: 3, answer: Some(CONTINUE) },
    Exported { name: "proxy_on_log", parameters: 1, answer: None },
];
/// The request goes on to the next filter.
const CONTINUE: i32 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_module_of_a_few_hundred_bytes() {
        let bytes = two_callbacks();
        wasmparser::validate(&bytes).unwrap();
        assert!(bytes.len() < 400, "{} bytes", bytes.len());
    }
}
