//! A filter's own rules, on their way to the service.
//!
//! Envoy configures the filter in VMs that never serve anybody, and may yet reject an update whose configuration is
//! in order here. So nothing is handed over when a configuration comes, but at the first tick after it, which a VM that
//! Envoy only tries the configuration on never gets. All VMs hand over the same; the first one writes, the others
//! find it written and say that they carry it as well. When the last of them has lost its root, the rules leave.

use alloc::{string::String, vec::Vec};

use sentinel_core::time::{Nanos, Span};
use sentinel_wire::{
    DecodeError,
    carried::{
        CARRIED_MAX, CHECKED_MAX, CarriedSet, Configuration, Directory, HOLDERS_MAX, Holder,
    },
    key::Key,
};

use crate::{
    Next,
    clock::Clock,
    host::Host,
    shared::{Shared, Then},
};

/// How often a VM shows that it still carries what it does.
const BEAT: Span = Span::from_millis(900);

/// What the filters of one VM carry.
#[derive(Debug)]
pub struct Carrier {
    vm: u64,
    clock: Clock,
    shared: Shared,
    roots: Vec<Carried>,
    beat_at: Nanos,
}

/// The configuration of one root context.
#[derive(Debug)]
struct Carried {
    root: u32,
    plugin: String,
    digest: u64,
    bytes: Vec<u8>,
    /// Whether the directory has not been told yet.
    is_new: bool,
    /// Whether Envoy has given this root its configuration anew: then it is the plugin's newest again.
    is_renewed: bool,
}

impl Carrier {
    /// Carries nothing yet.
    pub fn new<H: Host>(host: &mut H) -> Self {
        let mut shared = Shared::default();
        let clock = Clock::agree(host, &mut shared);
        Self {
            // 0 stands for nobody.
            vm: host.random().max(1),
            clock,
            shared,
            roots: Vec::new(),
            beat_at: Nanos::default(),
        }
    }

    /// Whether another VM has found the rules of this configuration in order.
    pub fn is_checked<H: Host>(&mut self, host: &mut H, bytes: &[u8]) -> bool {
        let digest = self.clock.hash(bytes);
        let directory = self.shared.read(host, Key::Carried).ok().flatten().map(Directory::decode);
        matches!(directory, Some(Ok(directory)) if directory.checked.contains(&digest))
    }

    /// Spares the other VMs the compilation: the rules of this configuration are in order.
    pub fn note_checked<H: Host>(&mut self, host: &mut H, bytes: &[u8]) {
        let digest = self.clock.hash(bytes);
        // If it cannot be noted, others compile as well.
        let _ = self.update(host, |directory| {
            directory.checked.retain(|known| *known != digest);
            if directory.checked.len() >= CHECKED_MAX {
                directory.checked.remove(0);
            }
            directory.checked.push(digest);
        });
    }

    /// `root` of the plugin called `plugin` was given a configuration with rules: `bytes`, as they came.
    pub fn take(&mut self, root: u32, plugin: String, bytes: Vec<u8>) {
        let digest = self.clock.hash(&bytes);
        let before = self.roots.len();
        self.roots.retain(|carried| carried.root != root);
        let is_renewed = self.roots.len() < before;
        self.roots.push(Carried { root, plugin, digest, bytes, is_new: true, is_renewed });
    }

    /// Whether `root` carries rules.
    pub fn carries(&self, root: u32) -> bool {
        self.roots.iter().any(|carried| carried.root == root)
    }

    /// `root` is gone, and so are its rules, unless another root or VM carries the same.
    pub fn leave<H: Host>(&mut self, host: &mut H, root: u32) {
        let Some(place) = self.roots.iter().position(|carried| carried.root == root) else {
            return;
        };
        let gone = self.roots.swap_remove(place);
        let same =
            |carried: &Carried| carried.digest == gone.digest && carried.plugin == gone.plugin;
        if self.roots.iter().any(same) {
            return;
        }
        let vm = self.vm;
        let emptied = self.update(host, |directory| {
            let mut emptied = None;
            directory.sets.retain_mut(|set| {
                if set.digest == gone.digest && set.plugin == gone.plugin {
                    set.holders.retain(|holder| holder.vm != vm);
                    if set.holders.is_empty() {
                        emptied = Some(set.slot);
                    }
                }
                !set.holders.is_empty()
            });
            emptied
        });
        if let Some(Some(slot)) = emptied {
            self.write(host, slot, &Configuration::default());
            nudge(host);
        }
    }

    /// Hands over what is new, and shows once a second that the rest is still carried.
    pub fn tick<H: Host>(&mut self, host: &mut H) -> Next {
        let now = self.clock.now(host);
        let has_news = self.roots.iter().any(|carried| carried.is_new);
        if self.roots.is_empty() || (now < self.beat_at && !has_news) {
            return Next::IDLE;
        }
        self.beat_at = now + BEAT;
        let (vm, mut roots) = (self.vm, core::mem::take(&mut self.roots));
        let told = self.update(host, |directory| {
            roots.iter().filter(|carried| !tell(directory, vm, now, carried)).count()
        });
        if let Some(left_out) = told {
            if left_out > 0 && has_news {
                log::error!(
                    "{left_out} filter configurations with rules are over the {CARRIED_MAX} that can be carried at a \
                     time: their rules are not in force"
                );
            }
            for carried in &mut roots {
                (carried.is_new, carried.is_renewed) = (false, false);
            }
        }
        self.roots = roots;
        if self.store(host) || (has_news && told.is_some()) {
            nudge(host);
        }
        Next::IDLE
    }

    /// Writes those of its configurations that do not stand in shared data yet. `true` if there were any.
    fn store<H: Host>(&mut self, host: &mut H) -> bool {
        let directory = match self.shared.read(host, Key::Carried).ok().flatten() {
            Some(bytes) => Directory::decode(bytes).unwrap_or_default(),
            None => return false,
        };
        let roots = core::mem::take(&mut self.roots);
        let mut any = false;
        for set in directory.sets.iter().filter(|set| !set.stored) {
            let own = roots.iter().find(|carried| carried.digest == set.digest);
            let Some(carried) = own else { continue };
            let bytes = carried.bytes.clone();
            any |= self.write(host, set.slot, &Configuration { digest: set.digest, bytes });
        }
        if any {
            self.update(host, |newer| {
                for set in &mut newer.sets {
                    // Only what was written above: the slot may be another's by now.
                    let same = |own: &CarriedSet| {
                        (own.digest, own.slot, own.order) == (set.digest, set.slot, set.order)
                    };
                    let is_own = roots.iter().any(|carried| carried.digest == set.digest);
                    set.stored |= is_own && directory.sets.iter().any(same);
                }
            });
        }
        self.roots = roots;
        any
    }

    fn write<H: Host>(&mut self, host: &mut H, slot: u32, configuration: &Configuration) -> bool {
        let written = self.shared.update(host, Key::CarriedSet(slot), |_, written| {
            configuration.encode(written);
            (Then::Write, ())
        });
        written.is_ok()
    }

    /// Changes the directory. `None` if that cannot be done: it is a newer module's, or the host fails.
    fn update<H: Host, R>(
        &mut self,
        host: &mut H,
        mut change: impl FnMut(&mut Directory) -> R,
    ) -> Option<R> {
        change_directory(host, &mut self.shared, &mut change)
    }
}

/// Changes the directory. `None` if that cannot be done: it is a newer module's, or the host fails.
pub(crate) fn change_directory<H: Host, R>(
    host: &mut H,
    shared: &mut Shared,
    change: &mut dyn FnMut(&mut Directory) -> R,
) -> Option<R> {
    let updated = shared.update(host, Key::Carried, |found, written| {
        let mut directory = match found.map(Directory::decode) {
            Some(Ok(directory)) => directory,
            Some(Err(DecodeError::Newer { .. })) => return (Then::Keep, None),
            Some(Err(DecodeError::Malformed)) | None => Directory::default(),
        };
        let result = change(&mut directory);
        directory.encode(written);
        (Then::Write, Some(result))
    });
    updated.ok()?.result
}

/// Enters a configuration, or that this VM still carries it. `false` if there is no room.
fn tell(directory: &mut Directory, vm: u64, now: Nanos, carried: &Carried) -> bool {
    let is_it =
        |set: &&mut CarriedSet| set.digest == carried.digest && set.plugin == carried.plugin;
    let holder = Holder { vm, seen_ns: now.get() };
    if let Some(set) = directory.sets.iter_mut().find(is_it) {
        if carried.is_renewed && set.order != directory.newest {
            directory.newest = directory.newest.saturating_add(1);
            set.order = directory.newest;
        }
        if let Some(known) = set.holders.iter_mut().find(|holder| holder.vm == vm) {
            *known = holder;
        } else if set.holders.len() < HOLDERS_MAX {
            // Else enough others carry it.
            set.holders.push(holder);
        }
        return true;
    }
    if directory.sets.len() >= CARRIED_MAX {
        return false;
    }
    let is_taken = |slot: &u32| directory.sets.iter().any(|set| set.slot == *slot);
    let slot = (0..).find(|slot| !is_taken(slot)).unwrap_or_default();
    directory.newest = directory.newest.saturating_add(1);
    directory.sets.push(CarriedSet {
        digest: carried.digest,
        order: directory.newest,
        plugin: carried.plugin.clone(),
        slot,
        stored: false,
        holders: Vec::from([holder]),
    });
    true
}

/// Wakes the service: a frame that says nothing. Without a service nobody misses it.
fn nudge<H: Host>(host: &mut H) {
    if let Ok(Some(queue)) = host.resolve_queue() {
        let _ = host.enqueue(queue, &[]);
    }
}
