package legible

import (
	"bytes"
	"encoding/json"
	"testing"
)

// hostile has one of each kind: ESC, CR, DEL, a C1 control (CSI), a bidi override,
// a zero-width space, a line separator, a no-break space, and a byte that is no
// UTF-8.
const hostile = "a\x1b[2K\rb\x7fc\u009bd\u202ee\u200bf\u2028g\u00a0h\xffi"

const seen = "a�[2K�b�c�d�e�f�g�h�i"

func TestLine(t *testing.T) {
	for in, want := range map[string]string{hostile: seen, "x\ny\tz": "x�y�z", "Grüße, 世界 (1)": "Grüße, 世界 (1)"} {
		if got := Line(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestWriter(t *testing.T) {
	var b bytes.Buffer
	n, err := Writer{&b}.Write([]byte("x\n\t" + hostile))
	if got := b.String(); got != "x\n\t"+seen || n != 3+len(hostile) || err != nil {
		t.Errorf("got %q, %d, %v", got, n, err)
	}
}

func TestJSON(t *testing.T) {
	want := "a\x1b[2K\rb\x7fc\u009bd\u202ee\u2028f\U000e0001g\"\\"
	var b bytes.Buffer
	e := json.NewEncoder(JSON{&b})
	e.SetIndent("", "  ")
	if err := e.Encode(map[string]string{"k": want}); err != nil {
		t.Fatal(err)
	}
	if got := b.Bytes(); !bytes.Equal(bytes.Map(text, got), got) {
		t.Errorf("not printable: %q", got)
	}
	var back map[string]string
	if err := json.Unmarshal(b.Bytes(), &back); err != nil || back["k"] != want {
		t.Errorf("got %q, %v", back, err)
	}
}
