//! Reads the configuration and the certificates again, as SIGHUP and `ReloadConfiguration` do.
//!
//! Decides what can change without a restart: who may do what, the certificates of `[tcp]`, the users of `[openstack]`. All of the new takes its place at
//! once, or none of it does. Connections stay; whoever is on one is looked at anew with its next call.

use std::sync::Arc;

use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::access::{AccessError, Current, InForce};
use super::config::Config;
use super::service;
use crate::api::{Reload, ReloadError, Reloaded};

/// Reloads for one daemon.
pub(super) struct Reloading {
    /// With what the daemon was started: what needs a restart is as it says.
    started: Config,
    /// What the rest is as.
    in_force: Mutex<Config>,
    current: watch::Sender<Arc<InForce>>,
}

impl Reloading {
    /// Reads what a configuration names for the first time.
    pub(super) async fn start(config: &Config) -> Result<Arc<Self>, AccessError> {
        let in_force = read(config.clone()).await?;
        let (current, _) = watch::channel(Arc::new(in_force));
        Ok(Arc::new(Self { started: config.clone(), in_force: Mutex::new(config.clone()), current }))
    }

    /// What is in force, and whether it changes.
    pub(super) fn current(&self) -> Current {
        self.current.subscribe()
    }
}

/// Reads who may do what and how they prove it. Not on the runtime: users may be looked up over the network.
async fn read(config: Config) -> Result<InForce, AccessError> {
    let read = tokio::task::spawn_blocking(move || InForce::read(&config)).await;
    read.expect("it neither panics nor is it aborted")
}

#[tonic::async_trait]
impl Reload for Reloading {
    async fn reload(&self, validate_only: bool) -> Result<Reloaded, ReloadError> {
        // One after the other: the last one wins.
        let mut in_force = self.in_force.lock().await;
        let origin = self.started.origin.clone();
        let config = tokio::task::spawn_blocking(move || Config::load(&origin)).await;
        let config = config.expect("it neither panics nor is it aborted").map_err(ReloadError::new)?;
        let new = read(config.clone()).await.map_err(ReloadError::new)?;
        let mut changed = differences(&in_force, &config);
        let has_listener = self.started.tcp.is_some();
        changed.retain(|key| !needs_restart(key, has_listener));
        if let (Some(before), Some(now)) = (&self.current.borrow().tls, &new.tls) {
            changed.extend(now.changed(before).into_iter().map(ToOwned::to_owned));
            changed.sort();
            changed.dedup();
        }
        let mut restart = differences(&self.started, &config);
        restart.retain(|key| needs_restart(key, has_listener));
        if !validate_only {
            self.current.send_replace(Arc::new(new));
            *in_force = config;
            tracing::info!(?changed, ?restart, "the configuration was read again");
        }
        Ok(Reloaded { changed, restart })
    }
}

/// Reloads at every SIGHUP. `hangups` since the daemon began to start: one that came meanwhile is not lost.
pub(super) async fn on_hangup(reloading: Arc<Reloading>, mut hangups: Signal, stop: CancellationToken) {
    loop {
        tokio::select! {
            hangup = hangups.recv() => if hangup.is_none() { return },
            () = stop.cancelled() => return,
        }
        service::tell_reloading();
        if let Err(error) = reloading.reload(false).await {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "the configuration was not read again: all of the old one stays in force");
        }
        service::tell(&[sd_notify::NotifyState::Ready]);
    }
}

/// From now on SIGHUP does not end the process.
pub(super) fn hangups() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Whether a key is as it was until the next start.
fn needs_restart(key: &str, has_listener: bool) -> bool {
    let is_of_listener = key.starts_with("tcp.") && key != "tcp.listen";
    let is_read_again = matches!(key, "access" | "openstack.users");
    !(is_read_again || (has_listener && is_of_listener))
}

/// The keys that have other values: those of `[tcp]`, and the users of `[openstack]`, by themselves.
fn differences(before: &Config, now: &Config) -> Vec<String> {
    let (before, now) = (values(before), values(now));
    let keys = now.iter().map(|(key, _)| key).chain(before.iter().map(|(key, _)| key));
    let value = |values: &[(String, Value)], key: &str| {
        values.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone())
    };
    let mut different: Vec<String> =
        keys.filter(|key| value(&before, key) != value(&now, key)).cloned().collect();
    different.sort();
    different.dedup();
    different
}

fn values(config: &Config) -> Vec<(String, Value)> {
    let Ok(Value::Object(all)) = serde_json::to_value(config) else { return Vec::new() };
    let mut values = Vec::new();
    for (key, value) in all {
        match value {
            Value::Object(section) if key == "tcp" => {
                values.extend(section.into_iter().map(|(inner, value)| (format!("tcp.{inner}"), value)));
            }
            Value::Object(mut section) if key == "openstack" => {
                let users = section.remove("users").filter(|users| *users != Value::Array(Vec::new()));
                values.extend(users.map(|users| ("openstack.users".to_owned(), users)));
                values.push((key, section.into()));
            }
            Value::Null if key == "tcp" => {}
            value => values.push((key, value)),
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(before: &str, now: &str, changed: &[&str], restart: &[&str]) {
        let [before, now] = [before, now].map(|text| toml::from_str::<Config>(text).unwrap());
        let (needing, others): (Vec<_>, Vec<_>) =
            differences(&before, &now).into_iter().partition(|key| needs_restart(key, before.tcp.is_some()));
        assert_eq!(
            (others, needing),
            (
                changed.iter().map(ToString::to_string).collect(),
                restart.iter().map(ToString::to_string).collect()
            ),
            "{now:?}"
        );
    }

    #[test]
    fn what_needs_a_restart() {
        let tcp = "[tcp]\nlisten = '[::]:1'\ncertificate = '/c'\nkey = '/k'\nclient_ca = '/a'\n";
        let rule = "[[access]]\nwho = ['socket']\nrole = 'viewer'\n";
        check("", "", &[], &[]);
        check("", "log = 'info'\nevent_days = 90", &[], &[]);
        check("", "log = 'debug'\nevent_days = 9", &[], &["event_days", "log"]);
        check("", rule, &["access"], &[]);
        check(tcp, &tcp.replace("/c", "/d"), &["tcp.certificate"], &[]);
        check(tcp, &format!("{tcp}revocation_list = '/r'"), &["tcp.revocation_list"], &[]);
        check(tcp, &tcp.replace(":1'", ":2'"), &[], &["tcp.listen"]);
        let files = ["tcp.certificate", "tcp.client_ca", "tcp.key", "tcp.listen", "tcp.revocation_list"];
        check("", tcp, &[], &files);
        let openstack = "[openstack]\nlisten = '127.0.0.1:1'";
        check("", openstack, &[], &["openstack"]);
        let users = format!("{openstack}\n[[openstack.users]]\nname = 'a'\npassword = 'x'");
        check(openstack, &users, &["openstack.users"], &[]);
        check(&users, &users.replace("'x'", "'y'"), &["openstack.users"], &[]);
        check("", "[controller]\nendpoint = 'http://localhost:1'", &[], &["controller"]);
    }
}
