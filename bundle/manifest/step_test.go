package manifest

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckStep(t *testing.T) {
	k3s := func(v string) []Component { return []Component{{"other", "9.0.0"}, {"k3s", v}} }
	for _, c := range []struct {
		name      string
		from, to  Step
		err       error
		mustSayIt string
	}{
		{"next", Step{Sequence: 3}, Step{Sequence: 4}, nil, ""},
		{"same again", Step{Sequence: 3}, Step{Sequence: 3}, nil, ""},
		{"far", Step{Sequence: 3}, Step{Sequence: 40}, nil, ""},
		{"older", Step{Sequence: 3}, Step{Sequence: 2}, ErrRollback, "clawbox rollback"},
		{"required reached", Step{Sequence: 3}, Step{Sequence: 9, UpgradesFrom: 3}, nil, ""},
		{"required skipped", Step{Sequence: 2}, Step{Sequence: 9, UpgradesFrom: 3}, ErrSkipped, "one of sequence 3 to 8"},
		{"k3s patch", Step{Sequence: 1, Components: k3s("1.34.0")}, Step{Sequence: 2, Components: k3s("1.34.3+k3s1")}, nil, ""},
		{"k3s minor", Step{Sequence: 1, Components: k3s("1.34.7")}, Step{Sequence: 2, Components: k3s("1.35.0")}, nil, ""},
		{"k3s skipped", Step{Sequence: 1, Components: k3s("1.34.0")}, Step{Sequence: 2, Components: k3s("1.36.0")}, ErrSkipped, "1.34.0 to 1.35"},
		{"k3s down", Step{Sequence: 1, Components: k3s("1.35.0")}, Step{Sequence: 2, Components: k3s("1.34.9")}, ErrSkipped, "installed is 1.35.0"},
		{"k3s patch down", Step{Sequence: 1, Components: k3s("1.35.1")}, Step{Sequence: 2, Components: k3s("1.35.0")}, ErrSkipped, ""},
		{"k3s major", Step{Sequence: 1, Components: k3s("1.35.1")}, Step{Sequence: 2, Components: k3s("2.0.0")}, ErrSkipped, ""},
		{"k3s gone", Step{Sequence: 1, Components: k3s("1.35.1")}, Step{Sequence: 2}, nil, ""},
		{"k3s new", Step{Sequence: 1}, Step{Sequence: 2, Components: k3s("1.35.1")}, nil, ""},
		{"unruled component", Step{Sequence: 1, Components: []Component{{"x", "1.0.0"}}}, Step{Sequence: 2, Components: []Component{{"x", "9.0.0"}}}, nil, ""},
	} {
		err := CheckStep(c.from, c.to)
		if !errors.Is(err, c.err) || err != nil && !strings.Contains(err.Error(), c.mustSayIt) {
			t.Errorf("%s: got %v, want %v and %q", c.name, err, c.err, c.mustSayIt)
		}
	}
}

// The fields are signed like all others, and a release that contradicts itself
// is not signed.
func TestStepFields(t *testing.T) {
	s := signer(t, "acme")
	for _, c := range []struct {
		from int64
		cs   []Component
		want string
	}{
		{0, nil, ""},
		{6, []Component{{"k3s", "1.34.0"}}, ""},
		{7, nil, "below 7"},
		{-1, nil, "below 7"},
		{0, []Component{{"K3s", "1.34.0"}}, "name"},
		{0, []Component{{"k3s", "v1.34"}}, "version"},
		{0, []Component{{"k3s", "1.34.0"}, {"k3s", "1.35.0"}}, "second time"},
	} {
		r, _ := sample(t)
		r.UpgradesFrom, r.Components = c.from, c.cs
		msg, err := Sign(r, s)
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v: got %v, want %q", c, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := trust(t, 1, s).Open(msg)
		if err != nil || got.UpgradesFrom != c.from || len(got.Components) != len(c.cs) {
			t.Errorf("%+v: got %+v, %v", c, got.Step(), err)
		}
	}
}
