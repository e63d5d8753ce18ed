package interop

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// compared are the $SYS topics whose values follow from the traffic alone: the others tell of
// memory and time, or count the $SYS messages that are sent.
var compared = []string{
	"messages/received", "bytes/received", "publish/bytes/received", "publish/messages/dropped",
	"clients/total", "clients/connected", "clients/active", "clients/disconnected",
	"clients/inactive",
	"clients/maximum", "clients/expired", "subscriptions/count", "shared_subscriptions/count",
}

// only are the topics that one of the two has and the other has not.
var only = []string{"messages/inflight"}

// Under the same traffic Dunlin and mosquitto publish $SYS topics of the same names with the same
// values.
func TestSysTopicsBesideMosquitto(t *testing.T) {
	t.Parallel()
	ours := sysAfterTraffic(t, startDunlinWithSys(t))
	theirs := sysAfterTraffic(t, startMosquittoWithSys(t))
	for _, name := range only {
		delete(ours, name)
		delete(theirs, name)
	}
	names := func(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
	if a, b := names(ours), names(theirs); !slices.Equal(a, b) {
		t.Errorf("Dunlin has the topics\n%s\nmosquitto has\n%s", strings.Join(a, "\n"),
			strings.Join(b, "\n"))
	}
	for _, name := range compared {
		if ours[name] != theirs[name] {
			t.Errorf("%s is %s, and %s of mosquitto", name, ours[name], theirs[name])
		}
	}
	if a, b := ours["publish/messages/received"], theirs["publish/messages/received"]; a != "11" ||
		b != "10" {
		t.Errorf("publish/messages/received is %s, and %s of mosquitto, which does not count QoS 2",
			a, b)
	}
	form := regexp.MustCompile(`[0-9]+`)
	for name := range ours {
		if name == "version" {
			continue
		}
		if a, b := form.ReplaceAllString(ours[name], "N"),
			form.ReplaceAllString(theirs[name], "N"); a != b {
			t.Errorf("%s is written %s, and %s by mosquitto", name, ours[name], theirs[name])
		}
	}
}

func startDunlinWithSys(t *testing.T) string {
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, SysInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go b.Serve(l) // ended by Close
	return l.Addr().String()
}

func startMosquittoWithSys(t *testing.T) string {
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	conf := filepath.Join(t.TempDir(), "conf")
	if err := os.WriteFile(conf,
		[]byte("listener "+port+" 127.0.0.1\nallow_anonymous true\nsys_interval 1\n"),
		0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(findMosquitto(t), "-c", conf)
	said := &tail{}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := reach(ctx, addr, nil); err != nil {
		t.Fatalf("mosquitto: %v\n%s", err, said)
	}
	return addr
}

// findMosquitto returns the program of the broker.
func findMosquitto(t *testing.T) string {
	for _, name := range []string{"mosquitto", "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	missing(t, fmt.Errorf("mosquitto is not installed"))
	return ""
}

// sysAfterTraffic makes the same traffic at whichever broker, and returns what is published below
// $SYS/broker/ when it has come to rest.
func sysAfterTraffic(t *testing.T, addr string) map[string]string {
	t.Helper()
	reader := dialRaw(t, addr, &packets.Connect{Version: packets.V311, CleanStart: true,
		ClientID: "reader"})
	sub := dialRaw(t, addr, &packets.Connect{Version: packets.V5, CleanStart: true,
		ClientID: "sub"})
	sub.send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: "a/#",
		QoS: 1}, {Filter: "$share/g/b", QoS: 1}}})
	sub.want(packets.TypeSuback)
	pub := dialRaw(t, addr, &packets.Connect{Version: packets.V5, CleanStart: true,
		ClientID: "pub"})
	for i := range 10 {
		pub.send(&packets.Publish{Topic: []byte("a/b"), QoS: packets.QoS1, PacketID: uint16(i + 1),
			Payload: []byte("hello")})
		pub.want(packets.TypePuback)
		p := sub.want(packets.TypePublish).(*packets.Publish)
		sub.send(&packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID})
	}
	pub.send(&packets.Publish{Topic: []byte("nobody"), QoS: packets.QoS2, PacketID: 1,
		Payload: []byte("listens")})
	pub.want(packets.TypePubrec)
	pub.send(&packets.Ack{Kind: packets.TypePubrel, PacketID: 1})
	pub.want(packets.TypePubcomp)
	pub.send(&packets.Pingreq{})
	pub.want(packets.TypePingresp)
	away := dialRaw(t, addr, &packets.Connect{Version: packets.V311, ClientID: "away"})
	away.send(&packets.Disconnect{})
	away.nc.Close()

	reader.send(&packets.Subscribe{PacketID: 1,
		Subscriptions: []packets.Subscription{{Filter: "$SYS/broker/#"}}})
	all := make(map[string]string)
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); { // some intervals
		reader.nc.SetReadDeadline(end)
		p, err := reader.r.ReadPacket()
		if err != nil {
			break
		}
		if p, ok := p.(*packets.Publish); ok {
			all[strings.TrimPrefix(string(p.Topic), "$SYS/broker/")] = string(p.Payload)
		}
	}
	return all
}

// A rawClient speaks packets.
type rawClient struct {
	t  *testing.T
	nc net.Conn
	r  *packets.Reader
	v  packets.Version
}

func dialRaw(t *testing.T, addr string, p *packets.Connect) *rawClient {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	c := &rawClient{t: t, nc: nc, r: packets.NewReader(nc, packets.Limits{}), v: p.Version}
	c.r.SetVersion(p.Version)
	c.send(p)
	c.want(packets.TypeConnack)
	return c
}

func (c *rawClient) send(p packets.Packet) {
	c.t.Helper()
	b, err := p.Append(nil, c.v)
	if err == nil {
		_, err = c.nc.Write(b)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *rawClient) want(typ packets.Type) packets.Packet {
	c.t.Helper()
	c.nc.SetReadDeadline(time.Now().Add(patience))
	p, err := c.r.ReadPacket()
	if err != nil || p.Type() != typ {
		c.t.Fatalf("%v came (%v), not %v", p, err, typ)
	}
	return p
}
