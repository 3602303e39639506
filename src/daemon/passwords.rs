//! Passwords of users of HTTP's basic authentication.
//!
//! Decides whether somebody knows one. All that is kept of it is a hash that takes long to guess, so whoever guesses over the
//! network keeps a processor busy: only as many are looked at at once as others can spare.

use std::collections::BTreeMap;
use std::sync::Arc;

use argon2::{Argon2, PasswordVerifier};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::sync::Semaphore;

use super::config::UserConfig;

/// Passwords that are looked at at once.
const LOOKS: usize = 2;

/// Longest password, in bytes.
const LONGEST: usize = 1024;

/// All users, and the hashes of their passwords.
pub(super) struct Users {
    hashes: BTreeMap<String, String>,
    turns: Semaphore,
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
        Arc::new(Self { hashes, turns: Semaphore::new(LOOKS) })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whose claim it is, if it holds. Of somebody unknown it takes as long to say no.
    pub(super) async fn prove(&self, claim: Claim) -> Option<String> {
        let Claim { name, password } = claim;
        let known = self.hashes.get(&name);
        let hash = known.or_else(|| self.hashes.values().next())?.clone();
        let _turn = self.turns.acquire().await;
        let verify = move || Argon2::default().verify_password(password.as_bytes(), hash.as_str()).is_ok();
        let is_right = tokio::task::spawn_blocking(verify).await.unwrap_or(false);
        (is_right && known.is_some()).then_some(name)
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
            assert_eq!(proven.as_deref(), expected, "{claim}");
        }
        let nobody = Users::of(&[]);
        assert!(nobody.is_empty());
        assert_eq!(nobody.prove(Claim::read(&header("backup:secret")).unwrap()).await, None);
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
