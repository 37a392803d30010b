package guard

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// Kind is the kind of an Event.
type Kind string

// The kinds of events.
const (
	Exec    Kind = "exec"    // a program was loaded, and killed if Killed
	Refused Kind = "refused" // a system call failed with EACCES, EPERM, EROFS or ENOENT
)

// Event is one thing that happened in a scope.
type Event struct {
	Time  time.Time
	Kind  Kind
	Scope string // Scope.ID

	// The process, as the host numbers it.
	PID    int
	PPID   int
	UID    int
	Comm   string // the kernel's 15-byte name; the process can choose it
	Parent string // the same of its parent

	// Exec: the name as it was given. Refused: the path argument, read after
	// the call and so a hint; empty when it could not be read.
	Path string
	Dir  string // what a relative Path was relative to, read later still: a hint, may be empty

	// Exec only.
	File   string // base name of the file that was really loaded: an interpreter, a link's target
	Inode  Inode  // its identity
	Killed bool   // it was not listed; if Errno is set too, killing FAILED and it runs

	// Refused only.
	Syscall string // its name, or "foreign:NR" for another architecture's
	Args    [6]uint64
	Path2   string // second path argument (rename, link)
	Addr    string // socket address argument: "10.0.0.1:80", "unix:/run/x", "unix:@name"
	Skipped uint64 // refusals of this scope left out since its last event

	Errno syscall.Errno
}

// Bits of head.flags in witness.c.
const (
	flagKilled  = 1
	flagForeign = 2
)

// Values of head.kind in witness.c.
const (
	kindExec    = 1
	kindRefused = 2
)

// pause is how long a reader that has caught up lets events gather. The kernel
// wakes it for the first event after an idle time and, while it pauses, for
// none: a wake-up per event made an exec 20 µs dearer.
const pause = 5 * time.Millisecond

// follow copies one ring to the stream until the ring is closed. It blocks
// while the stream is full; the kernel then kills what it can't report.
func (g *Guard) follow(r *ringbuf.Reader) {
	var rec ringbuf.Record
	for {
		if err := r.ReadInto(&rec); err != nil {
			return // only os.ErrClosed: no deadline is set
		}
		e, err := g.decode(rec.RawSample)
		if err != nil {
			panic("guard: object and package do not match, run go generate: " + err.Error())
		}
		select {
		case g.events <- e:
		case <-g.done:
			return
		}
		if rec.Remaining > 0 {
			continue
		}
		select {
		case <-time.After(pause):
		case <-g.done:
			return
		}
	}
}

func (g *Guard) decode(b []byte) (Event, error) {
	var h witnessHead
	n, err := binary.Decode(b, binary.LittleEndian, &h)
	if err != nil {
		return Event{}, err
	}
	text := b[n:]
	if want := int(h.Len[0]) + int(h.Len[1]); len(text) < want {
		return Event{}, fmt.Errorf("event has %d bytes of text, want %d", len(text), want)
	}
	one, two := text[:h.Len[0]], text[h.Len[0]:][:h.Len[1]]
	e := Event{
		Time: wall(h.BootNs), Scope: g.name(h.Cgroup),
		PID: int(h.Pid), PPID: int(h.Ppid), UID: int(h.Uid), Comm: text16(h.Comm), Parent: text16(h.Parent),
		Errno: syscall.Errno(-h.Ret), Skipped: h.Skipped,
	}
	switch h.Kind {
	case kindExec:
		e.Kind, e.Path, e.File = Exec, zstring(one), zstring(two)
		e.Inode = Inode{Dev: userDev(h.Dev), Ino: h.Ino}
		e.Killed = h.Flags&flagKilled != 0
		e.Dir = dirHint(e.PID, e.Path, unix.AT_FDCWD)
	case kindRefused:
		e.Kind, e.Args = Refused, [6]uint64(h.Args[:6])
		e.refusal(h, one, two)
	default:
		return Event{}, fmt.Errorf("event kind %d", h.Kind)
	}
	return e, nil
}

// refusal fills in what depends on the system call.
func (e *Event) refusal(h witnessHead, one, two []byte) {
	c := calls[int(h.Nr)]
	if h.Flags&flagForeign != 0 {
		e.Syscall = "foreign:" + strconv.Itoa(int(h.Nr))
		return
	}
	e.Syscall = c.name
	if c.addr > 0 {
		e.Addr = sockaddr(one)
		return
	}
	e.Path, e.Path2 = zstring(one), zstring(two)
	dir := int32(unix.AT_FDCWD)
	if c.dir > 0 {
		dir = int32(h.Args[c.dir-1])
	}
	e.Dir = dirHint(e.PID, e.Path, dir)
}

// name of a scope by its cgroup; the number where it is long gone.
func (g *Guard) name(id uint64) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s, ok := g.names[id]; ok {
		return s
	}
	return "cgroup:" + strconv.FormatUint(id, 10)
}

// wall converts the kernel's time since boot. The clocks' distance is taken
// anew each time, as the wall clock may be set.
func wall(boot uint64) time.Time {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return time.Now()
	}
	return time.Now().Add(time.Duration(int64(boot) - ts.Nano()))
}

// dirHint asks the process's descriptors, if it still lives.
func dirHint(pid int, path string, fd int32) string {
	if path == "" || strings.HasPrefix(path, "/") {
		return ""
	}
	link := fmt.Sprintf("/proc/%d/cwd", pid)
	if fd != unix.AT_FDCWD {
		link = fmt.Sprintf("/proc/%d/fd/%d", pid, fd)
	}
	s, err := os.Readlink(link)
	if err != nil {
		return ""
	}
	return s
}

// sockaddr renders struct sockaddr as the agent passed it, from bytes that it
// controls.
func sockaddr(b []byte) string {
	if len(b) < 2 {
		return ""
	}
	switch fam := binary.NativeEndian.Uint16(b); {
	case fam == unix.AF_INET && len(b) >= 8:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:])).String()
	case fam == unix.AF_INET6 && len(b) >= 24:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), binary.BigEndian.Uint16(b[2:])).String()
	case fam == unix.AF_UNIX && len(b) > 2 && b[2] == 0:
		return "unix:@" + string(b[3:])
	case fam == unix.AF_UNIX:
		return "unix:" + zstring(b[2:])
	default:
		return "family:" + strconv.Itoa(int(fam))
	}
}

// zstring cuts at the first zero byte.
func zstring(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

func text16(c [16]int8) string {
	var b [16]byte
	for i, v := range c {
		b[i] = byte(v)
	}
	return zstring(b[:])
}
