package confine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// A launcher may have been waiting for its Root since before the folders of a
// Bind were mounted on the host, and its mount namespace is a copy of that
// time. So the daemon sends each one as a mount of its own, which the launcher
// only has to put in its place: see Tree.

// maxTrees is how many descriptors the kernel takes in one message (unix(7),
// SCM_RIGHTS).
const maxTrees = 253

// Tree makes a mount of a host directory, attached nowhere, without what is
// mounted below it. The last part of dir is not followed if it is a link.
//
// The sandbox can read where dir lies on its file system: the kernel prints it
// as "root" in /proc/self/mountinfo (proc_pid_mountinfo(5), field 4), with the
// device, and has no way to hide it. The path gives no access.
func Tree(dir string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// SendRoot writes a Root with a Tree for each of its Binds.
func SendRoot(c interface {
	io.Writer
	syscall.Conn
}, r *Root,
) error {
	if len(r.Binds) > maxTrees {
		return fmt.Errorf("%d writable folders; the kernel passes on %d: name a folder above several of them", len(r.Binds), maxTrees)
	}
	b, err := encode(r)
	if err != nil {
		return err
	}
	var fds []int
	for i := range r.Binds {
		t, err := Tree(r.Binds[i].Source)
		if err != nil {
			return err
		}
		defer t.Close()
		fds = append(fds, int(t.Fd()))
	}
	if err := sendHead(c, b[:head], fds); err != nil {
		return err
	}
	_, err = c.Write(b[head:])
	return err
}

// sendHead writes a message's first bytes, with descriptors.
func sendHead(c syscall.Conn, b []byte, fds []int) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	var serr error
	err = rc.Write(func(fd uintptr) bool {
		serr = unix.Sendmsg(int(fd), b, oob, nil, unix.MSG_NOSIGNAL)
		return !errors.Is(serr, unix.EAGAIN)
	})
	return errors.Join(err, serr)
}

// receiveRoot reads a Root, and its trees.
func receiveRoot(ctl *os.File) (r Root, trees []int, err error) {
	var b [head]byte
	oob := make([]byte, unix.CmsgSpace(4*maxTrees))
	for got := 0; got < head; {
		n, on, flags, _, err := unix.Recvmsg(int(ctl.Fd()), b[got:], oob, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && n == 0:
			err = io.ErrUnexpectedEOF
		case err == nil && flags&unix.MSG_CTRUNC != 0:
			err = errors.New("the kernel could not pass all descriptors on")
		}
		if err != nil {
			return r, nil, fmt.Errorf("no message: %w", err)
		}
		got += n
		fds, err := rights(oob[:on])
		if err != nil {
			return r, nil, err
		}
		trees = append(trees, fds...)
	}
	if err = receiveBody(ctl, binary.LittleEndian.Uint64(b[:]), &r); err != nil {
		return r, nil, err
	}
	if len(trees) != len(r.Binds) {
		return r, nil, fmt.Errorf("%d folders came with the root, want %d", len(trees), len(r.Binds))
	}
	return r, trees, nil
}

func rights(oob []byte) (fds []int, err error) {
	ms, err := unix.ParseSocketControlMessage(oob)
	for i := range ms {
		more, perr := unix.ParseUnixRights(&ms[i])
		fds, err = append(fds, more...), errors.Join(err, perr)
	}
	return fds, err
}

// letGo takes args for a folder and a name, and unmounts what has that name in
// each folder of the first: there other agents' disks are mounted, and a
// launcher that waits would keep them from being taken off.
func letGo(args []string) error {
	if len(args) != 2 {
		return nil
	}
	es, err := os.ReadDir(args[0])
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	for _, e := range es {
		d := filepath.Join(args[0], e.Name(), args[1])
		uerr := unix.Unmount(d, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if uerr != nil && uerr != unix.EINVAL && uerr != unix.ENOENT && uerr != unix.ENOTDIR { // no mount
			err = errors.Join(err, fmt.Errorf("let go of %s: %w", d, uerr))
		}
	}
	return err
}
