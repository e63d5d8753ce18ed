package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A keeper is a session that outlives its connection. It gets what one publisher sends,
// acknowledges it, and looks at the order.
type keeper struct {
	*client
	count atomic.Int64

	// For the goroutine that reads, until it has ended.
	next            uint32              // number that is due
	missing         map[uint32]struct{} // numbers below that have not come
	dup, misordered int
	err             error
}

type keepers struct {
	list    []*keeper
	first   chan struct{} // closed when a message has come
	reading *sync.WaitGroup
	closed  *atomic.Bool
}

// probed is the name of the one whose messages the probe sends.
const probed = "probe"

// keepAll makes the session of the probe, and one for each of pubs publishers of the load
// generator's scenario fanin.
func keepAll(addr string, pubs int) (keepers, error) {
	ks := keepers{first: make(chan struct{}), reading: new(sync.WaitGroup),
		closed: new(atomic.Bool)}
	var once sync.Once
	for i := -1; i < pubs; i++ {
		name, first := probed, func() {}
		if i >= 0 {
			name, first = fmt.Sprint(i), func() { once.Do(func() { close(ks.first) }) }
		}
		c, err := dial(addr, "keeper-"+name, false)
		if err != nil {
			return ks, errors.Join(err, ks.Close())
		}
		k := &keeper{client: c, missing: make(map[uint32]struct{})}
		ks.list = append(ks.list, k)
		filter := packets.Subscription{Filter: topicOf(name), QoS: packets.QoS1}
		if err := k.exchange(packets.TypeSuback, &packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{filter}}); err != nil {
			return ks, errors.Join(err, ks.Close())
		}
		ks.reading.Go(func() { k.run(first) }) // Close waits
	}
	return ks, nil
}

// topicOf is where the load generator's publisher of that number publishes in scenario fanin.
func topicOf(name string) string { return "b/f/" + name + "/t" }

// Close ends all connections, and returns why one had ended before.
func (ks keepers) Close() error {
	if ks.closed.Swap(true) {
		return nil
	}
	var err error
	for _, k := range ks.list {
		k.Conn.Close()
	}
	ks.reading.Wait()
	for _, k := range ks.list {
		if err == nil && k.err != nil && !errors.Is(k.err, net.ErrClosed) {
			err = fmt.Errorf("a subscriber: %w", k.err)
		}
	}
	return err
}

// begin waits for the first message, for a while.
func (ks keepers) begin() {
	select {
	case <-ks.first:
	case <-time.After(20 * time.Second):
	}
}

func (ks keepers) got() (n int64) {
	for _, k := range ks.list {
		n += k.count.Load()
	}
	return n
}

// tell adds to a report what was wrong, after Close. What did not come until the connection ended
// is not lost, unless something later came.
func (ks keepers) tell(rep map[string]any) {
	lost, dup, misordered := 0, 0, 0
	for _, k := range ks.list {
		lost, dup, misordered = lost+len(k.missing), dup+k.dup, misordered+k.misordered
	}
	rep["lost"], rep["dup"], rep["misordered"] = float64(lost), float64(dup), float64(misordered)
}

// run takes messages until the connection ends.
func (k *keeper) run(first func()) {
	buf, n := make([]byte, 64<<10), 0
	var acks []byte
	for {
		m, err := k.Read(buf[n:])
		if err == nil {
			var taken int
			taken, acks, err = k.take(buf[:n+m], acks[:0])
			n = copy(buf, buf[taken:n+m])
		}
		if err == nil && len(acks) > 0 {
			first()
			_, err = k.Write(acks)
		}
		if err != nil {
			k.err = err
			return
		}
	}
}

// take takes the whole packets of b. It returns how much they are, and acks with their
// acknowledgements behind.
func (k *keeper) take(b, acks []byte) (int, []byte, error) {
	var p packets.Publish
	for n := 0; ; {
		h, err := packets.ParseHeader(b[n:], packets.V311)
		if errors.Is(err, packets.ErrShort) || err == nil && len(b)-n < h.Len+h.Remaining {
			return n, acks, nil
		}
		if err != nil {
			return n, acks, err
		}
		body := b[n+h.Len : n+h.Len+h.Remaining]
		n += h.Len + h.Remaining
		if h.Type != packets.TypePublish {
			continue
		}
		if err := p.Decode(h, body, packets.V311); err != nil {
			return n, acks, err
		}
		if len(p.Payload) < stampLen || p.QoS != packets.QoS1 {
			return n, acks, fmt.Errorf("a message of %d bytes came with QoS %d", len(p.Payload),
				p.QoS)
		}
		k.note(binary.BigEndian.Uint32(p.Payload[12:]))
		if acks, err = (&packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID}).
			Append(acks, packets.V311); err != nil {
			return n, acks, err
		}
	}
}

// stampLen is what the load generator's payloads begin with: a time of 8 bytes, and 4 each for the
// publisher and the number of the message.
const stampLen = 16

// note notes that a message has come.
func (k *keeper) note(number uint32) {
	k.count.Add(1)
	_, late := k.missing[number]
	switch {
	case number >= k.next:
		for q := k.next; q < number && len(k.missing) < 1<<20; q++ {
			k.missing[q] = struct{}{}
		}
		k.next = number + 1
	case late:
		delete(k.missing, number)
		k.misordered++
	default:
		k.dup++
	}
}

// A probe publishes one message at a time and measures how long its PUBACK takes.
type probe struct {
	*client
	stop, done chan struct{}

	// For its goroutine, until done is closed.
	waits      []wait
	unanswered int
}

type wait struct {
	began time.Time
	took  time.Duration
}

const (
	pause    = 2 * time.Millisecond // between messages, so that they are no load of their own
	patience = 10 * time.Second     // for the last PUBACK
)

func startProbe(addr string) (*probe, error) {
	c, err := dial(addr, "probe", true)
	if err != nil {
		return nil, err
	}
	p := &probe{client: c, stop: make(chan struct{}), done: make(chan struct{})}
	go p.run() // until end, or its connection ends
	return p, nil
}

func (p *probe) run() {
	defer close(p.done)
	for number := uint32(0); ; number++ {
		select {
		case <-p.stop:
			return
		case <-time.After(pause):
		}
		payload := make([]byte, 128)
		binary.BigEndian.PutUint32(payload[12:], number)
		began := time.Now()
		err := p.exchange(packets.TypePuback,
			&packets.Publish{QoS: packets.QoS1, PacketID: uint16(number%65535) + 1,
				Topic: []byte(topicOf(probed)), Payload: payload})
		p.waits = append(p.waits, wait{began, time.Since(began)})
		if err != nil {
			p.unanswered++
			return
		}
	}
}

// end ends the probe, and returns what it waited for between from and to. A wait without an answer
// is counted as long as it was.
func (p *probe) end(from, to time.Time) (list []time.Duration, unanswered int) {
	close(p.stop)
	p.SetReadDeadline(time.Now().Add(patience))
	<-p.done
	for _, w := range p.waits {
		if w.began.Before(to) && w.began.Add(w.took).After(from) {
			list = append(list, w.took)
		}
	}
	return list, p.unanswered
}
