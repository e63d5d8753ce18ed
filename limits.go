package dunlin

import (
	"errors"
	"math"
	"net"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/guard"
	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/logins"
	"github.com/dunlin-mqtt/dunlin/internal/recent"
	"github.com/dunlin-mqtt/dunlin/internal/room"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what an address, a client and an owner may do how often. The tables are those of
// package guard. It is also the room for large packets that have come in part.

// strictness says which limits the program has set itself. The defaults do not hold for loopback
// addresses and for peers without IP address: what is tried out or measured on one machine, and
// proxies in front of the broker, are not what they are for.
type strictness struct{ connections, rate, rateInAll, failures, takeovers bool }

func (c *Config) strictness() strictness {
	return strictness{
		c.MaxConnectionsPerIP != 0, c.ConnectRatePerIP != 0, c.ConnectRate != 0,
		c.MaxAuthFailures != 0 || c.MaxAuthFailuresPerIP != 0, c.MaxTakeovers != 0,
	}
}

// addressLimits are those of package guard.
func (s *settings) addressLimits() guard.Limits {
	return guard.Limits{
		PerIP: s.MaxConnectionsPerIP, PerIPForLocal: s.strict.connections,
		RatePerIP: s.ConnectRatePerIP, RatePerIPForLocal: s.strict.rate,
		Rate: s.ConnectRate, RateForLocal: s.strict.rateInAll,
	}
}

// loginLimits are those of package logins.
func (s *settings) loginLimits() logins.Limits {
	return logins.Limits{PerName: s.MaxAuthFailures, PerAddress: s.MaxAuthFailuresPerIP}
}

// admit decides whether a new connection from a is taken up at all. Nothing is spent on one that is
// not. addresses.Dismiss must follow when it ends, with what admit has returned: nil for a peer
// without IP address. (Its address may be another one by then.)
func (b *Broker) admit(a net.Addr, now time.Time) (*guard.Address, error) {
	ip := guard.RemoteIP(a)
	if b.guard.Bans.HasAddress(ip, now) {
		return nil, errAddressBanned
	}
	from, err := b.guard.Addresses.Admit(ip, now)
	return from, recent.Mark(hooks.EndAddressLimit, err)
}

var errAddressBanned = recent.As(hooks.EndAddressBanned,
	packets.Errorf(packets.Banned, "the address is banned"))

// Admits says whether the Broker would take up a connection from an address now: it returns nil if
// so, and otherwise an error that says which Ban or which limit of Config for addresses is in the
// way. It returns ErrBrokerClosed after Shutdown or Close. It counts nothing, tells the Observer
// nothing and does not block. A listener that lets connections wait before Accept returns them asks
// it first: see the option Admit of packages listeners/mux, listeners/websocket and listeners/quic.
func (b *Broker) Admits(from net.Addr) error {
	if b.isClosed() {
		return ErrBrokerClosed
	}
	ip, now := guard.RemoteIP(from), time.Now()
	if b.guard.Bans.HasAddress(ip, now) {
		return errAddressBanned
	}
	return b.guard.Addresses.Refusal(ip, now)
}

// errSlowed refuses a client because of failures before.
var errSlowed = packets.Errorf(packets.ConnectionRateExceeded,
	"too many authentications have failed, try again later")

// asks has a hook decide about the client, unless too many of its kind were refused. decided says
// whether a nil error accepts the client, or the hook wants to hear more. The error is a
// *packets.Error.
func (c *conn) asks(hook func(known bool) (decided bool, err error)) error {
	who := c.b.whoIs(c.client)
	who.Again = c.accepted
	return c.b.asks(c.client, who, hook)
}

// whoIs says what the failed authentications of a client count for.
func (b *Broker) whoIs(client *hooks.Client) logins.Who {
	ip := guard.RemoteIP(client.RemoteAddr)
	who := logins.Who{
		Addr: guard.Network(ip), Name: client.Username, Named: client.HasUsername,
		Exempt: !ip.IsValid() || !b.cfg().strict.failures && guard.Local(ip),
	}
	if !who.Named {
		who.Name = client.ID
	}
	return who
}

// asks is that of conn.
func (b *Broker) asks(
	client *hooks.Client, who logins.Who, hook func(known bool) (decided bool, err error),
) error {
	table := b.logins
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

// tookOver counts that c has taken over its Client Identifier, and bans that if it goes on in a
// loop.
func (b *Broker) tookOver(c *conn, now time.Time) {
	cfg, ip := b.cfg(), guard.RemoteIP(c.nc.RemoteAddr())
	if cfg.MaxTakeovers <= 0 || cfg.BanTime == 0 || !b.cfg().strict.takeovers && guard.Local(ip) {
		return
	}
	// What was counted for one owner is banned for that one. So nobody who only claims a name keeps
	// out the principal whose Client Identifier it is.
	x := Ban{Kind: BanClient, Value: c.client.ID, Until: now.Add(cfg.BanTime),
		Reason: "taken over in a loop"}
	if cfg.SessionPerPrincipal || !c.named() && !cfg.open() {
		x.Kind, x.Value = BanSession, signature(c.client.ID, c.client.Identity.Principal, c.named())
	}
	if b.guard.Takeovers.Count(shortKey(x.Value), cfg.MaxTakeovers, now) {
		return
	}
	b.ban(x, bannedByBroker)
}

// paceOf returns the limits of a connection that is being accepted, nil if there are none.
// paces.Leave must follow.
func (b *Broker) paceOf(c *conn, p *packets.Connect, l *hooks.Limits) *guard.Pace {
	owner := "client " + c.client.ID
	switch {
	case c.named() && !b.cfg().open():
		owner = "principal " + c.client.Identity.Principal
	case p.ClientID == "": // it gets another one each time
		owner = "address " + guard.Network(guard.RemoteIP(c.client.RemoteAddr)).String()
	}
	return b.joinPace(owner, l)
}

// joinPace returns the limits of an owner, as paceOf does.
func (b *Broker) joinPace(owner string, l *hooks.Limits) *guard.Pace {
	lower := func(general, own float64) float64 {
		switch {
		case own <= 0:
			return max(general, 0)
		case general <= 0:
			return own
		}
		return min(general, own)
	}
	rate, bytes := lower(b.cfg().PublishRate, l.PublishRate),
		lower(b.cfg().PublishBytes, l.PublishBytes)
	if rate == 0 && bytes == 0 {
		return nil
	}
	return b.guard.Paces.Join(shortKey(owner), rate, bytes)
}

// within says whether a PUBLISH of n bytes may be decoded now. With OverRatePauseReading the reader
// pauses before the first that is beyond the rate, and all other packets before it have been
// handled. OverRateRefusePublish is for onPublish to do.
func (c *conn) within(t *turn, n int) bool {
	return c.extra == nil || c.extra.pace == nil || c.paced(t, n)
}

// paced is within for an owner that has a rate.
func (c *conn) paced(t *turn, n int) bool {
	return c.b.cfg().OverRate == OverRateRefusePublish || c.extra.pace.Take(t.now.UnixNano(), n)
}

// pause waits until the client may publish again, or the connection is to end.
func (c *conn) pause() error {
	c.handOver()
	r := c.readExtra()
	t := time.NewTimer(r.pace.Delay(time.Now().UnixNano()))
	defer t.Stop()
	lock.NoneHeld("a wait")
	select {
	case <-t.C:
	case <-r.wake:
	case <-c.b.ctx.Done():
	}
	c.lastPacket = time.Since(c.b.started) // its Keep Alive is not to blame for what was not read
	return c.stopped()
}

// unpause ends a pause. c.sess.mu is held.
func (c *conn) unpause() {
	if r := c.readExtra(); r.wake != nil {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// flowing is how much of an incomplete packet was there when the bytes of it last counted as life
// (Config.SlowLinkRate).
type flowing struct {
	bytes int
	// conn.lastPacket, as it was set then: another value is that of a whole packet
	at time.Duration
}

// flows says whether enough of a packet that is not complete has come in the time of Keep Alive,
// which then begins anew.
func (c *conn) flows(now time.Time) bool {
	rate := c.b.cfg().SlowLinkRate
	if rate <= 0 || c.rest == nil {
		return false
	}
	n := len(c.rest.B)
	if f := c.readExtra().flowing; f.at == c.lastPacket {
		n -= f.bytes
	}
	if float64(n) < max(1, rate*c.keepAlive.Seconds()) {
		return false
	}
	c.lastPacket = now.Sub(c.b.started)
	c.makeExtra().flowing = flowing{len(c.rest.B), c.lastPacket}
	return true
}

// The beginnings of packets of more than keepSize bytes take room before more of them is read: so
// many percent of MaxMemory for all. A reader that finds none waits. With those that wait they take
// at most partialMost percent; beyond that, and after roomPatience, the connection ends. While
// others wait, a packet has to come within partialTime.
const (
	partialPercent = 25
	partialMost    = 50
	partialTime    = 10 * time.Second
)

var errNoMemoryToRead = recent.As(hooks.EndMemory, packets.Errorf(packets.QuotaExceeded,
	"there is no memory to read the packet: too many large ones come at the same time, or too "+
		"slowly"))

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
	return link.Fitting(n)
}

// expect takes the room of the packet that the read buffer holds the beginning of, and gives back
// that of the one before. It waits for it while the connection holds none, so that those who hold
// some never wait.
func (c *conn) expect(t *turn) error {
	n := 0
	if len(t.read.B) > 0 {
		n = c.wants(t.read.B)
	}
	if n == int(c.partial) {
		return nil
	}
	c.givePartial()
	if n == 0 {
		return nil
	}
	if cap(t.read.B) > n {
		x := link.NewBuffer(n)
		x.B = append(x.B, t.read.B...)
		t.read.Free()
		t.read = x
	}
	if !c.b.reading.Take(int64(n)) {
		if err := c.awaitPartial(n, cap(t.read.B)); err != nil {
			return err
		}
	}
	c.holdPartial(n)
	return nil
}

// holdPartial notes that c has taken n bytes of room to read.
func (c *conn) holdPartial(n int) {
	c.partial = int32(n)
	c.partialSince.Store(int32(time.Since(c.b.started)/time.Second) + 1)
}

// The memory that a Topic Filter of a SUBSCRIBE or of an UNSUBSCRIBE takes besides its bytes until
// the packet is answered: its place in the decoded packet, in the list for the Store, in the
// answer, and its grant.
const (
	subscribedCost   = 192
	unsubscribedCost = 64
)

// checked refuses a packet with a body of size bytes that exceeds the limits of Config, and takes
// the room of its filters.
func (c *conn) checked(t *turn, p packets.Packet, size int) error {
	limits := packets.Limits{Filters: c.b.cfg().MaxFilters,
		UserProperties: c.b.cfg().MaxUserProperties}
	if err := limits.Check(p); err != nil {
		return err
	}
	switch p := p.(type) {
	case *packets.Subscribe:
		return c.unpacked(t, size+subscribedCost*len(p.Subscriptions))
	case *packets.Unsubscribe:
		return c.unpacked(t, size+unsubscribedCost*len(p.Filters))
	}
	return nil
}

// unpacked takes the room of a packet whose filters take n bytes beside the read buffer, unless n
// is small, until hooks and the Store have decided about them. expect gives it back.
func (c *conn) unpacked(t *turn, n int) error {
	if n <= keepSize || !c.b.callsOut {
		return nil
	}
	c.givePartial()
	n = min(n, math.MaxInt32/2)    // c.partial is an int32
	decoded := n/4 + cap(t.read.B) // without what is still to come
	if n += cap(t.read.B); !c.b.reading.Take(int64(n)) {
		t.end() // the others need not wait
		t.trim()
		if err := c.awaitPartial(n, decoded); err != nil {
			return err
		}
		t.now = time.Now()
	}
	c.holdPartial(n)
	c.b.memory.Recount(budget.Partial, &c.restCounted, n)
	return c.stopped()
}

// awaitPartial waits for n bytes of room to read. c holds so many already.
func (c *conn) awaitPartial(n, holds int) error {
	b := c.b
	b.memory.Recount(budget.Partial, &c.restCounted, holds)
	if b.memory.Of(budget.Partial) > b.memory.Limit()/100*partialMost {
		return errNoMemoryToRead
	}
	c.handOver()
	evict := time.AfterFunc(partialTime, b.endSlowest)
	defer evict.Stop()
	err := b.reading.Await(c.context(), int64(n), nil)
	if c.accepted {
		c.lastPacket = time.Since(b.started) // its Keep Alive is not to blame for what was not read
	}
	if errors.Is(err, room.ErrNone) {
		return errNoMemoryToRead
	}
	return err
}

// fit is called before something that may wait. It makes the read buffer as small as its content,
// and counts it unless it is small. Nothing else may refer to the buffer.
func (c *conn) fit(t *turn) {
	x := t.read
	if x == nil {
		return
	}
	if n := len(x.B); link.Fitting(n) < cap(x.B) {
		t.read = link.NewBuffer(n)
		t.read.B = append(t.read.B, x.B...)
		x.Free()
	}
	if n := cap(t.read.B); n > keepSize {
		c.b.memory.Recount(budget.Partial, &c.restCounted, n)
	}
}

// mayWait says whether a packet that begins with first may wait for hooks or the Store.
func (b *Broker) mayWait(first byte) bool {
	switch k := packets.Type(first >> 4); {
	case k == packets.TypePublish:
		return b.publishWaits
	case k >= packets.TypePuback && k <= packets.TypePubcomp, k == packets.TypePingreq:
		return false
	}
	return b.callsOut
}

// countRest tells the count of memory what the beginning of an incomplete packet takes.
func (c *conn) countRest() {
	n := 0
	if x := c.rest; x != nil && (len(x.B) > 0 || cap(x.B) > keepSize) { // see streamCost
		n = cap(x.B)
	}
	c.b.memory.Recount(budget.Partial, &c.restCounted, n)
}

// givePartial gives back the room of the packet that has come, or of the connection that ends.
func (c *conn) givePartial() {
	if n := c.partial; n > 0 {
		c.partial = 0
		c.partialSince.Store(0)
		c.b.reading.Give(int64(n))
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
		b.endConn(slowest, errNoMemoryToRead)
	}
}
