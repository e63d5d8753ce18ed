package httpgw

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what somebody tries who means no good.

// Nobody gets past the rules by how the topic is written.
func TestHostileTopics(t *testing.T) {
	d := open(t, nil)
	d.do("ann", "POST", "/topics/ann/a?retain=1", "x")
	d.do("ann", "POST", "/topics/ann/secret?retain=1", "x")
	long := strings.Repeat("x", 65_536)
	for _, x := range []struct {
		topic string
		want  [2]int // to publish, to read the retained message
	}{
		{"$SYS/a", [2]int{403, 403}},
		{"$share/g/bob/a", [2]int{403, 400}},
		{"ann/a", [2]int{403, 403}},
		{"bob/../ann/a", [2]int{200, 404}}, // a topic like any other, below bob
		{"bob/./a", [2]int{200, 404}},
		{"../topics/ann/a", [2]int{403, 403}},
		{"/bob/a", [2]int{403, 403}},
		{"//ann/a", [2]int{403, 403}},
		{"bob//a", [2]int{200, 404}},
		{"bob/a\x00", [2]int{400, 400}},
		{"bob/\x00/../ann/a", [2]int{400, 400}},
		{"bob/\xff", [2]int{400, 400}},
		{"bob/\xc0\xaf", [2]int{400, 400}},
		{"bob/\xed\xa0\x80", [2]int{400, 400}},
		{"bob/+", [2]int{400, 400}},
		{"bob/#", [2]int{400, 400}},
		{"", [2]int{400, 400}},
		{"bob/" + long, [2]int{400, 400}},
		{"bob/" + strings.Repeat("/", 300), [2]int{400, 400}},
		{"bob/%61", [2]int{200, 404}}, // decoded once
		{"bob/secret", [2]int{200, 403}},
	} {
		for i, method := range []string{"POST", "GET"} {
			code, text := d.do("bob", method, "/topics?topic="+url.QueryEscape(x.topic), "x")
			require.Equal(t, x.want[i], code, "%s %.50q: %s", method, x.topic, text)
			if x.topic == "" {
				continue
			}
			for _, path := range []string{url.PathEscape(x.topic),
				strings.ReplaceAll(url.PathEscape(x.topic), "%2F", "/")} {
				a, text := d.ask(call{"bob", method, "/topics/" + path, "x", nil})
				require.Equal(t, x.want[i], a.StatusCode, "%s %.50q: %s", method, path, text)
			}
		}
	}
	for filter, want := range map[string]int{
		"#": 403, "+/a": 403, "ann/#": 403, "$share/g/bob/#": 400, "$share/g": 400, "$SYS/#": 403,
		"": 400, "bob/#/a": 400, "bob/a+": 400, "bob/\x00": 400, "bob/\xff": 400,
		"bob/" + long: 400, "bob/" + strings.Repeat("+/", 40): 400, "bob/#": 200,
	} {
		for _, path := range []string{"/retained", "/poll", "/events"} {
			if path == "/events" && want == 200 {
				continue
			}
			code, text := d.do("bob", "GET", path+"?filter="+url.QueryEscape(filter), "")
			require.Equal(t, want, code, "%s %.50q: %s", path, filter, text)
		}
	}
}

// The switches of Config for subscriptions hold.
func TestTheLimitsOfSubscriptionsHold(t *testing.T) {
	d := openWith(t, &opened{edit: func(c *dunlin.Config) { c.MinWildcardLevel = 2 }}, nil)
	code, _ := d.do("public", "GET", "/poll?filter=public/%23", "")
	require.Equal(t, 403, code)
	code, _ = d.do("public", "GET", "/retained?filter=public/x/%23", "")
	require.Equal(t, 200, code)
	d = openWith(t, &opened{edit: func(c *dunlin.Config) { c.DisableWildcards = true }}, nil)
	code, _ = d.do("public", "GET", "/retained?filter=public/x/%23", "")
	require.Equal(t, 400, code)
}

// A mount point is the world of a client.
func TestMountPoints(t *testing.T) {
	d := open(t, nil)
	d.grant.MountPoint = "tenant/7/"
	code, text := d.do("ann", "POST", "/topics/ann/a?retain=1", "x")
	require.Equal(t, 200, code, text)
	for m := range d.b.Retained("#") {
		require.Equal(t, "tenant/7/ann/a", m.Topic)
	}
	_, text = d.do("ann", "GET", "/topics/ann/a", "")
	require.Equal(t, "x", text)
	s := d.stream("ann/%23", "")
	require.NoError(t, d.b.Publish(t.Context(), &dunlin.Message{Topic: "ann/a"}))
	d.publish("in it")
	require.Equal(t, "in it", s.next(t))
	d.grant.MountPoint = "tenant/8/"
	p := d.poll("ann", "ann/%23&after="+s.last)
	require.True(t, p.Gap, "the events of another mount point are others")
	code, _ = d.do("ann", "GET", "/topics/ann/a", "")
	require.Equal(t, 404, code)
	code, text = d.do("ann", "GET", "/retained?filter=ann/%23&after=../7/", "")
	require.Equal(t, 200, code)
	require.JSONEq(t, `{"messages":[],"after":""}`, text)
	d.grant.MountPoint = "$SYS/"
	code, _ = d.do("ann", "GET", "/topics/ann/a", "")
	require.Equal(t, 401, code, "a Grant that makes no sense lets nobody in")
}

// A DeliveryAuthorizer decides each message of a filter.
func TestDeliveriesAreDecided(t *testing.T) {
	d := open(t, nil)
	s := d.stream("ann/%23", "")
	p := d.poll("ann", "ann/%23")
	for _, topic := range []string{"ann/secret", "ann/a"} {
		d.do("ann", "POST", "/topics/"+topic+"?retain=1", topic)
	}
	require.Equal(t, "ann/a", s.next(t))
	p = d.poll("ann", "ann/%23&wait=60&after="+p.After)
	require.Len(t, p.Events, 1)
	_, text := d.do("ann", "GET", "/retained?filter=ann/%23", "")
	require.NotContains(t, text, "secret")
}

// A DeliveryInterceptor changes what a reader gets, whichever way it reads.
func TestDeliveriesAreIntercepted(t *testing.T) {
	d := openWith(t, &opened{edit: func(c *dunlin.Config) {
		c.DeliveryInterceptor = hooks.DeliveryInterceptorFunc(
			func(_ context.Context, c *hooks.Client, m *dunlin.Message) (*dunlin.Message, error) {
				if m.Topic == "ann/dropped" {
					return nil, hooks.ErrDrop
				}
				out := *m
				out.Payload = append([]byte("for "+c.Identity.Principal+": "), m.Payload...)
				return &out, nil
			})
	}}, nil)
	s := d.stream("ann/%23", "")
	p := d.poll("ann", "ann/%23")
	for _, topic := range []string{"ann/dropped", "ann/a"} {
		a, text := d.ask(call{"ann", "POST", "/topics/" + topic + "?retain=1", "secret", [][2]string{
			{contentType, "text/plain"}, {responseTopic, "ann/r"}, {correlation, "AP8="},
			{userProperty, "a=1"},
		}})
		require.Equal(t, 200, a.StatusCode, text)
	}
	require.Equal(t, "for ann: secret", s.next(t))
	p = d.poll("ann", "ann/%23&wait=60&after="+p.After)
	require.Len(t, p.Events, 1)
	require.Equal(t, "for ann: secret", string(p.Events[0].Payload))
	e := p.Events[0]
	e.Payload = nil
	require.Equal(t, event{Topic: "ann/a", Retain: e.Retain, ContentType: "text/plain",
		ResponseTopic: "ann/r", Correlation: []byte{0, 255}, User: [][2]string{{"a", "1"}}}, e,
		"properties stay")
	_, text := d.do("ann", "GET", "/retained?filter=ann/%23", "")
	require.NotContains(t, text, "dropped")
	require.Contains(t, text, base64.StdEncoding.EncodeToString([]byte("for ann: secret")))
	_, text = d.do("ann", "GET", "/topics/ann/a", "")
	require.Equal(t, "for ann: secret", text)
	code, _ := d.do("ann", "GET", "/topics/ann/dropped", "")
	require.Equal(t, 404, code)
}

// Failed logins count as those over MQTT, before the password is looked at, and those over MQTT
// count here.
func TestFailedLoginsAreCounted(t *testing.T) {
	var refused atomic.Int32
	d := openWith(t, &opened{edit: func(c *dunlin.Config) {
		c.MaxAuthFailures = 3
		c.Observer = &hooks.Observer{Refused: func(hooks.Refused) { refused.Add(1) }}
	}}, nil)
	for i := range 3 {
		code, _ := d.do("wrong", "GET", "/topics/wrong/a", "")
		require.Equal(t, 401, code, "%d", i)
	}
	code, _ := d.do("wrong", "GET", "/topics/wrong/a", "")
	require.Equal(t, 429, code)
	require.EqualValues(t, 4, refused.Load())
	connect := func(user string) packets.ReasonCode {
		near, far := net.Pipe()
		defer near.Close()
		go d.b.ServeConn(t.Context(), from{far}) // ends with the pipe
		c := &packets.Connect{Version: packets.V5, CleanStart: true, ClientID: "c",
			HasUsername: true, Username: user}
		wire, err := c.Append(nil, packets.V5)
		require.NoError(t, err)
		go near.Write(wire) // until it is read
		r := packets.NewReader(near, packets.Limits{})
		r.SetVersion(packets.V5)
		p, err := r.ReadPacket()
		require.NoError(t, err)
		return p.(*packets.Connack).Code
	}
	require.Equal(t, packets.ConnectionRateExceeded, connect("wrong"))
	for range 3 {
		require.Equal(t, packets.BadUserNameOrPassword, connect("wrong too"))
	}
	code, _ = d.do("wrong too", "GET", "/topics/x", "")
	require.Equal(t, 429, code)
	code, _ = d.do("ann", "GET", "/topics/ann/a", "")
	require.Equal(t, 404, code, "another name is not kept out")
	require.NoError(t, d.b.Ban(dunlin.Ban{Kind: dunlin.BanAddress, Value: "127.0.0.0/8"}))
	code, _ = d.do("ann", "GET", "/topics/ann/a", "")
	require.Equal(t, 403, code)
}

// from is a connection from the address that clients over HTTP have here.
type from struct{ net.Conn }

func (from) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4000} }

// A stream ends when its reader loses the right to it, and has nothing of what comes then.
func TestRightsThatEndWhileAStreamIsOpen(t *testing.T) {
	for name, end := range map[string]func(d *opened){
		"the rules change": func(d *opened) { d.rules.close() },
		"the user is banned": func(d *opened) {
			require.NoError(t, d.b.Ban(dunlin.Ban{Kind: dunlin.BanUser, Value: "ann"}))
		},
		"the broker shuts down": func(d *opened) { d.b.Close() },
		"the door is closed":    func(d *opened) { d.h.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, nil)
			s := d.stream("ann/%23", "")
			d.publish("before")
			require.Equal(t, "before", s.next(t))
			p := make(chan int, 1)
			go func() { // ends with the test
				code, _ := d.do("ann", "GET", "/poll?filter=ann/%23&wait=60", "")
				p <- code
			}()
			for d.readers("user ann") < 2 {
				runtime.Gosched() // the server notices at its own time
			}
			end(d)
			d.b.Publish(context.Background(), &dunlin.Message{Topic: "ann/a"})
			require.Equal(t, "the end", s.next(t))
			// 503: it was under way, and had not begun to read
			require.Contains(t, []int{200, 403, 503}, <-p)
		})
	}
}

// readers returns how many requests of a user are under way.
func (d *opened) readers(user string) int {
	d.h.users.mu.Lock()
	defer d.h.users.mu.Unlock()
	if x := d.h.users.of[user]; x != nil {
		return x.requests
	}
	return 0
}

// gone waits until no request of a user is under way.
func (d *opened) gone(user string) {
	for d.readers("user "+user) > 0 {
		runtime.Gosched() // the server notices at its own time
	}
}

func (d *opened) bodies() int64 {
	d.h.users.mu.Lock()
	defer d.h.users.mu.Unlock()
	return d.h.users.all.bodies
}

// quiet is a door in virtual time, over connections in memory.
func quiet(t *testing.T, f func(d *opened, dial func() net.Conn)) {
	synctest.Test(t, func(t *testing.T) {
		d := new(opened)
		d.build(t, nil)
		l := listeners.NewMemory()
		s := &http.Server{Handler: d.h, ReadTimeout: time.Second}
		done := make(chan error, 1)
		go func() { done <- s.Serve(l) }()
		f(d, func() net.Conn {
			nc, err := l.Dial()
			require.NoError(t, err)
			return nc
		})
		s.Close()
		<-done
		synctest.Wait()
		d.close()
	})
}

const asAnn = "Authorization: Basic YW5uOmFubg==\r\nHost: x\r\n"

// A Grant that expires ends the stream, and a later request is not let in.
func TestAGrantExpires(t *testing.T) {
	quiet(t, func(d *opened, dial func() net.Conn) {
		d.grant.Expires = time.Now().Add(time.Minute)
		nc := dial()
		began := time.Now()
		fmt.Fprintf(nc, "GET /events?filter=ann/a HTTP/1.1\r\n%sConnection: close\r\n\r\n", asAnn)
		text, err := io.ReadAll(nc)
		require.NoError(t, err)
		require.Contains(t, string(text), "200 OK")
		require.Equal(t, time.Minute, time.Since(began), "ReadTimeout does not end it before")
		nc = dial()
		fmt.Fprintf(nc, "GET /topics/ann/a HTTP/1.1\r\n%sConnection: close\r\n\r\n", asAnn)
		text, _ = io.ReadAll(nc)
		require.Contains(t, string(text), " 401 ")
	})
}

// A body that does not come ends its request, and holds nothing for it.
func TestSlowBodies(t *testing.T) {
	quiet(t, func(d *opened, dial func() net.Conn) {
		var all []net.Conn
		for range 3 {
			nc := dial()
			fmt.Fprintf(nc, "POST /topics/ann/a HTTP/1.1\r\n%sTransfer-Encoding: chunked\r\n\r\n"+
				"5\r\nhello\r\n", asAnn)
			all = append(all, nc)
		}
		synctest.Wait()
		require.Equal(t, 3, d.readers("user ann"))
		require.EqualValues(t, 3*4096, d.bodies())
		time.Sleep(bodyTime + time.Second)
		synctest.Wait()
		require.Zero(t, d.readers("user ann"))
		require.Zero(t, d.bodies())
		a, err := http.ReadResponse(bufio.NewReader(all[0]), nil)
		require.NoError(t, err)
		require.Equal(t, 400, a.StatusCode)
	})
}

// While the acknowledgements are waited for, neither the deadline of the body nor that of the
// server ends the request.
func TestAWaitIsAsLongAsItWasAskedFor(t *testing.T) {
	quiet(t, func(d *opened, dial func() net.Conn) {
		sub, err := d.b.Subscribe(d.t.Context(), "ann/a", &dunlin.SubscribeOptions{QoS: 1})
		require.NoError(t, err)
		defer sub.Close()
		began := time.Now()
		nc := dial()
		fmt.Fprintf(nc, "POST /topics/ann/a?qos=1&wait=50 HTTP/1.1\r\n%sContent-Length: 5\r\n\r\n"+
			"hello", asAnn)
		a, err := http.ReadResponse(bufio.NewReader(nc), nil)
		require.NoError(t, err)
		text, _ := io.ReadAll(a.Body)
		require.JSONEq(t, `{"matched":1,"acknowledged":0,"lost":0}`, string(text))
		require.Equal(t, 50*time.Second, time.Since(began))
	})
}

// An Authorizer that runs out of time has refused: what was not published is no success.
func TestAnAuthorizerThatGivesUpRefuses(t *testing.T) {
	d := open(t, nil)
	d.rules.asked = func(context.Context, *hooks.AccessRequest) error {
		return errors.Join(errors.New("asks a server"), context.DeadlineExceeded)
	}
	code, _ := d.do("ann", "POST", "/topics/ann/a?wait=5", "x")
	require.Equal(t, 403, code)
}

// HEAD opens no stream; other methods, paths, ranges and large headers do nothing.
func TestOtherRequests(t *testing.T) {
	d := open(t, nil)
	d.do("ann", "POST", "/topics/ann/a?retain=1", "0123456789")
	for _, x := range []struct {
		method, path string
		want         int
	}{
		{"HEAD", "/events?filter=ann/a", 405}, {"HEAD", "/poll?filter=ann/a&wait=60", 405},
		{"HEAD", "/topics/ann/a", 405}, {"DELETE", "/topics/ann/a", 405},
		{"PUT", "/topics/ann/a", 405}, {"POST", "/events?filter=ann/a", 405},
		{"TRACE", "/retained", 405}, {"OPTIONS", "/retained", 405}, {"GET", "/", 404},
		{"GET", "/topics/", 404}, {"GET", "/events/", 404}, {"GET", "/../openapi.json", 404},
		{"POST", "/topics/ann/a?qos=3", 400}, {"POST", "/topics/ann/a?retain=2", 400},
		{"POST", "/topics/ann/a?expiry=4294967296", 400}, {"POST", "/topics/ann/a?wait=61", 400},
		{"POST", "/topics/ann/a?wait=-1", 400}, {"GET", "/poll?filter=ann/a&wait=1e9", 400},
	} {
		a, text := d.ask(call{"ann", x.method, x.path, "", nil})
		require.Equal(t, x.want, a.StatusCode, "%s %s %s", x.method, x.path, text)
		require.Equal(t, x.want == 405, a.Header.Get("Allow") != "")
	}
	a, text := d.ask(call{"ann", "GET", "/topics/ann/a", "", [][2]string{{"Range", "bytes=2-3"}}})
	require.Equal(t, 200, a.StatusCode)
	require.Equal(t, "0123456789", text, "a message is one piece")
	require.Equal(t, "application/octet-stream", a.Header.Get("Content-Type"))
	long := strings.Repeat("x", 65_536)
	for _, h := range [][2]string{{"Authorization", "Bearer " + long},
		{"Authorization", "Basic /zp4"}} {
		a, _ := d.ask(call{"", "GET", "/topics/ann/a", "", [][2]string{h}})
		require.Equal(t, 400, a.StatusCode)
	}
	a, _ = d.ask(call{"ann", "POST", "/topics/ann/a", strings.Repeat("x", 3<<20), nil})
	require.Equal(t, 413, a.StatusCode)
}

// A user has so many requests at a time, readers among them, and so has an address without one.
func TestOneUserDoesNotTakeTheDoor(t *testing.T) {
	d := open(t, func(o *Options) { o.MaxPerUser = 2 })
	one, two := d.stream("ann/a", ""), d.stream("ann/a", "")
	code, _ := d.do("ann", "POST", "/topics/ann/a", "x")
	require.Equal(t, 429, code)
	code, _ = d.do("bob", "POST", "/topics/bob/a", "x")
	require.Equal(t, 200, code)
	one.close()
	two.close()
	d.gone("ann")
	d.publish("x")
}
