//! What the whole proxy bears: the arithmetic of system rules that the service evaluates.
//!
//! Source: sentinel-golang `core/system/slot.go` (semantics 2.9).

use crate::{rule::SystemMetric, stat::MetricBucket};

/// What is known of all inbound traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Inbound {
    /// What the last second counted.
    pub second: MetricBucket,
    /// The most completions of one bucket of the last second, as a number a second.
    pub complete_max_per_second: u64,
    /// Requests open now.
    pub in_flight: u64,
    /// Pressure on the CPU, 0 to 1 and more; `None`: unknown or stale.
    pub cpu: Option<f64>,
}

/// Whether a system rule refuses. Those that are token questions never do here.
#[expect(clippy::cast_precision_loss, reason = "milliseconds and counts are far below 2^53")]
pub fn refuses(metric: SystemMetric, trigger: f64, inbound: &Inbound) -> bool {
    match metric {
        SystemMetric::InboundQps | SystemMetric::Concurrency => false,
        SystemMetric::AvgRt => inbound.second.rt_avg_ms() as f64 >= trigger,
        SystemMetric::CpuUsage { bbr } => {
            inbound.cpu.is_some_and(|cpu| cpu > trigger) && !(bbr && bbr_passes(inbound))
        }
    }
}

/// Whether there are no more requests at a time than the proxy has shown it can serve: as many as it has
/// completed in its best half second, each in the time of its fastest.
fn bbr_passes(inbound: &Inbound) -> bool {
    let rt_min_ms = inbound.second.rt_min_ms().max(1);
    let served_ms = inbound.complete_max_per_second.saturating_mul(rt_min_ms);
    inbound.in_flight <= 1 || inbound.in_flight.saturating_mul(1_000) <= served_ms
}

#[cfg(test)]
mod tests {
    use super::*;

    const BBR: SystemMetric = SystemMetric::CpuUsage { bbr: true };
    const CPU: SystemMetric = SystemMetric::CpuUsage { bbr: false };

    fn completed(rts_ms: &[u64]) -> MetricBucket {
        MetricBucket {
            complete: rts_ms.len() as u64,
            rt_ms: rts_ms.iter().sum(),
            rt_min: rts_ms.iter().copied().map(MetricBucket::rt_min_of).max().unwrap_or(0),
            ..MetricBucket::default()
        }
    }

    fn with_cpu(cpu: f64) -> Inbound {
        Inbound { cpu: Some(cpu), ..Inbound::default() }
    }

    #[test]
    fn what_is_a_question_of_tokens_is_not_answered_here() {
        let busy = Inbound { in_flight: 1_000, ..with_cpu(9.0) };
        for metric in [SystemMetric::InboundQps, SystemMetric::Concurrency] {
            assert!(!refuses(metric, 0.5, &busy));
        }
    }

    #[test]
    fn an_average_at_the_trigger_refuses_and_is_rounded_down() {
        let inbound = |rts_ms| Inbound { second: completed(rts_ms), ..Inbound::default() };
        assert!(refuses(SystemMetric::AvgRt, 20.0, &inbound(&[10, 30])));
        assert!(!refuses(SystemMetric::AvgRt, 20.0, &inbound(&[10, 29])));
        assert!(!refuses(SystemMetric::AvgRt, 20.0, &inbound(&[])));
        assert!(refuses(SystemMetric::AvgRt, 0.0, &inbound(&[])), "0 is not below 0");
    }

    #[test]
    fn cpu_refuses_above_the_trigger_and_never_while_it_is_unknown() {
        assert!(!refuses(CPU, 0.5, &Inbound::default()));
        assert!(!refuses(CPU, 0.5, &with_cpu(0.5)));
        assert!(refuses(CPU, 0.5, &with_cpu(0.6)));
        assert!(!refuses(CPU, 0.5, &with_cpu(0.4)));
    }

    #[test]
    fn with_bbr_one_request_at_a_time_always_passes() {
        for (in_flight, refused) in [(0, false), (1, false), (2, true)] {
            // One completion in the best half second, and a shortest time of nothing, which counts as 1 ms.
            let inbound = Inbound { in_flight, complete_max_per_second: 2, ..with_cpu(1.0) };
            assert_eq!(refuses(BBR, 0.5, &inbound), refused, "{in_flight} in flight");
        }
    }

    #[test]
    fn with_bbr_as_many_pass_at_a_time_as_were_served() {
        for (in_flight, refused) in [(4, false), (5, true)] {
            let second = completed(&[100; 20]);
            let inbound =
                Inbound { in_flight, second, complete_max_per_second: 40, ..with_cpu(2.0) };
            assert_eq!(refuses(BBR, 0.5, &inbound), refused, "{in_flight} in flight");
            assert!(refuses(CPU, 0.5, &inbound));
        }
    }
}
