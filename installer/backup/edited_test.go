package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/klauspost/compress/zstd"
)

// edited is what somebody can make of a backup that is not encrypted: files, by
// their names in the archive, and a list that fits them, but for change.
func edited(t *testing.T, b []byte, files map[string]string, change func(*About)) []byte {
	t.Helper()
	dir := t.TempDir()
	about, err := unpack(t.Context(), bytes.NewReader(b), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range about.Files {
		if _, ok := files[f.name()]; !ok {
			text, err := os.ReadFile(filepath.Join(dir, f.name()))
			if err != nil {
				t.Fatal(err)
			}
			files[f.name()] = string(text)
		}
	}
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
	for name, text := range files {
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
		"a credential anywhere": edited(t, b, map[string]string{file: string(text), "credentials" + anywhere: "* * * * * root id"}, same),
		"another key":           edited(t, b, map[string]string{"keys/ledger.key": "mine"}, same),
		"a key of K3s's":        edited(t, b, map[string]string{"node-keys/var/lib/rancher/k3s/server/token": "mine"}, same),
		"a layer of an image":   edited(t, b, map[string]string{"state/layers/sha256-1/bin/sh": "mine"}, same),
		"an agent's disk":       edited(t, b, map[string]string{"agents/ada/disk.img": "mine"}, same),
		"a claim of keys":       edited(t, b, map[string]string{}, func(a *About) { a.Keys = true }),
		"a file on no list": edited(t, b, map[string]string{"receipts/2.json": "{}"}, func(a *About) {
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
	if err := p.restore(edited(t, b, map[string]string{}, same), RestoreOptions{}); err != nil {
		t.Errorf("nothing edited: %v", err)
	}
}
