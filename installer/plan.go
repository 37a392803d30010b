package installer

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/installer/host"
)

// Step is one thing that Run does. Bytes are what it writes, as forecast.
type Step struct {
	ID    string `json:"id"`
	Title string `json:"title"`
	Why   string `json:"why"`
	Bytes int64  `json:"bytes,omitempty"`
}

// Forecast is what the plan costs. Time is 0 where no speed was measured.
type Forecast struct {
	Read  int64         `json:"read"`  // bytes from the media
	Write int64         `json:"write"` // bytes to the disk
	Free  int64         `json:"free"`  // bytes free on that disk now
	Time  time.Duration `json:"time"`  // ns in JSON
	Basis string        `json:"basis"` // what the time was computed from
	// Models are those on GPUs, each with the memory that it gets.
	Models []Fit `json:"models,omitempty"`
}

// Plan is what Run will do, as data. Its JSON form is the twin of Print.
type Plan struct {
	Release  Release    `json:"release"`
	Answers  Answers    `json:"answers"`
	Facts    host.Facts `json:"facts"`
	Findings []Finding  `json:"findings"`
	Steps    []Step     `json:"steps"`
	Forecast Forecast   `json:"forecast"`
	// Digest names what was decided: release, answers and steps, without
	// measurements, so that the same decisions give the same digest.
	Digest string `json:"digest"`
}

// NewPlan decides what to do. It is pure: same arguments, same plan, nothing
// touched. A machine or answers that Preflight refuses give an *ErrPreflight.
func NewPlan(f host.Facts, a Answers, r Release) (Plan, error) {
	p := Plan{Release: r, Answers: a, Facts: f, Findings: Preflight(f, a, r)}
	if bad := Refused(p.Findings); len(bad) > 0 {
		return Plan{}, &ErrPreflight{bad}
	}
	for _, s := range steps {
		if s.only == nil || s.only(a) {
			p.Steps = append(p.Steps, Step{s.id, s.title, s.why, s.bytes(r)})
		}
	}
	p.Forecast = forecast(p)
	p.Digest = p.digest()
	return p, nil
}

// digest covers what Run acts on.
func (p Plan) digest() string {
	var ids []string
	for _, s := range p.Steps {
		ids = append(ids, s.ID)
	}
	// Of plain data only, so that Marshal cannot fail; maps come out sorted.
	b, _ := json.Marshal(struct {
		Release string
		Answers Answers
		Steps   []string
	}{p.Release.Digest, p.Answers, ids})
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

// forecast adds up the steps. Media and disk work at the same time while the
// payload is loaded, so the slower of the two counts there.
func forecast(p Plan) Forecast {
	f := Forecast{Read: p.Release.Bytes, Free: p.Facts.Disk.Free, Models: question{p.Facts, p.Answers, p.Release}.fits()}
	for _, s := range p.Steps {
		f.Write += s.Bytes
	}
	r, w := p.Facts.MediaRead, p.Facts.Disk.Write
	if r <= 0 || w <= 0 {
		f.Basis = "no forecast: the speed of the media or the disk was not measured"
		return f
	}
	secs := float64(f.Read)/float64(min(r, w)) + float64(f.Write-f.Read)/float64(w)
	f.Time = time.Duration(secs * float64(time.Second)).Round(time.Second)
	f.Basis = fmt.Sprintf("media %s/s, disk %s/s, measured just now", bundle.Size(r), bundle.Size(w))
	return f
}

// Print writes the plan for people.
func (p Plan) Print(w io.Writer) error {
	pr := &printer{w: w}
	pr.f("Install %s (sequence %d, signed by %s)\n", p.Release, p.Release.Sequence, list(p.Release.Signers))
	pr.f("on %s, %s, below %s\n\n", p.Facts.Hostname, p.Facts.OS.Pretty, p.Answers.Root)
	for i, s := range p.Steps {
		pr.f("%3d. %s", i+1, s.Title)
		if s.Bytes > 0 {
			pr.f(" (%s)", bundle.Size(s.Bytes))
		}
		pr.f("\n     %s\n", s.Why)
	}
	pr.f("\n")
	for _, f := range p.Findings {
		if f.Severity == Warning || f.Severity == Note {
			pr.f("%s\n", f)
		}
	}
	pr.f("\n%s\nplan %s\n", p.Forecast, p.Digest)
	return pr.err
}

func (f Forecast) String() string {
	s := fmt.Sprintf("reads %s, writes %s of %s free", bundle.Size(f.Read), bundle.Size(f.Write), bundle.Size(f.Free))
	if f.Time > 0 {
		s += fmt.Sprintf(", takes about %s", f.Time)
	} else if f.Basis != "" && f.Read > 0 && f.Basis[0] != 'n' {
		s += ", takes less than a second"
	}
	s += " (" + f.Basis + ")"
	for _, m := range f.Models {
		s += fmt.Sprintf("\nmodel %s: needs %s of %s on %d GPU", m.Model, bundle.Size(m.Need), bundle.Size(m.Have), m.GPUs)
	}
	return s
}

// printer keeps the first error, so that a long text needs one check.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) f(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}
