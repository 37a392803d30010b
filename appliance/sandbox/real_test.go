package sandbox

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// realWork is what agents do, per program: it must succeed under the profile
// "default" and print the line.
var realWork = map[string]struct{ script, want string }{
	"bash": {`echo $( (echo a; echo b) | { read x; echo "$x"; } ) > f; read y < f; trap : TERM; kill -TERM $$; echo "bash $y"`, "bash a"},
	"git":  {`git init -q --template= r; cd r; echo x > f; git add f; git -c user.name=a -c user.email=a@b commit -qm m; git log --format='git %s'`, "git m"},
	"curl": {`curl -s file:///etc/hostname | { read x; echo "curl $x"; }`, "curl agent"},
	"node": {`node -e '
		const {Worker} = require("worker_threads"), cp = require("child_process"), os = require("os"), fs = require("fs"), net = require("net");
		os.networkInterfaces(); os.cpus(); os.totalmem(); os.userInfo(); fs.watch("/workspace").close();
		let s = 0; for (let i = 0; i < 1e6; i++) s += i % 7;
		new WebAssembly.Module(new Uint8Array([0,97,115,109,1,0,0,0]));
		const out = cp.execFileSync("bash", ["-c", "echo child"]).toString().trim();
		new Worker("require(\"worker_threads\").parentPort.postMessage(\"worker\")", {eval: true}).on("message", m => {
			net.connect(9, "127.0.0.1").on("error", e => console.log("node", out, m, e.code));
		});'`, "node child worker ENETUNREACH"},
}

// TestRealPrograms runs this host's own shell, git, curl and Node.js, as far
// as it has them, with the libraries that they need.
func TestRealPrograms(t *testing.T) {
	b := newBench(t)
	root := filepath.Join(t.TempDir(), "root")
	for name, w := range realWork {
		t.Run(name, func(t *testing.T) {
			for _, n := range []string{"bash", name} {
				if err := bring(root, n); err != nil {
					t.Skipf("this host cannot lend its %s: %v", n, err)
				}
			}
			p := policy()
			p.Filesystem.Read = []string{"/usr", "/bin", "/lib", "/lib64", "/etc", "/proc", "/dev"}
			p.Process.Exec = []string{"/usr/", "/bin/"}
			p.Budgets.Memory, p.Budgets.Processes = 1<<30, 100
			out := &buffer{}
			box, err := b.l.Start(t.Context(), Spec{
				Name: "real-" + name, Policy: p, Image: Image{Ref: "host", Layers: []string{root}},
				Args: []string{"bash", "-c", w.script}, Stdout: out, Stderr: out,
			})
			if err != nil {
				t.Fatal(err)
			}
			if code, why := box.Wait(); code != 0 || strings.TrimSpace(out.String()) != w.want {
				t.Errorf("%d, %s, output %q; want %q", code, why, out, w.want)
			}
		})
	}
}

var library = regexp.MustCompile(`(/[^ ]+) \(0x`)

// bring puts a program of the host and its libraries below root.
func bring(root, name string) error {
	p, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	ldd, err := exec.Command("ldd", p).Output()
	if err != nil {
		return err
	}
	files := map[string]string{p: "/usr/bin/" + name}
	for _, m := range library.FindAllSubmatch(ldd, -1) {
		files[string(m[1])] = string(m[1])
	}
	for from, to := range files {
		if err := place(from, filepath.Join(root, to)); err != nil {
			return err
		}
	}
	return nil
}

// place links where it can and copies where it must: Node.js has 100 MB.
func place(from, to string) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.Link(from, to); err == nil || os.IsExist(err) {
		return nil
	}
	var b bytes.Buffer
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(&b, f); err != nil {
		return err
	}
	return os.WriteFile(to, b.Bytes(), 0o755)
}
