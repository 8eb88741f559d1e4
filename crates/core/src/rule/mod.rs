//! What is asked of a resource's traffic.
//!
//! A rule exists in two forms. What a document says is a [`node::Node`], where nothing is trusted;
//! what it means is a [`Rule`], which cannot be wrong any more. `compile` is the only way from one to the
//! other, and the only place where a rule is refused.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::{
    block::BlockType,
    param::{Param, ParamMatch},
    warm_up::WarmUp,
};

pub mod compile;
pub mod error;
pub mod node;
pub(crate) mod read;
pub mod shape;

/// The name under which everything inbound is counted together (Sentinel's).
pub const INBOUND: &str = "__total_inbound_traffic__";

/// A rule that has been checked: one variant for each kind, in the order in which they are checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Rule {
    /// Who may call.
    Authority(AuthorityRule),
    /// What the whole proxy bears.
    System(SystemRule),
    /// At most so many requests of a route or an API group, by a value of theirs or together.
    Gateway(HotspotRule),
    /// At most so many requests in a window, or at a pace.
    Flow(FlowRule),
    /// At most so many requests at a time.
    Isolation(IsolationRule),
    /// At most so many requests for each value of a parameter.
    Hotspot(HotspotRule),
    /// None while too many fail or are slow.
    CircuitBreaker(CircuitBreakerRule),
}

/// What a rule applies to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Target {
    /// The resource of this name.
    Resource(String),
    /// Every resource whose whole name matches this pattern, each with counters of its own.
    Pattern(String),
    /// Every resource that no other rule of the kind names or matches, each with counters of its own: `"*"`.
    Default,
    /// Every request whose path belongs to this group, all of them together.
    Group(ApiGroup),
}

/// An API group: paths that are governed together (Sentinel's `ApiDefinition`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApiGroup {
    /// `apiName`.
    pub name: String,
    /// A path belongs to the group if it matches any.
    pub predicates: Vec<PathPredicate>,
}

/// How an API group recognises a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathPredicate {
    /// Exactly this path.
    Exact(String),
    /// An ant-style pattern: `?` one character, `*` within a segment, `**` any number of segments.
    Prefix(String),
    /// The whole path matches this regular expression.
    Regex(String),
}

/// Which callers a flow rule counts (Sentinel's `limitApp`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitApp {
    /// All of them together, known or not.
    #[default]
    Default,
    /// Each known caller that no other flow rule of the resource names, on its own.
    Other,
    /// This caller.
    Origin(String),
}

/// At most `threshold` requests in each window of `stat_interval_ms`, over all workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowRule {
    /// Stable name: 1 to 64 of `A-Za-z0-9._:/-`.
    pub id: String,
    /// What is governed: a resource, a pattern, or every other resource.
    pub target: Target,
    /// Whose requests count.
    pub limit_app: LimitApp,
    /// Requests in a window, 0 or more; 0 refuses all, fractions are not rounded (0.5 refuses all, 1.5
    /// admits one). Not looked at by [`TokenCalculate::MemoryAdaptive`].
    pub threshold: f64,
    /// Window length in milliseconds, 1 or more; [`crate::window::WindowShape::for_flow`] says how it slides.
    pub stat_interval_ms: u32,
    /// How the threshold comes about.
    pub calculate: TokenCalculate,
    /// What happens to a request that is too many.
    pub control: Control,
    /// The resource whose admitted requests are counted instead of the rule's own (AssociatedResource).
    pub ref_resource: Option<String>,
    /// What every rule can say.
    pub common: Common,
}

/// Sentinel's `tokenCalculateStrategy`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum TokenCalculate {
    /// The threshold as it stands.
    #[default]
    Direct,
    /// Less while the resource is cold.
    WarmUp(WarmUp),
    /// More while memory is plenty.
    MemoryAdaptive(MemoryMarks),
}

/// Thresholds by memory: `low_threshold` up to `low_mark_bytes`, `high_threshold` from `high_mark_bytes`
/// on, and a straight line between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryMarks {
    /// `lowMemUsageThreshold`.
    pub low_threshold: u64,
    /// `highMemUsageThreshold`, less than `low_threshold`.
    pub high_threshold: u64,
    /// `memLowWaterMarkBytes`.
    pub low_mark_bytes: u64,
    /// `memHighWaterMarkBytes`, more than `low_mark_bytes`.
    pub high_mark_bytes: u64,
}

/// Sentinel's `controlBehavior`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// It is refused.
    #[default]
    Reject,
    /// It waits for its turn, but for no longer than this.
    Throttling {
        /// `maxQueueingTimeMs`.
        max_queueing_ms: u32,
    },
}

/// At most `threshold` requests at a time, over all workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IsolationRule {
    /// Stable name.
    pub id: String,
    /// What is governed: a resource, a pattern, or every other resource.
    pub target: Target,
    /// Requests at a time, 1 or more.
    pub threshold: u32,
    /// What every rule can say.
    pub common: Common,
}

/// What one value of a parameter may have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HotspotRule {
    /// Stable name.
    pub id: String,
    /// What is governed: a resource, or, for a gateway rule, an API group.
    pub target: Target,
    /// Where the value comes from; `None`: all requests are one value (a gateway rule without `paramItem`).
    pub param: Option<ParamPick>,
    /// What is counted.
    pub metric: HotspotMetric,
    /// Requests of one value in `duration_ms`, or at a time.
    pub threshold: u64,
    /// Values with another threshold; the first that matches counts.
    pub items: Vec<SpecificItem>,
    /// How many values are kept apart.
    pub capacity: u32,
    /// What happens to a value for which there is no room.
    pub overflow: Overflow,
    /// What every rule can say.
    pub common: Common,
}

/// Where a hot-parameter rule's value comes from: the named parameter, else the one at the index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParamPick {
    /// `paramKey`.
    pub key: Option<Param>,
    /// `paramIndex` into the filter's `args`; negative ones count from the end.
    pub index: Option<i32>,
    /// Which values count (a gateway rule's `pattern`); all others pass.
    pub matching: Option<ParamMatch>,
}

/// What a hot-parameter rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HotspotMetric {
    /// Requests at a time.
    Concurrency,
    /// Requests: `threshold` in each `duration_ms`, and `burst` more after a rest.
    Reject {
        /// `durationInSec`, in milliseconds.
        duration_ms: u64,
        /// `burstCount`.
        burst: u64,
    },
    /// Requests at a pace: one each `duration_ms / threshold`.
    Throttling {
        /// `durationInSec`, in milliseconds.
        duration_ms: u64,
        /// `maxQueueingTimeMs`. A hot-parameter rule refuses a wait that is not shorter, a gateway rule too.
        max_queueing_ms: u64,
    },
}

/// A value with a threshold of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpecificItem {
    /// The value.
    pub value: ItemValue,
    /// Its threshold.
    pub threshold: u64,
}

/// A value of a `specificItems` entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ItemValue {
    /// `KindInt`.
    Int(i64),
    /// `KindString`.
    String(String),
    /// `KindBool`.
    Bool(bool),
    /// `KindFloat64`, rounded to 5 decimals.
    Float(f64),
}

/// What happens to a new value when its part of the table is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Overflow {
    /// It shares one budget with all others for which there was no room.
    #[default]
    Share,
    /// It is refused.
    Block,
}

/// No request while too many fail or are slow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CircuitBreakerRule {
    /// Stable name.
    pub id: String,
    /// The resource.
    pub target: Target,
    /// What is bad, and how much of it opens the breaker.
    pub strategy: BreakerStrategy,
    /// `retryTimeoutMs`: how long the breaker stays open before a probe, 1 or more.
    pub retry_timeout_ms: u32,
    /// `minRequestAmount`: completions in a window below which nothing opens.
    pub min_request_amount: u64,
    /// `statIntervalMs`: the window, 1 or more.
    pub stat_interval_ms: u32,
    /// `statSlidingWindowBucketCount`: divides `stat_interval_ms`; 1 tumbles.
    pub buckets: u32,
    /// `probeNum`, at least 1: good probes that close it, and the most that are out.
    pub probe_num: u32,
    /// HTTP statuses that are errors, as ranges with both ends; `None`: 500 and above.
    pub error_statuses: Option<Vec<(u16, u16)>>,
    /// gRPC statuses that are errors; `None`: 2, 4, 8, 13, 14 and 15.
    pub grpc_error_statuses: Option<Vec<u32>>,
    /// Whether TCP connections that are there when it opens are told and closed.
    pub close_live_connections: bool,
    /// What every rule can say.
    pub common: Common,
}

/// Sentinel's `strategy` of a circuit breaker, with its `threshold`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum BreakerStrategy {
    /// This part of the completions took longer than `max_allowed_rt_ms`.
    SlowRequestRatio {
        /// `maxAllowedRtMs`.
        max_allowed_rt_ms: u64,
        /// 0 to 1.
        ratio: f64,
    },
    /// This part of the completions were errors, 0 to 1.
    ErrorRatio(f64),
    /// So many completions were errors.
    ErrorCount(u64),
}

/// What the whole proxy bears of inbound traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SystemRule {
    /// Stable name.
    pub id: String,
    /// What is looked at.
    pub metric: SystemMetric,
    /// `triggerCount`: requests a second, requests at a time, milliseconds, or 0 to 1 for the CPU.
    pub trigger: f64,
    /// What every rule can say.
    pub common: Common,
}

/// Sentinel's `metricType` of a system rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SystemMetric {
    /// Requests in a second.
    InboundQps,
    /// Requests at a time.
    Concurrency,
    /// The average response time of the last second.
    AvgRt,
    /// The pressure on the CPU that Envoy's overload manager reports.
    CpuUsage {
        /// Whether requests still pass while there are no more at a time than the proxy has shown it can
        /// serve (BBR).
        bbr: bool,
    },
}

/// Who may call a resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuthorityRule {
    /// Stable name.
    pub id: String,
    /// What is governed.
    pub target: Target,
    /// Callers, by their whole names, or by networks that their addresses are in ([`crate::network`]).
    pub origins: Vec<String>,
    /// Whether only they may call; else everybody but them.
    pub white_list: bool,
    /// What every rule can say.
    pub common: Common,
}

/// What every rule can say, whatever its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    /// Count and report, never block.
    pub shadow: bool,
    /// What a refused client gets instead of the block type's own reply.
    pub response: Option<Response>,
    /// What a rule that needs the service does without it.
    pub on_service_loss: OnServiceLoss,
    /// What a token rule answers when shared data fails or holds a newer layout.
    pub on_host_failure: OnHostFailure,
    /// What the rule counts. Few kinds count anything but requests ([`Rule::message_problem`]).
    pub unit: Unit,
}

/// What a rule counts one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Requests, from their headers on.
    #[default]
    Request,
    /// Messages that a client sends in a stream: of gRPC, or frames of a WebSocket. Only the filter that reads streams
    /// counts them ([`crate::message`]).
    Message,
}

/// A reply of the operator's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// HTTP status, 200 to 599.
    pub status: Option<u16>,
    /// Headers to add, in order; a name of ours is replaced.
    pub headers: Vec<(String, String)>,
    /// Body instead of ours.
    pub body: Option<String>,
}

/// What a rule that needs the service does while there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnServiceLoss {
    /// The last decision stands.
    #[default]
    Keep,
    /// The rule passes everything.
    Pass,
    /// The rule refuses everything.
    Block,
}

/// What a token rule answers when its ledger cannot be read or written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnHostFailure {
    /// The rule passes the request.
    Pass,
    /// The rule refuses the request.
    #[default]
    Block,
}

/// What a rule keeps about requests, and so where the workers and the service keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Nothing: the request or the service's decision says it all.
    Nothing,
    /// Tokens of a window.
    Rate,
    /// The next slot of a pace.
    Pace,
    /// Requests in flight.
    Permits,
    /// A bucket of tokens.
    Bucket,
    /// Whether the breaker is open, and who probes.
    Breaker,
}

impl Rule {
    /// The rule's stable name.
    pub fn id(&self) -> &str {
        match self {
            Self::Authority(rule) => &rule.id,
            Self::System(rule) => &rule.id,
            Self::Flow(rule) => &rule.id,
            Self::Isolation(rule) => &rule.id,
            Self::Gateway(rule) | Self::Hotspot(rule) => &rule.id,
            Self::CircuitBreaker(rule) => &rule.id,
        }
    }

    /// The name under which the rule is shown: its resource, its pattern, `*`, or its API group.
    pub fn resource(&self) -> &str {
        match self {
            Self::Authority(rule) => rule.target.name(),
            Self::System(_) => INBOUND,
            Self::Flow(rule) => rule.target.name(),
            Self::Isolation(rule) => rule.target.name(),
            Self::Gateway(rule) | Self::Hotspot(rule) => rule.target.name(),
            Self::CircuitBreaker(rule) => rule.target.name(),
        }
    }

    /// What the rule applies to; `None` for a system rule, which applies to all that is inbound.
    pub fn target(&self) -> Option<&Target> {
        match self {
            Self::System(_) => None,
            Self::Authority(rule) => Some(&rule.target),
            Self::Flow(rule) => Some(&rule.target),
            Self::Isolation(rule) => Some(&rule.target),
            Self::Gateway(rule) | Self::Hotspot(rule) => Some(&rule.target),
            Self::CircuitBreaker(rule) => Some(&rule.target),
        }
    }

    /// What every rule can say.
    pub fn common(&self) -> &Common {
        match self {
            Self::Authority(rule) => &rule.common,
            Self::System(rule) => &rule.common,
            Self::Flow(rule) => &rule.common,
            Self::Isolation(rule) => &rule.common,
            Self::Gateway(rule) | Self::Hotspot(rule) => &rule.common,
            Self::CircuitBreaker(rule) => &rule.common,
        }
    }

    /// What a client that the rule refuses is told.
    pub fn block_type(&self) -> BlockType {
        match self {
            Self::Authority(_) => BlockType::Authority,
            Self::System(_) => BlockType::System,
            Self::Gateway(_) | Self::Flow(_) => BlockType::FlowControl,
            Self::Isolation(_) => BlockType::Isolation,
            Self::Hotspot(_) => BlockType::HotSpotParamFlow,
            Self::CircuitBreaker(_) => BlockType::CircuitBreaking,
        }
    }

    /// The kind's place in the order of checks.
    pub fn rank(&self) -> u8 {
        match self {
            Self::Authority(_) => 0,
            Self::System(_) => 1,
            Self::Gateway(_) => 2,
            Self::Flow(_) => 3,
            Self::Isolation(_) => 4,
            Self::Hotspot(_) => 5,
            Self::CircuitBreaker(_) => 6,
        }
    }

    /// What the rule keeps.
    pub fn keeps(&self) -> Keeps {
        match self {
            Self::Authority(_) => Keeps::Nothing,
            Self::System(rule) => match rule.metric {
                SystemMetric::InboundQps => Keeps::Rate,
                SystemMetric::Concurrency => Keeps::Permits,
                SystemMetric::AvgRt | SystemMetric::CpuUsage { .. } => Keeps::Nothing,
            },
            Self::Flow(rule) => match rule.control {
                Control::Throttling { .. } => Keeps::Pace,
                Control::Reject if rule.ref_resource.is_some() => Keeps::Nothing,
                Control::Reject => Keeps::Rate,
            },
            Self::Isolation(_) => Keeps::Permits,
            Self::Gateway(rule) | Self::Hotspot(rule) => match rule.metric {
                HotspotMetric::Concurrency => Keeps::Permits,
                HotspotMetric::Reject { .. } => Keeps::Bucket,
                HotspotMetric::Throttling { .. } => Keeps::Pace,
            },
            Self::CircuitBreaker(_) => Keeps::Breaker,
        }
    }

    /// How many counters the rule keeps apart, by resource, caller or value; 0 if it has one. `matched` is how many
    /// it keeps apart by resource or caller ([`compile::matched_capacity`]).
    pub fn table_capacity(&self, matched: u32) -> u32 {
        match self {
            Self::Authority(_) | Self::System(_) | Self::CircuitBreaker(_) => 0,
            Self::Flow(rule) => {
                let by_origin = rule.limit_app == LimitApp::Other;
                if by_origin || rule.target.is_many() { matched } else { 0 }
            }
            Self::Isolation(rule) if rule.target.is_many() => matched,
            Self::Isolation(_) => 0,
            Self::Gateway(rule) | Self::Hotspot(rule) => match rule.param {
                Some(_) => rule.capacity.max(1),
                None => 0,
            },
        }
    }

    /// Whether the service decides something for the rule.
    pub fn needs_service(&self) -> bool {
        match self {
            Self::Authority(_) | Self::Isolation(_) | Self::Gateway(_) | Self::Hotspot(_) => false,
            Self::System(rule) => {
                matches!(rule.metric, SystemMetric::AvgRt | SystemMetric::CpuUsage { .. })
            }
            Self::Flow(rule) => {
                let reads = rule.ref_resource.is_some() && rule.control == Control::Reject;
                reads || matches!(rule.calculate, TokenCalculate::MemoryAdaptive(_))
            }
            Self::CircuitBreaker(_) => true,
        }
    }

    /// Why the rule cannot count messages; `None` if it can.
    pub fn message_problem(&self) -> Option<&'static str> {
        match self {
            Self::Flow(rule) if rule.ref_resource.is_some() => {
                Some("is message, but an AssociatedResource's requests are counted: leave it out")
            }
            Self::Flow(FlowRule { calculate: TokenCalculate::MemoryAdaptive(_), .. }) => {
                Some("is message, but MemoryAdaptive is for requests: use Direct or WarmUp")
            }
            Self::Hotspot(HotspotRule { metric: HotspotMetric::Concurrency, .. }) => {
                Some("is message, but only requests are counted at a time: use `metricType: QPS`")
            }
            Self::Flow(_) | Self::Hotspot(_) => None,
            Self::Authority(_)
            | Self::System(_)
            | Self::Gateway(_)
            | Self::Isolation(_)
            | Self::CircuitBreaker(_) => {
                Some("is message, which only FlowRules and HotspotRules count: leave it out")
            }
        }
    }

    /// Whether a rule that replaces this one may go on with what it has counted: both count the same
    /// (Sentinel's `isStatReusable`, sentinel-golang `core/*/rule.go`). A breaker goes on only if nothing but
    /// its name has changed: a changed one starts closed (semantics 1.12).
    pub fn counts_the_same_as(&self, other: &Self) -> bool {
        if self.keeps() != other.keeps()
            || self.table_capacity(1) != other.table_capacity(1)
            || self.common().unit != other.common().unit
        {
            return false;
        }
        match (self, other) {
            (Self::Authority(a), Self::Authority(b)) => a.target == b.target,
            (Self::System(a), Self::System(b)) => a.metric == b.metric,
            (Self::Flow(a), Self::Flow(b)) => {
                a.target == b.target
                    && a.stat_interval_ms == b.stat_interval_ms
                    && a.limit_app == b.limit_app
                    && a.ref_resource == b.ref_resource
            }
            (Self::Isolation(a), Self::Isolation(b)) => a.target == b.target,
            (Self::Gateway(a), Self::Gateway(b)) | (Self::Hotspot(a), Self::Hotspot(b)) => {
                a.target.name() == b.target.name()
                    && a.param == b.param
                    && a.metric.duration_ms() == b.metric.duration_ms()
            }
            (Self::CircuitBreaker(a), Self::CircuitBreaker(b)) => {
                let named =
                    CircuitBreakerRule { id: b.id.clone(), common: b.common.clone(), ..a.clone() };
                named == *b
            }
            _ => false,
        }
    }

    /// Whether this rule stands where `old` stood, although it may count something else: a rule of its name and kind,
    /// for the same requests.
    pub fn stands_for(&self, old: &Self) -> bool {
        let same_callers = match (self, old) {
            (Self::Flow(a), Self::Flow(b)) => a.limit_app == b.limit_app,
            _ => true,
        };
        same_callers
            && self.rank() == old.rank()
            && self.id() == old.id()
            && self.target() == old.target()
    }
}

impl Target {
    /// The resource, the pattern, `*`, or the group.
    pub fn name(&self) -> &str {
        match self {
            Self::Resource(name) | Self::Pattern(name) => name,
            Self::Default => "*",
            Self::Group(group) => &group.name,
        }
    }

    /// Whether several resources match, each of which counts on its own.
    pub fn is_many(&self) -> bool {
        matches!(self, Self::Pattern(_) | Self::Default)
    }
}

impl HotspotMetric {
    /// The length of time that a threshold speaks of; 0 for concurrency.
    pub fn duration_ms(self) -> u64 {
        match self {
            Self::Concurrency => 0,
            Self::Reject { duration_ms, .. } | Self::Throttling { duration_ms, .. } => duration_ms,
        }
    }
}

impl BreakerStrategy {
    /// Whether errors are what counts, and not time.
    pub fn is_about_errors(self) -> bool {
        match self {
            Self::SlowRequestRatio { .. } => false,
            Self::ErrorRatio(_) | Self::ErrorCount(_) => true,
        }
    }
}

impl MemoryMarks {
    /// The threshold while `bytes` are in use; unknown is as good as little (semantics 2.5).
    #[expect(clippy::cast_precision_loss, reason = "thresholds and marks are at most 2^53")]
    pub fn threshold(&self, bytes: Option<u64>) -> f64 {
        let (low, high) = (self.low_threshold as f64, self.high_threshold as f64);
        match bytes {
            Some(bytes) if bytes >= self.high_mark_bytes => high,
            Some(bytes) if bytes > self.low_mark_bytes => {
                let above = (bytes - self.low_mark_bytes) as f64;
                let between =
                    self.high_mark_bytes.saturating_sub(self.low_mark_bytes).max(1) as f64;
                low + above * (high - low) / between
            }
            Some(_) | None => low,
        }
    }
}
