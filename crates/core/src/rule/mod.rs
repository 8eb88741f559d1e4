//! What is asked of a resource's traffic.
//!
//! A rule exists in two forms. What a document says is a [`node::Node`], where nothing is trusted;
//! what it means is a [`Rule`], which cannot be wrong any more. `compile` is the only way from one to the
//! other, and the only place where a rule is refused.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

pub mod compile;
pub mod error;
pub mod node;
pub(crate) mod read;

/// A rule that has been checked: one variant for each kind that this build runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Rule {
    /// At most so many requests in a window.
    Flow(FlowRule),
}

impl Rule {
    /// The rule's stable name.
    pub fn id(&self) -> &str {
        match self {
            Self::Flow(rule) => &rule.id,
        }
    }

    /// The resource that the rule governs.
    pub fn resource(&self) -> &str {
        match self {
            Self::Flow(rule) => &rule.resource,
        }
    }

    /// What every rule can say.
    pub fn common(&self) -> &Common {
        match self {
            Self::Flow(rule) => &rule.common,
        }
    }

    /// Whether a rule that replaces this one may go on with its tokens: both count the same
    /// (Sentinel's `isStatReusable`, sentinel-golang `core/flow/rule.go`).
    pub fn counts_the_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Flow(a), Self::Flow(b)) => {
                a.resource == b.resource && a.stat_interval_ms == b.stat_interval_ms
            }
        }
    }
}

/// At most `threshold` requests in each window of `stat_interval_ms`, over all workers
/// (Sentinel's Direct + Reject).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowRule {
    /// Stable name: 1 to 64 of `A-Za-z0-9._:/-`.
    pub id: String,
    /// The resource, by its whole name.
    pub resource: String,
    /// Requests in a window, 0 or more; 0 refuses all, fractions are not rounded (0.5 refuses all, 1.5
    /// admits one).
    pub threshold: f64,
    /// Window length in milliseconds, 1 or more; [`crate::window::WindowShape::for_flow`] says how it slides.
    pub stat_interval_ms: u32,
    /// What every rule can say.
    pub common: Common,
}

/// What every rule can say, whatever its kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Common {
    /// Count and report, never block.
    pub shadow: bool,
    /// What a refused client gets instead of the block type's own reply.
    pub response: Option<Response>,
    /// What a rule that needs the service does without it.
    pub on_service_loss: OnServiceLoss,
    /// What a token rule answers when shared data fails or holds a newer layout.
    pub on_host_failure: OnHostFailure,
}

/// A reply of the operator's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
