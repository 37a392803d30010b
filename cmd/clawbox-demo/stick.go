package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	ocimage "github.com/clawbox/clawbox/airgap-manifests/openclaw"
	"github.com/clawbox/clawbox/airgap-manifests/tinymodel"
)

// toolCommand is what the tiny model asks OpenClaw's exec tool to run, and
// finalWords is what it says when it has seen the result.
const (
	toolCommand = "echo \"written by the agent, uid $(id -u)\" > /workspace/report.txt && cat /workspace/report.txt"
	finalWords  = "I wrote the report to /workspace/report.txt."
)

// build makes what a release needs and this repository does not hold.
func (d *demo) build() error {
	engine := filepath.Join(d.dist, "ollama")
	d.say("the engine: ollama from Go modules (minutes the first time, nothing after that)")
	if r, err := capture("sh", "airgap-manifests/ollama/build.sh", engine); err != nil || r.code != 0 {
		return fmt.Errorf("build.sh: %v\n%s", err, r.out)
	}
	if err := writeModel(filepath.Join(d.dist, "model")); err != nil {
		return err
	}
	d.say("the agent: OpenClaw from npm on a Debian base, as an OCI image")
	log, err := os.Create(filepath.Join(d.dist, "openclaw-build.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	digest, err := ocimage.Build(d.ctx, ocimage.Options{
		WorkDir: filepath.Join(d.dist, "openclaw-work"), OutLayout: filepath.Join(d.dist, "openclaw"), Log: log,
	})
	if err != nil {
		return fmt.Errorf("%w (see %s)", err, log.Name())
	}
	d.say("engine %s, model %s, image %s (%s)", sizeOf(engine), sizeOf(filepath.Join(d.dist, "model")), sizeOf(filepath.Join(d.dist, "openclaw")), digest[:19])
	return nil
}

// writeModel writes the model that says what it is told to say.
func writeModel(dir string) error {
	call, err := tinymodel.ToolCall("exec", map[string]string{"command": toolCommand})
	if err != nil {
		return err
	}
	return tinymodel.WriteDir(dir, []tinymodel.Script{
		{Name: "plain", When: tinymodel.Plain, Text: "I am a tiny model and I say what I was told to say."},
		{Name: "call", When: tinymodel.User, Text: call},
		{Name: "done", When: tinymodel.Tool, Text: finalWords},
	})
}

func (d *demo) key() string   { return filepath.Join(d.dist, "demo.key") }
func (d *demo) pub() string   { return filepath.Join(d.dist, "demo.pub") }
func (d *demo) stick() string { return filepath.Join(d.dist, "stick") }

// bundle makes the signing key once, and the stick.
func (d *demo) bundle() error {
	if !exists(d.key()) {
		if _, err := d.must(d.bin, "key", "generate", "demo", "--out", filepath.Join(d.dist, "demo")); err != nil {
			return err
		}
	}
	if err := os.WriteFile(d.answersFile(), []byte(answers), 0o644); err != nil {
		return err
	}
	// Debian's packages float, so the image differs from day to day and the
	// lock is made anew; a release would commit its lock.
	_, err := d.must(d.bin, "bundle", "-f", "airgap-manifests/recipes/demo.yaml", "-o", d.stick(), "--key", d.key(),
		"--store", filepath.Join(d.dist, "work-store"), "--lock", filepath.Join(d.dist, "demo.lock"), "--update-lock", "--part-size", "256MiB")
	return err
}

func (d *demo) verify() error {
	if _, err := d.must(d.bin, "verify", d.stick(), "--key", d.pub()); err != nil {
		return err
	}
	_, err := d.must(d.bin, "inspect", d.stick(), "--key", d.pub())
	return err
}

// tamper flips one byte in each kind of file of the stick, in turn.
func (d *demo) tamper() error {
	top := filepath.Join(d.stick(), "clawbox")
	parts, err := filepath.Glob(filepath.Join(top, "parts", "part-*"))
	if err != nil || len(parts) == 0 {
		return fmt.Errorf("no parts below %s (%v)", top, err)
	}
	for _, path := range []string{parts[len(parts)-1], filepath.Join(top, "index.json"), filepath.Join(top, "release.note")} {
		restore, err := flip(path)
		if err != nil {
			return err
		}
		d.say("one byte flipped in %s:", filepath.Base(path))
		err = d.mustFail(3, filepath.Base(path), d.bin, "verify", d.stick(), "--key", d.pub())
		if err == nil {
			err = d.mustFail(3, filepath.Base(path), d.bin, "--root", d.host, "install", d.stick(), "--key", d.pub(), "--answers", d.answersFile(), "--deep")
		}
		if err := restore(); err != nil {
			return err
		}
		if err != nil {
			return err
		}
	}
	left, err := os.ReadDir(d.host)
	if err != nil || len(left) != 1 {
		return fmt.Errorf("a refused install left %v below the host's root (%v)", left, err)
	}
	d.say("nothing was installed: the host's root is empty")
	return nil
}

// flip inverts the byte in the middle of a file, and returns how to undo it.
func flip(path string) (restore func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	at := st.Size() / 2
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return nil, err
	}
	invert := func() error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		b[0] = ^b[0]
		_, err = f.WriteAt(b[:], at)
		return err
	}
	return invert, invert()
}

// sizeOf adds up a file or a folder, for people.
func sizeOf(path string) string {
	var n int64
	filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		st, err := e.Info()
		if err == nil {
			n += st.Size()
		}
		return err
	})
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}

// contains says whether every word stands in s.
func contains(s string, words ...string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}
