//! The host calls of proxy-wasm ABI 0.2.1 that we make, and the only unsafe code of the project.
//!
//! Each function turns pointers and a status into a value, once and here. What Envoy returns as bytes it
//! has put into memory that it got from this module (`malloc`, below), as a block of exactly the returned length:
//! [`Bytes`] owns it, without a copy.

#![expect(
    unsafe_code,
    reason = "host calls pass pointers; this module is where they become values"
)]

use core::{
    cell::{Cell, UnsafeCell},
    fmt,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::null_mut,
};

use sentinel_engine::host::HostError;

/// How a host call ended: 0 is success, everything else is Envoy's number (proxy-wasm `proxy_status_t`).
type Status = u32;

/// What was asked for does not exist.
pub(crate) const NOT_FOUND: Status = 1;
/// The queue is empty.
pub(crate) const EMPTY: Status = 7;
/// Somebody else has written in between.
pub(crate) const CAS_MISMATCH: Status = 8;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_get_shared_data(
        key: *const u8,
        key_size: usize,
        value: *mut *mut u8,
        size: *mut usize,
        cas: *mut u32,
    ) -> Status;
    fn proxy_set_shared_data(
        key: *const u8,
        key_size: usize,
        value: *const u8,
        size: usize,
        cas: u32,
    ) -> Status;
    fn proxy_register_shared_queue(name: *const u8, name_size: usize, queue: *mut u32) -> Status;
    fn proxy_resolve_shared_queue(
        vm_id: *const u8,
        vm_id_size: usize,
        name: *const u8,
        name_size: usize,
        queue: *mut u32,
    ) -> Status;
    fn proxy_enqueue_shared_queue(queue: u32, value: *const u8, size: usize) -> Status;
    fn proxy_dequeue_shared_queue(queue: u32, value: *mut *mut u8, size: *mut usize) -> Status;
    fn proxy_define_metric(
        kind: u32,
        name: *const u8,
        name_size: usize,
        metric: *mut u32,
    ) -> Status;
    fn proxy_increment_metric(metric: u32, offset: i64) -> Status;
    fn proxy_record_metric(metric: u32, value: u64) -> Status;
    fn proxy_get_metric(metric: u32, value: *mut u64) -> Status;
    fn proxy_get_header_map_value(
        map: u32,
        key: *const u8,
        key_size: usize,
        value: *mut *mut u8,
        size: *mut usize,
    ) -> Status;
    fn proxy_get_header_map_pairs(map: u32, value: *mut *mut u8, size: *mut usize) -> Status;
    fn proxy_get_property(
        path: *const u8,
        path_size: usize,
        value: *mut *mut u8,
        size: *mut usize,
    ) -> Status;
    fn proxy_set_property(
        path: *const u8,
        path_size: usize,
        value: *const u8,
        size: usize,
    ) -> Status;
    fn proxy_get_buffer_bytes(
        buffer: u32,
        start: usize,
        max_size: usize,
        value: *mut *mut u8,
        size: *mut usize,
    ) -> Status;
    fn proxy_set_tick_period_milliseconds(period: u32) -> Status;
    fn proxy_set_effective_context(context: u32) -> Status;
    fn proxy_continue_stream(stream: u32) -> Status;
    fn proxy_close_stream(stream: u32) -> Status;
    fn proxy_set_buffer_bytes(
        buffer: u32,
        start: usize,
        replaced: usize,
        value: *const u8,
        size: usize,
    ) -> Status;
    fn proxy_call_foreign_function(
        name: *const u8,
        name_size: usize,
        argument: *const u8,
        argument_size: usize,
        value: *mut *mut u8,
        size: *mut usize,
    ) -> Status;
    fn proxy_log(level: u32, message: *const u8, size: usize) -> Status;
    fn proxy_http_call(
        cluster: *const u8,
        cluster_size: usize,
        headers: *const u8,
        headers_size: usize,
        body: *const u8,
        body_size: usize,
        trailers: *const u8,
        trailers_size: usize,
        timeout_ms: u32,
        call: *mut u32,
    ) -> Status;
    fn proxy_send_local_response(
        status: u32,
        details: *const u8,
        details_size: usize,
        body: *const u8,
        body_size: usize,
        headers: *const u8,
        headers_size: usize,
        grpc_status: i32,
    ) -> Status;
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u32;
    fn random_get(bytes: *mut u8, size: usize) -> u32;
}

/// WASI's clocks.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Clock {
    Realtime = 0,
    Monotonic = 1,
}

/// The value under `key`, and its compare-and-set token.
pub(crate) fn load(key: &[u8], value: &mut Vec<u8>) -> Result<u32, HostError> {
    let mut cas = 0;
    let (mut data, mut size) = (null_mut(), 0);
    // SAFETY: the pointers are to live locals and to `key` for the length given.
    let status = unsafe {
        proxy_get_shared_data(key.as_ptr(), key.len(), &raw mut data, &raw mut size, &raw mut cas)
    };
    ok(status)?;
    Bytes::new(data, size).replace(value);
    Ok(cas)
}

/// Writes `key` if its token is `cas`.
pub(crate) fn store(key: &[u8], value: &[u8], cas: u32) -> Result<(), HostError> {
    // SAFETY: both pointers are to live slices of the lengths given.
    ok(unsafe { proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), cas) })
}

/// Makes this VM the consumer of a queue.
pub(crate) fn register_queue(name: &str) -> Result<u32, HostError> {
    let mut queue = 0;
    // SAFETY: the pointers are to `name` for the length given and to a live local.
    ok(unsafe { proxy_register_shared_queue(name.as_ptr(), name.len(), &raw mut queue) })?;
    Ok(queue)
}

/// The token of a queue of our own vm_id, which is what an empty one means.
pub(crate) fn resolve_queue(name: &str) -> Result<u32, HostError> {
    let mut queue = 0;
    // SAFETY: the pointers are to live slices of the lengths given and to a live local.
    ok(unsafe {
        proxy_resolve_shared_queue("".as_ptr(), 0, name.as_ptr(), name.len(), &raw mut queue)
    })?;
    Ok(queue)
}

/// Appends to a queue.
pub(crate) fn enqueue(queue: u32, value: &[u8]) -> Result<(), HostError> {
    // SAFETY: the pointer is to a live slice of the length given.
    ok(unsafe { proxy_enqueue_shared_queue(queue, value.as_ptr(), value.len()) })
}

/// Takes from a queue.
pub(crate) fn dequeue(queue: u32, value: &mut Vec<u8>) -> Result<(), HostError> {
    let (mut data, mut size) = (null_mut(), 0);
    // SAFETY: the pointers are to live locals.
    ok(unsafe { proxy_dequeue_shared_queue(queue, &raw mut data, &raw mut size) })?;
    Bytes::new(data, size).replace(value);
    Ok(())
}

/// Defines, or finds, a statistic: 0 counter, 1 gauge, 2 histogram.
pub(crate) fn define_metric(kind: u32, name: &str) -> Result<u32, HostError> {
    let mut metric = 0;
    // SAFETY: the pointers are to `name` for the length given and to a live local.
    ok(unsafe { proxy_define_metric(kind, name.as_ptr(), name.len(), &raw mut metric) })?;
    Ok(metric)
}

/// Adds to a counter.
pub(crate) fn increment_metric(metric: u32, offset: i64) {
    // SAFETY: numbers only. An unknown metric is answered with a status, and there is nobody to tell.
    unsafe { proxy_increment_metric(metric, offset) };
}

/// Sets a gauge, or records a value of a histogram.
pub(crate) fn record_metric(metric: u32, value: u64) {
    // SAFETY: numbers only, as above.
    unsafe { proxy_record_metric(metric, value) };
}

/// The value of a counter or a gauge of the whole process.
pub(crate) fn metric(metric: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: the pointer is to a live local.
    ok(unsafe { proxy_get_metric(metric, &raw mut value) }).ok()?;
    Some(value)
}

/// The bytes of a header.
pub(crate) fn header(map: u32, name: &str) -> Option<Bytes> {
    let (mut data, mut size) = (null_mut(), 0);
    // SAFETY: the pointers are to `name` for the length given and to live locals.
    let status = unsafe {
        proxy_get_header_map_value(map, name.as_ptr(), name.len(), &raw mut data, &raw mut size)
    };
    ok(status).ok()?;
    // A header that is not there has no data; an empty one has data of no length.
    if data.is_null() { None } else { Some(Bytes::new(data, size)) }
}

/// All headers, in proxy-wasm's form of a map.
pub(crate) fn headers(map: u32) -> Option<Bytes> {
    let (mut data, mut size) = (null_mut(), 0);
    // SAFETY: the pointers are to live locals.
    ok(unsafe { proxy_get_header_map_pairs(map, &raw mut data, &raw mut size) }).ok()?;
    Some(Bytes::new(data, size))
}

/// The bytes of a property, whose path's segments are separated by NUL.
pub(crate) fn property(path: &[u8]) -> Option<Bytes> {
    let (mut data, mut size) = (null_mut(), 0);
    // SAFETY: the pointers are to `path` for the length given and to live locals.
    ok(unsafe { proxy_get_property(path.as_ptr(), path.len(), &raw mut data, &raw mut size) })
        .ok()?;
    Some(Bytes::new(data, size))
}

/// Sets a property: Envoy keeps it as the stream's filter state `wasm.<path>`.
pub(crate) fn set_property(path: &[u8], value: &[u8]) -> Result<(), HostError> {
    // SAFETY: both pointers are to live slices of the lengths given.
    ok(unsafe { proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len()) })
}

/// Up to `size` bytes of a buffer, from `start` on.
pub(crate) fn buffer(buffer: u32, start: usize, size: usize) -> Option<Bytes> {
    let (mut data, mut found) = (null_mut(), 0);
    // SAFETY: the pointers are to live locals.
    ok(unsafe { proxy_get_buffer_bytes(buffer, start, size, &raw mut data, &raw mut found) })
        .ok()?;
    Some(Bytes::new(data, found))
}

/// Arms the timer of the root context that the callback belongs to.
pub(crate) fn set_tick_period(period_ms: u32) -> Result<(), HostError> {
    // SAFETY: a number only.
    ok(unsafe { proxy_set_tick_period_milliseconds(period_ms) })
}

/// Speaks for another context from here on, until the callback returns.
pub(crate) fn set_effective_context(context: u32) -> Result<(), HostError> {
    // SAFETY: a number only.
    ok(unsafe { proxy_set_effective_context(context) })
}

/// Lets the paused request of the current context go on, when the callback has returned.
pub(crate) fn continue_request() -> Result<(), HostError> {
    const REQUEST: u32 = 0;
    // SAFETY: a number only.
    ok(unsafe { proxy_continue_stream(REQUEST) })
}

/// Lets the connection of the effective context go on to the next filter.
pub(crate) fn continue_downstream() -> Result<(), HostError> {
    // SAFETY: a number only.
    ok(unsafe { proxy_continue_stream(DOWNSTREAM) })
}

/// Closes the client's side of the connection of the effective context, once what was written to it is out.
pub(crate) fn close_downstream() -> Result<(), HostError> {
    // SAFETY: a number only.
    ok(unsafe { proxy_close_stream(DOWNSTREAM) })
}

/// Replaces the whole of a buffer, in the callback that it belongs to.
pub(crate) fn replace_buffer(buffer: u32, value: &[u8]) -> Result<(), HostError> {
    // SAFETY: the pointer is to a live slice of the length given.
    ok(unsafe { proxy_set_buffer_bytes(buffer, 0, usize::MAX, value.as_ptr(), value.len()) })
}

/// Calls a function that Envoy has besides those of proxy-wasm.
pub(crate) fn call_foreign(name: &str, argument: &[u8]) -> Result<(), HostError> {
    let (mut data, mut size) = (null_mut(), 0);
    // SAFETY: the pointers are to live slices of the lengths given and to live locals.
    ok(unsafe {
        proxy_call_foreign_function(
            name.as_ptr(),
            name.len(),
            argument.as_ptr(),
            argument.len(),
            &raw mut data,
            &raw mut size,
        )
    })?;
    drop(Bytes::new(data, size));
    Ok(())
}

/// The client's side of a connection.
const DOWNSTREAM: u32 = 2;

/// Writes a line into Envoy's log.
pub(crate) fn log(level: u32, message: &str) {
    // SAFETY: the pointer is to a live string of the length given. A log that refuses a line cannot be told so.
    unsafe { proxy_log(level, message.as_ptr(), message.len()) };
}

/// Starts a call without a body to a cluster. Its end is a callback of the current context.
pub(crate) fn http_call(cluster: &str, headers: &[u8], timeout_ms: u32) -> Result<u32, HostError> {
    let mut call = 0;
    // An empty map of trailers is its number of pairs, 0.
    let trailers = [0; 4];
    // SAFETY: all pointers are to live slices of the lengths given, and to a live local.
    ok(unsafe {
        proxy_http_call(
            cluster.as_ptr(),
            cluster.len(),
            headers.as_ptr(),
            headers.len(),
            "".as_ptr(),
            0,
            trailers.as_ptr(),
            trailers.len(),
            timeout_ms,
            &raw mut call,
        )
    })?;
    Ok(call)
}

/// Answers the request instead of the upstream, when the callback has returned.
pub(crate) fn send_local_response(
    status: u32,
    details: &[u8],
    body: &[u8],
    headers: &[u8],
    grpc_status: i32,
) -> Result<(), HostError> {
    // SAFETY: all pointers are to live slices of the lengths given.
    ok(unsafe {
        proxy_send_local_response(
            status,
            details.as_ptr(),
            details.len(),
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            grpc_status,
        )
    })
}

/// A clock in nanoseconds; 0 if Envoy refuses it.
#[inline(always)]
pub(crate) fn clock_ns(clock: Clock) -> u64 {
    let mut time = 0;
    // SAFETY: the pointer is to a live local.
    unsafe { clock_time_get(clock as u32, 1, &raw mut time) };
    time
}

/// 64 random bits; `None` if Envoy refuses them.
pub(crate) fn random() -> Option<u64> {
    let mut bytes = [0; 8];
    // SAFETY: the pointer is to a live local of the length given.
    let status = unsafe { random_get(bytes.as_mut_ptr(), bytes.len()) };
    (status == 0).then_some(u64::from_le_bytes(bytes))
}

fn ok(status: Status) -> Result<(), HostError> {
    match status {
        0 => Ok(()),
        NOT_FOUND => Err(HostError::NotFound),
        status => Err(HostError::Status(status)),
    }
}

/// Bytes that Envoy has put into this module's memory.
pub struct Bytes {
    /// Null: there are none.
    data: *mut u8,
    size: usize,
}

/// Memory for what Envoy returns, so that what is read and forgotten, as nearly all of it is, costs no allocation: who
/// comes while it is in use gets a block of the allocator's, and so does who wants more.
struct Desk {
    memory: UnsafeCell<[u8; DESK_BYTES]>,
    is_taken: Cell<bool>,
}

/// The headers of most requests fit.
const DESK_BYTES: usize = 4 << 10;

// SAFETY: a module has one thread.
unsafe impl Sync for Desk {}

static DESK: Desk = Desk { memory: UnsafeCell::new([0; DESK_BYTES]), is_taken: Cell::new(false) };

/// Where Envoy puts what it returns as bytes: a block of just `size` bytes, which [`Bytes`] takes over. Null if there
/// is no memory, which Envoy reports as the call's status.
#[cfg(target_arch = "wasm32")]
#[unsafe(export_name = "malloc")]
extern "C" fn allocate(size: usize) -> *mut u8 {
    use std::alloc::{Layout, alloc};

    match Layout::array::<u8>(size) {
        Ok(_) if size == 0 => null_mut(),
        Ok(_) if size <= DESK_BYTES && !DESK.is_taken.replace(true) => DESK.memory.get().cast(),
        // SAFETY: the layout is not empty.
        Ok(layout) => unsafe { alloc(layout) },
        Err(_) => null_mut(),
    }
}

impl Bytes {
    /// Takes over what the host has put into this module's memory.
    fn new(data: *mut u8, size: usize) -> Self {
        Self { data, size }
    }

    fn is_on_desk(&self) -> bool {
        core::ptr::eq(self.data, DESK.memory.get().cast())
    }

    /// Replaces what stands in `value`: by a copy where they are on the desk, else by the block itself.
    fn replace(self, value: &mut Vec<u8>) {
        if self.is_on_desk() {
            value.clear();
            value.extend_from_slice(&self);
        } else {
            *value = ManuallyDrop::new(self).take_block();
        }
    }

    /// The block that the host got from the allocator. To be asked once, for a value that is not on the desk.
    fn take_block(&self) -> Vec<u8> {
        if self.data.is_null() || self.size == 0 {
            // There is no block of no bytes: nothing to free.
            return Vec::new();
        }
        // SAFETY: the host got `data` from `allocate`, by Rust's own allocator and for just this size and alignment, and
        // it hands each block over once.
        unsafe { Vec::from_raw_parts(self.data, self.size, self.size) }
    }
}

impl Default for Bytes {
    /// None.
    fn default() -> Self {
        Self::new(null_mut(), 0)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.data.is_null() {
            return &[];
        }
        // SAFETY: `allocate` gave a block of this size, the host has filled it, and it is this value's own until it is
        // dropped.
        unsafe { core::slice::from_raw_parts(self.data, self.size) }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if self.is_on_desk() {
            DESK.is_taken.set(false);
        } else {
            drop(self.take_block());
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl From<Bytes> for Vec<u8> {
    fn from(bytes: Bytes) -> Self {
        let mut value = Self::new();
        bytes.replace(&mut value);
        value
    }
}
