package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// This file is -storecost: what QoS 0 messages between sessions that end with their connections, of
// which a Store keeps nothing, cost in a broker that has one, and in one that has none. The two
// take turns, first one and then the other in the lead, and what is looked at is the ratio within
// each pair, since the machine changes less from one run to the next than over all of them.

const with, without = "with", "without"

// withAndWithout are the contenders; the store of one of them is in the folder data.
func (t *tools) withAndWithout(data string) []contender {
	return []contender{
		{without, dunlinVersion(), t.dunlin(), nil},
		{with, "the same with -data, -store segment, -durability synced",
			t.dunlin("-data", data, "-store", "segment", "-durability", "synced"), nil},
	}
}

var costs = []struct{ title, name, flags string }{
	{"p2p QoS 0, 128 B, batched", "cost-batched", "-scenario p2p -pubs 10 -warm 300ms -dur 2s"},
	{"p2p QoS 0, one message a write", "cost-unbatched",
		"-scenario p2p -pubs 50 -batch 1 -e2e 20 -warm 300ms -dur 2s"},
}

func measureCosts(m *measurement) error {
	for round := range m.runs {
		for _, s := range costs {
			if !m.wanted(s.name) {
				continue
			}
			data, err := os.MkdirTemp(m.t.dir, "data")
			if err != nil {
				return err
			}
			pair := m.t.withAndWithout(data)
			if round%2 == 1 {
				slices.Reverse(pair)
			}
			for _, c := range pair {
				if err := m.add(s.name, c.name, round,
					load(m.t.load, c, strings.Fields(s.flags))); err != nil {
					return err
				}
			}
			if err := os.RemoveAll(data); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeCosts writes the table of what was measured, if there is anything.
func writeCosts(w io.Writer, results []result) {
	head := "| | without a Store, µs | with one, µs | ratio, median of pairs | its 95 % interval " +
		"| lowest and highest | pairs |\n|---|---|---|---|---|---|---|\n"
	for _, s := range costs {
		ratios := pairs(results, s.name)
		if len(ratios) == 0 {
			continue
		}
		st := statOf(ratios)
		fmt.Fprintf(w, "%s| %s | %s | %s | %.3f | %s | %.3f–%.3f | %d |\n", head, s.title,
			cell(statOf(values(results, s.name, without, perMessage))),
			cell(statOf(values(results, s.name, with, perMessage))),
			st.median, interval(ratios), st.min, st.max, st.n)
		head = ""
	}
	if head == "" {
		fmt.Fprintln(w)
	}
}

// pairs returns what a message cost with a Store divided by what it cost without one, for each pair
// of runs.
func pairs(results []result, scenario string) (ratios []float64) {
	costOf := make(map[int]float64)
	for _, r := range results {
		if v := values([]result{r}, scenario, without, perMessage); len(v) == 1 && v[0] > 0 {
			costOf[r.Round] = v[0]
		}
	}
	for _, r := range results {
		if v, c := values([]result{r}, scenario, with, perMessage),
			costOf[r.Round]; len(v) == 1 && c > 0 {
			ratios = append(ratios, v[0]/c)
		}
	}
	return ratios
}

// interval is where the median of all pairs there could be is, by the order of those that there are
// (a sign test); it takes six.
func interval(ratios []float64) string {
	v := slices.Sorted(slices.Values(ratios))
	k := rank(len(v))
	if k == 0 {
		return "–"
	}
	return fmt.Sprintf("%.3f–%.3f", v[k-1], v[len(v)-k])
}

// rank is the highest k for which at most 1 in 40 tosses of n coins have fewer than k heads.
func rank(n int) int {
	p := 1.0 // of one outcome with k heads, times 2 to the n
	all := 1.0
	for range n {
		all *= 2
	}
	sum, k := 0.0, 0
	for ; k < n; k++ {
		if sum += p; sum/all > 1.0/40 {
			break
		}
		p = p * float64(n-k) / float64(k+1)
	}
	return k
}
