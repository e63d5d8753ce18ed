package acl_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/stretchr/testify/require"
)

// thousandRules returns as many, most of them in each other's way: on the same levels, for the same
// clients.
func thousandRules() (own, mosquitto string) {
	var o, m strings.Builder
	for i := range 250 {
		fmt.Fprintf(&o, "allow user=user%d all users/%d/#\n", i, i)
		fmt.Fprintf(&o, "deny publish site/%d/+/config\n", i)
		fmt.Fprintf(&o, "allow role=role%d all site/+/line%d/#\n", i%10, i)
		fmt.Fprintf(&o, "allow all site/%d/%%c/state site/%d/%%u\n", i, i)
		fmt.Fprintf(&m, "user user\ntopic read site/%d/+/state\ntopic deny "+
			"site/%d/secret/#\npattern write site/%d/%%c/state\npattern read site/%d/%%u/#\n", i, i,
			i, i)
	}
	return o.String(), m.String()
}

var decisions = []struct{ name, form, ask string }{
	{"publish, allowed by a late rule", "own", "pub site/249/c/state"},
	{"publish, denied", "own", "pub site/249/c/config"},
	{"publish, no rule", "own", "pub elsewhere/1/2/3"},
	{"subscribe, allowed", "own", "sub site/249/c/state"},
	{"subscribe, no rule", "own", "sub site/+/line7/#"},
	{"publish, allowed by a pattern", "mosquitto", "pub site/249/c/state"},
	{"subscribe, allowed by a pattern", "mosquitto", "sub site/249/user/#"},
	{"subscribe, denied", "mosquitto", "sub site/+/secret/x"},
}

func benchmarked(tb testing.TB) func(form, ask string) func() {
	own, mosquitto := thousandRules()
	lists := map[string]*acl.List{}
	var err error
	lists["own"], err = acl.Parse(strings.NewReader(own), "own")
	require.NoError(tb, err)
	lists["mosquitto"], err = acl.ParseMosquitto(strings.NewReader(mosquitto), "mosquitto")
	require.NoError(tb, err)
	require.Equal(tb, 1000, lists["own"].Len())
	require.Equal(tb, 1000, lists["mosquitto"].Len())
	ctx := tb.Context()
	return func(form, ask string) func() {
		var a hooks.Authorizer = acl.New(lists[form])
		r := asked(client("c", "user"), ask)
		return func() { _ = a.Authorize(ctx, r) }
	}
}

func BenchmarkAuthorize(b *testing.B) {
	of := benchmarked(b)
	for _, d := range decisions {
		b.Run(d.form+" "+d.name, func(b *testing.B) {
			decide := of(d.form, d.ask)
			b.ReportAllocs()
			for b.Loop() {
				decide()
			}
		})
	}
}

// A decision among a thousand rules costs no allocation, and for a publish less than a microsecond
// (with much room left for slow machines and the race detector).
func TestDecisionsAreCheap(t *testing.T) {
	of := benchmarked(t)
	for _, d := range decisions {
		t.Run(d.form+" "+d.name, func(t *testing.T) {
			decide := of(d.form, d.ask)
			require.Zero(t, testing.AllocsPerRun(100, decide))
			if !strings.HasPrefix(d.ask, "pub") {
				return
			}
			best := time.Hour
			for range 50 {
				start := time.Now()
				for range 100 {
					decide()
				}
				best = min(best, time.Since(start)/100)
			}
			require.Less(t, best, 10*time.Microsecond)
		})
	}
}
