package service

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

func pair(t testing.TB, h Handler) (*Conn, *os.File) {
	t.Helper()
	a, b, err := Pair()
	must(t, err)
	c, err := NewConn(a, h)
	must(t, err)
	t.Cleanup(func() { c.Close(); b.Close() })
	return c, b
}

func raw(kind, files byte, id uint64, method, body string) []byte {
	b := append([]byte{kind, files}, binary.LittleEndian.AppendUint16(nil, uint16(len(method)))...)
	b = binary.LittleEndian.AppendUint64(b, id)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	return append(append(b, method...), body...)
}

// TestHostilePeer: each of these costs the peer its connection, and the calls
// that waited on it get an error.
func TestHostilePeer(t *testing.T) {
	null, err := os.Open(os.DevNull)
	must(t, err)
	defer null.Close()
	huge := raw(kindCall, 0, 1, "x", "")
	binary.LittleEndian.PutUint32(huge[12:], MaxBody+1)
	long := raw(kindCall, 0, 1, "x", "")
	binary.LittleEndian.PutUint16(long[2:], 60000)
	for name, bytes := range map[string][]byte{
		"unknown kind":          raw(9, 0, 1, "x", "{}"),
		"call without method":   raw(kindCall, 0, 1, "", "{}"),
		"answer with method":    raw(kindAnswer, 0, 1, "x", "{}"),
		"answer to nothing":     raw(kindAnswer, 0, 99, "", "{}"),
		"huge":                  huge,
		"long method":           long,
		"descriptors announced": raw(kindCall, 3, 1, "x", "{}"),
		"too many announced":    raw(kindCall, 200, 1, "x", "{}"),
		"cut":                   raw(kindCall, 0, 1, "x", "{}")[:10],
	} {
		t.Run(name, func(t *testing.T) {
			c, peer := pair(t, func(context.Context, *Request) (any, error) { return nil, nil })
			waiting := make(chan error, 1)
			go func() { waiting <- c.Call(short(t), "ask", nil, nil) }()
			io.ReadFull(peer, make([]byte, head)) // it has been sent
			peer.Write(bytes)
			unix.Shutdown(int(peer.Fd()), unix.SHUT_WR)
			if err := <-waiting; !errors.Is(err, ErrGone) {
				t.Errorf("the call that waited got %v", err)
			}
			<-c.Done()
		})
	}
}

// TestUnclaimedDescriptors: a peer can't fill the process's table, and what it
// sent is closed.
func TestUnclaimedDescriptors(t *testing.T) {
	c, peer := pair(t, nil)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	for range maxWaiting + 2 {
		if unix.Sendmsg(int(peer.Fd()), raw(kindCall, 0, 1, "x", "{}"), unix.UnixRights(int(w.Fd())), nil, 0) != nil {
			break
		}
	}
	<-c.Done()
	c.Close()
	w.Close()
	r.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("a descriptor is still open: %d, %v", n, err)
	}
}

// TestFlood: more calls at once than any caller makes end the connection.
func TestFlood(t *testing.T) {
	stuck := make(chan struct{})
	defer close(stuck)
	c, peer := pair(t, func(ctx context.Context, _ *Request) (any, error) {
		select {
		case <-stuck:
		case <-ctx.Done():
		}
		return nil, nil
	})
	for range maxServed + 1 {
		if _, err := peer.Write(raw(kindCall, 0, 1, "x", "{}")); err != nil {
			break
		}
	}
	select {
	case <-c.Done():
	case <-time.After(20 * time.Second):
		t.Error("still connected")
	}
}

// TestHeavyFlood: what a peer makes its receiver hold is bounded in bytes too,
// also where each message is within its bound.
func TestHeavyFlood(t *testing.T) {
	const body = 1 << 20
	var held atomic.Int64
	c, peer := pair(t, func(ctx context.Context, r *Request) (any, error) {
		held.Add(int64(len(r.Body)))
		<-ctx.Done()
		return nil, nil
	})
	msg := raw(kindCall, 0, 1, "x", strings.Repeat(" ", body))
	peer.SetWriteDeadline(time.Now().Add(20 * time.Second))
	for range 4 * maxHeld / body {
		if _, err := peer.Write(msg); err != nil {
			break
		}
	}
	select {
	case <-c.Done():
	case <-time.After(20 * time.Second):
		t.Error("still connected")
	}
	if n := held.Load(); n > maxHeld {
		t.Errorf("%d bytes were held, want at most %d", n, maxHeld)
	}
}

// TestHeavyCallersWait: honest callers of large messages are all answered.
func TestHeavyCallersWait(t *testing.T) {
	_, peer := pair(t, func(_ context.Context, r *Request) (any, error) { return len(r.Body), nil })
	c, err := NewConn(dup(t, peer), nil)
	must(t, err)
	defer c.Close()
	var wg sync.WaitGroup
	for range 4 * maxHeld / MaxBody {
		wg.Go(func() {
			if err := c.Call(short(t), "x", Raw(make([]byte, MaxBody)), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestSlowReader: a peer that has many answers coming and reads them drop by
// drop does not hold up a call beyond its context.
func TestSlowReader(t *testing.T) {
	var begun atomic.Int64
	c, peer := pair(t, func(context.Context, *Request) (any, error) {
		begun.Add(1)
		return strings.Repeat("x", 4<<20), nil
	})
	for range 8 {
		_, err := peer.Write(raw(kindCall, 0, 1, "x", "{}"))
		must(t, err)
	}
	for begun.Load() < 8 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond) // one is being written, the others wait
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	over := make(chan error, 1)
	go func() { over <- c.Call(ctx, "x", nil, nil) }()
	select {
	case err := <-over:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	case <-time.After(patience / 2):
		t.Error("the call waits for a peer that does not read")
	}
}

// TestCallersWait: honest callers, however many, are all answered.
func TestCallersWait(t *testing.T) {
	_, peer := pair(t, func(_ context.Context, r *Request) (any, error) {
		var v any
		return v, r.Decode(&v)
	})
	c, err := NewConn(dup(t, peer), nil)
	must(t, err)
	defer c.Close()
	var wg sync.WaitGroup
	for range 3 * maxServed {
		wg.Go(func() {
			if err := c.Call(short(t), "x", 1, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func dup(t testing.TB, f *os.File) *os.File {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), "dup")
}

// TestCallGivesUp: the end of the caller's context frees it; the late answer
// is no fault.
func TestCallGivesUp(t *testing.T) {
	hold := make(chan struct{})
	_, peer := pair(t, func(_ context.Context, r *Request) (any, error) {
		if r.Method == "slow" {
			<-hold
		}
		return 1, nil
	})
	c, err := NewConn(dup(t, peer), nil)
	must(t, err)
	defer c.Close()
	ctx, cancel := context.WithCancel(context.Background())
	go cancel()
	if err := c.Call(ctx, "slow", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(hold)
	must(t, c.Call(short(t), "fast", nil, nil))
}

func TestDecodeIsStrict(t *testing.T) {
	for body, want := range map[string]string{
		`{"a":1}`: "", `{"b":1}`: "unknown field", `{"a":1}{}`: "data after", `{"a":`: "EOF", ``: "EOF",
	} {
		var v struct{ A int }
		err := (&Request{Method: "m", Body: []byte(body)}).Decode(&v)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", body, err, want)
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(raw(kindCall, 0, 1, "record", `{"a":1}`))
	f.Add(raw(kindError, 2, 7, "", `{}`))
	f.Add([]byte{1, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, err := readFrame(bytes.NewReader(b))
		if err != nil {
			return
		}
		out, err := fr.append(nil)
		if err != nil || !bytes.HasPrefix(b, out) {
			t.Errorf("%x read as %+v, which is written as %x (%v)", b, fr, out, err)
		}
	})
}

// TestFilter runs the filters in an interpreter.
func TestFilter(t *testing.T) {
	const pid = 4711
	type call struct {
		nr   uint32
		args [4]uint32
	}
	const allow, eperm, enosys = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM), unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	plain, net := Cage{}, Cage{Calls: []string{"connect"}}
	ifs := Cage{Calls: []string{"connect", "interfaces"}}
	disk, ebpf := Cage{Calls: []string{"write"}}, Cage{Calls: []string{"bpf"}}
	thread := uint32(unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD)
	for _, c := range []struct {
		name string
		cage Cage
		call call
		want uint32
	}{
		{"read", plain, call{unix.SYS_READ, [4]uint32{}}, allow},
		{"thread", plain, call{unix.SYS_CLONE, [4]uint32{thread}}, allow},
		{"process", plain, call{unix.SYS_CLONE, [4]uint32{uint32(unix.SIGCHLD)}}, eperm},
		{"thread in a namespace", plain, call{unix.SYS_CLONE, [4]uint32{thread | unix.CLONE_NEWUSER}}, eperm},
		{"clone3", plain, call{unix.SYS_CLONE3, [4]uint32{}}, enosys},
		{"own thread", plain, call{unix.SYS_TGKILL, [4]uint32{pid, 1, 9}}, allow},
		{"other's thread", plain, call{unix.SYS_TGKILL, [4]uint32{1, 1, 9}}, eperm},
		{"limits read", plain, call{unix.SYS_PRLIMIT64, [4]uint32{0, 7, 0}}, allow},
		{"limits set", plain, call{unix.SYS_PRLIMIT64, [4]uint32{0, 7, 1}}, eperm},
		{"datagram pair", plain, call{unix.SYS_SOCKETPAIR, [4]uint32{unix.AF_UNIX, unix.SOCK_DGRAM}}, eperm},
		{"stream pair", plain, call{unix.SYS_SOCKETPAIR, [4]uint32{unix.AF_UNIX, unix.SOCK_STREAM | unix.SOCK_CLOEXEC}}, allow},
		{"dumpable again", plain, call{unix.SYS_PRCTL, [4]uint32{unix.PR_SET_DUMPABLE, 1}}, eperm},
		{"connect", plain, call{unix.SYS_CONNECT, [4]uint32{3}}, eperm},
		{"connect out", net, call{unix.SYS_CONNECT, [4]uint32{3}}, allow},
		{"tcp", net, call{unix.SYS_SOCKET, [4]uint32{unix.AF_INET6, unix.SOCK_STREAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK, 0}}, allow},
		{"multipath", net, call{unix.SYS_SOCKET, [4]uint32{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}}, eperm},
		{"raw", net, call{unix.SYS_SOCKET, [4]uint32{unix.AF_INET, unix.SOCK_RAW, 1}}, eperm},
		{"fast open", net, call{unix.SYS_SENDTO, [4]uint32{3, 0, 0, unix.MSG_FASTOPEN | unix.MSG_NOSIGNAL}}, eperm},
		{"send", net, call{unix.SYS_SENDTO, [4]uint32{3, 0, 0, unix.MSG_NOSIGNAL}}, allow},
		{"bind", net, call{unix.SYS_BIND, [4]uint32{3}}, eperm},
		{"routing socket", net, call{unix.SYS_SOCKET, [4]uint32{unix.AF_NETLINK, unix.SOCK_RAW, 0}}, eperm},
		{"routing socket for addresses", ifs, call{unix.SYS_SOCKET, [4]uint32{unix.AF_NETLINK, unix.SOCK_RAW | unix.SOCK_CLOEXEC, 0}}, allow},
		{"another netlink socket", ifs, call{unix.SYS_SOCKET, [4]uint32{unix.AF_NETLINK, unix.SOCK_RAW, 9}}, eperm},
		{"tcp besides", ifs, call{unix.SYS_SOCKET, [4]uint32{unix.AF_INET, unix.SOCK_STREAM, 6}}, allow},
		{"rename", plain, call{unix.SYS_RENAMEAT, [4]uint32{}}, eperm},
		{"rename on disk", disk, call{unix.SYS_RENAMEAT, [4]uint32{}}, allow},
		{"bpf", plain, call{unix.SYS_BPF, [4]uint32{}}, eperm},
		{"bpf by the guard", ebpf, call{unix.SYS_BPF, [4]uint32{}}, allow},
		{"executed by the guard", ebpf, call{unix.SYS_EXECVE, [4]uint32{}}, eperm},
		{"another user", plain, call{unix.SYS_SETUID, [4]uint32{}}, eperm},
		{"ambient capability", plain, call{unix.SYS_PRCTL, [4]uint32{unix.PR_CAP_AMBIENT}}, eperm},
		{"unknown", plain, call{100000, [4]uint32{}}, eperm},
		{"x32", plain, call{0x40000000 | unix.SYS_READ, [4]uint32{}}, eperm},
	} {
		vm, err := bpf.NewVM(c.cage.filter(pid))
		must(t, err)
		b := make([]byte, 64)
		// The interpreter loads big-endian words; the kernel native ones.
		binary.BigEndian.PutUint32(b[offNr:], c.call.nr)
		binary.BigEndian.PutUint32(b[offArch:], auditArch)
		for i, a := range c.call.args {
			binary.BigEndian.PutUint32(b[offArgs+8*i:], a)
		}
		got, err := vm.Run(b)
		if err != nil || uint32(got) != c.want {
			t.Errorf("%s: %#x, %v; want %#x", c.name, got, err, c.want)
		}
	}
}

func BenchmarkCall(b *testing.B) {
	_, peer := pair(b, func(context.Context, *Request) (any, error) { return 1, nil })
	c, err := NewConn(dup(b, peer), nil)
	must(b, err)
	defer c.Close()
	for b.Loop() {
		must(b, c.Call(context.Background(), "x", 1, nil))
	}
}
