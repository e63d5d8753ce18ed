// Package waiting bounds the connections that wait for something: a first byte, a stream, a
// request. A peer that lets many connections wait takes places from itself first, and never all of
// them.
package waiting

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
)

// A Room has a bounded number of places for connections that wait.
//
// An address may hold at most as many places as are still free. So one address gets at most half of
// the Room, and two addresses get at most a third each. An address that holds as much as it may
// loses its oldest place to its newest connection. If no place is free at all, an address that
// holds none takes the oldest place of all.
//
// An address is an IPv4 address or an IPv6 /64 network. All peers without an IP address, such as
// those of a unix socket, count as one address. All methods may be called concurrently, and none
// blocks.
type Room struct {
	size int // immutable; negative: no bound

	// Guarded by mu.
	mu     sync.Mutex
	closed bool
	all    list.List // of *Place, the oldest first
	of     map[netip.Addr]*list.List
}

// A Place is what one connection holds in a Room.
type Place struct {
	r    *Room
	from netip.Addr

	// Guarded by r.mu.
	evict      func()        // nil: the Place cannot be taken away
	inAll, own *list.Element // nil: the Place is not held any more
}

// NewRoom returns a Room with so many places. A negative size means no bound.
func NewRoom(size int) *Room {
	return &Room{size: size, of: make(map[netip.Addr]*list.List)}
}

// Enter takes a Place for a connection from an address. It returns nil if there is none for it. The
// Room calls evict, at most once and without a lock, when it takes the Place away. evict must not
// block. If evict is nil the Place cannot be taken away.
func (r *Room) Enter(from net.Addr, evict func()) *Place {
	p := &Place{r: r, from: networkOf(from), evict: evict}
	r.mu.Lock()
	victim, ok := r.makeRoomLocked(p.from)
	var goes func()
	if victim != nil {
		goes = victim.evict
		victim.leaveLocked()
	}
	if ok {
		own := r.of[p.from]
		if own == nil {
			own = list.New()
			r.of[p.from] = own
		}
		p.inAll, p.own = r.all.PushBack(p), own.PushBack(p)
	}
	r.mu.Unlock()
	if goes != nil {
		goes()
	}
	if !ok {
		return nil
	}
	return p
}

// makeRoomLocked says whether a connection of an address gets a place, and which Place has to go
// for it, if one has to. The caller holds r.mu.
func (r *Room) makeRoomLocked(from netip.Addr) (victim *Place, ok bool) {
	if r.closed {
		return nil, false
	}
	mine, free := 0, r.size-r.all.Len()
	own := r.of[from]
	if own != nil {
		mine = own.Len()
	}
	switch {
	case r.size < 0 || mine < free:
		return nil, true
	case mine > 0:
		victim = oldest(own)
	default:
		victim = oldest(&r.all)
	}
	return victim, victim != nil
}

// oldest returns the oldest Place in l that can be taken away, or nil.
func oldest(l *list.List) *Place {
	for e := l.Front(); e != nil; e = e.Next() {
		if p := e.Value.(*Place); p.evict != nil {
			return p
		}
	}
	return nil
}

// Len returns how many places are held.
func (r *Room) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all.Len()
}

// Close takes all places away, and gives none from then on.
func (r *Room) Close() {
	r.mu.Lock()
	r.closed = true
	var goes []func()
	for e := r.all.Front(); e != nil; e = r.all.Front() {
		p := e.Value.(*Place)
		if p.evict != nil {
			goes = append(goes, p.evict)
		}
		p.leaveLocked()
	}
	r.mu.Unlock()
	for _, evict := range goes {
		evict()
	}
}

// OnEvict replaces the function that Enter was given. It returns false if the Place has been taken
// away before.
func (p *Place) OnEvict(evict func()) bool {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	p.evict = evict
	return p.inAll != nil
}

// Leave gives the Place back. It returns false if the Place has been taken away or given back
// before.
func (p *Place) Leave() bool {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	return p.leaveLocked()
}

// leaveLocked is Leave. The caller holds the lock of the Room.
func (p *Place) leaveLocked() bool {
	if p.inAll == nil {
		return false
	}
	own := p.r.of[p.from]
	p.r.all.Remove(p.inAll)
	if own.Remove(p.own); own.Len() == 0 {
		delete(p.r.of, p.from)
	}
	p.inAll, p.own = nil, nil
	return true
}

// networkOf returns what counts as one address. It is the zero Addr for a peer without an IP
// address.
func networkOf(a net.Addr) netip.Addr {
	var ip netip.Addr
	switch x := a.(type) {
	case nil:
	case *net.TCPAddr:
		ip = x.AddrPort().Addr()
	case *net.UDPAddr:
		ip = x.AddrPort().Addr()
	default:
		ap, _ := netip.ParseAddrPort(a.String()) // zero if it is something else
		ip = ap.Addr()
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is6() && !ip.IsLoopback() {
		p, _ := ip.Prefix(64) // an IPv6 address has 64 bits
		ip = p.Addr()
	}
	return ip
}
