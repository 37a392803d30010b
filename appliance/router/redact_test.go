package router

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func found(s string) string {
	b, _ := json.Marshal(s)
	return inspect(b).String()
}

func TestDetect(t *testing.T) {
	a := strings.Repeat("A1b2", 10)
	for in, want := range map[string]string{
		// Published test numbers of the card networks.
		"4111111111111111": "card=1", "pay 4111 1111 1111 1111.": "card=1", "4111-1111-1111-1111": "card=1",
		"5555555555554444": "card=1", "2223003122003222": "card=1", "378282246310005": "card=1", "3782 822463 10005": "card=1", "6011111111111117": "card=1",
		"30569309025904": "card=1", "3530111333300000": "card=1", "6200000000000005": "card=1",
		"4111 1111 1111 1111 12/27": "card=1", "4111111111111111, 5555555555554444": "card=2", "(4111111111111111)": "card=1",
		"4111111111111112": "", "1234567890123452": "", "41111111111111111": "", "x4111111111111111": "", "4111111111111111a": "",
		"0.4111111111111111": "", "1700000000000": "", "9007199254740991": "",
		// IBANs of the SWIFT registry's examples.
		"DE89370400440532013000": "iban=1", "GB29 NWBK 6016 1331 9268 19 today": "iban=1", "NO9386011117947": "iban=1", "MT84MALT011000012345MTLCAST001S": "iban=1",
		"DE89370400440532013001": "", "ZZ89370400440532013000": "", "DE893704004405320130001": "", "de89370400440532013000": "",
		"536-90-4399": "ssn=1", "SSN:536-90-4399.": "ssn=1", "000-12-3456": "", "666-12-3456": "", "912-12-3456": "", "123-00-4567": "", "123-45-0000": "",
		"1536-90-4399": "", "536-90-43991": "", "536-90-4399-1": "", "555-1234": "", "2024-01-02": "",
		"alice@example.com": "email=1", "<bob.o'neil+x@mail.example.co.uk>": "email=1", "a@b.xn--p1ai": "email=1", "x@y.com,z@w.org": "email=2",
		"mail.me@corp.example.org.": "email=1", "lodash@4.17.21": "", "@types/node": "", "user@localhost": "", "a@b": "", "@": "", "@@@.com": "", "a@.com": "",
		"-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----": "key=1", "-----BEGIN RSA PRIVATE KEY-----\ncut": "key=1",
		"-----BEGIN OPENSSH PRIVATE KEY-----\nb3\n-----END OPENSSH PRIVATE KEY----- and a@b.de": "email=1 key=1",
		"-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----":                          "", "-----": "",
		"AKIAIOSFODNN7EXAMPLE": "token=1", "AKIA123": "", "ghp_" + a: "token=1", "github_pat_" + a + a: "token=1", "sk-" + a: "token=1", "sk-ant-api03-" + a: "token=1",
		"nvapi-" + a: "token=1", "hf_" + a: "token=1", "glpat-" + a: "token=1", "xoxb-" + a: "token=1", "task-" + a: "", "sk-short": "",
		"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U": "token=1", "eyJhbGciOiJIUzI1NiJ9": "",
		"":                         "",
		"The quick brown fox 2026": "",
		`{"a":"x@y.com"}`:          "email=1", `{"a":"x\u0040y.com"}`: "email=1", `{"a":"{\"b\":\"x\\u0040y.com\"}"}`: "email=1",
		// Numbers beside an escape, blanks, several documents and prose around JSON.
		`{"card":4111111111111111,"n":"x"}`: "card=1", `{"card":4111111111111111,"n":"x\n"}`: "card=1", `["a\n",4111111111111111]`: "card=1",
		` {"to":"bob\u0040example.com"}`: "email=1", "{\"to\":\"bob\\u0040example.com\"}\n{}": "email=1", `done: {"to":"bob\u0040example.com"}, ok`: "email=1",
		`"bob\u0040example.com"`: "email=1", `a\nghp_` + a + `\n`: "token=1", `{"k":"-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----"}`: "key=1",
		`x\nbob@example.com`: "email=1", `C:\new\bob@example.com`: "email=1", `\u00e`: "", `\`: "", `\\`: "", `\ud83d\u0040 a\u0040b.de`: "email=1",
		`{"a":"{\"b\":\"{\\\"c\\\":\\\"x\\\\u0040y.com\\\"}\"}"}`: "email=1",
		// Unicode's spaces and dashes.
		"4111\u00a01111\u00a01111\u00a01111": "card=1", "4111\u20091111\u202f1111\u30001111": "card=1", "4111\u20111111\u20131111\u22121111": "card=1",
		"4111\u00ad1111\u200b1111\u20601111": "card=1", "4111\u00a0 1111 1111 1111": "", "4111\n1111\n1111\n1111": "",
		"GB29\u00a0NWBK\u00a06016\u00a01331\u00a09268\u00a019": "iban=1", "536\u201190\u20114399": "ssn=1", "536 90 4399": "", "1\u2011536-90-4399": "", "536-90-4399\u2013": "",
	} {
		if got := found(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// The checksums against slow, obvious references.
func TestChecksums(t *testing.T) {
	for i := range 20000 {
		s := fmt.Sprintf("4%015d", i*7919)
		sum := 0
		for k, double := len(s)-1, false; k >= 0; k, double = k-1, !double {
			v := int(s[k] - '0')
			if double {
				v = v*2/10 + v*2%10
			}
			sum += v
		}
		if got := found(s) == "card=1"; got != (sum%10 == 0) {
			t.Fatalf("%s: got %v", s, got)
		}
		s = fmt.Sprintf("DE%02d%018d", i%100, i*104729)
		n, _ := new(big.Int).SetString(s[4:]+"1314"+s[2:4], 10)
		if got := found(s) == "iban=1"; got != (new(big.Int).Mod(n, big.NewInt(97)).Int64() == 1) {
			t.Fatalf("%s: got %v", s, got)
		}
	}
}

func TestMask(t *testing.T) {
	for in, want := range map[string]string{
		`"a"`: `"a"`,
		`{"k":["x@y.com",1,"x@y.com","4111111111111111"]}`:                               `{"k":["[EMAIL_1]",1,"[EMAIL_1]","[CARD_1]"]}`,
		`{"x@y.com": "\ud83d\ude00 z@y.com"}`:                                            `{"[EMAIL_1]": "😀 [EMAIL_2]"}`,
		`{"input":{"card":4111111111111111,"n":[-4111111111111111,9007199254740991]}}`:   `{"input":{"card":"[CARD_1]","n":["-[CARD_1]",9007199254740991]}}`,
		`{"a":"{\"card\":4111111111111111,\"n\":\"x\\n\"}"}`:                             `{"a":"{\"card\":\"[CARD_1]\",\"n\":\"x\\n\"}"}`,
		`{"a":"{\"to\":\"x\\nbob\\u0040b.de\"}","b":"bob@b.de"}`:                         `{"a":"{\"to\":\"x\\n[EMAIL_1]\"}","b":"[EMAIL_1]"}`,
		`{"a":"see {\"to\":\"bob\\u0040b.de\"} and 4111\u00a01111\u00a01111\u00a01111"}`: `{"a":"see {\"to\":\"[EMAIL_1]\"} and [CARD_1]"}`,
		`"{} 4111111111111111"`:                                                          `"{} [CARD_1]"`,
		`"-----BEGIN EC PRIVATE KEY-----\nAA\n-----END EC PRIVATE KEY-----\nafter"`:      `"[KEY_1]\nafter"`,
	} {
		if got := string(mask([]byte(in))); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

// What has many finds, or many escapes, costs no more than its length.
func TestRedactIsLinear(t *testing.T) {
	const n = 1 << 20
	for _, s := range []string{`a@b.de\n`, `\u0040`, `\\\\`, `\u005cu005c`, "1 ", "4111\u00a0", "536-", "AA1 "} {
		b, _ := json.Marshal(strings.Repeat(s, n/len(s)))
		start := time.Now()
		mask(b)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%q: took %v for 1 MiB", s, took)
		}
	}
}

// toolCall is a prompt whose strings are full of escapes: arguments of tools
// that hold source code.
func toolCall() []byte {
	args, _ := json.Marshal(map[string]string{"path": "main.go", "text": strings.Repeat("\tif err != nil {\n\t\treturn fmt.Errorf(\"open %s: %w\", name, err)\n\t}\n", 700)})
	b, _ := json.Marshal(map[string]any{"model": "near", "messages": []any{map[string]any{"role": "assistant", "content": string(args)}}})
	return b
}

// prompt is about 52 KB of the size and texture of a coding agent's turn.
func prompt() []byte {
	para := "You are a careful assistant. Use the `exec` tool to run commands in /workspace (uid 1000), never outside.\nRead files with offset=1 limit=2000; " +
		"line 42 of src/main.go says: if err != nil { return fmt.Errorf(\"open %s: %w\", name, err) }. Today is 2026-03-14T15:09:26Z.\n"
	var msgs []any
	for i := range 12 {
		msgs = append(msgs, map[string]any{"role": "user", "content": strings.Repeat(para, 15) + fmt.Sprint(i)})
	}
	b, _ := json.Marshal(map[string]any{"model": "near", "messages": msgs})
	return b
}

func TestPromptHasNone(t *testing.T) {
	if f := inspect(prompt()); len(f) > 0 {
		t.Errorf("false finds: %v", f)
	}
}

func BenchmarkParse(b *testing.B) {
	p := prompt()
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := parse(p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkInspect(b *testing.B) {
	p := prompt()
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		inspect(p)
	}
}

func BenchmarkInspectEscapes(b *testing.B) {
	p := toolCall()
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		inspect(p)
	}
}

func BenchmarkRemote(b *testing.B) {
	p := prompt()
	r, _ := parse(p)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if err := r.remote(endpoints["/v1/chat/completions"]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkScan(b *testing.B) {
	p := prompt()
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		scan(p, nil)
	}
}

// Masking keeps JSON valid, leaves nothing to find at the places it looks at,
// and parse never panics.
func FuzzRedact(f *testing.F) {
	for _, s := range []string{`{"model":"m","a":["x@y.com","\u0034111111111111111"]}`, `"{\"a\":\"b\\u0040c.de\"}"`, `"\u0000\ud83d\ude00\ud800\u00e9\/\b"`, `[]`, `{"a":[4111111111111111,"[4111111111111111,\"\\n\"]"]}`, `{"":{"":[null,"-----BEGIN PRIVATE KEY-----"]}}`, `{"model":"m","tools":[[1],{"type":"function"}],"input":["a",{"type":"message"},[2]],"prompt":[["a"],1]}`, string(prompt()[:0])} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parse(b); err == nil {
			for _, ep := range endpoints {
				_ = r.remote(ep)
			}
		}
		if !json.Valid(b) {
			return
		}
		var str string
		if json.Unmarshal(b, &str) == nil && b[0] == '"' && utf8.Valid(b) && string(decode(bytes.TrimSpace(b))) != str {
			t.Fatalf("%q decodes to %q, want %q", b, decode(bytes.TrimSpace(b)), str)
		}
		in := inspect(b)
		out := mask(b)
		if !json.Valid(out) {
			t.Fatalf("%q became invalid: %q", b, out)
		}
		if len(in) == 0 && string(out) != string(b) {
			t.Fatalf("%q changed to %q without a find", b, out)
		}
	})
}
