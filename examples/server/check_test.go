package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// checked is what the command check prints.
func checked(t *testing.T, args ...string) (string, error) {
	var out bytes.Buffer
	err := command(append([]string{"check"}, args...), nil, &out)
	return out.String(), err
}

func TestCheckSaysHowEachLineIsUnderstood(t *testing.T) {
	passwords := write(t, "passwords", "jane:"+auth.Hash("pencil", 1))
	file := write(t, "c", "listener 1884 127.0.0.1", "password_file "+passwords,
		"max_inflight_messages 0", "autosave_interval 5", "max-memory 64MiB")
	out, err := checked(t, "-config", file)
	require.NoError(t, err)
	for _, want := range []string{
		file + ":1: listener 1884 127.0.0.1: a listener at port 1884 of 127.0.0.1\n",
		file + ":2: password_file " + passwords + ": for all listeners\n",
		file + ":3: max_inflight_messages 0: -max-inflight -1\n",
		file + ":4: autosave_interval 5: ignored: ",
		file + ":5: max-memory 64MiB: the flag -max-memory of this program\n",
		"listens on 127.0.0.1:1884 (mqtt), admits users in " + passwords + "\n",
		"note: sessions of absent clients end after 7 days",
		"no errors\n",
	} {
		require.Contains(t, out, want)
	}
}

func TestCheckSaysWhereMosquittoDiffers(t *testing.T) {
	const aboutRules, aboutSize = "note: a subscription is refused", "note: packets of more than"
	rules := "acl_file " + write(t, "rules", "topic read a/#")
	out, err := checked(t, "-config", write(t, "c", "listener 1884", rules))
	require.NoError(t, err)
	require.Contains(t, out, aboutRules)
	require.Contains(t, out, aboutSize)
	out, err = checked(t, "-config", write(t, "c", "per_listener_settings true", "listener 1884",
		rules))
	require.NoError(t, err)
	require.Contains(t, out, aboutRules, "also for the rules of one listener")
	out, err = checked(t, "-config", write(t, "c", "listener 1884", rules, "acl-at-delivery",
		"max_packet_size 5000000"))
	require.NoError(t, err)
	require.NotContains(t, out, aboutRules)
	require.NotContains(t, out, aboutSize)
	out, err = checked(t, "-config", write(t, "c", "listener 1884"))
	require.NoError(t, err)
	require.NotContains(t, out, aboutRules, "there are no rules")
}

func TestCheckSaysAllErrors(t *testing.T) {
	file := write(t, "c", "listner 1883", "allow_anonymous yes", "max-memory many", "connection x",
		"remote_password secret", "max_qos 5")
	out, err := checked(t, "-config", file)
	require.EqualError(t, err, "5 errors")
	for i, want := range []string{":1: listner: ", ":2: allow_anonymous: ", ":4: connection: ",
		":6: max_qos: ", ":3: max-memory: "} {
		require.Contains(t, out, "error: "+file+want, "%d: %s", i, out)
	}
	require.NotContains(t, out, "remote_password secret")
	_, err = checked(t, "-h")
	require.ErrorIs(t, err, flag.ErrHelp)
	out, err = checked(t, "-max-qos", "7")
	require.EqualError(t, err, "1 error")
	require.Contains(t, out, "error: -max-qos")
}

// What is wrong with files is said for all of them at once, each with the line that names it.
func TestCheckSaysWhatIsWrongWithFiles(t *testing.T) {
	s := newSite(t)
	passwords := write(t, "passwords", "jane:$7$101$bad")
	rules := write(t, "rules", "topic readwite a/#")
	file := write(t, "c", "per_listener_settings true",
		"listener 1", "allow_anonymous false", "password_file "+passwords, "acl_file "+rules,
		"listener 2", "password_file "+passwords, "certfile /nowhere/cert", "keyfile "+s.key,
		"listener 3", "protocol websockets", "http_dir /nowhere/pages", "password_file /nowhere/p",
		"listener 4", "certfile "+s.cert, "keyfile "+s.clientCA, "allow_anonymous true")
	out, err := checked(t, "-config", file)
	require.EqualError(t, err, "6 errors", out)
	for _, want := range []string{":7: password_file: auth: " + passwords + ":1: ",
		":5: acl_file: acl: " + rules + ":1: ", ":13: password_file: auth: open /nowhere/p: ",
		":6: listener: tlsfiles: open /nowhere/cert: ", ":10: listener: http_dir: stat /nowhere/",
		":14: listener: tlsfiles: "} {
		require.Contains(t, out, "error: "+file+want)
	}
	require.NotContains(t, out, "no errors")
	_, err = parse([]string{"-config", file})
	require.ErrorContains(t, err, ":14: listener: tlsfiles: ", "and the server does not start")
	_, err = checked(t, "-max-qos", "7", "-versions", "9", "-password-file", "/nowhere/p")
	require.EqualError(t, err, "3 errors")
}

func TestHelpNamesCommandsAndFlags(t *testing.T) {
	for _, word := range []string{"-h", "help", "--help"} {
		var out bytes.Buffer
		err := command([]string{word}, nil, &out)
		require.ErrorIs(t, err, flag.ErrHelp)
		for _, want := range []string{"server check ", "server passwd ", "server health ",
			"server top ", "server version ", "-password-file file"} {
			require.Contains(t, out.String(), want, word)
		}
	}
	var out bytes.Buffer
	require.EqualError(t, command([]string{"-pasword-file", "x"}, nil, &out),
		"flag provided but not defined: -pasword-file; server -h lists the flags")
	require.Empty(t, out.String(), "the error is not lost among all flags")
}

func TestVersionAndHealth(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, command([]string{"version"}, nil, &out))
	require.Equal(t, "dunlin server "+dunlin.Version+"\n", out.String())
	addrs, _ := start(t, "-listen", "127.0.0.1:0", "-password-file", write(t, "p",
		"jane:"+auth.Hash("x", 1)))
	require.NoError(t, command([]string{"health", "-addr", addrs[0]}, nil, &out),
		"a refusal is an answer")
	require.Error(t, command([]string{"health", "-addr", "127.0.0.1:" + freePort(t)}, nil, &out))
	require.ErrorContains(t, command([]string{"health", addrs[0]}, nil, &out), "-addr "+addrs[0],
		"an address without -addr is not left out in favour of the default one")
	require.ErrorContains(t, command([]string{"healthy"}, nil, &out),
		"the commands are check, health, passwd, top and version")
}

func TestSystemdIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "30000")
	told := func() string {
		b := make([]byte, 100)
		_ = l.SetReadDeadline(time.Now().Add(patience))
		n, err := l.Read(b)
		require.NoError(t, err)
		return string(b[:n])
	}
	t.Run("while it runs", func(t *testing.T) {
		start(t, "-listen", "127.0.0.1:0")
		require.Equal(t, "READY=1", told())
		require.Equal(t, "WATCHDOG=1", told())
		require.Equal(t, "WATCHDOG=1", told())
	})
	for what := told(); what != "STOPPING=1"; what = told() {
		require.Equal(t, "WATCHDOG=1", what)
	}
}

func TestEachPacketIsALine(t *testing.T) {
	addrs, printed := start(t, "-listen", "127.0.0.1:0", "-v", "-log-timestamp=false")
	c := login{"c", "jane", "x"}.at(t, dial(t, addrs[0]))
	c.subscribe("a/#")
	c.publish("a/b", "hello")
	c.send(&packets.Disconnect{})
	for _, want := range []string{
		` as c (p5, c1, k0, u'jane')"`, `msg="Sending CONNACK to c (0, 0)"`,
		`msg="Received SUBSCRIBE from c (a/#, granted QoS 0)"`,
		`msg="Received PUBLISH from c (q1, r0, 'a/b', ... (5 bytes)), 1 subscribers"`,
		`msg="Sending PUBLISH to c (q0, m0, 'a/b', ... (5 bytes))"`,
		`msg="Received DISCONNECT from c"`, `level=INFO msg="client disconnected" client=c`,
	} {
		eventually(t, want, func() bool { return containsAll(printed.String(), want) })
	}
	require.NotContains(t, printed.String(), "Unspecified error")
}

func TestADeniedPacketIsALine(t *testing.T) {
	addrs, printed := start(t, "-listen", "127.0.0.1:0", "-v", "-log-timestamp=false",
		"-allow-anonymous", "-acl-file", write(t, "rules", "topic read a/#", "topic write c"),
		"-max-payload", "5")
	c := login{"c", "-", "-"}.at(t, dial(t, addrs[0]))
	c.subscribe("b/#")
	c.publish("a/b", "hello")
	c.publish("c", "hello!")
	for _, want := range []string{
		`msg="Denied SUBSCRIBE from c (b/#): Not authorized`,
		`msg="Denied PUBLISH from c (a/b): Not authorized`,
		`msg="Denied PUBLISH from c (c): Quota exceeded: a payload of 6 bytes, at most 5`,
	} {
		eventually(t, want, func() bool { return containsAll(printed.String(), want) })
	}
}

func TestLinesAboutClientsAreNotMoreThanCanBeRead(t *testing.T) {
	var r rate
	now := time.Now()
	ok, missed := 0, 0
	for range 1000 {
		if n, let := r.take(now); let {
			ok, missed = ok+1, missed+n
		}
	}
	require.Equal(t, burst, ok)
	n, let := r.take(now.Add(time.Second))
	require.True(t, let)
	require.Equal(t, 1000-burst, n, "the next line says how many were left out")
	for range 2000 { // nobody reads: nothing waits
		(&watcher{log: (&logging{}).logger(&bytes.Buffer{}), lines: make(chan line)}).say("x")
	}
	w := &watcher{lines: make(chan line)}
	w.client(&r, "quiet", &hooks.Client{})
}

// A CONNECT that is refused is printed as well as one that is not.
func TestARefusedConnectIsTwoLines(t *testing.T) {
	w := &watcher{log: (&logging{}).logger(&bytes.Buffer{}), lines: make(chan line, 2)}
	w.packets.Store(true)
	refused := w.observer().Refused
	c := &hooks.Client{ID: "c", Version: packets.V5, CleanStart: true, KeepAlive: 60}
	refused(hooks.Refused{Client: c, Code: packets.NotAuthorized})
	require.Contains(t, (<-w.lines).text, "Received CONNECT from <nil> as c (p5, c1, k60)")
	require.Equal(t, "Refused CONNECT from c: Not authorized", (<-w.lines).text)
	refused(hooks.Refused{Client: &hooks.Client{}, Code: packets.ProtocolError})
	require.Empty(t, w.lines, "there was no CONNECT")
}

// Lines wait, so what clients name themselves and their topics is cut.
func TestLinesAboutClientsAreShort(t *testing.T) {
	w := &watcher{log: (&logging{}).logger(&bytes.Buffer{}), lines: make(chan line, 2)}
	w.packets.Store(true)
	w.connection.Store(true)
	long := strings.Repeat("é", 30_000)
	w.observer().Denied(hooks.Denied{
		Client: &hooks.Client{ID: "c"}, Action: hooks.ActionPublish, Topic: long,
		Err: errors.New("no"),
	})
	w.client(new(rate), "client refused", &hooks.Client{ID: long}, "err", errors.New(long))
	for range 2 {
		l := <-w.lines
		n := len(l.text)
		for _, a := range l.about {
			n += len(fmt.Sprint(a))
		}
		require.Less(t, n, 3*longest)
		require.True(t, utf8.ValidString(fmt.Sprint(l)))
		require.Contains(t, fmt.Sprint(l), "...")
	}
}

// A destination that cannot be written to takes no line from the others.
func TestEachDestinationGetsItsLines(t *testing.T) {
	full, kept := "/dev/full", filepath.Join(t.TempDir(), "log")
	if _, err := os.Stat(full); err != nil {
		full = t.TempDir() // a folder
	}
	var standard bytes.Buffer
	lo := &logging{dest: list{full, kept, "stderr"}}
	lo.logger(&standard).Info("hello")
	for _, f := range lo.files {
		f.reopen() // closes it
	}
	said, err := os.ReadFile(kept)
	require.NoError(t, err)
	require.Contains(t, string(said), "hello")
	require.Contains(t, standard.String(), "hello")
}
