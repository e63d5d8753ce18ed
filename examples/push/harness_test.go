package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
)

const testKey = "the key of tests"

// A bench is a service that runs.
type bench struct {
	t                    testing.TB
	program              *try.Program
	args                 []string
	url, devices, inband string
}

type object = map[string]any

func start(t testing.TB, args ...string) *bench {
	t.Helper()
	b := &bench{t: t, args: append([]string{"-listen", "127.0.0.1:0", "-http", "127.0.0.1:0",
		"-inband", "127.0.0.1:0", "-key", testKey, "-dir", t.TempDir()}, args...)}
	b.begin()
	return b
}

// dir is where the service keeps what it keeps.
func (b *bench) dir() string { return b.args[slices.Index(b.args, "-dir")+1] }

func (b *bench) begin() {
	b.t.Helper()
	b.program = try.Start(b.t, run, b.args...)
	b.devices = b.program.Line("devices at ")
	b.url = b.program.Line("backend at ")
	b.inband = b.program.Line("in-band at ")
}

// restart ends the service and starts it again.
func (b *bench) restart() {
	b.t.Helper()
	b.program.Stop()
	b.begin()
}

// ask makes a request with a token, and returns the status and the answer.
func (b *bench) ask(token, method, path string, body any) (status int, answer object) {
	b.t.Helper()
	status, text := b.send(token, method, path, body)
	if strings.HasPrefix(text, "{") {
		if err := json.Unmarshal([]byte(text), &answer); err != nil {
			b.t.Fatalf("%s %s: %v in %s", method, path, err, text)
		}
	}
	return status, answer
}

func (b *bench) send(token, method, path string, body any) (status int, text string) {
	b.t.Helper()
	var r io.Reader
	switch body := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(body)
	default:
		text, err := json.Marshal(body)
		if err != nil {
			b.t.Fatal(err)
		}
		r = bytes.NewReader(text)
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, method, b.url+path, r)
	if err != nil {
		b.t.Fatal(err)
	}
	if token != "" {
		q.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp.StatusCode, string(all)
}

// must makes a request as the backend, which has to succeed.
func (b *bench) must(method, path string, body any) object {
	b.t.Helper()
	status, answer := b.ask(testKey, method, path, body)
	if status >= 300 {
		b.t.Fatalf("%s %s was answered with %d %v", method, path, status, answer)
	}
	return answer
}

// account makes a user or a device and returns a token of it.
func (b *bench) account(name string) (token string) {
	b.t.Helper()
	b.must("PUT", "/v1/"+name, nil)
	return b.must("POST", "/v1/"+name+"/sessions", nil)["token"].(string)
}

func (b *bench) push(to, body string) {
	b.t.Helper()
	b.must("POST", "/v1/push", object{"to": to, "body": body})
}

// connect is the CONNECT of a phone that keeps its Session.
func connect(id, user, token string) *packets.Connect {
	p := &packets.Connect{Version: packets.V5, ClientID: id, HasUsername: user != "",
		Username: user, HasPassword: token != "", Password: []byte(token),
		Properties: packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 3600)}
	return p
}

// phone connects with a password.
func (b *bench) phone(id, user, token string) *try.Client {
	b.t.Helper()
	c, ack := try.Dial(b.t, b.devices, connect(id, user, token))
	if ack.Code.Failed() {
		b.t.Fatalf("%s of %s was refused: %v", id, user, ack.Code)
	}
	return c
}

// inbandPhone connects without a password, and publishes the token.
func (b *bench) inbandPhone(id, token string) (*try.Client, *packets.Connack) {
	b.t.Helper()
	c, ack := try.Dial(b.t, b.inband, connect(id, "", ""))
	if code := c.Publish(authTopic, token); code != packets.Success {
		b.t.Fatalf("the token of %s was refused: %v", id, code)
	}
	return c, ack
}

// property returns a User Property of a message.
func property(p *packets.Publish, name string) string {
	for k, v := range p.Properties.User() {
		if k == name {
			return v
		}
	}
	return ""
}
