//! Passwords of users of HTTP's basic authentication.
//!
//! Decides whether somebody knows one. All that is kept of it is a hash that takes long to guess, so whoever guesses over the
//! network keeps a processor busy: only as many are looked at at once as others can spare.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use argon2::{Argon2, PasswordVerifier};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::sync::Semaphore;

use super::config::UserConfig;

/// Passwords that are looked at at once. The same after the configuration was read again.
static LOOKS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(2)));

/// Passwords that are looked at, or wait for that.
static IN_LINE: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(16)));

/// Longest password, in bytes.
const LONGEST: usize = 1024;

/// All users, and the hashes of their passwords.
pub(super) struct Users {
    hashes: BTreeMap<String, String>,
}

/// What came of looking at a password.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// It is this user's.
    Of(String),
    /// It is nobody's.
    Wrong,
    /// Too many are looked at.
    Busy,
}

/// What somebody says who he is, and what he says to prove it.
pub(super) struct Claim {
    name: String,
    password: String,
}

impl Claim {
    /// As `Authorization` has it. None if it is of another kind, or cannot be read.
    pub(super) fn read(header: &str) -> Option<Self> {
        let (kind, claim) = header.split_once(' ')?;
        if !kind.eq_ignore_ascii_case("basic") {
            return None;
        }
        let claim = String::from_utf8(BASE64_STANDARD.decode(claim.trim()).ok()?).ok()?;
        let (name, password) = claim.split_once(':')?;
        (password.len() <= LONGEST).then(|| Self { name: name.to_owned(), password: password.to_owned() })
    }
}

impl Users {
    pub(super) fn of(users: &[UserConfig]) -> Arc<Self> {
        let hashes = users.iter().map(|user| (user.name.clone(), user.password.clone())).collect();
        Arc::new(Self { hashes })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whose claim it is, if it holds. Of somebody unknown it takes as long to say no.
    pub(super) async fn prove(&self, claim: Claim) -> Proof {
        let Claim { name, password } = claim;
        let known = self.hashes.get(&name);
        let Some(hash) = known.or_else(|| self.hashes.values().next()).cloned() else { return Proof::Wrong };
        let Ok(place) = Arc::clone(&IN_LINE).try_acquire_owned() else { return Proof::Busy };
        let Ok(turn) = Arc::clone(&LOOKS).acquire_owned().await else { return Proof::Busy };
        let verify = move || {
            // Kept until it is done: whoever hangs up meanwhile makes no room for another.
            let _kept = (place, turn);
            Argon2::default().verify_password(password.as_bytes(), hash.as_str()).is_ok()
        };
        let is_right = tokio::task::spawn_blocking(verify).await.unwrap_or(false);
        if is_right && known.is_some() { Proof::Of(name) } else { Proof::Wrong }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(claim: &str) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(claim))
    }

    #[tokio::test]
    async fn who_knows_a_password() {
        let user = UserConfig { name: "backup".to_owned(), password: HASH.to_owned() };
        let users = Users::of(&[user]);
        for (claim, expected) in [
            ("backup:secret", Some("backup")),
            ("backup:Secret", None),
            ("backup:", None),
            ("Backup:secret", None),
            ("nobody:secret", None),
            (":secret", None),
        ] {
            let proven = users.prove(Claim::read(&header(claim)).unwrap()).await;
            let expected = expected.map_or(Proof::Wrong, |name| Proof::Of(name.to_owned()));
            assert_eq!(proven, expected, "{claim}");
        }
        // Whoever comes when all places are taken takes no processor. They are of the whole process: no test beside this one.
        let all = Arc::clone(&IN_LINE).acquire_many_owned(16).await.unwrap();
        assert_eq!(users.prove(Claim::read(&header("backup:secret")).unwrap()).await, Proof::Busy);
        drop(all);
        let nobody = Users::of(&[]);
        assert!(nobody.is_empty());
        assert_eq!(nobody.prove(Claim::read(&header("backup:secret")).unwrap()).await, Proof::Wrong);
    }

    #[test]
    fn claims() {
        assert!(
            Claim::read(&header("a:b:c")).is_some_and(|claim| claim.name == "a" && claim.password == "b:c")
        );
        let long = header(&format!("a:{}", "x".repeat(2000)));
        for wrong in ["", "Basic", "Basic !", "Bearer YTpi", "Basic YQ==", "Basic gIA=", &long] {
            assert!(Claim::read(wrong).is_none(), "{wrong}");
        }
    }

    proptest::proptest! {
        #![proptest_config(crate::mutation::config())]

        #[test]
        fn any_header_is_a_claim_or_none(text in crate::mutation::text([header("backup:secret"), "basic ".to_owned()])) {
            if let Some(claim) = Claim::read(&text) {
                assert!(claim.password.len() <= LONGEST && !claim.name.contains(':'));
            }
        }
    }

    /// Of `secret`, quick to look at.
    const HASH: &str =
        "$argon2id$v=19$m=8,t=1,p=1$ZXhhbXBsZS1zYWx0$Nak3HAh3xvKBlSAiKNerxFSg4tj7r/ZE6kCFR9i47Yg";
}
