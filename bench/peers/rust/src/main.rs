// The handler in Rust, on the crate `userfaultfd`. Its hand-off and its policy are those of ../c/handler.c, which
// describes the policy. It serves one guest after the other, until it is killed.
//
//   handler --socket PATH --memory FILE [--window N] [--policy unregister]
//
// With the policy `unregister` it does what Firecracker's example of a handler does (on_demand_handler.rs): it reads
// one message at a time, copies one page for each fault, and unregisters memory that was removed, so that the kernel
// fills it.

use std::error::Error;
use std::ffi::c_void;
use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags};
use nix::sys::mman::{mmap, MapFlags, ProtFlags};
use nix::sys::socket::{recvmsg, ControlMessageOwned, MsgFlags};
use userfaultfd::{Error as UffdError, Event, EventBuffer, Uffd};

type Outcome<T> = Result<T, Box<dyn Error>>;

const MESSAGES: usize = 64;

#[derive(Clone, Copy, PartialEq)]
enum State {
    Missing,
    Present,
    Removed,
}

struct Guest {
    uffd: Uffd,
    base: usize,
    page_size: usize,
    source: *const u8,
    window: usize,
    states: Vec<State>,
    removals: bool,
    unregisters: bool,
}

impl Guest {
    fn address(&self, page: usize) -> *mut c_void {
        (self.base + page * self.page_size) as *mut c_void
    }

    fn page_of(&self, address: *mut c_void) -> usize {
        (address as usize - self.base) / self.page_size
    }

    fn wake(&self, page: usize) {
        let _ = self.uffd.wake(self.address(page), self.page_size);
    }

    /// Returns the pages around this one that have the same state, inside its window.
    fn run(&self, page: usize) -> (usize, usize) {
        let low = page / self.window * self.window;
        let high = (low + self.window).min(self.states.len());
        let same = |other: &usize| self.states[*other] == self.states[page];
        let first = (low..page).rev().take_while(same).last().unwrap_or(page);
        let end = page + (page..high).take_while(same).count();
        (first, end)
    }

    /// Returns how many bytes were filled, or the error if none were.
    fn transfer(&self, first: usize, length: usize, zero: bool) -> Result<usize, Errno> {
        let target = self.address(first);
        let result = unsafe {
            if zero {
                self.uffd.zeropage(target, length, true)
            } else {
                let source = self.source.add(first * self.page_size);
                self.uffd.copy(source.cast(), target, length, true)
            }
        };
        match result {
            // The kernel's result is signed. It is a negative errno if nothing was copied.
            Err(UffdError::PartiallyCopied(bytes)) if bytes as isize > 0 => Ok(bytes),
            Err(UffdError::PartiallyCopied(_)) => Err(Errno::EAGAIN),
            Err(UffdError::CopyFailed(errno) | UffdError::ZeropageFailed(errno)) => Err(errno),
            Ok(bytes) => Ok(bytes),
            Err(_) => Err(Errno::EIO),
        }
    }

    /// Returns false if the handler must first read the event of a mapping change.
    fn fill(&mut self, page: usize) -> bool {
        loop {
            let state = self.states[page];
            if state == State::Present && !self.removals {
                self.wake(page);
                return true;
            }
            let (first, end) = if state == State::Present { (page, page + 1) } else { self.run(page) };
            match self.transfer(first, (end - first) * self.page_size, state != State::Missing) {
                Ok(bytes) => {
                    let filled = first + bytes / self.page_size;
                    self.states[first..filled].fill(State::Present);
                    if filled > page {
                        return true;
                    }
                }
                Err(Errno::EEXIST) => {
                    self.states[first] = State::Present;
                    if first == page {
                        self.wake(page);
                        return true;
                    }
                }
                Err(Errno::EAGAIN) => return false,
                Err(Errno::ENOENT | Errno::ESRCH) => return true,
                Err(errno) => panic!("a fault was not answered: {errno}"),
            }
        }
    }

    fn take(&mut self, event: Event, waiting: &mut Vec<usize>) {
        match event {
            Event::Pagefault { addr, .. } => waiting.push(self.page_of(addr)),
            Event::Remove { start, end } if self.unregisters => {
                let _ = self.uffd.unregister(start, end as usize - start as usize);
            }
            Event::Remove { start, end } => {
                let (first, end) = (self.page_of(start), self.page_of(end));
                self.states[first..end].fill(State::Removed);
                self.removals = true;
            }
            _ => {}
        }
    }

    fn serve(&mut self, connection: &UnixStream) -> Outcome<()> {
        let most = if self.unregisters { 1 } else { MESSAGES };
        let mut buffer = EventBuffer::new(most);
        let mut waiting = Vec::new();
        loop {
            let closed = {
                let mut fds = [
                    PollFd::new(&self.uffd, PollFlags::POLLIN),
                    PollFd::new(connection, PollFlags::POLLIN),
                ];
                poll(&mut fds, if waiting.is_empty() { -1 } else { 1 })?;
                fds[1].any() == Some(true)
            };
            if closed {
                return Ok(());
            }
            loop {
                let mut count = 0;
                for event in self.uffd.read_events(&mut buffer)? {
                    self.take(event?, &mut waiting);
                    count += 1;
                }
                if count < most {
                    break;
                }
            }
            waiting.retain(|&page| !self.fill(page));
        }
    }
}

/// Receives what the monitor hands over: the only region of its memory, and the userfaultfd.
fn receive(connection: &UnixStream, source: *const u8, window: usize, unregisters: bool) -> Outcome<Guest> {
    let mut text = [0; 4096];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let (length, fd) = {
        let mut parts = [IoSliceMut::new(&mut text)];
        let message =
            recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let fd = message.cmsgs().find_map(|one| match one {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        (message.bytes, fd.ok_or("no descriptor came")?)
    };
    let uffd = unsafe { Uffd::from_raw_fd(fd) };
    let regions: serde_json::Value = serde_json::from_slice(&text[..length])?;
    let member = |name: &str| {
        let value = regions[0][name].as_u64().map(|value| value as usize);
        value.ok_or_else(|| format!("the region has no {name}"))
    };
    let page_size = member("page_size")?;
    Ok(Guest {
        uffd,
        base: member("base_host_virt_addr")?,
        page_size,
        source: unsafe { source.add(member("offset")?) },
        window,
        states: vec![State::Missing; member("size")? / page_size],
        removals: false,
        unregisters,
    })
}

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().collect();
    let option = |name: &str| words.iter().position(|word| word == name).and_then(|at| words.get(at + 1));
    let (Some(socket), Some(memory)) = (option("--socket"), option("--memory")) else {
        return Err("usage: handler --socket PATH --memory FILE [--window N] [--policy unregister]".into());
    };
    let window = option("--window").map_or(Ok(1), |word| word.parse())?;
    let unregisters = option("--policy").is_some_and(|policy| policy == "unregister");
    let file = File::open(memory)?;
    let length = NonZeroUsize::new(file.metadata()?.len() as usize).ok_or("the memory file is empty")?;
    let source = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, Some(&file), 0)? };
    let listener = UnixListener::bind(socket)?;
    println!("ready");
    std::io::stdout().flush()?;
    for connection in listener.incoming() {
        let connection = connection?;
        receive(&connection, source.cast(), window, unregisters)?.serve(&connection)?;
    }
    Ok(())
}
