package service

import (
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// inbox reads a Unix socket and keeps the descriptors that come with the
// bytes, in their order.
type inbox struct {
	c     *net.UnixConn
	files []*os.File
}

// maxWaiting bounds descriptors that no frame has claimed.
const maxWaiting = 4 * MaxFiles

func (in *inbox) Read(b []byte) (int, error) {
	var oob [256]byte // room for MaxFiles descriptors and the message's head
	n, on, flags, _, err := in.c.ReadMsgUnix(b, oob[:])
	n = max(n, 0)
	if on > 0 {
		if err := in.keep(oob[:on]); err != nil {
			return n, err
		}
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return n, fmt.Errorf("%w: more than %d descriptors at once", errFrame, MaxFiles)
	}
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// keep takes descriptors out of control messages.
func (in *inbox) keep(oob []byte) error {
	ms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for i := range ms {
		fds, err := unix.ParseUnixRights(&ms[i])
		if err != nil {
			return err
		}
		for _, fd := range fds {
			in.files = append(in.files, os.NewFile(uintptr(fd), "received"))
		}
	}
	if len(in.files) > maxWaiting {
		return fmt.Errorf("%w: %d descriptors that no frame names", errFrame, len(in.files))
	}
	return nil
}

// take gives a frame its descriptors.
func (in *inbox) take(n int) ([]*os.File, error) {
	if n > len(in.files) {
		return nil, fmt.Errorf("%w: %d descriptors announced, %d came", errFrame, n, len(in.files))
	}
	out := in.files[:n:n]
	in.files = append([]*os.File(nil), in.files[n:]...)
	return out, nil
}

func closeAll(fs []*os.File) {
	for _, f := range fs {
		if f != nil {
			f.Close()
		}
	}
}
