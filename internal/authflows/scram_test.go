package authflows

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/stretchr/testify/require"
	"github.com/xdg-go/scram"
)

// An exchange runs SCRAM for paho with the library of others.
type exchange struct {
	mu   sync.Mutex
	conv *scram.ClientConversation // guarded by mu
}

// begin returns the first message.
func (x *exchange) begin(t *testing.T, user, password string) []byte {
	t.Helper()
	c, err := scram.SHA256.NewClient(user, password, "")
	require.NoError(t, err)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.conv = c.NewConversation()
	first, err := x.conv.Step("")
	require.NoError(t, err)
	return []byte(first)
}

// Authenticate answers an AUTH.
func (x *exchange) Authenticate(a *paho.Auth) *paho.Auth {
	x.mu.Lock()
	defer x.mu.Unlock()
	// an error shows in what the broker makes of nothing
	data, _ := x.conv.Step(string(a.Properties.AuthData))
	return &paho.Auth{ReasonCode: 0x18,
		Properties: &paho.AuthProperties{AuthMethod: auth.SCRAMSHA256, AuthData: []byte(data)}}
}

func (x *exchange) Authenticated() {}

// verify gives the server's final message to the conversation.
func (x *exchange) verify(data []byte) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, err := x.conv.Step(string(data))
	return err == nil && x.conv.Valid()
}

// scramBroker has two users, who may each publish below their name. An exchange may take as long as
// connectTimeout.
func scramBroker(t *testing.T, connectTimeout time.Duration) (*dunlin.Broker, string) {
	users, err := auth.NewUsers([]auth.User{
		{Name: "jane", Hash: auth.HashSCRAM("pencil", 4096)},
		{Name: "joe", Hash: auth.HashSCRAM("brush", 4096)},
		{Name: "old", Hash: auth.Hash("x", 1)},
	})
	require.NoError(t, err)
	rules, err := acl.Rules(acl.Rule{Effect: acl.EffectAllow, Filters: []string{"users/%u/#"}})
	require.NoError(t, err)
	passwords := auth.NewPasswords(users)
	return serve(t, dunlin.Config{
		Authenticator: passwords, Authorizer: acl.New(rules), ConnectTimeout: connectTimeout,
		EnhancedAuth: map[string]hooks.EnhancedAuthenticator{auth.SCRAMSHA256: auth.SCRAM(passwords.Find)},
	})
}

func TestSCRAM(t *testing.T) {
	_, addr := scramBroker(t, patience)
	connect := func(user, password string) (*client, *exchange, byte) {
		x := new(exchange)
		c, code := dial(t, addr, x, &paho.Connect{
			ClientID: user, Properties: &paho.ConnectProperties{AuthMethod: auth.SCRAMSHA256,
				AuthData: x.begin(t, user, password)},
		})
		return c, x, code
	}
	jane, x, code := connect("jane", "pencil")
	require.Zero(t, code)
	require.Zero(t, jane.publish("users/jane/a")&0x80)
	require.Equal(t, byte(packets.NotAuthorized), jane.publish("users/joe/a"))

	require.True(t, jane.authenticate(auth.SCRAMSHA256, x.begin(t, "jane", "pencil")),
		"re-authentication")
	require.Zero(t, jane.publish("users/jane/a")&0x80)
	require.False(t, jane.authenticate(auth.SCRAMSHA256, x.begin(t, "jane", "pencils")))
	require.Equal(t, byte(packets.NotAuthorized), jane.lost(),
		"re-authentication with a wrong password ends the connection")

	jane, x, code = connect("jane", "pencil")
	require.Zero(t, code)
	require.False(t, jane.authenticate(auth.SCRAMSHA256, x.begin(t, "joe", "brush")))
	require.Equal(t, byte(packets.NotAuthorized), jane.lost(), "re-authentication as somebody else")

	for _, wrong := range [][2]string{{"jane", "brush"}, {"jane", ""}, {"jack", "pencil"},
		{"old", "x"}} {
		_, _, code := connect(wrong[0], wrong[1])
		require.Equal(t, byte(packets.NotAuthorized), code, "%q", wrong)
	}
}

// TestSCRAMServerIsVerified: a broker that does not know the password cannot show that it does.
func TestSCRAMServerIsVerified(t *testing.T) {
	_, addr := scramBroker(t, patience)
	var x exchange
	w := dialWire(t, addr)
	w.connect("c", auth.SCRAMSHA256, string(x.begin(t, "jane", "pencil")))
	answer := x.Authenticate(&paho.Auth{Properties: &paho.AuthProperties{AuthData: []byte(w.challenge())}})
	w.auth(auth.SCRAMSHA256, string(answer.Properties.AuthData))
	p, err := w.in.ReadPacket()
	require.NoError(t, err)
	ack := p.(*packets.Connack)
	require.Equal(t, packets.Success, ack.Code)
	final, _ := ack.Properties.Bytes(packets.AuthenticationData)
	require.True(t, x.verify(final), "the CONNACK carries the server's signature")
}

func TestSCRAMAttacks(t *testing.T) {
	b, addr := scramBroker(t, patience)
	// listen is one good exchange, as an eavesdropper would have it.
	var x exchange
	first := string(x.begin(t, "jane", "pencil"))
	w := dialWire(t, addr)
	w.connect("victim", auth.SCRAMSHA256, first)
	challenge := w.challenge()
	final := string(x.Authenticate(&paho.Auth{Properties: &paho.AuthProperties{AuthData: []byte(challenge)}}).Properties.AuthData)
	w.auth(auth.SCRAMSHA256, final)
	p, err := w.in.ReadPacket()
	require.NoError(t, err)
	require.Equal(t, packets.Success, p.(*packets.Connack).Code)

	nonce := func(challenge string) string {
		return strings.TrimPrefix(strings.Split(challenge, ",")[0], "r=")
	}
	for _, tt := range []struct {
		name string
		// attack answers the challenge that the first message of the good exchange brings this
		// time.
		attack func(challenge string) string
	}{
		{"the whole exchange again", func(string) string { return final }},
		{"the old proof with the new nonce", func(c string) string {
			return strings.Replace(final,
				nonce(challenge), nonce(c), 1)
		}},
		{"no proof", func(c string) string { return "c=biws,r=" + nonce(c) }},
		{"an empty proof", func(c string) string { return "c=biws,r=" + nonce(c) + ",p=" }},
		{"a proof of zeros", func(c string) string {
			return "c=biws,r=" + nonce(c) + ",p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
		}},
		{"half a message", func(string) string { return final[:len(final)/2] }},
		{"nothing", func(string) string { return "" }},
		{"the first message again", func(string) string { return first }},
		{"only the client's nonce", func(string) string {
			return "c=biws,r=" + nonce(first[strings.Index(first, "r="):]) +
				",p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := dialWire(t, addr)
			w.connect("attacker", auth.SCRAMSHA256, first)
			c := w.challenge()
			require.NotEqual(t, challenge, c, "the server's nonce is new each time")
			w.auth(auth.SCRAMSHA256, tt.attack(c))
			require.Equal(t, packets.NotAuthorized, w.refused())
		})
	}
	t.Run("another method in the middle", func(t *testing.T) {
		w := dialWire(t, addr)
		w.connect("attacker", auth.SCRAMSHA256, first)
		w.challenge()
		w.auth("SCRAM-SHA-1", final)
		require.Equal(t, packets.ProtocolError, w.refused())
	})
	t.Run("a PUBLISH in the middle", func(t *testing.T) {
		w := dialWire(t, addr)
		w.connect("attacker", auth.SCRAMSHA256, first)
		w.challenge()
		w.send(&packets.Publish{Topic: []byte("users/jane/a")})
		require.Equal(t, packets.ProtocolError, w.refused())
	})
	t.Run("an exchange that does not go on", func(t *testing.T) {
		b, addr := scramBroker(t, 2*time.Second)
		w := dialWire(t, addr)
		w.connect("attacker", auth.SCRAMSHA256, first)
		began := time.Now()
		for { // until the broker closes
			if _, err := w.in.ReadPacket(); err != nil {
				break
			}
		}
		require.Less(t, time.Since(began), patience)
		for s := range b.Sessions() {
			require.NotEqual(t, "attacker", s.ClientID)
		}
	})
	for s := range b.Sessions() {
		require.NotEqual(t, "attacker", s.ClientID)
	}
}
