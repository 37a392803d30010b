// Command probe runs inside the sandbox of TestJourney: it fetches a URL and
// says what came of it. busybox's wget can't: statically linked, its name
// lookup crashes without the C library's plug-ins.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	c := http.Client{Timeout: 20 * time.Second}
	resp, err := c.Get(os.Args[1])
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	b, _ := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, string(b))
}
