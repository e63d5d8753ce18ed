// Package tap shows packets to those who watch a broker. While nobody watches it costs one atomic
// load for each read and each write. Those who watch and do not keep up lose packets; nobody else
// notices.
package tap

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Most is how many Taps there may be at a time.
const Most = 16

// Who is a connection as a Tap knows it.
type Who struct {
	Conn    uint64
	Client  *hooks.Client // never nil
	Mount   string        // mount point
	Version packets.Version
}

// Way is the direction of packets.
type Way bool

// The directions.
const (
	In  Way = true  // from the client
	Out Way = false // to the client
)

type leaf struct{}

func (leaf) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "a lock of package tap"} }

// Taps are those that watch. The zero value is ready to use.
type Taps struct {
	on     atomic.Pointer[Set] // nil: nobody watches
	mu     lock.Mutex[leaf]    // for changes of on
	closed bool                // guarded by mu
}

// ErrClosed says that nobody can watch any more.
var ErrClosed = errors.New("the broker is closed")

// A Set is the Taps at a moment. It is never modified.
type Set []*Tap

// On returns those that watch, nil if nobody does.
func (t *Taps) On() *Set { return t.on.Load() }

// Close stops all Taps, and lets nobody watch any more.
func (t *Taps) Close() {
	t.mu.Lock()
	t.closed = true
	set := t.on.Load()
	t.mu.Unlock()
	if set != nil {
		for _, x := range *set {
			x.Stop()
		}
	}
}

// Start begins to watch, until ctx ends.
func (t *Taps) Start(ctx context.Context, o hooks.TapOptions) (*Tap, error) {
	x, err := newTap(t, o)
	if err != nil {
		return nil, err
	}
	if err := t.add(x); err != nil {
		return nil, err
	}
	x.mu.Lock()
	x.stops = append(x.stops, context.AfterFunc(ctx, x.Stop))
	if o.For > 0 {
		x.stops = append(x.stops, time.AfterFunc(o.For, x.Stop).Stop)
	}
	ended := x.ended
	x.mu.Unlock()
	if ended { // this moment, and the others stay
		x.release()
	}
	return x, nil
}

func (t *Taps) add(x *Tap) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	var set Set
	if old := t.on.Load(); old != nil {
		set = slices.Clone(*old)
	}
	if len(set) >= Most {
		return fmt.Errorf("expected at most %d Taps at a time, stop one of them first", Most)
	}
	set = append(set, x)
	t.on.Store(&set)
	return nil
}

func (t *Taps) remove(x *Tap) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.on.Load()
	if old == nil {
		return
	}
	set := slices.DeleteFunc(slices.Clone(*old), func(y *Tap) bool { return x == y })
	if len(set) == 0 {
		t.on.Store(nil)
		return
	}
	t.on.Store(&set)
}

// Watches says whether packets of a client may be shown to anybody.
func (s *Set) Watches(client *hooks.Client) bool {
	for _, x := range *s {
		if x.watches(client) {
			return true
		}
	}
	return false
}

// See shows data, whole packets on their way from or to who, to those that watch. It does not keep
// data, and never waits. If now is zero, See takes the time itself, once somebody watches who.
func (s *Set) See(who Who, now time.Time, way Way, data []byte) {
	for _, x := range *s {
		if x.watches(who.Client) {
			if now.IsZero() {
				now = time.Now()
			}
			x.see(&who, now, way, data)
		}
	}
}

// A Tap is a hooks.Tap.
type Tap struct {
	of      *Taps
	o       hooks.TapOptions
	network netip.Prefix
	signal  chan struct{} // capacity 1: something has changed
	lost    atomic.Uint64

	mu      lock.Mutex[leaf]
	waiting []hooks.TapPacket
	bytes   int // of waiting
	missed  uint64
	shown   int // packets, and how many bytes
	volume  int
	ended   bool
	aliases map[alias]bool // whether what an alias stands for matches
	stops   []func() bool
}

// An alias is a Topic Alias of one direction of a connection.
type alias struct {
	conn uint64
	way  Way
	n    uint32
}

// maxAliases is how many aliases a Tap with a filter knows.
const maxAliases = 1 << 16

func newTap(of *Taps, o hooks.TapOptions) (*Tap, error) {
	x := &Tap{of: of, signal: make(chan struct{}, 1)}
	if o.Address != "" {
		var err error
		if x.network, err = network(o.Address); err != nil {
			return nil, fmt.Errorf("expected an IP address or a network as Address, got %q",
				o.Address)
		}
	}
	if o.Filter != "" && !packets.ValidTopicFilter(o.Filter) {
		return nil, fmt.Errorf("expected a Topic Filter as Filter, got %q", o.Filter)
	}
	orDefault(&o.MaxPackets, 100_000)
	orDefault(&o.MaxBytes, 64<<20)
	orDefault(&o.Buffer, 1024)
	orDefault(&o.BufferBytes, 4<<20)
	if o.For == 0 {
		o.For = 10 * time.Minute
	}
	x.o = o
	return x, nil
}

func orDefault(n *int, value int) {
	if *n == 0 {
		*n = value
	}
}

func network(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), nil
	}
	ip, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	ip = ip.Unmap()
	return netip.PrefixFrom(ip, ip.BitLen()), nil
}

// watches says whether x shows packets of a client.
func (x *Tap) watches(client *hooks.Client) bool {
	if x.o.ClientID != "" && x.o.ClientID != client.ID {
		return false
	}
	if !x.network.IsValid() {
		return true
	}
	return x.network.Contains(addressOf(client.RemoteAddr).Unmap().WithZone(""))
}

// addressOf returns the IP address in at; it is not valid if there is none. It does not allocate
// for a socket: it is asked for each read and each write of all connections.
func addressOf(at net.Addr) netip.Addr {
	var ap netip.AddrPort
	switch at := at.(type) {
	case nil, *net.UnixAddr:
	case interface{ AddrPort() netip.AddrPort }: // TCP and UDP
		ap = at.AddrPort()
	default:
		ap, _ = netip.ParseAddrPort(at.String())
	}
	return ap.Addr()
}

// see shows whole packets.
func (x *Tap) see(who *Who, now time.Time, way Way, data []byte) {
	for len(data) > 0 {
		n := len(data)
		if h, err := packets.ParseHeader(data, who.Version); err == nil {
			n = min(n, h.Len+h.Remaining)
		}
		x.one(who, now, way, data[:n])
		data = data[n:]
	}
}

// one shows one packet.
func (x *Tap) one(who *Who, now time.Time, way Way, data []byte) {
	x.mu.Lock()
	over := x.oneLocked(who, now, way, data)
	x.mu.Unlock()
	if over {
		x.Stop()
	}
}

// oneLocked is one with x.mu held. It says whether x has shown all that it may.
func (x *Tap) oneLocked(who *Who, now time.Time, way Way, data []byte) (over bool) {
	if x.ended || x.o.Filter != "" && !x.matchesLocked(who, way, data) {
		return false
	}
	room := x.o.Buffer < 0 || len(x.waiting) < x.o.Buffer
	if !room || x.o.BufferBytes > 0 && x.bytes+len(data) > x.o.BufferBytes {
		x.lost.Add(1)
		x.missed++
		return false
	}
	p := hooks.TapPacket{
		Time: now, Conn: who.Conn, Client: who.Client, Incoming: way == In, Version: who.Version,
		Lost: x.missed,
	}
	x.missed = 0
	p.Data, p.Withheld = blank(data, who.Version)
	x.waiting = append(x.waiting, p)
	x.bytes += len(p.Data)
	x.shown++
	x.volume += len(p.Data)
	x.wake()
	x.ended = x.o.MaxPackets > 0 && x.shown >= x.o.MaxPackets || x.o.MaxBytes > 0 &&
		x.volume >= x.o.MaxBytes
	return x.ended
}

func (x *Tap) wake() {
	select {
	case x.signal <- struct{}{}:
	default:
	}
}

// matchesLocked says whether a packet is a PUBLISH whose topic matches the filter.
func (x *Tap) matchesLocked(who *Who, way Way, data []byte) bool {
	h, err := packets.ParseHeader(data, who.Version)
	if err != nil || h.Type != packets.TypePublish || h.Len+h.Remaining > len(data) {
		return false
	}
	var p packets.Publish
	if p.Decode(h, data[h.Len:h.Len+h.Remaining], who.Version) != nil {
		return false
	}
	n, aliased := p.Properties.Uint(packets.TopicAlias)
	key := alias{who.Conn, way, n}
	if len(p.Topic) == 0 {
		return aliased && x.aliases[key]
	}
	matches := packets.MatchTopic(x.o.Filter, who.Mount+string(p.Topic))
	if aliased {
		if x.aliases == nil || len(x.aliases) >= maxAliases {
			x.aliases = make(map[alias]bool)
		}
		x.aliases[key] = matches
	}
	return matches
}

// Packets is that of hooks.Tap.
func (x *Tap) Packets() iter.Seq[hooks.TapPacket] {
	return func(yield func(hooks.TapPacket) bool) {
		for {
			x.mu.Lock()
			all, ended := x.waiting, x.ended
			x.waiting, x.bytes = nil, 0
			x.mu.Unlock()
			for i := range all {
				if !yield(all[i]) {
					x.giveBack(all[i+1:])
					return
				}
			}
			if ended && len(all) == 0 {
				return
			}
			if len(all) == 0 {
				<-x.signal
			}
		}
	}
}

// giveBack keeps packets for the next call of Packets.
func (x *Tap) giveBack(rest []hooks.TapPacket) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.waiting = append(rest[:len(rest):len(rest)], x.waiting...)
	for i := range rest {
		x.bytes += len(rest[i].Data)
	}
	x.wake()
}

// Lost is that of hooks.Tap.
func (x *Tap) Lost() uint64 { return x.lost.Load() }

// Stop is that of hooks.Tap. The caller may hold the lock of a Session.
func (x *Tap) Stop() {
	x.of.remove(x)
	x.mu.Lock()
	x.ended = true
	x.wake()
	x.mu.Unlock()
	x.release()
}

// release stops what would stop x.
func (x *Tap) release() {
	x.mu.Lock()
	stops := x.stops
	x.stops = nil
	x.mu.Unlock()
	for _, stop := range stops {
		stop()
	}
}

const stars = "***"

// blank returns a copy of a packet without what is secret in it, or only the beginning of it.
func blank(data []byte, v packets.Version) (copied []byte, withheld bool) {
	const before = 14 // bytes of a CONNECT that come before everything that a client chooses
	short := func(n int) ([]byte, bool) { return slices.Clone(data[:min(n, len(data))]), true }
	switch packets.Type(data[0] >> 4) {
	case packets.TypeConnect:
		p, n, err := packets.Decode(data, 0, packets.Limits{})
		if err != nil || n != len(data) {
			return short(before)
		}
		c := p.(*packets.Connect)
		if c.HasPassword {
			c.Password = []byte(stars)
		}
		c.Username = hooks.ShownUser(c.Username) // a token is as good as a password
		c.Properties = blankProperties(c.Properties)
		return written(c, v, short)
	case packets.TypeAuth, packets.TypeConnack:
		p, n, err := packets.Decode(data, v, packets.Limits{})
		if err != nil || n != len(data) {
			return short(2)
		}
		switch p := p.(type) {
		case *packets.Auth:
			p.Properties = blankProperties(p.Properties)
		case *packets.Connack:
			p.Properties = blankProperties(p.Properties)
		}
		return written(p, v, short)
	}
	return slices.Clone(data), false
}

// written returns the bytes of p, or what short returns if it has none.
func written(p packets.Packet, v packets.Version, short func(n int) ([]byte, bool)) ([]byte, bool) {
	b, err := p.Append(nil, v)
	if err != nil {
		return short(2)
	}
	return b, false
}

func blankProperties(p packets.Properties) packets.Properties {
	if !p.Has(packets.AuthenticationData) {
		return p
	}
	return p.Without(nil, packets.AuthenticationData).AppendText(packets.AuthenticationData, stars)
}
