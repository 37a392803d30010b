// Command caller is the agent of TestWayOut: it connects, and says what came
// of it.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"
)

// modes are named by the first argument, and get the others.
var modes = map[string]func(args []string) error{"dial": dial, "keep": keep, "get": get, "local": local}

func main() {
	if err := modes[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// dial ADDRESS COUNT prints the median and the 99th percentile of new
// connections with one byte there and back, in nanoseconds.
func dial(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	var all []time.Duration
	for range n {
		start := time.Now()
		c, err := call(args[0])
		if err != nil {
			return err
		}
		all = append(all, time.Since(start))
		c.Close()
	}
	slices.Sort(all)
	fmt.Println(int64(all[n/2]), int64(all[n*99/100]))
	return nil
}

// call makes a connection that carries.
func call(addr string) (net.Conn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	b := []byte{1}
	if _, err = c.Write(b); err == nil {
		_, err = io.ReadFull(c, b)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// keep ADDRESS COUNT keeps connections open until all were cut.
func keep(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for range n {
		c, err := call(args[0])
		if err != nil {
			return err
		}
		defer io.Copy(io.Discard, c)
	}
	fmt.Println("ready")
	return nil
}

// get URL VARIABLE asks with the variable's value as the bearer's.
func get(args []string) error {
	q, err := http.NewRequest("GET", args[0], nil)
	if err != nil {
		return err
	}
	q.Header.Set("Authorization", "Bearer "+os.Getenv(args[1]))
	r, err := (&http.Client{Timeout: 20 * time.Second}).Do(q)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(r.Body)
	fmt.Println(r.StatusCode, string(b))
	return err
}

// local ADDRESS listens there, and calls itself.
func local(args []string) error {
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c)
		}
	}()
	c, err := call(l.Addr().String())
	if err == nil {
		fmt.Println("reached", c.RemoteAddr())
	}
	return err
}
