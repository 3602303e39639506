//! Passwords of users of HTTP's basic authentication.
//!
//! Decides whether somebody knows one. All that is kept of it is a hash that takes long to guess, so whoever guesses over the
//! network keeps a processor busy: only as many are looked at at once as others can spare, and few wait for their turn.

use std::collections::BTreeMap;
use std::sync::Arc;

use argon2::{Argon2, PasswordVerifier};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::sync::Semaphore;

use super::config::UserConfig;

/// Passwords that are looked at at once.
const LOOKS: usize = 2;

/// Passwords that are looked at or wait for it. Whoever comes then is told to come again.
const WAITING: usize = 16;

/// Longest password, in bytes.
const LONGEST: usize = 1024;

/// Most characters of a name that are written down. Anybody sends any.
const WRITTEN: usize = 64;

/// All users, and the hashes of their passwords.
pub(super) struct Users {
    hashes: BTreeMap<String, String>,
}

/// Where passwords are looked at. There is one for all users that there ever are: a reload gives nobody more turns.
pub(super) struct Desk {
    queue: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

/// Too many wait for a look at their passwords.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Busy;

impl Default for Desk {
    fn default() -> Self {
        Self { queue: Arc::new(Semaphore::new(WAITING)), turns: Arc::new(Semaphore::new(LOOKS)) }
    }
}

impl Desk {
    /// Whether a password is the one of a hash. A look that has begun keeps its turn to its end: nothing takes it back, and
    /// whoever hangs up must not make room for another.
    async fn look(&self, password: String, hash: String) -> Result<bool, Busy> {
        let place = Arc::clone(&self.queue).try_acquire_owned().map_err(|_| Busy)?;
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| Busy)?;
        let verify = move || {
            let _held = (place, turn);
            Argon2::default().verify_password(password.as_bytes(), hash.as_str()).is_ok()
        };
        Ok(tokio::task::spawn_blocking(verify).await.unwrap_or(false))
    }
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

    /// The name for people, in one line.
    pub(super) fn who(&self) -> String {
        let name: String = self.name.chars().take(WRITTEN).collect();
        format!("{name:?}")
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
    pub(super) async fn prove(&self, desk: &Desk, claim: Claim) -> Result<Option<String>, Busy> {
        let Claim { name, password } = claim;
        let known = self.hashes.get(&name);
        let Some(hash) = known.or_else(|| self.hashes.values().next()).cloned() else { return Ok(None) };
        let is_right = desk.look(password, hash).await?;
        Ok((is_right && known.is_some()).then_some(name))
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
        let (users, desk) = (Users::of(&[user]), Desk::default());
        for (claim, expected) in [
            ("backup:secret", Some("backup")),
            ("backup:Secret", None),
            ("backup:", None),
            ("Backup:secret", None),
            ("nobody:secret", None),
            (":secret", None),
        ] {
            let proven = users.prove(&desk, Claim::read(&header(claim)).unwrap()).await.unwrap();
            assert_eq!(proven.as_deref(), expected, "{claim}");
        }
        let nobody = Users::of(&[]);
        assert!(nobody.is_empty());
        assert_eq!(nobody.prove(&desk, Claim::read(&header("backup:secret")).unwrap()).await, Ok(None));
    }

    /// Whoever hangs up leaves behind the look that has begun, and its turn with it.
    #[tokio::test]
    async fn turns() {
        let desk = Arc::new(Desk::default());
        // Slow enough that it is under way for all that follows.
        let slow = HASH.replace("m=8,t=1", "m=32768,t=20");
        let look = || {
            let (desk, slow) = (Arc::clone(&desk), slow.clone());
            tokio::spawn(async move { desk.look("secret".to_owned(), slow).await })
        };
        let begun: Vec<_> = (0..LOOKS).map(|_| look()).collect();
        while desk.turns.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        begun.iter().for_each(tokio::task::JoinHandle::abort);
        for begun in begun {
            assert!(begun.await.unwrap_err().is_cancelled());
        }
        assert_eq!((desk.turns.available_permits(), desk.queue.available_permits()), (0, WAITING - LOOKS));
        let waiting: Vec<_> = (LOOKS..WAITING).map(|_| look()).collect();
        while desk.queue.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(look().await.unwrap(), Err(Busy));
        // One that waits still has not begun.
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
        let again = async {
            while desk.turns.available_permits() < LOOKS {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            desk.look("secret".to_owned(), HASH.to_owned()).await
        };
        assert_eq!(again.await, Ok(true));
    }

    #[test]
    fn claims() {
        assert!(
            Claim::read(&header("a:b:c")).is_some_and(|claim| claim.name == "a" && claim.password == "b:c")
        );
        let name = Claim::read(&header(&format!("a\n{}:secret", "b".repeat(200)))).unwrap().who();
        assert_eq!(name, format!("\"a\\n{}\"", "b".repeat(62)));
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
