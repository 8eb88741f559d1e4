//! Runs by their seeds, and how they end.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use sentinel_core::{
    rule::{Control, Rule, Target, TokenCalculate, Unit},
    time::Nanos,
};

use crate::{
    checker::{Broken, Moves, WindowUse},
    scenario::{Pattern, Scenario},
    vm::{Counted, Done, Order},
    world::World,
};

/// What a run shows of itself.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// Gets one line for each event.
    pub trace: Option<&'a (dyn Fn(&str) + Sync)>,
}

impl fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("trace", &self.trace.is_some()).finish()
    }
}

/// A run in which every promise held.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// What admitted requests counted.
    pub admitted: u64,
    /// What refused requests counted.
    pub refused: u64,
    /// What requests counted that waited for their slot.
    pub waited: u64,
    /// How long after its slot the latest of them went on, in nanoseconds.
    pub latest: u64,
    /// When the last of them went on, in nanoseconds since the start.
    pub all_gone: u64,
    /// How breakers have moved.
    pub moves: Moves,
    /// Breakers that are not closed at the end.
    pub not_closed: usize,
    /// Host calls.
    pub calls: u64,
    /// VMs that trapped.
    pub traps: u64,
    /// The most messages that ever waited in the queue.
    pub backlog: usize,
    /// Compare-and-sets that came too late.
    pub cas_retries: u64,
    /// For each rule of the first set: tokens that were granted and never spent, in the buckets that its
    /// ledger still knows.
    pub stranded: Vec<u64>,
    /// For each rule of the first set: what each whole window admitted.
    pub windows: Vec<Vec<u64>>,
    /// Messages that went on.
    pub messages: u64,
    /// Those of them that waited for their slot.
    pub messages_waited: u64,
    /// Messages that were refused.
    pub messages_refused: u64,
    pub(crate) messages_lost_at_most: u64,
    pub(crate) pass_lost_at_most: u64,
    pub(crate) block_lost_at_most: u64,
}

/// A promise that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The run's seed.
    pub seed: u64,
    /// When, in nanoseconds since the start.
    pub at_ns: u64,
    /// What, in one sentence.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, at_ns, what } = self;
        let at_ms = at_ns / 1_000_000;
        write!(
            f,
            "seed {seed}: {what} (after {at_ms} ms)\nreplay: cargo xtask sim --seed {seed} --trace"
        )
    }
}

impl Error for Failure {}

/// Where a run's events go.
#[derive(Clone, Copy)]
pub(crate) struct Trace<'a>(Option<&'a (dyn Fn(&str) + Sync)>);

impl Trace<'_> {
    pub(crate) fn is_on(self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn line(self, now_ns: u64, what: fmt::Arguments<'_>) {
        if let Some(print) = self.0 {
            let (ms, ns) = (now_ns / 1_000_000, now_ns % 1_000_000);
            print(&format!("{ms:>6}.{ns:06} ms  {what}"));
        }
    }
}

/// The run of `seed`, checked.
///
/// # Errors
/// If a promise does not hold in it.
pub fn run(seed: u64, options: Options<'_>) -> Result<Report, Failure> {
    run_scenario(seed, &Scenario::from_seed(seed), options)
}

/// A run of `scenario`, in which `seed` only says in which order calls fall and how long they take.
///
/// # Errors
/// If a promise does not hold in it.
pub fn run_scenario(
    seed: u64,
    scenario: &Scenario,
    options: Options<'_>,
) -> Result<Report, Failure> {
    let trace = Trace(options.trace);
    trace.line(0, format_args!("{scenario:#?}"));
    let mut world = World::new(seed, scenario, trace);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        world.run()?;
        check_at_rest(&mut world, scenario)
    }));
    let outcome = outcome.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
        Err(format!("a VM panicked: {said}"))
    });
    match outcome {
        Ok(()) => Ok(world.report),
        Err(what) => Err(Failure { seed, at_ns: world.elapsed(), what }),
    }
}

/// The runs of `runs` seeds from `first` on, on `jobs` threads at once, until one fails. `progress` is told
/// after each run.
///
/// # Errors
/// The failure with the smallest seed among those that were found.
pub fn run_many(
    first: u64,
    runs: u64,
    jobs: usize,
    progress: impl Fn(&Report) + Sync,
) -> Result<(), Failure> {
    let next = AtomicU64::new(0);
    let failed: Mutex<Option<Failure>> = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= runs {
                        return;
                    }
                    match run(first.wrapping_add(index), Options::default()) {
                        Ok(report) => progress(&report),
                        Err(failure) => {
                            next.store(runs, Ordering::Relaxed);
                            let mut failed = failed.lock().unwrap_or_else(|lock| lock.into_inner());
                            if failed.as_ref().is_none_or(|other| failure.seed < other.seed) {
                                *failed = Some(failure);
                            }
                        }
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(|lock| lock.into_inner()).map_or(Ok(()), Err)
}

/// What must hold when everybody has come to rest.
fn check_at_rest(world: &mut World<'_>, scenario: &Scenario) -> Result<(), Broken> {
    let report = &world.report;
    let totals = [
        ("sentinel.pass_total", report.admitted, report.pass_lost_at_most),
        ("sentinel.block_total", report.refused, report.block_lost_at_most),
    ];
    for (name, answered, lost_at_most) in totals {
        let counted = world.stat(name);
        if counted > answered || counted + lost_at_most < answered {
            return Err(format!(
                "{name} is {counted}, but {answered} were answered, of which trapped workers may lose {lost_at_most}"
            ));
        }
    }
    let messages = [
        (".message_pass_total", report.messages),
        (".message_block_total", report.messages_refused),
    ];
    for (end, answered) in messages {
        let counted = world.stats_ending(end);
        let lost_at_most = report.messages_lost_at_most;
        if counted > answered || counted + lost_at_most < answered {
            return Err(format!(
                "all {end} are {counted}, but {answered} were answered, of which trapped workers may lose {lost_at_most}"
            ));
        }
    }
    check_rules_in_force(world, scenario)?;
    let frames_lost = world.stat("sentinel.frames_lost");
    if frames_lost > 0 {
        return Err(format!("{frames_lost} frames are lost, though the queue loses none"));
    }
    // Who carries what and each configuration; and that a service was missing.
    let carried = if scenario.roots.is_empty() { 0 } else { 1 + scenario.roots.len() };
    let missing = usize::from(scenario.service_from > 0);
    let (keys, most) = (world.keys(), world.checker.keys_most() + carried + missing);
    if keys > most {
        return Err(format!("shared data has {keys} keys, and {most} are enough"));
    }
    check_sizes(world)?;
    // A worker sends once a second, and no more when the service has been silent for three; where a rule waits
    // for what it says, each 5 ms.
    let each = if scenario.needs_service() { 3_100 / 5 } else { 6 };
    // Whoever carries rules sends a frame without contents when something is new.
    let nudges = 2 * scenario.roots.len() * (scenario.workers + 1);
    let backlog_most = each * (scenario.workers + scenario.faults.len()) + nudges;
    if world.report.backlog > backlog_most {
        let backlog = world.report.backlog;
        return Err(format!(
            "{backlog} frames waited in the queue, and {backlog_most} are too many"
        ));
    }
    world.checker.no_permits_are_held(&world.workers)?;
    if scenario.is_faultless() {
        world.checker.nothing_is_held(world.clock(), &world.workers)?;
        let (unused, lost) =
            (world.checker.slots_unused(), world.stat("sentinel.pacing_slots_lost"));
        if unused > lost {
            return Err(format!(
                "{unused} slots were taken and not used, and {lost} count as lost"
            ));
        }
        check_windows_of_service(world, scenario)?;
        if scenario.is_steady() && scenario.stall_one_in == 0 {
            world.checker.breakers_have_opened()?;
        }
        check_hardly_under(world, scenario)?;
    }
    let (from, until) = (Nanos::new(0), world.clock());
    let first_rules =
        scenario.rule_sets.first().map(|(_, rules)| rules.as_slice()).unwrap_or_default();
    let from = world.checker.now(0).max(from);
    for rule in first_rules {
        let uses = world.checker.windows(rule.id(), from, until);
        world.report.windows.push(uses.iter().map(|window| window.admitted).collect());
        world.report.stranded.push(world.checker.stranded(rule.id()));
    }
    world.report.moves = world.checker.moves;
    world.report.not_closed = world.checker.not_closed();
    world.report.cas_retries = world.stat("sentinel.cas_retries");
    Ok(())
}

/// The newest rules are those that were configured last, if there still is a service.
fn check_rules_in_force(world: &World<'_>, scenario: &Scenario) -> Result<(), Broken> {
    if !world.has_service() {
        return Ok(());
    }
    let Some((_, configured)) = scenario.rule_sets.last() else { return Ok(()) };
    let in_force = world.checker.rules_in_force();
    // Of what living roots carry the newest counts.
    let mut living: BTreeMap<&str, String> = BTreeMap::new();
    let roots = scenario.roots.iter().filter(|root| root.until.is_none());
    for rule in roots.flat_map(|root| &root.rules) {
        living.insert(rule.id(), format!("{rule:?}"));
    }
    let mut in_force: BTreeSet<_> = in_force.iter().map(|rule| format!("{rule:?}")).collect();
    let mut configured: BTreeSet<_> = configured.iter().map(|rule| format!("{rule:?}")).collect();
    // Who trapped, or could not say that a root has gone, is taken to carry it for half a minute more; and if that root
    // was the newest, it still wins.
    if world.report.traps > 0 || scenario.failures.is_some() {
        for rule in scenario.roots.iter().flat_map(|root| &root.rules) {
            if in_force.remove(&format!("{rule:?}")) {
                living.remove(rule.id());
            }
        }
    }
    configured.extend(living.into_values());
    if in_force == configured {
        return Ok(());
    }
    let (published, wanted) = (in_force.len(), configured.len());
    Err(format!("the {published} rules in force are not the {wanted} that were configured last"))
}

/// No value in shared data is larger than what it speaks of: rules, VMs that have ever been, and a table's values.
fn check_sizes(world: &World<'_>) -> Result<(), Broken> {
    const PER_VM: usize = 32;
    const PER_RULE: usize = 600;
    const LEDGER: usize = 400;
    const VALUES: usize = 33;
    let (vms, rules) = (world.vms(), world.checker.rules_most());
    for (key, size) in world.sizes() {
        let ledger = LEDGER + vms * PER_VM;
        let is_table = key.starts_with("sentinel/t/");
        let most = if is_table { VALUES * ledger } else { ledger + rules * PER_RULE };
        if size > most {
            return Err(format!("{key} has {size} bytes in shared data, and {most} are enough"));
        }
    }
    Ok(())
}

/// The service has counted every request, once. (A resource that leaves the rules begins anew when it comes
/// back, so that only those runs are looked at in which none leaves.)
fn check_windows_of_service(world: &mut World<'_>, scenario: &Scenario) -> Result<(), Broken> {
    const REMEMBERED: u64 = 9_000_000_000;
    let ruled_by = |rules: &'_ [Rule]| -> BTreeSet<String> {
        let named = rules.iter().filter(|rule| matches!(rule.target(), Some(Target::Resource(_))));
        named.map(|rule| rule.resource().to_owned()).collect()
    };
    let sets: Vec<BTreeSet<String>> =
        scenario.rule_sets.iter().map(|(_, rules)| ruled_by(rules)).collect();
    let leaves = sets.windows(2).any(|pair| matches!(pair, [old, new] if !old.is_subset(new)));
    // The same where a root carries a rule of one.
    let of_roots = scenario.roots.iter().flat_map(|root| ruled_by(&root.rules));
    let leaves =
        leaves || of_roots.into_iter().any(|name| sets.iter().any(|set| !set.contains(&name)));
    // Without wake-ups a frame may come so late that it counts in no window.
    if leaves || scenario.wake_ups_lost_one_in > 0 || world.elapsed() > REMEMBERED {
        return Ok(());
    }
    let ruled = sets.iter().flatten().map(String::as_str).collect::<BTreeSet<_>>();
    let mut sum = Counted::default();
    for resource in ruled.into_iter().chain(["other"]) {
        // Of two services one has heard all and the other nothing.
        for thread in (world.main_thread()..).take(2) {
            let counted = world.drive(thread, Order::Count(resource.into()))?;
            if let Some(Done::Counted(counted)) = counted {
                sum.window.pass += counted.window.pass;
                sum.window.block += counted.window.block;
                sum.window.complete += counted.window.complete;
                sum.in_flight += counted.in_flight;
            }
        }
    }
    let Counted { window, in_flight } = sum;
    let (admitted, refused) = (world.report.admitted, world.report.refused);
    if (window.pass, window.block, window.complete, in_flight) != (admitted, refused, admitted, 0) {
        return Err(format!(
            "the service has counted {} passed, {} refused, {} ended and {in_flight} open, but {admitted} were \
             admitted and have ended, and {refused} were refused",
            window.pass, window.block, window.complete,
        ));
    }
    Ok(())
}

/// While more is asked for than allowed, 99 % of a window is admitted; of a small threshold, all but one.
/// Only where all threads run: one that is lost keeps its lease until the bucket ends.
fn check_hardly_under(world: &World<'_>, scenario: &Scenario) -> Result<(), Broken> {
    let [(_, rules)] = scenario.rule_sets.as_slice() else { return Ok(()) };
    if scenario.stall_one_in > 0 || !scenario.is_steady() {
        return Ok(());
    }
    for traffic in &scenario.traffic {
        let Pattern::Flood { per_second } = traffic.pattern else { continue };
        let applies = |rule: &&Rule| {
            rule.common().unit == Unit::Request
                && (rule.resource() == &*traffic.resource
                    || !matches!(rule.target(), Some(Target::Resource(_))))
        };
        let mut of_resource = rules.iter().filter(applies);
        let (Some(rule), None) = (of_resource.next(), of_resource.next()) else { continue };
        let is_plain = matches!(rule, Rule::Flow(flow) if flow.calculate == TokenCalculate::Direct
            && flow.control == Control::Reject && !flow.common.shadow);
        if traffic.batch != 1 || !is_plain {
            continue;
        }
        let (from, until) = (world.checker.now(0), world.checker.now(scenario.duration));
        for window in world.checker.windows(rule.id(), from, until) {
            let WindowUse { from, last_bucket, admitted, allowed } = window;
            // All of a window may become free with its last bucket. And the gaps between arrivals are
            // random, so that small numbers of them vary.
            let offered = u64::from(per_second) * last_bucket.as_millis() / 1_000;
            if offered < allowed + allowed / 2 + 20 {
                continue;
            }
            let least = if allowed >= 100 { allowed * 99 / 100 } else { allowed.saturating_sub(1) };
            if admitted < least {
                let at_ms = from.since(world.checker.now(0)).as_millis();
                return Err(format!(
                    "rule {}: only {admitted} of {allowed} were admitted in the window that begins at {at_ms} ms, \
                     though about {offered} were asked for in its last bucket alone",
                    rule.id(),
                ));
            }
        }
    }
    Ok(())
}
