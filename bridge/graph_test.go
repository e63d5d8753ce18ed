package bridge

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// both is a link that carries t/# both ways.
func both(to string, qos packets.QoS) Link {
	return Link{Name: "to-" + to, Remote: to, Addresses: []string{to},
		Topics: []Topic{{Filter: "t/#", Direction: DirectionBoth, QoS: qos}}}
}

// graphs are the brokers with the others that their links lead to.
var graphs = map[string][][2]string{
	"two":            {{"a", "b"}},
	"chain":          {{"a", "b"}, {"b", "c"}},
	"ring of three":  {{"a", "b"}, {"b", "c"}, {"c", "a"}},
	"mesh of four":   {{"a", "b"}, {"a", "c"}, {"a", "d"}, {"b", "c"}, {"b", "d"}, {"c", "d"}},
	"parallel links": {{"a", "b"}, {"a", "b"}},
}

// build starts the brokers of a graph.
func (w *world) build(edges [][2]string, change func(*Link)) {
	links := map[string][]Link{}
	for i, e := range edges {
		l := both(e[1], packets.QoS2)
		l.Name = fmt.Sprint(l.Name, i)
		if change != nil {
			change(&l)
		}
		links[e[0]] = append(links[e[0]], l)
		if _, known := links[e[1]]; !known {
			links[e[1]] = nil // it has no link of its own
		}
	}
	for name, of := range links {
		w.add(name, of...)
	}
	w.ready()
}

func TestEachMessageIsAtEachBrokerOnceWhateverTheGraph(t *testing.T) {
	for name, edges := range graphs {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.close()
				w.build(edges, nil)
				total := 0
				for qos := range packets.QoS(3) {
					w.burst(fmt.Sprint("qos", qos), qos, 20)
					total += 20 * len(w.spots)
				}
				w.once(total)
			})
		})
	}
}

func TestNothingIsLostOrDoubledWhenLinksAreCutAndBrokersRestart(t *testing.T) {
	for name, edges := range graphs {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.close()
				w.build(edges, nil)
				total := 0
				burst := func(what string) {
					for qos := packets.QoS(1); qos < 3; qos++ {
						w.burst(fmt.Sprint(what, qos), qos, 30)
						total += 30 * len(w.spots)
					}
				}
				for i, e := range edges {
					id := fmt.Sprintf("%s.to-%s%d", e[0], e[1], i)
					w.sever(id, true)
					burst("cut" + id)
					w.sever(id, false)
					burst("mended" + id) // while it connects
					w.sever(id, true)    // with messages on their way
					w.sever(id, false)
				}
				w.once(total)
				for name, s := range w.spots {
					burst("before" + name)
					w.once(total) // in a circle, what is on its way may be doubled by a restart
					s.restart()
					burst("after" + name)
				}
				w.once(total)
			})
		})
	}
}

func TestARestartInTheMiddleOfATransferLosesAndDoublesNothing(t *testing.T) {
	for _, graph := range []string{"two", "chain"} {
		for _, version := range []packets.Version{packets.V311, packets.V5} {
			t.Run(graph+" "+version.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					defer w.close()
					w.build(graphs[graph], func(l *Link) { l.Version, l.Transit = version, true })
					total := 0
					for round := range 10 {
						for _, s := range w.spots {
							w.burst(fmt.Sprint(s.cfg.Name, round), packets.QoS2, 40)
							total += 40 * len(w.spots)
							time.Sleep(time.Duration(round) * time.Microsecond)
							s.restart()
						}
					}
					w.once(total)
				})
			})
		}
	}
}

// Links of 3.1.1 carry no marks. What came over one is not sent on over another one.
func TestLinksWithoutMarksMakeNoCircleIfEachSideSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		edges := [][2]string{{"a", "b"}, {"b", "c"}, {"c", "a"}, {"b", "a"}, {"c", "b"}, {"a", "c"}}
		w.build(edges, func(l *Link) {
			l.Version, l.Topics[0].Direction = packets.V311, DirectionOut
		})
		for qos := range packets.QoS(3) {
			w.burst(fmt.Sprint("qos", qos), qos, 20)
		}
		w.once(180)
	})
}
