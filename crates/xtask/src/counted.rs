//! A module that counts its own instructions.
//!
//! The interpreter's fuel does not tell: it is charged when a block is entered, so that a way that leaves early costs as much as
//! the longest one. Here each run of instructions that nothing branches into or out of adds its length to a global when it
//! is entered.

use anyhow::Result;
use walrus::{
    ConstExpr, ElementItems, ExportItem, FunctionBuilder, FunctionId, FunctionKind, GlobalId,
    LocalFunction, Module, ModuleConfig, ValType,
    ir::{BinaryOp, Instr, InstrLocId, InstrSeqId, Value, VisitorMut, dfs_pre_order_mut},
};

/// The exported globals, by which the host of `crates/fuzz` knows such a module: the number of instructions so far, and of those
/// that copy or fill memory.
const INSTRUCTIONS: &str = "counted:instructions";
const COPIES: &str = "counted:copies";

/// Functions of that host, which a profiled module tells where it is.
const ENTER: (&str, &str) = ("counted", "enter");
const LEAVE: (&str, &str) = ("counted", "leave");

/// A module that counts.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) bytes: Vec<u8>,
    /// By number, what functions are called; empty if it tells nobody where it is.
    pub(crate) functions: Vec<String>,
}

/// Lets a module count; `is_profiled`: and tell the host of each call, too.
///
/// # Errors
/// If it is no module.
pub(crate) fn counted(bytes: &[u8], is_profiled: bool) -> Result<Counted> {
    let mut config = ModuleConfig::new();
    config.generate_producers_section(false);
    let mut module = config.parse(bytes)?;
    let counters = [INSTRUCTIONS, COPIES].map(|name| {
        let zero = ConstExpr::Value(Value::I64(0));
        let counter = module.globals.add_local(ValType::I64, true, false, zero);
        module.exports.add(name, counter);
        counter
    });
    for (_, function) in module.funcs.iter_local_mut() {
        let mut sequences = Sequences::default();
        let entry = function.entry_block();
        dfs_pre_order_mut(&mut sequences, function, entry);
        for sequence in sequences.all {
            count_sequence(function, sequence, counters);
        }
    }
    let functions = if is_profiled { tell_calls(&mut module) } else { Vec::new() };
    Ok(Counted { bytes: module.emit_wasm(), functions })
}

#[derive(Default)]
struct Sequences {
    all: Vec<InstrSeqId>,
}

impl VisitorMut for Sequences {
    fn start_instr_seq_mut(&mut self, sequence: &mut walrus::ir::InstrSeq) {
        self.all.push(sequence.id());
    }
}

/// One run of instructions.
#[derive(Default)]
struct Run {
    instrs: Vec<(Instr, InstrLocId)>,
    /// As [`counted`]'s counters.
    counts: [i64; 2],
}

fn count_sequence(function: &mut LocalFunction, sequence: InstrSeqId, counters: [GlobalId; 2]) {
    let instrs = core::mem::take(&mut function.block_mut(sequence).instrs);
    let mut written = Vec::with_capacity(instrs.len() * 2);
    let mut run = Run::default();
    for (instr, place) in instrs {
        // A block only says where a branch goes to.
        run.counts[0] += i64::from(!matches!(instr, Instr::Block(_) | Instr::Loop(_)));
        run.counts[1] += i64::from(matches!(instr, Instr::MemoryCopy(_) | Instr::MemoryFill(_)));
        let ends = matches!(
            instr,
            Instr::Block(_)
                | Instr::Loop(_)
                | Instr::IfElse(_)
                | Instr::Br(_)
                | Instr::BrIf(_)
                | Instr::BrTable(_)
                | Instr::Return(_)
                | Instr::Unreachable(_)
        );
        run.instrs.push((instr, place));
        if ends {
            core::mem::take(&mut run).write(&mut written, counters);
        }
    }
    run.write(&mut written, counters);
    function.block_mut(sequence).instrs = written;
}

impl Run {
    fn write(self, written: &mut Vec<(Instr, InstrLocId)>, counters: [GlobalId; 2]) {
        for (count, global) in self.counts.into_iter().zip(counters) {
            if count > 0 {
                let add = [
                    Instr::from(walrus::ir::GlobalGet { global }),
                    Instr::from(walrus::ir::Const { value: Value::I64(count) }),
                    Instr::from(walrus::ir::Binop { op: BinaryOp::I64Add }),
                    Instr::from(walrus::ir::GlobalSet { global }),
                ];
                written.extend(add.map(|instr| (instr, InstrLocId::default())));
            }
        }
        written.extend(self.instrs);
    }
}

/// Puts another function before each, which tells the host its number, calls it, and tells that it has ended.
fn tell_calls(module: &mut Module) -> Vec<String> {
    let of_enter = module.types.add(&[ValType::I32], &[]);
    let of_leave = module.types.add(&[], &[]);
    let (enter, _) = module.add_import_func(ENTER.0, ENTER.1, of_enter);
    let (leave, _) = module.add_import_func(LEAVE.0, LEAVE.1, of_leave);
    let locals: Vec<(FunctionId, String)> = module
        .funcs
        .iter()
        .filter(|function| matches!(function.kind, FunctionKind::Local(_)))
        .map(|function| (function.id(), function.name.clone().unwrap_or_default()))
        .collect();
    let mut before: Vec<(FunctionId, FunctionId)> = Vec::new();
    for (number, (function, _)) in (0..).zip(&locals) {
        let of = module.funcs.get(*function).ty();
        let (params, results) = module.types.params_results(of);
        let (params, results) = (params.to_vec(), results.to_vec());
        let arguments: Vec<_> = params.iter().map(|of| module.locals.add(*of)).collect();
        let mut builder = FunctionBuilder::new(&mut module.types, &params, &results);
        let mut body = builder.func_body();
        body.i32_const(number).call(enter);
        for argument in &arguments {
            body.local_get(*argument);
        }
        body.call(*function).call(leave);
        before.push((*function, builder.finish(arguments, &mut module.funcs)));
    }
    let mut others = Others { before: &before };
    for (function, _) in &locals {
        let local = module.funcs.get_mut(*function).kind.unwrap_local_mut();
        let entry = local.entry_block();
        dfs_pre_order_mut(&mut others, local, entry);
    }
    for element in module.elements.iter_mut() {
        if let ElementItems::Functions(functions) = &mut element.items {
            functions.iter_mut().for_each(|function| others.visit_function_id_mut(function));
        }
    }
    for export in module.exports.iter_mut() {
        if let ExportItem::Function(function) = &mut export.item {
            others.visit_function_id_mut(function);
        }
    }
    locals.into_iter().map(|(_, name)| name).collect()
}

struct Others<'a> {
    /// In the order of the functions.
    before: &'a [(FunctionId, FunctionId)],
}

impl VisitorMut for Others<'_> {
    fn visit_function_id_mut(&mut self, function: &mut FunctionId) {
        if let Ok(place) = self.before.binary_search_by_key(function, |(of, _)| *of)
            && let Some((_, other)) = self.before.get(place)
        {
            *function = *other;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many instructions `f` has run, called with `argument`; in one block that is left early where it is 0.
    fn instructions(argument: i32, is_profiled: bool) -> (i64, i64) {
        let module = module_of_a_block();
        let counted = counted(&module, is_profiled).unwrap();
        let engine = wasmi::Engine::default();
        let module = wasmi::Module::new(&engine, &counted.bytes).unwrap();
        let mut store = wasmi::Store::new(&engine, ());
        let mut linker = wasmi::Linker::new(&engine);
        linker.func_wrap(ENTER.0, ENTER.1, |_: u32| {}).unwrap();
        linker.func_wrap(LEAVE.0, LEAVE.1, || {}).unwrap();
        let instance = linker.instantiate_and_start(&mut store, &module).unwrap();
        let function = instance.get_typed_func::<i32, ()>(&store, "f").unwrap();
        function.call(&mut store, argument).unwrap();
        let count = |name| instance.get_global(&store, name).unwrap().get(&store).i64().unwrap();
        (count(INSTRUCTIONS), count(COPIES))
    }

    /// `block; local.get 0; i32.eqz; br_if 0; 0, 0, 0; memory.fill; end`
    fn module_of_a_block() -> Vec<u8> {
        let mut module = Module::default();
        let memory = module.memories.add_local(false, false, 1, None, None);
        let mut builder = FunctionBuilder::new(&mut module.types, &[ValType::I32], &[]);
        let argument = module.locals.add(ValType::I32);
        builder.func_body().block(None, |block| {
            let end = block.id();
            block.local_get(argument).unop(walrus::ir::UnaryOp::I32Eqz).br_if(end);
            block.i32_const(0).i32_const(0).i32_const(0).memory_fill(memory);
        });
        let function = builder.finish(vec![argument], &mut module.funcs);
        module.exports.add("f", function);
        module.emit_wasm()
    }

    #[test]
    fn what_is_branched_over_does_not_count() {
        assert_eq!(instructions(1, false), (7, 1));
        assert_eq!(instructions(0, false), (3, 0));
    }

    #[test]
    fn to_tell_of_calls_adds_nothing() {
        assert_eq!(instructions(1, true), instructions(1, false));
    }
}
