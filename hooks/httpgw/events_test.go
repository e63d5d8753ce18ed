package httpgw

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// polled is an answer to GET /poll.
type polled struct {
	Events []event
	After  string
	Lost   uint64
	Gap    bool
}

func (d *opened) poll(user, query string) (p polled) {
	d.t.Helper()
	code, text := d.do(user, "GET", "/poll?filter="+query, "")
	require.Equal(d.t, 200, code, text)
	require.NoError(d.t, json.Unmarshal([]byte(text), &p))
	return p
}

func TestEventsResumeWhereTheyWere(t *testing.T) {
	d := open(t, func(o *Options) { o.Keep = 3 })
	s := d.stream("ann/a", "")
	d.publish("one")
	require.Equal(t, "one", s.next(t))
	first := s.last
	d.publish("two")
	require.Equal(t, "two", s.next(t))
	s.close()
	d.publish("three")
	s = d.stream("ann/a", s.last)
	require.Equal(t, "three", s.next(t))
	d.publish("four")
	require.Equal(t, "four", s.next(t))
	s = d.stream("ann/a", first)
	for _, want := range []string{"two", "three", "four"} {
		require.Equal(t, want, s.next(t))
	}
	d.publish("five")
	require.Equal(t, "five", s.next(t))
	s = d.stream("ann/a", first)
	require.Equal(t, "lost 1", s.next(t), "only three are kept")
	require.Equal(t, "three", s.next(t))

	p := d.poll("ann", "ann/a")
	require.Empty(t, p.Events)
	d.publish("six")
	p = d.poll("ann", "ann/a&wait=60&after="+p.After)
	require.Equal(t, "six", string(p.Events[0].Payload))
	p = d.poll("ann", "ann/a&after="+p.After)
	require.Empty(t, p.Events)
	for _, want := range []string{"four", "five", "six"} {
		require.Equal(t, want, s.next(t))
	}
	d.h.Close()
	require.Equal(t, "the end", s.next(t))
	code, _ := d.do("ann", "GET", "/poll?filter=ann/a", "")
	require.Equal(t, 503, code)
}

// An event ID that is made up, of another filter, of another user, or of before is a gap. Nobody
// reads by it what is not theirs.
func TestForeignEventIDs(t *testing.T) {
	d := open(t, nil)
	s := d.stream("ann/a", "")
	d.publish("mine")
	require.Equal(t, "mine", s.next(t))
	name := s.last[:len(s.last)-2]
	for _, id := range []string{"another-0", name, name + "-", name + "-99", name + "--1",
		name + "-18446744073709551616", name + "-18446744073709551615", name + "-0x0", "-", "-0",
		name + "-1-1"} {
		s := d.stream("ann/a", id)
		require.Equal(t, "lost 0", s.next(t), id)
		s.close()
	}
	for user, filter := range map[string]string{"bob": "bob/a", "ann": "ann/b"} {
		s := d.streamOf(user, filter, name+"-0")
		require.Equal(t, "lost 0", s.next(t), filter)
		p := d.poll(user, filter+"&after="+name+"-0")
		require.True(t, p.Gap)
		require.Empty(t, p.Events)
	}
	s = d.stream("ann/a", name+"-0")
	require.Equal(t, "mine", s.next(t))
}

// What somebody makes the door keep has bounds: filters, and the bytes of events. One user takes a
// quarter.
func TestWhatIsKeptForReadersHasBounds(t *testing.T) {
	x := open(t, func(o *Options) { o.MaxPerUser, o.KeepBytes = 2, 4000 })
	f := &x.h.feeds
	v := &visitor{client: &hooks.Client{}, user: "user ann"}
	var all []*feed
	for _, filter := range []string{"ann/1", "ann/2"} {
		one, err := f.enter(v, filter)
		require.NoError(t, err)
		all = append(all, one)
	}
	_, err := f.enter(v, "ann/3")
	require.Equal(t, packets.QuotaExceeded, packets.CodeOf(err))
	bob, err := f.enter(&visitor{client: &hooks.Client{}, user: "user bob"}, "bob/1")
	require.NoError(t, err, "the others have their own")

	one := all[0]
	for range 5 {
		one.add(&kept{topic: "a", data: make([]byte, 300)})
	}
	one.add(&kept{topic: "a", data: make([]byte, 2000)})
	one.add(&kept{topic: "b", data: make([]byte, 400)})
	require.LessOrEqual(t, x.h.users.all.kept, int64(1000))
	b := one.from(0)
	require.EqualValues(t, 6, b.lost)
	require.Len(t, b.events, 1)
	require.EqualValues(t, 6, b.events[0].number)
	require.EqualValues(t, 7, b.next)
	all[1].add(&kept{topic: "a", data: make([]byte, 700)})
	require.EqualValues(t, 1, all[1].from(0).lost, "there is no room for it")
	bob.add(&kept{topic: "a", data: make([]byte, 700)})
	of := bob.from(0).events
	require.Len(t, of, 1, "another user has its own")
	one.release(b.events)
	bob.release(of)

	for _, one := range append(all, bob) {
		f.leave(one)
		f.mu.Lock()
		require.True(t, f.endIdleLocked())
		f.mu.Unlock()
	}
	f.tasks.Wait()
	require.Empty(t, f.of)
	require.Zero(t, x.h.users.all)
}

// What a reader is sent at a time has a bound, also for somebody who is far behind.
func TestABatchHasABound(t *testing.T) {
	d := open(t, nil)
	d.poll("ann", "ann/a")
	payload := make([]byte, 40_000)
	for range 20 {
		d.publish(string(payload))
	}
	d.publish(string(make([]byte, 200_000)))
	p := d.poll("ann", "ann/a")
	name := p.After[:len(p.After)-3]
	p, n := polled{After: name + "-0"}, 0
	for n < 21 {
		p = d.poll("ann", "ann/a&wait=60&after="+p.After)
		require.Len(t, p.Events, 1, "two would be more than 64 KiB")
		require.Zero(t, p.Lost)
		n++
	}
	m := &dunlin.Message{Topic: "ann/a", Payload: make([]byte, 1<<20+1)}
	require.NoError(t, d.b.Publish(t.Context(), m))
	p = d.poll("ann", "ann/a&wait=60&after="+p.After)
	require.EqualValues(t, 1, p.Lost, "it is larger than MaxBody")
}

// The messages that the broker had no room for are told as lost.
func TestLossesOfTheBrokerAreTold(t *testing.T) {
	d := open(t, nil)
	d.poll("ann", "ann/a")
	var x *feed
	for _, x = range d.h.feeds.of {
		x.mu.Lock() // so that nobody takes what comes
	}
	const n = 3000
	for i := range n {
		m := &dunlin.Message{Topic: "ann/a", Payload: fmt.Append(nil, i)}
		require.NoError(t, d.b.Publish(t.Context(), m))
	}
	x.mu.Unlock()
	p, got := polled{After: x.id(0)}, uint64(0)
	for got < n {
		p = d.poll("ann", "ann/a&wait=5&after="+p.After)
		require.False(t, len(p.Events) == 0 && p.Lost == 0, "%d of %d are accounted for", got, n)
		got += uint64(len(p.Events)) + p.Lost
	}
	require.EqualValues(t, n, got)
}
