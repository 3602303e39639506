//! Lists against a plain model: whatever is entered, changed, deleted or rolled back between two pages, a page and the
//! number of all are what a filter over everything in memory gives.

use std::cmp::Ordering;
use std::path::PathBuf;

use fastrand::Rng;

use super::*;
use crate::model::{Format, Hold, Layer, LayerId, LayerTree, Ownership, SnapshotDisk, VolumeId};
use crate::store::catalog::{read_tree, write_tree};
use crate::store::{Direction, OrderBy, Page, Placed, Position, SnapshotFilter, SnapshotPage};

const SEEDS: u64 = 24;
const WRITES: usize = 120;
/// More than the counts that are kept.
const LISTS: usize = 90;

#[tokio::test]
async fn lists_are_what_a_filter_over_everything_gives() {
    for seed in 0..SEEDS {
        let mut shelf = Shelf::new(seed);
        for _ in 0..WRITES {
            shelf.write().await;
            shelf.check_a_page().await;
            shelf.check_a_page().await;
        }
    }
}

/// The catalog, and what should be in it.
struct Shelf {
    seed: u64,
    random: Rng,
    store: Store,
    /// In the order in which they were entered, with their places in it.
    snapshots: Vec<(i64, Snapshot)>,
    entered: u128,
    current: BTreeMap<VmId, SnapshotId>,
    paths: BTreeMap<LayerId, PathBuf>,
    lists: Vec<List>,
}

/// A list that is looked through page by page, over and over.
#[derive(Clone)]
struct List {
    filter: SnapshotFilter,
    page: Page,
}

impl Shelf {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let lists = (0..LISTS).map(|_| list(&mut random)).collect();
        let (store, paths) = (Store::in_memory().unwrap(), BTreeMap::new());
        Self {
            seed,
            random,
            store,
            snapshots: Vec::new(),
            entered: 0,
            current: BTreeMap::new(),
            paths,
            lists,
        }
    }

    async fn write(&mut self) {
        match self.random.u8(0..10) {
            0..4 => self.enter().await,
            4..6 => self.change(|snapshots, index, random| change(&mut snapshots[index], random)).await,
            6 => self.change(|snapshots, index, _| drop(snapshots.remove(index))).await,
            7 => self.move_around().await,
            8 => self.roll_back().await,
            _ => {}
        }
    }

    async fn enter(&mut self) {
        self.entered += 1;
        let parents: Vec<SnapshotId> = self.snapshots.iter().map(|(_, snapshot)| snapshot.id).collect();
        let name = format!("{}{}", self.random.choice(["a", "ab", "b"]).unwrap(), self.entered);
        let vm = self.random.u128(1..4);
        let mut new = Snapshot {
            vm: VmId(Uuid::from_u128(vm)),
            vm_name: format!("web-{}", vm % 2),
            parent: self.random.choice(parents).filter(|_| self.random.bool()),
            created_at: Timestamp::from_second(self.random.i64(0..5)).unwrap(),
            kind: self.random.choice(KINDS).unwrap(),
            ..snapshot(&name, self.entered)
        };
        change(&mut new, &mut self.random);
        let reservation = Reservation::Snapshot(Box::new(new.clone()), String::new());
        self.store.begin(operation(self.entered), None, reservation).await.unwrap();
        self.snapshots.push((i64::try_from(self.entered).unwrap(), new));
    }

    /// Changes one snapshot through the tree of its VM.
    async fn change(&mut self, change: impl FnOnce(&mut Vec<Snapshot>, usize, &mut Rng)) {
        let Some(index) = self.random.choice(0..self.snapshots.len()) else { return };
        let (number, before) = self.snapshots[index].clone();
        let mut one = vec![before.clone()];
        change(&mut one, 0, &mut self.random);
        let after = one.pop();
        let changed = after.clone();
        self.write_tree(before.vm, move |tree| {
            tree.snapshots.retain(|snapshot| snapshot.id != before.id);
            tree.snapshots.extend(changed);
        })
        .await;
        match after {
            Some(after) => self.snapshots[index] = (number, after),
            None => drop(self.snapshots.remove(index)),
        }
    }

    /// What stands around the snapshots of a VM becomes another.
    async fn move_around(&mut self) {
        let vm = VmId(Uuid::from_u128(self.random.u128(1..4)));
        let of_vm = self.snapshots.iter().filter(|(_, snapshot)| snapshot.vm == vm);
        let current = self.random.choice(of_vm.map(|(_, snapshot)| snapshot.id).collect::<Vec<_>>());
        let is_own = |layer: &LayerId| layer.0.as_u128() / 10 == vm.0.as_u128();
        self.paths.retain(|layer, _| !is_own(layer));
        let mut layers = BTreeMap::new();
        for id in LAYERS.map(|number| LayerId(Uuid::from_u128(number))).iter().filter(|layer| is_own(layer)) {
            if self.random.bool() {
                let path = PathBuf::from(format!("/i/{}-{}", id.0.as_u128(), self.random.u8(0..9)));
                self.paths.insert(*id, path.clone());
                layers.insert(*id, layer(*id, path));
            }
        }
        self.write_tree(vm, move |tree| (tree.current, tree.layers) = (current, layers)).await;
        self.current.remove(&vm);
        self.current.extend(current.map(|current| (vm, current)));
    }

    async fn write_tree(&self, vm: VmId, change: impl FnOnce(&mut LayerTree) + Send + 'static) {
        let write = move |transaction: &Transaction<'_>| {
            let before = read_tree(transaction, vm)?;
            let mut tree = before.clone();
            change(&mut tree);
            write_tree(transaction, &before, &tree)
        };
        self.store.transact(write).await.unwrap();
    }

    /// All snapshots of a VM go, and then they have not gone.
    async fn roll_back(&mut self) {
        let vm = VmId(Uuid::from_u128(self.random.u128(1..4)));
        let failed = self.store.transact(move |transaction| {
            let before = read_tree(transaction, vm)?;
            write_tree(transaction, &before, &LayerTree::empty(vm))?;
            Err::<(), _>(StoreError::NameTaken)
        });
        assert!(matches!(failed.await, Err(StoreError::NameTaken)));
    }

    /// The next page of one of the lists, and where it goes on.
    async fn check_a_page(&mut self) {
        let list = self.random.usize(0..LISTS);
        let List { filter, page } = self.lists[list].clone();
        let found = self.store.snapshots(filter.clone(), page.clone()).await.unwrap();
        assert_eq!(found, self.expected(&filter, &page), "seed {}: {filter:?}, {page:?}", self.seed);
        self.lists[list].page.after = found.next;
        let snapshots: Vec<Snapshot> = found.snapshots.iter().map(|placed| placed.snapshot.clone()).collect();
        assert_eq!(self.store.placed(snapshots).await.unwrap(), found.snapshots);
    }

    fn expected(&self, filter: &SnapshotFilter, page: &Page) -> SnapshotPage {
        let mut all: Vec<&(i64, Snapshot)> =
            self.snapshots.iter().filter(|(_, snapshot)| fits(filter, snapshot)).collect();
        let total = all.len() as u64;
        let compare = |(number, snapshot): &(i64, Snapshot), other: &Position| {
            let position = position(page.order, *number, snapshot);
            let by_key = match page.order {
                // As numbers.
                OrderBy::Created => (position.key.len(), &position.key).cmp(&(other.key.len(), &other.key)),
                OrderBy::Name | OrderBy::VmName => position.key.cmp(&other.key),
            };
            let ascending = by_key.then(position.number.cmp(&other.number));
            if page.direction == Direction::Ascending { ascending } else { ascending.reverse() }
        };
        all.sort_by(|one, other| compare(one, &position(page.order, other.0, &other.1)));
        if let Some(after) = &page.after {
            all.retain(|one| compare(one, after) == Ordering::Greater);
        }
        let limit = usize::try_from(page.limit).unwrap();
        let last = all.get(limit - 1).filter(|_| all.len() > limit);
        let next = last.map(|(number, snapshot)| position(page.order, *number, snapshot));
        let snapshots = all.iter().take(limit).map(|(_, snapshot)| self.placed(snapshot)).collect();
        SnapshotPage { snapshots, total, next }
    }

    fn placed(&self, snapshot: &Snapshot) -> Placed {
        let children = self.snapshots.iter().filter(|(_, child)| child.parent == Some(snapshot.id)).count();
        let layers = snapshot.disks.iter().map(|disk| disk.layer);
        Placed {
            is_current: self.current.get(&snapshot.vm) == Some(&snapshot.id),
            children: u32::try_from(children).unwrap(),
            paths: layers.filter_map(|layer| Some((layer, self.paths.get(&layer)?.clone()))).collect(),
            snapshot: snapshot.clone(),
        }
    }
}

fn position(order: OrderBy, number: i64, snapshot: &Snapshot) -> Position {
    let key = match order {
        OrderBy::Created => snapshot.created_at.as_millisecond().to_string(),
        OrderBy::Name => snapshot.name.to_string(),
        OrderBy::VmName => snapshot.vm_name.clone(),
    };
    Position { key, number }
}

const KINDS: [SnapshotKind; 3] =
    [SnapshotKind::VmDisks, SnapshotKind::VmDisksAndMemory, SnapshotKind::Volume];
const STATES: [SnapshotState; 3] = [SnapshotState::Creating, SnapshotState::Ready, SnapshotState::Error];
/// The first digit is that of the VM.
const LAYERS: [u128; 9] = [10, 11, 12, 20, 21, 22, 30, 31, 32];
const OWNERS: [&str; 3] = ["", "x", "y"];

fn change(snapshot: &mut Snapshot, random: &mut Rng) {
    let mut owner = || (*random.choice(&OWNERS).unwrap()).to_owned();
    snapshot.owner = Owner { account: owner(), domain: owner(), project: owner() };
    snapshot.state = random.choice(STATES).unwrap();
    let hold = Hold {
        name: "audit".parse().unwrap(),
        reason: String::new(),
        created_at: Timestamp::UNIX_EPOCH,
        created_by: "test".to_owned(),
    };
    snapshot.holds = if random.bool() { vec![hold] } else { Vec::new() };
    let property =
        |key: &&str| (random.u8(0..3) > 0).then(|| ((*key).to_owned(), random.u8(0..3).to_string()));
    snapshot.properties = ["k", "l"].iter().filter_map(property).collect();
    let disk = |target: &str, random: &mut Rng| SnapshotDisk {
        target: target.parse().unwrap(),
        volume: VolumeId(Uuid::from_u128(random.u128(0..3))),
        layer: LayerId(Uuid::from_u128(random.choice(LAYERS).unwrap())),
        virtual_size: 1,
        allocated: 1,
    };
    snapshot.disks = ["vda", "vdb"][..random.usize(0..3)].iter().map(|target| disk(target, random)).collect();
    snapshot.generation += 1;
}

fn layer(id: LayerId, path: PathBuf) -> Layer {
    Layer {
        id,
        volume: VolumeId(Uuid::nil()),
        parent: None,
        path,
        format: Format::Qcow2,
        ownership: Ownership::Owned,
        virtual_size: 1,
        is_set_aside: false,
        seen: None,
    }
}

fn list(random: &mut Rng) -> List {
    // Of none of them, too.
    let some_vms = random.u8(0..4);
    let some_vms = (0..some_vms).map(|_| VmId(Uuid::from_u128(random.u128(0..4)))).collect::<Vec<_>>();
    let vms = (random.u8(0..5) == 0).then_some(some_vms);
    let mut sometimes = |most: u128| (random.u8(0..5) == 0).then(|| random.u128(0..most));
    let owner = |choice: Option<u128>| OWNERS[usize::try_from(choice.unwrap_or(0)).unwrap()].to_owned();
    let uuid = |choice: Option<u128>| choice.map(Uuid::from_u128);
    let time =
        |choice: Option<u128>| choice.map(|at| Timestamp::from_second(i64::try_from(at).unwrap()).unwrap());
    let mut filter = SnapshotFilter {
        vms,
        states: Vec::new(),
        kinds: Vec::new(),
        volume: uuid(sometimes(3)).map(VolumeId),
        parent: uuid(sometimes(40)).map(SnapshotId),
        schedule: None,
        held: sometimes(2).map(|held| held == 1),
        account: owner(sometimes(3)),
        domain: owner(sometimes(3)),
        project: owner(sometimes(3)),
        name: sometimes(40).map(|number| format!("a{number}")).unwrap_or_default(),
        name_prefix: sometimes(2)
            .map(|short| if short == 1 { "a" } else { "ab" }.to_owned())
            .unwrap_or_default(),
        properties: Vec::new(),
        created_after: time(sometimes(3)),
        created_before: time(sometimes(5)),
    };
    filter.states = STATES.into_iter().filter(|_| random.u8(0..5) == 0).collect();
    filter.kinds = KINDS.into_iter().filter(|_| random.u8(0..5) == 0).collect();
    for key in ["k", "l"] {
        if random.u8(0..4) == 0 {
            filter.properties.push((key.to_owned(), random.bool().then(|| random.u8(0..3).to_string())));
        }
    }
    let page = Page {
        limit: random.u32(1..6),
        after: None,
        order: random.choice([OrderBy::Created, OrderBy::Name, OrderBy::VmName]).unwrap(),
        direction: random.choice([Direction::Ascending, Direction::Descending]).unwrap(),
    };
    // Two of three ask for everything, or nearly.
    let filter = match random.u8(0..3) {
        0 => filter,
        1 => SnapshotFilter {
            states: filter.states,
            properties: filter.properties,
            ..SnapshotFilter::default()
        },
        _ => SnapshotFilter { account: filter.account, held: filter.held, ..SnapshotFilter::default() },
    };
    List { filter, page }
}

fn fits(filter: &SnapshotFilter, snapshot: &Snapshot) -> bool {
    fn is<T: PartialEq>(wanted: Option<&T>, found: &T) -> bool {
        wanted.is_none_or(|wanted| wanted == found)
    }
    let text = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
    let has = |(key, value): &(String, Option<String>)| {
        snapshot.properties.get(key).is_some_and(|found| is(value.as_ref(), found))
    };
    filter.vms.as_ref().is_none_or(|vms| vms.contains(&snapshot.vm))
        && (filter.states.is_empty() || filter.states.contains(&snapshot.state))
        && (filter.kinds.is_empty() || filter.kinds.contains(&snapshot.kind))
        && filter.volume.is_none_or(|volume| snapshot.disks.iter().any(|disk| disk.volume == volume))
        && (filter.parent.is_none() || filter.parent == snapshot.parent)
        && is(filter.held.as_ref(), &!snapshot.holds.is_empty())
        && text(&filter.account, &snapshot.owner.account)
        && text(&filter.domain, &snapshot.owner.domain)
        && text(&filter.project, &snapshot.owner.project)
        && text(&filter.name, snapshot.name.as_str())
        && snapshot.name.as_str().starts_with(&filter.name_prefix)
        && filter.properties.iter().all(has)
        && filter.created_after.is_none_or(|after| snapshot.created_at >= after)
        && filter.created_before.is_none_or(|before| snapshot.created_at < before)
}
