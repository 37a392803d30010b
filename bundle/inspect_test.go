package bundle

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/bundle/manifest"
)

func TestInspect(t *testing.T) {
	out, trust := demo(t)
	info, err := Inspect(manifest.Trust{}, out)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := info.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"demo 0.1.0 (sequence 3)", "SIGNATURE NOT CHECKED", "tiny", "MIT", "not stated", "bin/clawbox", "linux/amd64", "present", "acme+"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in:\n%s", want, b.String())
		}
	}
	if info, err = Inspect(trust, out); err != nil || !info.Verified || !slices.Equal(info.Signers, []string{"acme"}) {
		t.Errorf("with a key: %+v, %v", info, err)
	}
	_, stranger := newSigner(t, "bob")
	if _, err := Inspect(stranger, out); !errors.Is(err, manifest.ErrUntrusted) {
		t.Errorf("with another key: %v, want ErrUntrusted", err)
	}
	os.Remove(filepath.Join(out, topDir, partsDir, "part-0002"))
	os.Truncate(filepath.Join(out, topDir, partsDir, "part-0003"), 7)
	info, err = Inspect(trust, out)
	if err != nil || info.Parts[1].State() != "MISSING" || !strings.Contains(info.Parts[2].State(), "got 7 bytes, want 1048576") {
		t.Errorf("got %+v, %v", info.Parts, err)
	}
}
