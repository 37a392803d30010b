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
	"unsafe"

	"golang.org/x/sys/unix"
)

// Kind is the kind of an Event.
type Kind string

// The kinds of events.
const (
	Exec    Kind = "exec"    // a program was loaded, and killed if Killed
	Refused Kind = "refused" // a system call failed with EACCES, EPERM, EROFS, ENOENT or ESRCH
	Opened  Kind = "opened"  // a file was opened, see Scope.AuditOpens
	Connect Kind = "connect" // a connection or datagram was begun or refused, see Scope.Connects
	Full    Kind = "full"    // a call found a file system without room or inodes (ENOSPC, EDQUOT); a scope tells of 16 in a second
	Trapped Kind = "trapped" // seccomp sent SIGSYS for a system call, which ends the process unless it has a handler and the filter lets it
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

	// Exec: the name as it was given. Refused, Opened and Full: the path argument, read
	// after the call and so a hint, or of a call on a descriptor the kernel's name of that
	// file; empty when it could not be read.
	Path string
	Dir  string // what a relative Path was relative to: from the kernel, as the process sees it; of Exec, and of very deep folders, read later and a hint, empty when in haste

	// Exec and Opened. Of an opened file it is what the descriptor leads to
	// before the caller learns its number; empty where another thread has
	// guessed the number and closed it already.
	File  string // base name of the file that was really loaded or opened: an interpreter, a link's target
	Inode Inode  // its identity

	// Exec only.
	Killed bool // it was not listed; if Errno is set too, killing FAILED and, unless Denied, it runs

	// Exec and Connect.
	Denied bool // the guard refused it with EPERM: nothing ran, nothing was sent

	// Connect only: "tcp", "udp", "unix" (where Errno tells how it ended, and Addr is
	// the caller's own and a hint), or the numbers of another kind of socket.
	Protocol string

	// Opened only.
	Access Access

	// Refused and Opened; of Connect "socket", "connect" or "sendto", for the kind
	// of request. Of Trapped the name or, where the table has none, "call:NR"; Args[0]
	// is then the instruction's address. Empty with Opened at T1 and T2: then Path is the kernel's own,
	// absolute and without links, whatever call or ring opened the file.
	Syscall string    // its name, or "foreign:NR" for another architecture's
	Args    [6]uint64 // numbers of processes are those of the caller's pid namespace

	// Refused only.
	Path2 string // second path argument (rename, link)
	Addr  string // socket address argument: "10.0.0.1:80", "unix:/run/x", "unix:@name"; also of Connect, there from the kernel
	Cut   bool   // Path or Path2 had more than 510 bytes and is a beginning: no ground to judge by

	// Refused, Trapped and Full: events of the scope that its limits left out since the last
	// one of the same sort was reported.
	Skipped        uint64 // refusals; always zero with ENOENT
	SkippedMissing uint64 // names that do not exist; zero without ENOENT

	Errno syscall.Errno

	// Seq grows with the events of a kind, in steps of any size. It is the same
	// where an event is delivered again, see Options.Acknowledge. It begins anew
	// where Load makes new rings, which it does unless it takes pins over.
	Seq uint64

	n     uint64 // its place in the stream, from 1
	place uint64 // its place in its queue
	ring  int
}

// Access is what an open descriptor allows.
type Access string

// What a descriptor allows.
const (
	ReadOnly  Access = "read"
	WriteOnly Access = "write"
	ReadWrite Access = "read-write"
	PathOnly  Access = "path" // O_PATH: to name the file in other calls, not its content
)

// access reads file.f_mode: FMODE_READ, FMODE_WRITE and FMODE_PATH of
// linux/fs.h. Empty is a descriptor for ioctl alone (open flags 3).
func access(mode uint32) Access {
	const path = 1 << 14
	if mode&path != 0 {
		return PathOnly
	}
	return [...]Access{"", ReadOnly, WriteOnly, ReadWrite}[mode&3]
}

// Bits of head.flags in scope.h.
const (
	flagKilled  = 1
	flagForeign = 2
	flagDenied  = 4
)

// toldMax is TOLD_MAX of scope.h: bytes of a refused path that are reported,
// with the final zero.
const toldMax = 512

// Values of head.kind in scope.h.
const (
	kindExec    = 1
	kindRefused = 2
	kindOpened  = 3
	kindConnect = 4
	kindTrapped = 5
	kindFull    = 6
)

func (g *Guard) decode(b []byte, q *queue) (Event, error) {
	// The kernel's bytes are this type: bpf2go made it from witness.c, and
	// there is one byte order. encoding/binary would cost 0.5 µs.
	const size = int(unsafe.Sizeof(witnessHead{}))
	if len(b) < size {
		return Event{}, fmt.Errorf("event has %d bytes, want %d or more", len(b), size)
	}
	var h witnessHead
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&h)), size), b)
	text := b[size:]
	if want := int(h.Len[0]) + int(h.Len[1]) + int(h.Len[2]); len(text) < want {
		return Event{}, fmt.Errorf("event has %d bytes of text, want %d", len(text), want)
	}
	one, two := text[:h.Len[0]], text[h.Len[0]:][:h.Len[1]]
	e := Event{
		Time: q.clock.wall(h.BootNs), Scope: g.name(h.Cgroup),
		PID: int(h.Pid), PPID: int(h.Ppid), UID: int(h.Uid), Comm: text16(&h.Comm), Parent: text16(&h.Parent),
	}
	switch h.Kind {
	case kindExec:
		e.Kind, e.Path = Exec, zstring(one)
		e.Killed, e.Denied, e.Errno = h.Flags&flagKilled != 0, h.Flags&flagDenied != 0, syscall.Errno(-h.Ret)
		e.file(&h, two)
	case kindRefused:
		e.Kind, e.Errno = Refused, syscall.Errno(-h.Ret)
		e.Cut = max(len(one), len(two)) >= toldMax
		e.call(&h, one, two)
		e.skipped(h.Skipped)
	case kindFull:
		e.Kind, e.Errno, e.Skipped = Full, syscall.Errno(-h.Ret), h.Skipped
		e.call(&h, one, two)
	case kindOpened:
		e.Kind, e.Access = Opened, access(h.Mode)
		e.call(&h, one, nil)
		e.file(&h, two)
	case kindConnect:
		e.Kind, e.Denied, e.Errno = Connect, h.Flags&flagDenied != 0, syscall.Errno(-h.Ret)
		e.connection(&h, one)
	case kindTrapped:
		e.Kind = Trapped
		e.trapped(&h)
		e.skipped(h.Skipped)
	default:
		return Event{}, fmt.Errorf("event kind %d", h.Kind)
	}
	if e.Dir = zstring(text[int(h.Len[0])+int(h.Len[1]):][:h.Len[2]]); e.Dir == "" && !q.late {
		e.Dir = dirHint(e.PID, e.Path, dirFD(&h))
	}
	if c := calls[int(h.Nr)]; e.Path == "" && c.dir > 0 && c.path[0] == 0 && e.Kind != Exec {
		e.Path, e.Dir = e.Dir, ""
	}
	return e, nil
}

// skipped fills in what was left out before this refusal.
func (e *Event) skipped(n uint64) {
	if e.Errno == unix.ENOENT {
		e.SkippedMissing = n
		return
	}
	e.Skipped = n
}

// file fills in what was really loaded or opened.
func (e *Event) file(h *witnessHead, name []byte) {
	e.File, e.Inode = zstring(name), Inode{Dev: userDev(h.Dev), Ino: h.Ino}
}

// call fills in what depends on the system call.
func (e *Event) call(h *witnessHead, one, two []byte) {
	e.Args = [6]uint64(h.Args[:6])
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
}

// requests are the values of head.nr of a connection, in net.h.
var requests = map[uint16]string{1: "socket", 2: "connect", 3: "sendto"}

// protocols are named by socket type and protocol, linux/in.h.
var protocols = map[[2]uint64]string{
	{unix.SOCK_STREAM, unix.IPPROTO_TCP}: "tcp",
	{unix.SOCK_DGRAM, unix.IPPROTO_UDP}:  "udp",
}

// connection fills in what net.h says of one.
func (e *Event) connection(h *witnessHead, name []byte) {
	e.Syscall = requests[h.Nr]
	if len(name) > 0 {
		e.Protocol, e.Addr = "unix", sockaddr(name)
		return
	}
	kind := [2]uint64{h.Args[3], h.Args[4]}
	if e.Protocol = protocols[kind]; e.Protocol == "" {
		e.Protocol = fmt.Sprintf("type:%d protocol:%d", kind[0], kind[1])
	}
	if e.Syscall != "socket" {
		var ip [16]byte
		binary.NativeEndian.PutUint64(ip[:], h.Args[0])
		binary.NativeEndian.PutUint64(ip[8:], h.Args[1])
		e.Addr = netip.AddrPortFrom(netip.AddrFrom16(ip).Unmap(), uint16(h.Args[2])).String()
	}
}

// trapped fills in what seccomp told. Numbers of another architecture, x32 among
// them, are not in the table.
func (e *Event) trapped(h *witnessHead) {
	nr := uint32(h.Args[0])
	e.Args = [6]uint64{h.Args[2]}
	switch c, ok := calls[int(nr)]; {
	case h.Args[1] != auditArch || nr&x32Bit != 0:
		e.Syscall = "foreign:" + strconv.FormatUint(uint64(nr), 10)
	case ok:
		e.Syscall = c.name
	default:
		e.Syscall = "call:" + strconv.FormatUint(uint64(nr), 10)
	}
}

// dirFD is what the path argument is relative to.
func dirFD(h *witnessHead) int32 {
	c := calls[int(h.Nr)]
	if h.Kind == kindExec || c.dir == 0 {
		return unix.AT_FDCWD
	}
	return int32(h.Args[c.dir-1])
}

// name of a scope by its cgroup; the number where it is long gone.
func (g *Guard) name(id uint64) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.nameOf(id)
}

// nameOf is name with g.mu held.
func (g *Guard) nameOf(id uint64) string {
	if s, ok := g.names[id]; ok {
		return s
	}
	return "cgroup:" + strconv.FormatUint(id, 10)
}

// clock converts the kernel's time since boot. It is for one goroutine.
type clock struct {
	boot  time.Time // the wall clock's time of boot
	taken time.Time
}

// wall takes the clocks' distance anew after a while, as the wall clock may be set.
func (c *clock) wall(ns uint64) time.Time {
	if now := time.Now(); now.Sub(c.taken) > 10*time.Millisecond {
		var ts unix.Timespec
		if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
			return now
		}
		c.boot, c.taken = now.Round(0).Add(-time.Duration(ts.Nano())), now
	}
	return c.boot.Add(time.Duration(ns))
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

func text16(c *[16]int8) string { return textOf(c[:]) }

func textOf(c []int8) string {
	return zstring(unsafe.Slice((*byte)(unsafe.Pointer(&c[0])), len(c)))
}
