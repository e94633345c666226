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
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags};
use nix::sys::mman::{mmap, MapFlags, ProtFlags};
use nix::sys::socket::{recvmsg, ControlMessageOwned, MsgFlags};
use userfaultfd::{Error as UffdError, Event, EventBuffer, Uffd};

type Outcome<T> = Result<T, Box<dyn Error>>;

const MESSAGES: usize = 64;
const SMALL_PAGE: usize = 4096;
const HUGE_PAGE: usize = 2 << 20;
/// How long a text waits for its descriptor.
const LATE_DESCRIPTOR: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, PartialEq)]
enum State {
    Missing,
    Present,
    Removed,
}

/// The memory of a region, by page.
struct Memory {
    base: usize,
    size: usize,
    offset: usize,
    page_size: usize,
    states: Vec<State>,
}

struct Guest {
    uffd: Uffd,
    memory: Vec<Memory>,
    source: *const u8,
    /// For huge pages, which have no zero page.
    zeros: Vec<u8>,
    window: usize,
    removals: bool,
    unregisters: bool,
}

impl Memory {
    fn address(&self, page: usize) -> *mut c_void {
        (self.base + page * self.page_size) as *mut c_void
    }

    /// Returns the pages around this one that have the same state, inside its window.
    fn run(&self, page: usize, window: usize) -> (usize, usize) {
        let low = page / window * window;
        let high = (low + window).min(self.states.len());
        let same = |other: &usize| self.states[*other] == self.states[page];
        let first = (low..page).rev().take_while(same).last().unwrap_or(page);
        let end = page + (page..high).take_while(same).count();
        (first, end)
    }

    /// Marks the pages of a range that was removed.
    fn remove(&mut self, start: usize, end: usize) {
        let (from, to) = (start.max(self.base), end.min(self.base + self.size));
        if from < to {
            let page_of = |address: usize| (address - self.base) / self.page_size;
            let (first, end) = (page_of(from), page_of(to));
            self.states[first..end].fill(State::Removed);
        }
    }
}

impl Guest {
    fn wake(&self, memory: &Memory, page: usize) {
        let _ = self.uffd.wake(memory.address(page), memory.page_size);
    }

    /// Returns how many bytes were filled, or the error if none were.
    fn transfer(&self, memory: &Memory, first: usize, count: usize, zero: bool) -> Result<usize, Errno> {
        let target = memory.address(first);
        let length = count * memory.page_size;
        let result = unsafe {
            if zero && memory.page_size == SMALL_PAGE {
                self.uffd.zeropage(target, length, true)
            } else if zero {
                self.uffd.copy(self.zeros.as_ptr().cast(), target, memory.page_size, true)
            } else {
                let source = self.source.add(memory.offset + first * memory.page_size);
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

    /// Returns false if the fault has to be handled again: the handler must first read the event of a mapping change.
    fn fill(&mut self, address: usize) -> bool {
        let holds = |one: &Memory| address.wrapping_sub(one.base) < one.size;
        let Some(index) = self.memory.iter().position(holds) else { return true };
        let page = (address - self.memory[index].base) / self.memory[index].page_size;
        let mut window = self.window;
        loop {
            let memory = &self.memory[index];
            let state = memory.states[page];
            if state == State::Present && !self.removals {
                self.wake(memory, page);
                return true;
            }
            let (first, end) =
                if state == State::Present { (page, page + 1) } else { memory.run(page, window) };
            match self.transfer(memory, first, end - first, state != State::Missing) {
                Ok(bytes) => {
                    let filled = first + bytes / memory.page_size;
                    self.memory[index].states[first..filled].fill(State::Present);
                    if filled > page {
                        return true;
                    }
                }
                Err(Errno::EEXIST) => {
                    if first == page {
                        self.wake(memory, page);
                    }
                    // Of huge pages, EEXIST may mean that the pool is empty.
                    if memory.page_size == SMALL_PAGE {
                        self.memory[index].states[first] = State::Present;
                    } else {
                        window = 1;
                    }
                    if first == page {
                        return true;
                    }
                }
                Err(Errno::EAGAIN) => return false,
                Err(Errno::ENOENT) if window > 1 => window = 1,
                Err(Errno::ENOENT | Errno::ESRCH) => return true,
                Err(errno) => {
                    eprintln!("a fault was not answered: {errno}");
                    std::process::exit(1);
                }
            }
        }
    }

    fn take(&mut self, event: Event, waiting: &mut Vec<usize>) {
        match event {
            Event::Pagefault { addr, .. } => waiting.push(addr as usize),
            Event::Remove { start, end } if self.unregisters => {
                let _ = self.uffd.unregister(start, end as usize - start as usize);
            }
            Event::Remove { start, end } => {
                for memory in &mut self.memory {
                    memory.remove(start as usize, end as usize);
                }
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
            waiting.retain(|&address| !self.fill(address));
        }
    }
}

/// Receives what the monitor hands over: the regions of its memory, and the userfaultfd. The text may come in pieces, and
/// the descriptor after the text.
fn receive(connection: &UnixStream) -> Outcome<(Uffd, serde_json::Value)> {
    let mut text = Vec::new();
    let mut regions = None;
    // The first descriptor is the userfaultfd.
    let mut uffd = None;
    loop {
        let mut buffer = vec![0; 64 << 10];
        let mut space = nix::cmsg_space!([RawFd; 16]);
        let length = {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let message =
                recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
            for one in message.cmsgs() {
                if let ControlMessageOwned::ScmRights(fds) = one {
                    for fd in fds {
                        let came = unsafe { OwnedFd::from_raw_fd(fd) };
                        uffd.get_or_insert(came);
                    }
                }
            }
            message.bytes
        };
        if length == 0 {
            return Err("the connection was closed".into());
        }
        text.extend_from_slice(&buffer[..length]);
        if regions.is_none() {
            regions = match serde_json::from_slice(&text) {
                Ok(value) => Some(value),
                Err(error) if error.is_eof() => None,
                Err(error) => return Err(error.into()),
            };
        }
        match (regions, uffd) {
            (Some(regions), Some(fd)) => {
                connection.set_read_timeout(None)?;
                return Ok((unsafe { Uffd::from_raw_fd(fd.into_raw_fd()) }, regions));
            }
            (whole, came) => (regions, uffd) = (whole, came),
        }
        if regions.is_some() {
            connection.set_read_timeout(Some(LATE_DESCRIPTOR))?;
        }
    }
}

/// The memory of the regions that were handed over.
fn memory_of(regions: &serde_json::Value, file_bytes: usize) -> Outcome<Vec<Memory>> {
    let regions = regions.as_array().ok_or("not an array of regions")?;
    if regions.is_empty() {
        return Err("there is no region".into());
    }
    let memory = regions.iter().map(|region| {
        let member = |name: &str| region[name].as_u64().map(|value| value as usize);
        let needed = |name: &str| member(name).ok_or_else(|| format!("a region has no {name}"));
        // The older name of the page size; it holds bytes, too.
        let page_size = member("page_size").or(member("page_size_kib")).unwrap_or(SMALL_PAGE);
        let (base, size, offset) = (needed("base_host_virt_addr")?, needed("size")?, needed("offset")?);
        let whole = [SMALL_PAGE, HUGE_PAGE].contains(&page_size) && (base | size | offset) % page_size == 0;
        let fits = offset.checked_add(size).map_or(false, |end| end <= file_bytes);
        if !whole || size == 0 || !fits || base.checked_add(size).is_none() {
            return Err(format!("a region does not fit the memory file: {region}").into());
        }
        Ok(Memory { base, size, offset, page_size, states: vec![State::Missing; size / page_size] })
    });
    let memory = memory.collect::<Outcome<Vec<_>>>()?;
    let mut ends: Vec<_> = memory.iter().map(|one| (one.base, one.base + one.size)).collect();
    ends.sort();
    if ends.windows(2).any(|two| two[0].1 > two[1].0) {
        return Err("two regions overlap".into());
    }
    Ok(memory)
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
        let received = receive(&connection)
            .and_then(|(uffd, regions)| Ok((uffd, memory_of(&regions, length.get())?)));
        match received {
            Ok((uffd, memory)) => {
                let (source, zeros) = (source.cast(), vec![0; HUGE_PAGE]);
                Guest { uffd, memory, source, zeros, window, removals: false, unregisters }.serve(&connection)?
            }
            Err(error) => eprintln!("no hand-off: {error}"),
        }
    }
    Ok(())
}
