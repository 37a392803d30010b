package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
)

// The plot's measures, in pixels.
const (
	plotLeft, plotWidth  = 300, 520
	barHeight, groupSkip = 11, 10
)

var colours = map[string]string{bwrap: "#8da0cb", runcName: "#b3b3b3", clawbox: "#f4a582", audited: "#ca3a10"}

// plot draws the ratios to the host as bars on a logarithmic axis from 0.5 to
// the largest, with a line at 1.
func (r report) plot() []byte {
	var rows []row
	high := 2.0
	for _, w := range r.rows {
		if len(w.cells[host]) == 0 {
			continue
		}
		rows = append(rows, w)
		for _, p := range places[1:] {
			high = max(high, w.ratios[p])
		}
	}
	high = math.Pow(2, math.Ceil(math.Log2(high)))
	x := func(q float64) float64 { return plotLeft + plotWidth*math.Log2(max(q, 0.5)/0.5)/math.Log2(high/0.5) }
	step := 4*barHeight + groupSkip
	height := 60 + step*len(rows) + 30
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", plotLeft+plotWidth+70, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/><text x="10" y="18" font-size="14">Time relative to the host (1 = the same), by place</text>`+"\n")
	for i, p := range places[1:] {
		fmt.Fprintf(&b, `<rect x="%d" y="28" width="12" height="12" fill="%s"/><text x="%d" y="38">%s</text>`+"\n", plotLeft+130*i, colours[p], plotLeft+130*i+16, p)
	}
	for q := 0.5; q <= high; q *= 2 {
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="50" y2="%d" stroke="%s"/><text x="%.1f" y="%d" text-anchor="middle">%g</text>`+"\n", x(q), x(q), height-28, map[bool]string{true: "#444", false: "#ddd"}[q == 1], x(q), height-12, q)
	}
	for i, w := range rows {
		y := 56 + step*i
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", plotLeft-8, y+2*barHeight, html.EscapeString(w.name))
		for k, p := range places[1:] {
			if q := w.ratios[p]; q > 0 {
				from, to := min(x(1), x(q)), max(x(1), x(q))
				fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d" font-size="9">%.2f</text>`+"\n", from, y+k*barHeight, max(to-from, 1), barHeight-1, colours[p], to+3, y+k*barHeight+9, q)
			}
		}
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
