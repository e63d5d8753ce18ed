package admin

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// subscribe has a client subscribe to filters.
func (b *bench) subscribe(id string, filters ...string) {
	c := b.broker.Client(b.t, id)
	s := &packets.Subscribe{PacketID: 1}
	for _, f := range filters {
		s.Subscriptions = append(s.Subscriptions, packets.Subscription{Filter: f, QoS: 1})
	}
	c.Send(s)
	c.WantType("an answer", packets.TypeSuback)
}

func TestExplain(t *testing.T) {
	b := newBench(t)
	b.subscribe("c", "home/+/temperature")
	var v explanationView
	b.get(&v, "explain", "id", "c", "topic", "home/kitchen/temperature")
	require.Equal(t, dunlin.Cause(0).String(), v.Finding.Cause)
	require.Equal(t, "home/+/temperature", v.Finding.Filter)
	require.True(t, v.Connected)
	b.get(&v, "explain", "id", "c", "topic", "home/kitchen/humidity")
	require.Equal(t, "no filter matches", v.Finding.Cause)
	require.Equal(t, "home/+/temperature", v.Finding.Nearest)
	require.NotEmpty(t, v.Finding.Text)
	b.get(&v, "explain", "id", "nobody <b>", "topic", "a")
	require.Equal(t, "unknown client", v.Finding.Cause)
	require.False(t, v.Session)
	b.refused(400, "explain", "id", "c")
	b.refused(400, "explain", "topic", "c")
}

func TestSubscribers(t *testing.T) {
	b := newBench(t)
	b.subscribe("a", "x/#")
	b.subscribe("b", "$share/g/x/y")
	b.subscribe("c", "z")
	var v subscribersView
	b.get(&v, "subscribers", "topic", "x/y")
	require.Len(t, v.Items, 2)
	require.False(t, v.More)
	b.get(&v, "subscribers", "topic", "x/y", "limit", "1")
	require.Len(t, v.Items, 1)
	require.True(t, v.More)
	b.get(&v, "subscribers", "topic", "nobody")
	require.Empty(t, v.Items)
	b.refused(400, "subscribers", "topic", "x/+")
	b.refused(400, "subscribers")
}

func TestEndedConnectionsComeInPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		for i := range 5 {
			b.broker.Client(t, fmt.Sprintf("c%d", i), asAnn).Disconnect()
			time.Sleep(time.Second)
		}
		b.broker.Client(t, "kicked")
		b.act(1, "disconnect", `{"id":"kicked"}`)
		time.Sleep(time.Minute) // the broker gives it time to go
		var got []string
		for after, pages := "", 0; ; pages++ {
			var page page[endingView]
			b.get(&page, "ended", "limit", "2", "after", after)
			for _, x := range page.Items {
				got = append(got, x.Client)
			}
			if after = page.Next; after == "" {
				require.Equal(t, 2, pages)
				break
			}
		}
		require.Equal(t, []string{"kicked", "c4", "c3", "c2", "c1", "c0"}, got, "the newest first")
		var page page[endingView]
		b.get(&page, "ended", "id", "kicked")
		require.Len(t, page.Items, 1)
		require.Equal(t, "kicked", page.Items[0].Cause)
		b.get(&page, "ended", "user", "ann")
		require.Len(t, page.Items, 5)
		b.get(&page, "ended", "refused", "true")
		require.Empty(t, page.Items)
		b.refused(400, "ended", "after", encodeCursor("x"))
	})
}

func TestDrops(t *testing.T) {
	b := newBench(t)
	c := b.broker.Client(t, "small", func(p *packets.Connect) {
		p.Properties = p.Properties.AppendUint(packets.MaximumPacketSize, 64)
	})
	c.Send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: "#"}}})
	c.WantType("an answer", packets.TypeSuback)
	for range 3 {
		b.act(1, "publish", `{"topic":"big","text":"`+strings.Repeat("x", 100)+`"}`)
	}
	var page page[dropView]
	b.get(&page, "drops")
	require.Len(t, page.Items, 1)
	d := page.Items[0]
	require.Equal(t, "small", d.Client)
	require.Equal(t, "big", d.Topic)
	require.Equal(t, "too large", d.Reason)
	require.EqualValues(t, 3, d.Count)
	b.get(&page, "drops", "id", "other")
	require.Empty(t, page.Items)
}

func TestPacketsAsTheyPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		dial := b.serve()
		r := b.readAt(dial(), "packets", "id", "c")
		synctest.Wait() // it watches
		b.role = "reader"
		b.refused(403, "packets", "id", "c")
		b.role = "actor"
		b.refused(400, "packets")
		b.refused(400, "packets", "address", "nowhere")
		c := b.broker.Client(t, "c", func(p *packets.Connect) {
			p.Username, p.Password = "ann", []byte("secret")
		})
		c.Send(&packets.Publish{Topic: []byte("<b>/t"), Payload: []byte("hello")})
		want := []string{"CONNECT", "CONNACK", "PUBLISH"}
		for i := range want {
			text := next(t, r, "packet")
			var p packetView
			require.NoError(t, json.Unmarshal(text, &p))
			require.True(t, strings.HasPrefix(p.Line, want[i]), "%s", text)
			require.Equal(t, i != 1, p.Incoming)
			require.NotContains(t, string(text), "secret")
			require.NotContains(t, string(text), "<b>")
			if i == 2 {
				require.Equal(t, "hello", p.Message.Text)
			}
		}
		page := page[Record]{}
		text := b.do(b.request("GET", api+"/audit?limit=1", ""), 200)
		require.NoError(t, json.Unmarshal([]byte(text), &page))
		require.NotEmpty(t, page.Items)
		time.Sleep(liveFor)
		rest, err := io.ReadAll(r)
		require.NoError(t, err)
		require.Contains(t, string(rest), "event: end")
	})
}

func TestAudit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.readAt(b.serve()(), "packets", "id", "c")
		synctest.Wait()
		require.Equal(t, "packets", b.h.audit.newest(1)[0].value.Action, "it is audited when it begins")
	})
}

// Connections that end at one instant are all in the pages, each once.
func TestConnectionsThatEndAtOneInstantComeInPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		ids := []string{"a", "b", "c", "d", "e"}
		b.connect(ids...)
		for _, id := range ids {
			require.True(t, b.broker.Broker().Disconnect(id, packets.AdministrativeAction))
		}
		synctest.Wait()
		time.Sleep(time.Minute) // until the connections are closed
		var got []string
		times := map[time.Time]bool{}
		for query := []string{"limit", "2"}; ; {
			var page page[endingView]
			b.get(&page, "ended", query...)
			for _, x := range page.Items {
				got = append(got, x.Client)
				times[x.EndedAt] = true
			}
			if page.Next == "" {
				break
			}
			query = []string{"limit", "2", "after", page.Next}
		}
		require.Len(t, times, 1)
		require.ElementsMatch(t, ids, got)
	})
}
