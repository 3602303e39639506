//! Figures about this daemon and its node, for Prometheus.
//!
//! Decides which there are, what they are called and in which units. Leaves to `observe` what has happened, to `look` how things
//! are when somebody asks, to `listen` who asks. No VM, snapshot or person is named in them: there would be no end of them, and
//! whoever reads them need not know.

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use tonic::Code;

pub(super) mod listen;
mod look;
mod observe;

pub(super) use look::look;
pub(super) use observe::observe;

/// Upper bounds for how long a guest stands still, in seconds.
const STANDSTILLS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Upper bounds for how long an operation takes, in seconds.
const DURATIONS: [f64; 11] =
    [0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4.0 * 3600.0, 24.0 * 3600.0];

/// All figures.
pub(super) struct Metrics {
    registry: Registry,
    /// Since the start: by `operation` and `outcome`.
    pub(super) ended: IntCounterVec,
    /// Since the start: by `operation`.
    pub(super) took: HistogramVec,
    pub(super) frozen: Histogram,
    pub(super) paused: Histogram,
    /// Since the start: by `kind` and `severity`.
    pub(super) events: IntCounterVec,
    /// Since the start: by `outcome`.
    pub(super) runs: IntCounterVec,
    pub(super) missed_runs: IntCounter,
    pub(super) pruned_snapshots: IntCounter,
    pub(super) pruned_bytes: IntCounter,
    /// Since the start: by `call` and `code`.
    pub(super) calls: IntCounterVec,
    /// Now: by `state`.
    pub(super) open: IntGaugeVec,
    pub(super) left_to_copy: IntGauge,
    pub(super) copy_rate: Gauge,
    /// By `state`.
    pub(super) snapshots: IntGaugeVec,
    pub(super) layers: IntGauge,
    pub(super) waiting: IntGauge,
    pub(super) deepest: IntGauge,
    pub(super) vms: IntGauge,
    /// By `path`.
    pub(super) free: GaugeVec,
    pub(super) size: GaugeVec,
    /// By `part`.
    pub(super) is_up: IntGaugeVec,
    pub(super) outbox: IntGauge,
}

impl Metrics {
    /// All of them, at zero.
    pub(super) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new_custom(Some("vmsnap".to_owned()), None)?;
        let build = IntGaugeVec::new(Opts::new("build_info", "Always 1: which version runs"), &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build))?;
        let of = Figures { registry: &registry };
        let metrics = Self {
            ended: of.counters(
                "operations_total",
                "Operations that have ended",
                &["operation", "outcome"],
            )?,
            took: of.histograms(
                "operation_duration_seconds",
                "From the request to the end",
                &["operation"],
            )?,
            frozen: of.histogram(
                "guest_frozen_seconds",
                "From asking a guest to freeze to the proof of its thaw",
            )?,
            paused: of.histogram(
                "guest_paused_seconds",
                "How long processors stood still for a capture of memory",
            )?,
            events: of.counters("events_total", "Events that were told", &["kind", "severity"])?,
            runs: of.counters("schedule_runs_total", "Runs of schedules that have ended", &["outcome"])?,
            missed_runs: of.counter("schedule_missed_runs_total", "Runs of schedules that were missed")?,
            pruned_snapshots: of
                .counter("schedule_pruned_snapshots_total", "Snapshots that schedules have deleted")?,
            pruned_bytes: of.counter("schedule_pruned_bytes_total", "What those took on the storage")?,
            calls: of.counters("calls_total", "gRPC calls that were answered", &["call", "code"])?,
            open: of.gauges("operations_open", "Operations that have not ended", &["state"])?,
            left_to_copy: of.gauge("copy_remaining_bytes", "What operations under way have still to copy")?,
            snapshots: of.gauges("snapshots", "Snapshots in the catalog", &["state"])?,
            copy_rate: of.float("copy_bytes_per_second", "How fast operations under way copy, together")?,
            layers: of.gauge("layers", "Layers that VMs and snapshots lie on")?,
            waiting: of
                .gauge("layers_waiting", "Layers that nothing needs and that wait to be merged or removed")?,
            deepest: of.gauge("chain_depth", "Layers in the deepest chain that a VM writes to")?,
            vms: of.gauge("vms", "VMs that libvirt knows")?,
            free: of.floats("storage_free_bytes", "Room on file systems that images grow on", &["path"])?,
            size: of.floats("storage_size_bytes", "Size of those file systems", &["path"])?,
            is_up: of.gauges("up", "Whether a part is well", &["part"])?,
            outbox: of.gauge("outbox_items", "What the controller has not acknowledged")?,
            registry,
        };
        // Whoever asks how many there were more in an hour has to see that there were none before.
        for outcome in ["succeeded", "partly", "failed"] {
            metrics.runs.with_label_values(&[outcome]);
        }
        Ok(metrics)
    }

    /// A call was answered.
    pub(super) fn answered(&self, call: &str, code: Code) {
        let code = format!("{code:?}");
        self.calls.with_label_values(&[call.trim_start_matches('/'), code.as_str()]).inc();
    }

    /// All of them, in the text format of Prometheus.
    pub(super) fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Makes figures and registers them.
struct Figures<'a> {
    registry: &'a Registry,
}

impl Figures<'_> {
    fn register<T: prometheus::core::Collector + Clone + 'static>(&self, figure: T) -> prometheus::Result<T> {
        self.registry.register(Box::new(figure.clone()))?;
        Ok(figure)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.register(IntCounter::new(name, help)?)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.register(IntGauge::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn float(&self, name: &str, help: &str) -> prometheus::Result<Gauge> {
        self.register(Gauge::new(name, help)?)
    }

    /// Of what is beyond the whole numbers that a float tells apart.
    fn floats(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
        self.register(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str) -> prometheus::Result<Histogram> {
        self.register(Histogram::with_opts(HistogramOpts::new(name, help).buckets(STANDSTILLS.to_vec()))?)
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<HistogramVec> {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(DURATIONS.to_vec()), labels)?)
    }
}
