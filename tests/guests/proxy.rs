//! A way to libvirtd that can be cut: what libvirtd's restart looks like to a client, without restarting the one that
//! other tests use.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::bed::scratch::Scratch;

const LIBVIRTD: &str = "/run/libvirt/libvirt-sock";

/// A socket that leads to libvirtd, or nowhere.
pub struct Proxy {
    shared: Arc<Shared>,
    scratch: Scratch,
}

#[derive(Default)]
struct Shared {
    is_cut: AtomicBool,
    open: Mutex<Vec<UnixStream>>,
}

impl Proxy {
    /// Starts one.
    pub fn start() -> Self {
        let proxy = Self { shared: Arc::default(), scratch: Scratch::new() };
        let listener = UnixListener::bind(proxy.socket()).unwrap();
        let shared = Arc::clone(&proxy.shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if !shared.is_cut.load(Ordering::SeqCst) {
                    shared.join(client);
                }
            }
        });
        proxy
    }

    fn socket(&self) -> PathBuf {
        self.scratch.join("libvirt.sock")
    }

    /// The address for libvirt's clients.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    /// Breaks all connections; new ones break at once.
    pub fn cut(&self) {
        self.shared.is_cut.store(true, Ordering::SeqCst);
        for stream in self.shared.open.lock().unwrap().drain(..) {
            // One that has ended already is cut.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets new connections through.
    pub fn mend(&self) {
        self.shared.is_cut.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    fn join(&self, client: UnixStream) {
        let server = UnixStream::connect(LIBVIRTD).expect("libvirtd listens");
        let pairs = [(&client, &server), (&server, &client)];
        for (from, to) in pairs {
            let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            thread::spawn(move || {
                // Either side may end it.
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        self.open.lock().unwrap().extend([client, server]);
    }
}
