package main

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/internal/testcert"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/pires/go-proxyproto"
	"github.com/stretchr/testify/require"
)

// A site is the certificates of a server and its clients, in files.
type site struct {
	t                        *testing.T
	servers, clients         *testcert.Certificate
	cert, key, clientCA, crl string
}

func newSite(t *testing.T) *site {
	dir := t.TempDir()
	s := &site{
		t: t, servers: testcert.CA(t, "servers"), clients: testcert.CA(t, "clients"),
		cert: filepath.Join(dir, "crt"), key: filepath.Join(dir, "key"),
		clientCA: filepath.Join(dir, "ca"), crl: filepath.Join(dir, "crl"),
	}
	s.writeServer("first")
	testcert.Write(t, s.clientCA, s.clients.PEM())
	testcert.Write(t, s.crl, s.clients.CRL(time.Now().Add(time.Hour)))
	return s
}

func (s *site) writeServer(name string) {
	c := s.servers.Issue(name)
	testcert.Write(s.t, s.cert, c.PEM())
	testcert.Write(s.t, s.key, c.KeyPEM())
}

// flags are those that use the files, and further ones.
func (s *site) flags(more ...string) []string {
	return append([]string{"-tls-listen", "127.0.0.1:0", "-tls-cert", s.cert, "-tls-key", s.key,
		"-tls-client-ca", s.clientCA}, more...)
}

func (s *site) client(own *testcert.Certificate) *tls.Config {
	c := &tls.Config{RootCAs: s.servers.Pool(), ServerName: "localhost",
		NextProtos: []string{"mqtt"}}
	if own != nil {
		c.Certificates = []tls.Certificate{own.TLS()}
	}
	return c
}

func TestIdentityAsUsername(t *testing.T) {
	s := newSite(t)
	passwords := write(t, "passwords", "jane:"+auth.Hash("pencil", 1))
	rules := write(t, "rules", "topic readwrite anonymous", "user jane", "topic readwrite jane",
		"user sensor 7", "topic readwrite sensor", "pattern readwrite by/%u/#")
	addrs, _ := start(t, s.flags("-listen", "127.0.0.1:0", "-tls-identity-as-username",
		"-allow-anonymous", "-password-file", passwords, "-acl-file", rules)...)
	plain, overTLS := addrs[0], addrs[1]

	sensor := login{"s", "jane", "wrong"}.at(t,
		dialTLS(t, overTLS, s.client(s.clients.Issue("sensor 7"))))
	require.Less(t, sensor.publish("sensor", "x"), packets.UnspecifiedError,
		"the certificate says who it is")
	require.Less(t, sensor.publish("by/sensor 7/a", "x"), packets.UnspecifiedError)
	require.Equal(t, packets.NotAuthorized, sensor.publish("jane", "x"),
		"what it says itself does not count")
	require.Equal(t, packets.NotAuthorized, sensor.publish("anonymous", "x"))

	_, code := connect(t, dialTLS(t, overTLS, s.client(nil)), login{"n", "jane", "pencil"})
	require.Equal(t, packets.NotAuthorized, code, "on TLS nobody comes in by password")
	_, code = connect(t, dialTLS(t, overTLS, s.client(s.clients.Issue(""))), login{"n", "-", "-"})
	require.Equal(t, packets.NotAuthorized, code, "a certificate without a name")

	jane := login{"j", "jane", "pencil"}.at(t, dial(t, plain))
	require.Less(t, jane.publish("jane", "x"), packets.UnspecifiedError)
	_, code = connect(t, dial(t, plain), login{"j", "jane", "wrong"})
	require.Equal(t, packets.BadUserNameOrPassword, code)
}

func TestRequiredCertificate(t *testing.T) {
	s := newSite(t)
	sensor, lost := s.clients.Issue("sensor"), s.clients.Issue("lost")
	addrs, printed := start(t, s.flags("-tls-require-cert", "-tls-crl", s.crl)...)
	refused := func(own *testcert.Certificate) {
		t.Helper()
		c := dialTLS(t, addrs[0], s.client(own))
		_, err := c.Write([]byte{0xC0, 0}) // PINGREQ
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		require.Error(t, err)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	old := login{"lost", "-", "-"}.at(t, dialTLS(t, addrs[0], s.client(lost)))
	login{"s", "-", "-"}.at(t, dialTLS(t, addrs[0], s.client(sensor)))
	refused(nil)
	refused(testcert.CA(t, "clients").Issue("sensor"))

	testcert.Write(t, s.crl, s.clients.CRL(time.Now().Add(time.Hour), lost))
	s.writeServer("second")
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	eventually(t, "the new certificate is served", func() bool {
		c := dialTLS(t, addrs[0], s.client(sensor)).(*tls.Conn)
		return c.Handshake() == nil &&
			c.ConnectionState().PeerCertificates[0].Subject.CommonName == "second"
	})
	refused(lost)
	old.ping() // who is connected stays so

	testcert.Write(t, s.cert, []byte("nonsense"))
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	eventually(t, "a file that is of no use is reported",
		func() bool { return containsAll(printed.String(), "not reloaded", s.cert) })
	login{"s", "-", "-"}.at(t, dialTLS(t, addrs[0], s.client(sensor)))
}

func TestOtherNamesOfTheProtocolInTLS(t *testing.T) {
	s := newSite(t)
	asking := func(protos ...string) *tls.Config {
		c := s.client(nil)
		c.NextProtos = protos
		return c
	}
	negotiated := func(addr string, protos ...string) string {
		t.Helper()
		c := dialTLS(t, addr, asking(protos...)).(*tls.Conn)
		login{"c", "-", "-"}.at(t, c).ping()
		return c.ConnectionState().NegotiatedProtocol
	}
	const aws = "x-amzn-mqtt-ca"
	addrs, _ := start(t, s.flags("-allow-anonymous", "-tls-alpn", aws, "-tls-alpn", "other")...)
	require.Equal(t, aws, negotiated(addrs[0], aws))
	require.Equal(t, "other", negotiated(addrs[0], "h2", "other"))
	require.Equal(t, "mqtt", negotiated(addrs[0], aws, "mqtt"), "mqtt stays, and comes first")
	require.Empty(t, negotiated(addrs[0]), "a client need not ask for any")
	require.ErrorContains(t, tls.Client(dial(t, addrs[0]), asking("h2")).Handshake(), "protocol")

	at, _, _ := startWith(t, "listener @", "allow_anonymous true",
		"certfile "+s.cert, "keyfile "+s.key, "tls-alpn "+aws)
	require.Equal(t, aws, negotiated(at[0], aws), "at a listener of a mosquitto.conf too")

	addrs, _ = start(t, s.flags("-allow-anonymous")...)
	require.Error(t, tls.Client(dial(t, addrs[0]), asking(aws)).Handshake(), "only mqtt by default")
}

// TestProxyProtocol has rules for addresses tell where the server thinks that clients come from.
func TestProxyProtocol(t *testing.T) {
	s := newSite(t)
	header := func(version byte) *proxyproto.Header {
		return proxyproto.HeaderProxyFromAddrs(version, &net.TCPAddr{IP: net.IPv4(203, 0, 113, 7),
			Port: 4711}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1883})
	}
	// through writes a header and returns the connection.
	through := func(t *testing.T, addr string, h *proxyproto.Header) net.Conn {
		c := dial(t, addr)
		_, err := h.WriteTo(c)
		require.NoError(t, err)
		return c
	}
	closed := func(t *testing.T, c net.Conn) {
		t.Helper()
		_, err := io.ReadFull(c, make([]byte, 1))
		require.Error(t, err)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	for _, version := range []byte{1, 2} {
		t.Run("version "+string('0'+version), func(t *testing.T) {
			addrs, printed := start(t, s.flags("-listen", "127.0.0.1:0", "-allow-anonymous",
				"-proxy-protocol", string('0'+version), "-log-level", "debug")...)
			plain, overTLS := addrs[0], addrs[1]
			login{"c", "-", "-"}.at(t, through(t, plain, header(version))).ping()
			eventually(t, "the client's own address",
				func() bool {
					return containsAll(printed.String(),
						"client=c remote=203.0.113.7:4711")
				})
			login{"d", "-", "-"}.at(t, tls.Client(through(t, overTLS, header(version)),
				s.client(nil))).ping()
			eventually(t, "the client's own address",
				func() bool {
					return containsAll(printed.String(),
						"client=d remote=203.0.113.7:4711")
				})

			closed(t, through(t, plain, header(3-version)))
			c := dial(t, plain)
			_, err := c.Write([]byte("\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x03abc"))
			require.NoError(t, err)
			closed(t, c)
		})
	}
	t.Run("a health check of the proxy's own", func(t *testing.T) {
		addrs, _ := start(t, "-listen", "127.0.0.1:0", "-allow-anonymous", "-proxy-protocol", "2")
		h := &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}
		login{"c", "-", "-"}.at(t, through(t, addrs[0], h)).ping()
	})
	t.Run("from elsewhere", func(t *testing.T) {
		addrs, _ := start(t, "-listen", "127.0.0.1:0", "-allow-anonymous", "-proxy-protocol", "2",
			"-proxy-from", "192.0.2.0/24")
		closed(t, dial(t, addrs[0]))
	})
	t.Run("headers that do not come keep nobody else out", func(t *testing.T) {
		addrs, _ := start(t, "-listen", "127.0.0.1:0", "-allow-anonymous", "-proxy-protocol", "2")
		for range 50 {
			c := dial(t, addrs[0])
			_, err := c.Write([]byte("\r\n\r\n"))
			require.NoError(t, err)
		}
		login{"c", "-", "-"}.at(t, through(t, addrs[0], header(2))).ping()
	})
}

// TestProxiedClose closes while headers are awaited and Accept waits.
func TestProxiedClose(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p, err := newProxied(l, 2, nil)
	require.NoError(t, err)
	var waits sync.WaitGroup
	waits.Go(func() { // waited for below
		_, err := p.Accept()
		require.ErrorIs(t, err, net.ErrClosed)
	})
	c := dial(t, l.Addr().String())
	began := time.Now()
	require.NoError(t, p.Close())
	waits.Wait()
	require.Less(t, time.Since(began), proxyTimeout)
	_, err = io.ReadFull(c, make([]byte, 1))
	require.Error(t, err)
	_, err = newProxied(l, 2, []string{"somewhere"})
	require.ErrorContains(t, err, "-proxy-from")
}

func TestFlagsThatDoNotGoTogether(t *testing.T) {
	for _, args := range [][]string{
		{"-tls-listen", ":0"},
		{"-tls-listen", ":0", "-tls-cert", "c"},
		{"-tls-cert", "c", "-tls-key", "k"},
		{"-tls-identity-as-username"},
		{"-tls-listen", ":0", "-tls-cert", "c", "-tls-key", "k", "-tls-require-cert"},
		{"-tls-listen", ":0", "-tls-cert", "c", "-tls-key", "k", "-tls-crl", "l"},
		{"-tls-listen", ":0", "-tls-cert", "c", "-tls-key", "k", "-tls-identity-as-username"},
		{"-tls-alpn", "other"},
		{"-tls-listen", ":0", "-tls-cert", "c", "-tls-key", "k", "-tls-alpn", ""},
		{"-proxy-protocol", "3"},
		{"-proxy-from", "::1"},
	} {
		_, err := parse(args)
		require.ErrorContains(t, err, "-", "%q", args)
	}
}
