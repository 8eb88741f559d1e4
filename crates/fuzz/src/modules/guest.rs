//! One VM: a shipped module in an interpreter, and every function of Envoy's that it imports.
//!
//! What comes back as bytes is put where Envoy puts it: into a block that the module's own `malloc` gave.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use wasmi::{Caller, Engine, Error, Func, Global, Linker, Memory, Module, Store, TypedFunc, Val};

use super::input::{Exchange, Pairs};
use super::process::{BAD_ARGUMENT, NOT_FOUND, OK, Process};

/// A running module.
#[derive(Debug)]
pub(super) struct Guest {
    store: Store<State>,
    exports: BTreeMap<String, Func>,
    memory: Memory,
    /// Of a module that counts: its instructions, and those that copy.
    counters: Option<[Global; 2]>,
}

/// What something has cost, or all so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Work {
    /// Instructions, as the module counts them itself.
    pub(super) instructions: u64,
    /// Those that copy or fill memory: calls of a function in Envoy.
    pub(super) copies: u64,
    /// Host calls.
    pub(super) host_calls: u64,
    /// Those that returned bytes, for which Envoy calls `malloc`.
    pub(super) with_bytes: u64,
}

/// What a module exports that `cargo xtask bench instructions` lets count: globals with the number of its instructions so far, and
/// of those that copy or fill memory.
const COUNTERS: [&str; 2] = ["counted:instructions", "counted:copies"];

/// Which functions are running, and what each has run.
#[derive(Debug, Default)]
pub(super) struct Profile {
    counter: Option<Global>,
    /// Function, instructions at its beginning, and those of what it has called.
    running: Vec<(u32, u64, u64)>,
    /// By function: calls, its own instructions, and all while it ran.
    pub(super) by_function: BTreeMap<u32, [u64; 3]>,
}

/// What the host knows of a VM.
#[derive(Debug)]
pub(super) struct State {
    process: Rc<RefCell<Process>>,
    /// Which VM of the process it is.
    place: usize,
    memory: Option<Memory>,
    malloc: Option<TypedFunc<u32, u32>>,
    pub(super) contexts: BTreeMap<u32, Context>,
    /// What the callback is about.
    pub(super) moment: Moment,
    effective: u32,
    /// The period of each root's timer in milliseconds, and when it fires.
    pub(super) timers: BTreeMap<u32, (u32, u64)>,
    /// Contexts whose stream was let go on, or answered, or closed, in this callback.
    pub(super) continued: Vec<u32>,
    pub(super) answered: Vec<u32>,
    pub(super) configuration: Vec<u8>,
    pub(super) call_answer: Exchange,
    host_calls: u64,
    with_bytes: u64,
    pub(super) profile: Profile,
    /// The details of the last reply.
    pub(super) details: String,
}

/// A context of Envoy's.
#[derive(Clone, Debug, Default)]
pub(super) struct Context {
    /// 0: it is a root itself.
    pub(super) root: u32,
    pub(super) exchange: Exchange,
    filter_state: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Context {
    /// A context of the root `root`; a root itself where that is 0.
    pub(super) fn new(root: u32, exchange: Exchange) -> Self {
        Self { root, exchange, filter_state: BTreeMap::new() }
    }
}

/// What is going on in a VM: different things can be read at different times.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Moment {
    #[default]
    Initialize,
    Start,
    Configure,
    Root,
    Request,
    Body,
    Connection,
    Data,
    Log,
    CallAnswer,
}

/// How a call of the host's into a module ended.
#[derive(Debug)]
pub(super) struct Called {
    /// What it returned; 0 if nothing.
    pub(super) value: u32,
    /// How many instructions it took.
    pub(super) fuel: u64,
}

/// The most instructions of one callback: twenty seconds of a real machine, so that whatever ends at all ends within them.
const FUEL_MAX: u64 = 20_000_000_000;

impl Guest {
    /// Starts a module.
    ///
    /// # Errors
    /// If it imports what Envoy has not, or traps.
    pub(super) fn start(
        engine: &Engine,
        module: &Module,
        process: Rc<RefCell<Process>>,
        place: usize,
    ) -> Result<Self, Error> {
        let state = State {
            process,
            place,
            memory: None,
            malloc: None,
            contexts: BTreeMap::new(),
            moment: Moment::Initialize,
            effective: 0,
            timers: BTreeMap::new(),
            continued: Vec::new(),
            answered: Vec::new(),
            configuration: Vec::new(),
            call_answer: Exchange::default(),
            host_calls: 0,
            with_bytes: 0,
            profile: Profile::default(),
            details: String::new(),
        };
        let mut store = Store::new(engine, state);
        store.set_fuel(FUEL_MAX)?;
        let instance = linker(engine)?.instantiate_and_start(&mut store, module)?;
        let memory = instance
            .get_memory(&store, "memory")
            .ok_or_else(|| Error::new("the module exports no memory"))?;
        let malloc = instance.get_typed_func(&store, "malloc")?;
        store.data_mut().memory = Some(memory);
        store.data_mut().malloc = Some(malloc);
        let counters = match COUNTERS.map(|name| instance.get_global(&store, name)) {
            [Some(instructions), Some(copies)] => Some([instructions, copies]),
            _ => None,
        };
        store.data_mut().profile.counter = counters.map(|[instructions, _]| instructions);
        let exports = instance
            .exports(&store)
            .filter_map(|export| {
                let name = export.name().to_owned();
                export.into_func().map(|function| (name, function))
            })
            .collect();
        let mut guest = Self { store, exports, memory, counters };
        guest.call("_initialize", &[], Moment::Initialize, 0)?;
        Ok(guest)
    }

    pub(super) fn state(&mut self) -> &mut State {
        self.store.data_mut()
    }

    /// Calls a function of the module about the context `context`; does nothing, as Envoy, if it has no such.
    ///
    /// # Errors
    /// If it traps or does not end.
    pub(super) fn call(
        &mut self,
        name: &str,
        arguments: &[u32],
        moment: Moment,
        context: u32,
    ) -> Result<Called, Error> {
        let Some(function) = self.exports.get(name).copied() else {
            return Ok(Called { value: 0, fuel: 0 });
        };
        let state = self.store.data_mut();
        state.moment = moment;
        state.effective = context;
        state.continued.clear();
        state.answered.clear();
        self.store.set_fuel(FUEL_MAX)?;
        let arguments: Vec<Val> =
            arguments.iter().map(|argument| Val::I32(argument.cast_signed())).collect();
        let mut results: Vec<Val> =
            function.ty(&self.store).results().iter().map(|_| Val::I32(0)).collect();
        function.call(&mut self.store, &arguments, &mut results)?;
        let value = results.first().and_then(Val::i32).unwrap_or(0).cast_unsigned();
        Ok(Called { value, fuel: FUEL_MAX - self.store.get_fuel()? })
    }

    /// What all calls have cost so far.
    pub(super) fn work(&self) -> Work {
        let [instructions, copies] = self.counters.map_or([0; 2], |counters| {
            counters
                .map(|counter| counter.get(&self.store).i64().unwrap_or_default().cast_unsigned())
        });
        let State { host_calls, with_bytes, .. } = *self.store.data();
        Work { instructions, copies, host_calls, with_bytes }
    }

    /// How many bytes of memory the module has.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory.data(&self.store).len()
    }
}

impl State {
    /// The root whose timer a call for the effective context is about.
    fn effective_root(&self) -> u32 {
        self.contexts.get(&self.effective).map_or(self.effective, |context| {
            if context.root == 0 { self.effective } else { context.root }
        })
    }

    fn set_timer(&mut self, period_ms: u32) -> u32 {
        let root = self.effective_root();
        if !self.contexts.contains_key(&root) {
            return BAD_ARGUMENT;
        }
        if period_ms == 0 {
            self.timers.remove(&root);
        } else {
            let now = self.process.borrow().now_ns;
            self.timers.insert(root, (period_ms, now + u64::from(period_ms) * 1_000_000));
        }
        OK
    }

    fn exchange(&self) -> Option<&Exchange> {
        self.contexts.get(&self.effective).map(|context| &context.exchange)
    }

    /// The value of a header, where the map can be read now.
    fn header(&self, map: u32, name: &[u8]) -> Result<Option<Vec<u8>>, u32> {
        let pairs = self.headers(map)?;
        Ok(pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()))
    }

    fn headers(&self, map: u32) -> Result<&Pairs, u32> {
        let pairs = match (map, self.moment) {
            (0, Moment::Request | Moment::Log) => self.exchange().map(|seen| &seen.request),
            (2, Moment::Log) => self.exchange().map(|seen| &seen.response),
            (3, Moment::Log) => self.exchange().map(|seen| &seen.trailers),
            (6, Moment::CallAnswer) => Some(&self.call_answer.response),
            _ => None,
        };
        pairs.ok_or(BAD_ARGUMENT)
    }

    fn property(&self, path: &[u8]) -> Option<Vec<u8>> {
        let context = self.contexts.get(&self.effective)?;
        if let Some(value) = context.filter_state.get(path) {
            return Some(value.clone());
        }
        context
            .exchange
            .properties
            .iter()
            .find(|(known, _)| known == path)
            .map(|(_, value)| value.clone())
    }

    fn buffer(&self, buffer: u32, start: usize, size: usize) -> Result<Vec<u8>, u32> {
        let bytes = match (buffer, self.moment) {
            (0, Moment::Body) => self.exchange().map(|seen| seen.body.as_slice()),
            (3, Moment::Data) => self.exchange().map(|seen| seen.body.as_slice()),
            (4, Moment::CallAnswer) => Some(self.call_answer.body.as_slice()),
            (6, Moment::Start) => Some(&[] as &[u8]),
            (7, Moment::Configure) => Some(self.configuration.as_slice()),
            _ => None,
        };
        let bytes = bytes.ok_or(BAD_ARGUMENT)?;
        let rest = bytes.get(start..).ok_or(BAD_ARGUMENT)?;
        Ok(rest.get(..size).unwrap_or(rest).to_vec())
    }
}

/// Whether the next call of `function` fails, and with which status.
fn refusal(caller: &mut Caller<'_, State>, function: &str) -> Option<u32> {
    let state = caller.data_mut();
    state.host_calls += 1;
    if state.moment == Moment::Initialize && function != "proxy_log" {
        state
            .process
            .borrow_mut()
            .find(|| format!("calls {function} in _initialize, where Envoy traps it"));
    }
    state.process.borrow_mut().refusal(function)
}

/// As [`refusal`], of a call on shared data. Nothing is promised of VMs that cannot agree on the seeds; and that nothing
/// stands under a key is an answer that Envoy gives only where it is true.
fn refusal_of(caller: &mut Caller<'_, State>, function: &str, key: &[u8]) -> Option<u32> {
    let status = refusal(caller, function)?;
    (key != b"sentinel/seeds" && status != NOT_FOUND).then_some(status)
}

/// Bytes of the module's memory.
fn bytes(caller: &Caller<'_, State>, data: u32, size: u32) -> Result<Vec<u8>, Error> {
    let place = usize::try_from(data).ok();
    let size = usize::try_from(size).ok();
    let range = place.zip(size).and_then(|(place, size)| Some(place..place.checked_add(size)?));
    let memory = caller.data().memory;
    memory
        .zip(range)
        .and_then(|(memory, range)| memory.data(caller).get(range))
        .map(<[u8]>::to_vec)
        .ok_or_else(|| Error::new("the module names memory that it does not have"))
}

/// Writes into the module's memory.
fn put(caller: &mut Caller<'_, State>, place: u32, value: &[u8]) -> Result<(), Error> {
    let memory = caller.data().memory.ok_or_else(|| Error::new("no memory yet"))?;
    let place = usize::try_from(place).unwrap_or(usize::MAX);
    memory
        .write(caller, place, value)
        .map_err(|_| Error::new("the module names memory that it does not have"))
}

fn put_u32(caller: &mut Caller<'_, State>, place: u32, value: u32) -> Result<u32, Error> {
    put(caller, place, &value.to_le_bytes())?;
    Ok(OK)
}

/// Hands `value` over in a block of the module's own.
fn give(caller: &mut Caller<'_, State>, value: &[u8], data: u32, size: u32) -> Result<u32, Error> {
    const INTERNAL_FAILURE: u32 = 10;
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    // Of nothing there is no block, but a place that is not null.
    let mut block = 8;
    if length > 0 {
        caller.data_mut().with_bytes += 1;
        let malloc = caller.data().malloc.ok_or_else(|| Error::new("no malloc yet"))?;
        block = malloc.call(&mut *caller, length)?;
        if block == 0 {
            return Ok(INTERNAL_FAILURE);
        }
        put(caller, block, value)?;
    }
    put_u32(caller, data, block)?;
    put_u32(caller, size, length)
}

/// proxy-wasm's form of a map, as Envoy makes it.
fn map_of(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    let mut map = length(pairs.len()).to_vec();
    for (name, value) in pairs {
        map.extend([length(name.len()), length(value.len())].concat());
    }
    for (name, value) in pairs {
        map.extend([name, b"\0".as_slice(), value, b"\0"].concat());
    }
    map
}

/// proxy-wasm's form of a map, which must be whole and may break no line.
fn check_pairs(caller: &Caller<'_, State>, function: &str, map: &[u8]) {
    let mut process = caller.data().process.borrow_mut();
    let Some(pairs) = pairs(map) else {
        process.find(|| format!("{function} is given {map:?}, which is no map"));
        return;
    };
    for (name, value) in pairs {
        let breaks = |byte: &u8| matches!(byte, b'\r' | b'\n' | 0);
        if name.is_empty() || name.iter().any(breaks) || value.iter().any(breaks) {
            process.find(|| {
                format!(
                    "{function} is given the header {:?}: {:?}, which forges another",
                    String::from_utf8_lossy(name),
                    String::from_utf8_lossy(value)
                )
            });
        }
    }
}

fn pairs(map: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let number = |at: usize| -> Option<usize> {
        let bytes = map.get(at..)?.first_chunk::<4>()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    let count = number(0)?;
    let mut at = 4 + count.checked_mul(8)?;
    let mut found = Vec::new();
    for pair in 0..count {
        let name = map.get(at..at + number(4 + pair * 8)?)?;
        at += name.len() + 1;
        let value = map.get(at..at + number(8 + pair * 8)?)?;
        at += value.len() + 1;
        found.push((name, value));
    }
    (at == map.len()).then_some(found)
}

/// Every function that the modules import.
fn linker(engine: &Engine) -> Result<Linker<State>, Error> {
    let mut linker = Linker::new(engine);
    link_data(&mut linker)?;
    link_statistics(&mut linker)?;
    link_streams(&mut linker)?;
    link_rest(&mut linker)?;
    link_profile(&mut linker)?;
    Ok(linker)
}

type Host<'a> = Caller<'a, State>;

fn link_data(linker: &mut Linker<State>) -> Result<(), Error> {
    linker.func_wrap(
        "env",
        "proxy_get_shared_data",
        |mut host: Host<'_>, key: u32, key_size: u32, data: u32, size: u32, cas: u32| {
            let key = bytes(&host, key, key_size)?;
            if let Some(status) = refusal_of(&mut host, "proxy_get_shared_data", &key) {
                return Ok(status);
            }
            let found = host.data().process.borrow_mut().load(&key);
            let Some((value, token)) = found else { return Ok(NOT_FOUND) };
            put_u32(&mut host, cas, token)?;
            give(&mut host, &value, data, size)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_set_shared_data",
        |mut host: Host<'_>,
         key: u32,
         key_size: u32,
         data: u32,
         size: u32,
         cas: u32|
         -> Result<u32, Error> {
            let key = bytes(&host, key, key_size)?;
            if let Some(status) = refusal_of(&mut host, "proxy_set_shared_data", &key) {
                return Ok(status);
            }
            let value = bytes(&host, data, size)?;
            Ok(host.data().process.borrow_mut().store(key, value, cas))
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_register_shared_queue",
        |mut host: Host<'_>, name: u32, size: u32, queue: u32| {
            if let Some(status) = refusal(&mut host, "proxy_register_shared_queue") {
                return Ok(status);
            }
            let name = bytes(&host, name, size)?;
            let found = host.data().process.borrow_mut().register_queue(&name);
            put_u32(&mut host, queue, found)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_resolve_shared_queue",
        |mut host: Host<'_>, _vm: u32, _vm_size: u32, name: u32, size: u32, queue: u32| {
            if let Some(status) = refusal(&mut host, "proxy_resolve_shared_queue") {
                return Ok(status);
            }
            let name = bytes(&host, name, size)?;
            let found = host.data().process.borrow().resolve_queue(&name);
            let Some(found) = found else { return Ok(NOT_FOUND) };
            put_u32(&mut host, queue, found)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_enqueue_shared_queue",
        |mut host: Host<'_>, queue: u32, data: u32, size: u32| -> Result<u32, Error> {
            if let Some(status) = refusal(&mut host, "proxy_enqueue_shared_queue") {
                return Ok(status);
            }
            let value = bytes(&host, data, size)?;
            Ok(host.data().process.borrow_mut().enqueue(queue, value))
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_dequeue_shared_queue",
        |mut host: Host<'_>, queue: u32, data: u32, size: u32| {
            if let Some(status) = refusal(&mut host, "proxy_dequeue_shared_queue") {
                return Ok(status);
            }
            let taken = host.data().process.borrow_mut().dequeue(queue);
            match taken {
                Ok(value) => give(&mut host, &value, data, size),
                Err(status) => Ok(status),
            }
        },
    )?;
    Ok(())
}

fn link_statistics(linker: &mut Linker<State>) -> Result<(), Error> {
    linker.func_wrap(
        "env",
        "proxy_define_metric",
        |mut host: Host<'_>, kind: u32, name: u32, size: u32, metric: u32| {
            if let Some(status) = refusal(&mut host, "proxy_define_metric") {
                return Ok(status);
            }
            let name = bytes(&host, name, size)?;
            let id = host.data().process.borrow_mut().define(kind, &name);
            put_u32(&mut host, metric, id)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_increment_metric",
        |mut host: Host<'_>, metric: u32, offset: i64| -> u32 {
            let failed = refusal(&mut host, "proxy_increment_metric");
            failed.unwrap_or_else(|| host.data().process.borrow_mut().increment(metric, offset))
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_record_metric",
        |mut host: Host<'_>, metric: u32, value: u64| -> u32 {
            let failed = refusal(&mut host, "proxy_record_metric");
            failed.unwrap_or_else(|| host.data().process.borrow_mut().record(metric, value))
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_get_metric",
        |mut host: Host<'_>, metric: u32, place: u32| {
            if let Some(status) = refusal(&mut host, "proxy_get_metric") {
                return Ok(status);
            }
            let value = host.data().process.borrow().value(metric);
            match value {
                Ok(value) => put(&mut host, place, &value.to_le_bytes()).map(|()| OK),
                Err(status) => Ok(status),
            }
        },
    )?;
    Ok(())
}

fn link_streams(linker: &mut Linker<State>) -> Result<(), Error> {
    linker.func_wrap(
        "env",
        "proxy_get_header_map_value",
        |mut host: Host<'_>, map: u32, key: u32, key_size: u32, data: u32, size: u32| {
            if let Some(status) = refusal(&mut host, "proxy_get_header_map_value") {
                return Ok(status);
            }
            let key = bytes(&host, key, key_size)?;
            match host.data().header(map, &key) {
                Ok(Some(value)) => give(&mut host, &value, data, size),
                Ok(None) => Ok(NOT_FOUND),
                Err(status) => Ok(status),
            }
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_get_header_map_pairs",
        |mut host: Host<'_>, map: u32, data: u32, size: u32| {
            if let Some(status) = refusal(&mut host, "proxy_get_header_map_pairs") {
                return Ok(status);
            }
            match host.data().headers(map).map(|pairs| map_of(pairs)) {
                Ok(map) => give(&mut host, &map, data, size),
                Err(status) => Ok(status),
            }
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_get_property",
        |mut host: Host<'_>, path: u32, path_size: u32, data: u32, size: u32| {
            if let Some(status) = refusal(&mut host, "proxy_get_property") {
                return Ok(status);
            }
            let path = bytes(&host, path, path_size)?;
            match host.data().property(&path) {
                Some(value) => give(&mut host, &value, data, size),
                None => Ok(NOT_FOUND),
            }
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_set_property",
        |mut host: Host<'_>,
         path: u32,
         path_size: u32,
         data: u32,
         size: u32|
         -> Result<u32, Error> {
            if let Some(status) = refusal(&mut host, "proxy_set_property") {
                return Ok(status);
            }
            let path = bytes(&host, path, path_size)?;
            let value = bytes(&host, data, size)?;
            let state = host.data_mut();
            let effective = state.effective;
            let Some(context) = state.contexts.get_mut(&effective) else { return Ok(NOT_FOUND) };
            // Filter state is written once.
            if context.filter_state.contains_key(&path) {
                return Ok(BAD_ARGUMENT);
            }
            context.filter_state.insert(path, value);
            Ok(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_get_buffer_bytes",
        |mut host: Host<'_>, buffer: u32, start: u32, most: u32, data: u32, size: u32| {
            if let Some(status) = refusal(&mut host, "proxy_get_buffer_bytes") {
                return Ok(status);
            }
            let start = usize::try_from(start).unwrap_or(usize::MAX);
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            match host.data().buffer(buffer, start, most) {
                Ok(value) => give(&mut host, &value, data, size),
                Err(status) => Ok(status),
            }
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_set_buffer_bytes",
        |mut host: Host<'_>,
         buffer: u32,
         _start: u32,
         _replaced: u32,
         data: u32,
         size: u32|
         -> Result<u32, Error> {
            if let Some(status) = refusal(&mut host, "proxy_set_buffer_bytes") {
                return Ok(status);
            }
            bytes(&host, data, size)?;
            let fits = buffer == 3 && host.data().moment == Moment::Data;
            Ok(if fits { OK } else { BAD_ARGUMENT })
        },
    )?;
    linker.func_wrap("env", "proxy_continue_stream", |mut host: Host<'_>, kind: u32| -> u32 {
        const UNIMPLEMENTED: u32 = 12;
        if let Some(status) = refusal(&mut host, "proxy_continue_stream") {
            return status;
        }
        let state = host.data_mut();
        state.continued.push(state.effective);
        if kind == 1 { UNIMPLEMENTED } else { OK }
    })?;
    linker.func_wrap("env", "proxy_close_stream", |mut host: Host<'_>, _kind: u32| -> u32 {
        if let Some(status) = refusal(&mut host, "proxy_close_stream") {
            return status;
        }
        let state = host.data_mut();
        state.answered.push(state.effective);
        OK
    })?;
    linker.func_wrap(
        "env",
        "proxy_send_local_response",
        |mut host: Host<'_>,
         status: u32,
         details: u32,
         details_size: u32,
         body: u32,
         body_size: u32,
         headers: u32,
         headers_size: u32,
         _grpc: i32|
         -> Result<u32, Error> {
            if let Some(status) = refusal(&mut host, "proxy_send_local_response") {
                return Ok(status);
            }
            let details = bytes(&host, details, details_size)?;
            bytes(&host, body, body_size)?;
            let headers = bytes(&host, headers, headers_size)?;
            check_pairs(&host, "proxy_send_local_response", &headers);
            let is_sound = details.iter().all(u8::is_ascii_graphic) && (200..600).contains(&status);
            let state = host.data_mut();
            if !is_sound {
                let details = String::from_utf8_lossy(&details).into_owned();
                state
                    .process
                    .borrow_mut()
                    .find(|| format!("replies {status} with the details {details:?}"));
            }
            state.details = String::from_utf8_lossy(&details).into_owned();
            state.answered.push(state.effective);
            Ok(OK)
        },
    )?;
    Ok(())
}

/// What a profiled module tells.
fn link_profile(linker: &mut Linker<State>) -> Result<(), Error> {
    linker.func_wrap("counted", "enter", |mut host: Host<'_>, function: u32| {
        let now = instructions(&host);
        host.data_mut().profile.running.push((function, now, 0));
    })?;
    linker.func_wrap("counted", "leave", |mut host: Host<'_>| {
        let now = instructions(&host);
        let profile = &mut host.data_mut().profile;
        let Some((function, begin, of_called)) = profile.running.pop() else { return };
        let all = now.saturating_sub(begin);
        let [calls, own, inclusive] = profile.by_function.entry(function).or_default();
        *calls += 1;
        *own += all.saturating_sub(of_called);
        // Of one that calls itself the outermost call counts.
        if !profile.running.iter().any(|(running, _, _)| *running == function) {
            *inclusive += all;
        }
        if let Some((_, _, of_called)) = profile.running.last_mut() {
            *of_called += all;
        }
    })?;
    Ok(())
}

fn instructions(host: &Host<'_>) -> u64 {
    let counter = host.data().profile.counter;
    counter.and_then(|counter| counter.get(host).i64()).unwrap_or_default().cast_unsigned()
}

fn link_rest(linker: &mut Linker<State>) -> Result<(), Error> {
    linker.func_wrap(
        "env",
        "proxy_log",
        |mut host: Host<'_>, level: u32, data: u32, size: u32| {
            host.data_mut().host_calls += 1;
            let line = bytes(&host, data, size)?;
            host.data().process.borrow_mut().log(level, &line);
            Ok::<u32, Error>(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_set_tick_period_milliseconds",
        |mut host: Host<'_>, period: u32| -> u32 {
            let failed = refusal(&mut host, "proxy_set_tick_period_milliseconds");
            failed.unwrap_or_else(|| host.data_mut().set_timer(period))
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_set_effective_context",
        |mut host: Host<'_>, context: u32| -> u32 {
            if let Some(status) = refusal(&mut host, "proxy_set_effective_context") {
                return status;
            }
            let state = host.data_mut();
            if !state.contexts.contains_key(&context) {
                return BAD_ARGUMENT;
            }
            state.effective = context;
            OK
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_call_foreign_function",
        |mut host: Host<'_>,
         name: u32,
         size: u32,
         argument: u32,
         argument_size: u32,
         data: u32,
         found: u32| {
            if let Some(status) = refusal(&mut host, "proxy_call_foreign_function") {
                return Ok(status);
            }
            bytes(&host, argument, argument_size)?;
            if bytes(&host, name, size)? != b"set_envoy_filter_state" {
                return Ok(NOT_FOUND);
            }
            give(&mut host, &[], data, found)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_http_call",
        |mut host: Host<'_>,
         cluster: u32,
         cluster_size: u32,
         headers: u32,
         headers_size: u32,
         _body: u32,
         _body_size: u32,
         trailers: u32,
         trailers_size: u32,
         _timeout: u32,
         place: u32| {
            if let Some(status) = refusal(&mut host, "proxy_http_call") {
                return Ok(status);
            }
            bytes(&host, cluster, cluster_size)?;
            for (map, size) in [(headers, headers_size), (trailers, trailers_size)] {
                let map = bytes(&host, map, size)?;
                check_pairs(&host, "proxy_http_call", &map);
            }
            let (vm, root) = (host.data().place, host.data().effective_root());
            let call = host.data().process.borrow_mut().call(vm, root);
            let Some(call) = call else { return Ok(BAD_ARGUMENT) };
            put_u32(&mut host, place, call)
        },
    )?;
    linker.func_wrap(
        "wasi_snapshot_preview1",
        "clock_time_get",
        |mut host: Host<'_>, clock: u32, _precision: u64, place: u32| {
            if let Some(status) = refusal(&mut host, "clock_time_get") {
                return Ok(status);
            }
            let mut process = host.data().process.borrow_mut();
            let time = if clock == 0 { process.wall() } else { process.monotonic() };
            drop(process);
            put(&mut host, place, &time.to_le_bytes()).map(|()| OK)
        },
    )?;
    linker.func_wrap(
        "wasi_snapshot_preview1",
        "random_get",
        |mut host: Host<'_>, place: u32, size: u32| {
            if let Some(status) = refusal(&mut host, "random_get") {
                return Ok(status);
            }
            let mut process = host.data().process.borrow_mut();
            let random: Vec<u8> = (0..size).map(|_| process.random.u8(..)).collect();
            drop(process);
            put(&mut host, place, &random).map(|()| OK)
        },
    )?;
    Ok(())
}
