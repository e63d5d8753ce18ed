package dunlin

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/guard"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// fromAddr is a connection that says it comes from an address.
type fromAddr struct {
	net.Conn
	addr net.Addr
}

func (c fromAddr) RemoteAddr() net.Addr { return c.addr }

func tcpAddr(s string) net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(s), 50000))
}

// dialFrom connects from an address. What the broker returns for it goes to the channel.
func (r *guardRig) dialFrom(addr string) (net.Conn, <-chan error) {
	client, server := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- r.b.ServeConn(context.Background(), fromAddr{server, tcpAddr(addr)}) }()
	return client, served
}

// connectFrom connects a client from an address and returns the Reason Code, or -1 if the
// connection was closed without an answer.
func (r *guardRig) connectFrom(addr string, p *packets.Connect) (*testClient, int) {
	r.t.Helper()
	nc, _ := r.dialFrom(addr)
	c := &testClient{t: r.t, nc: nc, r: packets.NewReader(nc, packets.Limits{}), v: p.Version}
	c.r.SetVersion(p.Version)
	b, err := p.Append(nil, p.Version)
	require.NoError(r.t, err)
	if _, err := nc.Write(b); err != nil {
		return c, -1
	}
	ack, err := c.r.ReadPacket()
	if err != nil {
		return c, -1
	}
	return c, int(ack.(*packets.Connack).Code)
}

// admit and dismiss are the beginning and the end of a connection, without one.
func (r *guardRig) admit(a net.Addr, now time.Time) error {
	x, err := r.b.admit(a, now)
	if x != nil {
		if r.admitted == nil {
			r.admitted = make(map[netip.Addr]*guard.Address)
		}
		r.admitted[x.IP] = x
	}
	return err
}

func (r *guardRig) dismiss(a net.Addr, now time.Time) {
	r.b.guard.Addresses.Dismiss(r.admitted[guard.Network(guard.RemoteIP(a))], now)
}

// noConnections says that no address has a connection.
func (r *guardRig) noConnections() {
	r.t.Helper()
	all, idle := r.b.guard.Addresses.Len()
	require.Equal(r.t, all, idle)
}

// moving is a connection whose address changes, as those of QUIC can.
type moving struct {
	net.Conn
	asked *int
}

func (c moving) RemoteAddr() net.Addr {
	*c.asked++
	return tcpAddr(fmt.Sprint("192.0.2.", *c.asked))
}

func TestAnAddressThatChangesIsCountedOnce(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		client, server := net.Pipe()
		served, asked := make(chan error, 1), 0
		go func() { served <- r.b.ServeConn(context.Background(), moving{server, &asked}) }()
		synctest.Wait()
		client.Close()
		require.Error(t, <-served)
		r.noConnections()
	})
}

func TestConnectionsOfOneAddressAreBounded(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.MaxConnectionsPerIP = 2 }, func(r *guardRig) {
		var all []*testClient
		try := func(id, addr string, want int) *testClient {
			t.Helper()
			c, code := r.connectFrom(addr, as(id, "u"))
			require.Equal(t, want, code, "%s from %s", id, addr)
			all = append(all, c)
			return c
		}
		first := try("a", "192.0.2.1", 0)
		try("b", "192.0.2.1", 0)
		try("c", "192.0.2.1", -1)
		try("c", "::ffff:192.0.2.1", -1)
		try("c", "192.0.2.2", 0)
		try("d", "2001:db8:0:1::1", 0)
		try("e", "2001:db8:0:1:ffff::2", 0)
		try("f", "2001:db8:0:1::3", -1) // the same /64
		try("f", "2001:db8:0:2::3", 0)
		try("l1", "127.0.0.1", 0)
		try("l2", "127.0.0.1", 0)
		try("l3", "127.0.0.1", -1) // what is set holds for loopback as well
		first.close()
		try("c", "192.0.2.1", 0) // its place is free
		require.EqualValues(t, 4, r.b.Stats().Refused)
		for _, c := range all {
			c.nc.Close()
		}
		synctest.Wait()
		r.noConnections()
	})
}

func TestConnectionRates(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.ConnectRatePerIP, c.ConnectRate = 2, 5 },
		func(r *guardRig) {
			from := func(addr string) error {
				err := r.admit(tcpAddr(addr), time.Now())
				if err == nil {
					r.dismiss(tcpAddr(addr), time.Now())
				}
				return err
			}
			refused := func(addr, why string) {
				t.Helper()
				err := from(addr)
				require.Equal(t, packets.ConnectionRateExceeded, packets.CodeOf(err), why)
			}
			require.NoError(t, from("192.0.2.1"))
			require.NoError(t, from("192.0.2.1"))
			for range 10 {
				refused("192.0.2.1", "a second's worth has come; this must not use up what others have")
			}
			require.NoError(t, from("192.0.2.2"))
			require.NoError(t, from("192.0.2.3"))
			require.NoError(t, from("192.0.2.4"))
			refused("192.0.2.5", "five in all")
			time.Sleep(499 * time.Millisecond)
			refused("192.0.2.1", "half a second is not over")
			time.Sleep(time.Millisecond)
			require.NoError(t, from("192.0.2.1"))
			refused("192.0.2.1", "one has come back, not two")
			time.Sleep(time.Hour)
			for range 2 {
				require.NoError(t, from("192.0.2.1"))
			}
			refused("192.0.2.1", "no more than a second's worth is saved up")
		})
}

// Whatever is measured or tried out on one machine works with the defaults; an address of the net
// is limited.
func TestDefaultLimitsLeaveLoopbackOut(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		now := time.Now()
		for range 60_000 {
			require.NoError(t, r.admit(tcpAddr("127.0.0.1"), now))
			require.NoError(t, r.admit(tcpAddr("::1"), now))
			require.NoError(t, r.admit(&net.UnixAddr{Name: "@x"}, now))
		}
		for range 1_000 {
			require.NoError(t, r.admit(tcpAddr("192.0.2.1"), now))
		}
		require.Equal(t, packets.ConnectionRateExceeded,
			packets.CodeOf(r.admit(tcpAddr("192.0.2.1"), now)))
		for range 9 {
			now = now.Add(time.Second)
			for range 1_000 {
				require.NoError(t, r.admit(tcpAddr("192.0.2.1"), now))
			}
		}
		require.Equal(t, packets.QuotaExceeded, packets.CodeOf(r.admit(tcpAddr("192.0.2.1"),
			now.Add(time.Minute))), "10,000 connections")
		for range 10_000 {
			r.dismiss(tcpAddr("192.0.2.1"), now)
		}
	})
}

// An attacker with many addresses makes the broker remember no more than it has room for.
func TestTheTableOfAddressesIsBounded(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.ConnectRate, c.ConnectRatePerIP = -1, 1 },
		func(r *guardRig) {
			now := time.Now()
			held := tcpAddr("203.0.113.1")
			require.NoError(t, r.admit(held, now))
			for i := range 3 * guard.MaxIdle {
				a := tcpAddr(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8),
					byte(i)}).String())
				require.NoError(t, r.admit(a, now))
				r.dismiss(a, now)
			}
			all, idle := r.b.guard.Addresses.Len()
			require.LessOrEqual(t, all, guard.MaxIdle+1)
			require.Equal(t, idle+1, all)
			n, _ := r.b.guard.Addresses.Connections(netip.MustParseAddr("203.0.113.1"))
			require.Equal(t, 1, n, "one that is connected is not forgotten")

			now = now.Add(time.Hour) // who did nothing wrong is forgotten at once
			a := tcpAddr("198.51.100.1")
			require.NoError(t, r.admit(a, now))
			r.dismiss(a, now.Add(time.Minute))
			_, known := r.b.guard.Addresses.Connections(netip.MustParseAddr("198.51.100.1"))
			require.False(t, known)
			r.dismiss(held, now)
		})
}

func TestConnectionsInProgressAreBounded(t *testing.T) {
	withRules(t, everything, func(c *Config) {
		c.MaxConnecting, c.ConnectTimeout = 4,
			5*time.Second
	}, func(r *guardRig) {
		a, _ := r.dialFrom("192.0.2.1")
		b, _ := r.dialFrom("192.0.2.1")
		synctest.Wait()
		_, served := r.dialFrom("192.0.2.1")
		require.Error(t, <-served, "an address has as many as are free")
		a.Close()
		synctest.Wait()
		for i := range 3 { // those that are accepted do not count
			c, code := r.connectFrom("192.0.2.1", as(fmt.Sprint("c", i), "u"))
			require.Zero(t, code)
			defer c.nc.Close()
		}
		time.Sleep(5 * time.Second)
		_, err := b.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF, "one that says nothing does not keep its place")
		b.Close()
	})
}

func TestTakeoversInALoopEndInABan(t *testing.T) {
	for _, clean := range []bool{false, true} {
		t.Run(fmt.Sprintf("Clean Start %t", clean), func(t *testing.T) {
			takeoversInALoop(t, func(id string) *packets.Connect {
				p := as(id, "u")
				p.CleanStart = clean
				return p
			})
		})
	}
}

func takeoversInALoop(t *testing.T, connect func(id string) *packets.Connect) {
	withRules(t, everything, func(c *Config) { c.MaxTakeovers, c.BanTime = 5, time.Minute },
		func(r *guardRig) {
			first, code := r.connectFrom("192.0.2.1", connect("c"))
			require.Zero(t, code)
			clients := []*testClient{first}
			for range 6 {
				go io.Copy(io.Discard, clients[len(clients)-1].nc) // the old one takes what it is told
				c, code := r.connectFrom("192.0.2.1", connect("c"))
				require.Zero(t, code)
				clients = append(clients, c)
			}
			_, code = r.connectFrom("192.0.2.1", connect("c"))
			require.Equal(t, int(packets.Banned), code)
			bans := r.b.Bans()
			require.Len(t, bans, 1)
			require.Equal(t, Ban{Kind: BanClient, Value: "c", Until: time.Now().Add(time.Minute),
				Reason: "taken over in a loop"}, bans[0])
			other, code := r.connectFrom("192.0.2.1", as("other", "u"))
			require.Zero(t, code, "others are not concerned")
			time.Sleep(time.Minute)
			require.Empty(t, r.b.Bans())
			c, code := r.connectFrom("192.0.2.1", connect("c"))
			require.Zero(t, code)
			for _, c := range append(clients, c, other) {
				c.nc.Close()
			}
			synctest.Wait()

			for range 12 { // as often, but not as fast
				c, code := r.connectFrom("192.0.2.1", connect("slow"))
				require.Zero(t, code)
				go io.Copy(io.Discard, c.nc)
				time.Sleep(12 * time.Second)
			}
			require.Empty(t, r.b.Bans())
		})
}

func TestBans(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		r.grant = func(q *hooks.ConnectRequest) error {
			if q.Client.Username == "login" {
				q.Grant.Identity.Principal = "principal"
			}
			return nil
		}
		for _, tt := range []struct {
			ban               Ban
			addr, id, user    string
			want              int
			spareAddr, spared string
		}{
			{Ban{Kind: BanAddress, Value: "192.0.2.1"}, "192.0.2.1", "c", "u", -1, "192.0.2.2",
				"s"},
			{Ban{Kind: BanAddress, Value: "192.0.2.0/24"}, "::ffff:192.0.2.9", "c", "u", -1,
				"192.0.3.1", "s"},
			{Ban{Kind: BanAddress, Value: "2001:db8::/32"}, "2001:db8:1::1", "c", "u", -1,
				"2001:db9::1", "s"},
			{Ban{Kind: BanAddress, Value: "2001:db8::1"}, "2001:db8::1", "c", "u", -1,
				"2001:db8::2", "s"},
			{Ban{Kind: BanClient, Value: "c"}, "192.0.2.1", "c", "u", int(packets.Banned),
				"192.0.2.1", "c2"},
			{Ban{Kind: BanUser, Value: "u"}, "192.0.2.1", "c", "u", int(packets.Banned),
				"192.0.2.1", "s"},
			{Ban{Kind: BanUser, Value: "principal"}, "192.0.2.1", "c", "login", int(packets.Banned),
				"192.0.2.1", "s"},
			{Ban{Kind: BanUser, Value: ""}, "192.0.2.1", "c", "", int(packets.Banned), "192.0.2.1",
				"s"},
		} {
			t.Run(fmt.Sprint(tt.ban.Kind, " ", tt.ban.Value), func(t *testing.T) {
				r.b.DeleteSession(context.Background(), tt.id) // of another user
				c, code := r.connectFrom(tt.addr, as(tt.id, tt.user))
				require.Zero(t, code)
				spared, code := r.connectFrom(tt.spareAddr, as(tt.spared, "-"))
				require.Zero(t, code)
				early, _ := r.dialFrom(tt.addr)
				synctest.Wait()
				require.NoError(t, r.b.Ban(tt.ban))
				require.Equal(t, packets.AdministrativeAction, c.recv().(*packets.Disconnect).Code,
					"who is there has to go")
				c.close()
				if tt.want == -1 {
					_, err := early.Read(make([]byte, 1))
					require.ErrorIs(t, err, io.EOF)
				}
				early.Close()
				spared.nothing("others are not concerned")
				for range 2 {
					_, code = r.connectFrom(tt.addr, as(tt.id, tt.user))
					require.Equal(t, tt.want, code)
				}
				require.Len(t, r.b.Bans(), 1)
				time.Sleep(100 * 24 * time.Hour)
				require.Equal(t, tt.ban, r.b.Bans()[0], "one without end stays")
				require.True(t, r.b.Unban(tt.ban.Kind, tt.ban.Value))
				require.False(t, r.b.Unban(tt.ban.Kind, tt.ban.Value))
				c, code = r.connectFrom(tt.addr, as(tt.id, tt.user))
				require.Zero(t, code)
				c.close()
				spared.close()
				require.False(t, r.b.guard.Bans.Any())
			})
		}
	})
}

func TestTheListOfBans(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		end := time.Now().Add(time.Hour)
		for _, x := range []Ban{
			{Kind: BanUser, Value: "u"}, {Kind: BanClient, Value: "b"},
			{Kind: BanClient, Value: "a", Until: end, Reason: "first"},
			{Kind: BanAddress, Value: "192.0.2.77/24"}, {Kind: BanAddress,
				Value: "::ffff:198.51.100.1"},
			{Kind: BanClient, Value: "a", Until: end, Reason: "second"},
		} {
			require.NoError(t, r.b.Ban(x))
		}
		require.Equal(t, []Ban{
			{Kind: BanAddress, Value: "192.0.2.0/24"}, {Kind: BanAddress, Value: "198.51.100.1"},
			{Kind: BanClient, Value: "a", Until: end, Reason: "second"},
			{Kind: BanClient, Value: "b"}, {Kind: BanUser, Value: "u"},
		}, r.b.Bans())
		time.Sleep(time.Hour)
		require.Len(t, r.b.Bans(), 4, "one is over")
		require.False(t, r.b.Unban(BanClient, "a"))
		require.True(t, r.b.Unban(BanAddress, "192.0.2.1/24"), "the network, however it is written")
		require.False(t, r.b.Unban(BanAddress, "nonsense"))

		for name, x := range map[string]Ban{
			"no kind":         {Value: "x"},
			"no value":        {Kind: BanClient},
			"no address":      {Kind: BanAddress, Value: "example.org"},
			"no network":      {Kind: BanAddress, Value: "192.0.2.0/33"},
			"already over":    {Kind: BanClient, Value: "x", Until: time.Now()},
			"an unknown kind": {Kind: 9, Value: "x"},
		} {
			require.Error(t, r.b.Ban(x), name)
		}

		// Those of the broker itself are bounded, and do not shorten those of the program.
		r.b.ban(Ban{Kind: BanClient, Value: "b", Until: time.Now().Add(time.Second)},
			bannedByBroker)
		require.True(t, r.b.Bans()[1].Until.IsZero())
		for i := range guard.MaxAutomatic + 10 {
			r.b.ban(Ban{Kind: BanClient, Value: fmt.Sprint("auto", i),
				Until: time.Now().Add(time.Hour + time.Duration(i))}, bannedByBroker)
		}
		require.Len(t, r.b.Bans(), guard.MaxAutomatic+3)
		require.False(t, r.b.Unban(BanClient, "auto0"), "the one that ended first made room")
		require.True(t, r.b.Unban(BanClient, "auto10"))
	})
}

func TestPublishRates(t *testing.T) {
	v3 := func(p *packets.Connect) *packets.Connect {
		p.Version, p.Properties = packets.V311, nil
		return p
	}
	for _, tt := range []struct {
		name  string
		edit  func(*Config)
		grant hooks.Limits
		bytes int           // of each message
		takes time.Duration // that 30 messages take
	}{
		{"no limit", func(*Config) {}, hooks.Limits{}, 10, 0},
		{"ten a second", func(c *Config) { c.PublishRate = 10 }, hooks.Limits{}, 10,
			2 * time.Second},
		{"ten a second for this client", func(*Config) {}, hooks.Limits{PublishRate: 10}, 10,
			2 * time.Second},
		{"a client is not granted more than Config allows", func(c *Config) { c.PublishRate = 10 },
			hooks.Limits{PublishRate: 1000}, 10, 2 * time.Second},
		{"1000 bytes a second, of messages of 100 bytes", func(c *Config) { c.PublishBytes = 1000 },
			hooks.Limits{}, 100, 2 * time.Second},
		{"1000 bytes a second for this client", func(*Config) {}, hooks.Limits{PublishBytes: 1000},
			100, 2 * time.Second},
		{"messages larger than a second's worth", func(c *Config) { c.PublishBytes = 100 },
			hooks.Limits{}, 1000, 299 * time.Second},
	} {
		t.Run("reading pauses: "+tt.name, func(t *testing.T) {
			withRules(t, everything, tt.edit, func(r *guardRig) {
				r.grant = func(q *hooks.ConnectRequest) error { q.Grant.Limits = tt.grant; return nil }
				p := as("c", "u")
				p.KeepAlive = 5
				c := r.connect(p)
				start := time.Now()
				m := &packets.Publish{QoS: 1, PacketID: 7, Topic: []byte("a")}
				m.Payload = make([]byte, max(0, tt.bytes-m.Size(packets.V5)))
				for range 30 {
					c.send(m)
					c.nc.SetReadDeadline(time.Time{})
					ack, err := c.r.ReadPacket()
					require.NoError(t, err)
					require.False(t, ack.(*packets.Ack).Code.Failed())
				}
				took := time.Since(start) + r.debt("c")
				require.InDelta(t, tt.takes.Seconds(), took.Seconds(),
					0.02*tt.takes.Seconds()+0.001)
				c.close()
			})
		})
	}
	for _, tt := range []struct {
		name    string
		connect *packets.Connect
	}{{"5.0", as("c", "u")}, {"3.1.1", v3(as("c", "u"))}} {
		t.Run("beyond it is refused: "+tt.name, func(t *testing.T) {
			withRules(t, everything, func(c *Config) {
				c.PublishRate, c.OverRate = 3,
					OverRateRefusePublish
			}, func(r *guardRig) {
				s := r.connect(as("s", "u"))
				s.subscribe("#", 0)
				c := r.connect(tt.connect)
				for range 3 {
					require.False(t, c.publish("a", "", false).Failed())
					s.message("a")
				}
				c.send(&packets.Publish{Topic: []byte("a")})
				s.nothing("a QoS 0 message beyond the rate")
				if tt.connect.Version == packets.V5 {
					require.Equal(t, packets.QuotaExceeded, c.publish("a", "", false))
					c.send(&packets.Publish{QoS: 2, PacketID: 3, Topic: []byte("a")})
					ack := c.recv().(*packets.Ack)
					require.Equal(t, packets.TypePubrec, ack.Kind)
					require.Equal(t, packets.QuotaExceeded, ack.Code)
					s.nothing("refused")
					time.Sleep(334 * time.Millisecond)
					require.False(t, c.publish("a", "", false).Failed())
					s.message("a")
					require.Equal(t, packets.QuotaExceeded, c.publish("a", "", false))
				} else {
					c.send(&packets.Publish{QoS: 1, PacketID: 3, Topic: []byte("a")})
					_, err := c.r.ReadPacket()
					require.Error(t, err,
						"there is no way to say it, and an acknowledgement would be a lie")
					s.nothing("refused")
				}
				c.close()
				s.close()
			})
		})
	}
}

// debt is how long the client id would have to pause now.
func (r *guardRig) debt(id string) time.Duration {
	synctest.Wait()
	s := r.b.sessionAt(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil || s.conn.readExtra().pace == nil {
		return 0
	}
	p := s.conn.readExtra().pace
	d := p.Delay(time.Now().UnixNano())
	if rate, _ := p.Rates(); rate > 0 { // the next message is none that it owes
		d -= time.Duration(1e9 / rate)
	}
	return max(d, 0)
}

func TestAPauseEndsWithTheConnection(t *testing.T) {
	for name, end := range map[string]func(r *guardRig){
		"Disconnect": func(r *guardRig) {
			require.True(r.t,
				r.b.Disconnect("c", packets.AdministrativeAction))
		},
		"takeover": func(r *guardRig) { r.connect(as("c", "u")).nc.Close() },
		"Close":    func(r *guardRig) { r.b.Close() },
		"Shutdown": func(r *guardRig) { r.b.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			withRules(t, everything, func(c *Config) { c.PublishRate = 0.01 }, func(r *guardRig) {
				c := r.connect(as("c", "u"))
				for range 3 {
					c.send(&packets.Publish{Topic: []byte("a")})
				}
				synctest.Wait()
				start := time.Now()
				go io.Copy(io.Discard, c.nc)
				end(r)
				time.Sleep(lingering)
				synctest.Wait()
				require.Less(t, time.Since(start), 5*time.Second, "the pause would have been 200 s")
				require.Zero(t, r.b.Stats().Connections)
				c.nc.Close()
			})
		})
	}
}

func TestWildcardsNearTheTopCanBeRefused(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.MinWildcardLevel = 2 }, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		for _, f := range []string{"#", "+", "+/a/b", "a/#", "a/+/b", "$share/g/#",
			"$share/g/a/+"} {
			require.Equal(t, packets.NotAuthorized, c.subscribe(f, 0), f)
		}
		for _, f := range []string{"a/b/#", "a/b/+", "a", "a/b", "$share/g/a/b/#", "/a/+"} {
			require.Equal(t, packets.Success, c.subscribe(f, 0), f)
		}
		c.close()
	})
}

func TestRetainedBytesAreExact(t *testing.T) {
	withRules(t, everything, func(c *Config) {
		oneForAll(c)
		c.MaxRetainedBytes,
			c.MaxRetained = 100, 3
	}, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		payload := func(n int) string { return string(make([]byte, n)) }
		require.False(t, c.publish("a", payload(49), true).Failed())
		require.False(t, c.publish("b", payload(49), true).Failed())
		require.EqualValues(t, 100, r.b.Stats().RetainedBytes)
		require.Equal(t, packets.QuotaExceeded, c.publish("c", payload(1), true), "a new one")
		require.Equal(t, packets.QuotaExceeded, c.publish("a", payload(50), true),
			"a larger one in the place of another")
		require.False(t, c.publish("a", payload(49), true).Failed(), "one of the same size")
		require.False(t, c.publish("a", payload(47), true).Failed(), "a smaller one")
		require.False(t, c.publish("c", payload(1), true).Failed(), "which has made room")
		require.EqualValues(t, 100, r.b.Stats().RetainedBytes)
		c.publish("b", "", true)
		require.False(t, c.publish("d", payload(1), true).Failed())
		require.Equal(t, packets.QuotaExceeded, c.publish("e", payload(1), true), "a fourth")
		c.close()
	})
}

// A QoS 2 message that a 3.1.1 client is disconnected for was not received: sent again it is
// routed.
func TestWhatIsBeyondTheRateIsNotReceived(t *testing.T) {
	withRules(t, everything, func(c *Config) {
		c.PublishRate, c.OverRate = 1,
			OverRateRefusePublish
	}, func(r *guardRig) {
		s := r.connect(as("s", "u"))
		s.subscribe("#", 0)
		old := as("c", "u")
		old.Version, old.Properties = packets.V311, nil
		c := r.connect(old)
		c.publish("a", "", false)
		s.message("a")
		m := &packets.Publish{QoS: 2, PacketID: 3, Topic: []byte("b")}
		c.send(m)
		_, err := c.r.ReadPacket()
		require.Error(t, err)
		time.Sleep(2 * time.Second)
		c = r.connect(old)
		m.Dup = true
		c.send(m)
		require.Equal(t, packets.TypePubrec, c.recv().Type())
		s.message("b")
		c.close()
	})
}

// Connections that say nothing take the places of connections without CONNECT from their own
// address, not from others.
func TestSilentConnectionsOfOneAddressDoNotShutTheDoor(t *testing.T) {
	limits := func(c *Config) { c.MaxConnecting, c.ConnectTimeout = 10, 5*time.Second }
	withRules(t, everything, limits, func(r *guardRig) {
		for range 20 {
			r.dialFrom("192.0.2.1") // as many as there are places, and more
		}
		synctest.Wait()
		r.b.mu.Lock()
		held := len(r.b.early)
		r.b.mu.Unlock()
		require.Equal(r.t, 5, held, "as many as are free")
		for i := range 3 {
			c, code := r.connectFrom(fmt.Sprintf("192.0.2.%d", i+2),
				&packets.Connect{Version: packets.V5, CleanStart: true,
					ClientID: fmt.Sprint("c", i)})
			require.Zero(r.t, code, "others come in")
			c.close()
		}
		time.Sleep(6 * time.Second)
		r.b.mu.Lock()
		held = len(r.b.early)
		r.b.mu.Unlock()
		require.Zero(r.t, held)
		_, code := r.connectFrom("192.0.2.1",
			&packets.Connect{Version: packets.V5, CleanStart: true, ClientID: "d"})
		require.Zero(r.t, code, "and the address itself, when its silent ones have gone")
	})
}
