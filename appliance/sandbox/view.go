package sandbox

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// view looks at files as a process of the sandbox sees them. Every path is
// resolved inside the sandbox's root: a link in the image cannot lead to the
// host's files.
type view struct {
	root *os.File
	// loose says that an answer has depended on something else than the
	// image, such as a writable folder: it may be another one next time.
	loose bool
	own   []string // mount points of the writable folders
}

// lookInto opens the root of process pid, which must be held unreaped.
func lookInto(pid int) (*view, error) {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &view{root: f}, nil
}

func (v *view) close() error { return v.root.Close() }

func (v *view) open(p string, flags uint64) (*os.File, error) {
	fd, err := v.openFD(p, flags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), p), nil
}

func (v *view) openFD(p string, flags, how uint64) (int, error) {
	fd, err := unix.Openat2(int(v.root.Fd()), p, &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | how,
	})
	if err != nil {
		return -1, &fs.PathError{Op: "open in sandbox", Path: p, Err: err}
	}
	return fd, nil
}

// entry is a file of the sandbox, links resolved.
type entry struct {
	path string // without links
	mode fs.FileMode
}

func (e entry) program() bool { return e.mode.IsRegular() && e.mode&0o111 != 0 }

// launcherMounts are what the launcher fills anew for every sandbox.
var launcherMounts = []string{"/proc", "/dev", "/tmp"}

// resolve follows links in p and says what is there.
func (v *view) resolve(p string) (entry, error) {
	fd, err := v.openFD(p, unix.O_PATH, unix.RESOLVE_NO_XDEV)
	crossed := errors.Is(err, unix.EXDEV)
	if crossed {
		fd, err = v.openFD(p, unix.O_PATH, 0)
	}
	if err != nil {
		v.loose = v.loose || crossed
		return entry{}, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return entry{}, err
	}
	real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return entry{}, err
	}
	if !path.IsAbs(real) || strings.HasSuffix(real, " (deleted)") {
		return entry{}, fmt.Errorf("%s in the sandbox resolves to %q; want an absolute path", p, real)
	}
	// What the launcher itself mounts is there every time.
	v.loose = v.loose || crossed && !(real == path.Clean(p) && (underAny(real, launcherMounts) || slices.Contains(v.own, real)))
	return entry{real, fileMode(st.Mode)}, nil
}

// fileMode is as much of stat(2)'s as is asked for here: kind and permissions.
func fileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & unix.S_IFMT {
	case unix.S_IFREG:
		return mode
	case unix.S_IFDIR:
		return mode | fs.ModeDir
	}
	return mode | fs.ModeIrregular
}

// walk calls do for every program below dir. Links to programs count: what
// they lead to may lie elsewhere.
func (v *view) walk(dir string, do func(entry) error) error {
	d, err := v.open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer d.Close()
	// Names only: File.ReadDir may look at entries by path, which is the host's.
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &fs.PathError{Op: "stat in sandbox", Path: path.Join(dir, name), Err: err}
		}
		if err := v.visit(path.Join(dir, name), st.Mode, do); err != nil {
			return err
		}
	}
	return nil
}

func (v *view) visit(p string, mode uint32, do func(entry) error) error {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return v.walk(p, do)
	case unix.S_IFREG:
		if e := (entry{p, fileMode(mode)}); e.program() {
			return do(e)
		}
	case unix.S_IFLNK:
		e, err := v.resolve(p)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) {
			return nil // a dangling link runs nothing
		}
		if err != nil || !e.program() {
			return err
		}
		return do(e)
	}
	return nil
}

// lookPath finds a program as a shell would, and returns its resolved entry.
func (v *view) lookPath(name, pathEnv, dir string) (string, entry, error) {
	var try []string
	switch {
	case path.IsAbs(name):
		try = []string{name}
	case strings.Contains(name, "/"):
		try = []string{path.Join(dir, name)}
	default:
		for _, d := range filepath.SplitList(pathEnv) {
			if path.IsAbs(d) {
				try = append(try, path.Join(d, name))
			}
		}
	}
	for _, p := range try {
		if e, err := v.resolve(p); err == nil && e.program() {
			return path.Clean(p), e, nil
		}
	}
	return "", entry{}, fmt.Errorf("no program %q in the image (tried %s)", name, strings.Join(try, ", "))
}

// interpreter names what the kernel loads to run the program at p: the ELF
// interpreter, or the first word behind "#!". Empty: none.
func (v *view) interpreter(p string) (name string, script bool, err error) {
	f, err := v.open(p, unix.O_RDONLY)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	// The kernel itself looks no further than one page for either.
	head, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", false, err
	}
	if line, ok := bytes.CutPrefix(head, []byte("#!")); ok {
		line, _ = bufio.NewReader(bytes.NewReader(line)).ReadBytes('\n')
		words := strings.Fields(string(line))
		if len(words) == 0 {
			return "", true, nil
		}
		return words[0], true, nil
	}
	name, err = elfInterpreter(head, f)
	return name, false, err
}

// elfInterpreter reads PT_INTERP of a 64-bit little-endian file; for anything
// else it answers "", because no other can run here.
func elfInterpreter(head []byte, f io.ReaderAt) (string, error) {
	var h elf.Header64
	if err := binary.Read(bytes.NewReader(head), binary.LittleEndian, &h); err != nil || string(h.Ident[:4]) != elf.ELFMAG || h.Ident[elf.EI_CLASS] != byte(elf.ELFCLASS64) {
		return "", nil
	}
	for i := range int64(h.Phnum) {
		var p elf.Prog64
		at := io.NewSectionReader(f, int64(h.Phoff)+i*int64(h.Phentsize), int64(h.Phentsize))
		if err := binary.Read(at, binary.LittleEndian, &p); err != nil {
			return "", fmt.Errorf("program header %d: %w", i, err)
		}
		if elf.ProgType(p.Type) != elf.PT_INTERP {
			continue
		}
		if p.Filesz > unix.PathMax {
			return "", fmt.Errorf("interpreter's name has %d bytes", p.Filesz)
		}
		b := make([]byte, p.Filesz)
		if _, err := f.ReadAt(b, int64(p.Off)); err != nil {
			return "", err
		}
		return string(bytes.TrimRight(b, "\x00")), nil
	}
	return "", nil
}
