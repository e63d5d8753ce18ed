package dunlin

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/logins"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what an address and a Client Identifier may do how often. Tables are bounded and have no goroutine: an entry is
// looked at when its address or identifier comes up, and makes room for others.

// A bucket holds tokens, which come at a rate, up to a burst. Zero: full.
type bucket struct {
	level float64
	at    int64 // when level was right, Unix nanoseconds
}

// fill adds what has come since.
func (k *bucket) fill(now int64, rate, burst float64) {
	if k.at == 0 {
		k.level = burst
	} else if now > k.at {
		k.level = min(burst, k.level+float64(now-k.at)/1e9*rate)
	}
	k.at = max(now, k.at)
}

// has says whether there is a token.
func (k *bucket) has(now int64, rate, burst float64) bool {
	k.fill(now, rate, burst)
	return k.level >= 1
}

// take takes a token if there is one.
func (k *bucket) take(now int64, rate, burst float64) bool {
	if !k.has(now, rate, burst) {
		return false
	}
	k.level--
	return true
}

// maxIdle is how many addresses without a connection, and how many Client Identifiers, are remembered.
const maxIdle = 1 << 16

// An address is what is known of an IPv4 address or an IPv6 /64 network.
type address struct {
	ip       netip.Addr
	conns    int
	connects bucket
}

// addresses is the table of them. Those with a connection are as many as there are connections, of others it keeps maxIdle.
type addresses struct {
	mu       sync.Mutex
	of       map[netip.Addr]*address // guarded by mu
	idle     int                     // how many of them have no connection; guarded by mu
	connects bucket                  // in all; guarded by mu

	logins *logins.Table // immutable
}

// remoteIP returns the IP address of a peer. ok is false if it has none.
func remoteIP(a net.Addr) (ip netip.Addr, ok bool) {
	if t, is := a.(*net.TCPAddr); is {
		ip = t.AddrPort().Addr()
	} else if a != nil {
		ap, err := netip.ParseAddrPort(a.String())
		if err != nil {
			return ip, false
		}
		ip = ap.Addr()
	}
	return ip.Unmap().WithZone(""), ip.IsValid()
}

// network is what counts as one address: of IPv6 the /64, which is what one subscriber has.
func network(ip netip.Addr) netip.Addr {
	if ip.Is6() && !ip.IsLoopback() {
		p, _ := ip.Prefix(64)
		ip = p.Addr()
	}
	return ip
}

// entry returns what is known of ip, and makes room if it is new. The lock is held.
func (as *addresses) entry(ip netip.Addr) *address {
	if a := as.of[ip]; a != nil {
		return a
	}
	if as.idle >= maxIdle {
		for old, a := range as.of { // in no order: whoever fills the table cannot choose
			if a.conns == 0 {
				delete(as.of, old)
				as.idle--
				break
			}
		}
	}
	a := &address{ip: ip}
	as.of[ip] = a
	as.idle++
	return a
}

// strictness says which limits the program has set itself. The defaults do not hold for loopback addresses and for peers without IP
// address: what is tried out or measured on one machine, and proxies in front of the broker, are not what they are for.
type strictness struct{ connections, rate, rateInAll, failures, takeovers bool }

func (c *Config) strictness() strictness {
	return strictness{
		c.MaxConnectionsPerIP != 0, c.ConnectRatePerIP != 0, c.ConnectRate != 0,
		c.MaxAuthFailures != 0 || c.MaxAuthFailuresPerIP != 0, c.MaxTakeovers != 0,
	}
}

// exempt says whether a limit that stands at its default does not hold for ip.
func exempt(set bool, ip netip.Addr, ok bool) bool { return !set && (!ok || ip.IsLoopback()) }

// admit decides whether a new connection from a is taken up at all. Nothing is spent on one that is not. dismiss must
// follow when it ends, with what admit has returned: nil for a peer without IP address. (Its address may be another one by then.)
func (b *Broker) admit(a net.Addr, now time.Time) (*address, error) {
	ip, ok := remoteIP(a)
	if b.bans.address(ip, ok, now) {
		return nil, packets.Errorf(packets.Banned, "the address is banned")
	}
	ip = network(ip)
	cfg, as, at := &b.cfg, &b.addresses, now.UnixNano()
	as.mu.Lock()
	defer as.mu.Unlock()
	if err := b.refusalLocked(ip, ok, at); err != nil {
		return nil, err
	}
	var x *address
	if !exempt(b.strict.rateInAll, ip, ok) {
		as.connects.take(at, cfg.ConnectRate, max(cfg.ConnectRate, 1))
	}
	if ok {
		x = as.entry(ip)
		x.connects.take(at, cfg.ConnectRatePerIP, max(cfg.ConnectRatePerIP, 1))
		if x.conns++; x.conns == 1 {
			as.idle--
		}
	}
	return x, nil
}

// refusalLocked says why a connection from ip is not taken up now, if it is not. It takes nothing from any bucket, so that an address
// that is refused does not use up what all have. ok is false for a peer without IP address. The lock of the addresses is held.
func (b *Broker) refusalLocked(ip netip.Addr, ok bool, at int64) error {
	cfg, as := &b.cfg, &b.addresses
	if x := as.of[ip]; ok && x != nil {
		switch {
		case x.conns >= cfg.MaxConnectionsPerIP && !exempt(b.strict.connections, ip, ok):
			return packets.Errorf(packets.QuotaExceeded, "more than %d connections from the address", cfg.MaxConnectionsPerIP)
		case cfg.ConnectRatePerIP > 0 && !exempt(b.strict.rate, ip, ok) && !x.connects.has(at, cfg.ConnectRatePerIP, max(cfg.ConnectRatePerIP, 1)):
			return packets.Errorf(packets.ConnectionRateExceeded, "more than %g connections per second from the address", cfg.ConnectRatePerIP)
		}
	}
	if cfg.ConnectRate > 0 && !exempt(b.strict.rateInAll, ip, ok) && !as.connects.has(at, cfg.ConnectRate, max(cfg.ConnectRate, 1)) {
		return packets.Errorf(packets.ConnectionRateExceeded, "more than %g connections per second", cfg.ConnectRate)
	}
	return nil
}

// Admits says whether the Broker would take up a connection from an address now: it returns nil if so, and otherwise an error that says
// which Ban or which limit of Config for addresses is in the way. It returns ErrBrokerClosed after Shutdown or Close. It counts nothing,
// tells the Observer nothing and does not block. A listener that lets connections wait before Accept returns them asks it first: see the
// option Admit of packages listeners/mux, listeners/websocket and listeners/quic.
func (b *Broker) Admits(from net.Addr) error {
	if b.isClosed() {
		return ErrBrokerClosed
	}
	now := time.Now()
	ip, ok := remoteIP(from)
	if b.bans.address(ip, ok, now) {
		return packets.Errorf(packets.Banned, "the address is banned")
	}
	as := &b.addresses
	as.mu.Lock()
	defer as.mu.Unlock()
	return b.refusalLocked(network(ip), ok, now.UnixNano())
}

// dismiss is the end of a connection that was admitted with x.
func (b *Broker) dismiss(x *address, now time.Time) {
	if x == nil {
		return
	}
	cfg, as := &b.cfg, &b.addresses
	as.mu.Lock()
	defer as.mu.Unlock()
	if x.conns--; x.conns > 0 {
		return
	}
	as.idle++
	burst := max(cfg.ConnectRatePerIP, 1)
	x.connects.fill(now.UnixNano(), cfg.ConnectRatePerIP, burst)
	if x.connects.level >= burst { // nothing to remember
		delete(as.of, x.ip)
		as.idle--
	}
}

// errSlowed refuses a client because of failures before.
var errSlowed = packets.Errorf(packets.ConnectionRateExceeded,
	"too many authentications have failed, try again later")

// asks has a hook decide about the client, unless too many of its kind were refused. decided says
// whether a nil error accepts the client, or the hook wants to hear more. The error is a
// *packets.Error.
func (c *conn) asks(hook func(known bool) (decided bool, err error)) error {
	b, table, client := c.b, c.b.addresses.logins, c.client
	ip, ok := remoteIP(client.RemoteAddr)
	who := logins.Who{
		Addr: network(ip), Name: client.Username, Named: client.HasUsername, Again: c.accepted,
		Exempt: !ok || exempt(b.strict.failures, ip, ok),
	}
	if !who.Named {
		who.Name = client.ID
	}
	x, ok := table.Begin(who, time.Now())
	if !ok {
		b.log.Debug("authentication is slowed down", "address", who.Addr, "client", client.ID)
		return errSlowed
	}
	decided, err := hook(x.Known)
	switch {
	case err == nil && decided:
		table.Accepted(x, time.Now())
		return nil
	case err == nil:
		table.Undecided(x, time.Now())
		return nil
	}
	refusal := b.refusal(err, "client", client.ID)
	switch {
	case !failedLogin(err, refusal):
		table.Undecided(x, time.Now())
	case x.Over:
		return errSlowed // what unknown names get, so that nobody learns which names are known
	}
	return refusal
}

// failedLogin says whether a hook has refused the client: it has not if it failed itself or was too
// busy.
func failedLogin(err, refusal error) bool {
	_, decided := errors.AsType[*packets.Error](err)
	if !decided && !errors.Is(err, hooks.ErrAbstain) {
		return false
	}
	switch packets.CodeOf(refusal) {
	case packets.BadUserNameOrPassword, packets.NotAuthorized, packets.Banned,
		packets.BadAuthenticationMethod:
		return true
	}
	return false
}

// A flapTable counts takeovers by session.place.
type flapTable struct {
	mu sync.Mutex
	of map[string]bucket // guarded by mu
}

// tookOver counts that c has taken over its Client Identifier, and bans that if it goes on in a loop.
func (b *Broker) tookOver(c *conn, now time.Time) {
	cfg, ft := &b.cfg, &b.flaps
	ip, ok := remoteIP(c.nc.RemoteAddr())
	if cfg.MaxTakeovers <= 0 || cfg.BanTime == 0 || exempt(b.strict.takeovers, ip, ok) {
		return
	}
	key, most := c.sessionKey(), float64(cfg.MaxTakeovers)
	ft.mu.Lock()
	k, known := ft.of[key]
	if !known && len(ft.of) >= maxIdle {
		for old := range ft.of { // in no order
			delete(ft.of, old)
			break
		}
	}
	within := k.take(now.UnixNano(), most/60, most)
	if ft.of[key] = k; !within {
		delete(ft.of, key)
	}
	ft.mu.Unlock()
	if !within { // what was counted for one owner is banned for that one
		x := Ban{Kind: BanClient, Value: key, Until: now.Add(cfg.BanTime), Reason: "taken over in a loop"}
		if cfg.SessionPerPrincipal {
			x.Kind = BanSession
		}
		b.ban(x, true)
	}
}

// A pace is what an owner may publish in time, over all its connections. What it owes outlives them.
type pace struct {
	owner  string // its key in the table; immutable, as the next
	refuse bool
	users  int // connections; guarded by paceTable.mu

	mu          sync.Mutex // a leaf. Guards what follows
	rate, bytes float64    // per second; 0: no limit. Those of the connection that came last
	messages    bucket
	volume      bucket
}

// A paceTable holds the paces of owners that are connected, and of maxIdle others that owe something.
type paceTable struct {
	mu   sync.Mutex
	of   map[string]*pace // guarded by mu
	idle int              // how many of them have no connection; guarded by mu
}

// paceOf returns the limits of a connection that is being accepted, nil if there are none. leavePace must follow.
func (b *Broker) paceOf(c *conn, p *packets.Connect, l *hooks.Limits) *pace {
	lower := func(general, own float64) float64 {
		switch {
		case own <= 0:
			return max(general, 0)
		case general <= 0:
			return own
		}
		return min(general, own)
	}
	rate, bytes := lower(b.cfg.PublishRate, l.PublishRate), lower(b.cfg.PublishBytes, l.PublishBytes)
	if rate == 0 && bytes == 0 {
		return nil
	}
	owner := "client " + p.ClientID
	switch {
	case c.named() && !b.open():
		owner = "principal " + c.client.Identity.Principal
	case p.ClientID == "": // it gets another one each time
		ip, _ := remoteIP(c.client.RemoteAddr)
		owner = "address " + network(ip).String()
	}
	ps := &b.paces
	ps.mu.Lock()
	defer ps.mu.Unlock()
	x := ps.of[owner]
	if x == nil {
		x = &pace{owner: owner, refuse: b.cfg.OverRate == RefusePublish}
		ps.of[owner] = x
	} else if x.users == 0 {
		ps.idle--
	}
	x.users++
	x.mu.Lock()
	x.rate, x.bytes = rate, bytes
	x.mu.Unlock()
	return x
}

// leavePace is the end of a connection of x, which may be nil.
func (b *Broker) leavePace(x *pace, now time.Time) {
	if x == nil {
		return
	}
	ps := &b.paces
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if x.users--; x.users > 0 {
		return
	}
	if x.full(now.UnixNano()) {
		delete(ps.of, x.owner)
		return
	}
	if ps.idle >= maxIdle {
		for owner, old := range ps.of { // in no order: an attacker that fills the table cannot choose
			if old.users == 0 && old != x {
				delete(ps.of, owner)
				ps.idle--
				break
			}
		}
	}
	ps.idle++
}

// fillLocked adds what has come since. A second's worth may come at once. mu is held.
func (p *pace) fillLocked(now int64) {
	p.messages.fill(now, p.rate, max(p.rate, 1))
	p.volume.fill(now, p.bytes, p.bytes)
}

// full says whether nothing of a second's worth is used.
func (p *pace) full(now int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fillLocked(now)
	return (p.rate == 0 || p.messages.level >= max(p.rate, 1)) && (p.bytes == 0 || p.volume.level >= p.bytes)
}

// take counts a PUBLISH of n bytes if it is within the limits, and says whether it is. One message may be larger than what is left of
// the bytes, and is a debt.
func (p *pace) take(now int64, n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fillLocked(now)
	if p.rate > 0 && p.messages.level < 1 || p.bytes > 0 && p.volume.level <= 0 {
		return false
	}
	p.messages.level--
	p.volume.level -= float64(n)
	return true
}

// wait is how long it takes until the next PUBLISH is within the limits, at most an hour.
func (p *pace) wait(now int64) (d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fillLocked(now)
	until := func(level, rate float64) {
		if rate > 0 && level < 1 {
			d = max(d, time.Duration(min((1-level)/rate, 3600)*1e9)+1)
		}
	}
	until(p.messages.level, p.rate)
	if p.volume.level <= 0 {
		until(p.volume.level, p.bytes)
	}
	return d
}

// within says whether a PUBLISH of n bytes may be decoded now. With PauseReading the reader pauses before the first that is beyond the
// rate, and all other packets before it have been handled. RefusePublish is for onPublish to do.
func (c *conn) within(t *turn, n int) bool {
	p := c.few().pace
	return p == nil || p.refuse || p.take(t.now.UnixNano(), n)
}

// pause waits until the client may publish again, or the connection is to end.
func (c *conn) pause() error {
	r := c.few()
	t := time.NewTimer(r.pace.wait(time.Now().UnixNano()))
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.wake:
	case <-c.b.ctx.Done():
	}
	c.lastPacket = time.Since(c.b.started) // its Keep Alive is not to blame for what was not read
	return c.stopped()
}

// unpause ends a pause. The lock is held.
func (c *conn) unpause() {
	if r := c.few(); r.wake != nil {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// flowing is how much of an incomplete packet was there when the bytes of it last counted as life (Config.SlowLinkRate).
type flowing struct {
	bytes int
	at    time.Duration // conn.lastPacket, as it was set then: another value is that of a whole packet
}

// flows says whether enough of a packet that is not complete has come in the time of Keep Alive, which then begins anew.
func (c *conn) flows(now time.Time) bool {
	rate := c.b.cfg.SlowLinkRate
	if rate <= 0 || c.rest == nil {
		return false
	}
	n := len(c.rest.b)
	if f := c.few().flowing; f.at == c.lastPacket {
		n -= f.bytes
	}
	if float64(n) < max(1, rate*c.keepAlive.Seconds()) {
		return false
	}
	c.lastPacket = now.Sub(c.b.started)
	c.own().flowing = flowing{len(c.rest.b), c.lastPacket}
	return true
}

// The beginnings of packets of more than keepSize bytes take room before more of them is read: so
// many percent of MaxMemory for all. A reader that finds none waits. With those that wait they take
// at most partialMost percent; beyond that, and after roomPatience, the connection ends. While others
// wait, a packet has to come within partialTime.
const (
	partialPercent = 25
	partialMost    = 50
	partialTime    = 10 * time.Second
)

var errNoMemoryToRead = packets.Errorf(packets.QuotaExceeded,
	"there is no memory to read the packet: too many large ones come at the same time, or too slowly")

// wants returns how much room the packet takes that b begins with, 0 if it needs none.
func (c *conn) wants(b []byte) int {
	v := c.version
	if !c.accepted {
		v = 0
	}
	h, err := packets.ParseHeader(b, v)
	n := h.Len + h.Remaining
	if err != nil || n <= keepSize {
		return 0
	}
	if k, size := class(n); k < classes {
		return size
	}
	return n
}

// expect takes the room of the packet that the read buffer holds the beginning of, and gives back
// that of the one before. It waits for it while the connection holds none, so that those who hold
// some never wait.
func (c *conn) expect(t *turn) error {
	n := 0
	if len(t.read.b) > 0 {
		n = c.wants(t.read.b)
	}
	if n == int(c.partial) {
		return nil
	}
	c.givePartial()
	if n == 0 {
		return nil
	}
	if cap(t.read.b) > n {
		x := newBuffer(n)
		x.b = append(x.b, t.read.b...)
		t.read.free()
		t.read = x
	}
	if !c.b.reading.take(int64(n)) {
		if err := c.awaitPartial(t, n); err != nil {
			return err
		}
	}
	c.partial = int32(n)
	c.partialSince.Store(int32(time.Since(c.b.started)/time.Second) + 1)
	return nil
}

// awaitPartial waits for n bytes of room to read.
func (c *conn) awaitPartial(t *turn, n int) error {
	b := c.b
	b.memory.Recount(budget.Partial, &c.restCounted, cap(t.read.b))
	if b.memory.Of(budget.Partial) > b.memory.Limit()/100*partialMost {
		return errNoMemoryToRead
	}
	evict := time.AfterFunc(partialTime, b.endSlowest)
	defer evict.Stop()
	err := b.reading.await(c.context(), int64(n), nil)
	if c.accepted {
		c.lastPacket = time.Since(b.started) // its Keep Alive is not to blame for what was not read
	}
	if errors.Is(err, errNoRoom) {
		return errNoMemoryToRead
	}
	return err
}

// countRest tells the count of memory what the beginning of an incomplete packet takes.
func (c *conn) countRest() {
	n := 0
	if c.rest != nil {
		n = cap(c.rest.b)
	}
	c.b.memory.Recount(budget.Partial, &c.restCounted, n)
}

// givePartial gives back the room of the packet that has come, or of the connection that ends.
func (c *conn) givePartial() {
	if n := c.partial; n > 0 {
		c.partial = 0
		c.partialSince.Store(0)
		c.b.reading.give(int64(n))
	}
}

// endSlowest ends the connection whose packet has taken room for the longest, if that is too long
// while others wait.
func (b *Broker) endSlowest() {
	since := int32((time.Since(b.started)-partialTime)/time.Second) + 1
	var slowest *conn
	look := func(c *conn) {
		if at := c.partialSince.Load(); at != 0 && at <= since {
			slowest, since = c, at
		}
	}
	b.mu.Lock()
	for c := range b.early {
		look(c)
	}
	for c := range b.conns {
		look(c)
	}
	b.mu.Unlock()
	if slowest != nil && slowest.partialSince.CompareAndSwap(since, 0) {
		b.end(slowest, errNoMemoryToRead)
	}
}
