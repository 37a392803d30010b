package main

import (
	"bytes"
	"fmt"
	"math"
)

// panel is one of the plot's graphs over the size of the big file.
type panel struct {
	title string
	step  string
	y     func(sample) float64
}

var panels = []panel{
	{"create: GB written", "create", func(s sample) float64 { return float64(s.Written) / 1e9 }},
	{"install: GB written", "install", func(s sample) float64 { return float64(s.Written) / 1e9 }},
	{"create: CPU seconds", "create", func(s sample) float64 { return s.CPU.Seconds() }},
	{"install: CPU seconds", "install", func(s sample) float64 { return s.CPU.Seconds() }},
}

// The plot's measures, in pixels.
const panelWide, panelHigh, panelLeft, panelTop = 300, 180, 50, 60

var toolColours = map[string]string{oursName: "#ca3a10", theirsName: "#7c8db5"}

// plot draws the panels, two in a row, axes from zero: what is linear in the
// size is a straight line through the corner.
func (r mediaReport) plot() []byte {
	var b bytes.Buffer
	w, h := 2*(panelWide+panelLeft+40), 2*(panelHigh+panelTop+40)
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n"+`<rect width="100%%" height="100%%" fill="white"/>`+"\n", w, h)
	for i, tool := range []string{oursName, theirsName} {
		fmt.Fprintf(&b, `<rect x="%d" y="12" width="12" height="12" fill="%s"/><text x="%d" y="22">%s</text>`+"\n", panelLeft+110*i, toolColours[tool], panelLeft+110*i+18, tool)
	}
	for i, p := range panels {
		fmt.Fprintf(&b, `<g transform="translate(%d %d)">`+"\n", panelLeft+(i%2)*(panelWide+panelLeft+40), panelTop+(i/2)*(panelHigh+panelTop+40))
		r.panel(&b, p)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func (r mediaReport) panel(b *bytes.Buffer, p panel) {
	var maxX, maxY float64
	points := map[string][][2]float64{}
	for _, l := range r.loads {
		for tool := range toolColours {
			if s, ok := r.middle(tool, p.step, l.name); ok && l.big {
				x, y := float64(l.bytes)/1e9, p.y(s)
				points[tool] = append(points[tool], [2]float64{x, y})
				maxX, maxY = max(maxX, x), max(maxY, y)
			}
		}
	}
	maxX, maxY = round(maxX), round(maxY)
	px := func(x float64) float64 { return x / maxX * panelWide }
	py := func(y float64) float64 { return panelHigh - y/maxY*panelHigh }
	fmt.Fprintf(b, `<text x="0" y="-10" font-size="13">%s</text><path d="M0 0V%dH%d" fill="none" stroke="#444"/>`+"\n", p.title, panelHigh, panelWide)
	for i := 1; i <= 4; i++ {
		x, y := maxX*float64(i)/4, maxY*float64(i)/4
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%.3g</text><text x="-6" y="%.1f" text-anchor="end">%.3g</text><path d="M0 %.1fH%d" stroke="#eee"/>`+"\n", px(x), panelHigh+16, x, py(y)+4, y, py(y), panelWide)
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle">payload, GB</text>`+"\n", panelWide/2, panelHigh+32)
	for _, tool := range []string{oursName, theirsName} {
		line := "M0 " + fmt.Sprint(panelHigh)
		for _, q := range points[tool] {
			line += fmt.Sprintf("L%.1f %.1f", px(q[0]), py(q[1]))
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`, px(q[0]), py(q[1]), toolColours[tool])
		}
		fmt.Fprintf(b, `<path d="%s" fill="none" stroke="%s"/>`+"\n", line, toolColours[tool])
	}
}

// round gives the next number up of 1, 2, 4 or 10 times a power of ten.
func round(x float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(max(x, 1e-9))))
	for _, m := range []float64{1, 2, 4} {
		if x <= m*p {
			return m * p
		}
	}
	return 10 * p
}
