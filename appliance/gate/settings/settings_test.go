package settings

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSettings(t *testing.T) {
	at := filepath.Join(t.TempDir(), "clawbox-runc")
	want := Settings{Socket: "/run/clawbox/gate.sock", Runc: "/usr/bin/runc", Namespace: "agents"}
	b, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(File(at), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Of(at); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{
		"", "{}", `{"socket":"x","runc":"/r","namespace":"n"}`, `{"socket":"/s","runc":"/r","namespace":""}`,
		`{"socket":"/s","runc":"/r","namespace":"n","other":1}`, `{"socket":"/s","runc":"/r","namespace":"n"} {}`,
	} {
		os.WriteFile(at+".json", []byte(bad), 0o600)
		if _, err := Of(at); err == nil {
			t.Errorf("settings %q are accepted", bad)
		}
	}
	if b, err := (Settings{Socket: "gate.sock", Runc: "/r", Namespace: "n"}).Encode(); err == nil {
		t.Errorf("settings with a relative path are encoded: %s", b)
	}
	os.Remove(at + ".json")
	if _, err := Of(at); err == nil {
		t.Error("settings that are not there are accepted")
	}
}
