// A handler in Rust, without crates, for tests of the simulated userfaultfd:
//
//   handler SOCKET MEMORY [FAULT]
//
// FAULT, and what goes wrong:
//   racy     it handles the faults of a batch before the removals of the same batch. That shows only if a thread removes
//            pages while another one faults on them
//   unwrap   it expects each fill to succeed, and panics at EAGAIN
//   first    it takes the first message of a batch, and drops the others
//   patient  it waits for a message without a time limit, although a fault is deferred

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;

#[repr(C)]
struct IoVec { base: *mut u8, len: usize }
#[repr(C)]
struct MsgHdr { name: *mut u8, namelen: u32, iov: *mut IoVec, iovlen: usize, control: *mut u8, controllen: usize, flags: i32 }
#[repr(C)]
struct PollFd { fd: i32, events: i16, revents: i16 }

extern "C" {
    fn recvmsg(fd: i32, message: *mut MsgHdr, flags: i32) -> isize;
    fn poll(fds: *mut PollFd, count: u64, timeout: i32) -> i32;
    fn ioctl(fd: i32, request: u64, argument: *mut u64) -> i32;
    fn read(fd: i32, buffer: *mut u64, bytes: usize) -> isize;
}

const UFFDIO_COPY: u64 = 0xc028aa03;
const UFFDIO_WAKE: u64 = 0x8010aa02;
const PAGEFAULT: u64 = 0x12;
const REMOVE: u64 = 0x15;
const EAGAIN: i32 = 11;
const EEXIST: i32 = 17;
const ENOENT: i32 = 2;
const ESRCH: i32 = 3;

struct Region { start: u64, size: u64, offset: u64, page: u64 }

/// Receives the regions and the userfaultfd.
fn hand_off(connection: i32) -> (Vec<Region>, i32) {
    let (mut text, mut control) = (vec![0u8; 65536], [0u64; 8]);
    let mut vector = IoVec { base: text.as_mut_ptr(), len: text.len() };
    let mut message = MsgHdr {
        name: std::ptr::null_mut(), namelen: 0, iov: &mut vector, iovlen: 1,
        control: control.as_mut_ptr().cast(), controllen: 64, flags: 0,
    };
    let length = unsafe { recvmsg(connection, &mut message, 0) };
    let text = std::str::from_utf8(&text[..length as usize]).expect("a text");
    let field = |part: &str, name: &str| -> u64 {
        let rest = part.split(&format!("\"{name}\":")).nth(1).expect("a field");
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect("a number")
    };
    let regions = text.split('{').skip(1).map(|part| Region {
        start: field(part, "base_host_virt_addr"), size: field(part, "size"),
        offset: field(part, "offset"), page: field(part, "page_size"),
    });
    (regions.collect(), control[2] as i32)
}

struct Handler { uffd: i32, memory: File, regions: Vec<Region>, removed: HashSet<u64>, unwraps: bool }

impl Handler {
    /// Fills a page. False: later.
    fn fill(&self, address: u64) -> bool {
        let region = self.regions.iter().find(|r| address >= r.start && address < r.start + r.size).expect("a region");
        let page = address - address % region.page;
        let mut bytes = vec![0u8; region.page as usize];
        if !self.removed.contains(&page) {
            self.memory.read_exact_at(&mut bytes, page - region.start + region.offset).expect("the memory file");
        }
        let mut copy = [page, bytes.as_ptr() as u64, region.page, 0, 0];
        if unsafe { ioctl(self.uffd, UFFDIO_COPY, copy.as_mut_ptr()) } == 0 { return true; }
        match std::io::Error::last_os_error().raw_os_error().unwrap() {
            EAGAIN if !self.unwraps => false,
            EEXIST => unsafe { ioctl(self.uffd, UFFDIO_WAKE, [page, region.page].as_mut_ptr()) == 0 },
            ENOENT | ESRCH => true,
            errno => panic!("UFFDIO_COPY: errno {errno}"),
        }
    }

    fn remove(&mut self, start: u64, end: u64) {
        let size = self.regions[0].page;
        self.removed.extend((start..end).step_by(size as usize));
    }
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let fault = words.get(3).map_or("", String::as_str);
    let listener = UnixListener::bind(&words[1]).expect("bind");
    let (connection, _) = listener.accept().expect("accept");
    let (regions, uffd) = hand_off(connection.as_raw_fd());
    let memory = File::open(&words[2]).expect("the memory file");
    let mut handler = Handler { uffd, memory, regions, removed: HashSet::new(), unwraps: fault == "unwrap" };
    let mut waiting: Vec<u64> = Vec::new();
    let mut messages = [[0u64; 4]; 64];
    loop {
        let mut fds = [PollFd { fd: uffd, events: 1, revents: 0 }, PollFd { fd: connection.as_raw_fd(), events: 1, revents: 0 }];
        let limit = if waiting.is_empty() || fault == "patient" { -1 } else { 1 };
        unsafe { poll(fds.as_mut_ptr(), 2, limit) };
        if fds[1].revents != 0 { return; }
        let mut removals = Vec::new();
        loop {
            let bytes = unsafe { read(uffd, messages.as_mut_ptr().cast(), std::mem::size_of_val(&messages)) };
            if bytes <= 0 { break; }
            let read = if fault == "first" { 1 } else { bytes as usize / 32 };
            for message in &messages[..read] {
                match message[0] & 0xff {
                    PAGEFAULT => waiting.push(message[2]),
                    REMOVE => removals.push((message[1], message[2])),
                    _ => {}
                }
            }
        }
        if fault != "racy" { for (start, end) in removals.drain(..) { handler.remove(start, end); } }
        waiting.retain(|&address| !handler.fill(address));
        for (start, end) in removals { handler.remove(start, end); }
    }
}
