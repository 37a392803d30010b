package backup

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/mod/sumdb/note"
)

// edited is what somebody can make of a backup that is not encrypted: files, by
// their names in the archive, and a list that fits them, but for change, signed by
// skey; "": the note stays what it was.
func edited(t *testing.T, b []byte, skey string, files map[string]string, change func(*About)) []byte {
	t.Helper()
	dir := t.TempDir()
	u, err := unpack(t.Context(), bytes.NewReader(b), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	about := u.about
	all := map[string]string{}
	for _, f := range about.Files {
		if _, ok := files[f.name()]; !ok {
			text, err := os.ReadFile(filepath.Join(dir, f.name()))
			if err != nil {
				t.Fatal(err)
			}
			all[f.name()] = string(text)
		}
	}
	maps.Copy(all, files)
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	put := func(name, text string) {
		err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(text))})
		if _, err2 := w.Write([]byte(text)); err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
	}
	about.Files = nil
	for name, text := range all {
		put(name, text)
		part, path, _ := strings.Cut(name, "/")
		sum := sha256.Sum256([]byte(text))
		about.Files = append(about.Files, File{Part: part, Path: path, Mode: 0o600, UID: -1, GID: -1, Size: int64(len(text)), SHA256: hex.EncodeToString(sum[:])})
	}
	change(&about)
	list, err := json.Marshal(about)
	if err != nil {
		t.Fatal(err)
	}
	put(aboutFile, string(list))
	if skey != "" {
		key, err := note.NewSigner(skey)
		if err != nil {
			t.Fatal(err)
		}
		if u.note, err = sign(list, key); err != nil {
			t.Fatal(err)
		}
	}
	put(noteFile, string(u.note))
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// A backup that is not encrypted can be edited by whoever has it. It must not say
// where its files go: its configuration names files of credentials anywhere.
func TestEdited(t *testing.T) {
	p := newPlace(t, t.TempDir())
	p.grow(3)
	anywhere := filepath.Join(t.TempDir(), "cron.d/mine")
	c := p.c
	c.Credentials = map[string]config.Credential{"gh": {KeyFile: anywhere}}
	text, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b, file := p.backup(), "etc/"+filepath.Base(p.l.Config())
	same := func(*About) {}
	for name, evil := range map[string][]byte{
		"a credential anywhere": edited(t, b, p.skey, map[string]string{file: string(text), "credentials" + anywhere: "* * * * * root id"}, same),
		"another key":           edited(t, b, p.skey, map[string]string{"keys/ledger.key": "mine"}, same),
		"a key of K3s's":        edited(t, b, p.skey, map[string]string{"node-keys/var/lib/rancher/k3s/server/token": "mine"}, same),
		"a layer of an image":   edited(t, b, p.skey, map[string]string{"state/layers/sha256-1/bin/sh": "mine"}, same),
		"an agent's disk":       edited(t, b, p.skey, map[string]string{"agents/ada/disk.img": "mine"}, same),
		"a claim of keys":       edited(t, b, p.skey, map[string]string{}, func(a *About) { a.Keys = true }),
		"a file on no list": edited(t, b, p.skey, map[string]string{"receipts/2.json": "{}"}, func(a *About) {
			for i := range a.Files {
				if a.Files[i].name() == "receipts/2.json" {
					a.Files[i] = a.Files[(i+1)%len(a.Files)]
				}
			}
		}),
	} {
		if err := p.restore(evil, RestoreOptions{}); err == nil || !strings.Contains(err.Error(), "take another copy") {
			t.Errorf("%s: got %v, want a refusal", name, err)
		}
		if exists(anywhere) {
			t.Errorf("%s: it wrote %s", name, anywhere)
		}
	}
	if err := p.restore(edited(t, b, p.skey, map[string]string{}, same), RestoreOptions{}); err != nil {
		t.Errorf("nothing edited: %v", err)
	}
}

// Only the ledger's key, or the one that the operator names, can have made a backup.
func TestSigned(t *testing.T) {
	p := newPlace(t, t.TempDir())
	p.grow(3)
	b := p.backup()
	mine, vkey, err := note.GenerateKey(rand.Reader, "clawbox/test") // the same name
	if err != nil {
		t.Fatal(err)
	}
	v, err := LoadKey(vkey)
	if err != nil {
		t.Fatal(err)
	}
	file := "etc/" + filepath.Base(p.l.Config())
	wider := map[string]string{file: strings.Replace(p.read(p.l.Config()), "holdSeconds: 120", "holdSeconds: 99", 1)}
	same := func(*About) {}
	for name, c := range map[string]struct {
		b    []byte
		o    RestoreOptions
		want string
	}{
		"edited, signed by another":          {edited(t, b, mine, wider, same), RestoreOptions{}, "not signed by a ledger that this host knows"},
		"edited, with the old note":          {edited(t, b, "", wider, same), RestoreOptions{}, "of another list"},
		"whole, but another's is wanted":     {b, RestoreOptions{Key: v}, "not signed by a ledger that this host knows"},
		"of a cluster, signed by another":    {edited(t, b, mine, wider, same), RestoreOptions{Cluster: true}, "not signed by a ledger that this host knows"},
		"looked at only, signed by another":  {edited(t, b, mine, wider, same), RestoreOptions{Check: true}, "not signed by a ledger that this host knows"},
		"to take a place, signed by another": {edited(t, b, mine, wider, same), RestoreOptions{Replace: true}, "--ledger-key"},
		"of an earlier form, without a note": {edited(t, b, p.skey, nil, func(a *About) { a.Format = "clawbox.io/backup/v1" }), RestoreOptions{}, "another version of clawbox"},
		"whole":                              {b, RestoreOptions{}, ""},
	} {
		err := p.restore(c.b, c.o)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
		if strings.Contains(p.read(p.l.Config()), "holdSeconds: 99") {
			t.Fatalf("%s: it was restored", name)
		}
	}
	if _, err := LoadKey(p.l.LedgerV()); err != nil {
		t.Error(err)
	}
	if _, err := LoadKey("clawbox/test+1234"); err == nil || !strings.Contains(err.Error(), "NAME+HASH+KEY") {
		t.Errorf("no key: %v", err)
	}
	p.put(p.l.LedgerV(), vkey+"\n")
	if _, err := Write(t.Context(), io.Discard, p.root, Options{}); err == nil || !strings.Contains(err.Error(), "not the other half") {
		t.Errorf("keys that do not fit: %v", err)
	}
}
