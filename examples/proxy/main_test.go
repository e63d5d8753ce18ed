package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/testcert"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// api knows ann, who may use the topics below ann/, and read news.
func api(t *testing.T) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q question
		if json.NewDecoder(r.Body).Decode(&q) != nil || q.Username != "ann" ||
			q.Password != "token" {
			http.Error(w, "who?", http.StatusForbidden)
			return
		}
		json.NewEncoder(w).Encode(answer{Username: "inner", Password: "secret",
			Publish: []string{"ann/#"}, Subscribe: []string{"ann/#", "news/+"}})
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// brokers are what the proxy is tried in front of. Each accepts nobody but the user that the proxy
// has from the API.
func brokers(t *testing.T, f func(t *testing.T, upstream string)) {
	t.Run("in front of Dunlin", func(t *testing.T) {
		inner := hooks.AuthenticatorFunc(func(_ context.Context, r *hooks.ConnectRequest) error {
			if r.Client.Username != "inner" || string(r.Connect.Password) != "secret" {
				return packets.Errorf(packets.NotAuthorized, "come by the proxy")
			}
			return nil
		})
		b, err := dunlin.New(dunlin.Config{Authenticator: inner})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go b.Serve(l) // ends with b
		f(t, l.Addr().String())
	})
	t.Run("in front of Mosquitto", func(t *testing.T) {
		f(t, mosquitto(t))
	})
}

// mosquitto starts a Mosquitto with one user.
func mosquitto(t *testing.T) string {
	broker, passwd := try.Need(t, "mosquitto", "mosquitto"),
		try.Need(t, "mosquitto_passwd", "mosquitto")
	dir := t.TempDir()
	users, conf := filepath.Join(dir, "users"), filepath.Join(dir, "mosquitto.conf")
	if out, err := exec.Command(passwd, "-b", "-c", users, "inner", "secret").
		CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_passwd: %v: %s", err, out)
	}
	var addr *net.TCPAddr
	var cmd *exec.Cmd
	var said io.Reader
	for attempts, running := 5, false; !running; attempts-- {
		if attempts == 0 {
			t.Fatal("mosquitto has not started")
		}
		l, err := net.Listen("tcp",
			"127.0.0.1:0") // for a port that is free; before mosquitto has it, somebody else may
		if err != nil {
			t.Fatal(err)
		}
		addr = l.Addr().(*net.TCPAddr)
		l.Close()
		text := fmt.Sprintf(
			"listener %d 127.0.0.1\nallow_anonymous false\npassword_file %s\nuser root\n",
			addr.Port, users)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd = exec.CommandContext(t.Context(), broker, "-c", conf)
		if said, err = cmd.StderrPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(said)
		for lines.Scan() && !strings.HasSuffix(lines.Text(), " running") {
			fmt.Fprintln(t.Output(), lines.Text())
		}
		if running = strings.HasSuffix(lines.Text(), " running"); !running {
			cmd.Wait()
		}
	}
	logged := make(chan struct{})
	go func() { // ends with mosquitto
		defer close(logged)
		io.Copy(io.Discard, said)
	}()
	t.Cleanup(func() { cmd.Process.Kill(); <-logged; cmd.Wait() })
	return addr.String()
}

func ann(id string) *packets.Connect {
	return &packets.Connect{Version: packets.V5, CleanStart: true, ClientID: id, HasUsername: true,
		Username: "ann", HasPassword: true, Password: []byte("token"),
		Properties: packets.Properties(nil).AppendUint(packets.TopicAliasMaximum, 10)}
}

func TestTheAPIDecidesWhoComesInAndWhichTopicsTheyUse(t *testing.T) {
	brokers(t, func(t *testing.T, upstream string) {
		p := try.Start(t, run, "-listen", "127.0.0.1:0", "-upstream", upstream, "-api", api(t))
		var addr string
		fmt.Sscan(p.Line("listening on "), &addr)

		c := ann("stranger")
		c.Password = []byte("guessed")
		if _, ack := try.Dial(t, addr, c); ack.Code != packets.NotAuthorized {
			t.Fatalf("a stranger was answered with %v", ack.Code)
		}
		c = ann("willful")
		c.Will = &packets.Will{Topic: "news/x"}
		if _, ack := try.Dial(t, addr, c); ack.Code != packets.NotAuthorized {
			t.Fatalf("a forbidden Will was answered with %v", ack.Code)
		}

		sub, ack := try.Dial(t, addr, ann("sub"))
		if ack.Code.Failed() || ack.Properties.Has(packets.TopicAliasMaximum) {
			t.Fatalf("ann was answered with %v", ack)
		}
		sub.Send(&packets.Subscribe{PacketID: 9,
			Subscriptions: []packets.Subscription{{Filter: "#"}, {Filter: "ann/+", QoS: 1},
				{Filter: "news/#"}, {Filter: "news/+", QoS: 1}}})
		codes := sub.Receive().(*packets.Suback).Codes
		want := []packets.ReasonCode{packets.NotAuthorized, packets.GrantedQoS1,
			packets.NotAuthorized, packets.GrantedQoS1}
		if fmt.Sprint(codes) != fmt.Sprint(want) {
			t.Fatalf("the SUBACK has %v, not %v", codes, want)
		}
		if code := sub.Subscribe("bob/#", 1); code != packets.NotAuthorized {
			t.Fatalf("a filter of somebody else was answered with %v", code)
		}

		pub, _ := try.Dial(t, addr, ann("pub"))
		if code := pub.Publish("news/1", "forged"); code != packets.NotAuthorized {
			t.Fatalf("a forbidden topic was answered with %v", code)
		}
		pub.Send(&packets.Publish{Topic: []byte("news/1"), QoS: 2, PacketID: 5})
		if a := pub.Receive().(*packets.Ack); a.Kind != packets.TypePubrec ||
			a.Code != packets.NotAuthorized {
			t.Fatalf("the same at QoS 2 was answered with %v", a)
		}
		pub.Send(&packets.Publish{Topic: []byte("news/1")})
		pub.Publish("ann/1", "mine")
		sub.Want("ann/1", "mine")

		// What comes from the side of the broker arrives, too.
		inner, ack := try.Dial(t, upstream, &packets.Connect{Version: packets.V5, CleanStart: true,
			ClientID: "inner", HasUsername: true, Username: "inner",
			HasPassword: true, Password: []byte("secret")})
		if ack.Code.Failed() {
			t.Fatalf("the broker's own user was refused: %v", ack.Code)
		}
		inner.Publish("news/1", "real")
		sub.Want("news/1", "real")
		p.Stop()
	})
}

// A client may come over TLS, over WebSocket, and with its password in its first PUBLISH.
func TestTheWaysIn(t *testing.T) {
	brokers(t, func(t *testing.T, upstream string) {
		dir, authority := t.TempDir(), testcert.CA(t, "authority")
		pair := authority.Issue("proxy")
		cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
		if err := errors.Join(os.WriteFile(cert, pair.PEM(), 0o600),
			os.WriteFile(key, pair.KeyPEM(), 0o600)); err != nil {
			t.Fatal(err)
		}
		p := try.Start(t, run, "-listen", "127.0.0.1:0", "-ws", "127.0.0.1:0", "-upstream",
			upstream, "-api", api(t), "-inband", "service/auth", "-cert", cert, "-key", key)
		var addr, ws string
		fmt.Sscan(p.Line("listening on "), &addr)
		fmt.Sscan(p.Line("for WebSocket on "), &ws)
		secret := &tls.Config{RootCAs: authority.Pool()}
		overTLS := func() net.Conn {
			nc, err := tls.Dial("tcp", addr, secret)
			if err != nil {
				t.Fatal(err)
			}
			return nc
		}
		first, ack := try.Over(t, overTLS(), ann("first"))
		if ack.Code.Failed() || first.Subscribe("ann/#", 1) != packets.GrantedQoS1 {
			t.Fatalf("over TLS: %v", ack.Code)
		}

		hc := &http.Client{Transport: &http.Transport{TLSClientConfig: secret}}
		wc, _, err := websocket.Dial(t.Context(), "wss://"+ws+"/mqtt",
			&websocket.DialOptions{HTTPClient: hc, Subprotocols: []string{"mqtt"}})
		if err != nil {
			t.Fatal(err)
		}
		second, ack := try.Over(t, websocket.NetConn(t.Context(), wc, websocket.MessageBinary),
			ann("second"))
		if ack.Code.Failed() || second.Publish("ann/1", "hi").Failed() {
			t.Fatalf("over WebSocket: %v", ack.Code)
		}
		first.Want("ann/1", "hi")
		inBand(t, overTLS)
	})
}

// inBand is a client with its password in its first PUBLISH, which has a Session.
func inBand(t *testing.T, dial func() net.Conn) {
	c := ann("third")
	c.HasPassword, c.Password, c.CleanStart = false, nil, false
	c.Properties = packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 60)
	third, _ := try.Over(t, dial(), c)
	third.Send(&packets.Publish{Topic: []byte("service/auth"), Payload: []byte("guessed")})
	third.Gone()
	third, ack := try.Over(t, dial(), c)
	if ack.SessionPresent || third.Publish("service/auth", "token").Failed() ||
		third.Subscribe("ann/#", 1) != packets.GrantedQoS1 {
		t.Fatal("in-band, the first time")
	}
	third.Send(&packets.Disconnect{})
	third.Gone()
	third, _ = try.Over(t, dial(), c) // the proxy does not know of the Session yet
	third.Send(&packets.Publish{Topic: []byte("service/auth"), Payload: []byte("token")})
	third.Gone()
	third, ack = try.Over(t, dial(), c)
	if !ack.SessionPresent || third.Publish("service/auth", "token").Failed() {
		t.Fatal("in-band, with a Session")
	}
}

func TestAnOldClientIsCutOffForAForbiddenPublish(t *testing.T) {
	r := &rules{publish: []string{"a"}}
	if _, _, err := r.client(&packets.Publish{Topic: []byte("b")}, packets.V311); err == nil {
		t.Fatal("a client of 3.1.1 would believe that its message was published")
	}
	on, back, err := r.client(&packets.Publish{Topic: []byte("a")}, packets.V311)
	if on == nil || back != nil || err != nil {
		t.Fatal("an allowed publish did not pass")
	}
}

func TestMessagesOfOldSubscriptionsAreStoppedAndAcknowledged(t *testing.T) {
	r := &rules{subscribe: []string{"a"}}
	for qos, kind := range map[packets.QoS]packets.Type{1: packets.TypePuback,
		2: packets.TypePubrec} {
		on, back, err := r.server(&packets.Publish{Topic: []byte("b"), QoS: qos, PacketID: 3},
			packets.V5)
		if a, ok := back.(*packets.Ack); on != nil || err != nil || !ok || a.Kind != kind ||
			a.PacketID != 3 {
			t.Fatalf("at QoS %d: %v goes on, %v back, %v", qos, on, back, err)
		}
	}
}
