package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/internal/testcert"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/pires/go-proxyproto"
	"github.com/stretchr/testify/require"
)

// freePort returns a port that is free now.
func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	return port
}

// startWith starts the server with a config file of these lines. "listener @" is a unix socket, one
// for each; their paths are returned.
func startWith(t *testing.T, lines ...string) (sockets []string, printed *log, file string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "conf") // a short name, for the sockets
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	for i, l := range lines {
		if l == "listener @" {
			path := filepath.Join(dir, fmt.Sprint(len(sockets)))
			sockets = append(sockets, path)
			lines[i] = "listener 0 " + path
		}
	}
	file = write(t, "mosquitto.conf", lines...)
	_, printed = start(t, "-config", file)
	return sockets, printed, file
}

func TestEachListenerHasItsOwnSettings(t *testing.T) {
	people := write(t, "people", "jane:"+auth.Hash("pencil", 1))
	devices := write(t, "devices", "meter:"+auth.HashSCRAM("secret", 4096))
	rules := write(t, "rules", "user jane", "topic readwrite of/jane")
	at, printed, file := startWith(t,
		"per_listener_settings true",
		"listener @", "password_file "+people, "acl_file "+rules,
		"listener @", "allow_anonymous true", "mount_point guests/", "max_qos 0",
		"max_topic_alias 0", "auto_id_prefix guest-", "max_connections 2",
		"listener @", "password_file "+devices, "use_username_as_clientid true",
		"allow_zero_length_clientid false",
		"listener @", "allow_anonymous true", "accept_protocol_versions 3,4",
		"listener @",
	)
	for _, tt := range []struct {
		listener int
		login    login
		want     packets.ReasonCode
	}{
		{0, login{"a", "jane", "pencil"}, packets.Success},
		{0, login{"a", "-", "-"}, packets.NotAuthorized},
		{0, login{"a", "meter", "secret"}, packets.BadUserNameOrPassword},
		{1, login{"a1", "-", "-"}, packets.Success},
		{1, login{"a1b", "jane", "wrong"}, packets.Success},
		{2, login{"a", "meter", "secret"}, packets.Success},
		{2, login{"", "meter", "secret"}, packets.ClientIdentifierNotValid},
		{2, login{"a", "jane", "pencil"}, packets.BadUserNameOrPassword},
		{3, login{"a3", "-", "-"}, packets.UnsupportedProtocolVersion},
		{4, login{"a4", "-", "-"}, packets.NotAuthorized},
		{4, login{"a4", "jane", "pencil"}, packets.NotAuthorized},
	} {
		nc := dial(t, at[tt.listener])
		_, code := connect(t, nc, tt.login)
		require.Equal(t, tt.want, code, "%+v", tt)
		nc.Close()
	}
	jane := login{"j", "jane", "pencil"}.at(t, dial(t, at[0]))
	require.Equal(t, packets.NotAuthorized, jane.publish("x", "x"))
	require.Less(t, jane.publish("of/jane", "x"), packets.UnspecifiedError)

	meter := login{"whatever", "meter", "secret"}.at(t, dial(t, at[2]))
	require.Less(t, meter.publish("x", "x"), packets.UnspecifiedError,
		"there are no rules at this listener")
	meter.subscribe("guests/#")
	guest := login{"", "-", "-"}.at(t, dial(t, at[1]))
	guest.send(&packets.Publish{Topic: []byte("x"), Payload: []byte("from a guest")})
	guest.ping()
	meter.ping()
	require.Equal(t, "from a guest", meter.got["guests/x"])
	eventually(t, "the log says who came", func() bool {
		return containsAll(printed.String(), "client=meter ", "client=guest-",
			"listener="+file+":5", "admits=nobody", "nobody can come in")
	})

	login{"second", "-", "-"}.at(t, dial(t, at[1]))
	_, err := dial(t, at[1]).Read(make([]byte, 1))
	require.Error(t, err, "a third connection is closed")
}

// As in Mosquitto, also where all listeners have the same rules.
func TestRulesAreAboutTopicsWithTheMountPoint(t *testing.T) {
	rules := write(t, "rules", "topic readwrite m/open/#")
	for _, atDelivery := range []string{"false", "true"} {
		at, _, _ := startWith(t, "acl_file "+rules, "allow_anonymous true",
			"acl-at-delivery "+atDelivery, "listener @", "mount_point m/", "listener @")
		c := login{"c", "-", "-"}.at(t, dial(t, at[0]))
		require.Less(t, c.subscribe("open/#"), packets.UnspecifiedError)
		require.Less(t, c.publish("open/x", "hi"), packets.UnspecifiedError)
		require.Equal(t, packets.NotAuthorized, c.publish("m/open/x", "hi"))
		c.ping()
		require.Equal(t, "hi", c.got["open/x"])
		d := login{"d", "-", "-"}.at(t, dial(t, at[1]))
		require.Less(t, d.publish("m/open/x", "hi"), packets.UnspecifiedError)
		require.Equal(t, packets.NotAuthorized, d.publish("open/x", "hi"))
	}
}

// A guest says that it is jane. It takes nothing from her, and neither does what it has keep her
// out.
func TestAGuestWhoClaimsAUserNameIsNotThatUser(t *testing.T) {
	people := write(t, "people", "jane:"+auth.Hash("pencil", 1))
	at, _, _ := startWith(t, "per_listener_settings true",
		"listener @", "password_file "+people,
		"listener @", "allow_anonymous true")
	jane := login{"j", "jane", "pencil"}.at(t, dial(t, at[0]))
	_, code := connect(t, dial(t, at[1]), login{"j", "jane", "wrong"})
	require.Equal(t, packets.ClientIdentifierNotValid, code)
	jane.ping()

	guest := login{"phone", "jane", "wrong"}.at(t, dial(t, at[1]))
	guest.ping()
	login{"phone", "jane", "pencil"}.at(t, dial(t, at[0])).ping()
}

// The limits of Config follow what a listener asks for, and do not bind it by accident.
func TestAListenerMayAskForMoreThanTheDefaults(t *testing.T) {
	o, err := parse([]string{"-config", write(t, "c", "allow_anonymous true", "listener 1",
		"max_topic_alias 100", "max_connections 200000", "listener 2")})
	require.NoError(t, err)
	require.Equal(t, 100, o.cfg.TopicAliasMaximum)
	require.Equal(t, 200_000, o.cfg.MaxConnections)
	require.EqualValues(t, 32, o.more[1].entry.limits.TopicAliasMaximum)
}

func TestTLSAsInMosquitto(t *testing.T) {
	s := newSite(t)
	dir := t.TempDir()
	middle := s.servers.CA("middle")
	leaf := middle.Issue("server")
	cert, chain := filepath.Join(dir, "cert"), filepath.Join(dir, "chain")
	testcert.Write(t, cert, bytes.SplitAfter(leaf.PEM(), []byte("-----END CERTIFICATE-----\n"))[0])
	testcert.Write(t, chain, append(middle.PEM(), s.clients.PEM()...))
	testcert.Write(t, s.key, leaf.KeyPEM())
	rules := write(t, "rules", "user sensor", "topic readwrite x")
	at, _, _ := startWith(t, "acl_file "+rules, "allow_anonymous true",
		"listener @", "certfile "+cert, "keyfile "+s.key, "cafile "+chain,
		"require_certificate true", "crlfile "+s.crl, "use_identity_as_username true",
		"listener @", "certfile "+cert, "keyfile "+s.key, "cafile "+chain, "tls_version tlsv1.3",
		"listener @", "certfile "+cert, "keyfile "+s.key, "cafile "+chain,
		"require_certificate true", "use_subject_as_username true",
	)
	// the client knows the root alone: the certificate between comes from cafile
	sensor := login{"s", "-", "-"}.at(t, dialTLS(t, at[0], s.client(s.clients.Issue("sensor"))))
	require.Less(t, sensor.publish("x", "x"), packets.UnspecifiedError,
		"the Common Name is the user name")
	nameless, code := connect(t, dialTLS(t, at[1], s.client(s.clients.Issue("sensor"))),
		login{"n", "-", "-"})
	require.Equal(t, packets.Success, code)
	require.Equal(t, packets.NotAuthorized, nameless.publish("x", "x"),
		"without require_certificate there is no name in it")
	whole := login{"w", "-", "-"}.at(t, dialTLS(t, at[2], s.client(s.clients.Issue("sensor"))))
	require.Equal(t, packets.NotAuthorized, whole.publish("x", "x"), "its name is CN=sensor")
	old := s.client(nil)
	old.MaxVersion = 0x0303
	require.Error(t, dialTLS(t, at[1], old).(interface{ Handshake() error }).Handshake())
	require.Error(t, func() error { // in TLS 1.3 the client learns it when it reads
		c := dialTLS(t, at[0], s.client(nil))
		_, err := c.Read(make([]byte, 1))
		return err
	}())
}

func TestWebSocketsAsInMosquitto(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "index.html"), []byte("a page"), 0o600))
	port := freePort(t)
	_, printed := start(t, "-config", write(t, "c", "listener "+port+" 127.0.0.1",
		"protocol websockets", "http_dir "+dir, "allow_anonymous true"))
	nc, status := overWS(t, "127.0.0.1:"+port, "https://elsewhere.example")
	require.Equal(t, 101, status)
	login{"w", "-", "-"}.at(t, nc).ping()
	require.Equal(t, "a page", get(t, "http://127.0.0.1:"+port+"/"))
	require.Contains(t, printed.String(), "protocol=websockets path=any")
}

func TestWithoutListenersOnlyThisMachineMayConnect(t *testing.T) {
	port := freePort(t)
	_, printed := start(t, "-config", write(t, "c", "# nothing"), "-p", port)
	login{"a", "-", "-"}.at(t, dial(t, "127.0.0.1:"+port)).ping()
	require.Contains(t, printed.String(), "local only mode")
	o, err := parse([]string{"-c", write(t, "c", "# nothing")})
	require.NoError(t, err)
	require.Len(t, o.all, 2, "127.0.0.1 and ::1")
	o, err = parse([]string{"-c", write(t, "c", "listener 1883")})
	require.NoError(t, err)
	require.False(t, o.localOnly, "with a listener anonymous clients are refused, as Mosquitto "+
		"does")
	require.False(t, o.allowAnonymous)
}

func TestFlagsOnTheCommandLineWin(t *testing.T) {
	file := write(t, "c", "allow_anonymous true", "max_queued_messages 5", "max-memory 64MiB",
		"password_file other", "listener 1883")
	passwords := write(t, "passwords", "jane:"+auth.Hash("pencil", 1))
	o, err := parse([]string{"-max-queued-messages", "6", "-config", file, "-allow-anonymous=false",
		"-password-file", passwords})
	require.NoError(t, err)
	require.Equal(t, 6, o.cfg.MaxQueuedMessages)
	require.Equal(t, 64<<20, o.cfg.MaxMemory)
	require.False(t, o.allowAnonymous)
	require.Equal(t, passwords, o.passwordFile)
}

func TestErrorsSayWhere(t *testing.T) {
	file := write(t, "c", "max-memory 64MB", "listener 1883 nowhere.invalid", "what")
	_, err := parse([]string{"-config", file})
	require.ErrorContains(t, err, file+":1: max-memory: ")
	require.ErrorContains(t, err, "64MiB")
	require.ErrorContains(t, err, file+":2: listener: ")
	require.ErrorContains(t, err, file+":3: what: ")
	_, err = parse([]string{"-config", write(t, "c", "per_listener_settings true", "listener 1",
		"password_file /nowhere")})
	require.ErrorContains(t, err, "c:3: password_file: ")
	require.ErrorContains(t, err, "/nowhere")
}

func TestSIGHUPAppliesWhatCanBeAppliedAndSaysWhatNeedsARestart(t *testing.T) {
	at, printed, file := startWith(t, "listener @", "allow_anonymous true", "max-payload 5", "v")
	c := login{"c", "-", "-"}.at(t, dial(t, at[0]))
	require.Equal(t, packets.QuotaExceeded, c.publish("x", "longer"))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	hup := func(text string) {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	}
	hup(strings.Replace(string(text), "max-payload 5", "max-payload 100", 1) +
		"v false\nlog-level debug\nmax_connections 3\nmax_inflight_messages 7\nmax-memory 1GiB\n" +
		"max_packet_size 60\nmax_qos 1\nmin-wildcard-level 1\nrate-exceeded refuse\n")
	eventually(t, "it is said", func() bool {
		return containsAll(printed.String(), "what=max-payload to=100", "what=v to=false",
			"what=log-level to=debug",
			"msg=changed what=max-inflight to=7", "msg=changed what=max-packet-size to=60",
			"msg=changed what=rate-exceeded to=refuse",
			`msg="changed, and needs a restart" what=max-memory from=0 to=1073741824`,
			`msg="changed, and needs a restart" what="listener at `)
	})
	require.Less(t, c.publish("x", "longer"), packets.UnspecifiedError)
	require.Equal(t, packets.NotAuthorized, c.subscribe("#"))
	small := dial(t, at[0])
	login{"d", "-", "-"}.at(t, small).send(&packets.Publish{Topic: []byte("x"),
		Payload: make([]byte, 100)})
	_, err = io.Copy(io.Discard, small)
	require.NoError(t, err, "a new connection ends where its packet is too large")
	require.NotContains(t, printed.String(), "Received PUBLISH from c (q1, r0, 'x', ... (6 bytes))")
	hup("nonsense\n")
	eventually(t, "it is said", func() bool {
		return containsAll(printed.String(), "the configuration was not read again", ":1: nonsense")
	})
}

func TestLogsGoWhereTheyShould(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "log")
	at, printed, _ := startWith(t, "listener @", "allow_anonymous true", "log_dest file "+file,
		"log_timestamp false")
	login{"a", "-", "-"}.at(t, dial(t, at[0]))
	says := func(what string) bool {
		text, _ := os.ReadFile(file)
		return strings.Contains(string(text), what)
	}
	eventually(t, "it is in the file", func() bool {
		return says(`level=INFO msg="client connected" client=a`)
	})
	require.NotContains(t, printed.String(), "level=")
	require.False(t, says("time="))
	require.NoError(t, os.Rename(file, file+".1"))
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	eventually(t, "there is a new file", func() bool {
		return says("level=INFO") || touch(t, at[0])
	})
}

// touch has a line logged. It returns false.
func touch(t *testing.T, addr string) bool {
	c := login{"again", "-", "-"}.at(t, dial(t, addr))
	c.conn.Close()
	return false
}

func TestUnixSocketsHaveAMode(t *testing.T) {
	at, _, _ := startWith(t, "listener @", "allow_anonymous true", "unix-mode 0620")
	info, err := os.Stat(at[0])
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o620), info.Mode().Perm())
	_, err = parse([]string{"-unix-mode", "rw"})
	require.ErrorContains(t, err, "0660")
}

// The socket of a server that was killed does not keep the next one from starting; that of one that
// runs does.
func TestAnOldUnixSocketIsInNobodysWay(t *testing.T) {
	at, _, _ := startWith(t, "listener @", "allow_anonymous true")
	o, err := parse([]string{"-listen", "unix:" + at[0]})
	require.NoError(t, err)
	require.ErrorContains(t, o.serve(t.Context()), "the socket of a running process")
	old := filepath.Join(filepath.Dir(at[0]), "old")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: old, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	start(t, "-listen", "unix:"+old)
	login{"a", "-", "-"}.at(t, dial(t, old)).ping()
}

func TestTheProxyProtocolOfOneListener(t *testing.T) {
	port := freePort(t)
	_, printed := start(t, "-config", write(t, "c", "allow_anonymous true",
		"proxy-from 127.0.0.0/8",
		"listener "+port+" 127.0.0.1", "enable_proxy_protocol 2"))
	c := dial(t, "127.0.0.1:"+port)
	from, to := &net.TCPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 4711},
		&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1883}
	_, err := proxyproto.HeaderProxyFromAddrs(2, from, to).WriteTo(c)
	require.NoError(t, err)
	login{"p", "-", "-"}.at(t, c)
	eventually(t, "the address is that of the header", func() bool {
		return containsAll(printed.String(), "client=p remote=203.0.113.7:4711")
	})
}
