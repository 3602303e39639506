//! The link to libvirtd, cut and restored by a proxy between us and it.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use vmsnap::host::libvirt::{Deadlines, Libvirt};
use vmsnap::host::{HostError, HostEvent, Hypervisor, Link};
use vmsnap::model::vm::Format;

use crate::bed::{Bed, heard, in_time, is_up, text, virsh};

/// Where libvirtd, or its successor for QEMU, listens.
const SOCKETS: [&str; 2] = ["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"];

/// Passes bytes on between a socket of its own and libvirtd, until it is dropped.
struct Proxy {
    path: PathBuf,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

impl Proxy {
    fn start(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let open = Arc::new(Mutex::new(Vec::new()));
        let streams = Arc::clone(&open);
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let server = SOCKETS.iter().find_map(|path| UnixStream::connect(path).ok()).unwrap();
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    thread::spawn(move || pass_on(from, to));
                }
                streams.lock().unwrap().extend([client, server]);
            }
        });
        Self { path: path.to_owned(), open }
    }
}

impl Drop for Proxy {
    /// New connections find no socket, open ones are cut.
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).unwrap();
        for stream in self.open.lock().unwrap().drain(..) {
            // Closed already by the other side.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pass_on(mut from: UnixStream, mut to: UnixStream) -> io::Result<()> {
    let mut bytes = [0; 4096];
    loop {
        let length = from.read(&mut bytes)?;
        if length == 0 {
            return to.shutdown(Shutdown::Both);
        }
        to.write_all(&bytes[..length])?;
    }
}

#[tokio::test]
async fn a_link_that_breaks_and_comes_back() {
    let Some(bed) = Bed::new().await else { return };
    let vm = bed.vm(&[("vda", &bed.image("base", Format::Qcow2))], "");
    let socket = bed.path("socket");
    let uri = format!("qemu+unix:///system?socket={}", text(&socket));
    let libvirt = Libvirt::connect(&uri, Deadlines::default()).unwrap();
    let mut link = libvirt.link();
    let mut events = libvirt.events();
    assert!(matches!(&*link.borrow(), Link::Down(_)), "nobody listens yet");
    assert_unreachable(libvirt.observe(vm.id).await);

    for _ in 0..2 {
        let proxy = Proxy::start(&socket);
        is_up(&mut link).await;
        libvirt.observe(vm.id).await.unwrap();
        virsh(&["start", &vm.name]);
        heard(&mut events, &HostEvent::VmChanged(vm.id)).await;
        virsh(&["destroy", &vm.name]);

        drop(proxy);
        in_time(link.wait_for(|link| matches!(link, Link::Down(_)))).await.unwrap();
        assert_unreachable(libvirt.observe(vm.id).await);
        assert_unreachable(libvirt.start(vm.id, &vmsnap::host::StartFrom::Disks, false).await);
    }
}

fn assert_unreachable<T: std::fmt::Debug>(result: Result<T, HostError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, HostError::Unreachable(Some(_))), "{error:?}");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn an_address_that_cannot_be_one() {
    let refused = Libvirt::connect("qemu:///system\0", Deadlines::default());
    assert!(matches!(refused, Err(HostError::Malformed { .. })), "{refused:?}");
    let nowhere = Libvirt::connect("nothing:///at/all", Deadlines::default()).unwrap();
    assert_unreachable(nowhere.vms().await);
}
