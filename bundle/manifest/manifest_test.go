package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func signer(t testing.TB, name string) Signer {
	t.Helper()
	skey, vkey, err := GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	if s.Key() != vkey {
		t.Fatalf("vkey from skey is %s, want %s", s.Key(), vkey)
	}
	return s
}

func trust(t *testing.T, n int, ss ...Signer) Trust {
	t.Helper()
	var keys []string
	for _, s := range ss {
		keys = append(keys, s.Key())
	}
	tr, err := NewTrust(n, keys...)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func digest(s string) v1.Hash { return Sum(sha256.Sum256([]byte(s))).Digest() }

// sample is a small, valid release with its index.
func sample(t testing.TB) (Release, []byte) {
	t.Helper()
	blobs := []Blob{
		{Digest: digest("root"), Size: 400},
		{Digest: digest("layer"), Size: ChunkSize + 1, Chunks: make([]Mark, 2), States: make([]content.State, 1)},
		{Digest: digest(""), Size: 0},
	}
	at, parts := Lay([]int64{400, ChunkSize + 1, 0}, 3<<20)
	for i := range blobs {
		blobs[i].Part, blobs[i].Offset = at[i].Part, at[i].Offset
	}
	x, err := EncodeIndex(Index{Format: IndexFormat, Blobs: blobs})
	if err != nil {
		t.Fatal(err)
	}
	r := Release{
		Format: ReleaseFormat, Name: "demo", Version: "1.2.3-rc.1+7", Sequence: 7,
		Created: time.Date(2025, 3, 4, 5, 6, 7, 0, time.UTC), ChunkSize: ChunkSize,
		Items: []Item{{
			Name: "clawbox", Kind: "file", Ref: "clawbox:1.2.3", Path: "bin/clawbox", Mode: "0755", TotalSize: 400 + ChunkSize + 1,
			Licence: "Apache-2.0 <x>", Descriptor: v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: digest("root"), Size: 400, ArtifactType: "application/vnd.clawbox.file.v1"},
		}},
	}
	for i, n := range parts {
		r.Parts = append(r.Parts, Part{Name: PartName(i + 1), Size: n})
	}
	r.Index = File{Size: int64(len(x)), SHA256: sha256.Sum256(x)}
	return r, x
}

func TestSignOpen(t *testing.T) {
	a, b := signer(t, "acme"), signer(t, "backup")
	r, x := sample(t)
	msg, err := Sign(r, a, b)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := Sign(r, a, b); !bytes.Equal(msg, again) {
		t.Error("signing twice gives different bytes")
	}
	for _, c := range []struct {
		name  string
		trust Trust
		names []string
		err   error
	}{
		{"one of two keys", trust(t, 1, a), []string{"acme"}, nil},
		{"the other", trust(t, 1, b), []string{"backup"}, nil},
		{"both needed", trust(t, 2, a, b), []string{"acme", "backup"}, nil},
		{"two of three", trust(t, 2, a, b, signer(t, "carol")), []string{"acme", "backup"}, nil},
		{"stranger", trust(t, 1, signer(t, "acme")), nil, ErrUntrusted},
		{"two needed, one here", trust(t, 2, a, signer(t, "carol")), nil, ErrUntrusted},
		{"nobody", Trust{}, nil, ErrUntrusted},
	} {
		got, names, err := c.trust.Open(msg)
		if !errors.Is(err, c.err) || !slices.Equal(names, c.names) {
			t.Errorf("%s: got %v, %v; want %v, %v", c.name, names, err, c.names, c.err)
		}
		if err == nil && got.Sequence != 7 {
			t.Errorf("%s: got %+v", c.name, got)
		}
		if err == nil {
			if _, err := got.OpenIndex(x); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
	if got, sigs, err := Unverified(msg); err != nil || got.Name != "demo" || len(sigs) != 2 || sigs[1].Name != "backup" {
		t.Errorf("Unverified: %v, %v, %v", got.Name, sigs, err)
	}
}

// TestEveryFlip: no bit of release.note can change, not even in the lines of
// signers whom the host doesn't know.
func TestEveryFlip(t *testing.T) {
	a, b := signer(t, "acme"), signer(t, "backup")
	r, _ := sample(t)
	msg, err := Sign(r, a, b)
	if err != nil {
		t.Fatal(err)
	}
	for _, tr := range []Trust{trust(t, 1, a), trust(t, 2, a, b)} {
		for i := range msg {
			for bit := range 8 {
				bad := bytes.Clone(msg)
				bad[i] ^= 1 << bit
				if _, _, err := tr.Open(bad); err == nil {
					t.Fatalf("byte %d bit %d (%q) may change", i, bit, msg[i])
				}
			}
		}
	}
	for i := range msg {
		if _, _, err := trust(t, 1, a).Open(msg[:i]); err == nil {
			t.Fatalf("cut at %d is accepted", i)
		}
	}
}

// TestSignatureLines: there is one set of lines for a release.
func TestSignatureLines(t *testing.T) {
	a, b, stranger := signer(t, "acme"), signer(t, "backup"), signer(t, "mallory")
	r, _ := sample(t)
	msg, err := Sign(r, a, b)
	if err != nil {
		t.Fatal(err)
	}
	text, sigs, _ := strings.Cut(string(msg), "\n\n")
	text += "\n\n"
	ls := strings.SplitAfter(sigs, "\n")
	la, lb := ls[0], ls[1]
	other, err := Sign(r, stranger)
	if err != nil {
		t.Fatal(err)
	}
	lm := string(other[bytes.LastIndex(other, []byte("\n\n"))+2:])
	for name, bad := range map[string]string{
		"swapped": text + lb + la, "one left out": text + la, "doubled": text + la + lb + lb,
		"stranger's too": text + la + lb + lm, "stranger's instead": text + la + lm, "none": text,
		"blank line": text + la + "\n" + lb, "trailing": text + la + lb + "\n", "space": text + la + strings.TrimSuffix(lb, "\n") + " \n",
		"leading": "\n" + text + la + lb, "crlf": strings.ReplaceAll(string(msg), "\n", "\r\n"),
	} {
		if _, _, err := trust(t, 1, a).Open([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestCanonical: a signature over anything but the canonical text doesn't help.
func TestCanonical(t *testing.T) {
	a := signer(t, "acme")
	r, _ := sample(t)
	r.Roles.Release = Role{Keys: []string{a.Key()}, Threshold: 1}
	good, err := encodeRelease(r)
	if err != nil {
		t.Fatal(err)
	}
	sub := func(old, new string) string {
		s := strings.Replace(string(good), old, new, 1)
		if s == string(good) {
			t.Fatalf("%q is not in the release", old)
		}
		return s
	}
	for name, text := range map[string]string{
		"unknown field": sub(`"name": "demo",`, `"name": "demo", "evil": 1,`),
		"duplicate key": sub(`"sequence": 7,`, `"sequence": 7,`+"\n"+`  "sequence": 9,`),
		"other case":    sub(`"sequence"`, `"Sequence"`),
		"number form":   sub(`"sequence": 7`, `"sequence": 7e0`),
		"null":          sub(`"sequence": 7`, `"sequence": null`),
		"trailing":      string(good) + "{}\n",
		"escape":        sub(`"demo"`, `"\u0064emo"`),
		"upper hex":     sub(r.Index.SHA256.String(), strings.ToUpper(r.Index.SHA256.String())),
		"time zone":     sub("05:06:07Z", "05:06:07+00:00"),
		"spaces":        sub("  ", "   "),
		"not json":      "hello\n",
		"empty":         "\n",
	} {
		if _, err := decodeRelease([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := decodeRelease(good); err != nil {
		t.Error(err)
	}
}

func TestReleaseRules(t *testing.T) {
	a := signer(t, "acme")
	for name, change := range map[string]func(*Release){
		"format":            func(r *Release) { r.Format = "clawbox.io/release/v2" },
		"name traversal":    func(r *Release) { r.Name = "../x" },
		"version":           func(r *Release) { r.Version = "1.2" },
		"v-version":         func(r *Release) { r.Version = "v1.2.3" },
		"sequence":          func(r *Release) { r.Sequence = 0 },
		"created fraction":  func(r *Release) { r.Created = r.Created.Add(1) },
		"created zone":      func(r *Release) { r.Created = r.Created.In(time.FixedZone("x", 3600)) },
		"chunk size":        func(r *Release) { r.ChunkSize = 1 },
		"index size":        func(r *Release) { r.Index.Size = MaxIndex + 1 },
		"no parts":          func(r *Release) { r.Parts = nil },
		"part name":         func(r *Release) { r.Parts[0].Name = "../part-0001" },
		"part order":        func(r *Release) { r.Parts[0].Name, r.Parts[1].Name = r.Parts[1].Name, r.Parts[0].Name },
		"part size":         func(r *Release) { r.Parts[0].Size = MaxPart + 1 },
		"negative part":     func(r *Release) { r.Parts[0].Size = -1 },
		"no items":          func(r *Release) { r.Items = nil },
		"kind":              func(r *Release) { r.Items[0].Kind = "virus" },
		"same name":         func(r *Release) { r.Items = append(r.Items, r.Items[0]) },
		"absolute path":     func(r *Release) { r.Items[0].Path = "/etc/passwd" },
		"path up":           func(r *Release) { r.Items[0].Path = "bin/../../x" },
		"path backslash":    func(r *Release) { r.Items[0].Path = `bin\x` },
		"path control":      func(r *Release) { r.Items[0].Path = "bin/\x1b[2J" },
		"path empty":        func(r *Release) { r.Items[0].Path = "" },
		"setuid":            func(r *Release) { r.Items[0].Mode = "4755" },
		"world-writable":    func(r *Release) { r.Items[0].Mode = "0777" },
		"mode form":         func(r *Release) { r.Items[0].Mode = "755" },
		"image with a path": func(r *Release) { r.Items[0].Kind = "image" },
		"ref":               func(r *Release) { r.Items[0].Ref = "a b" },
		"licence":           func(r *Release) { r.Items[0].Licence = "\x1b]0;x\a" },
		"platform":          func(r *Release) { r.Items[0].Platforms = []string{"linux"} },
		"descriptor data":   func(r *Release) { r.Items[0].Descriptor.Data = []byte("x") },
		"descriptor sha512": func(r *Release) { r.Items[0].Descriptor.Digest.Algorithm = "sha512" },
		"root too large":    func(r *Release) { r.Items[0].Descriptor.Size = maxRoot + 1 },
		"total size":        func(r *Release) { r.Items[0].TotalSize = 1 << 40 },
		"nested path": func(r *Release) {
			it := r.Items[0]
			it.Name, it.Ref, it.Path = "b", "b:1", "bin/clawbox/x"
			r.Items = append(r.Items, it)
		},
		"threshold": func(r *Release) { r.Roles.Release = Role{Keys: []string{a.Key()}, Threshold: 2} },
		"key twice": func(r *Release) {
			r.Roles.Release = Role{Keys: []string{a.Key(), a.Key()}, Threshold: 2}
		},
		"not a key": func(r *Release) { r.Roles.Release = Role{Keys: []string{"x"}, Threshold: 1} },
	} {
		r, _ := sample(t)
		change(&r)
		if _, err := Sign(r, a); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestIndexRules(t *testing.T) {
	for name, change := range map[string]func(*Release, *Index){
		"format":         func(_ *Release, x *Index) { x.Format = "" },
		"overlap":        func(_ *Release, x *Index) { x.Blobs[1].Offset-- },
		"gap":            func(_ *Release, x *Index) { x.Blobs[1].Offset++ },
		"part":           func(_ *Release, x *Index) { x.Blobs[1].Part = 2 },
		"missing blob":   func(_ *Release, x *Index) { x.Blobs = x.Blobs[:1] },
		"no blob":        func(_ *Release, x *Index) { x.Blobs = nil },
		"negative":       func(_ *Release, x *Index) { x.Blobs[2].Size = -1 },
		"overflow":       func(_ *Release, x *Index) { x.Blobs[2].Size = 1<<63 - 1 },
		"twice":          func(_ *Release, x *Index) { x.Blobs[2].Digest = x.Blobs[0].Digest },
		"chunk missing":  func(_ *Release, x *Index) { x.Blobs[1].Chunks = x.Blobs[1].Chunks[:1] },
		"chunk extra":    func(_ *Release, x *Index) { x.Blobs[0].Chunks = make([]Mark, 1) },
		"state missing":  func(_ *Release, x *Index) { x.Blobs[1].States = nil },
		"state extra":    func(_ *Release, x *Index) { x.Blobs[0].States = make([]content.State, 1) },
		"base unnamed":   func(_ *Release, x *Index) { x.Blobs[0].Base, x.Blobs[0].Part = true, 0 },
		"items twice":    func(r *Release, x *Index) { x.Items = r.Items },
		"parts too long": func(r *Release, _ *Index) { r.Parts[1].Size++ },
		"part too many":  func(r *Release, _ *Index) { r.Parts = append(r.Parts, Part{Name: PartName(3), Size: 1}) },
		"item not there": func(r *Release, _ *Index) { r.Items[0].Descriptor.Digest = digest("else") },
		"item size":      func(r *Release, _ *Index) { r.Items[0].Descriptor.Size-- },
		"digest":         func(_ *Release, x *Index) { x.Blobs[0].Digest.Algorithm = "sha512" },
	} {
		r, b := sample(t)
		var x Index
		if err := json.Unmarshal(b, &x); err != nil {
			t.Fatal(err)
		}
		change(&r, &x)
		b, err := EncodeIndex(x)
		if err != nil {
			t.Fatal(err)
		}
		r.Index = File{Size: int64(len(b)), SHA256: sha256.Sum256(b)}
		if _, err := r.OpenIndex(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestIndexBytes(t *testing.T) {
	r, b := sample(t)
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if _, err := r.OpenIndex(bad); !errors.Is(err, ErrTampered) {
			t.Fatalf("byte %d: got %v, want ErrTampered", i, err)
		}
	}
	for _, n := range []int{0, len(b) - 1} {
		if _, err := r.OpenIndex(b[:n]); !errors.Is(err, ErrIncomplete) {
			t.Errorf("cut to %d: got %v, want ErrIncomplete", n, err)
		}
	}
	if _, err := r.OpenIndex(append(bytes.Clone(b), ' ')); !errors.Is(err, ErrTampered) {
		t.Errorf("grown: got %v, want ErrTampered", err)
	}
	for name, bad := range map[string][]byte{
		"space": append([]byte(" "), b...), "trailing": append(bytes.Clone(b), '\n'),
		"unknown": bytes.Replace(b, []byte(`"size"`), []byte(`"x":1,"size"`), 1),
		"twice":   bytes.Replace(b, []byte(`"size":400`), []byte(`"size":1,"size":400`), 1),
	} {
		r.Index = File{Size: int64(len(bad)), SHA256: sha256.Sum256(bad)} // signed so by a careless builder
		if _, err := r.OpenIndex(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestPlaces holds the layout against a walk block by block, and what a writer
// lays against what a reader wants.
func TestPlaces(t *testing.T) {
	for _, c := range []struct {
		sizes []int64
		part  int64
	}{
		{[]int64{5}, 5},
		{[]int64{5}, 2},
		{[]int64{2, 2, 2}, 2},
		{[]int64{0, 3, 0, 3, 0}, 3},
		{[]int64{1, 10, 1}, 4},
		{[]int64{4, 4}, 100},
		{[]int64{7, 0, 0}, 7},
		{[]int64{5, Large, 7, Large - 1, 1, Large + 1, 0}, 5 * Large},
		{[]int64{5, Large, Large + 3, 9}, Large},             // a part ends where a block does
		{[]int64{5, Large, Large + 3, Large, 9}, Large + 99}, // and within one
		{[]int64{Large + 90, Large, 2}, Large + 99},          // the gap ends with the part
		{[]int64{Large + 99, 0, Large}, Large + 99},
	} {
		at, parts := Lay(c.sizes, c.part)
		want, gaps, err := Places(c.sizes, parts)
		if err != nil || !slices.Equal(at, want) {
			t.Fatalf("%v: laid at %v, want %v, %v", c, at, want, err)
		}
		pos, between := int64(0), int64(0)
		for i, n := range c.sizes {
			for n >= Large && pos%c.part%Block != 0 {
				pos, between = pos+1, between+1
			}
			if got := int64(at[i].Part-1)*c.part + at[i].Offset; got != pos {
				t.Errorf("%v: blob %d at %+v, want byte %d", c, i, at[i], pos)
			}
			if n > 0 && at[i].Offset == c.part {
				t.Errorf("%v: blob %d begins behind the end of a part", c, i)
			}
			pos += n
		}
		for _, n := range parts {
			pos -= n
		}
		for _, g := range gaps {
			if between -= g.Length; g.Length >= Block || g.Offset+g.Length > parts[g.Part-1] {
				t.Errorf("%v: gap %+v", c, g)
			}
		}
		if pos != 0 || between != 0 {
			t.Errorf("%v: parts %v are %d bytes off, gaps %v %d bytes", c, parts, pos, gaps, between)
		}
		parts[len(parts)-1]++
		if _, _, err := Places(c.sizes, parts); err == nil {
			t.Errorf("%v: a part may be longer than its blobs", c)
		}
	}
}

func TestCheckSequence(t *testing.T) {
	for _, c := range []struct {
		installed, offered int64
		ok                 bool
	}{{0, 1, true}, {5, 6, true}, {5, 5, true}, {5, 4, false}} {
		if err := CheckSequence(c.installed, c.offered); (err == nil) != c.ok || !c.ok && !errors.Is(err, ErrRollback) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestKeyFiles(t *testing.T) {
	skey, vkey, err := GenerateKey("acme")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	s, err := LoadSigner(write("good.key", skey+"\n", 0o600))
	if err != nil || s.Key() != vkey {
		t.Fatalf("got %s, %v", s.Key(), err)
	}
	for name, p := range map[string]string{
		"group": write("group.key", skey, 0o640), "world": write("world.key", skey, 0o604),
		"public": write("public.key", vkey, 0o600), "directory": dir, "missing": filepath.Join(dir, "none"),
		"cut": write("cut.key", skey[:len(skey)-9], 0o600),
	} {
		_, err := LoadSigner(p)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), skey[len(skey)-30:len(skey)-10]) {
			t.Errorf("%s: the error shows the key", name)
		}
	}
	for _, mode := range []os.FileMode{0o600, 0o644} {
		_, err := LoadSigner(write("wrong.pub", "# ours\n"+vkey+"\n", mode))
		if err == nil || !strings.Contains(err.Error(), "is a public key: want the signing key") || strings.Contains(err.Error(), "chmod") {
			t.Errorf("public key of mode %o as signer: %v", mode, err)
		}
	}
	tr, err := LoadTrust(write("a.pub", "# ours\n\n"+vkey+"\n", 0o644))
	if err != nil || !slices.Equal(tr.Keys(), []string{vkey}) || tr.Threshold() != 1 {
		t.Errorf("got %v, %v", tr, err)
	}
	for name, ps := range map[string][]string{
		"world-writable": {write("w.pub", vkey, 0o666)}, "empty": {write("e.pub", "#\n", 0o644)}, "none": nil,
		"secret": {write("s.pub", skey, 0o600)}, "twice": {write("t.pub", vkey+"\n"+vkey+"\n", 0o644)},
	} {
		if _, err := LoadTrust(ps...); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), skey[len(skey)-30:len(skey)-10]) {
			t.Errorf("%s: the error shows a secret key", name)
		}
	}
}
