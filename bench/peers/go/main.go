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
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	messages  = 64
	smallPage = 4096
	hugePage  = 2 << 20
	// How long a text waits for its descriptor.
	lateDescriptor = 500 * time.Millisecond

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
	// The older name of the page size; it holds bytes, too.
	OldPageSize uintptr `json:"page_size_kib"`
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

// The memory of a region, by page.
type memory struct {
	region
	states []state
}

type guest struct {
	uffd     int
	source   []byte
	window   int
	memory   []memory
	removals bool
	waiting  []uint64
}

// Zeros for huge pages, which have no zero page.
var zeros = make([]byte, hugePage)

func (m *memory) address(page int) uint64 { return uint64(m.Base) + uint64(page)*uint64(m.PageSize) }

func (g *guest) memoryAt(address uint64) *memory {
	for i := range g.memory {
		if uintptr(address)-g.memory[i].Base < g.memory[i].Size {
			return &g.memory[i]
		}
	}
	return nil
}

func (g *guest) ioctl(request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(g.uffd), request, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}

func (g *guest) wake(m *memory, page int) {
	bounds := [2]uint64{m.address(page), uint64(m.PageSize)}
	_ = g.ioctl(ioctlWake, unsafe.Pointer(&bounds))
}

func (m *memory) mark(first, end int, as state) {
	for page := first; page < end; page++ {
		m.states[page] = as
	}
}

// Returns the pages around this one that have the same state, inside its window.
func (m *memory) run(page, window int) (first, end int) {
	low := page / window * window
	high := min(low+window, len(m.states))
	first, end = page, page+1
	for first > low && m.states[first-1] == m.states[page] {
		first--
	}
	for end < high && m.states[end] == m.states[page] {
		end++
	}
	return first, end
}

// Returns how many bytes were filled, or the error if none were.
func (g *guest) transfer(m *memory, first, count int, zero bool) (int64, error) {
	var done int64
	var err error
	length := uint64(count) * uint64(m.PageSize)
	if zero && m.PageSize == smallPage {
		arguments := zeroArguments{target: m.address(first), length: length}
		err = g.ioctl(ioctlZeropage, unsafe.Pointer(&arguments))
		done = arguments.done
	} else {
		source := &zeros[0]
		if zero {
			length = uint64(m.PageSize)
		} else {
			source = &g.source[m.Offset+uintptr(first)*m.PageSize]
		}
		arguments := copyArguments{target: m.address(first), source: uint64(uintptr(unsafe.Pointer(source))), length: length}
		err = g.ioctl(ioctlCopy, unsafe.Pointer(&arguments))
		done = arguments.done
	}
	// The kernel's result is signed. It is a negative errno if nothing was filled.
	if errors.Is(err, unix.EAGAIN) && done > 0 {
		err = nil
	}
	return done, err
}

// Returns false if the fault has to be handled again: the handler must first read the event of a mapping change.
func (g *guest) fill(address uint64) bool {
	m := g.memoryAt(address)
	if m == nil {
		return true
	}
	page := int((uintptr(address) - m.Base) / m.PageSize)
	window := g.window
	for {
		state := m.states[page]
		if state == present && !g.removals {
			g.wake(m, page)
			return true
		}
		first, end := page, page+1
		if state != present {
			first, end = m.run(page, window)
		}
		done, err := g.transfer(m, first, end-first, state != missing)
		switch {
		case err == nil:
			filled := first + int(done)/int(m.PageSize)
			m.mark(first, filled, present)
			if filled > page {
				return true
			}
		case errors.Is(err, unix.EEXIST):
			// Of huge pages, EEXIST may mean that the pool is empty.
			if m.PageSize == smallPage {
				m.states[first] = present
			} else {
				window = 1
			}
			if first == page {
				g.wake(m, page)
				return true
			}
		case errors.Is(err, unix.EAGAIN):
			return false
		case errors.Is(err, unix.ENOENT) && window > 1:
			window = 1
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
			return true
		default:
			log.Fatalf("a fault was not answered: %v", err)
		}
	}
}

// Marks the pages of a range that was removed.
func (g *guest) remove(start, end uintptr) {
	g.removals = true
	for i := range g.memory {
		m := &g.memory[i]
		from, to := max(start, m.Base), min(end, m.Base+m.Size)
		if from < to {
			m.mark(int((from-m.Base)/m.PageSize), int((to-m.Base)/m.PageSize), removed)
		}
	}
}

func (g *guest) take(message *message) {
	switch message.event {
	case eventPagefault:
		g.waiting = append(g.waiting, message.second)
	case eventRemove:
		g.remove(uintptr(message.first), uintptr(message.second))
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
		for _, address := range g.waiting {
			if !g.fill(address) {
				left = append(left, address)
			}
		}
		g.waiting = left
	}
}

// Receives what the monitor hands over: the regions of its memory, and the userfaultfd. The text may come in pieces, and
// the descriptor after the text.
func receive(connection *net.UnixConn, source []byte, window int) (*guest, error) {
	var text []byte
	var regions []region
	g := &guest{uffd: -1, source: source, window: window}
	for regions == nil || g.uffd < 0 {
		if err := g.receivePart(connection, &text); err != nil {
			return nil, g.refused(err)
		}
		var incomplete *json.SyntaxError
		if err := json.Unmarshal(text, &regions); errors.As(err, &incomplete) && incomplete.Offset >= int64(len(text)) {
			regions = nil
		} else if err != nil {
			return nil, g.refused(err)
		} else if err := connection.SetReadDeadline(time.Now().Add(lateDescriptor)); err != nil {
			return nil, g.refused(err)
		}
	}
	if len(regions) == 0 {
		return nil, g.refused(errors.New("there is no region"))
	}
	for _, one := range regions {
		if one.PageSize == 0 {
			one.PageSize = max(one.OldPageSize, smallPage)
		}
		mask := one.PageSize - 1
		if one.PageSize != smallPage && one.PageSize != hugePage || (one.Base|one.Size|one.Offset)&mask != 0 ||
			one.Size == 0 || one.Base+one.Size < one.Base || one.Size > uintptr(len(source)) || one.Offset > uintptr(len(source))-one.Size {
			return nil, g.refused(fmt.Errorf("a region does not fit the memory file: %+v", one))
		}
		for i := range g.memory {
			if other := g.memory[i].region; one.Base < other.Base+other.Size && other.Base < one.Base+one.Size {
				return nil, g.refused(errors.New("two regions overlap"))
			}
		}
		g.memory = append(g.memory, memory{one, make([]state, one.Size/one.PageSize)})
	}
	return g, nil
}

// Closes the descriptor that has come.
func (g *guest) refused(err error) error {
	if g.uffd >= 0 {
		unix.Close(g.uffd)
	}
	return fmt.Errorf("no hand-off: %w", err)
}

// Receives bytes of the text, and descriptors. The first one is the userfaultfd.
func (g *guest) receivePart(connection *net.UnixConn, text *[]byte) error {
	buffer, control := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(16*4))
	length, controlLength, _, _, err := connection.ReadMsgUnix(buffer, control)
	if err != nil {
		return err
	}
	if length == 0 {
		return errors.New("the connection was closed")
	}
	*text = append(*text, buffer[:length]...)
	parts, err := unix.ParseSocketControlMessage(control[:controlLength])
	if err != nil {
		return err
	}
	for i := range parts {
		fds, err := unix.ParseUnixRights(&parts[i])
		if err != nil {
			return err
		}
		for _, fd := range fds {
			if g.uffd < 0 {
				g.uffd = fd
			} else {
				unix.Close(fd)
			}
		}
	}
	return nil
}

func serveOne(listener *net.UnixListener, source []byte, window int) error {
	connection, err := listener.AcceptUnix()
	if err != nil {
		return err
	}
	defer connection.Close()
	guest, err := receive(connection, source, window)
	if err != nil {
		log.Print(err)
		return nil
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
