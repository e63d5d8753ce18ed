package dunlin

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// testCertificate makes one for the tests of this run.
func testCertificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(crand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// A transport is a way to connect to b.
type transport struct {
	name string
	open func(t *testing.T, b *Broker) (dial func() net.Conn)
}

var transports = []transport{
	{"TCP", func(t *testing.T, b *Broker) func() net.Conn {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		go b.Serve(l) // ends with b
		return func() net.Conn {
			nc, err := net.Dial("tcp", l.Addr().String())
			require.NoError(t, err)
			return nc
		}
	}},
	{"a unix socket", func(t *testing.T, b *Broker) func() net.Conn {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Skipf("there are no unix sockets here: %v", err)
		}
		go b.Serve(l) // ends with b
		return func() net.Conn {
			nc, err := net.Dial("unix", path)
			require.NoError(t, err)
			return nc
		}
	}},
	{"TLS", func(t *testing.T, b *Broker) func() net.Conn {
		l, err := tls.Listen("tcp", "127.0.0.1:0",
			&tls.Config{Certificates: []tls.Certificate{testCertificate(t)}})
		require.NoError(t, err)
		go b.Serve(l) // ends with b
		return func() net.Conn {
			nc, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
			require.NoError(t, err)
			return nc
		}
	}},
	{"a pipe", func(t *testing.T, b *Broker) func() net.Conn {
		return func() net.Conn {
			client, server := net.Pipe()
			go b.ServeConn(context.Background(), server) // ends with b
			return client
		}
	}},
}

// TestEveryTransportKeepsBytesInOrder sends packets of all sizes, cut into pieces at random, over
// each kind of connection.
//
// [5.0 MQTT-4.2.0-1] [3.1.1 MQTT-7.1.1-1]
func TestEveryTransportKeepsBytesInOrder(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			b := newTestBroker(t, nil)
			defer b.Close()
			dial := tr.open(t, b)
			sub, _ := newTestClient(t, dial(), connect("sub"))
			defer sub.nc.Close()
			sub.send(&packets.Subscribe{PacketID: 1,
				Subscriptions: []packets.Subscription{{Filter: "t", QoS: 1}}})
			sub.recv()
			pub, _ := newTestClient(t, dial(), connect("pub"))
			defer pub.nc.Close()
			const messages = 500
			payload := make([]byte, 100_000)
			for i := range payload {
				payload[i] = byte(i * 7)
			}
			sizes := make([]int, messages)
			for i := range sizes {
				sizes[i] = 4 + rnd.IntN(1<<rnd.IntN(16))
			}
			go func() { // done before the loop below is
				var stream []byte
				for i, n := range sizes {
					body := append([]byte(nil), payload[:n]...)
					binary.BigEndian.PutUint32(body, uint32(i))
					stream, _ = (&packets.Publish{Topic: []byte("t"), QoS: 1,
						PacketID: uint16(i + 1), Payload: body}).Append(stream, packets.V5)
				}
				for len(stream) > 0 {
					n := min(1+rnd.IntN(20_000), len(stream))
					if _, err := pub.nc.Write(stream[:n]); err != nil {
						t.Error(err)
						return
					}
					stream = stream[n:]
				}
			}()
			go func() { // ends with the connection
				for {
					if _, err := pub.r.ReadPacket(); err != nil {
						return
					}
				}
			}()
			for i, n := range sizes {
				p := sub.recv().(*packets.Publish)
				require.Len(t, p.Payload, n)
				require.EqualValues(t, i, binary.BigEndian.Uint32(p.Payload))
				require.True(t, bytes.Equal(p.Payload[4:], payload[4:n]))
				sub.send(&packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID})
			}
		})
	}
}

// Bytes that announce 256 MiB cost no more than they are, over any transport, and what comes before
// CONNECT is bounded.
func TestNoTransportTakesMemoryForBytesThatDidNotCome(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ended := make(chan error, 2)
			b := newTestBroker(t, func(c *Config) {
				c.MaxPacketSize = -1
				c.Observer = &hooks.Observer{
					Refused:      func(e hooks.Refused) { ended <- e.Err },
					Disconnected: func(e hooks.Disconnected) { ended <- e.Err },
				}
			})
			defer b.Close()
			dial := tr.open(t, b)
			early := dial()
			defer early.Close()
			_, err := early.Write([]byte{0x10, 0xff, 0xff, 0xff, 0x7f})
			require.NoError(t, err)
			require.Equal(t, packets.PacketTooLarge, packets.CodeOf(<-ended),
				"a CONNECT over MaxConnectSize is refused from its header")

			c, _ := newTestClient(t, dial(), connect("c"))
			defer c.nc.Close()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err = c.nc.Write(append([]byte{0x30, 0xff, 0xff, 0xff, 0x7f}, make([]byte, 1000)...))
			require.NoError(t, err)
			c.nc.Close() // what was written is read before the end is
			require.Error(t, <-ended)
			runtime.ReadMemStats(&after)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20))
		})
	}
}

// A CONNECT over MaxConnectSize is refused as soon as it begins, and a 5.0 client is told why.
func TestALargeConnectIsRefused(t *testing.T) {
	for _, tr := range transports {
		for _, v := range []packets.Version{packets.V31, packets.V311, packets.V5} {
			t.Run(tr.name+", "+v.String(), func(t *testing.T) {
				b := newTestBroker(t, func(c *Config) { c.MaxConnectSize = 200 })
				defer b.Close()
				nc := tr.open(t, b)()
				defer nc.Close()
				p := &packets.Connect{Version: v, CleanStart: true, ClientID: "c", Username: "u",
					HasUsername: true, Password: make([]byte, 200), HasPassword: true}
				wire, err := p.Append(nil, v)
				require.NoError(t, err)
				go nc.Write(wire) // ends with nc
				answer, _ := io.ReadAll(nc)
				if v != packets.V5 {
					require.Empty(t, answer)
					return
				}
				ack, _, err := packets.Decode(answer, v, packets.Limits{})
				require.NoError(t, err)
				require.Equal(t, packets.PacketTooLarge, ack.(*packets.Connack).Code)
			})
		}
	}
}

// [5.0 MQTT5-NOID-3.1.2.5-2]: on Shutdown the Wills go to the subscribers in this process; the
// clients are leaving too.
func TestShutdownPublishesWillsToTheProgram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reached := -1
		b := newTestBroker(t, func(c *Config) {
			c.Observer = &hooks.Observer{Published: func(e hooks.Published) { reached = e.Matched }}
		})
		l, done := serveMemory(t, b)
		_, err := b.Subscribe(context.Background(), "will/#", nil)
		require.NoError(t, err)
		p := connect("c")
		p.Will = &packets.Will{Topic: "will/c", Payload: []byte("gone")}
		c, _ := newTestClient(t, dial(t, l), p)
		go func() { // ended by the Shutdown below
			c.recv()
			c.nc.Close()
		}()
		require.NoError(t, b.Shutdown(context.Background()))
		require.Equal(t, 1, reached)
		done()
	})
}

// A slowSocket is a connection whose writes the test decides.
type slowSocket struct {
	net.Conn
	try, write func(b []byte) (int, error)
}

func (s *slowSocket) TryWrite(b []byte) (int, error) { return s.try(b) }
func (s *slowSocket) Write(b []byte) (int, error)    { return s.write(b) }

// A congestion that is over does not make publishers impatient with the next one.
func TestEachCongestionHasItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, func(c *Config) { c.MaxOutboundBytes = 1000 })
		l, done := serveMemory(t, b)
		defer done()
		takes := func(b []byte) (int, error) { return len(b), nil }
		s := &slowSocket{try: takes, write: takes}
		var nc net.Conn
		nc, s.Conn = net.Pipe()
		served := make(chan error, 1)
		go func() { served <- b.ServeConn(t.Context(), s) }()
		send := func(p packets.Packet) {
			wire, err := p.Append(nil, packets.V5)
			require.NoError(t, err)
			nc.Write(wire)
			synctest.Wait()
		}
		send(connect("s"))
		send(subscribeTo("t", 0))
		p, _ := newTestClient(t, dial(t, l), connect("p"))
		q, _ := newTestClient(t, dial(t, l), connect("q"))
		time.Sleep(time.Second)
		synctest.Wait()
		gate := make(chan struct{})
		s.try = func(b []byte) (int, error) { <-gate; return len(b), nil }
		m := &packets.Publish{Topic: []byte("t"), Payload: make([]byte, 600)}
		p.send(m)
		synctest.Wait()
		q.send(m) // finds p writing
		synctest.Wait()
		close(gate)
		time.Sleep(time.Minute)
		synctest.Wait()
		s.try = func([]byte) (int, error) { return 0, nil }
		s.write = func(b []byte) (int, error) {
			time.Sleep(3 * time.Millisecond)
			return len(b),
				nil
		}
		for range 3 {
			q.send(m)
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		require.Zero(t, b.Stats().MessagesDropped, "the client takes what comes")
		nc.Close()
		<-served
	})
}
