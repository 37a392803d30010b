package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The test binary is its own fake engine: started with the argument "serve", it
// tells what it was given, dies when asked to, and starts a runner of its own.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "serve" {
		fake()
		return
	}
	os.Exit(m.Run())
}

type told struct {
	UID, GID int
	Groups   []int
	Env      []string
	Dir      string
	Status   string // /proc/self/status
	Pid      int
	Runner   int
	FDs      []string
	Writable []string
}

func fake() {
	if _, err := os.Stat(filepath.Join(os.Getenv("OLLAMA_MODELS"), "manifests", "registry.ollama.ai", "library", "deaf")); err == nil {
		fmt.Println("fake: this model makes me die")
		os.Exit(3)
	}
	runner := exec.Command("/bin/sleep", "1000")
	if err := runner.Start(); err != nil {
		panic(err)
	}
	http.HandleFunc("/api/version", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(tell(runner.Process.Pid))
	})
	http.HandleFunc("/die", func(http.ResponseWriter, *http.Request) { os.Exit(7) })
	panic(http.ListenAndServe(os.Getenv("OLLAMA_HOST"), nil))
}

func tell(runner int) told {
	t := told{UID: os.Getuid(), GID: os.Getgid(), Env: os.Environ(), Pid: os.Getpid(), Runner: runner}
	t.Groups, _ = os.Getgroups()
	t.Dir, _ = os.Getwd()
	b, _ := os.ReadFile("/proc/self/status")
	t.Status = string(b)
	ents, _ := os.ReadDir("/proc/self/fd")
	for _, e := range ents {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			t.FDs = append(t.FDs, to)
		}
	}
	models := os.Getenv("OLLAMA_MODELS")
	blobs, _ := filepath.Glob(models + "/blobs/*")
	for _, p := range append(blobs, models, models+"/blobs", os.Getenv("HOME")) {
		if syscall.Access(p, 2) == nil {
			t.Writable = append(t.Writable, p)
		}
	}
	return t
}

// bench is a prepared directory that the fake engine's user can reach, and a free port.
func bench(t *testing.T, models ...Model) (Config, *logBuffer) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: geteuid is", os.Geteuid(), "and the engine is tested as another user")
	}
	dir := openTemp(t)
	bin := filepath.Join(dir, "engine")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, self, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Prepare(filepath.Join(dir, "run"), models); err != nil {
		t.Fatal(err)
	}
	log := &logBuffer{}
	return Config{Binary: bin, Dir: filepath.Join(dir, "run"), Listen: freePort(t), Log: log, UID: 4242, GID: 4243}, log
}

// openTemp is a temporary folder that other users can pass through.
func openTemp(t *testing.T) string {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T, cfg Config) *Engine {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	e, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func hear(t *testing.T, e *Engine) (told, error) {
	res, err := http.Get(e.URL() + "/api/version")
	if err != nil {
		return told{}, err
	}
	defer res.Body.Close()
	var w told
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return told{}, err
	}
	return w, json.Unmarshal(b, &w)
}

// gone waits until the process doesn't exist; orphans are reaped by whoever adopts them.
func gone(t *testing.T, pid int) {
	t.Helper()
	for range 200 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(b), ") Z ") {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("process %d still lives", pid)
}

func TestEngineIsCaged(t *testing.T) {
	t.Setenv("CLAWBOX_TEST_SECRET", "must not be inherited")
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	f, err := os.Open("/etc/hostname")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cfg, _ := bench(t, oneModel(t, "tiny"))
	e := start(t, cfg)
	got, err := hear(t, e)
	if err != nil {
		t.Fatal(err)
	}
	if got.UID != cfg.UID || got.GID != cfg.GID || len(got.Groups) > 0 && (len(got.Groups) != 1 || got.Groups[0] != cfg.GID) {
		t.Errorf("runs as %d:%d %v, want %d:%d and no other group", got.UID, got.GID, got.Groups, cfg.UID, cfg.GID)
	}
	for _, want := range []string{"NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"} {
		if !strings.Contains(got.Status, want) {
			t.Errorf("status lacks %q", want)
		}
	}
	for _, kv := range got.Env {
		k, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(k, "OLLAMA_") && k != "PATH" && k != "HOME" && k != "TMPDIR" && k != "PWD" {
			t.Errorf("inherited %s", kv)
		}
	}
	for _, fd := range got.FDs {
		if strings.HasPrefix(fd, "/etc") {
			t.Errorf("inherited descriptor of %s", fd)
		}
	}
	if home := filepath.Join(cfg.Dir, "home"); len(got.Writable) != 1 || got.Writable[0] != home || got.Dir != home {
		t.Errorf("may write to %v from %s, want %s only", got.Writable, got.Dir, home)
	}
	// This process must not have got the flag.
	if b, _ := os.ReadFile("/proc/self/status"); !strings.Contains(string(b), "NoNewPrivs:\t0") {
		t.Error("no_new_privs leaked into the parent's main thread")
	}
	e.Close()
	gone(t, got.Pid)
	gone(t, got.Runner)
	if err := e.Health(context.Background()); err == nil {
		t.Error("healthy after Close")
	}
}

func TestEngineIsStartedAgain(t *testing.T) {
	cfg, log := bench(t)
	e := start(t, cfg)
	first, err := hear(t, e)
	if err != nil {
		t.Fatal(err)
	}
	http.Get(e.URL() + "/die")
	var second told
	for range 200 {
		if second, err = hear(t, e); err == nil && second.Pid != first.Pid {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil || second.Pid == first.Pid {
		t.Fatalf("not started again: %v\n%s", err, log)
	}
	gone(t, first.Runner) // the dead engine's runner must not stay behind
	if e.Restarts() != 1 || !strings.Contains(log.String(), "exit status 7") {
		t.Errorf("%d restarts, want 1; log:\n%s", e.Restarts(), log)
	}
	if !strings.Contains(second.Status, "NoNewPrivs:\t1") || second.UID != cfg.UID {
		t.Error("the second run isn't caged like the first")
	}
}

func TestStartFails(t *testing.T) {
	cfg, _ := bench(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	closed := filepath.Join(cfg.Dir, "closed")
	if err := Prepare(closed, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	deaf := filepath.Join(cfg.Dir, "deaf")
	if err := Prepare(deaf, []Model{oneModelAt(t, cfg.Dir, "deaf")}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"as root":          {func(c *Config) { c.UID = 0 }, "must not do so as root"},
		"group root":       {func(c *Config) { c.GID = 0 }, "must not do so as root"},
		"open to the net":  {func(c *Config) { c.Listen = "0.0.0.0:11434" }, "not a loopback"},
		"a name":           {func(c *Config) { c.Listen = "localhost:11434" }, "not a loopback"},
		"no port":          {func(c *Config) { c.Listen = "127.0.0.1" }, "a port"},
		"any port":         {func(c *Config) { c.Listen = "127.0.0.1:0" }, "a port"},
		"port taken":       {func(c *Config) { c.Listen = taken.Addr().String() }, "stop what listens there"},
		"relative binary":  {func(c *Config) { c.Binary = "ollama" }, "absolute"},
		"no binary":        {func(c *Config) { c.Binary = "/nonexistent/ollama" }, "no such file"},
		"can't reach":      {func(c *Config) { c.Dir = closed }, "chmod o+x " + closed},
		"not prepared":     {func(c *Config) { c.Dir = filepath.Join(c.Dir, "nowhere") }, "no such file"},
		"dies at once":     {func(c *Config) { c.Dir = deaf }, "makes me die"},
		"dies with status": {func(c *Config) { c.Dir = deaf }, "exit status 3"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			c.change(&cfg)
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			e, err := Start(ctx, cfg)
			if err == nil {
				e.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestStartGivesUpWithItsContext(t *testing.T) {
	cfg, _ := bench(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if e, err := Start(ctx, cfg); err == nil {
		e.Close()
		t.Fatal("started although the context had ended")
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		t.Fatalf("something is left behind: %v", err)
	}
	l.Close()
}
