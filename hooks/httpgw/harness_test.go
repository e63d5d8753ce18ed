package httpgw

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// rules allow each user the topics below the name, and "public/#" to all. Deliveries of topics that
// end with "secret" are refused. They can change.
type rules struct {
	hooks.Reloads
	closed chan struct{} // not nil: nobody may do anything
	asked  func(ctx context.Context, r *hooks.AccessRequest) error
}

func (x *rules) Authorize(ctx context.Context, r *hooks.AccessRequest) error {
	if x.asked != nil {
		if err := x.asked(ctx, r); err != nil {
			return err
		}
	}
	select {
	case <-x.closed:
	default:
		who := r.Client.Identity.Principal
		if who != "" && strings.HasPrefix(r.Topic, who+"/") ||
			strings.HasPrefix(r.Topic, "public/") {
			return nil
		}
	}
	return packets.Errorf(packets.NotAuthorized, "no")
}

func (x *rules) AuthorizeDelivery(_ context.Context, r *hooks.AccessRequest) error {
	if strings.HasSuffix(r.Topic, "secret") {
		return packets.Errorf(packets.NotAuthorized, "no")
	}
	return nil
}

// close takes all rights away.
func (x *rules) close() {
	close(x.closed)
	x.Reloaded()
}

// An opened is a door over a broker where users have their name as the password.
type opened struct {
	t     *testing.T
	b     *dunlin.Broker
	h     *Handler
	s     *httptest.Server
	rules *rules
	grant hooks.Grant // of everybody; the Identity is that of the user
	edit  func(c *dunlin.Config)
}

func open(t *testing.T, edit func(o *Options)) *opened {
	return openWith(t, &opened{}, edit)
}

func openWith(t *testing.T, d *opened, edit func(o *Options)) *opened {
	d.build(t, edit)
	d.s = httptest.NewServer(d.h)
	t.Cleanup(d.close)
	return d
}

// build makes the broker and the door. close must follow.
func (d *opened) build(t *testing.T, edit func(o *Options)) {
	d.t, d.rules = t, &rules{closed: make(chan struct{})}
	users := hooks.AuthenticatorFunc(func(_ context.Context, r *hooks.ConnectRequest) error {
		name, password := r.Connect.Username, string(r.Connect.Password)
		if !r.Connect.HasUsername { // a token
			name = strings.TrimPrefix(password, "token of ")
			password = strings.TrimPrefix(password, "token of ")
		}
		if name == "" || password != name || strings.HasPrefix(name, "wrong") {
			return packets.Errorf(packets.BadUserNameOrPassword, "no")
		}
		*r.Grant = d.grant
		r.Grant.Identity.Principal = name
		return nil
	})
	cfg := dunlin.Config{Authenticator: users, Authorizer: d.rules,
		Logger: slog.New(slog.DiscardHandler)}
	if d.edit != nil {
		d.edit(&cfg)
	}
	b, err := dunlin.New(cfg)
	require.NoError(t, err)
	o := Options{Origins: []string{"https://page.example"}}
	if edit != nil {
		edit(&o)
	}
	d.b = b
	d.h, err = New(b, o)
	require.NoError(t, err)
}

func (d *opened) close() {
	d.h.Close()
	if d.s != nil {
		d.s.CloseClientConnections()
		d.s.Close()
	}
	d.b.Close()
	require.Zero(d.t, d.h.users.all, "nothing is counted any more")
	require.Empty(d.t, d.h.users.of)
}

// A call is a request and what it may have.
type call struct {
	user, method, path, body string
	head                     [][2]string
}

// ask sends a request and returns the answer, and its body.
func (d *opened) ask(c call) (*http.Response, string) {
	d.t.Helper()
	var body io.Reader = strings.NewReader(c.body)
	if c.body == "" {
		body = nil
	}
	r, err := http.NewRequest(c.method, d.s.URL+c.path, body)
	require.NoError(d.t, err)
	if c.user != "" {
		r.SetBasicAuth(c.user, c.user)
	}
	for _, h := range c.head {
		if h[0] == "Host" {
			r.Host = h[1]
		}
		r.Header.Add(h[0], h[1])
	}
	a, err := http.DefaultTransport.RoundTrip(r) // follows no redirect
	require.NoError(d.t, err)
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	require.NoError(d.t, err)
	return a, string(text)
}

// do sends a request of a user and returns the status and the body.
func (d *opened) do(user, method, path, body string) (int, string) {
	d.t.Helper()
	a, text := d.ask(call{user: user, method: method, path: path, body: body,
		head: [][2]string{{"Content-Type", "text/x"}}})
	return a.StatusCode, text
}

func (d *opened) publish(payload string) {
	d.t.Helper()
	code, text := d.do("ann", "POST", "/topics/ann/a?qos=1", payload)
	require.Equal(d.t, 200, code, text)
}

// A stream reads events.
type stream struct {
	lines *bufio.Reader
	last  string
	close func()
}

func (d *opened) stream(filter, last string) *stream {
	d.t.Helper()
	return d.streamOf("ann", filter, last)
}

func (d *opened) streamOf(user, filter, last string) *stream {
	d.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, err := http.NewRequestWithContext(ctx, "GET", d.s.URL+"/events?filter="+filter, nil)
	require.NoError(d.t, err)
	r.SetBasicAuth(user, user)
	r.Header.Set("Last-Event-ID", last)
	a, err := http.DefaultTransport.RoundTrip(r)
	require.NoError(d.t, err)
	require.Equal(d.t, 200, a.StatusCode)
	end := func() { cancel(); a.Body.Close() }
	d.t.Cleanup(end)
	return &stream{lines: bufio.NewReader(a.Body), close: end}
}

// next returns the payload of the next event.
func (s *stream) next(t testing.TB) string {
	t.Helper()
	for {
		line, err := s.lines.ReadBytes('\n')
		if err != nil {
			return "the end"
		}
		line = bytes.TrimSuffix(line, []byte("\n"))
		if id, ok := bytes.CutPrefix(line, []byte("id: ")); ok {
			s.last = string(id)
		}
		if data, ok := bytes.CutPrefix(line, []byte("data: ")); ok {
			var e event
			if json.Unmarshal(data, &e) != nil {
				return "lost " + string(data)
			}
			return string(e.Payload)
		}
	}
}
