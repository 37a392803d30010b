package ledger

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"
)

// BenchmarkStages tells in CPU time what each stage of a record takes from the
// guard to the disk: 512 opened files at once, as a build makes them.
func BenchmarkStages(b *testing.B) {
	rs := make([]Record, 512)
	for i := range rs {
		rs[i] = Record{
			Time: time.Now(), Kind: KindFile, Verdict: Allowed, Agent: "ada", Policy: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
			Reason: "fs.read", Process: Process{PID: 12345, PPID: 12344, UID: 900001, Comm: "compile"}, Path: "/usr/local/go/src/internal/runtime/atomic/types.go",
			More: []Attr{Text("parent", "go"), Number("seq", 123456789), Text("access", "read"), Text("file", "types.go"), Text("inode", "1234567")},
		}
	}
	sent, err := MarshalRecords(rs)
	must(b, err)
	came, err := UnmarshalRecords(sent, 0)
	must(b, err)
	skey, _, err := note.GenerateKey(rand.Reader, "bench.example")
	must(b, err)
	s, err := note.NewSigner(skey)
	must(b, err)
	l, err := Create(b.TempDir()+"/log", s)
	must(b, err)
	defer l.Close()
	var again Unmarshaler
	for _, st := range []struct {
		name string
		work func() error
	}{
		{"marshal", func() error { _, err := MarshalRecords(rs); return err }},
		{"unmarshal", func() error { _, err := again.Records(sent, 0); return err }},
		{"encode", func() error { _, err := l.encode(new([]byte), came); return err }},
		{"record", func() error { return l.Record(context.Background(), came...) }},
	} {
		b.Run(st.name, func(b *testing.B) {
			b.ReportAllocs()
			from := cpuTime(b)
			for b.Loop() {
				must(b, st.work())
			}
			b.ReportMetric(float64(cpuTime(b)-from)/float64(b.N*len(rs)), "cpu-ns/record")
		})
	}
}

// cpuTime is what this process has used.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
