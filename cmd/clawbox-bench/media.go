package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// mediaOptions are the command line of "clawbox-bench bundle".
type mediaOptions struct {
	sizes  []int64 // bytes of the one big file
	peer   int64   // largest size that the peer gets too
	images bool
	rounds int
	dir    string // results
	work   string // scratch folder
	ours   string // clawbox
	theirs string // zarf
	layout string // an OCI layout with one image, whose layers the image set shares
}

func parseMedia(args []string) (o mediaOptions, err error) {
	f := flag.NewFlagSet("bundle", flag.ContinueOnError)
	sizes := f.String("sizes", "1,4,16", "sizes of the one big file in GB (10^9 bytes), rising; none: no such file")
	peer := f.Float64("peer-up-to", 4, "the largest of them that the peer is given, in GB: it needs several times the room; 0: no peer at all")
	f.BoolVar(&o.images, "images", true, "take the image set through the steps, too")
	f.IntVar(&o.rounds, "rounds", 1, "how often each has its turn")
	f.StringVar(&o.dir, "o", "docs", "folder for bench-bundle.md and bench-bundle.svg; none: nothing is written")
	f.StringVar(&o.work, "work", "", "scratch folder on a disk (default: a new one in /var/tmp)")
	f.StringVar(&o.ours, "clawbox", "dist/clawbox", "our program")
	f.StringVar(&o.theirs, "zarf", "dist/peers/zarf", "the peer's program")
	f.StringVar(&o.layout, "layout", "dist/openclaw", "OCI layout of a real image")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 || o.rounds < 1 {
		return o, fmt.Errorf("got rounds %d and %q; want one round or more and nothing else", o.rounds, f.Args())
	}
	o.peer = int64(*peer * 1e9)
	for s := range strings.SplitSeq(*sizes, ",") {
		if *sizes == "" {
			break
		}
		n, err := strconv.ParseFloat(s, 64)
		if err != nil || n <= 0 {
			return o, fmt.Errorf("-sizes: got %q, want gigabytes such as 0.5,1,4", s)
		}
		o.sizes = append(o.sizes, int64(n*1e9))
	}
	for _, p := range []*string{&o.ours, &o.theirs, &o.layout} {
		if *p, err = filepath.Abs(*p); err != nil {
			return o, err
		}
		if _, err := os.Stat(*p); err != nil {
			return o, fmt.Errorf("%w; `make bench-bundle` builds what is needed", err)
		}
	}
	if os.Geteuid() != 0 {
		return o, errors.New("cold caches and another process's counters want root; run it with sudo")
	}
	return o, nil
}

// sample is one step of one tool with one payload.
type sample struct {
	tool, step, load string
	payload          int64 // bytes
	spent
}

// mediaBench measures, prints, and writes what it has printed.
func mediaBench(ctx context.Context, o mediaOptions) (err error) {
	if o.work == "" {
		if o.work, err = os.MkdirTemp("/var/tmp", "clawbox-bench-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.work)) }()
	}
	rep := mediaReport{machine: thisMachine(), version: peerVersion(ctx, o.theirs), peer: o.peer}
	if rep.floor, err = newFloor(o.work); err != nil {
		return err
	}
	for round := range o.rounds {
		for _, size := range o.sizes {
			if err := bigFile(ctx, o, round, size, &rep); err != nil {
				return err
			}
		}
		if !o.images {
			continue
		}
		if err := imageSet(ctx, o, round, &rep); err != nil {
			return err
		}
	}
	fmt.Print(rep.text())
	if o.dir == "" {
		return nil
	}
	return rep.write(o.dir)
}

// bigFile takes one incompressible file through all steps of both tools.
func bigFile(ctx context.Context, o mediaOptions, round int, size int64, rep *mediaReport) error {
	dir := filepath.Join(o.work, "file")
	defer os.RemoveAll(dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file := filepath.Join(dir, "weights.safetensors")
	if err := weights(file, size); err != nil {
		return err
	}
	name := fmt.Sprintf("one file of %s", gigabytes(size))
	us, them := ourFile(o, dir, file), theirFile(o, dir, file)
	turns := []tool{us, them}
	if size > o.peer {
		// Nobody else needs the file: two copies are enough room to ask for.
		us.done = map[string]func() error{"create": func() error { return os.Remove(file) }}
		turns = []tool{us}
	} else if round%2 == 1 {
		turns[0], turns[1] = them, us
	}
	return rep.take(ctx, dir, load{name, size, true}, turns)
}

// imageSet takes images that share layers through all steps of both tools.
func imageSet(ctx context.Context, o mediaOptions, round int, rep *mediaReport) error {
	dir := filepath.Join(o.work, "images")
	defer os.RemoveAll(dir)
	set, err := newImageSet(dir, o.layout)
	if err != nil {
		return err
	}
	defer set.close()
	us, err := ourImages(o, dir, set)
	if err != nil {
		return err
	}
	them := theirImages(o, dir, set)
	turns := []tool{us, them}
	if o.peer == 0 {
		turns = turns[:1]
	} else if round%2 == 1 {
		turns[0], turns[1] = them, us
	}
	name := fmt.Sprintf("%d images of %s together, %s with each layer once", len(set.refs), gigabytes(set.named), gigabytes(set.unique))
	return rep.take(ctx, dir, load{name, set.unique, false}, turns)
}

// gigabytes writes 1500000000 as "1.5 GB".
func gigabytes(n int64) string { return strconv.FormatFloat(float64(n)/1e9, 'g', 3, 64) + " GB" }
