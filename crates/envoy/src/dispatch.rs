//! The way in: what Envoy calls, and whom that reaches.
//!
//! The functions that Envoy looks for are made here, by [`entry_points!`](crate::entry_points), and not by the Rust SDK.
//! That keeps every context as a boxed trait object in one of three maps and brings a default for each of a hundred
//! callbacks: 25 KB in a module, of which nothing of ours used any, and a map and a virtual call more in each callback.
//! Here a callback is a plain function of its module.

/// What a module does when Envoy calls it.
///
/// A module has one thread and no value of its own that Envoy could name, so these are functions, not methods:
/// what they share stands in a thread-local. Contexts are numbers of Envoy's.
pub trait Shell {
    /// The VM begins, with a configuration of its own of `size` bytes.
    fn start(_size: usize) {}

    /// The context `context` begins: a stream of the root `root`, or a root itself where that is 0.
    fn create(context: u32, root: u32);

    /// The context `context` is gone.
    fn delete(context: u32);

    /// `root` is told its configuration, which has `size` bytes. `false` refuses it.
    fn configure(root: u32, size: usize) -> bool;

    /// The timer of `root` has fired.
    fn tick(root: u32);

    /// The request headers of `stream` are there.
    fn request_headers(_stream: u32) -> Flow {
        Flow::Continue
    }

    /// `size` bytes of the body of `stream`'s request are there.
    fn request_body(_stream: u32, _size: usize) -> DataFlow {
        DataFlow::Continue
    }

    /// A client has connected: `stream` is the connection, and no upstream has been asked yet.
    fn new_connection(_stream: u32) -> Flow {
        Flow::Continue
    }

    /// The client of the connection `stream` has sent something, or has nothing more to say.
    fn downstream_data(_stream: u32) -> Flow {
        Flow::Continue
    }

    /// The upstream of the connection `stream` has sent something, or has nothing more to say.
    fn upstream_data(_stream: u32) -> Flow {
        Flow::Continue
    }

    /// `stream` has ended, however it did: the one callback that always fires, and once.
    fn log(_stream: u32) {}

    /// Something stands in a queue of `root`.
    fn queue_ready(_root: u32) {}

    /// The call `call` that `root` made has ended, with a body of `size` bytes; with no `headers` it has failed.
    fn http_response(_root: u32, _call: u32, _headers: usize, _size: usize) {}
}

/// How a stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Flow {
    /// To the next filter.
    Continue = 0,
    /// Not now: it waits, or gets a reply of ours.
    Pause = 1,
}

/// How bytes of a body go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DataFlow {
    /// To the next filter, behind whatever is held of them.
    Continue = 0,
    /// Envoy holds them until the stream is continued, and reads no more than its buffer takes.
    Hold = 2,
    /// Not at all.
    Drop = 3,
}

/// Makes the functions that Envoy calls out of a [`Shell`]. Those that a module does nothing in are dropped by
/// `cargo xtask build`: each costs a request 0.7 µs.
#[macro_export]
macro_rules! entry_points {
    ($shell:ty) => {
        const _: () = {
            use $crate::dispatch::Shell;

            #[unsafe(export_name = "proxy_abi_version_0_2_1")]
            extern "C" fn abi_version() {}

            #[unsafe(export_name = "_initialize")]
            extern "C" fn initialize() {
                $crate::logging::start();
            }

            #[unsafe(export_name = "proxy_on_vm_start")]
            extern "C" fn on_vm_start(_root: u32, size: usize) -> u32 {
                <$shell as Shell>::start(size);
                1
            }

            #[unsafe(export_name = "proxy_on_context_create")]
            extern "C" fn on_context_create(context: u32, root: u32) {
                <$shell as Shell>::create(context, root);
            }

            #[unsafe(export_name = "proxy_on_delete")]
            extern "C" fn on_delete(context: u32) {
                <$shell as Shell>::delete(context);
            }

            #[unsafe(export_name = "proxy_on_configure")]
            extern "C" fn on_configure(root: u32, size: usize) -> u32 {
                u32::from(<$shell as Shell>::configure(root, size))
            }

            #[unsafe(export_name = "proxy_on_tick")]
            extern "C" fn on_tick(root: u32) {
                <$shell as Shell>::tick(root);
            }

            #[unsafe(export_name = "proxy_on_request_headers")]
            extern "C" fn on_request_headers(stream: u32, _headers: usize, _end: u32) -> u32 {
                <$shell as Shell>::request_headers(stream) as u32
            }

            #[unsafe(export_name = "proxy_on_request_body")]
            extern "C" fn on_request_body(stream: u32, size: usize, _end: u32) -> u32 {
                <$shell as Shell>::request_body(stream, size) as u32
            }

            #[unsafe(export_name = "proxy_on_new_connection")]
            extern "C" fn on_new_connection(stream: u32) -> u32 {
                <$shell as Shell>::new_connection(stream) as u32
            }

            #[unsafe(export_name = "proxy_on_downstream_data")]
            extern "C" fn on_downstream_data(stream: u32, _size: usize, _end: u32) -> u32 {
                <$shell as Shell>::downstream_data(stream) as u32
            }

            #[unsafe(export_name = "proxy_on_upstream_data")]
            extern "C" fn on_upstream_data(stream: u32, _size: usize, _end: u32) -> u32 {
                <$shell as Shell>::upstream_data(stream) as u32
            }

            #[unsafe(export_name = "proxy_on_log")]
            extern "C" fn on_log(stream: u32) {
                <$shell as Shell>::log(stream);
            }

            #[unsafe(export_name = "proxy_on_queue_ready")]
            extern "C" fn on_queue_ready(root: u32, _queue: u32) {
                <$shell as Shell>::queue_ready(root);
            }

            #[unsafe(export_name = "proxy_on_http_call_response")]
            extern "C" fn on_http_call_response(
                root: u32,
                call: u32,
                headers: usize,
                size: usize,
                _trailers: usize,
            ) {
                <$shell as Shell>::http_response(root, call, headers, size);
            }
        };
    };
}
