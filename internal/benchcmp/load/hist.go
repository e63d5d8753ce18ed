package main

import "math/bits"

// hist is a log-linear histogram of nanoseconds, about 3% wide buckets.
type hist struct {
	n   uint64
	max int64
	b   [60 * 32]uint32
}

func (h *hist) add(v int64) {
	if v < 0 {
		v = 0
	}
	if v > h.max {
		h.max = v
	}
	h.n++
	if v < 32 {
		h.b[v]++
		return
	}
	e := bits.Len64(uint64(v)) - 6 // v>>e is in 32..63
	if e < 0 {
		e = 0
	}
	i := e*32 + int(v>>uint(e))
	if i >= len(h.b) {
		i = len(h.b) - 1
	}
	h.b[i]++
}

func (h *hist) merge(o *hist) {
	h.n += o.n
	if o.max > h.max {
		h.max = o.max
	}
	for i, c := range o.b {
		h.b[i] += c
	}
}

// q gives the q-quantile in nanoseconds.
func (h *hist) q(q float64) int64 {
	if h.n == 0 {
		return 0
	}
	want := uint64(q * float64(h.n))
	var s uint64
	for i, c := range h.b {
		s += uint64(c)
		if s > want {
			if i < 64 {
				return int64(i)
			}
			e := i/32 - 1
			return (int64(i) - int64(e)*32) << uint(e)
		}
	}
	return h.max
}

// report writes the usual quantiles in microseconds.
func (h *hist) report(rep report) {
	for name, q := range map[string]float64{"p50_us": .5, "p99_us": .99, "p999_us": .999} {
		rep[name] = round(float64(h.q(q)) / 1e3)
	}
	rep["max_us"] = round(float64(h.max) / 1e3)
}
