package registry

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/bundle/content"
)

const childStore = "REGISTRY_TEST_STORE"

// TestMain is also the registry that TestKill kills.
func TestMain(m *testing.M) {
	dir := os.Getenv(childStore)
	if dir == "" {
		os.Exit(m.Run())
	}
	s, err := content.Open(dir)
	if err == nil {
		var h http.Handler
		if h, err = Open(s, Options{Push: true, Rules: []Rule{everything}}); err == nil {
			fmt.Println(httptest.NewServer(h).URL)
			select {} // until it is killed
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// start runs a registry over dir in a process of its own.
func start(t *testing.T, dir string) (url string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childStore+"="+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out := ok(cmd.StdoutPipe())(t)
	must(t, cmd.Start())
	kill = sync.OnceFunc(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	t.Cleanup(kill)
	return strings.TrimSpace(ok(bufio.NewReader(out).ReadString('\n'))(t)), kill
}

// TestKill kills the registry at any moment while clients push, tag and
// delete. What it has answered for is there, whole, afterwards; what it hasn't
// is there whole or not at all; and a collection finds nothing that it can't
// read.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	done := map[string]string{} // image → its manifest, as answered for
	for round := range 4 {
		url, kill := start(t, dir)
		pushed := pushUntilKilled(t, rack{srv: &httptest.Server{URL: url, Config: &http.Server{}}}, round, kill)
		for k, v := range pushed {
			done[k] = v
		}
		s := ok(content.Open(dir))(t)
		srv := httptest.NewServer(ok(Open(s, Options{Push: true, Rules: []Rule{everything}}))(t))
		r := rack{s, srv}
		ok(Collect(t.Context(), s, CollectOptions{}))(t)
		for ref, body := range done {
			repo, tag, _ := strings.Cut(ref, ":")
			if got := r.do(t, "GET", "/v2/"+repo+"/manifests/"+tag); got.body != body {
				t.Errorf("round %d: %s: %d, another manifest than was pushed", round, ref, got.status)
			}
		}
		for _, repo := range ok((shelf{filepath.Join(dir, shelfDir)}).repos())(t) {
			for _, tag := range ok((shelf{filepath.Join(dir, shelfDir)}).list(filepath.Join(dir, shelfDir, "repos", repo, tagsIn)))(t) {
				r.pull(t, repo, tag)
			}
		}
		srv.Close()
	}
	if len(done) == 0 {
		t.Error("nothing was ever pushed")
	}
	t.Logf("%d images were answered for", len(done))
}

// pushUntilKilled pushes with several clients until the registry dies, after
// it has answered for a few.
func pushUntilKilled(t *testing.T, r rack, round int, kill func()) map[string]string {
	var mu sync.Mutex
	out := map[string]string{}
	var n atomic.Int32
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for j := range 1000 {
				repo, tag := fmt.Sprintf("r%d", i), fmt.Sprintf("t%d-%d", round, j)
				m, err := r.tryImage(repo, tag)
				if err != nil {
					return // it is dead
				}
				mu.Lock()
				out[repo+":"+tag] = m
				mu.Unlock()
				n.Add(1)
			}
		})
	}
	patiently(t, func() bool { return n.Load() > 2 })
	time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
	kill()
	wg.Wait()
	return out
}

// tryImage pushes an image, and one that it deletes again.
func (s rack) tryImage(repo, tag string) (manifest string, err error) {
	image := func(ref string) (m []byte, err error) {
		cfg, layer := []byte(repo+ref), noise(20_000)
		up := "/v2/" + repo + "/blobs/uploads/?digest="
		err = errors.Join(s.expect("POST", up+sumOf("sha256", cfg).String(), cfg, 201), s.expect("POST", up+sumOf("sha512", layer).String(), layer, 201))
		m = plain(described(cfg, "sha256"), described(layer, "sha512"), nil)
		return m, errors.Join(err, s.expect("PUT", "/v2/"+repo+"/manifests/"+ref, m, 201))
	}
	m, err := image(tag)
	if err != nil {
		return "", err
	}
	if gone, err := image("gone"); err == nil {
		_ = s.expect("DELETE", "/v2/"+repo+"/manifests/"+sumOf("sha256", gone).String(), nil, 202) // may not come to it
	}
	return string(m), nil
}
