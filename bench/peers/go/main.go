// The handler in Go, on golang.org/x/sys. Its hand-off and its policy are those of ../c/handler.c, which describes the
// policy. It serves one guest after the other, until it is killed.
//
//	handler --socket PATH --memory FILE [--window N]
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	messages = 64

	// <linux/userfaultfd.h>
	eventPagefault = 0x12
	eventRemove    = 0x15
	ioctlWake      = 0x8010aa02
	ioctlCopy      = 0xc028aa03
	ioctlZeropage  = 0xc020aa04
)

type state byte

const (
	missing state = iota
	present
	removed
)

type region struct {
	Base     uintptr `json:"base_host_virt_addr"`
	Size     uintptr `json:"size"`
	Offset   uintptr `json:"offset"`
	PageSize uintptr `json:"page_size"`
}

// A message of the kernel: a page fault has its address in second; a removal has its range in first and second.
type message struct {
	event  uint8
	_      [7]uint8
	first  uint64
	second uint64
	_      uint64
}

type copyArguments struct {
	target, source, length, mode uint64
	done                         int64
}

type zeroArguments struct {
	target, length, mode uint64
	done                 int64
}

type guest struct {
	region
	uffd     int
	source   []byte
	window   int
	states   []state
	removals bool
	waiting  []int
}

func (g *guest) address(page int) uint64 { return uint64(g.Base) + uint64(page)*uint64(g.PageSize) }

func (g *guest) pageOf(address uint64) int { return int((uintptr(address) - g.Base) / g.PageSize) }

func (g *guest) ioctl(request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(g.uffd), request, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}

func (g *guest) wake(page int) {
	bounds := [2]uint64{g.address(page), uint64(g.PageSize)}
	_ = g.ioctl(ioctlWake, unsafe.Pointer(&bounds))
}

func (g *guest) mark(first, end int, as state) {
	for page := first; page < end; page++ {
		g.states[page] = as
	}
}

// Returns the pages around this one that have the same state, inside its window.
func (g *guest) run(page int) (first, end int) {
	low := page / g.window * g.window
	high := min(low+g.window, len(g.states))
	first, end = page, page+1
	for first > low && g.states[first-1] == g.states[page] {
		first--
	}
	for end < high && g.states[end] == g.states[page] {
		end++
	}
	return first, end
}

// Returns how many bytes were filled, or the error if none were.
func (g *guest) transfer(first int, length uint64, zero bool) (int64, error) {
	var done int64
	var err error
	if zero {
		arguments := zeroArguments{target: g.address(first), length: length}
		err = g.ioctl(ioctlZeropage, unsafe.Pointer(&arguments))
		done = arguments.done
	} else {
		source := &g.source[g.Offset+uintptr(first)*g.PageSize]
		arguments := copyArguments{target: g.address(first), source: uint64(uintptr(unsafe.Pointer(source))), length: length}
		err = g.ioctl(ioctlCopy, unsafe.Pointer(&arguments))
		done = arguments.done
	}
	// The kernel's result is signed. It is a negative errno if nothing was filled.
	if errors.Is(err, unix.EAGAIN) && done > 0 {
		err = nil
	}
	return done, err
}

// Returns false if the handler must first read the event of a mapping change.
func (g *guest) fill(page int) bool {
	for {
		state := g.states[page]
		if state == present && !g.removals {
			g.wake(page)
			return true
		}
		first, end := page, page+1
		if state != present {
			first, end = g.run(page)
		}
		done, err := g.transfer(first, uint64(end-first)*uint64(g.PageSize), state != missing)
		switch {
		case err == nil:
			filled := first + int(done)/int(g.PageSize)
			g.mark(first, filled, present)
			if filled > page {
				return true
			}
		case errors.Is(err, unix.EEXIST):
			g.states[first] = present
			if first == page {
				g.wake(page)
				return true
			}
		case errors.Is(err, unix.EAGAIN):
			return false
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
			return true
		default:
			log.Fatalf("a fault was not answered: %v", err)
		}
	}
}

func (g *guest) take(message *message) {
	switch message.event {
	case eventPagefault:
		g.waiting = append(g.waiting, g.pageOf(message.second))
	case eventRemove:
		g.mark(g.pageOf(message.first), g.pageOf(message.second), removed)
		g.removals = true
	}
}

func (g *guest) read(buffer *[messages]message) error {
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(buffer)), unsafe.Sizeof(*buffer))
	for {
		length, err := unix.Read(g.uffd, bytes)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		} else if err != nil {
			return err
		}
		count := length / int(unsafe.Sizeof(buffer[0]))
		for i := range count {
			g.take(&buffer[i])
		}
		if count < messages {
			return nil
		}
	}
}

func (g *guest) serve(connection int) error {
	var buffer [messages]message
	fds := []unix.PollFd{{Fd: int32(g.uffd), Events: unix.POLLIN}, {Fd: int32(connection), Events: unix.POLLIN}}
	for {
		limit := -1
		if len(g.waiting) > 0 {
			limit = 1
		}
		if _, err := unix.Poll(fds, limit); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if fds[1].Revents != 0 {
			return nil
		}
		if err := g.read(&buffer); err != nil {
			return err
		}
		left := g.waiting[:0]
		for _, page := range g.waiting {
			if !g.fill(page) {
				left = append(left, page)
			}
		}
		g.waiting = left
	}
}

// Receives what the monitor hands over: the only region of its memory, and the userfaultfd.
func receive(connection *net.UnixConn, source []byte, window int) (*guest, error) {
	text, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	length, controlLength, _, _, err := connection.ReadMsgUnix(text, control)
	if err != nil {
		return nil, err
	}
	parts, err := unix.ParseSocketControlMessage(control[:controlLength])
	if err != nil || len(parts) == 0 {
		return nil, fmt.Errorf("no descriptor came: %v", err)
	}
	fds, err := unix.ParseUnixRights(&parts[0])
	if err != nil {
		return nil, err
	}
	var regions []region
	if err := json.Unmarshal(text[:length], &regions); err != nil || len(regions) != 1 {
		return nil, fmt.Errorf("not one region: %v", err)
	}
	states := make([]state, regions[0].Size/regions[0].PageSize)
	return &guest{region: regions[0], uffd: fds[0], source: source, window: window, states: states}, nil
}

func serveOne(listener *net.UnixListener, source []byte, window int) error {
	connection, err := listener.AcceptUnix()
	if err != nil {
		return err
	}
	defer connection.Close()
	guest, err := receive(connection, source, window)
	if err != nil {
		return err
	}
	defer unix.Close(guest.uffd)
	raw, err := connection.File()
	if err != nil {
		return err
	}
	defer raw.Close()
	return guest.serve(int(raw.Fd()))
}

func main() {
	socket := flag.String("socket", "", "the unix socket to listen at")
	memory := flag.String("memory", "", "the memory file")
	window := flag.Int("window", 1, "pages to fill for each fault")
	flag.Parse()
	runtime.LockOSThread()
	file, err := os.Open(*memory)
	if err != nil {
		log.Fatal(err)
	}
	about, err := file.Stat()
	if err != nil {
		log.Fatal(err)
	}
	source, err := unix.Mmap(int(file.Fd()), 0, int(about.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: *socket, Net: "unix"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("ready")
	for {
		if err := serveOne(listener, source, *window); err != nil {
			log.Fatal(err)
		}
	}
}
