package dunlin

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/internal/guard"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// thousandRules are as many, and the last one allows what is asked.
func thousandRules(tb testing.TB) *acl.ACL {
	lines := make([]string, 0, 1000)
	for i := range 999 {
		lines = append(lines, fmt.Sprintf("allow user=user%d all site/%d/+/state users/%%u/#", i%50,
			i))
	}
	return acl.New(rulesOf(tb, append(lines, "allow publish site/+/line/#")...))
}

// publishing returns a function that takes a QoS 0 PUBLISH that nobody subscribes to through the
// whole core, and one for the decision alone.
func publishing(tb testing.TB, a hooks.Authorizer) (whole, decision func()) {
	h, err := newCoreHarness(Config{Authenticator: hooks.AllowAll, Authorizer: a, Logger: quiet})
	require.NoError(tb, err)
	tb.Cleanup(h.Close)
	link, err := h.Open("c")
	require.NoError(tb, err)
	hello := connect("c")
	hello.KeepAlive = 1
	raw, err := hello.Append(nil, packets.V5)
	require.NoError(tb, err)
	require.NoError(tb, link.Send(raw))
	c := link.(*coreLink).c
	p := &packets.Publish{Topic: []byte("site/7/line/4/temperature"), Payload: make([]byte, 64)}
	raw, err = p.Append(nil, packets.V5)
	require.NoError(tb, err)
	t := h.b.getTurn()
	c.unpark(t)
	tb.Cleanup(func() { c.park(t) })
	whole = func() {
		t.read.B = append(t.read.B[:0], raw...)
		if err := c.input(t); err != nil {
			panic(err)
		}
	}
	whole()
	return whole, func() {
		if c.b.authorizer == nil {
			return
		}
		if err := c.mayPublish(t, p, p.Topic, c.cachedRoutes().of(c.b, p.Topic)); err != nil {
			panic(err)
		}
	}
}

func TestADecisionOnAHitCostsNothing(t *testing.T) {
	if lock.Checked {
		t.Skip("locks that know their holder allocate")
	}
	whole, decision := publishing(t, thousandRules(t))
	require.Zero(t, testing.AllocsPerRun(1000, whole), "a QoS 0 publish with 1,000 rules")
	require.Zero(t, testing.AllocsPerRun(1000, decision))
	best := time.Hour
	for range 50 {
		start := time.Now()
		for range 100 {
			decision()
		}
		best = min(best, time.Since(start)/100)
	}
	require.Less(t, best, 10*time.Microsecond,
		"with room for slow machines and the race detector; the goal is 1 µs")
}

// BenchmarkPublishDecided compares a QoS 0 publish without Authorizer with one that 1,000 rules
// decide.
func BenchmarkPublishDecided(b *testing.B) {
	for _, x := range []struct {
		name string
		a    hooks.Authorizer
	}{{"nil", nil}, {"acl with 1000 rules", thousandRules(b)}} {
		whole, decision := publishing(b, x.a)
		for name, f := range map[string]func(){"publish": whole, "decision": decision} {
			b.Run(name+", "+x.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					f()
				}
			})
		}
	}
}

// BenchmarkLimits is what the limits cost a connection, and a publisher with a rate.
func BenchmarkLimits(b *testing.B) {
	br := newTestBroker(b, func(c *Config) { c.ConnectRate, c.ConnectRatePerIP = 1e9, 1e9 })
	defer br.Close()
	a := tcpAddr("192.0.2.1")
	b.Run("a connection that is admitted", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			now := time.Now()
			x, err := br.admit(a, now)
			if err != nil {
				b.Fatal(err)
			}
			br.guard.Addresses.Dismiss(x, now)
		}
	})
	b.Run("a PUBLISH within its rate", func(b *testing.B) {
		p := guard.NewPaces().Join("a", 1e9, 1e12)
		b.ReportAllocs()
		now := time.Now().UnixNano()
		for b.Loop() {
			now++
			p.Take(now, 100)
		}
	})
}
