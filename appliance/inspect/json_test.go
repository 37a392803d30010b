package inspect

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestReadJSON(t *testing.T) {
	for _, ok := range []string{
		`{}`, ` [1, "a", true, null, -0.5e3] `, `"\ud83d\ude00"`, `"\\ud800"`, `{"a":{"a":{"A":1}}}`, strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth),
		"[" + strings.Repeat("0,", maxKeys-2) + "0]",
	} {
		v, err := readJSON([]byte(ok))
		if err != nil {
			t.Errorf("%.60s: %v", ok, err)
			continue
		}
		again, err := json.Marshal(v)
		var want bytes.Buffer
		if err == nil {
			err = json.Compact(&want, []byte(ok))
		}
		if err != nil || len(ok) < 100 && !strings.Contains(ok, `\`) && !bytes.Equal(again, want.Bytes()) {
			t.Errorf("%.60s reads as %.60s (%v)", ok, again, err)
		}
	}
	for name, bad := range map[string]string{
		"nothing": "", "two": "{} {}", "more": "{} x", "key twice": `{"a":1,"a":1}`, "key by case": `{"a":1,"A":1}`, "key by Kelvin": `{"k":1,"` + "\u212a" + `":1}`,
		"key by escape": `{"a":1,"\u0061":2}`, "inner key twice": `[{"x":{"a":1,"a":2}}]`, "empty key twice": `{"":1,"":2}`, "low half first": `"\udc00\ud800"`,
		"half": `"\uD83Dx"`, "half at the end": `"\ud83d"`, "half before another": `"\ud83d\u0041"`, "half in a key": `{"\uDBFF":1}`, "not UTF-8": "\"\xc0\x80\"",
		"control": "\"\n\"", "single quotes": `{'a':1}`, "comma": `[1,]`, "NaN": `[NaN]`, "hexadecimal": `[0x1]`, "leading zero": `[01]`,
		"deep": `{"a":` + strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1) + `}`, "long": "[" + strings.Repeat("0,", maxKeys) + "0]",
	} {
		if v, err := readJSON([]byte(bad)); err == nil {
			t.Errorf("%s reads as %.60v", name, v)
		}
	}
}
