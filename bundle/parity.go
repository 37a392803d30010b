package bundle

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/reedsolomon"

	"github.com/clawbox/clawbox/bundle/manifest"
)

// parityMemory bounds what making parity holds, in bytes.
const parityMemory = 32 << 20

// writeParity reads the parts, all at the same time, and writes parity parts:
// byte o of every part and parity part is a code word of Reed-Solomon over
// GF(2^8), and a part that is shorter than the longest counts as filled up with
// zeros. It costs one more reading of the parts.
func (b *build) writeParity(ctx context.Context, parts []manifest.Part, path, out func(int) string) (made []manifest.Part, err error) {
	if b.Parity == 0 || len(parts) == 0 {
		return nil, nil
	}
	enc, err := reedsolomon.New(len(parts), b.Parity)
	if err != nil {
		return nil, fmt.Errorf("bundle: %d parity parts for %d parts: %w: make the parts larger", b.Parity, len(parts), err)
	}
	p := &parity{enc: enc}
	defer func() { err = errors.Join(err, p.close()) }()
	for i := range parts {
		f, err := os.Open(path(i + 1))
		if err != nil {
			return nil, err
		}
		p.in = append(p.in, f)
	}
	for i := range b.Parity {
		f, err := createPart(out(i+1), nil)
		if err != nil {
			return nil, err
		}
		f.sum = sha256.New()
		p.out = append(p.out, f)
	}
	return p.run(ctx, b.Progress, parts)
}

// parity is the making of parity parts.
type parity struct {
	enc reedsolomon.Encoder
	in  []*os.File
	out []*partFile
}

func (p *parity) run(ctx context.Context, pr Progress, parts []manifest.Part) (made []manifest.Part, err error) {
	var longest int64
	for _, x := range parts {
		longest = max(longest, x.Size)
	}
	task := pr.Start("parity", longest*int64(len(parts)))
	defer func() { task.Done(err) }()
	step := min(longest, int64(max(4<<10, parityMemory/(len(p.in)+len(p.out))&^4095)))
	shards := make([][]byte, len(p.in)+len(p.out))
	for i := range shards {
		shards[i] = make([]byte, step)
	}
	for off := int64(0); off < longest; off += step {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := p.stripe(shards, off, min(step, longest-off), task); err != nil {
			return nil, err
		}
	}
	for i, f := range p.out {
		x, err := f.finish(manifest.ParityName(i + 1))
		if err != nil {
			return nil, err
		}
		made = append(made, x)
	}
	p.out = nil
	return made, nil
}

// stripe makes n bytes of each parity part, from byte off.
func (p *parity) stripe(shards [][]byte, off, n int64, task Task) error {
	s := make([][]byte, len(shards))
	for i := range s {
		s[i] = shards[i][:n]
	}
	for i, f := range p.in {
		k, err := f.ReadAt(s[i], off)
		if err != nil && err != io.EOF {
			return err
		}
		clear(s[i][k:])
		task.Add(int64(k))
	}
	if err := p.enc.Encode(s); err != nil {
		return err
	}
	for i, f := range p.out {
		if _, err := f.Write(s[len(p.in)+i]); err != nil {
			return err
		}
	}
	return nil
}

func (p *parity) close() (err error) {
	for _, f := range p.in {
		err = errors.Join(err, f.Close())
	}
	for _, f := range p.out {
		err = errors.Join(err, f.f.Close())
	}
	return err
}
