//! Who gets a place, who loses it, who gets a call.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use tokio::time::Instant;

use super::places::{FIRST_CALL, GRACE, SHARED_CALLS};
use super::*;

/// Rules that count for nobody here: no call is made.
fn nobody_asks() -> Current {
    let in_force = crate::daemon::access::InForce::read(&crate::daemon::config::Config::default());
    tokio::sync::watch::channel(Arc::new(in_force.unwrap())).1
}

async fn connected(places: &Arc<Places>) -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let standing = Standing::new(Peer::Local(ours.connect_info()), nobody_asks());
    (Connection::new(Wire::Local(ours), places.take().await.unwrap(), standing, None), theirs)
}

async fn read(connection: &mut Connection) -> io::Result<u8> {
    connection.read_u8().await
}

#[tokio::test(start_paused = true)]
async fn who_makes_no_call_goes() {
    let places = Places::of(2);
    let (mut silent, _theirs) = connected(&places).await;
    let (mut caller, mut theirs) = connected(&places).await;
    assert!(caller.connect_info().call().is_some());
    let begun = Instant::now();
    assert_eq!(read(&mut silent).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(begun.elapsed(), FIRST_CALL);
    tokio::time::advance(10 * FIRST_CALL).await;
    theirs.write_u8(7).await.unwrap();
    assert_eq!(read(&mut caller).await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn the_oldest_stranger_makes_room_after_its_grace() {
    let places = Places::of(3);
    let (caller, _a) = connected(&places).await;
    assert!(caller.connect_info().call().is_some());
    let (mut first, _b) = connected(&places).await;
    let (mut second, mut c) = connected(&places).await;
    let begun = Instant::now();
    let (third, _d) = connected(&places).await;
    assert_eq!(begun.elapsed(), GRACE, "nobody is sent away before");
    assert!(read(&mut first).await.is_err());
    assert!(second.connect_info().call().is_some());
    assert!(first.connect_info().call().is_none(), "too late");
    drop(first);
    c.write_u8(7).await.unwrap();
    assert_eq!(read(&mut second).await.unwrap(), 7);
    assert!(third.connect_info().call().is_some());
    assert!(places.take().await.is_none(), "who has called is not sent away");
    drop(third);
    assert!(places.take().await.is_some(), "a place that was left can be taken");
}

#[tokio::test]
async fn nobody_has_all_the_calls() {
    let places = Places::of(50);
    let all_of =
        |greedy: &Connection| std::iter::from_fn(|| greedy.connect_info().call()).collect::<Vec<_>>();
    let (first, _theirs) = connected(&places).await;
    let held = all_of(&first);
    assert_eq!(held.len(), 1 + SHARED_CALLS.div_ceil(3));
    let mut others = Vec::new();
    for _ in 0..49 {
        let (other, theirs) = connected(&places).await;
        let calls = all_of(&other);
        assert!(!calls.is_empty(), "one that comes late has one");
        others.push((calls, other, theirs));
    }
    assert!(all_of(&first).is_empty());
    // A call may outlive its connection, and the other way round.
    let (calls, connections): (Vec<_>, Vec<_>) =
        others.into_iter().map(|(calls, other, theirs)| (calls, (other, theirs))).unzip();
    drop((held, connections));
    drop(calls);
    assert_eq!(places.taken().shared, 0);
    assert_eq!(all_of(&first).len(), 1 + SHARED_CALLS.div_ceil(3), "what has ended is not counted");
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_goes() {
    let places = Places::of(1);
    let (mut connection, theirs) = connected(&places).await;
    assert!(connection.connect_info().call().is_some());
    let begun = Instant::now();
    let all = vec![0; 16 << 20];
    assert_eq!(connection.write_all(&all).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(begun.elapsed(), STALLED);
    drop((connection, theirs));
    assert_eq!(places.taken().callers.len(), 0);
}

/// What a crowd had is given back when half of it has left, and not each time that somebody goes.
#[tokio::test]
async fn the_ebb_of_a_crowd_is_told() {
    let places = Places::of(1000);
    let mut told = places.ebbs();
    let mut seats = Vec::new();
    for _ in 0..100 {
        seats.push(places.take().await.unwrap());
    }
    seats.truncate(51);
    assert!(!told.has_changed().unwrap());
    for left in [50, 25, 0] {
        seats.truncate(left);
        let expected = left == 50;
        assert_eq!(told.has_changed().unwrap(), expected, "{left} are left: fewer than a crowd");
        told.borrow_and_update();
    }
}
