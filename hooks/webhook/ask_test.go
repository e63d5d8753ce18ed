package webhook_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/hooks/webhook"
	"github.com/dunlin-mqtt/dunlin/internal/testcert"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// A server is an http.RoundTripper, so that it works in virtual time.
type server struct {
	mu     sync.Mutex
	status int           // of the answers; 0: 200
	body   string        // of the answers
	err    error         // instead of an answer
	wait   time.Duration // before an answer
	// instead of them, unless the status is 0
	odd     func(body string) (status int, wait time.Duration)
	asked   []string // bodies
	headers []http.Header
	now     int // requests under way
	most    int // that now was
}

func (s *server) set(status int, body string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status, s.body, s.err = status, body, err
}

// questions returns how many there were.
func (s *server) questions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.asked, s.headers = append(s.asked, string(b)), append(s.headers, r.Header)
	s.now++
	s.most = max(s.most, s.now)
	status, body, wait := s.status, s.body, s.wait
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.now--
	}()
	if s.odd != nil {
		if oddStatus, oddWait := s.odd(string(b)); oddStatus != 0 {
			status, wait = oddStatus, oddWait
		}
	}
	if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && s.err == nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	if status == 0 {
		status = 200
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)),
		Request: r}, nil
}

func (s *server) options() webhook.Options {
	return webhook.Options{URL: "https://api.example.org/mqtt", Client: &http.Client{Transport: s},
		Logger: slog.New(slog.DiscardHandler)}
}

func (s *server) authenticator(t *testing.T, change func(*webhook.Options)) *webhook.Authenticator {
	o := s.options()
	if change != nil {
		change(&o)
	}
	a, err := webhook.NewAuthenticator(o)
	require.NoError(t, err)
	return a
}

func (s *server) authorizer(t *testing.T, change func(*webhook.Options)) *webhook.Authorizer {
	o := s.options()
	if change != nil {
		change(&o)
	}
	a, err := webhook.NewAuthorizer(o)
	require.NoError(t, err)
	return a
}

func jane() *hooks.Client {
	return &hooks.Client{
		ID: "c1", Username: "jane", HasUsername: true, Version: packets.V5,
		RemoteAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 4711},
		LocalAddr:  &net.TCPAddr{IP: net.IPv4(198, 51, 100, 1), Port: 8883},
	}
}

func connect(password string) *hooks.ConnectRequest {
	return &hooks.ConnectRequest{
		Client: jane(), Grant: new(hooks.Grant),
		Connect: &packets.Connect{HasUsername: true, Username: "jane", HasPassword: true,
			Password: []byte(password)},
	}
}

func publish(topic string) *hooks.AccessRequest {
	return &hooks.AccessRequest{Client: jane(), Action: hooks.ActionPublish, Topic: topic}
}

func TestQuestions(t *testing.T) {
	leaf := testcert.CA(t, "ca").Issue("sensor").Leaf
	secured := connect("x")
	secured.Client.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf},
		VerifiedChains: [][]*x509.Certificate{{leaf}}}
	unverified := connect("x")
	unverified.Client.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
	anonymous := &hooks.ConnectRequest{Client: &hooks.Client{Version: packets.V31},
		Connect: new(packets.Connect), Grant: new(hooks.Grant)}
	known := jane()
	known.Identity = hooks.Identity{Principal: "Jane", Roles: []string{"sensor"}, Tenant: "t1",
		Attributes: map[string]string{"k": "v"}}
	for _, tt := range []struct {
		name    string
		connect *hooks.ConnectRequest
		access  *hooks.AccessRequest
		want    string
	}{
		{"a password", connect("pencil"), nil, `{"action":"connect","client_id":"c1","username":"jane","password":"pencil","version":5,
			"remote_ip":"192.0.2.7","listener":"198.51.100.1:8883"}`},
		{"a password that is not text", connect("\xff\x00"), nil, `{"action":"connect","client_id":"c1","username":"jane","password_base64":"/wA=","version":5,
			"remote_ip":"192.0.2.7","listener":"198.51.100.1:8883"}`},
		{"an empty password", connect(""), nil, `{"action":"connect","client_id":"c1","username":"jane","password":"","version":5,
			"remote_ip":"192.0.2.7","listener":"198.51.100.1:8883"}`},
		{"nothing", anonymous, nil, `{"action":"connect","client_id":"","version":3}`},
		{"a certificate", secured, nil, fmt.Sprintf(`{"action":"connect","client_id":"c1","username":"jane","password":"x","version":5,
			"remote_ip":"192.0.2.7","listener":"198.51.100.1:8883","certificate":{"common_name":"sensor","fingerprint":"%s"}}`, auth.Fingerprint(leaf))},
		{"a certificate that nobody has verified", unverified, nil, `{"action":"connect","client_id":"c1","username":"jane","password":"x","version":5,
			"remote_ip":"192.0.2.7","listener":"198.51.100.1:8883"}`},
		{"a publish", nil, &hooks.AccessRequest{Client: known, Action: hooks.ActionPublish, Topic: "a/b", QoS: 1, Retain: true, Will: true}, `{"action":"publish",
			"client_id":"c1","user":"Jane","roles":["sensor"],"tenant":"t1","attributes":{"k":"v"},"remote_ip":"192.0.2.7","topic":"a/b","qos":1,"retain":true,"will":true}`},
		{"a shared subscription", nil, &hooks.AccessRequest{Client: jane(),
			Action: hooks.ActionSubscribe, Topic: "a/#", Group: "g", QoS: 2},
			`{"action":"subscribe","client_id":"c1","user":"jane","remote_ip":"192.0.2.7","topic":"a/#","group":"g","qos":2}`},
		{"a client without a name", nil, &hooks.AccessRequest{Client: new(hooks.Client),
			Action: hooks.ActionPublish, Topic: "a"},
			`{"action":"publish","client_id":"","topic":"a","qos":0}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &server{body: `{"result":"allow"}`}
			if tt.connect != nil {
				require.NoError(t, s.authenticator(t, nil).Authenticate(t.Context(), tt.connect))
			} else {
				require.NoError(t, s.authorizer(t, nil).Authorize(t.Context(), tt.access))
			}
			require.JSONEq(t, tt.want, s.asked[0])
			require.Equal(t, "application/json", s.headers[0].Get("Content-Type"))
			require.Empty(t, s.headers[0].Get("Dunlin-Signature"))
		})
	}
}

func TestAnswers(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		status     int
		err        error
		// what a CONNECT is answered with; Success: it is accepted; 1: the hook abstains
		connect packets.ReasonCode
		access  packets.ReasonCode
		reason  string
	}{
		{"allow", `{"result":"allow"}`, 200, nil, packets.Success, packets.Success, ""},
		{"abstain", `{"result":"abstain"}`, 200, nil, 1, 1, ""},
		{"deny", `{"result":"deny"}`, 200, nil, packets.BadUserNameOrPassword,
			packets.NotAuthorized, ""},
		{"deny with reasons", `{"result":"deny","reason_code":138,"reason":"go away"}`, 200, nil,
			packets.Banned, packets.Banned, "go away"},
		{"a field that is not known", `{"result":"allow","more":[1]}`, 200, nil, packets.Success,
			packets.Success, ""},
		{"no result", `{}`, 200, nil, packets.ServerUnavailable,
			packets.ImplementationSpecificError, "no decision"},
		{"another result", `{"result":"ok"}`, 200, nil, packets.ServerUnavailable,
			packets.ImplementationSpecificError, "no decision"},
		{"a result in capital letters", `{"result":"ALLOW"}`, 200, nil, packets.ServerUnavailable,
			packets.ImplementationSpecificError, "no decision"},
		{"true", `true`, 200, nil, packets.ServerUnavailable, packets.ImplementationSpecificError,
			"no decision"},
		{"nothing", ``, 200, nil, packets.ServerUnavailable, packets.ImplementationSpecificError,
			"no decision"},
		{"half an answer", `{"result":"allow"`, 200, nil, packets.ServerUnavailable,
			packets.ImplementationSpecificError, "no decision"},
		{"an answer and more", `{"result":"allow"}{}`, 200, nil, packets.ServerUnavailable,
			packets.ImplementationSpecificError, "no decision"},
		{"a reason code of success", `{"result":"deny","reason_code":1}`, 200, nil,
			packets.ServerUnavailable, packets.ImplementationSpecificError, "no decision"},
		{"a reason code that is too large", `{"result":"deny","reason_code":391}`, 200, nil,
			packets.ServerUnavailable, packets.ImplementationSpecificError, "no decision"},
		{"a negative limit", `{"result":"allow","limits":{"packet_size":-1}}`, 200, nil,
			packets.ServerUnavailable, packets.ImplementationSpecificError, "no decision"},
		{"a mount point with a wildcard", `{"result":"allow","mount_point":"+/"}`, 200, nil,
			packets.ServerUnavailable, packets.ImplementationSpecificError, "no decision"},
		{"a status that is not 200", `{"result":"allow"}`, 201, nil, packets.ServerUnavailable,
			packets.ImplementationSpecificError, "no decision"},
		{"an answer that is too long", `{"result":"allow"}` + strings.Repeat(" ", 64<<10), 200, nil,
			packets.ServerUnavailable, packets.ImplementationSpecificError, "no decision"},
		{"no answer", "", 0, errors.New("no network"), packets.ServerUnavailable,
			packets.ImplementationSpecificError, "no decision"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &server{body: tt.body, status: tt.status, err: tt.err}
			r := connect("pencil")
			for err, want := range map[error]packets.ReasonCode{
				s.authenticator(t, nil).Authenticate(t.Context(), r):      tt.connect,
				s.authorizer(t, nil).Authorize(t.Context(), publish("a")): tt.access,
			} {
				switch want {
				case packets.Success:
					require.NoError(t, err)
				case 1:
					require.ErrorIs(t, err, hooks.ErrAbstain)
				default:
					pe, ok := errors.AsType[*packets.Error](err)
					require.True(t, ok, "%v", err)
					require.Equal(t, want, pe.Code, "%v", err)
					require.Equal(t, tt.reason, pe.Reason)
				}
			}
			require.Equal(t, hooks.Grant{}, *r.Grant)
		})
	}
}

func TestGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{body: `{"result":"allow","principal":"Jane","roles":["a","b"],"tenant":"t1","attributes":{"k":"v"},"mount_point":"tenants/t1/",
			"expires_seconds":3600,"limits":{"receive_maximum":10,"packet_size":65536,"keep_alive_seconds":60,"session_expiry_seconds":1.5,
			"queued_messages":100,"queued_bytes":65537,"publish_rate":10.5,"publish_bytes":1000}}`}
		a := s.authenticator(t, nil)
		want := hooks.Grant{
			Identity: hooks.Identity{Principal: "Jane", Roles: []string{"a", "b"}, Tenant: "t1",
				Attributes: map[string]string{"k": "v"}},
			MountPoint: "tenants/t1/", Expires: time.Now().Add(time.Hour),
			Limits: hooks.Limits{
				ReceiveMaximum: 10, PacketSize: 65536, KeepAlive: time.Minute,
				SessionExpiry:  1500 * time.Millisecond,
				QueuedMessages: 100, QueuedBytes: 65537, PublishRate: 10.5, PublishBytes: 1000,
			},
		}
		for range 2 { // the second answer is a kept one, which expires no later
			r := connect("pencil")
			require.NoError(t, a.Authenticate(t.Context(), r))
			require.Equal(t, want, *r.Grant)
			time.Sleep(time.Second)
		}
		require.Equal(t, 1, s.questions())
	})
}

func TestKeptAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{body: `{"result":"allow"}`}
		a := s.authenticator(t, nil)
		ask := func(password string) error { return a.Authenticate(t.Context(), connect(password)) }
		require.NoError(t, ask("pencil"))
		s.set(0, `{"result":"deny"}`, nil)
		time.Sleep(29 * time.Second)
		require.NoError(t, ask("pencil"), "an answer that allows is kept for 30 s")
		require.Error(t, ask("pencils"), "for this question alone")
		time.Sleep(time.Second)
		require.Error(t, ask("pencil"))
		require.Equal(t, 3, s.questions())
		s.set(0, `{"result":"allow"}`, nil)
		time.Sleep(4 * time.Second)
		require.Error(t, ask("pencil"), "an answer that denies is kept for 5 s")
		time.Sleep(time.Second)
		require.NoError(t, ask("pencil"))

		s.set(0, `{"result":"allow","cache_seconds":0}`, nil)
		require.NoError(t, ask("0"))
		require.NoError(t, ask("0"))
		require.Equal(t, 6, s.questions(), "an answer may say that it must not be kept")
		s.set(0, `{"result":"deny","cache_seconds":60}`, nil)
		require.Error(t, ask("60"))
		time.Sleep(59 * time.Second)
		require.Error(t, ask("60"))
		require.Equal(t, 7, s.questions(), "or for longer")

		s.set(0, `{"result":"allow","cache_seconds":60,"expires_seconds":10}`, nil)
		require.NoError(t, ask("10"))
		time.Sleep(10 * time.Second)
		require.NoError(t, ask("10"))
		require.Equal(t, 9, s.questions(), "but for no longer than what it grants lasts")

		s.set(500, "", nil)
		require.Error(t, ask("500"))
		s.set(200, `{"result":"allow"}`, nil)
		require.NoError(t, ask("500"), "failures are not kept")

		none := s.authenticator(t, func(o *webhook.Options) { o.AllowFor, o.DenyFor = -1, -1 })
		before := s.questions()
		for range 3 {
			require.NoError(t, none.Authenticate(t.Context(), connect("x")))
		}
		require.Equal(t, before+3, s.questions())
	})
}

func TestKeptAnswersAreBounded(t *testing.T) {
	s := &server{body: `{"result":"allow"}`}
	a := s.authorizer(t, func(o *webhook.Options) { o.MaxCached = 3 })
	for _, topic := range []string{"a", "b", "c", "a", "d", "a", "c", "d"} {
		require.NoError(t, a.Authorize(t.Context(), publish(topic)))
	}
	require.Equal(t, 4, s.questions())
	require.NoError(t, a.Authorize(t.Context(), publish("b")))
	require.Equal(t, 5, s.questions(), "b was not used for longest")
}

func TestEqualQuestionsAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{body: `{"result":"allow"}`, wait: time.Second}
		a := s.authorizer(t, func(o *webhook.Options) { o.AllowFor = -1 })
		var all sync.WaitGroup
		for range 50 {
			// waited for below
			all.Go(func() { require.NoError(t, a.Authorize(t.Context(), publish("a"))) })
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		require.Error(t, a.Authorize(ctx, publish("a")), "a client that goes away does not wait")
		all.Wait()
		require.Equal(t, 1, s.questions())
	})
}

func TestConcurrencyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{body: `{"result":"allow"}`, wait: 900 * time.Millisecond}
		a := s.authorizer(t, func(o *webhook.Options) { o.MaxConcurrent = 4 })
		var all sync.WaitGroup
		var mu sync.Mutex
		refused := 0
		for i := range 40 {
			all.Go(func() { // waited for below
				r := publish(fmt.Sprint(i))
				r.Client.Identity.Principal = []string{"jane", "joe"}[i%2]
				if err := a.Authorize(t.Context(), r); err != nil {
					require.Equal(t, packets.ImplementationSpecificError, packets.CodeOf(err))
					mu.Lock()
					refused++
					mu.Unlock()
				}
			})
		}
		began := time.Now()
		all.Wait()
		require.Equal(t, 4, s.most)
		require.Equal(t, 16, refused, "more than the server can begin to answer in the time-out")
		require.Equal(t, 5400*time.Millisecond, time.Since(began))
		require.NoError(t, a.Authorize(t.Context(), publish("a")),
			"that they waited in vain is no failure of the server")
	})
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{body: `{"result":"allow"}`, wait: time.Hour}
		began := time.Now()
		err := s.authenticator(t, func(o *webhook.Options) {
			o.Timeout = 2 * time.Second
		}).Authenticate(t.Context(), connect("x"))
		require.Equal(t, packets.ServerUnavailable, packets.CodeOf(err))
		require.Equal(t, 2*time.Second, time.Since(began))
	})
}

func TestCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := &server{body: `{"result":"allow"}`}
		a := s.authorizer(t, func(o *webhook.Options) {
			o.Logger = slog.New(slog.NewTextHandler(&log, nil))
			o.AllowFor = time.Hour
		})
		n := 0
		ask := func() error { // never the same question
			n++
			return a.Authorize(t.Context(), publish(fmt.Sprint(n)))
		}
		require.NoError(t, a.Authorize(t.Context(), publish("kept")))
		s.set(0, "", errors.New("no network"))
		for range 5 {
			require.Error(t, ask())
		}
		require.Equal(t, 6, s.questions())
		s.set(0, `{"result":"allow"}`, nil)
		for range 100 {
			require.Error(t, ask(), "the circuit is open, and refuses")
		}
		require.NoError(t, a.Authorize(t.Context(), publish("kept")), "what is known is known")
		require.Equal(t, 6, s.questions())

		s.set(503, "", nil)
		time.Sleep(10 * time.Second)
		require.Error(t, ask())
		require.Error(t, ask())
		require.Equal(t, 7, s.questions(), "one question tries, and fails")

		s.set(0, `{"result":"allow"}`, nil)
		s.wait = time.Second
		time.Sleep(10 * time.Second)
		var probe sync.WaitGroup
		probe.Go(func() { require.NoError(t, ask()) }) // waited for below
		synctest.Wait()
		require.Error(t, a.Authorize(t.Context(), publish("other")),
			"while one tries others are refused")
		probe.Wait()
		for range 10 {
			require.NoError(t, ask())
		}
		require.Equal(t, 18, s.questions())
		require.Equal(t, 1, strings.Count(log.String(), "level=WARN"), "%s", &log)
		require.Equal(t, 1, strings.Count(log.String(), "answers again"), "%s", &log)
	})
}

func TestOptions(t *testing.T) {
	for _, url := range []string{"", "example.org", "ftp://example.org/", "http://", ":"} {
		_, err := webhook.NewAuthenticator(webhook.Options{URL: url})
		require.ErrorContains(t, err, "Options.URL", url)
		_, err = webhook.NewAuthorizer(webhook.Options{URL: url})
		require.ErrorContains(t, err, "Options.URL", url)
		_, err = webhook.NewEvents(webhook.EventOptions{URL: url})
		require.ErrorContains(t, err, "Options.URL", url)
	}
	_, err := webhook.NewEvents(webhook.EventOptions{URL: "http://127.0.0.1/",
		Only: []string{"connect"}})
	require.ErrorContains(t, err, `"connect"`)
}

func TestSignature(t *testing.T) {
	s := &server{body: `{"result":"allow"}`}
	secret := []byte("secret")
	a := s.authenticator(t, func(o *webhook.Options) {
		o.Secret = secret
		o.Header = http.Header{"Authorization": {"Bearer x"}}
	})
	require.NoError(t, a.Authenticate(t.Context(), connect("pencil")))
	header, body := s.headers[0], []byte(s.asked[0])
	require.Equal(t, "Bearer x", header.Get("Authorization"))
	require.NoError(t, webhook.Verify(secret, header, body, 0))

	require.Error(t, webhook.Verify(nil, header, body, 0), "no secret")
	require.ErrorContains(t, webhook.Verify([]byte("other"), header, body, 0), "Dunlin-Signature")
	require.ErrorContains(t, webhook.Verify(secret, header, append(body, ' '), 0),
		"Dunlin-Signature")
	require.ErrorContains(t, webhook.Verify(secret, http.Header{}, body, 0), "Dunlin-Timestamp")
	later := header.Clone()
	later.Set("Dunlin-Timestamp", "9999999999")
	require.ErrorContains(t, webhook.Verify(secret, later, body, 0), "Dunlin-Signature",
		"the time is signed, too")
	require.ErrorContains(t, webhook.Verify(secret, header, body, time.Nanosecond), "old")
}

// TestNoRedirects: questions hold passwords, which nobody else should get.
func TestNoRedirects(t *testing.T) {
	other := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/other" {
			http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"result": "allow"})
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() { _ = other.Serve(l) }) // waited for below
	defer serving.Wait()
	defer other.Close()
	ask := func(path string) error {
		a, err := webhook.NewAuthenticator(webhook.Options{URL: "http://" + l.Addr().String() +
			path, Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		return a.Authenticate(t.Context(), connect("pencil"))
	}
	require.NoError(t, ask("/other"))
	require.ErrorContains(t, ask("/"), "307")
}

// Times of answers at both edges: the shortest one is no 0, which would mean no limit.
func TestTimesOfAnswersAtTheirEdges(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for says, want := range map[string]time.Duration{
		"0": 0, "5e-324": 1, "1e-9": 1, "1.5": 1500 * time.Millisecond,
		"31536000": year, "1.7e308": year,
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &server{body: fmt.Sprintf(`{"result":"allow","expires_seconds":%[1]s,
				"limits":{"keep_alive_seconds":%[1]s,"session_expiry_seconds":%[1]s}}`, says)}
			r := connect("pencil")
			require.NoError(t, s.authenticator(t, nil).Authenticate(t.Context(), r))
			require.Equal(t, want, r.Grant.Limits.KeepAlive, says)
			require.Equal(t, want, r.Grant.Limits.SessionExpiry, says)
			if want == 0 {
				require.Zero(t, r.Grant.Expires)
			} else {
				require.Equal(t, time.Now().Add(want), r.Grant.Expires, says)
			}
		})
	}
}

func TestAnAnswerIsKeptForNoNegativeTime(t *testing.T) {
	for _, says := range []string{"-1.7e308", "-1", "-5e-324", "0"} {
		synctest.Test(t, func(t *testing.T) {
			s := &server{body: fmt.Sprintf(`{"result":"allow","cache_seconds":%s}`, says)}
			a := s.authenticator(t, nil)
			for n := range 2 {
				require.NoError(t, a.Authenticate(t.Context(), connect("pencil")))
				require.Equal(t, n+1, s.questions(), says)
			}
		})
	}
}
