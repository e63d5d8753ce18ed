package main

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestRun(t *testing.T) {
	p := try.Start(t, run, "-listen", "127.0.0.1:0", "-api", "127.0.0.1:0")
	addr := p.Line("listening on ")
	come := func(password string) (*try.Client, packets.ReasonCode) {
		c, ack := try.Dial(t, addr, &packets.Connect{
			Version: packets.V5, CleanStart: true, ClientID: "c1", HasUsername: true,
			Username: "jane", HasPassword: true, Password: []byte(password),
		})
		return c, ack.Code
	}
	c, code := come("pencils")
	if code != packets.BadUserNameOrPassword {
		t.Fatalf("a wrong password was answered with %v", code)
	}
	c.Close()
	c, code = come("pencil")
	if code.Failed() {
		t.Fatalf("jane was refused: %v", code)
	}
	if code := c.Subscribe("jane/#", 1); code.Failed() {
		t.Errorf("she may not subscribe: %v", code)
	}
	if code := c.Publish("joe/state", "on"); code != packets.NotAuthorized {
		t.Errorf("a publish under another name was answered with %v", code)
	}
	c.Close()
	p.Stop() // sends what is left to tell
	// a refusal is told of when its connection has ended, which may be later than what follows it
	var told []string
	for range 6 {
		told = append(told, p.Line("event: "))
	}
	slices.Sort(told)
	if want := []string{"connected c1", "denied c1 joe/state", "disconnected c1", "refused c1",
		"session_ended c1", "subscribed c1 jane/#"}; !slices.Equal(told, want) {
		t.Errorf("the server was told of %q, not %q", told, want)
	}
}

func TestUnsigned(t *testing.T) {
	r, err := http.NewRequest(http.MethodPost, "/connect",
		strings.NewReader(`{"username":"jane","password":"pencil"}`))
	if err != nil {
		t.Fatal(err)
	}
	w := &answer{header: http.Header{}}
	api([]byte("secret"), t.Output()).ServeHTTP(w, r)
	if w.status != http.StatusForbidden {
		t.Errorf("a question that nobody has signed was answered with status %d", w.status)
	}
}

type answer struct {
	header http.Header
	status int
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) Write(b []byte) (int, error) { return len(b), nil }
func (a *answer) WriteHeader(status int)      { a.status = status }
