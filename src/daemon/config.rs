//! The configuration: TOML, every key optional, unknown keys refused. Decides what a sane value is.

use std::io;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::host::images::Geometry;
use crate::model::access::Rules;
use crate::plan::{BackgroundCaptures, LivePulls, MemoryCompression, MergePolicy, SpeedPolicy};

mod access;
mod controller;
mod depth;
mod metrics;
mod openstack;
mod origin;
mod tcp;

pub use access::{AccessConfig, RoleName};
pub use controller::{ControllerConfig, TlsFiles};
pub use metrics::MetricsConfig;
pub use openstack::{OpenstackConfig, UserConfig};
pub use origin::{DEFAULT_PATH, Origin};
pub use tcp::TcpConfig;

/// Everything that can be set. Every default works unset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The Unix socket to listen on.
    pub socket: PathBuf,
    /// Mode of the socket file, octal, as in `"0660"`.
    pub socket_mode: String,
    /// Where the catalog is.
    pub state_directory: PathBuf,
    /// Where memory images go. Unset: `memory` under the state directory.
    pub memory_directory: Option<PathBuf>,
    /// Directories that clones may be made in.
    pub image_directories: Vec<PathBuf>,
    /// Where overlays over block devices go. Unset: such disks are refused.
    pub overlay_directory: Option<PathBuf>,
    /// KiB in which new overlays are mapped: a power of two between 16 and 2048. A guest's first write to one of these pieces
    /// copies all of it.
    pub overlay_cluster_kib: u64,
    /// Whether new overlays map each of these pieces in 32 parts (`extended_l2`): a first write copies only one of them, and the
    /// tables have twice the size.
    pub overlay_subclusters: bool,
    /// Bytes to leave free wherever we write.
    pub reserve_bytes: u64,
    /// Warn when a file system that running VMs' disks grow on has fewer bytes free: of a small one at most a tenth.
    pub space_warning_bytes: u64,
    /// The libvirt to connect to.
    pub libvirt_uri: String,
    /// When running VMs may pull layers up into the one that they write to, to flatten a clone or to merge with fewer
    /// bytes: `when_safe`, or `always`. QEMU before 10.2 may crash when a pull ends (QEMU issue 3149); `always` is for one
    /// that is mended by its distributor.
    pub live_pulls: LivePulls,
    /// Whether memory is captured while its guest runs: `when_possible`, or `never`. Then a guest stands still until all of its
    /// memory is written.
    pub background_captures: BackgroundCaptures,
    /// Whether memory that is captured while its guest runs is compressed: `none`, or `zstd`. Images are smaller then, and take
    /// up to four processors of the node while they are written, in which the guest waits longer for pages that it changes,
    /// and the program `zstd` when a VM starts from them. Where libvirt cannot read them (before 10.4, or without that
    /// program) memory is not compressed, and the plan warns. What libvirt captures by itself it writes as
    /// `snapshot_image_format` in its qemu.conf says.
    pub memory_compression: MemoryCompression,
    /// Deletions that may merge at once.
    pub concurrent_merges: usize,
    /// Seconds for which a guest may write as fast as a merge of its disk copies, or faster, before its writes are slowed;
    /// and again each time before they are slowed further.
    pub merge_patience_seconds: u64,
    /// Seconds without headway after which a merge is ended, and a person is asked. A request may say otherwise.
    pub merge_deadline_seconds: u64,
    /// The writes of no guest are slowed below so many bytes per second for a merge. 0: no guest is slowed.
    pub merge_slowest_writes: u64,
    /// Milliseconds: a merge copies slower while a guest's request to the disk takes longer than this, on average. 0: it does
    /// not.
    pub merge_longest_wait_milliseconds: u64,
    /// No merge copies slower than so many bytes per second for that reason. In `merge_patience_seconds` that has to be 32 MiB.
    pub merge_slowest_copy: u64,
    /// Memory captures at once.
    pub concurrent_captures: usize,
    /// Backups of the catalog that are kept: of more than these, the oldest go.
    pub catalog_backups: usize,
    /// Days that events are kept, operations that have ended, and the ids of their requests.
    pub event_days: u32,
    /// Seconds that open operations get to come to a durable stop.
    pub drain_seconds: u64,
    /// Whom to report to: the section `[controller]`. Unset: nobody.
    pub controller: Option<ControllerConfig>,
    /// Where else to listen: the section `[tcp]`. Unset: on the Unix socket alone.
    pub tcp: Option<TcpConfig>,
    /// Who may do what: the sections `[[access]]`, of which the first that names a caller speaks for it. Unset: whoever the mode
    /// of the Unix socket lets in may do all, and nobody else anything. Root on this node always may do all, unless a rule says
    /// otherwise.
    pub access: Vec<AccessConfig>,
    /// Where Prometheus asks for figures: the section `[metrics]`. Unset: nowhere.
    pub metrics: Option<MetricsConfig>,
    /// Where the OpenStack client is answered: the section `[openstack]`. Unset: nowhere.
    pub openstack: Option<OpenstackConfig>,
    /// Calls that one caller may make in a second, and twice as many at once.
    pub calls_per_second: u32,
    /// Calls that one caller may have open: watches, and what has not been answered.
    pub open_calls: u32,
    /// What to log: `error`, `warn`, `info`, `debug`, `trace`, or a filter of tracing-subscriber.
    pub log: String,
    /// Where all of this was read from.
    #[serde(skip)]
    pub origin: Origin,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: "/run/vmsnapd/vmsnapd.sock".into(),
            socket_mode: "0660".to_owned(),
            state_directory: "/var/lib/vmsnapd".into(),
            memory_directory: None,
            image_directories: vec!["/var/lib/libvirt/images".into()],
            overlay_directory: None,
            overlay_cluster_kib: 64,
            overlay_subclusters: false,
            reserve_bytes: 256 << 20,
            space_warning_bytes: 16 << 30,
            libvirt_uri: "qemu:///system".to_owned(),
            live_pulls: LivePulls::WhenSafe,
            background_captures: BackgroundCaptures::WhenPossible,
            memory_compression: MemoryCompression::None,
            concurrent_merges: 4,
            merge_patience_seconds: 30,
            merge_deadline_seconds: 60 * 60,
            merge_slowest_writes: 1 << 20,
            merge_longest_wait_milliseconds: 30,
            merge_slowest_copy: 16 << 20,
            concurrent_captures: 2,
            catalog_backups: 14,
            event_days: 90,
            drain_seconds: 60,
            controller: None,
            tcp: None,
            access: Vec::new(),
            metrics: None,
            openstack: None,
            calls_per_second: 1000,
            open_calls: 256,
            log: "info".to_owned(),
            origin: Origin::default(),
        }
    }
}

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// Path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The file is not what it should be.
    #[error("{} is not a configuration", .path.display())]
    Malformed {
        /// Path.
        path: PathBuf,
        /// Where and why.
        #[source]
        cause: Box<toml::de::Error>,
    },
    /// The file is nested deeper than any that means something.
    #[error("{} is not a configuration: its brackets and braces are nested too deeply", .0.display())]
    TooDeep(PathBuf),
    /// A value makes no sense.
    #[error("{key}: {problem}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Config {
    /// The configuration of this origin; the defaults, if no file is named and none is at [`DEFAULT_PATH`].
    pub fn load(origin: &Origin) -> Result<Self, ConfigError> {
        let mut config = match origin.text()? {
            Some((text, path)) => read(&text, path)?,
            None => Self::default(),
        };
        origin.override_in(&mut config);
        config.origin = origin.clone();
        config.check()?;
        Ok(config)
    }

    /// Who may do what. Asks the node who its users and groups are.
    pub fn rules(&self) -> Result<Rules, ConfigError> {
        if self.access.is_empty() {
            return Ok(Rules::unwritten());
        }
        self.access.iter().map(AccessConfig::rule).collect::<Result<_, _>>().map(Rules::new)
    }

    /// What is done about merges that guests outrun.
    #[must_use]
    pub fn merge_policy(&self) -> MergePolicy {
        MergePolicy {
            patience: Duration::from_secs(self.merge_patience_seconds),
            deadline: Duration::from_secs(self.merge_deadline_seconds),
            slowest_writes: self.merge_slowest_writes,
        }
    }

    /// When merges are held back for the guest.
    #[must_use]
    pub fn speed_policy(&self) -> SpeedPolicy {
        SpeedPolicy {
            longest_wait: Duration::from_millis(self.merge_longest_wait_milliseconds),
            slowest: self.merge_slowest_copy,
        }
    }

    /// How long events are kept.
    #[must_use]
    pub fn event_retention(&self) -> SignedDuration {
        SignedDuration::from_hours(24 * i64::from(self.event_days))
    }

    /// Refuses values that make no sense.
    pub fn check(&self) -> Result<(), ConfigError> {
        let directories = [
            ("socket", Some(&self.socket)),
            ("state_directory", Some(&self.state_directory)),
            ("memory_directory", self.memory_directory.as_ref()),
            ("overlay_directory", self.overlay_directory.as_ref()),
        ];
        let images = self.image_directories.iter().map(|path| ("image_directories", Some(path)));
        for (key, path) in directories.into_iter().chain(images) {
            if path.is_some_and(|path| !path.is_absolute()) {
                return Err(ConfigError::BadValue { key, problem: "the path is not absolute".to_owned() });
            }
            if path.is_some_and(|path| path.as_os_str().as_encoded_bytes().contains(&0)) {
                return Err(ConfigError::BadValue { key, problem: "the path contains a NUL".to_owned() });
            }
        }
        if self.event_days == 0 {
            let problem = "at least one day".to_owned();
            return Err(ConfigError::BadValue { key: "event_days", problem });
        }
        if self.catalog_backups == 0 {
            let problem = "at least one".to_owned();
            return Err(ConfigError::BadValue { key: "catalog_backups", problem });
        }
        for (key, value) in [
            ("merge_patience_seconds", self.merge_patience_seconds),
            ("merge_deadline_seconds", self.merge_deadline_seconds),
        ] {
            if value == 0 {
                return Err(ConfigError::BadValue { key, problem: "at least one second".to_owned() });
            }
        }
        // A limited block job copies 16 MiB at once: slower than this it would seem to stand still.
        let slowest = (32_u64 << 20).div_ceil(self.merge_patience_seconds);
        if self.merge_slowest_copy < slowest {
            let problem = format!("at least {slowest}, with this merge_patience_seconds");
            return Err(ConfigError::BadValue { key: "merge_slowest_copy", problem });
        }
        for (key, value) in
            [("concurrent_merges", self.concurrent_merges), ("concurrent_captures", self.concurrent_captures)]
        {
            if !(1..=64).contains(&value) {
                return Err(ConfigError::BadValue {
                    key,
                    problem: format!("{value} is not between 1 and 64"),
                });
            }
        }
        self.overlays()?;
        self.controller.as_ref().map_or(Ok(()), ControllerConfig::check)?;
        self.tcp.as_ref().map_or(Ok(()), TcpConfig::check)?;
        self.access.iter().try_for_each(AccessConfig::check)?;
        self.openstack.as_ref().map_or(Ok(()), |openstack| openstack.check(self))?;
        self.pace()?;
        self.crowd()?;
        self.mode().map(drop)
    }

    /// In how large pieces new overlays are mapped.
    pub fn overlays(&self) -> Result<Geometry, ConfigError> {
        let geometry = self.overlay_cluster_kib.checked_mul(1024);
        let geometry = geometry.and_then(|cluster| Geometry::new(cluster, self.overlay_subclusters));
        geometry.ok_or_else(|| ConfigError::BadValue {
            key: "overlay_cluster_kib",
            problem: format!("{} is no power of two between 16 and 2048", self.overlay_cluster_kib),
        })
    }

    /// Calls that one caller may make in a second.
    pub fn pace(&self) -> Result<NonZeroU32, ConfigError> {
        NonZeroU32::new(self.calls_per_second)
            .ok_or_else(|| bad("calls_per_second", "at least one".to_owned()))
    }

    /// Calls that one caller may have open.
    pub fn crowd(&self) -> Result<usize, ConfigError> {
        let most = usize::try_from(self.open_calls).unwrap_or(usize::MAX);
        if most == 0 { Err(bad("open_calls", "at least one".to_owned())) } else { Ok(most) }
    }

    /// The mode of the socket file.
    pub fn mode(&self) -> Result<u32, ConfigError> {
        u32::from_str_radix(&self.socket_mode, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| {
            ConfigError::BadValue {
                key: "socket_mode",
                problem: format!("{:?} is not an octal file mode", self.socket_mode),
            }
        })
    }

    /// The file of the catalog.
    #[must_use]
    pub fn catalog(&self) -> PathBuf {
        self.state_directory.join("catalog.db")
    }

    /// Where memory images go.
    #[must_use]
    pub fn memory_directory(&self) -> PathBuf {
        self.memory_directory.clone().unwrap_or_else(|| self.state_directory.join("memory"))
    }
}

/// A text as a configuration. Whether its values make sense is not looked at.
fn read(text: &str, path: PathBuf) -> Result<Config, ConfigError> {
    if depth::is_too_deep(text) {
        return Err(ConfigError::TooDeep(path));
    }
    toml::from_str(text).map_err(|cause| ConfigError::Malformed { path, cause: Box::new(cause) })
}

fn bad(key: &'static str, problem: String) -> ConfigError {
    ConfigError::BadValue { key, problem }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn check(text: &str, expected: Result<fn(&Config) -> bool, &str>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmsnapd.toml");
        fs::write(&path, text).unwrap();
        match (Config::load(&Origin::file(&path)), expected) {
            (Ok(config), Ok(holds)) => assert!(holds(&config), "{config:?}"),
            (Err(error), Err(part)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                assert!(format!("{error}: {cause}").contains(part), "{error}: {cause}");
            }
            (result, _) => panic!("{text:?} gave {result:?}"),
        }
    }

    #[test]
    fn configurations() {
        check("", Ok(|config| Config { origin: Origin::default(), ..config.clone() } == Config::default()));
        check("log = \"debug\"", Ok(|config| config.log == "debug"));
        check("memory_directory = \"/m\"", Ok(|config| config.memory_directory() == Path::new("/m")));
        check("state_directory = \"/s\"", Ok(|config| config.memory_directory() == Path::new("/s/memory")));
        check("sokcet = \"/x\"", Err("unknown field `sokcet`"));
        check("", Ok(|config| config.live_pulls == LivePulls::WhenSafe));
        check("live_pulls = \"always\"", Ok(|config| config.live_pulls == LivePulls::Always));
        check("live_pulls = \"never\"", Err("unknown variant `never`"));
        check("", Ok(|config| config.background_captures == BackgroundCaptures::WhenPossible));
        check(
            "background_captures = \"never\"",
            Ok(|config| config.background_captures == BackgroundCaptures::Never),
        );
        check("", Ok(|config| config.memory_compression == MemoryCompression::None));
        check(
            "memory_compression = \"zstd\"",
            Ok(|config| config.memory_compression == MemoryCompression::Zstd),
        );
        check("memory_compression = \"xz\"", Err("unknown variant `xz`"));
        check("socket = \"x\"", Err("socket: the path is not absolute"));
        check("socket_mode = \"0999\"", Err("is not an octal file mode"));
        check("catalog_backups = 0", Err("catalog_backups: at least one"));
        check("merge_slowest_writes = 0", Ok(|config| config.merge_policy().slowest_writes == 0));
        check(
            "merge_longest_wait_milliseconds = 0",
            Ok(|config| config.speed_policy().longest_wait.is_zero()),
        );
        check(
            "merge_slowest_copy = 1000",
            Err("merge_slowest_copy: at least 1118482, with this merge_patience_seconds"),
        );
        check("merge_patience_seconds = 0", Err("merge_patience_seconds: at least one second"));
        check("merge_deadline_seconds = 0", Err("merge_deadline_seconds: at least one second"));
        check("", Ok(|config| config.overlays().is_ok_and(|geometry| geometry == Geometry::default())));
        check(
            "overlay_cluster_kib = 128\noverlay_subclusters = true",
            Ok(|config| config.overlays().is_ok()),
        );
        check(
            "overlay_cluster_kib = 8",
            Err("overlay_cluster_kib: 8 is no power of two between 16 and 2048"),
        );
        check("concurrent_merges = 0", Err("concurrent_merges: 0 is not between 1 and 64"));
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        assert!(matches!(
            Config::load(&Origin::file(Path::new("/nowhere/x.toml"))),
            Err(ConfigError::Unreadable { .. })
        ));
    }

    const SAMPLE: &str = r#"
socket = "/run/vmsnapd/vmsnapd.sock"
socket_mode = "0660"
state_directory = "/var/lib/vmsnapd"
memory_directory = "/m"
image_directories = ["/var/lib/libvirt/images", "/srv"]
overlay_directory = "/o"
overlay_cluster_kib = 64
overlay_subclusters = false
reserve_bytes = 268435456
libvirt_uri = "qemu:///system"
live_pulls = "when_safe"
background_captures = "when_possible"
memory_compression = "zstd"
concurrent_merges = 4
concurrent_captures = 2
event_days = 90
drain_seconds = 60
log = "info"

[controller]
endpoint = "https://controller.example.org:7443"
ca = "/etc/vmsnapd/ca.pem"
certificate = "/etc/vmsnapd/node.pem"
key = "/etc/vmsnapd/node.key"
server_name = "controller"
outbox_bytes = 67108864

[tcp]
listen = "[::]:7443"
certificate = "/etc/vmsnapd/node.pem"
key = "/etc/vmsnapd/node.key"
client_ca = "/etc/vmsnapd/clients.pem"

[[access]]
who = ["uri:spiffe://cloud/controller", "uid:0"]
role = "restorer"
account = "acme"
labels = { tier = "gold" }
"#;

    /// What stands in the file that is installed as an example is what there is: each key with its default, and no other.
    #[test]
    fn the_example() {
        let example = include_str!("../../packaging/vmsnapd.toml");
        let keys = example.lines().filter_map(|line| line.strip_prefix('#'));
        let keys = keys.filter(|line| !line.is_empty() && !line.starts_with(' '));
        let text = keys.collect::<Vec<_>>().join("\n");
        let all: Config = toml::from_str(&text).unwrap();
        all.check().unwrap();
        let (plain, sections) = text.split_once("[controller]").unwrap();
        assert!(!sections.is_empty());
        let config: Config = toml::from_str(plain).unwrap();
        let unset = Config { memory_directory: None, overlay_directory: None, ..config };
        assert_eq!(unset, Config::default());
        for key in serde_json::to_value(Config::default()).unwrap().as_object().unwrap().keys() {
            let (key, section) = (format!("{key} = "), format!("[{key}]"));
            assert!(text.lines().any(|line| line.starts_with(&key)) || text.contains(&section), "{key}");
        }
    }

    proptest::proptest! {
        #![proptest_config(crate::mutation::config())]

        #[test]
        fn any_file_is_refused_or_makes_sense(text in crate::mutation::text([SAMPLE])) {
            let Ok(config) = read(&text, PathBuf::new()) else { return Ok(()) };
            if config.check().is_err() {
                return Ok(());
            }
            let directories = [&config.socket, &config.state_directory];
            let paths = config.image_directories.iter().chain(&config.overlay_directory).chain(directories);
            for path in paths.chain([&config.memory_directory(), &config.catalog()]) {
                assert!(path.is_absolute() && !path.to_str().unwrap().contains('\0'), "{path:?}");
            }
            assert!((1..=64).contains(&config.concurrent_merges) && (1..=64).contains(&config.concurrent_captures));
            assert!(config.mode().unwrap() <= 0o777);
            let kept = config.event_retention();
            assert!(kept.is_positive());
            // As it is used: it must not fail for a number of days that was let through.
            assert!(jiff::Timestamp::now().saturating_sub(kept).is_ok());
        }
    }
}
