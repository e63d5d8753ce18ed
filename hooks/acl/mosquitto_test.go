package acl_test

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// TestAgainstMosquitto gives a real mosquitto and this package the same files, and compares what
// clients may publish and read. They have to agree, but where this package is stricter on purpose:
// names with / in patterns, and names that begin with $.
func TestAgainstMosquitto(t *testing.T) {
	mosquitto, err := exec.LookPath("mosquitto")
	if err != nil {
		if mosquitto = "/usr/sbin/mosquitto"; !exists(mosquitto) {
			if os.Getenv("CI") == "true" {
				t.Fatal("there is no mosquitto to compare with")
			}
			t.Skip("there is no mosquitto to compare with: ", err)
		}
	}
	r := random(t)
	compared := 0
	for range 12 {
		file, _ := randomMosquitto(r)
		compared += compareWithMosquitto(t, mosquitto, file, r)
	}
	// The rules for names, and the order of rules.
	compared += compareWithMosquitto(t, mosquitto,
		"pattern readwrite a/#\npattern deny a/%u\nuser u\ntopic deny a/c\ntopic read a/u\n", r)
	compared += compareWithMosquitto(t, mosquitto,
		"pattern write %u/%c\npattern read %c-%u/#\npattern a\n", r)
	compared += compareWithMosquitto(t, mosquitto,
		"topic #\nuser u\ntopic +/+\ntopic deny +/b/#\ntopic $d/#\n", r)
	compared += compareWithMosquitto(t, mosquitto, "# nothing\n", r)
	require.GreaterOrEqual(t, compared, 300)
	t.Logf("%d answers compared", compared)
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func compareWithMosquitto(t *testing.T, mosquitto, file string, r *rand.Rand) (compared int) {
	l, err := acl.ParseMosquitto(strings.NewReader(file), "acl")
	require.NoError(t, err, file)
	guarded, open := startMosquitto(t, mosquitto, file)
	defer open.close()
	for range 4 {
		c := client(pick(r, "c", "u", "a", "c/d", "c+"), pick(r, "-", "u", "v", "a", "u/v", "#"))
		topics := map[string]bool{}
		for range 8 {
			topics[strings.ReplaceAll(randomFilter(r, levelsFor(c)...), "#", "a")] = true
		}
		peer := guarded(c)
		open.ping()
		for topic := range topics {
			open.publish(topic, "read")
		}
		peer.ping()
		for topic := range topics {
			peer.publish(topic, "write")
		}
		open.ping()
		lenient := strings.Contains(c.ID+c.Username, "/")
		for topic := range topics {
			for _, q := range []struct {
				ask  string
				want bool
			}{{"sub ", peer.got[topic+" read"]}, {"pub ", open.got[topic+" write"]}} {
				got := acl.New(l).Authorize(t.Context(), asked(c, q.ask+topic)) == nil
				if got != q.want && (got || !lenient) {
					t.Errorf("%s\n%s%s, client %q, user %q %v: mosquitto says %v", file, q.ask,
						topic, c.ID, c.Username, c.HasUsername, q.want)
				}
				compared++
			}
		}
		clear(open.got)
		peer.close()
	}
	return compared
}

// startMosquitto starts one that ends with the test. It returns how clients connect to the listener
// with the acl_file, subscribed to everything, and such a client at another without.
func startMosquitto(t *testing.T, mosquitto, file string) (guarded func(*hooks.Client) *peer,
	open *peer) {
	dir, err := os.MkdirTemp("", "acl") // a short name, for the sockets
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.WriteFile(path("acl"), []byte(file), 0o600))
	config := fmt.Sprintf(
		"user root\nper_listener_settings true\nlistener 0 %s\nallow_anonymous true\nacl_file "+
			"%s\nlistener 0 %s\nallow_anonymous true\n",
		path("guarded"), path("acl"), path("open"))
	require.NoError(t, os.WriteFile(path("conf"), []byte(config), 0o600))

	cmd := exec.CommandContext(t.Context(), mosquitto, "-c", path("conf"))
	log, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(log)
	said := ""
	for lines.Scan() && !strings.HasSuffix(lines.Text(), " running") {
		said += lines.Text() + "\n"
	}
	require.Contains(t, lines.Text(), " running", "mosquitto has not started:\n%s%s", said, file)
	go io.Copy(io.Discard, log) // ends with the process

	guarded = func(c *hooks.Client) *peer { return connect(t, path("guarded"), c) }
	return guarded, connect(t, path("open"), client("open", "-"))
}

// A peer is a client that notes what it is sent.
type peer struct {
	t    *testing.T
	conn net.Conn
	in   *packets.Reader
	got  map[string]bool // topic and payload
}

func connect(t *testing.T, socket string, c *hooks.Client) *peer {
	conn, err := net.Dial("unix", socket)
	require.NoError(t, err)
	p := &peer{t, conn, packets.NewReader(conn, packets.Limits{}), map[string]bool{}}
	p.send(&packets.Connect{Version: packets.V311, CleanStart: true, ClientID: c.ID,
		HasUsername: c.HasUsername, Username: c.Username})
	require.Equal(t, packets.Success, p.want(packets.TypeConnack).(*packets.Connack).Code)
	p.send(&packets.Subscribe{PacketID: 1,
		Subscriptions: []packets.Subscription{{Filter: "#"}, {Filter: "$d/#"}}})
	p.want(packets.TypeSuback)
	return p
}

func (p *peer) send(packet packets.Packet) {
	b, err := packet.Append(nil, packets.V311)
	require.NoError(p.t, err)
	_, err = p.conn.Write(b)
	require.NoError(p.t, err)
}

// want reads on to the next packet of a type.
func (p *peer) want(typ packets.Type) packets.Packet {
	for {
		packet, err := p.in.ReadPacket()
		require.NoError(p.t, err, "waiting for %v", typ)
		if m, ok := packet.(*packets.Publish); ok {
			p.got[string(m.Topic)+" "+string(m.Payload)] = true
		}
		if packet.Type() == typ {
			return packet
		}
	}
}

func (p *peer) publish(topic, payload string) {
	p.send(&packets.Publish{QoS: 1, PacketID: 1, Topic: []byte(topic), Payload: []byte(payload)})
	p.want(packets.TypePuback)
}

// ping returns when everything has come that was sent before.
func (p *peer) ping() {
	p.send(&packets.Pingreq{})
	p.want(packets.TypePingresp)
}

func (p *peer) close() { p.conn.Close() }
