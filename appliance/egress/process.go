package egress

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/ledger"
)

// maxLooks bounds the processes and descriptors that one hint looks at: an
// agent decides how many there are.
const maxLooks = 2000

// diagnose opens the kernel's socket table of the namespace. Without it there
// are no hints.
func (b *box) diagnose(netns *os.File) {
	_ = within(netns, func() (err error) {
		b.diag, err = netlink.NewHandle(unix.NETLINK_INET_DIAG)
		return err
	})
}

// hint fills in which process holds the client's end. It is asked only for
// what is held or denied, once a connection, and it may find nothing: the
// process can be gone already, have more company than maxLooks, or another
// hint is being looked for.
func (c *conn) hint() {
	if c.proc.PID != 0 {
		return
	}
	b := c.box
	if !b.hints.TryLock() {
		return
	}
	defer b.hints.Unlock()
	if b.diag == nil {
		return
	}
	s, err := b.diag.SocketGet(c.in.RemoteAddr(), c.in.LocalAddr())
	if err != nil || s.INode == 0 {
		return
	}
	c.proc.UID = int(s.UID)
	if pid := holder(s.INode, s.UID, maxLooks); pid != 0 {
		c.proc = process(pid, int(s.UID))
	}
}

// holder finds a process of uid that has the socket open, or 0 when that took
// more than looks.
func holder(inode, uid uint32, looks int) int {
	want := fmt.Sprintf("socket:[%d]", inode)
	ps, _ := os.ReadDir("/proc")
	for _, e := range ps {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		fi, err := os.Stat(filepath.Join("/proc", e.Name()))
		if st, ok := sys(fi, err); !ok || st.Uid != uid {
			continue
		}
		if looks--; looks <= 0 { // Readdirnames takes 0 for all
			return 0
		}
		found, n := opens(filepath.Join("/proc", e.Name(), "fd"), want, looks)
		if found {
			return pid
		}
		looks -= n
	}
	return 0
}

// opens looks for a descriptor that is want in the first max of dir, and says
// at how many it looked.
func opens(dir, want string, max int) (bool, int) {
	d, err := os.Open(dir)
	if err != nil {
		return false, 0
	}
	defer d.Close()
	fds, _ := d.Readdirnames(max)
	for i, f := range fds {
		if l, err := os.Readlink(filepath.Join(dir, f)); err == nil && l == want {
			return true, i + 1
		}
	}
	return false, len(fds)
}

func sys(fi os.FileInfo, err error) (*syscall.Stat_t, bool) {
	if err != nil {
		return nil, false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	return st, ok
}

// process reads what /proc says of pid; fields that can't be read stay zero.
func process(pid, uid int) ledger.Process {
	p := ledger.Process{PID: pid, UID: uid}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for l := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(l), ":\t")
		switch k {
		case "Name":
			p.Comm = v
		case "PPid":
			p.PPID, _ = strconv.Atoi(v)
		}
	}
	return p
}
