// Command probe is the program that the sandbox tests run inside: static, so
// that an image needs nothing else. Each argument "verb" or "verb=operand" is
// one attempt; its outcome is one line, "verb=operand: ok …" or an errno's name.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var verbs = map[string]func(string) (string, error){
	"list": list, "read": read, "write": write, "append": appendTo, "exec": run, "kill": kill, "links": links, "status": status,
	"call": call, "memfd": memfd, "forks": forks, "eat": eat, "sleep": sleep, "exit": exit, "pids": pids, "mounts": mounts,
	"print": func(s string) (string, error) { return s, nil }, "env": func(s string) (string, error) { return os.Getenv(s), nil },
	"ignore": ignore, "tty": tty, "cat": cat, "mode": mode, "lock": lock, "cwd": func(string) (string, error) { return os.Getwd() },
	"abstract": abstract, "trap": trap, "fds": fds, "userns": userns, "signals": signals, "limit": limit, "fill": fill, "create": create, "hold": hold, "flood": flood,
	"flock": flock, "watch": watch,
}

func main() {
	for _, a := range os.Args[1:] {
		verb, arg, _ := strings.Cut(a, "=")
		f := verbs[verb]
		if strings.HasPrefix(a, "/") {
			continue // the kernel names the script
		}
		if f == nil {
			fmt.Printf("%s: no such verb\n", a)
			os.Exit(2)
		}
		out, err := f(arg)
		var no syscall.Errno
		switch {
		case errors.As(err, &no):
			fmt.Printf("%s: %s\n", a, unix.ErrnoName(no))
		case err != nil:
			fmt.Printf("%s: %v\n", a, err)
		default:
			fmt.Printf("%s: ok %s\n", a, out)
		}
	}
}

func list(p string) (string, error) {
	es, err := os.ReadDir(p)
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return strings.Join(names, " "), err
}

func read(p string) (string, error) {
	b, err := os.ReadFile(p)
	return strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", "|"), err
}

func write(p string) (string, error) { return "", os.WriteFile(p, []byte("x"), 0o755) }
func mode(p string) (string, error) {
	st, err := os.Stat(p)
	if err != nil {
		return "", err
	}
	return st.Mode().String(), nil
}

func appendTo(p string) (string, error) {
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		f.Close()
	}
	return "", err
}

// run executes a program with the operand's remaining words and prints what it printed.
func run(s string) (string, error) {
	w := strings.Fields(s)
	b, err := exec.Command(w[0], w[1:]...).CombinedOutput()
	return strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", "|"), err
}

func kill(s string) (string, error) {
	pid, _ := strconv.Atoi(s)
	return "", syscall.Kill(pid, 0)
}

func links(string) (string, error) {
	is, err := net.Interfaces()
	var names []string
	for _, i := range is {
		names = append(names, i.Name+":"+i.Flags.String())
	}
	return strings.Join(names, " "), err
}

// status prints fields of /proc/self/status.
func status(want string) (string, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return "", err
	}
	defer f.Close()
	var out []string
	for s := bufio.NewScanner(f); s.Scan(); {
		k, v, _ := strings.Cut(s.Text(), ":")
		if slices.Contains(strings.Split(want, ","), k) {
			out = append(out, k+"="+strings.Join(strings.Fields(v), ","))
		}
	}
	return strings.Join(out, " "), nil
}

// calls are attempts by name; a table, so that tests can name them.
var calls = map[string][4]uintptr{
	"ptrace":    {unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1, 0},
	"mount":     {unix.SYS_MOUNT, 0, 0, 0},
	"unshare":   {unix.SYS_UNSHARE, unix.CLONE_NEWUSER, 0, 0},
	"setns":     {unix.SYS_SETNS, 0, 0, 0},
	"chroot":    {unix.SYS_CHROOT, 0, 0, 0},
	"bpf":       {unix.SYS_BPF, 0, 0, 0},
	"io_uring":  {unix.SYS_IO_URING_SETUP, 1, 0, 0},
	"clone3":    {unix.SYS_CLONE3, 0, 0, 0},
	"clone_ns":  {unix.SYS_CLONE, unix.CLONE_NEWUSER | uintptr(unix.SIGCHLD), 0, 0},
	"raw":       {unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
	"packet":    {unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_DGRAM, 0},
	"mptcp":     {unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP},
	"vsock":     {unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0},
	"netfilter": {unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER},
	"tcp":       {unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0},
	"persona":   {unix.SYS_PERSONALITY, 0x0040000 /* ADDR_NO_RANDOMIZE */, 0, 0},
	"keyctl":    {unix.SYS_KEYCTL, 0, 0, 0},
	"unknown":   {511, 0, 0, 0},
	"setuid":    {unix.SYS_SETUID, 0, 0, 0},
	// On a bad descriptor: only what stands before the kernel's own code
	// answers otherwise than EBADF.
	"ulp":     {unix.SYS_SETSOCKOPT, ^uintptr(0), unix.SOL_TCP, unix.TCP_ULP},
	"nodelay": {unix.SYS_SETSOCKOPT, ^uintptr(0), unix.SOL_TCP, unix.TCP_NODELAY},
	"setd":    {unix.SYS_IOCTL, ^uintptr(0), unix.TIOCSETD, 0},
	"getd":    {unix.SYS_IOCTL, ^uintptr(0), unix.TIOCGETD, 0},
}

func call(name string) (string, error) {
	c, ok := calls[name]
	if !ok {
		return "", errors.New("no such call")
	}
	_, _, e := unix.RawSyscall(c[0], c[1], c[2], c[3])
	if e != 0 {
		return "", e
	}
	return "", nil
}

// memfd runs this program from memory: a program that is in no file.
func memfd(s string) (string, error) {
	flags, _ := strconv.ParseUint(s, 0, 32)
	fd, err := unix.MemfdCreate("x", int(flags))
	if err != nil {
		return "", fmt.Errorf("create: %w", err)
	}
	b, err := os.ReadFile("/bin/probe")
	if err != nil {
		return "", err
	}
	if _, err := unix.Write(fd, b); err != nil {
		return "", err
	}
	return run(fmt.Sprintf("/proc/self/fd/%d print=escaped", fd))
}

// forks starts n sleeping processes and says how many it got.
func forks(s string) (string, error) {
	n, _ := strconv.Atoi(s)
	for i := range n {
		c := exec.Command("/bin/probe", "sleep=60")
		if err := c.Start(); err != nil {
			return strconv.Itoa(i), err
		}
	}
	return s, nil
}

// eat uses MiB of memory.
func eat(s string) (string, error) {
	n, _ := strconv.Atoi(s)
	b, err := unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return "", err
	}
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	return "", nil
}

func sleep(s string) (string, error) {
	n, _ := strconv.ParseFloat(s, 64)
	time.Sleep(time.Duration(n * float64(time.Second)))
	return "", nil
}

func exit(s string) (string, error) {
	n, _ := strconv.Atoi(s)
	os.Exit(n)
	return "", nil
}

// pids lists the processes in sight with their names.
func pids(string) (string, error) {
	ds, err := filepath.Glob("/proc/[0-9]*")
	var out []string
	for _, d := range ds {
		b, _ := os.ReadFile(d + "/comm")
		out = append(out, filepath.Base(d)+":"+strings.TrimSpace(string(b)))
	}
	return strings.Join(out, " "), err
}

// mounts lists what is mounted: type, place, options.
func mounts(string) (string, error) {
	b, err := os.ReadFile("/proc/self/mounts")
	var out []string
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		out = append(out, f[2]+" "+f[1]+" "+f[3])
	}
	return strings.Join(out, "|"), err
}

// ignore goes on after SIGTERM.
func ignore(string) (string, error) { signal.Ignore(syscall.SIGTERM); return "", nil }

// trap waits for SIGTERM and ends with 7.
func trap(string) (string, error) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	fmt.Println("trap: ready")
	<-c
	os.Exit(7)
	return "", nil
}

// tty describes the terminal on standard input.
func tty(string) (string, error) {
	w, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
	if err != nil {
		return "", err
	}
	name, err := os.Readlink("/proc/self/fd/0")
	if err != nil {
		return "", err
	}
	if _, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err != nil {
		return "", err
	}
	var c byte = 'x'
	_, _, e := unix.Syscall(unix.SYS_IOCTL, 0, unix.TIOCSTI, uintptr(unsafe.Pointer(&c)))
	var usual int32 // the one it has: nothing but the filter objects
	_, _, d := unix.Syscall(unix.SYS_IOCTL, 0, unix.TIOCSETD, uintptr(unsafe.Pointer(&usual)))
	return fmt.Sprintf("%s %dx%d TIOCSTI=%s TIOCSETD=%s", name, w.Row, w.Col, unix.ErrnoName(e), unix.ErrnoName(d)), nil
}

func cat(string) (string, error) {
	n, err := io.Copy(os.Stdout, os.Stdin)
	return strconv.FormatInt(n, 10), err
}

func lock(string) (string, error) { return "", unix.Mlockall(unix.MCL_CURRENT) }

// flock locks a file that may only be read, until the program ends.
func flock(p string) (string, error) {
	fd, err := unix.Open(p, unix.O_RDONLY, 0)
	if err == nil {
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	}
	return "", err
}

// watch counts how often a file is opened within two seconds, once by itself.
func watch(p string) (string, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK)
	if err == nil {
		_, err = unix.InotifyAddWatch(fd, p, unix.IN_OPEN)
	}
	if err != nil {
		return "", err
	}
	fmt.Println("watching: ok")
	time.Sleep(2 * time.Second)
	if f, err := os.Open(p); err == nil {
		f.Close()
	}
	b := make([]byte, 4096)
	n, err := unix.Read(fd, b)
	return strconv.Itoa(n / unix.SizeofInotifyEvent), err
}

// abstract connects to an abstract Unix socket.
func abstract(name string) (string, error) {
	c, err := net.Dial("unix", "@"+name)
	if err == nil {
		c.Close()
	}
	return "", err
}

// fds lists open descriptors.
func fds(string) (string, error) {
	ds, err := os.ReadDir("/proc/self/fd")
	var out []string
	for _, d := range ds {
		to, _ := os.Readlink("/proc/self/fd/" + d.Name())
		out = append(out, d.Name()+"->"+to)
	}
	return strings.Join(out, " "), err
}

func userns(string) (string, error) {
	c := exec.Command("/bin/probe", "print=x")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	return "", c.Run()
}

func signals(s string) (string, error) {
	pid, _ := strconv.Atoi(s)
	return "", syscall.Kill(pid, syscall.SIGTERM)
}

func limit(string) (string, error) {
	var r unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r)
	return fmt.Sprintf("%d/%d", r.Cur, r.Max), err
}

// fill writes 4 MiB.
// fill writes a file until it can't, at most 256 MiB.
func fill(p string) (string, error) {
	f, err := os.Create(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for b := bytes.Repeat([]byte{1}, 1<<16); err == nil; {
		var st os.FileInfo
		if _, err = f.Write(b); err == nil {
			st, err = f.Stat()
		}
		if err == nil && st.Size() >= 256<<20 {
			return "no end", nil
		}
	}
	return "", err
}

// create makes empty files in a folder until it can't.
func create(dir string) (string, error) {
	for i := range 1_000_000 {
		f, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			return "", err
		}
		f.Close()
	}
	return "no end", nil
}

// hold opens a file again and again until it can't, and lets go.
func hold(p string) (string, error) {
	var fs []*os.File
	defer func() {
		for _, f := range fs {
			f.Close()
		}
	}()
	for range 1_000_000 {
		f, err := os.Open(p)
		if err != nil {
			return "", err
		}
		fs = append(fs, f)
	}
	return "no end", nil
}

// flood writes that many megabytes to standard output.
func flood(s string) (string, error) {
	n, err := strconv.Atoi(s)
	line := []byte(strings.Repeat("x", 1<<20-1) + "\n")
	for range n {
		if _, err := os.Stdout.Write(line); err != nil {
			return "", err
		}
	}
	return "", err
}
