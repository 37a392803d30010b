// Command crowd runs inside the sandbox of TestComplete: it does one thing
// many times, each time so that its record can be told from all others, and
// keeps account in a file that survives it.
//
//	crowd open|connect|exec N TALLY  each of N deeds, once
//	crowd flood [long]               opens one file until it is killed; long: by
//	                                 a name that takes much room in a record
//
// Byte i of TALLY says how far deed i came: 'b' begun, 'd' done, 'a' answered
// (connect: by egress), 'f' failed.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// crews are how many are at work at once: a connection waits for the ledger
// most of the time.
var crews = map[string]int{"open": 4, "connect": 128, "exec": 4}

func main() {
	if os.Args[1] == "flood" {
		name := "/bin/busybox"
		if len(os.Args) > 2 {
			name = long()
		}
		flood(name)
	}
	n, err := strconv.Atoi(os.Args[2])
	check(err)
	tally, err := openTally(os.Args[3], n)
	check(err)
	do := map[string]func(int, []byte) error{"open": open, "connect": connect, "exec": run}[os.Args[1]]
	var next atomic.Int64
	var wg sync.WaitGroup
	for range crews[os.Args[1]] {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				tally[i] = 'b'
				if err := do(int(i), tally[i:]); err != nil {
					tally[i] = 'f'
					fmt.Println(i, err)
				}
			}
		})
	}
	wg.Wait()
}

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// openTally maps a new file: what is stored in it stays when this process is
// killed at any moment.
func openTally(name string, n int) ([]byte, error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(int64(n)); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// open makes a file of its own, which goes at once.
func open(i int, state []byte) error {
	name := fmt.Sprintf("/tmp/deed-%d", i)
	fd, err := unix.Open(name, unix.O_CREAT|unix.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	state[0] = 'd'
	unix.Close(fd)
	return unix.Unlink(name)
}

// connect goes to an address of its own. One in fifty is not allowed: refusals
// have their turns, fifty a second.
func connect(i int, state []byte) error {
	net16 := "198.51"
	if i%50 == 49 {
		net16 = "203.0"
	}
	c, err := net.DialTimeout("tcp4", fmt.Sprintf("%s.%d.%d:80", net16, i/250, 1+i%250), time.Minute)
	if errors.Is(err, unix.ECONNRESET) {
		state[0] = 'd' // it was there, and refused before anybody looked
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	state[0] = 'd'
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return nil // what comes of it is not counted
	}
	b, _ := io.ReadAll(io.LimitReader(c, 4096))
	// Without a ledger egress refuses, and nobody could record that.
	if len(b) > 0 && !bytes.Contains(b, []byte("ledger.unavailable")) {
		state[0] = 'a'
	}
	return nil
}

// run starts a program by a spelling of its name that no other deed has.
func run(i int, state []byte) error {
	name := "/bin"
	for b := 0; b < 15; b++ {
		name += "/."
		if i>>b&1 == 1 {
			name += "/"
		}
	}
	p, err := os.StartProcess(name+"/busybox", []string{"true"}, &os.ProcAttr{})
	if err != nil {
		return err
	}
	state[0] = 'd'
	st, err := p.Wait()
	if err == nil && !st.Success() {
		err = fmt.Errorf("%v", st)
	}
	return err
}

// flood is the neighbour that nobody wants.
func flood(name string) {
	go func() {
		for {
		}
	}()
	for {
		if fd, err := unix.Open(name, unix.O_RDONLY, 0); err == nil {
			unix.Close(fd)
		} else {
			time.Sleep(time.Millisecond)
		}
	}
}

// long makes a file whose name JSON writes with six bytes for each of its own.
func long() string {
	part := strings.Repeat("\x01", 240)
	name := "/tmp/" + part + "/" + part
	check(os.MkdirAll("/tmp/"+part, 0o700))
	check(os.WriteFile(name, nil, 0o600))
	return name
}
