package authflows

import (
	"crypto/ed25519"
	"crypto/rand"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	dunlinjwt "github.com/dunlin-mqtt/dunlin/hooks/jwt"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
)

// An issuer makes tokens.
type issuer struct {
	t    *testing.T
	key  ed25519.PrivateKey
	addr string // of a broker that accepts them
}

func newIssuer(t *testing.T) *issuer {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	keys, err := dunlinjwt.NewKeys(dunlinjwt.Key{Key: public})
	require.NoError(t, err)
	tokens, err := dunlinjwt.New(dunlinjwt.Options{Keys: keys})
	require.NoError(t, err)
	_, addr := serve(t, dunlin.Config{
		Authenticator: tokens, Authorizer: tokens.Authorizer(),
		EnhancedAuth: map[string]hooks.EnhancedAuthenticator{dunlinjwt.Method: tokens.Enhanced()},
	})
	return &issuer{t, private, addr}
}

// token returns one that lives that long, for somebody who may publish to some topics.
func (i *issuer) token(sub string, life time.Duration, publish ...string) []byte {
	i.t.Helper()
	s, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
		"sub": sub, "exp": float64(time.Now().Add(life).UnixMilli()) / 1000, "publish": publish,
	}).SignedString(i.key)
	require.NoError(i.t, err)
	return []byte(s)
}

// unsigned returns a token with alg:none.
func (i *issuer) unsigned() []byte {
	i.t.Helper()
	s, err := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.MapClaims{"sub": "jane",
		"exp": time.Now().Add(time.Hour).Unix()}).SignedString(jwt.UnsafeAllowNoneSignatureType)
	require.NoError(i.t, err)
	return []byte(s)
}

func (i *issuer) byPassword(token []byte) (*client, byte) {
	i.t.Helper()
	return dial(i.t, i.addr, nil, &paho.Connect{ClientID: "p", Username: "jane", UsernameFlag: true,
		Password: token, PasswordFlag: true})
}

func (i *issuer) byMethod(id string, token []byte) (*client, byte) {
	i.t.Helper()
	return dial(i.t, i.addr, answerer(token), &paho.Connect{ClientID: id,
		Properties: &paho.ConnectProperties{AuthMethod: dunlinjwt.Method, AuthData: token}})
}

// An answerer answers AUTH with a token.
type answerer []byte

func (a answerer) Authenticate(*paho.Auth) *paho.Auth {
	return &paho.Auth{ReasonCode: 0x18,
		Properties: &paho.AuthProperties{AuthMethod: dunlinjwt.Method, AuthData: a}}
}

func (a answerer) Authenticated() {}

func TestJWT(t *testing.T) {
	i := newIssuer(t)
	good := i.token("jane", time.Hour, "a/#")
	c, code := i.byPassword(good)
	require.Zero(t, code)
	require.Zero(t, c.publish("a/b")&0x80)
	require.Equal(t, byte(packets.NotAuthorized), c.publish("b"))
	c, code = i.byMethod("m", good)
	require.Zero(t, code)
	require.Zero(t, c.publish("a/b")&0x80)
	_, code = dial(t, i.addr, answerer(good), &paho.Connect{ClientID: "late",
		Properties: &paho.ConnectProperties{AuthMethod: dunlinjwt.Method}})
	require.Zero(t, code, "the broker asks for a token that the CONNECT does not have")

	for name, token := range map[string][]byte{
		"expired": i.token("jane", -time.Minute, "a/#"), "alg none": i.unsigned(),
		"without signature": good[:len(good)-86],
		"of another issuer": newIssuer(t).token("jane", time.Hour),
	} {
		_, code = i.byPassword(token)
		require.Equal(t, byte(packets.BadUserNameOrPassword), code, name)
		_, code = i.byMethod("x", token)
		require.Equal(t, byte(packets.NotAuthorized), code, name)
	}
}

// TestJWTReauthentication: a token expires, and whoever has sent another one in time stays.
func TestJWTReauthentication(t *testing.T) {
	i := newIssuer(t)
	var began time.Time
	var stays, leaves, password *client
	var life time.Duration
	// on a machine that is busy with other things all of it may come too late
	for life = 5 * time.Second; ; life *= 2 {
		began = time.Now()
		codes := make([]byte, 3)
		stays, codes[0] = i.byMethod("stays", i.token("jane", life, "a"))
		leaves, codes[1] = i.byMethod("leaves", i.token("jane", life, "a"))
		password, codes[2] = i.byPassword(i.token("jane", life, "a"))
		good := stays != nil && stays.authenticate(dunlinjwt.Method,
			i.token("jane", time.Hour, "b"))
		if time.Since(began) < life-time.Second ||
			life > patience/2 { // in a token there are whole seconds
			require.Equal(t, make([]byte, 3), codes)
			require.True(t, good)
			break
		}
	}
	require.Equal(t, byte(packets.NotAuthorized), stays.publish("a"),
		"the new token's claims are in force")
	require.Zero(t, stays.publish("b")&0x80)
	require.Equal(t, byte(packets.MaximumConnectTime), leaves.lost())
	require.Equal(t, byte(packets.MaximumConnectTime), password.lost())
	require.GreaterOrEqual(t, time.Since(began), life-time.Second)
	require.Zero(t, stays.publish("b")&0x80)

	require.False(t, stays.authenticate(dunlinjwt.Method, i.token("joe", time.Hour, "b")))
	require.Equal(t, byte(packets.NotAuthorized), stays.lost(), "somebody else's token")
	for name, token := range map[string][]byte{"expired": i.token("jane", -time.Minute),
		"alg none": i.unsigned()} {
		c, code := i.byMethod("again", i.token("jane", time.Hour, "a"))
		require.Zero(t, code)
		require.False(t, c.authenticate(dunlinjwt.Method, token), name)
		require.Equal(t, byte(packets.NotAuthorized), c.lost(), name)
	}
}
