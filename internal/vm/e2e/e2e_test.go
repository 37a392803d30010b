package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/policies"
)

// pcap writes frames of a type, each to a destination.
func pcap(typ uint16, to ...string) []byte {
	b := make([]byte, pcapHead)
	for _, t := range to {
		f := make([]byte, 60)
		copy(f, t)
		binary.BigEndian.PutUint16(f[12:], typ)
		h := make([]byte, frameHead)
		binary.LittleEndian.PutUint32(h[8:], uint32(len(f)))
		b = append(append(b, h...), f...)
	}
	return b
}

// Each frame counts, and one that was cut off, too.
func TestFrames(t *testing.T) {
	file := filepath.Join(t.TempDir(), "wire")
	two := pcap(0x0800, "\xff\xff\xff\xff\xff\xff", "\x52\x54\x00\x00\x00\x01")
	for _, c := range []struct {
		b    []byte
		want []string
	}{
		{nil, nil},
		{pcap(0), nil},
		{two, []string{"to ffffffffffff of type 0x0800, 60 bytes", "to 525400000001 of type 0x0800, 60 bytes"}},
		{two[:len(two)-50], []string{"to ffffffffffff of type 0x0800, 60 bytes", "a torn frame"}},
		{two[:pcapHead+5], []string{"a torn frame"}},
	} {
		if err := os.WriteFile(file, c.b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := frames(file); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("got %q, %v; want %q", got, err, c.want)
		}
	}
	if err := os.WriteFile(file, two[:10], 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := frames(file); err == nil {
		t.Errorf("ten bytes are taken for pcap: %q", got)
	}
}

// The power goes once, also where the text comes in pieces.
func TestTrigger(t *testing.T) {
	n := 0
	w := &trigger{text: "Keep the state", pull: func() { n++ }}
	for _, s := range []string{"done  Stop\ndone  Keep", " the st", "ate\n", "Keep the state"} {
		if _, err := w.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	if n != 1 || !w.pulled() {
		t.Errorf("pulled %d times", n)
	}
}

// The texts that go onto the sticks are what the product reads.
func TestTexts(t *testing.T) {
	if _, err := policies.Parse("busy.yaml", bytes.Replace([]byte(policy), []byte("%d"), []byte("32"), 1)); err != nil {
		t.Error(err)
	}
	r := bytes.ReplaceAll(bytes.ReplaceAll([]byte(recipe), []byte("%[1]d"), []byte("1")), []byte("%[2]s"), []byte("clawbox"))
	if _, err := bundle.ParseRecipe("recipe.yaml", r); err != nil {
		t.Error(err)
	}
}
