package bundle

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

const formatPage = "../docs/bundle-format.md"

// tags adds the JSON names of a struct and of those in it.
func tags(t reflect.Type, out map[string]bool) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[v1.Hash]() || !strings.Contains(t.PkgPath(), "/bundle/") {
		return
	}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		out[name] = true
		tags(t.Field(i).Type, out)
	}
}

var (
	fieldTable = regexp.MustCompile(`(?m)^\| field[^|\n]*\|[^\n]*\n\|[-|]+\|\n((?:\|[^\n]*\n)+)`)
	sizeTable  = regexp.MustCompile(`(?m)^\| what \| bytes at most \|\n\|[-|]+\|\n((?:\|[^\n]*\n)+)`)
	quotedName = regexp.MustCompile("`([A-Za-z0-9]+)`")
)

// TestFormatFields: the page lists every field of the two signed files and of a
// root, and no field that they don't have.
func TestFormatFields(t *testing.T) {
	page := string(read(t, formatPage))
	want := map[string]bool{}
	for _, v := range []any{manifest.Release{}, manifest.Index{}, manifest.Root{}} {
		tags(reflect.TypeOf(v), want)
	}
	got := map[string]bool{}
	for _, table := range fieldTable.FindAllStringSubmatch(page, -1) {
		for row := range strings.Lines(table[1]) {
			for _, q := range quotedName.FindAllStringSubmatch(strings.Split(row, "|")[1], -1) {
				got[q[1]] = true
			}
		}
	}
	if len(want) < 30 || len(got) < 30 {
		t.Fatalf("read %d fields of the code and %d of %s; did a form change?", len(want), len(got), formatPage)
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !got[name] {
			t.Errorf("%s has no row for the field %q: say in its tables what it means", formatPage, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if !want[name] {
			t.Errorf("%s has a row for the field %q, which no file has", formatPage, name)
		}
	}
	for kind := range manifest.Kinds {
		if !strings.Contains(page, "`"+kind+"`") {
			t.Errorf("%s doesn't name the kind %q", formatPage, kind)
		}
	}
}

// TestFormatSizes: the page's sizes are the code's.
func TestFormatSizes(t *testing.T) {
	table := sizeTable.FindStringSubmatch(string(read(t, formatPage)))
	if table == nil {
		t.Fatalf("%s has no table of sizes", formatPage)
	}
	var got []string
	for row := range strings.Lines(table[1]) {
		cells := strings.Split(row, "|")
		got = append(got, strings.Fields(cells[2])[0])
	}
	var want []string
	for _, n := range []int64{manifest.MaxNote, manifest.MaxIndex, manifest.MaxRoot, manifest.MaxRoots, manifest.MaxPart, manifest.ChunkSize, 256, content.MaxRedo} {
		want = append(want, fmt.Sprint(n))
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s says %q, the code %q", formatPage, got, want)
	}
	if sum := int64(manifest.MaxNote + manifest.MaxIndex + manifest.MaxRoot*manifest.MaxRoots); sum != 16<<20 {
		t.Errorf("note, index and roots are %d bytes, and the page says 16 MiB", sum)
	}
}

// gf multiplies in GF(2^8) with the polynomial of the page.
func gf(a, b byte) (p byte) {
	for ; b > 0; b >>= 1 {
		if b&1 == 1 {
			p ^= a
		}
		high := a&0x80 != 0
		if a <<= 1; high {
			a ^= 0x1d
		}
	}
	return p
}

// inverse finds a number's inverse by looking.
func inverse(a byte) byte {
	for b := 1; b < 256; b++ {
		if gf(a, byte(b)) == 1 {
			return byte(b)
		}
	}
	return 0
}

// solve finds x with x·T = v, T the first rows of V: so v·T⁻¹ is x.
func solve(n int, v []byte) []byte {
	m := make([][]byte, n) // column c of T, and v[c] behind it
	for c := range m {
		m[c] = make([]byte, n+1)
		for r := range n {
			m[c][r] = power(r, c)
		}
		m[c][n] = v[c]
	}
	for i := range n {
		k := i
		for m[k][i] == 0 {
			k++
		}
		m[i], m[k] = m[k], m[i]
		inv := inverse(m[i][i])
		for j := range m[i] {
			m[i][j] = gf(m[i][j], inv)
		}
		for r := range n {
			if f := m[r][i]; r != i {
				for j := range m[r] {
					m[r][j] ^= gf(f, m[i][j])
				}
			}
		}
	}
	x := make([]byte, n)
	for i := range x {
		x[i] = m[i][n]
	}
	return x
}

func power(r, c int) byte {
	p := byte(1)
	for range c {
		p = gf(p, byte(r))
	}
	return p
}

// TestFormatParity computes parity parts as the page says, by hand.
func TestFormatParity(t *testing.T) {
	s := newSite(t)
	s.opt.Parity = 2
	r := s.mustBuild(t)
	var parts [][]byte
	for _, p := range partsIn(t, s.opt.Out, partsDir) {
		parts = append(parts, read(t, p))
	}
	n := len(parts)
	for i, p := range partsIn(t, s.opt.Out, parityDir) {
		v := make([]byte, n)
		for c := range v {
			v[c] = power(n+i, c)
		}
		x, got := solve(n, v), read(t, p)
		if int64(len(got)) != r.Parity[i].Size {
			t.Fatalf("%s has %d bytes", p, len(got))
		}
		for o := 0; o < len(got); o += 997 {
			var want byte
			for k, d := range parts {
				if o < len(d) {
					want ^= gf(x[k], d[o])
				}
			}
			if got[o] != want {
				t.Fatalf("%s has %#02x at %d, by the page it is %#02x", p, got[o], o, want)
			}
		}
	}
}
