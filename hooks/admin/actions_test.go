package admin

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

func TestDisconnect(t *testing.T) {
	b := newBench(t)
	c := b.broker.Client(t, "c")
	b.act(1, "disconnect", `{"id":"c","code":151}`)
	require.Equal(t, packets.QuotaExceeded, c.WantClosed("it is told why").Code)
	b.actRefused(404, "disconnect", `{"id":"c"}`)
	b.actRefused(400, "disconnect", `{"id":"c","code":256}`)
}

func TestDeleteASession(t *testing.T) {
	b := newBench(t)
	b.connect("c")
	b.act(1, "delete-session", `{"id":"c"}`)
	b.refused(404, "client", "id", "c")
	b.actRefused(404, "delete-session", `{"id":"c"}`)
}

func TestBans(t *testing.T) {
	b := newBench(t)
	c := b.broker.Client(t, "c")
	b.act(1, "ban", `{"kind":"client","value":"c","seconds":60,"reason":"floods"}`)
	c.WantClosed("a banned client is disconnected")
	b.act(1, "ban", `{"kind":"address","value":"192.0.2.77/24"}`)
	var page page[banView]
	b.get(&page, "bans")
	require.Len(t, page.Items, 2)
	require.Equal(t, "192.0.2.0/24", page.Items[0].Value)
	require.Equal(t, "floods", page.Items[1].Reason)
	require.False(t, page.Items[1].Until.IsZero())
	b.act(1, "unban", `{"kind":"client","value":"c"}`)
	b.actRefused(404, "unban", `{"kind":"client","value":"c"}`)
	b.connect("c")
	for _, body := range []string{`{"kind":"x","value":"c"}`, `{"kind":"client","value":""}`,
		`{"kind":"client","value":"c","seconds":-1}`,
		`{"kind":"client","value":"c","seconds":9223372036854775807}`,
		`{"kind":"address","value":"nowhere"}`} {
		b.actRefused(400, "ban", body)
	}
}

func TestRetainedMessagesAreClearedAfterTheirNumberIsConfirmed(t *testing.T) {
	b := newBench(t)
	for i := range 300 { // more than the broker looks at in one go
		b.retain(fmt.Sprintf("a/%d", i))
	}
	b.retain("b", "$SYS/x")
	e := b.actRefused(409, "clear-retained", `{"filter":"a/#","count":0}`)
	require.Equal(t, "count", e.Code)
	require.Equal(t, 300, *e.Count)
	b.actRefused(409, "clear-retained", `{"filter":"a/#","count":299}`)
	var n countView
	b.get(&n, "retained/count")
	require.Equal(t, 301, n.Count, "nothing was cleared")
	b.act(300, "clear-retained", `{"filter":"a/#","count":300}`)
	b.get(&n, "retained/count", "filter", "a/#")
	require.Zero(t, n.Count)
	b.act(1, "clear-retained", `{"filter":"#","count":1}`)
	b.get(&n, "retained/count", "filter", "$SYS/#")
	require.Equal(t, 1, n.Count, `"#" does not match what begins with "$"`)
	b.actRefused(400, "clear-retained", `{"filter":"a#"}`)
	b.actRefused(400, "clear-retained", `{}`)
}

// A gatedStore commits when it is let, and not before.
type gatedStore struct {
	memory.Store
	gate chan struct{}
}

func (s *gatedStore) Commit(ctx context.Context, ops []store.Op) error {
	<-s.gate
	return s.Store.Commit(ctx, ops)
}

// during counts how many commits f waits for, each of which ends when nothing else can go on.
func (s *gatedStore) during(f func()) (commits int) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	for {
		synctest.Wait()
		select {
		case <-done:
			return commits
		case s.gate <- struct{}{}:
			commits++
		}
	}
}

// To clear many takes a few commits of the store, and clears no more than was confirmed.
func TestManyRetainedMessagesAreClearedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &gatedStore{gate: make(chan struct{})}
		broker := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) { c.Store = s }))
		b, br := benchOf(t, broker), broker.Broker()
		const n = 4 * clearAtOnce
		var all []*dunlin.Message
		for i := range n + 1 {
			all = append(all, &dunlin.Message{Topic: fmt.Sprintf("a/%04d", i), Retain: true,
				Payload: []byte("x")})
		}
		s.during(func() {
			_, err := br.PublishAll(t.Context(), all...)
			require.NoError(t, err)
		})
		c := &call{desk: b.h.brokers["main"], r: b.request("POST", "/", "")}
		commits := s.during(func() {
			cleared, err := c.clear("a/#", n)
			require.NoError(t, err)
			require.Equal(t, n, cleared)
		})
		require.LessOrEqual(t, commits, 2*n/clearAtOnce)
		require.Equal(t, 1, br.Stats().Retained, "one came after the count")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		c.r = c.r.WithContext(ctx)
		_, err := c.clear("a/#", 1)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, 1, br.Stats().Retained)
		close(s.gate)
	})
}

func TestPublish(t *testing.T) {
	b := newBench(t)
	c := b.broker.Client(t, "c")
	c.Send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: "#"}}})
	c.WantType("an answer", packets.TypeSuback)
	b.act(1, "publish", `{"topic":"t","text":"hello","retain":true,"content_type":"text/plain"}`)
	p := c.WantType("the message", packets.TypePublish).(*packets.Publish)
	require.Equal(t, "hello", string(p.Payload))
	b.act(1, "publish", `{"topic":"t","base64":"/wA=","qos":2}`)
	p = c.WantType("the message", packets.TypePublish).(*packets.Publish)
	require.Equal(t, []byte{0xFF, 0}, p.Payload)
	b.actRefused(422, "publish", `{"topic":"a/+"}`)
	b.actRefused(422, "publish", `{"topic":""}`)
	b.actRefused(400, "publish", `{"topic":"a","qos":3}`)
	b.actRefused(400, "publish", `{"topic":"a","text":"a","base64":"YQ=="}`)
	b.actRefused(400, "publish", `{"topic":"a","base64":"?"}`)
	b.broker.Broker().Close()
	b.actRefused(503, "publish", `{"topic":"a"}`)
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		c := b.broker.Client(t, "c")
		b.actRefused(400, "drain", `{"per_second":-1}`)
		b.act(1, "drain", `{"server_reference":"b.example"}`)
		require.Equal(t, packets.UseAnotherServer, c.WantClosed("it is moved").Code)
		time.Sleep(time.Minute)
		require.Contains(t, b.do(b.request("GET", "/readyz", ""), 503), "draining")
		list := b.do(b.request("GET", api+"/brokers", ""), 200)
		require.Contains(t, list, `"running":false,"moved":1`)
		b.act(1, "undrain", `{}`)
		b.do(b.request("GET", "/readyz", ""), 200)
		b.connect("c")
	})
}

func TestADrainEndsWithTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.connect("a", "b", "c")
		b.act(3, "drain", `{"per_second":1}`)
		require.Equal(t, "drain", b.actRefused(409, "drain", `{}`).Code)
		require.NoError(t, b.h.Close())
		require.False(t, b.h.brokers["main"].drain.view().Running)
		require.NotEmpty(t, b.h.brokers["main"].drain.view().Err)
		b.actRefused(409, "drain", `{}`)
	})
}

// A user whose name is a token is banned by the client that has it. Nobody is shown the token.
func TestAUserWithATokenIsBanned(t *testing.T) {
	const token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
	b := newBench(t)
	b.broker.Client(t, "c", func(p *packets.Connect) { p.Username, p.HasUsername = token, true })
	b.connect("anonymous")
	require.Equal(t, "no_client", b.actRefused(404, "ban", `{"kind":"user","client":"x"}`).Code)
	require.Equal(t, "no_user",
		b.actRefused(409, "ban", `{"kind":"user","client":"anonymous"}`).Code)
	b.actRefused(400, "ban", `{"kind":"client","client":"c"}`)
	b.actRefused(400, "ban", `{"kind":"user","client":"c","value":"x"}`)
	b.act(1, "ban", `{"kind":"user","client":"c"}`)
	require.Equal(t, token, b.broker.Broker().Bans()[0].Value)
	var bans page[banView]
	b.get(&bans, "bans")
	require.Len(t, bans.Items, 1)
	require.Regexp(t, `^\(a token, `, bans.Items[0].Value)
	for _, path := range []string{at("bans"), api + "/audit"} {
		text := b.do(b.request("GET", path, ""), 200)
		require.Contains(t, text, "(a token, ", path)
		require.NotContains(t, text, token, path)
	}
	b.act(1, "unban", `{"kind":"user","value":`+quote(bans.Items[0].Value)+`}`)
	require.Empty(t, b.broker.Broker().Bans())
}
