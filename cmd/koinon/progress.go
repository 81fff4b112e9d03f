package main

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"time"
)

// progress shows on a terminal how far long work on bytes is, as a status line.
// Its methods may be called concurrently. One that is not shown does nothing.
type progress struct {
	line *statusLine

	mu          sync.Mutex
	what        string
	done, total int64 // total is -1 while it is not known
	rate        rate
	drawn       time.Time // when
	then        int64     // what was done then
}

// rate is an average over about the last rateOver: older seconds count less, by a
// power of e.
type rate struct{ bytes, seconds float64 }

// add takes in what was done in some time, and returns the average, in bytes a
// second.
func (r *rate) add(bytes int64, in time.Duration) float64 {
	old := math.Exp(-in.Seconds() / rateOver.Seconds())
	r.bytes, r.seconds = r.bytes*old+float64(bytes), r.seconds*old+in.Seconds()
	return r.bytes / r.seconds
}

const (
	// redraw is how often the line is drawn at most.
	redraw = 100 * time.Millisecond
	// rateOver is for how long the past counts for the rate.
	rateOver = 5 * time.Second
	// leftMax is from how long on nobody wants to know how long it takes still.
	leftMax = 100 * time.Hour
)

// progress starts to show work on total bytes, -1 when that is not known. It
// shows nothing with --quiet, with -o json or when standard error is no
// terminal. Finish it before printing anything else.
func (a *app) progress(what string, total int64) *progress {
	p := &progress{line: &statusLine{}, what: what, total: total, drawn: time.Now()}
	if !a.json() {
		p.line = a.newStatusLine()
	}
	return p
}

func (p *progress) shown() bool { return p.line.shown() }

// Add counts n more bytes.
func (p *progress) Add(n int64) { p.change(func() { p.done += n }) }

// Write counts len(b) bytes, for io.MultiWriter and io.TeeReader.
func (p *progress) Write(b []byte) (int, error) {
	p.Add(int64(len(b)))
	return len(b), nil
}

// Total sets the number of bytes, once it is known.
func (p *progress) Total(n int64) { p.change(func() { p.total = n }) }

// Describe changes the words before the numbers.
func (p *progress) Describe(what string) { p.change(func() { p.what = what }) }

// Finish takes the line off the terminal.
func (p *progress) Finish() { p.line.clear() }

func (p *progress) change(set func()) {
	if !p.shown() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	set()
	now := time.Now()
	past := now.Sub(p.drawn)
	if past < redraw {
		return
	}
	speed := p.rate.add(p.done-p.then, past)
	p.drawn, p.then = now, p.done
	p.line.set(progressText(p.what, p.done, p.total, speed, terminalWidth(p.line.w)-1))
}

// progressText is a line of a width: words, a bar when it is known how much
// there is, and what is done, at which rate in bytes a second, and for how long
// still.
func progressText(what string, done, total int64, rate float64, width int) string {
	speed := byteSize(uint64(max(rate, 0))) + "/s"
	if total <= 0 {
		return fmt.Sprintf("%s  %s  %s", what, byteSize(uint64(done)), speed)
	}
	share := min(float64(done)/float64(total), 1)
	text := fmt.Sprintf(" %3.0f%%  %s of %s  %s", math.Floor(100*share), byteSize(uint64(done)), byteSize(uint64(total)), speed)
	if left := float64(total-done) / rate; left >= 1 && left < leftMax.Seconds() {
		text += fmt.Sprintf(", %s left", (time.Duration(left) * time.Second).String())
	}
	bar := width - len([]rune(what)) - len(text) - len("  []")
	if bar < 10 {
		return what + " " + text
	}
	full := int(share * float64(bar))
	return fmt.Sprintf("%s  [%s%s]%s", what, strings.Repeat("=", full), strings.Repeat(" ", bar-full), text)
}
