// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"image/color"
	"os"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// Colours that can be told apart by everyone (Okabe and Ito's).
var variantColors = map[string]color.Color{
	"kernel":   color.RGBA{R: 0x99, G: 0x99, B: 0x99, A: 0xff},
	"spinning": color.RGBA{R: 0x56, G: 0xb4, B: 0xe9, A: 0xff},
	"etran":    color.RGBA{R: 0xd5, G: 0x5e, B: 0x00, A: 0xff},
}

const (
	plotWidth  = 11 * vg.Inch
	plotHeight = 8 * vg.Inch
	barWidth   = vg.Length(26)
)

// drawPlot writes a picture with two panels: rates and median latencies. The
// loads differ by two orders of magnitude, so that bars are relative to the
// first variant (the kernel's TCP, if it was measured); labels give the values.
func drawPlot(path string, r *results) error {
	rates, err := panel(r, "requests per second", func(e entry) float64 { return e.Rate }, rateLabel)
	if err != nil {
		return err
	}
	latencies, err := panel(r, "median latency", func(e entry) float64 { return e.P50Us }, latencyLabel)
	if err != nil {
		return err
	}
	rates.Title.Text = "Redis, " + r.Kernel + ": bars relative to " + r.Entries[0].title

	canvas := vgimg.NewWith(vgimg.UseWH(plotWidth, plotHeight), vgimg.UseDPI(110))
	page := draw.New(canvas)
	tiles := draw.Tiles{Rows: 2, Cols: 1, PadTop: 8, PadBottom: 8, PadLeft: 8, PadRight: 12, PadY: 16}
	for i, p := range []*plot.Plot{rates, latencies} {
		p.Draw(tiles.At(page, 0, i))
	}
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("writing the plot: %w", err)
	}
	defer file.Close()
	if _, err := (vgimg.PngCanvas{Canvas: canvas}).WriteTo(file); err != nil {
		return fmt.Errorf("writing the plot %s: %w", path, err)
	}
	return file.Close()
}

// panel draws one group of bars for each load.
func panel(r *results, title string, value func(entry) float64, label func(float64) string) (*plot.Plot, error) {
	p := plot.New()
	p.Y.Label.Text = title + ", relative"
	p.Y.Min = 0
	p.Legend.Top = true
	p.Legend.Left = true
	p.Legend.Padding = 2
	names, loads := groups(r)
	p.NominalX(loads...)
	for i, name := range names {
		offset := barWidth * vg.Length(float64(i)-float64(len(names)-1)/2)
		if err := addBars(p, r, name, offset, value, label); err != nil {
			return nil, fmt.Errorf("drawing %s: %w", title, err)
		}
	}
	p.Y.Max *= 1.4 // room for labels and legend
	return p, nil
}

// addBars draws one variant's bars, and their values above them.
func addBars(p *plot.Plot, r *results, name string, offset vg.Length, value func(entry) float64, label func(float64) string) error {
	var heights plotter.Values
	var labels plotter.XYLabels
	title := ""
	var base float64
	for _, e := range r.Entries {
		if e.Variant == r.Entries[0].Variant {
			base = value(e)
		}
		if e.Variant != name {
			continue
		}
		title = e.title
		height := value(e) / base
		labels.XYs = append(labels.XYs, plotter.XY{X: float64(len(heights)), Y: height})
		labels.Labels = append(labels.Labels, label(value(e)))
		heights = append(heights, height)
	}
	bars, err := plotter.NewBarChart(heights, barWidth)
	if err != nil {
		return err
	}
	bars.Color = variantColors[name]
	bars.LineStyle.Width = 0
	bars.Offset = offset
	texts, err := plotter.NewLabels(labels)
	if err != nil {
		return err
	}
	for i := range texts.TextStyle {
		texts.TextStyle[i].XAlign = draw.XCenter
		texts.TextStyle[i].Font.Size = 9
	}
	texts.Offset = vg.Point{X: offset, Y: 2}
	p.Add(bars, texts)
	p.Legend.Add(title, bars)
	return nil
}

// groups lists the variants and the loads in the order of the results.
func groups(r *results) (names, loads []string) {
	for _, e := range r.Entries {
		if !slices.Contains(names, e.Variant) {
			names = append(names, e.Variant)
		}
		if load := e.Command + ", " + e.Load; !slices.Contains(loads, load) {
			loads = append(loads, load)
		}
	}
	return names, loads
}

func rateLabel(x float64) string {
	if x >= 1e6 {
		return fmt.Sprintf("%.2fM", x/1e6)
	}
	return fmt.Sprintf("%.0fk", x/1e3)
}

func latencyLabel(us float64) string { return fmt.Sprintf("%.0fµs", us) }
