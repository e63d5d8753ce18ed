package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
	gojwt "github.com/golang-jwt/jwt/v5"
)

func connect(t *testing.T, addr, token string) (*try.Client, packets.ReasonCode) {
	c, ack := try.Dial(t, addr, &packets.Connect{
		Version: packets.V5, CleanStart: true, ClientID: "c", HasUsername: true, Username: "jane",
		HasPassword: true, Password: []byte(token),
	})
	return c, ack.Code
}

func TestRun(t *testing.T) {
	p := try.Start(t, run, "-listen", "127.0.0.1:0")
	token := p.Line("token ")
	addr := p.Line("listening on ")
	if _, code := connect(t, addr,
		token[:len(token)-4]+"AAAA"); code != packets.BadUserNameOrPassword {
		t.Errorf("a forged token was answered with %v", code)
	}
	if _, code := connect(t, addr, "pencil"); code != packets.NotAuthorized {
		t.Errorf("a password that is no token was answered with %v", code)
	}
	c, code := connect(t, addr, token)
	if code.Failed() {
		t.Fatalf("the token was answered with %v", code)
	}
	if code := c.Publish("users/jane/state", "on"); code.Failed() {
		t.Errorf("a publish that the token allows: %v", code)
	}
	if code := c.Publish("all/state", "on"); code != packets.NotAuthorized {
		t.Errorf("a publish that it does not allow was answered with %v", code)
	}
	if code := c.Subscribe("all/+", 1); code.Failed() {
		t.Errorf("a subscription that it allows: %v", code)
	}
	if code := c.Subscribe("users/#", 1); code != packets.NotAuthorized {
		t.Errorf("a subscription to more than it allows was answered with %v", code)
	}
}

// TestKeyFile has keys from a file, and a token that expires while its bearer is connected.
func TestKeyFile(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "keys")
	set := fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":"%s"}]}`,
		base64.RawURLEncoding.EncodeToString(public))
	if err := os.WriteFile(file, []byte(set), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := try.Start(t, run, "-listen", "127.0.0.1:0", "-keys", file, "-issuer", "me").
		Line("listening on ")
	sign := func(claims gojwt.MapClaims) string {
		s, err := gojwt.NewWithClaims(gojwt.SigningMethodEdDSA, claims).SignedString(private)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if _, code := connect(t, addr, sign(gojwt.MapClaims{"sub": "jane", "iss": "you", "aud": "mqtt",
		"exp": time.Now().Add(time.Hour).Unix()})); code != packets.BadUserNameOrPassword {
		t.Errorf("another issuer's token was answered with %v", code)
	}
	// on a machine that is busy with other things the first may come too late
	for lifetime := 2 * time.Second; ; lifetime *= 2 {
		c, code := connect(t, addr, sign(gojwt.MapClaims{"sub": "jane", "iss": "me", "aud": "mqtt",
			"exp": time.Now().Add(lifetime).Unix()}))
		if code.Failed() && lifetime < 10*time.Second {
			continue
		}
		if code.Failed() {
			t.Fatalf("the token was answered with %v", code)
		}
		if d, ok := c.Receive().(*packets.Disconnect); !ok || d.Code != packets.MaximumConnectTime {
			t.Errorf("the token expired, and the client was sent %+v", d)
		}
		return
	}
}
