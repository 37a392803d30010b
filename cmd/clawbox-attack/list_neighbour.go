package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// neighbours are floods beside another agent, which must hardly feel them.
var neighbours = []attack{
	{name: "slow-by-forks", tries: "slow a neighbour by processes", measure: beside("forks"), records: []record{{Kind: "lifecycle", Reason: "budget.processes"}}},
	{name: "slow-by-memory", tries: "slow a neighbour by memory", measure: beside("memory"), records: []record{{Kind: "lifecycle", Reason: "budget.memory"}}},
	{name: "slow-by-disk", tries: "slow a neighbour by a full disk", measure: beside("disk"), records: []record{{Kind: "lifecycle", Reason: "budget.disk"}}},
}

// Gross harm is both: a neighbour's slowest hundredth is so many times slower,
// and takes longer than this. A machine that others use, too, gives no smaller
// bound that would not fail by chance.
const (
	grossRatio = 50
	grossTime  = 200 * time.Millisecond
)

// beside measures the neighbour's work without and with a flood in the agent
// that is made for it.
func beside(flood string) func(*host) (string, error) {
	return func(h *host) (string, error) {
		quiet, err := h.pace()
		if err != nil {
			return "", err
		}
		ctx, stop := context.WithCancel(h.ctx)
		done := make(chan outcome, 1)
		go func() { done <- h.insideFor(ctx, "slow-by-"+flood, "", []string{"flood", flood}) }()
		time.Sleep(300 * time.Millisecond) // until it has reached its budget
		loud, err := h.pace()
		stop()
		o := <-done
		if err != nil {
			return "", err
		}
		if o.spoke {
			return "", errors.New("the flood ended by itself, so the attack proves nothing: " + o.Say)
		}
		ratio := float64(loud) / float64(quiet)
		said := fmt.Sprintf("the neighbour's p99: %v alone, %v beside the flood, %.1f times", quiet, loud, ratio)
		if ratio > grossRatio && loud > grossTime {
			return said, errors.New(said)
		}
		return said, nil
	}
}

// pace is the 99th percentile of what the neighbour's small works take: start a
// program, write a file and remove it.
func (h *host) pace() (time.Duration, error) {
	o := h.inside(other, "", []string{"pace", "2s"})
	us, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(o.Say, "p99 in us: ")))
	if err != nil {
		return 0, fmt.Errorf("the neighbour could not work: %s: %s", o, o.Say)
	}
	return time.Duration(us) * time.Microsecond, nil
}
