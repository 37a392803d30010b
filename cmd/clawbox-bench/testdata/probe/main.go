// Command probe does the work that clawbox-bench compares: the same bytes run
// on the host and in each kind of sandbox. It prints nanoseconds, one sample a
// line, and nothing else, but "ready" lines where it stays.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// modes take a count and further arguments.
var modes = map[string]func(n int, args []string) error{
	"exec": execs, "open": opens, "connect": connects, "build": builds, "git": gits,
	"dial": dials, "http": requests, "violate": violate, "stay": stay, "keep": keep,
}

// calls time single system calls, so they wait until what the place's own start
// has set off (clawbox makes the next launcher ready) is over.
var calls = map[string]bool{"exec": true, "open": true, "connect": true, "dial": true, "http": true}

const settled = 400 * time.Millisecond

var out = bufio.NewWriter(os.Stdout)

func main() {
	err := fmt.Errorf("got %q, want MODE COUNT …", os.Args)
	if len(os.Args) > 1 && calls[os.Args[1]] {
		time.Sleep(settled)
	}
	if len(os.Args) > 2 {
		if n, e := strconv.Atoi(os.Args[2]); e == nil && modes[os.Args[1]] != nil {
			err = modes[os.Args[1]](n, os.Args[3:])
		}
	}
	out.Flush()
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func sample(d time.Duration) { fmt.Fprintln(out, int64(d)) }

// execs starts the smallest program there is and waits for it.
func execs(n int, _ []string) error {
	for range n {
		start := time.Now()
		if err := run("/bin/busybox", "true"); err != nil {
			return err
		}
		sample(time.Since(start))
	}
	return nil
}

func run(argv ...string) error {
	p, err := os.StartProcess(argv[0], argv, &os.ProcAttr{Files: []*os.File{nil, nil, os.Stderr}})
	if err != nil {
		return err
	}
	st, err := p.Wait()
	if err == nil && !st.Success() {
		err = fmt.Errorf("%v: %v", argv, st)
	}
	return err
}

// opens opens, reads and closes one file; a sample is the mean of a hundred.
func opens(n int, _ []string) error {
	buf := make([]byte, 64)
	for range n {
		start := time.Now()
		for range 100 {
			fd, err := unix.Open("/data/file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			if _, err := unix.Read(fd, buf); err != nil {
				return err
			}
			unix.Close(fd)
		}
		sample(time.Since(start) / 100)
	}
	return nil
}

// connects times connect(2) to a listener of its own on loopback. Accepting
// and closing is not timed, and a reset leaves no port in TIME_WAIT.
func connects(n int, _ []string) error {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.Listen(l, 16); err != nil {
		return err
	}
	to, err := unix.Getsockname(l)
	if err != nil {
		return err
	}
	for range n {
		if err := connect(l, to); err != nil {
			return err
		}
	}
	return nil
}

func connect(l int, to unix.Sockaddr) error {
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(c)
	start := time.Now()
	if err := unix.Connect(c, to); err != nil {
		return err
	}
	sample(time.Since(start))
	s, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	return unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

const source = `package main

import (
	"fmt"
	"os"
	"sort"
)

func main() {
	s := append([]string(nil), os.Args...)
	sort.Strings(s)
	fmt.Println(%d, s)
}
`

// builds compiles and links a small program, changed each time. The first
// build, which fills the cache, is not a sample.
func builds(n int, _ []string) error {
	env := []string{
		"HOME=/workspace", "GOCACHE=/workspace/cache", "GOPATH=/workspace/gopath", "GOTMPDIR=/workspace", "PATH=/usr/local/go/bin:/bin", "GOROOT=/usr/local/go",
		"GOTOOLCHAIN=local", "GOPROXY=off", "GO111MODULE=off", "CGO_ENABLED=0", "GOTELEMETRY=off", "GOFLAGS=-p=2",
	}
	for i := range n + 1 {
		src := fmt.Sprintf(source, time.Now().UnixNano())
		if err := os.WriteFile("/workspace/main.go", []byte(src), 0o600); err != nil {
			return err
		}
		start := time.Now()
		if err := command("/workspace", env, "/usr/local/go/bin/go", "build", "-o", "/workspace/out", "/workspace/main.go"); err != nil {
			return err
		}
		if i > 0 {
			sample(time.Since(start))
		}
	}
	return nil
}

func command(dir string, env []string, argv ...string) error {
	var said bytes.Buffer
	c := exec.Command(argv[0], argv[1:]...)
	c.Dir, c.Env, c.Stdout, c.Stderr = dir, env, &said, &said
	if err := c.Run(); err != nil {
		return fmt.Errorf("%v: %w: %s", argv, err, said.Bytes())
	}
	return nil
}

// gits makes a repository of 200 files, changes some, and looks at it. It
// does not wait for the disk: that is not what the places differ in.
func gits(n int, _ []string) error {
	for i := range n {
		dir := fmt.Sprintf("/workspace/repo%d-%d", os.Getpid(), i)
		start := time.Now()
		if err := git(dir); err != nil {
			return err
		}
		sample(time.Since(start))
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

func git(dir string) error {
	env := []string{
		"HOME=/workspace", "GIT_CONFIG_NOSYSTEM=1", "PATH=/usr/bin:/bin", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b",
	}
	do := func(args ...string) error {
		all := append([]string{"/usr/bin/git", "-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "core.fsync=none", "-c", "core.pager=cat"}, args...)
		return command(dir, env, all...)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := do("init", "-q", "."); err != nil {
		return err
	}
	for round := range 2 {
		for i := 0; i < 200; i += 1 + 3*round {
			p := filepath.Join(dir, fmt.Sprintf("d%d/f%d.txt", i%10, i))
			if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
				return err
			}
			if err := os.WriteFile(p, bytes.Repeat([]byte(fmt.Sprintln("line", i, round)), 50), 0o600); err != nil {
				return err
			}
		}
		for _, args := range [][]string{{"status", "-s"}, {"add", "."}, {"commit", "-q", "-m", "round"}, {"log", "--stat"}, {"diff", "--stat", "HEAD"}} {
			if err := do(args...); err != nil {
				return err
			}
		}
	}
	return nil
}

// dials makes a new connection and sends one byte there and back.
func dials(n int, args []string) error {
	for range n {
		start := time.Now()
		c, err := net.Dial("tcp", args[0])
		if err != nil {
			return err
		}
		if err := ping(c); err != nil {
			return err
		}
		sample(time.Since(start))
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	return nil
}

func ping(c net.Conn) error {
	b := []byte{1}
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b)
	return err
}

// requests sends GET requests, each on a connection of its own.
func requests(n int, args []string) error {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	for range n {
		start := time.Now()
		r, err := c.Get(args[0])
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r.Body)
		r.Body.Close()
		if err != nil || r.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d: %v", r.StatusCode, err)
		}
		sample(time.Since(start))
	}
	return nil
}

// violate starts a program that it may not start. Instead of samples it
// prints how often it ran, was killed, and was refused.
func violate(n int, args []string) error {
	var ran, killed, refused int
	for range n {
		p, err := os.StartProcess(args[0], args, &os.ProcAttr{Files: []*os.File{nil, os.Stdout, nil}})
		if err != nil {
			refused++
			continue
		}
		st, err := p.Wait()
		if err != nil {
			return err
		}
		if st.Exited() {
			ran++
		} else {
			killed++
		}
	}
	fmt.Fprintln(out, ran, killed, refused)
	return nil
}

// stay says that it is there, and is until it is killed.
func stay(int, []string) error {
	fmt.Fprintln(out, "ready")
	out.Flush()
	time.Sleep(time.Hour)
	return nil
}

// keep opens n connections and keeps them; it ends when all were cut.
func keep(n int, args []string) error {
	var all []net.Conn
	for range n {
		c, err := net.Dial("tcp", args[0])
		if err != nil {
			return err
		}
		if err := ping(c); err != nil {
			return err
		}
		all = append(all, c)
	}
	fmt.Fprintln(out, "ready")
	out.Flush()
	for _, c := range all {
		_, _ = io.Copy(io.Discard, c)
	}
	return nil
}
