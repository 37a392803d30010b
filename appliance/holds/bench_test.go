package holds

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkAnswer is a request that is asked, kept on disk, answered and kept
// again, among as many as one agent may have. The ledger is left out.
func BenchmarkAnswer(b *testing.B) {
	bk, err := Open(Config{File: filepath.Join(b.TempDir(), "f"), Recorder: &notes{}, Timeout: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	for i := range 30 {
		bk.Ask(gone, base(func(q *Question) { q.Host = fmt.Sprintf("n%d.example", i) }), nil)
	}
	for b.Loop() {
		bk.Ask(gone, base(), nil)
		for _, p := range bk.List() {
			if p.Host == "new.example" {
				a := Answer{Digest: p.Digest, Allow: true, Scope: Session, Operator: "ada"}
				if err := bk.Answer(context.Background(), p.ID, a); err != nil {
					b.Fatal(err)
				}
			}
		}
		if err := bk.Begin("a1", "next"); err != nil {
			b.Fatal(err)
		}
		if err := bk.Begin("a1", "boot/1"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCovers is what a recheck asks for each open connection.
func BenchmarkCovers(b *testing.B) {
	bk, err := Open(Config{Recorder: &notes{}})
	if err != nil {
		b.Fatal(err)
	}
	for i := range 100 {
		g := Grant{ID: fmt.Sprint(i), Subject: Subject{Agent: "a1", Host: "x.example", Port: i + 1}, Allow: true, Scope: Session, Policy: "p", Life: "boot/1"}
		bk.grants[g.ID] = g
	}
	q := base()
	for b.Loop() {
		bk.Covers(q)
	}
}
