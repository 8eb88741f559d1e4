//! A gRPC server behind Envoy and a client before it, with all four kinds of methods.
//!
//! Both are tonic. `protos/shop.proto` says what they speak; what protoc would make of it stands here, so that nobody needs
//! protoc: one message, and one function that serves all methods, since on the wire one message is a stream of one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use hyper::body::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Body, BoxFuture, BoxStream, Service, StdError, http};
use tonic::server::{NamedService, StreamingService};
use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::upstream::Open;

/// The one message.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Item {
    /// Comes back as it was sent.
    #[prost(string, tag = "1")]
    pub name: String,
    /// How many.
    #[prost(uint32, tag = "2")]
    pub count: u32,
    /// The gRPC status to end with.
    #[prost(uint32, tag = "3")]
    pub status: u32,
    /// Milliseconds to wait.
    #[prost(uint32, tag = "4")]
    pub ms: u32,
}

impl Item {
    /// Wants this status.
    #[must_use]
    pub fn status(status: u32) -> Self {
        Self { status, ..Self::default() }
    }

    /// Wants to be answered so late.
    #[must_use]
    pub fn after_ms(ms: u32) -> Self {
        Self { ms, ..Self::default() }
    }
}

/// One message, one answer.
pub const ADD: &str = "/shop.Cart/Add";
/// Many messages, one answer.
pub const ADD_ALL: &str = "/shop.Cart/AddAll";
/// One message, many answers.
pub const WATCH: &str = "/shop.Cart/Watch";
/// Many of both.
pub const CHAT: &str = "/shop.Cart/Chat";

/// The server. Stops when dropped.
pub struct Shop {
    address: SocketAddr,
    calls: Calls,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What is known of each method.
type Calls = Arc<Mutex<BTreeMap<String, Seen>>>;

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    arrived: u64,
    open: Open,
}

impl Shop {
    /// Starts one on a loopback port that the system chooses.
    ///
    /// # Errors
    ///
    /// When there is no port or no thread for it.
    pub fn start() -> Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let calls = Calls::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let cart = Cart { calls: Arc::clone(&calls) };
        let thread = std::thread::Builder::new().name("shop".to_owned()).spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                let serving = Server::builder().add_service(cart).serve_with_incoming(incoming);
                // Its end is the test's; what goes wrong before is seen by clients.
                tokio::select! {
                    _ = serving => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, calls, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many calls of this method have arrived.
    #[must_use]
    pub fn arrived(&self, method: &str) -> u64 {
        seen(&self.calls).get(method).map_or(0, |seen| seen.arrived)
    }

    /// What is open of this method.
    #[must_use]
    pub fn open(&self, method: &str) -> Open {
        seen(&self.calls).get(method).map_or_else(Open::default, |seen| seen.open)
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already; there is nothing to add.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Shop {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Shop at {}: {:?}", self.address, seen(&self.calls))
    }
}

fn seen(calls: &Calls) -> MutexGuard<'_, BTreeMap<String, Seen>> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One open call; however it ends, it is dropped.
struct Call {
    calls: Calls,
    method: String,
}

impl Call {
    fn begin(calls: Calls, method: String) -> Self {
        let mut all = seen(&calls);
        let of_method = all.entry(method.clone()).or_default();
        of_method.arrived += 1;
        of_method.open.now += 1;
        of_method.open.most = of_method.open.most.max(of_method.open.now);
        drop(all);
        Self { calls, method }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(seen) = seen(&self.calls).get_mut(&self.method) {
            seen.open.now -= 1;
        }
    }
}

/// The service, as tonic calls it.
#[derive(Clone)]
struct Cart {
    calls: Calls,
}

impl NamedService for Cart {
    const NAME: &'static str = "shop.Cart";
}

impl<B> Service<http::Request<B>> for Cart
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = request.uri().path().to_owned();
        let serve = Serve { call: Some(Call::begin(Arc::clone(&self.calls), method)) };
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Item, Item>::default());
            Ok(grpc.streaming(serve, request).await)
        })
    }
}

struct Serve {
    call: Option<Call>,
}

impl StreamingService<Item> for Serve {
    type Response = Item;
    type ResponseStream = BoxStream<Item>;
    type Future = BoxFuture<Response<BoxStream<Item>>, Status>;

    fn call(&mut self, request: Request<Streaming<Item>>) -> Self::Future {
        let call = self.call.take();
        Box::pin(async move {
            let call = call.ok_or_else(|| Status::internal("served twice"))?;
            let answers = answers(&call.method, request.into_inner()).await?;
            // The call is open as long as its answers are.
            let answers: BoxStream<Item> = Box::pin(answers.map(move |answer| {
                let _open = &call;
                answer
            }));
            Ok(Response::new(answers))
        })
    }
}

/// What a method answers. An error here makes a trailers-only response; one in the stream stands in trailers.
async fn answers(
    method: &str,
    mut items: Streaming<Item>,
) -> Result<impl Stream<Item = Result<Item, Status>> + Send + 'static, Status> {
    let (answer, answers) = mpsc::channel(16);
    match method {
        ADD => {
            let item = items.message().await?.unwrap_or_default();
            wait(&item).await;
            ended(&item)?;
            let _ = answer.send(Ok(item)).await;
        }
        ADD_ALL => {
            let mut sum = Item::default();
            while let Some(item) = items.message().await? {
                ended(&item)?;
                sum.count += 1;
                sum.name = item.name;
            }
            let _ = answer.send(Ok(sum)).await;
        }
        WATCH => {
            let item = items.message().await?.unwrap_or_default();
            tokio::spawn(async move {
                for count in 1..=item.count {
                    let told = Item { count, ..item.clone() };
                    if answer.send(Ok(told)).await.is_err() {
                        return;
                    }
                    wait(&item).await;
                }
                if let Err(status) = ended(&item) {
                    let _ = answer.send(Err(status)).await;
                }
            });
        }
        CHAT => {
            tokio::spawn(async move {
                while let Ok(Some(item)) = items.message().await {
                    wait(&item).await;
                    let told = ended(&item).map(|()| item);
                    let is_over = told.is_err();
                    if answer.send(told).await.is_err() || is_over {
                        return;
                    }
                }
            });
        }
        _ => return Err(Status::unimplemented(method)),
    }
    Ok(ReceiverStream::new(answers))
}

async fn wait(item: &Item) {
    if item.ms > 0 {
        tokio::time::sleep(Duration::from_millis(u64::from(item.ms))).await;
    }
}

fn ended(item: &Item) -> Result<(), Status> {
    match i32::try_from(item.status).unwrap_or(0) {
        0 => Ok(()),
        status => Err(Status::new(status.into(), "as the item asked")),
    }
}

/// A client with one connection.
#[derive(Debug)]
pub struct Caller {
    runtime: Runtime,
    channel: Channel,
}

/// What came of a call: messages, and how it ended.
#[derive(Debug)]
pub struct Told {
    /// All messages.
    pub items: Vec<Item>,
    /// The status; `Ok` has code 0.
    pub status: Status,
}

impl Told {
    /// The status as a number.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().into()
    }
}

impl Caller {
    /// Connects at once.
    ///
    /// # Errors
    ///
    /// When nobody listens there.
    pub fn connect(server: SocketAddr) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("http://{server}"))?.tcp_nodelay(true);
        let channel = runtime
            .block_on(endpoint.connect())
            .with_context(|| format!("cannot connect to {server}"))?;
        Ok(Self { runtime, channel })
    }

    /// One message, one answer. Also of a method that has more: then the first.
    ///
    /// # Errors
    ///
    /// What it ended with.
    pub fn add(&self, method: &'static str, item: Item) -> Result<Item, Status> {
        self.runtime.block_on(async {
            let mut grpc = self.ready().await?;
            let codec = ProstCodec::<Item, Item>::default();
            let answered = grpc.unary(Request::new(item), path(method), codec).await?;
            Ok(answered.into_inner())
        })
    }

    /// Many messages, one answer.
    ///
    /// # Errors
    ///
    /// What it ended with.
    pub fn add_all(&self, items: Vec<Item>) -> Result<Item, Status> {
        self.runtime.block_on(async {
            let mut grpc = self.ready().await?;
            let codec = ProstCodec::<Item, Item>::default();
            let items = Request::new(tokio_stream::iter(items));
            Ok(grpc.client_streaming(items, path(ADD_ALL), codec).await?.into_inner())
        })
    }

    /// One message, many answers.
    pub fn watch(&self, item: Item) -> Told {
        self.runtime.block_on(async {
            let mut items = Vec::new();
            let status = async {
                let mut grpc = self.ready().await?;
                let codec = ProstCodec::<Item, Item>::default();
                let told = grpc.server_streaming(Request::new(item), path(WATCH), codec).await?;
                let mut told = told.into_inner();
                while let Some(item) = told.message().await? {
                    items.push(item);
                }
                Ok(())
            };
            let status = status.await.err().unwrap_or_else(|| Status::ok(""));
            Told { items, status }
        })
    }

    /// Opens a call of many messages both ways, and waits until the first has been answered.
    ///
    /// # Errors
    ///
    /// What it ended with.
    pub fn chat(&self) -> Result<Chat<'_>, Status> {
        let (say, said) = mpsc::channel(16);
        let told = self.runtime.block_on(async {
            let mut grpc = self.ready().await?;
            let codec = ProstCodec::<Item, Item>::default();
            let _ = say.send(Item::default()).await;
            let said = Request::new(ReceiverStream::new(said));
            let mut told = grpc.streaming(said, path(CHAT), codec).await?.into_inner();
            told.message().await?;
            Ok::<_, Status>(told)
        })?;
        Ok(Chat { caller: self, say, told })
    }

    async fn ready(&self) -> Result<tonic::client::Grpc<Channel>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        Ok(grpc)
    }
}

/// A call under way. Dropped, it is cancelled: the stream is reset.
#[derive(Debug)]
pub struct Chat<'a> {
    caller: &'a Caller,
    say: mpsc::Sender<Item>,
    told: Streaming<Item>,
}

impl Chat<'_> {
    /// Says one thing and hears the answer.
    ///
    /// # Errors
    ///
    /// What the call ended with.
    pub fn say(&mut self, item: Item) -> Result<Item> {
        self.caller.runtime.block_on(async {
            self.say.send(item).await?;
            self.told.message().await?.ok_or_else(|| anyhow!("the call has ended"))
        })
    }

    /// Says no more, and waits until the server has ended the call.
    ///
    /// # Errors
    ///
    /// What the call ended with.
    pub fn end(mut self) -> Result<()> {
        drop(self.say);
        self.caller.runtime.block_on(async {
            while self.told.message().await?.is_some() {}
            Ok(())
        })
    }
}

fn path(method: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(method)
}

/// The bytes in which a message stands in a body: not compressed, so long, and it.
#[must_use]
pub fn framed(item: &Item) -> Bytes {
    use prost::Message as _;
    let message = item.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
    [[0].as_slice(), length.as_slice(), message.as_slice()].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_method_answers_as_it_is_asked() {
        let shop = Shop::start().unwrap();
        let caller = Caller::connect(shop.address()).unwrap();

        let named = |name: &str| Item { name: name.to_owned(), ..Item::default() };
        assert_eq!(caller.add(ADD, named("tea")).unwrap(), named("tea"));
        assert_eq!(i32::from(caller.add(ADD, Item::status(9)).unwrap_err().code()), 9);
        assert_eq!(caller.add_all(vec![named("tea"), named("milk")]).unwrap().count, 2);
        let told = caller.watch(Item { count: 3, status: 13, ..Item::default() });
        assert_eq!((told.items.len(), told.code()), (3, 13));
        let mut chat = caller.chat().unwrap();
        assert_eq!(chat.say(named("milk")).unwrap(), named("milk"));
        assert_eq!(shop.open(CHAT).now, 1);
        chat.end().unwrap();

        let arrived = [ADD, ADD_ALL, WATCH, CHAT].map(|method| shop.arrived(method));
        assert_eq!(arrived, [2, 1, 1, 1]);
    }
}
