package deb

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/ulikunitz/xz"
)

// TestCompare: the orders of deb-version(7) and dpkg's own t-version.c.
func TestCompare(t *testing.T) {
	ordered := [][]string{
		{"0~~", "0~~a", "0~", "0", "0a"},
		{"1.0~beta1~svn1245", "1.0~beta1", "1.0"},
		{"1.2", "1.2.1", "1.10", "1a", "1+", "1.", "2"},
		{"1.0-1", "1.0-1ubuntu1", "1.0-1.1", "1.0-2", "1.0-10"},
		{"9.9", "1:0", "1:0-1", "2:0"},
		{"5.15.0-100.110", "5.15.0-101.111"},
		{"535.104-0ubuntu0.22.04.1", "535.104.05-0ubuntu0.22.04.1", "550.54.15-0ubuntu1"},
		{"1.0", "1.0-0+b1", "1.0-1~bpo12+1", "1.0-1"},
	}
	ordered[2] = []string{"1", "1a", "1+", "1.2", "1.2.1", "1.10", "2"}
	for _, vs := range ordered {
		for i, a := range vs {
			for j, b := range vs {
				va, err := ParseVersion(a)
				vb, err2 := ParseVersion(b)
				if err != nil || err2 != nil {
					t.Fatal(err, err2)
				}
				if got, want := va.Compare(vb), sign(i-j); got != want {
					t.Errorf("%s and %s: got %d, want %d", a, b, got, want)
				}
			}
		}
	}
	for _, p := range [][2]string{{"1.0", "1.0-0"}, {"0:1.0", "1.0"}, {"1.00", "1.0"}, {"1.0-01", "1.0-1"}, {"1.0a", "1.0a0"}} {
		a, _ := ParseVersion(p[0])
		b, _ := ParseVersion(p[1])
		if a.Compare(b) != 0 || b.Compare(a) != 0 {
			t.Errorf("%s and %s differ", p[0], p[1])
		}
	}
	for _, bad := range []string{"", "a", "-1", "1-", "1:", ":1", "a:1", "1 2", "1_2", "-1:1", "1.0-1:2é", "99999999999:1", "v1"} {
		if v, err := ParseVersion(bad); err == nil {
			t.Errorf("%q parsed as %+v", bad, v)
		}
	}
}

func FuzzCompare(f *testing.F) {
	f.Add("1.0~rc1-1", "1:2+dfsg-3ubuntu1")
	f.Fuzz(func(t *testing.T, a, b string) {
		x, err := ParseVersion(a)
		y, err2 := ParseVersion(b)
		if err == nil && err2 == nil && (x.Compare(y) != -y.Compare(x) || x.Compare(x) != 0) {
			t.Fatalf("%q and %q: %d, %d", a, b, x.Compare(y), y.Compare(x))
		}
	})
}

func TestParseRelations(t *testing.T) {
	rs, err := ParseRelations("libc6 (>= 2.34), libfoo:any (<<2.0~) | bar, \n baz (= 1:1-1), old (< 3)")
	if err != nil || fmt.Sprint(rs) != "[libc6 (>= 2.34) libfoo (<< 2.0~) | bar baz (= 1:1-1) old (<= 3)]" {
		t.Errorf("got %v, %v", rs, err)
	}
	for _, bad := range []string{"Big", "a", "ok (~ 1)", "ok (>= )", "ok (>= x y)", "ok | ", "ok (>= _)"} {
		if rs, err := ParseRelations(bad); err == nil {
			t.Errorf("%q: got %v", bad, rs)
		}
	}
}

func TestStanzas(t *testing.T) {
	var got []Stanza
	read := func(s string) error {
		got = nil
		return Stanzas(strings.NewReader(s), func(st Stanza) error { got = append(got, st); return nil })
	}
	if err := read("# c\nA: 1\nB:\n x\n .\n\ty\n\n\n  \nA: 2"); err != nil || len(got) != 2 || got[0]["b"] != "\nx\n.\ny" || got[1]["a"] != "2" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, bad := range []string{" x", "A: 1\nA: 2", "A: 1\na: 2", "no colon", "A B: 1", ": x", strings.Repeat("x", maxLine+1)} {
		if err := read(bad); err == nil {
			t.Errorf("%.20q: no error", bad)
		}
	}
}

func FuzzStanzas(f *testing.F) {
	f.Add([]byte("Package: a\nDepends: b (>= 1) | c, d\nProvides: e (= 1)\n\nPackage: b\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		Stanzas(bytes.NewReader(b), func(s Stanza) error {
			ParseRelations(s["depends"])
			parseProvides(s["provides"])
			NewIndex("amd64").add(Source{}, s)
			return nil
		})
		ReadManifest(bytes.NewReader(b))
		Source{Suite: "x"}.parseRelease(b)
	})
}

// endless is a source of bytes that is the same in every process.
type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

// FuzzInRelease: of what comes as InRelease nothing is taken but what the key
// signed, and a keyring that is no keyring is an error.
func FuzzInRelease(f *testing.F) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	key, err := openpgp.NewEntity("archive", "", "a@example", &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA, Rand: endless(7), Time: func() time.Time { return at },
	})
	if err != nil {
		f.Fatal(err)
	}
	a := &archive{files: map[string][]byte{}, key: key}
	a.sign(f, "x", "Suite: stable\nSHA256:\n")
	s := Source{Suite: "stable", Keys: a.public(f)}
	good := a.files["x"]
	if text, err := s.verify(good); err != nil || !strings.HasPrefix(string(text), "Suite: stable") {
		f.Fatalf("%q, %v", text, err)
	}
	f.Add(good)
	f.Add(append([]byte("Suite: other\n"), good...))
	f.Add(bytes.Replace(good, []byte("stable"), []byte("- stable"), 1))
	f.Fuzz(func(t *testing.T, raw []byte) {
		text, err := s.verify(raw)
		if err == nil && strings.TrimSpace(string(text)) != "Suite: stable\nSHA256:" {
			t.Errorf("taken: %q", text)
		}
		keyring(raw)
	})
}

// archive is a synthetic repository: URLs and what lies there.
type archive struct {
	files map[string][]byte
	key   *openpgp.Entity
	asked []string
}

func (a *archive) fetch(_ context.Context, url string) (io.ReadCloser, error) {
	a.asked = append(a.asked, url)
	b, ok := a.files[url]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (a *archive) public(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := a.key.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sign puts InRelease of the text into the archive.
func (a *archive) sign(t testing.TB, at, text string) {
	t.Helper()
	var b bytes.Buffer
	w, err := clearsign.Encode(&b, a.key.PrivateKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, text)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	a.files[at] = b.Bytes()
}

const home = "http://deb.example/debian"

// fast keys: RSA's take seconds.
var fast = &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA}

// newArchive publishes Packages text in suite "stable", component main.
func newArchive(t *testing.T, packages string) (*archive, Source) {
	t.Helper()
	key, err := openpgp.NewEntity("archive", "", "a@example", fast)
	if err != nil {
		t.Fatal(err)
	}
	a := &archive{files: map[string][]byte{}, key: key}
	var gz, xzb bytes.Buffer
	g := gzip.NewWriter(&gz)
	io.WriteString(g, packages)
	g.Close()
	x, err := xz.NewWriter(&xzb)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(x, packages)
	x.Close()
	text := "Suite: stable\nCodename: bookworm\nDate: Sat, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
	for ext, b := range map[string][]byte{"": []byte(packages), ".gz": gz.Bytes(), ".xz": xzb.Bytes()} {
		name := "main/binary-amd64/Packages" + ext
		a.files[home+"/dists/stable/"+name] = b
		text += fmt.Sprintf(" %x %d %s\n", sha256.Sum256(b), len(b), name)
	}
	a.sign(t, home+"/dists/stable/InRelease", text)
	return a, Source{URI: home, Suite: "stable", Components: []string{"main"}, Keys: a.public(t)}
}

// pkg writes a paragraph; fields are "Depends: x" and so on.
func pkg(name, version string, fields ...string) string {
	return fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: amd64\nFilename: pool/%s_%s.deb\nSize: 100\nSHA256: %x\n%s\n\n",
		name, version, name, version, sha256.Sum256([]byte(name+version)), strings.Join(fields, "\n"))
}

func index(t *testing.T, packages ...string) *Index {
	t.Helper()
	a, s := newArchive(t, strings.Join(packages, ""))
	x := NewIndex("amd64")
	if err := x.Read(t.Context(), s, a.fetch); err != nil {
		t.Fatal(err)
	}
	return x
}

func TestClosure(t *testing.T) {
	x := index(t,
		pkg("app", "2.0", "Depends: libc6 (>= 2.34), mta | mail-server, libx (<< 2)", "Pre-Depends: base", "Recommends: nice, rare"),
		pkg("app", "1.0"),
		pkg("libc6", "2.36"), pkg("base", "1"), pkg("nice", "1"),
		pkg("libx", "1.5", "Depends: app"), pkg("libx", "2.0"),
		pkg("postfix", "3", "Provides: mail-server", "Priority: extra"), pkg("exim", "4", "Provides: mail-server (= 4)", "Priority: optional"),
		pkg("other", "1", "Conflicts: base"), pkg("self", "1", "Provides: mail-server", "Conflicts: mail-server"),
		pkg("versioned", "1", "Depends: mail-server (>= 2)"), pkg("lost", "1", "Depends: nowhere | gone (>= 2)"),
		pkg("strict", "1", "Depends: libx (>= 2), app"), pkg("new-c", "1", "Depends: libc6 (>= 2.36)"),
		pkg("breaker", "1", "Breaks: old (<< 2)"), pkg("old", "1"), pkg("grudge", "1", "Conflicts: nice"),
	)
	for name, c := range map[string]struct {
		req  Request
		want string // packages, or an error
	}{
		"plain":               {Request{Packages: []string{"app"}}, "app=2.0 base=1 exim=4 libc6=2.36 libx=1.5"},
		"recommends":          {Request{Packages: []string{"app"}, Recommends: true}, "app=2.0 base=1 exim=4 libc6=2.36 libx=1.5 nice=1"},
		"pinned":              {Request{Packages: []string{"app=1.0"}}, "app=1.0"},
		"installed":           {Request{Packages: []string{"app"}, Installed: map[string]string{"libc6": "2.35", "base": "1", "postfix": "3"}}, "app=2.0 libx=1.5"},
		"too old":             {Request{Packages: []string{"new-c"}, Installed: map[string]string{"libc6": "2.35"}}, "libc6=2.36 new-c=1"},
		"asked, installed":    {Request{Packages: []string{"base"}, Installed: map[string]string{"base": "1"}}, ""},
		"versioned virtual":   {Request{Packages: []string{"versioned"}}, "exim=4 versioned=1"},
		"unversioned doesn't": {Request{Packages: []string{"versioned", "postfix"}}, "exim=4 postfix=3 versioned=1"},
		"virtual asked":       {Request{Packages: []string{"mail-server"}}, "exim=4"},
		"own conflict":        {Request{Packages: []string{"self"}}, "self=1"},
		"conflict":            {Request{Packages: []string{"other", "base"}}, "other 1 (for the request) is in conflict with base 1"},
		"virtual conflict":    {Request{Packages: []string{"self", "exim"}}, "is in conflict with mail-server, which exim 4 provides"},
		"conflict with host":  {Request{Packages: []string{"breaker"}, Installed: map[string]string{"old": "1"}}, "in conflict with old 1 of the target"},
		"host's conflict":     {Request{Packages: []string{"nice"}, Installed: map[string]string{"grudge": "1"}}, "grudge 1 of the target is in conflict with nice 1"},
		"breaks, upgraded":    {Request{Packages: []string{"breaker"}, Installed: map[string]string{"old": "2"}}, "breaker=1"},
		"missing":             {Request{Packages: []string{"lost"}}, "lost wants nowhere | gone (>= 2): no source has it"},
		"missing name":        {Request{Packages: []string{"nothing"}}, "the request wants nothing"},
		"missing version":     {Request{Packages: []string{"app=3"}}, "the sources have app 2.0, app 1.0"},
		"two versions":        {Request{Packages: []string{"strict"}}, "name the version that suits both"},
	} {
		p, err := x.Closure(c.req)
		var got []string
		for _, f := range p.Files {
			got = append(got, f.Name+"="+f.Version)
		}
		if err != nil {
			if !strings.Contains(err.Error(), c.want) || c.want == "" || strings.Contains(c.want, "=1") {
				t.Errorf("%s: %v, want %s", name, err, c.want)
			}
		} else if strings.Join(got, " ") != c.want {
			t.Errorf("%s: got %v, want %s", name, got, c.want)
		}
	}
	p, _ := x.Closure(Request{Packages: []string{"app"}, Recommends: true})
	if f := p.Files[0]; f.URL != home+"/pool/app_2.0.deb" || len(f.SHA256) != 64 || f.Size != 100 || p.Files[1].Why != "app" || p.Size() != 600 {
		t.Errorf("got %+v", p.Files)
	}
	if len(p.Notes) != 1 || !strings.Contains(p.Notes[0], "rare") {
		t.Errorf("notes %v", p.Notes)
	}
}

// TestArchiveIsHeld: whatever a mirror changes, nothing is taken from it.
func TestArchiveIsHeld(t *testing.T) {
	const at = home + "/dists/stable/"
	other, err := openpgp.NewEntity("somebody", "", "s@example", fast)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*archive, *Source)
		want   string
	}{
		"Packages changed": {func(a *archive, s *Source) { a.files[at+"main/binary-amd64/Packages.xz"][20] ^= 1 }, "InRelease says"},
		"Packages longer": {func(a *archive, s *Source) {
			a.files[at+"main/binary-amd64/Packages.xz"] = append(a.files[at+"main/binary-amd64/Packages.xz"], 0)
		}, "more than"},
		"text changed": {func(a *archive, s *Source) {
			a.files[at+"InRelease"] = bytes.Replace(a.files[at+"InRelease"], []byte("2026"), []byte("2027"), 1)
		}, "not signed by"},
		"text before": {func(a *archive, s *Source) {
			a.files[at+"InRelease"] = append([]byte("Suite: stable\n\n"), a.files[at+"InRelease"]...)
		}, "outside the signed message"},
		"text after":   {func(a *archive, s *Source) { a.files[at+"InRelease"] = append(a.files[at+"InRelease"], "Suite: x"...) }, "outside the signed message"},
		"other key":    {func(a *archive, s *Source) { a.key = other; a.sign(t, at+"InRelease", "Suite: stable\n") }, "not signed by"},
		"no keys":      {func(a *archive, s *Source) { s.Keys = nil }, "no keys"},
		"garbage keys": {func(a *archive, s *Source) { s.Keys = []byte("x") }, "keyring"},
		"not signed":   {func(a *archive, s *Source) { a.files[at+"InRelease"] = []byte("Suite: stable\n") }, "not clear-signed"},
		"other suite": {func(a *archive, s *Source) {
			a.sign(t, at+"InRelease", "Suite: oldstable\nCodename: bullseye\nSHA256:\n")
		}, "serves another release"},
		"stale": {func(a *archive, s *Source) {
			a.sign(t, at+"InRelease", "Suite: stable\nValid-Until: Sat, 01 Jan 2000 00:00:00 UTC\nSHA256:\n")
		}, "was valid until 2000-01-01"},
		"no sums":        {func(a *archive, s *Source) { a.sign(t, at+"InRelease", "Suite: stable\nMD5Sum:\n x 1 y\n") }, "lists no files"},
		"no component":   {func(a *archive, s *Source) { s.Components = []string{"contrib"} }, "no such component"},
		"nothing named":  {func(a *archive, s *Source) { s.Components = nil }, "no components"},
		"absent":         {func(a *archive, s *Source) { delete(a.files, at+"InRelease") }, "not exist"},
		"key from later": {func(a *archive, s *Source) { s.Now = time.Unix(1e9, 0) }, "not signed by"},
	} {
		t.Run(name, func(t *testing.T) {
			a, s := newArchive(t, pkg("app", "1"))
			c.change(a, &s)
			x := NewIndex("amd64")
			if err := x.Read(t.Context(), s, a.fetch); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if x.Len() != 0 {
				t.Errorf("took %d packages", x.Len())
			}
		})
	}
}

// TestPackings: the smallest form is asked for first, and another one when the
// mirror lacks it.
func TestPackings(t *testing.T) {
	a, s := newArchive(t, pkg("app", "1"))
	for _, ext := range []string{".xz", ".gz", ""} {
		x := NewIndex("amd64")
		a.asked = nil
		if err := x.Read(t.Context(), s, a.fetch); err != nil || x.Len() != 1 || !strings.HasSuffix(a.asked[len(a.asked)-1], "Packages"+ext) {
			t.Errorf("%v: %v", a.asked, err)
		}
		delete(a.files, home+"/dists/stable/main/binary-amd64/Packages"+ext)
	}
	if err := NewIndex("amd64").Read(t.Context(), s, a.fetch); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// TestFlat: NVIDIA's archives have no dists folder.
func TestFlat(t *testing.T) {
	a, s := newArchive(t, "")
	text := strings.Replace(pkg("nvidia-container-toolkit", "1.17.8-1"), "Filename: pool/", "Filename: ./", 1)
	const base = "http://deb.example/debian/ubuntu2204/x86_64"
	a.files[base+"/Packages"] = []byte(text)
	a.sign(t, base+"/InRelease", fmt.Sprintf("Origin: x\nSHA256:\n %x %d ./Packages\n", sha256.Sum256([]byte(text)), len(text)))
	s.Suite, s.Components = "ubuntu2204/x86_64/", nil
	x := NewIndex("amd64")
	if err := x.Read(t.Context(), s, a.fetch); err != nil {
		t.Fatal(err)
	}
	p, err := x.Closure(Request{Packages: []string{"nvidia-container-toolkit"}})
	if err != nil || p.Files[0].URL != base+"/nvidia-container-toolkit_1.17.8-1.deb" {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestHostilePackages(t *testing.T) {
	for name, text := range map[string]string{
		"path":    strings.Replace(pkg("app", "1"), "pool/", "../../x/", 1),
		"root":    strings.Replace(pkg("app", "1"), "pool/", "/x/", 1),
		"name":    pkg("../x", "1"),
		"version": pkg("app", "x y"),
		"size":    strings.Replace(pkg("app", "1"), "Size: 100", "Size: -1", 1),
		"depends": pkg("app", "1", "Depends: $(x)"),
		"no sum":  strings.Replace(pkg("app", "1"), "SHA256", "MD5sum", 1),
	} {
		a, s := newArchive(t, text)
		if err := NewIndex("amd64").Read(t.Context(), s, a.fetch); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestExpand(t *testing.T) {
	// The driver for a server with a signed kernel: no compiler is needed.
	got, err := Expand([]string{"nvidia-driver-{branch}-server-open", "linux-modules-nvidia-{branch}-server-open-{kernel}", "nvidia-container-toolkit"}, "5.15.0-100-generic", "550")
	want := []string{"nvidia-driver-550-server-open", "linux-modules-nvidia-550-server-open-5.15.0-100-generic", "nvidia-container-toolkit"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := Expand([]string{"linux-modules-{kernel}"}, "", "550"); err == nil {
		t.Error("no kernel, and no error")
	}
}

func TestReadManifest(t *testing.T) {
	for in, want := range map[string]string{
		"adduser\t3.118ubuntu5\nlibc6:amd64\t2.35-0ubuntu3\n# note\n\n":                                                       "map[adduser:3.118ubuntu5 libc6:2.35-0ubuntu3]",
		"Package: a\nStatus: install ok installed\nVersion: 1\n\nPackage: b\nStatus: deinstall ok config-files\nVersion: 1\n": "map[a:1]",
	} {
		if got, err := ReadManifest(strings.NewReader(in)); err != nil || fmt.Sprint(got) != want {
			t.Errorf("got %v, %v; want %s", got, err, want)
		}
	}
	for _, bad := range []string{"one", "a b c", "ok x", "UP 1"} {
		if got, err := ReadManifest(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: got %v", bad, got)
		}
	}
}
