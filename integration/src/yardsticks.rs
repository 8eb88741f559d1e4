//! What a filter costs at least: some written by hand, without an SDK.
//!
//! One has two callbacks and does nothing in either, so that what it costs is Envoy's own price of a Wasm filter that sees
//! where a request begins and where it ends. The others have the callbacks of ours and make the calls that it makes for a
//! request of some kind, and do nothing else: no code of ours, however good, costs less than that. A last yardstick, a
//! filter that does nothing on the stock SDK, is the crate in `integration/stock_filter`.

use wasm_encoder::{
    CodeSection, ConstExpr, DataSection, EntityType, ExportKind, ExportSection, Function,
    FunctionSection, ImportSection, InstructionSink, MemorySection, MemoryType, Module,
    TypeSection, ValType,
};

/// Two callbacks, nothing else.
pub(crate) fn two_callbacks() -> Vec<u8> {
    module(&[], &[ABI, MALLOC, LOG, Exported { body: |_| (), ..REQUEST_HEADERS }])
}

/// Two callbacks that read the headers, once, and the clock, as whoever counts requests in a window must.
pub(crate) fn least_calls() -> Vec<u8> {
    let headers = Exported {
        body: |code| {
            ask_the_time(code);
            read_headers(code);
        },
        ..REQUEST_HEADERS
    };
    module(&IMPORTS, &[ABI, MALLOC, headers, Exported { body: ask_the_time, ..LOG }])
}

/// The callbacks of ours, and its calls for a request that a flow rule admits out of what is in hand.
pub(crate) fn calls_of_a_flow_rule() -> Vec<u8> {
    same_calls(REQUEST_HEADERS, Exported { body: ask_the_time, ..LOG })
}

/// The same with a hot parameter, whose ledger is read and written, and a breaker that wants to know the status.
pub(crate) fn calls_of_three_rules() -> Vec<u8> {
    let headers = Exported {
        body: |code| {
            (REQUEST_HEADERS.body)(code);
            push_text(code, KEY);
            code.i32_const(VALUE_AT).i32_const(SIZE_AT).i32_const(CAS_AT);
            code.call(GET_SHARED_DATA).drop();
            push_text(code, KEY);
            push_text(code, LEDGER);
            // Whatever stands there: nobody else writes it.
            code.i32_const(0).call(SET_SHARED_DATA).drop();
        },
        ..REQUEST_HEADERS
    };
    let log = Exported {
        body: |code| {
            ask_the_time(code);
            code.i32_const(RESPONSE);
            push_text(code, STATUS);
            code.i32_const(VALUE_AT).i32_const(SIZE_AT).call(GET_HEADER).drop();
        },
        ..LOG
    };
    same_calls(headers, log)
}

/// The callbacks of ours, and its calls for a request that it refuses: with a word for the access log, headers and a body.
pub(crate) fn calls_of_a_refusal() -> Vec<u8> {
    let headers = Exported {
        // It goes nowhere.
        answer: Some(1),
        body: |code| {
            ask_the_time(code);
            read_headers(code);
            push_text(code, NAME);
            push_text(code, WORD);
            code.call(SET_PROPERTY).drop();
            code.i32_const(429);
            push_text(code, DETAILS);
            push_text(code, BODY);
            push_text(code, HEADERS);
            code.i32_const(8).call(SEND_LOCAL_RESPONSE).drop();
        },
        ..REQUEST_HEADERS
    };
    same_calls(headers, LOG)
}

fn same_calls(headers: Exported, log: Exported) -> Vec<u8> {
    let create = Exported { name: "proxy_on_context_create", parameters: 2, ..ABI };
    let delete = Exported { name: "proxy_on_delete", parameters: 1, ..ABI };
    module(&IMPORTS, &[ABI, MALLOC, create, headers, log, delete])
}

/// A function that Envoy has.
struct Imported {
    module: &'static str,
    name: &'static str,
    parameters: &'static [ValType],
}

const IMPORTS: [Imported; 8] = [
    Imported {
        module: "wasi_snapshot_preview1",
        name: "clock_time_get",
        parameters: &[ValType::I32, ValType::I64, ValType::I32],
    },
    Imported { name: "proxy_get_header_map_pairs", parameters: &[ValType::I32; 3], ..ENV },
    Imported { name: "proxy_set_effective_context", parameters: &[ValType::I32], ..ENV },
    Imported { name: "proxy_get_shared_data", parameters: &[ValType::I32; 5], ..ENV },
    Imported { name: "proxy_set_shared_data", parameters: &[ValType::I32; 5], ..ENV },
    Imported { name: "proxy_get_header_map_value", parameters: &[ValType::I32; 5], ..ENV },
    Imported { name: "proxy_set_property", parameters: &[ValType::I32; 4], ..ENV },
    Imported { name: "proxy_send_local_response", parameters: &[ValType::I32; 8], ..ENV },
];
const ENV: Imported = Imported { module: "env", name: "", parameters: &[] };
const CLOCK: u32 = 0;
const GET_HEADERS: u32 = 1;
const SET_EFFECTIVE_CONTEXT: u32 = 2;
const GET_SHARED_DATA: u32 = 3;
const SET_SHARED_DATA: u32 = 4;
const GET_HEADER: u32 = 5;
const SET_PROPERTY: u32 = 6;
const SEND_LOCAL_RESPONSE: u32 = 7;

/// Proxy-wasm's number of the response headers.
const RESPONSE: i32 = 2;

/// Where Envoy writes what calls return, and where it puts bytes. Nobody reads either.
const VALUE_AT: i32 = 8;
const SIZE_AT: i32 = 12;
const CAS_AT: i32 = 16;
const TIME_AT: i32 = 24;
const BYTES_AT: i32 = 4096;

/// Texts that calls are given, one behind the other from [`TEXTS_AT`] on: as long as ours would have them.
const TEXTS: [&[u8]; 8] = [
    b"sentinel/t/0",
    &[7; 64],
    b":status",
    b"sentinel",
    br#"{"resource":"GET:/refused","blockType":"FlowControl","rule":"refused"}"#,
    b"sentinel_FlowControl_refused",
    br#"{"code":429,"message":"Blocked by Sentinel: FlowControl"}"#,
    b"\x02\0\0\0\x0c\0\0\0\x10\0\0\0\x0b\0\0\0\x01\0\0\0content-type\0application/json\0retry-after\x001\0",
];
const KEY: usize = 0;
const LEDGER: usize = 1;
const STATUS: usize = 2;
const NAME: usize = 3;
const WORD: usize = 4;
const DETAILS: usize = 5;
const BODY: usize = 6;
const HEADERS: usize = 7;
const TEXTS_AT: i32 = 256;

/// Where a text stands, and how long it is: two arguments.
fn push_text(code: &mut InstructionSink<'_>, text: usize) {
    let length = |text: &&[u8]| i32::try_from(text.len()).unwrap_or(0);
    let before: i32 = TEXTS.iter().take(text).map(length).sum();
    code.i32_const(TEXTS_AT + before).i32_const(TEXTS.get(text).map_or(0, length));
}

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
const MALLOC: Exported =
    Exported { name: "malloc", parameters: 1, answer: Some(BYTES_AT), body: |_| () };
const LOG: Exported = Exported { name: "proxy_on_log", parameters: 1, ..ABI };
const REQUEST_HEADERS: Exported = Exported {
    name: "proxy_on_request_headers",
    parameters: 3,
    // The request goes on to the next filter.
    answer: Some(0),
    body: |code| {
        ask_the_time(code);
        read_headers(code);
        // There is no such context: the one that speaks stays the same.
        code.local_get(0).i32_const(1).i32_add().call(SET_EFFECTIVE_CONTEXT).drop();
    },
};

fn ask_the_time(code: &mut InstructionSink<'_>) {
    code.i32_const(1).i64_const(1).i32_const(TIME_AT).call(CLOCK).drop();
}

fn read_headers(code: &mut InstructionSink<'_>) {
    code.i32_const(0).i32_const(VALUE_AT).i32_const(SIZE_AT).call(GET_HEADERS).drop();
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
    let mut data = DataSection::new();
    data.active(0, &ConstExpr::i32_const(TEXTS_AT), TEXTS.concat());
    let mut module = Module::new();
    module.section(&types).section(&imports).section(&functions).section(&memories);
    module.section(&exports).section(&code).section(&data);
    module.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_a_small_module() {
        let of_ours = [calls_of_a_flow_rule(), calls_of_three_rules(), calls_of_a_refusal()];
        for bytes in of_ours.into_iter().chain([two_callbacks(), least_calls()]) {
            wasmparser::validate(&bytes).unwrap();
            assert!(bytes.len() < 1_500, "{} bytes", bytes.len());
        }
    }
}
