package licence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"MIT":                                  "MIT",
		"mit":                                  "MIT",
		"GPL-2.0+":                             "GPL-2.0+",
		"Apache-2.0+":                          "Apache-2.0",
		"MIT OR (Apache-2.0 AND BSD-3-Clause)": "Apache-2.0 BSD-3-Clause MIT",
		"Apache-2.0 WITH LLVM-exception":       "Apache-2.0",
		"GPL-2.0-only with Classpath-exception-2.0 or MIT or MIT": "GPL-2.0-only MIT",
		"LicenseRef-NVIDIA-AI-Enterprise":                         "LicenseRef-NVIDIA-AI-Enterprise",
		"DocumentRef-x:LicenseRef-y AND ((MIT))":                  "DocumentRef-x:LicenseRef-y MIT",
	} {
		got, err := Parse(in)
		if s := strings.Join(got, " "); err != nil || s != want {
			t.Errorf("%s: got %s, %v; want %s", in, s, err, want)
		}
	}
	for in, want := range map[string]string{
		"":                         "is missing",
		"Foo":                      "not on SPDX's list",
		"MIT OR":                   "is missing",
		"OR MIT":                   "not on SPDX's list",
		"MIT MIT":                  "after the end",
		"(MIT":                     "not closed",
		"MIT)":                     "after the end",
		"MIT WITH MIT":             "no exception",
		"MIT/Apache-2.0":           "no part",
		"MIT oR MIT":               "after the end",
		strings.Repeat("(", 300):   "at most 256",
		strings.Repeat("(", 250):   "is missing",
		"MIT, Apache-2.0":          "no part",
		"LicenseRef-":              "not on SPDX's list",
		"MIT WITH LicenseRef-mine": "no exception",
		"é":                        "no part",
	} {
		if _, err := Parse(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", in, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("MIT OR (Apache-2.0 WITH LLVM-exception)")
	f.Fuzz(func(t *testing.T, s string) { Parse(s) })
}

// TestList: every identifier of the list that the CycloneDX schema brings is in
// ours, and each is an expression.
func TestList(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/CycloneDX/cyclonedx-go").Output()
	if err != nil {
		t.Skipf("go list -m: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "schema", "spdx.schema.json"))
	if err != nil {
		t.Skip(err)
	}
	var schema struct{ Enum []string }
	if err := json.Unmarshal(b, &schema); err != nil || len(schema.Enum) < 400 {
		t.Fatalf("%d identifiers, %v", len(schema.Enum), err)
	}
	for _, id := range schema.Enum {
		if exceptions[strings.ToLower(id)] != "" {
			id = "MIT WITH " + id
		}
		if err := Check(id); err != nil {
			t.Error(err)
		}
	}
}

func TestRelease(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	eula, err := Accept("nim", "A. Operator", now, strings.NewReader("the terms"))
	if err != nil {
		t.Fatal(err)
	}
	own, err := ForOwnUse("nim", "A. Operator", now)
	if err != nil {
		t.Fatal(err)
	}
	terms := []Terms{
		{Item: "tool", Licence: "MIT", Redistributable: true},
		{Item: "nim", Licence: "LicenseRef-NVIDIA", EULA: eula.SHA256},
	}
	for _, c := range []struct {
		name string
		as   []Acceptance
		want []string
	}{
		{"nothing", nil, []string{"--accept-terms nim", "--for-own-use nim"}},
		{"eula only", []Acceptance{eula}, []string{"--for-own-use nim"}},
		{"own use only", []Acceptance{own}, []string{"--accept-terms nim"}},
		{"other text", []Acceptance{{Item: "nim", What: EULA, SHA256: strings.Repeat("0", 64), By: "x", When: own.When}, own}, []string{"--accept-terms nim"}},
		{"other item", []Acceptance{eula, {Item: "tool", What: OwnUse, By: "x", When: own.When}}, []string{"--for-own-use nim"}},
		{"both", []Acceptance{eula, own}, nil},
	} {
		err := Release(terms, c.as)
		var r *RefusedError
		if (err != nil) != errors.As(err, &r) || (err == nil) != (len(c.want) == 0) || r != nil && len(r.Missing) != len(c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		for _, w := range c.want {
			if !strings.Contains(fmt.Sprint(err), w) {
				t.Errorf("%s: got %v, want %q", c.name, err, w)
			}
		}
	}
	for name, bad := range map[string]Acceptance{
		"nobody":    {Item: "x", What: OwnUse, When: own.When},
		"no time":   {Item: "x", What: OwnUse, By: "x"},
		"what":      {Item: "x", What: "yes", By: "x", When: own.When},
		"no digest": {Item: "x", What: EULA, By: "x", When: own.When},
		"no item":   {What: OwnUse, By: "x", When: own.When},
		"control":   {Item: "x", What: OwnUse, By: "x\x1b[2J", When: own.When},
	} {
		if err := Release(nil, []Acceptance{bad}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := Accept("x", "y", now, strings.NewReader("")); err == nil {
		t.Error("accepted an empty text")
	}
	if err := Release([]Terms{{Item: "a", Licence: "Nonsense", Redistributable: true}}, nil); err == nil {
		t.Error("unknown licence released")
	}
}

// drawn makes n bytes of an alphabet, as a key's are. No secret is written out
// in this file, or scanners of code hosts would find it.
func drawn(r *rand.Rand, n int, alphabet string) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[r.IntN(len(alphabet))]
	}
	b[n/2] = '7'
	return string(b)
}

const (
	upper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	word  = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	hexa  = "0123456789abcdef"
)

// secrets makes one of each kind, by the rule that must find it.
func secrets(r *rand.Rand) map[string]string {
	b64 := word + "+/"
	return map[string]string{
		"NVIDIA API key":                     "nvapi-" + drawn(r, 64, word+"-_"),
		"Hugging Face token":                 "hf_" + drawn(r, 34, word),
		"AWS access key":                     "AKIA" + drawn(r, 16, upper),
		"GitHub token":                       "ghp_" + drawn(r, 36, word),
		"GitLab token":                       "glpat-" + drawn(r, 20, word),
		"Slack token":                        "xoxb-" + drawn(r, 12, "0123456789") + "-" + drawn(r, 24, word),
		"Google API key":                     "AIza" + drawn(r, 35, word),
		"Anthropic key":                      "sk-ant-" + drawn(r, 90, word),
		"OpenAI key":                         "sk-proj-" + drawn(r, 48, word),
		"npm token":                          "npm_" + drawn(r, 36, word),
		"private key":                        "-----BEGIN RSA PRIVATE KEY-----\n" + drawn(r, 64, b64) + "\n" + drawn(r, 64, b64) + "\n-----END RSA PRIVATE KEY-----",
		"age identity":                       "AGE-SECRET-KEY-1" + drawn(r, 58, upper),
		"signing key":                        "PRIVATE+KEY+release+" + drawn(r, 8, hexa) + "+" + drawn(r, 44, b64),
		"registry credentials":               `{"auths":{"nvcr.io":{"auth": "` + drawn(r, 40, b64) + `"}}}`,
		"NGC_API_KEY with a value":           `NGC_API_KEY="` + drawn(r, 84, word) + `"`,
		"AWS_SECRET_ACCESS_KEY with a value": "AWS_SECRET_ACCESS_KEY: " + drawn(r, 40, b64),
	}
}

// find scans text, given in pieces of n bytes.
func find(text []byte, n int) (out []Finding) {
	s := NewScanner(Place{"item", "file"}, func(f Finding) { out = append(out, f) })
	for p := range slices.Chunk(text, n) {
		s.Write(p)
	}
	s.Close()
	return out
}

func TestScannerFindsEachKind(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for rule, secret := range secrets(r) {
		for _, lead := range []int{0, 1, 2, 3, bufSize - window - 1, bufSize - window, bufSize - 20, bufSize + 5} {
			text := append(bytes.Repeat([]byte{'\n'}, lead), secret+"\n"...)
			got := find(text, 100<<10)
			if len(got) != 1 || got[0].Rule != rule || got[0].Offset < int64(lead) || got[0].Offset > int64(lead+50) {
				t.Errorf("%s after %d bytes: got %v", rule, lead, got)
			}
			if len(got) == 1 && (len(got[0].Fingerprint) != 16 || strings.Contains(got[0].String(), secret[len(secret)-8:])) {
				t.Errorf("%s: the finding tells the secret: %s", rule, got[0])
			}
		}
	}
}

// TestScannerAtEveryBoundary: where Write cuts makes no difference.
func TestScannerAtEveryBoundary(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	text := []byte("x = 'hf_" + drawn(r, 34, word) + "'; k=" + "AKIA" + drawn(r, 16, upper) + ";")
	want := find(text, len(text))
	if len(want) != 2 {
		t.Fatalf("got %v", want)
	}
	for n := 1; n < len(text); n++ {
		if got := find(text, n); !slices.Equal(got, want) {
			t.Errorf("pieces of %d: got %v", n, got)
		}
	}
	pad := bytes.Repeat([]byte("ab "), bufSize/2)
	for at := bufSize - 80; at < bufSize+80; at++ {
		if got := find(append(pad[:at:at], text...), 1<<20); len(got) != 2 || got[0].Offset != want[0].Offset+int64(at) {
			t.Errorf("at %d: got %v", at, got)
		}
	}
}

// TestScannerAtEveryAlignment: each kind of secret is found wherever it stands to
// the positions that are looked at, to the end of what is scanned of a buffer,
// and to the buffer's end.
func TestScannerAtEveryAlignment(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	pad := bytes.Repeat([]byte{'\n'}, bufSize+window)
	for rule, secret := range secrets(r) {
		reach := len(secret) + furthest
		for _, border := range []int{reach, bufSize - window, bufSize} {
			for lead := border - reach; lead <= border+furthest; lead++ {
				got := find(append(pad[:lead:lead], secret+"\n"...), bufSize-lead%7)
				if len(got) != 1 || got[0].Rule != rule {
					t.Fatalf("%s at %d: got %v", rule, lead, got)
				}
			}
		}
	}
	for i := range rules {
		if a, k := rules[i].anchor, rarest(rules[i].anchor); k+3 > len(a) || k+3 > furthest {
			t.Errorf("%s is looked for by 3 bytes from %d on", a, k)
		}
		if r := rules[i]; r.form.compiled().NumSubexp() < 1 { // nobody compiles it before it is needed
			t.Errorf("%s: no group of its form is the secret", r.name)
		}
	}
}

// TestPlaceholders: what documentation and code hold is no secret.
func TestPlaceholders(t *testing.T) {
	for _, s := range []string{
		"export NGC_API_KEY=<your key here, please>", "export NGC_API_KEY=$NGC_API_KEY_FROM_VAULT", "HF_TOKEN = os.environ.get('HF_TOKEN')",
		"hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "nvapi-XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX",
		"AKIAIOSFODNN7EXAMPLE", "-----BEGIN PRIVATE KEY-----\\n...\\n-----END PRIVATE KEY-----", "if strings.HasPrefix(s, \"-----BEGIN RSA PRIVATE KEY-----\") {",
		"AGE-SECRET-KEY-1...", "shf_abcdefghijklmnopqrstuvwxyzABCDEFGH12", "hf_hub_download_and_some_more_words_of_code", "PRIVATE+KEY+", `"auth": "basic"`,
	} {
		if got := find([]byte(s), 1000); len(got) != 0 {
			t.Errorf("%s: %v", s, got)
		}
	}
}

func TestAllow(t *testing.T) {
	secret := "hf_" + drawn(rand.New(rand.NewPCG(7, 8)), 34, word)
	var got []Finding
	s := NewScanner(Place{"i", "f"}, Allow([]string{Fingerprint([]byte(secret))}, &got))
	s.Write([]byte(secret))
	s.Close()
	if len(got) != 0 {
		t.Errorf("got %v", got)
	}
	s = NewScanner(Place{"i", "f"}, Allow(nil, &got))
	s.Write([]byte(secret))
	s.Close()
	err := error(&SecretError{got})
	if len(got) != 1 || strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), "item i, f, byte 0") {
		t.Errorf("got %v", err)
	}
}

func TestScanConfig(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	key := drawn(r, 32, word)
	raw, err := json.Marshal(map[string]any{
		"config":  map[string]any{"Env": []string{"PATH=/bin", "DB_PASSWORD=" + key, "API_KEY=", "TOKEN=your-token-here-please"}},
		"history": []map[string]string{{"created_by": "RUN export HF_TOKEN=hf_" + drawn(r, 34, word)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []Finding
	if err := ScanConfig(Place{"img", "config"}, raw, func(f Finding) { got = append(got, f) }); err != nil {
		t.Fatal(err)
	}
	var rules []string
	for _, f := range got {
		rules = append(rules, f.Rule)
		if strings.Contains(f.String(), key) {
			t.Errorf("told: %s", f)
		}
	}
	slices.Sort(rules)
	if len(rules) != 2 || rules[1] != "variable DB_PASSWORD with a value" {
		t.Errorf("got %v", rules)
	}
	if err := ScanConfig(Place{}, []byte("x"), nil); err == nil {
		t.Error("garbage is no config")
	}
}

func FuzzScanner(f *testing.F) {
	for _, s := range secrets(rand.New(rand.NewPCG(1, 1))) {
		f.Add([]byte(s), 7)
	}
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n < 1 {
			n = 1
		}
		if a, c := find(b, n), find(b, len(b)+1); !slices.Equal(a, c) {
			t.Fatalf("pieces of %d: %v, whole: %v", n, a, c)
		}
	})
}

func BenchmarkScanner(b *testing.B) {
	r := rand.NewChaCha8([32]byte{1})
	noise := make([]byte, 8<<20)
	r.Read(noise)
	text := bytes.Repeat([]byte("The quick brown fox jumps over the lazy dog; func main() { fmt.Println(\"half\") } -----\n"), 90000)
	for name, data := range map[string][]byte{"noise": noise, "text": text} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			s := NewScanner(Place{}, func(Finding) {})
			for b.Loop() {
				s.Reset(Place{})
				s.Write(data)
				s.Close()
			}
		})
	}
}
