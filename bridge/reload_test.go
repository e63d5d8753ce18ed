package bridge

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// linked returns two brokers with a link that sends t/#, and the link.
func linked(w *world) (a, b *spot, l Link) {
	b = w.add("b")
	l = one("b", DirectionOut, 1)
	a = w.add("a", l)
	l = a.cfg.Links[0] // with the Dial of the world
	w.ready()
	return a, b, l
}

func filters(b *dunlin.Broker, clientID string) (all []string) {
	info, _ := b.Session(clientID)
	for _, s := range info.Subscriptions {
		all = append(all, s.Filter)
	}
	return all
}

func TestALinkIsReplacedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b, l := linked(w)
		w.sever("a.b", true)
		w.until("it is down", func() bool { return a.link().State == StateDown })
		a.put(&dunlin.Message{Topic: "t/1", Payload: []byte("waits"), QoS: 1})
		l.Topics = []Topic{{Filter: "t/#", QoS: 1}, {Filter: "u/#", QoS: 1, RemotePrefix: "t/"}}
		if err := a.node.SetLink(l, true); err != nil {
			t.Fatal(err)
		}
		w.sever("a.b", false)
		w.until("what waited has come", func() bool { return b.has("waits") == 1 })
		a.put(&dunlin.Message{Topic: "u/1", Payload: []byte("new"), QoS: 1})
		w.until("so has what the new topic carries", func() bool { return b.has("new") == 1 })
		l.Topics = l.Topics[1:]
		if err := a.node.SetLink(l, true); err != nil {
			t.Fatal(err)
		}
		w.until("it is up with that topic only", func() bool {
			got := filters(a.b, "$bridge/b")
			return a.link().State == StateUp && len(got) == 1 && got[0] == "u/#"
		})
		if len(a.node.Stats().Links) != 1 {
			t.Errorf("%+v", a.node.Stats())
		}
	})
}

func TestALinkIsReplacedWhenItsConnectionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, b, l := linked(w)
		l.Topics = []Topic{{Filter: "t/#", QoS: 1, RemotePrefix: "t/first/"}}
		for _, prefix := range []string{"t/first/", "t/second/"} {
			l.Topics[0].RemotePrefix = prefix
			if err := a.node.SetLink(l, false); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Minute)
		a.put(&dunlin.Message{Topic: "t/1", Payload: []byte("old"), Retain: true})
		w.until("it goes the old way", func() bool { return retained(b, "t/1") })
		w.sever("a.b", true)
		w.sever("a.b", false)
		w.until("it is up", func() bool { return a.link().State == StateUp })
		a.put(&dunlin.Message{Topic: "t/2", Payload: []byte("new"), Retain: true})
		w.until("it goes the last way", func() bool { return retained(b, "t/second/t/2") })
		if retained(b, "t/first/t/2") || retained(b, "t/2") {
			t.Error("it went another way, too")
		}
		if err := a.node.SetLink(l, false); err != nil {
			t.Fatal(err)
		}
		if err := a.node.SetLink(l, true); err != nil {
			t.Fatal(err)
		}
		w.until("a second change does not wait for the first", func() bool {
			return a.link().State == StateUp
		})
	})
}

func TestALinkIsAddedAndRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		a, _, l := linked(w)
		if err := a.node.RemoveLink(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		if _, ok := a.b.Session("$bridge/b"); ok || len(a.node.Stats().Links) != 0 {
			t.Errorf("something is left: %+v", a.node.Stats())
		}
		if err := a.node.RemoveLink(t.Context(), "b"); !errors.Is(err, errNotRunning) {
			t.Errorf("a second time: %v", err)
		}
		if err := a.node.SetLink(l, false); err != nil {
			t.Fatal(err)
		}
		w.until("it is up", func() bool { return a.link().State == StateUp })
		if err := a.node.SetLink(l, false); err != nil { // waits for the connection to end
			t.Fatal(err)
		}
		if err := a.node.RemoveLink(t.Context(), "b"); err != nil {
			t.Fatal("a removal does not wait for that", err)
		}
		l.Topics = nil
		if a.node.SetLink(l, true) == nil || len(a.node.Stats().Links) != 0 {
			t.Errorf("a link without topics: %+v", a.node.Stats())
		}
		a.node.Close()
		l.Topics = []Topic{{Filter: "#"}}
		if err := a.node.SetLink(l, true); !errors.Is(err, errNotRunning) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// A topic that came in goes out now. The remote broker is told that it is not wanted any more.
func TestTheRemoteBrokerIsToldWhatIsNotWantedAnyMore(t *testing.T) {
	for _, v := range []packets.Version{packets.V311, packets.V5} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			defer w.close()
			a, b, l := linked(w)
			l.Version, l.Topics = v, []Topic{{Filter: "t/#", Direction: DirectionIn}, {Filter: "u/#",
				Direction: DirectionIn}}
			set := func(unsubscribe bool, want int) {
				t.Helper()
				l.Unsubscribe = unsubscribe
				if err := a.node.SetLink(l, true); err != nil {
					t.Fatal(err)
				}
				w.until("it is up", func() bool { return a.link().State == StateUp })
				synctest.Wait()
				if got := filters(b.b, "a.b"); len(got) != want {
					t.Errorf("%v: the remote broker has subscriptions to %q, expected %d", v, got,
						want)
				}
			}
			set(false, 2)
			l.Topics = []Topic{{Filter: "t/#", Direction: DirectionOut}, {Filter: "u/#",
				Direction: DirectionIn}}
			set(false, 2)
			set(true, 1)
		})
	}
}
