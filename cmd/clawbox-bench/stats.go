package main

import (
	"bufio"
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// samples are durations of one kind of work in one place.
type samples []time.Duration

// at gives the p-quantile by nearest rank; none of no samples.
func (s samples) at(p float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	t := slices.Sorted(slices.Values(s))
	return t[min(int(p*float64(len(t))), len(t)-1)]
}

func (s samples) median() time.Duration { return s.at(0.5) }

// readSamples reads the probe's output: nanoseconds, one a line.
func readSamples(b []byte) (s samples, err error) {
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		n, err := strconv.ParseInt(sc.Text(), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("got line %q from the probe, want nanoseconds", sc.Text())
		}
		s = append(s, time.Duration(n))
	}
	return s, nil
}

// rounds are samples by place and round: what is compared was measured within
// seconds of each other.
type rounds map[string][]samples

func (r rounds) add(place string, s samples) { r[place] = append(r[place], s) }

// all pools a place's rounds.
func (r rounds) all(place string) samples { return slices.Concat(r[place]...) }

// more is the median over the rounds of how much longer the median of one
// place was than that of another.
func (r rounds) more(place, than string) time.Duration {
	var d samples
	for i, s := range r[place] {
		if i < len(r[than]) {
			d = append(d, s.median()-r[than][i].median())
		}
	}
	return d.median()
}

// ratio is the same for quotients.
func (r rounds) ratio(place, than string) float64 {
	var q []float64
	for i, s := range r[place] {
		if i < len(r[than]) && r[than][i].median() > 0 {
			q = append(q, float64(s.median())/float64(r[than][i].median()))
		}
	}
	if len(q) == 0 {
		return 0
	}
	slices.Sort(q)
	return q[len(q)/2]
}
