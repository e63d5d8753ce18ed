package jwt_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	dunlinjwt "github.com/dunlin-mqtt/dunlin/hooks/jwt"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
)

// keys of an issuer, made once.
var (
	rsaKey, _       = rsa.GenerateKey(rand.Reader, 2048)
	p256, _         = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _         = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p521, _         = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	edPublic, ed, _ = ed25519.GenerateKey(rand.Reader)
	secret          = []byte("thirty-two bytes are the least !")
)

func issuerKeys(t *testing.T) *dunlinjwt.Keys {
	t.Helper()
	keys, err := dunlinjwt.NewKeys(
		dunlinjwt.Key{ID: "rsa", Key: &rsaKey.PublicKey},
		dunlinjwt.Key{ID: "p256", Key: &p256.PublicKey},
		dunlinjwt.Key{ID: "p384", Key: &p384.PublicKey},
		dunlinjwt.Key{ID: "p521", Key: &p521.PublicKey},
		dunlinjwt.Key{ID: "ed", Key: edPublic}, dunlinjwt.Key{ID: "secret", Key: secret},
		dunlinjwt.Key{ID: "rs512", Key: &rsaKey.PublicKey, Algorithm: "RS512"},
	)
	require.NoError(t, err)
	return keys
}

type claims = jwt.MapClaims

// with returns claims that are accepted, changed by some; nil takes one away.
func with(changes claims) claims {
	c := claims{"sub": "jane", "iss": "https://id.example.org", "aud": "mqtt",
		"exp": time.Now().Add(time.Hour).Unix()}
	for name, v := range changes {
		c[name] = v
		if v == nil {
			delete(c, name)
		}
	}
	return c
}

// sign makes a token. The header is changed as said.
func sign(t *testing.T, algorithm string, key any, header map[string]any, c claims) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.GetSigningMethod(algorithm), c)
	for name, v := range header {
		token.Header[name] = v
	}
	s, err := token.SignedString(key)
	require.NoError(t, err)
	return s
}

func kid(id string) map[string]any { return map[string]any{"kid": id} }

// newTokens returns the Authenticator of most tests.
func newTokens(t *testing.T, change func(*dunlinjwt.Options)) *dunlinjwt.Tokens {
	t.Helper()
	o := dunlinjwt.Options{Keys: issuerKeys(t), Issuer: "https://id.example.org", Audience: "mqtt"}
	if change != nil {
		change(&o)
	}
	tokens, err := dunlinjwt.New(o)
	require.NoError(t, err)
	return tokens
}

// connect is a CONNECT with a token.
func connect(token string) *hooks.ConnectRequest {
	return &hooks.ConnectRequest{
		Client: &hooks.Client{ID: "c"}, Connect: &packets.Connect{HasPassword: true,
			Password: []byte(token)}, Grant: new(hooks.Grant),
	}
}

func TestAlgorithms(t *testing.T) {
	tokens := newTokens(t, nil)
	for algorithm, key := range map[string]struct {
		id  string
		key any
	}{
		"RS256": {"rsa", rsaKey}, "RS384": {"rsa", rsaKey}, "RS512": {"rsa", rsaKey},
		"PS256": {"rsa", rsaKey}, "PS384": {"rsa", rsaKey},
		"PS512": {"rsa", rsaKey}, "ES256": {"p256", p256}, "ES384": {"p384", p384},
		"ES512": {"p521", p521}, "EdDSA": {"ed", ed},
		"HS256": {"secret", secret}, "HS384": {"secret", secret}, "HS512": {"secret", secret},
	} {
		for _, header := range []map[string]any{kid(key.id), nil} {
			r := connect(sign(t, algorithm, key.key, header, with(nil)))
			require.NoError(t, tokens.Authenticate(t.Context(), r), "%s, header %v", algorithm,
				header)
			require.Equal(t, "jane", r.Grant.Identity.Principal)
			require.WithinDuration(t, time.Now().Add(time.Hour), r.Grant.Expires, time.Minute)
		}
	}
}

// publicPEM is what an attacker would take for a secret.
func publicPEM(t *testing.T, key crypto.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(key)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func TestTokensThatAreRefused(t *testing.T) {
	tokens := newTokens(t, nil)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	good := sign(t, "RS256", rsaKey, kid("rsa"), with(nil))
	parts := strings.Split(good, ".")
	now := time.Now()
	encode := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

	for name, token := range map[string]string{
		"alg none": sign(t, "none", jwt.UnsafeAllowNoneSignatureType,
			kid("rsa"), with(nil)),
		"alg none without kid": sign(t, "none", jwt.UnsafeAllowNoneSignatureType, nil,
			with(nil)),
		"alg nOnE": encode(`{"alg":"nOnE"}`) + "." + parts[1] + ".",
		"no alg":   encode(`{"kid":"rsa"}`) + "." + parts[1] + "." + parts[2],
		"the public key in PEM as secret": sign(t, "HS256", publicPEM(t, &rsaKey.PublicKey),
			kid("rsa"), with(nil)),
		"the public key in PEM as secret, no kid": sign(t, "HS256", publicPEM(t, &rsaKey.PublicKey),
			nil, with(nil)),
		"the public key's modulus as secret": sign(t, "HS256", rsaKey.N.Bytes(), kid("rsa"),
			with(nil)),
		"the Ed25519 public key as secret": sign(t, "HS256", []byte(edPublic), kid("ed"),
			with(nil)),
		"another key's signature":              sign(t, "RS256", other, kid("rsa"), with(nil)),
		"the wrong one of the issuer's keys":   sign(t, "RS256", rsaKey, kid("p256"), with(nil)),
		"an algorithm that the key is not for": sign(t, "RS256", rsaKey, kid("rs512"), with(nil)),
		"the algorithm of another curve": relabel(t, "ES256", "p384",
			sign(t, "ES384", p384, kid("p384"), with(nil))),
		"an unknown kid": sign(t, "RS256", rsaKey, kid("new"), with(nil)),
		"a key that it brings itself": sign(t, "RS256", other,
			map[string]any{"jwk": map[string]any{"kty": "RSA"}, "jku": "http://127.0.0.1/"},
			with(nil)),
		"a critical header": sign(t, "RS256", rsaKey,
			map[string]any{"kid": "rsa", "crit": []string{"b64"}}, with(nil)),
		"no signature":     parts[0] + "." + parts[1] + ".",
		"half a signature": good[:len(good)-100],
		"other claims": parts[0] + "." +
			encode(`{"sub":"root","exp":9999999999}`) + "." + parts[2],
		"claims that are no JSON": parts[0] + "." + encode("sub") + "." + parts[2],
		"dots":                    "..",
		"expired": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"exp": now.Add(-time.Second).Unix()})),
		"no expiry time": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"exp": nil})),
		"an expiry time that is none": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"exp": "tomorrow"})),
		"not valid yet": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"nbf": now.Add(time.Hour).Unix()})),
		"another issuer": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"iss": "https://id.example.com"})),
		"no issuer": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"iss": nil})),
		"for somebody else": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"aud": []string{"http", "amqp"}})),
		"for nobody": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"aud": nil})),
		"nobody's": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"sub": nil})),
		"of somebody without a name": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"sub": ""})),
		"of a number": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"sub": 7})),
		"of a name with a control character": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"sub": "jane\x00"})),
		"of a tenant that is a number": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"tenant": 7})),
		"of roles that are numbers": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"roles": []int{1}})),
		"of roles that are an object": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"roles": claims{}})),
		"with a filter that is none": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"publish": []string{"a", "b/#/c"}})),
		"with a filter that would be two": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"subscribe": "a\n#"})),
		"with a filter of a shared subscription": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"subscribe": "$share/g/a"})),
		"with filters that are not strings": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"publish": []any{"a", nil}})),
		"with filters that are true": sign(t, "RS256", rsaKey, kid("rsa"),
			with(claims{"publish": true})),
		"with white space before": " " + good,
	} {
		t.Run(name, func(t *testing.T) {
			r := connect(token)
			err := tokens.Authenticate(t.Context(), r)
			require.Equal(t, packets.BadUserNameOrPassword, packets.CodeOf(err))
			pe, ok := errors.AsType[*packets.Error](err)
			require.True(t, ok)
			require.Equal(t, "the token is not accepted", pe.Reason, "the client learns no more")
			require.Equal(t, hooks.Grant{}, *r.Grant)
		})
	}
}

// relabel changes what a token says of itself.
func relabel(t *testing.T, algorithm, id, token string) string {
	b, err := json.Marshal(map[string]any{"alg": algorithm, "kid": id})
	require.NoError(t, err)
	_, rest, _ := strings.Cut(token, ".")
	return base64.RawURLEncoding.EncodeToString(b) + "." + rest
}

func TestOptions(t *testing.T) {
	sometime := time.Now().Add(-time.Minute)
	old := sign(t, "RS256", rsaKey, kid("rsa"), with(claims{"exp": sometime.Unix()}))
	unlimited := sign(t, "RS256", rsaKey, kid("rsa"), with(claims{"exp": nil}))
	foreign := sign(t, "RS256", rsaKey, kid("rsa"), with(claims{"iss": "x", "aud": "y"}))
	good := sign(t, "RS256", rsaKey, kid("rsa"), with(nil))
	named := func(name, token string) *hooks.ConnectRequest {
		r := connect(token)
		r.Connect.HasUsername, r.Connect.Username = true, name
		return r
	}
	for _, tt := range []struct {
		name   string
		change func(*dunlinjwt.Options)
		r      *hooks.ConnectRequest
		code   packets.ReasonCode // Success: accepted
	}{
		{"a leeway that is too short", func(o *dunlinjwt.Options) { o.Leeway = time.Second },
			connect(old), packets.BadUserNameOrPassword},
		{"a leeway that is long enough", func(o *dunlinjwt.Options) { o.Leeway = time.Hour },
			connect(old), packets.Success},
		{"another time", func(o *dunlinjwt.Options) { o.Now = func() time.Time { return sometime.Add(-time.Hour) } }, connect(old), packets.Success},
		{"no expiry time is needed", func(o *dunlinjwt.Options) { o.AllowUnlimited = true },
			connect(unlimited), packets.Success},
		{"an expiry time counts where none is needed",
			func(o *dunlinjwt.Options) { o.AllowUnlimited = true }, connect(old),
			packets.BadUserNameOrPassword},
		{"any issuer and audience", func(o *dunlinjwt.Options) { o.Issuer, o.Audience = "", "" },
			connect(foreign), packets.Success},
		{"other algorithms only", func(o *dunlinjwt.Options) { o.Algorithms = []string{"ES256"} },
			connect(good), packets.BadUserNameOrPassword},
		{"any user name", nil, named("joe", good), packets.Success},
		{"the right user name", func(o *dunlinjwt.Options) { o.CheckUsername = true },
			named("jane", good), packets.Success},
		{"a wrong user name", func(o *dunlinjwt.Options) { o.CheckUsername = true },
			named("joe", good), packets.BadUserNameOrPassword},
		{"the token as user name", func(o *dunlinjwt.Options) { o.From = dunlinjwt.SourceUsername },
			named(good, "x"), packets.Success},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := newTokens(t, tt.change).Authenticate(t.Context(), tt.r)
			if tt.code == packets.Success {
				require.NoError(t, err)
				require.Equal(t, "jane", tt.r.Grant.Identity.Principal)
				return
			}
			require.Equal(t, tt.code, packets.CodeOf(err))
		})
	}
	t.Run("without expiry time the connection does not end", func(t *testing.T) {
		r := connect(unlimited)
		require.NoError(t, newTokens(t, func(o *dunlinjwt.Options) {
			o.AllowUnlimited = true
		}).Authenticate(t.Context(), r))
		require.True(t, r.Grant.Expires.IsZero())
	})
	for _, o := range []dunlinjwt.Options{
		{}, {Keys: issuerKeys(t), Algorithms: []string{"none"}},
		{Keys: issuerKeys(t), Algorithms: []string{"RS256", "XS1"}},
		{Keys: issuerKeys(t), From: 7},
	} {
		_, err := dunlinjwt.New(o)
		require.ErrorContains(t, err, "jwt: Options.")
	}
}

func TestAbstains(t *testing.T) {
	tokens := newTokens(t, nil)
	for _, tt := range []struct {
		name string
		c    packets.Connect
	}{
		{"nothing", packets.Connect{}},
		{"a user name only", packets.Connect{HasUsername: true, Username: "a.b.c"}},
		{"a password that is no token", packets.Connect{HasPassword: true,
			Password: []byte("pencil")}},
		{"an encrypted token", packets.Connect{HasPassword: true, Password: []byte("a.b.c.d.e")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &hooks.ConnectRequest{Client: new(hooks.Client), Connect: &tt.c,
				Grant: new(hooks.Grant)}
			require.ErrorIs(t, tokens.Authenticate(t.Context(), r), hooks.ErrAbstain)
		})
	}
}

func TestIdentity(t *testing.T) {
	tokens := newTokens(t, func(o *dunlinjwt.Options) {
		o.Claims = dunlinjwt.Claims{
			Principal: "email", Roles: "realm_access.roles", Tenant: "https://example.org/tenant",
			Attributes: []string{"sub", "site.floor", "absent", "tags"},
		}
	})
	r := connect(sign(t, "EdDSA", ed, nil, with(claims{
		"email": "jane@example.org", "realm_access": claims{"roles": []string{"operator",
			"reader"}}, "https://example.org/tenant": "t7",
		"site": claims{"floor": 3}, "tags": []string{"a"},
	})))
	require.NoError(t, tokens.Authenticate(t.Context(), r))
	require.Equal(t, hooks.Identity{
		Principal: "jane@example.org", Roles: []string{"operator", "reader"}, Tenant: "t7",
		Attributes: map[string]string{"sub": "jane", "site.floor": "3", "tags": `["a"]`},
	}, r.Grant.Identity)

	r = connect(sign(t, "EdDSA", ed, nil, with(claims{"scope": "read  write"})))
	require.NoError(t, newTokens(t, func(o *dunlinjwt.Options) {
		o.Claims.Roles = "scope"
	}).Authenticate(t.Context(), r))
	require.Equal(t, []string{"read", "write"}, r.Grant.Identity.Roles)
}

func TestAuthorizer(t *testing.T) {
	tokens := newTokens(t, nil)
	authz := tokens.Authorizer()
	require.True(t, authz.(hooks.Stable).Stable())
	asked := func(c claims, ask string) error {
		r := connect(sign(t, "EdDSA", ed, nil, with(c)))
		require.NoError(t, tokens.Authenticate(t.Context(), r))
		r.Client.Identity = r.Grant.Identity
		q := &hooks.AccessRequest{Client: r.Client, Action: hooks.ActionPublish,
			Topic: ask[len("pub "):]}
		if strings.HasPrefix(ask, "sub ") {
			q.Action = hooks.ActionSubscribe
		}
		return authz.Authorize(t.Context(), q)
	}
	both := claims{"publish": []string{"from/%c", "by/%u/#"}, "subscribe": "to/#"}
	for _, tt := range []struct {
		name, ask string
		c         claims
		want      packets.ReasonCode
	}{
		{"a topic with the Client Identifier", "pub from/c", both, packets.Success},
		{"another Client Identifier", "pub from/d", both, packets.NotAuthorized},
		{"a topic with the Principal", "pub by/jane/a", both, packets.Success},
		{"what may be read may not be written", "pub to/a", both, packets.NotAuthorized},
		{"a filter inside", "sub to/+/a", both, packets.Success},
		{"a filter that matches more", "sub +/a", both, packets.NotAuthorized},
		{"what may be written may not be read", "sub from/c", both, packets.NotAuthorized},
		{"nothing at all", "sub a", claims{"subscribe": []string{}}, packets.NotAuthorized},
		{"a claim says nothing of the other", "pub a", claims{"subscribe": "#"},
			packets.NotAuthorized},
		{"everything", "sub #", claims{"subscribe": "#"}, packets.Success},
		{"a principal that would widen the rule", "pub by/a/b",
			claims{"sub": "+", "publish": "by/%u/#"}, packets.NotAuthorized},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := asked(tt.c, tt.ask)
			if tt.want == packets.Success {
				require.NoError(t, err)
				return
			}
			require.Equal(t, tt.want, packets.CodeOf(err))
			require.NotErrorIs(t, err, hooks.ErrAbstain)
		})
	}
	require.ErrorIs(t, asked(nil, "pub a"), hooks.ErrAbstain, "a token that says nothing of topics")
	require.ErrorIs(t, authz.Authorize(t.Context(), &hooks.AccessRequest{Client: &hooks.Client{},
		Action: hooks.ActionPublish, Topic: "a"}), hooks.ErrAbstain)

	r := connect(sign(t, "EdDSA", ed, nil, with(both)))
	require.NoError(t, tokens.Authenticate(t.Context(), r))
	r.Client.Identity = r.Grant.Identity
	q := &hooks.AccessRequest{Client: r.Client, Action: hooks.ActionPublish, Topic: "from/c"}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if authz.Authorize(t.Context(), q) != nil {
			t.Error("refused")
		}
	}))
	for i := range 1100 { // more than are kept
		require.NoError(t, asked(claims{"publish": big.NewInt(int64(i)).String()},
			"pub "+big.NewInt(int64(i)).String()))
	}
}

func TestEnhanced(t *testing.T) {
	tokens := newTokens(t, nil)
	good := func(c claims) []byte { return []byte(sign(t, "EdDSA", ed, nil, with(c))) }
	start := func(as *hooks.Identity) (hooks.Exchange, *hooks.ConnectRequest) {
		r := &hooks.ConnectRequest{Client: &hooks.Client{ID: "c"}, Grant: new(hooks.Grant),
			Connect: new(packets.Connect)}
		if as != nil {
			r.Client.Identity, r.Connect = *as, nil
		}
		x, err := tokens.Enhanced().Start(t.Context(), r)
		require.NoError(t, err)
		return x, r
	}
	next := func(x hooks.Exchange, data []byte) (bool, error) {
		reply, done, err := x.Next(t.Context(), data)
		require.Empty(t, reply)
		return done, err
	}

	x, r := start(nil)
	done, err := next(x, good(nil))
	require.NoError(t, err)
	require.True(t, done, "the token in the CONNECT")
	require.Equal(t, "jane", r.Grant.Identity.Principal)
	require.False(t, r.Grant.Expires.IsZero())

	x, _ = start(nil)
	done, err = next(x, nil)
	require.NoError(t, err)
	require.False(t, done, "the client is asked for it")
	done, err = next(x, good(nil))
	require.NoError(t, err)
	require.True(t, done)

	x, _ = start(nil)
	_, err = next(x, nil)
	require.NoError(t, err)
	_, err = next(x, nil)
	require.Equal(t, packets.NotAuthorized, packets.CodeOf(err), "it is asked once")

	x, r = start(nil)
	_, err = next(x, []byte(sign(t, "none", jwt.UnsafeAllowNoneSignatureType, nil, with(nil))))
	require.Equal(t, packets.NotAuthorized, packets.CodeOf(err))
	require.Equal(t, hooks.Grant{}, *r.Grant)

	jane := &hooks.Identity{Principal: "jane"}
	x, r = start(jane)
	done, err = next(x, good(claims{"roles": "new"}))
	require.NoError(t, err)
	require.True(t, done)
	require.Equal(t, []string{"new"}, r.Grant.Identity.Roles)
	for _, c := range []claims{{"sub": "joe"}, {"tenant": "other"}, {"exp": 1}} {
		x, _ = start(jane)
		_, err = next(x, good(c))
		require.Equal(t, packets.NotAuthorized, packets.CodeOf(err), "%v", c)
	}
}

// failing is a KeySource that fails.
type failing struct{ err error }

func (f failing) Find(context.Context, string) ([]dunlinjwt.Key, error) { return nil, f.err }

func TestKeysThatCannotBeHad(t *testing.T) {
	tokens := newTokens(t,
		func(o *dunlinjwt.Options) { o.Keys = failing{errors.New("no network")} })
	err := tokens.Authenticate(t.Context(), connect(sign(t, "EdDSA", ed, nil, with(nil))))
	require.Equal(t, packets.ServerUnavailable, packets.CodeOf(err))
	require.ErrorContains(t, err, "no network")
}

// The User Name is checked whichever way the token comes.
func TestEnhancedChecksTheUserName(t *testing.T) {
	tokens := newTokens(t, func(o *dunlinjwt.Options) { o.CheckUsername = true })
	for name, want := range map[string]packets.ReasonCode{"jane": packets.Success,
		"joe": packets.NotAuthorized, "": packets.NotAuthorized} {
		r := &hooks.ConnectRequest{
			Client:  &hooks.Client{ID: "c", Username: name, HasUsername: true},
			Grant:   new(hooks.Grant),
			Connect: &packets.Connect{Username: name, HasUsername: true},
		}
		x, err := tokens.Enhanced().Start(t.Context(), r)
		require.NoError(t, err)
		_, done, err := x.Next(t.Context(), []byte(sign(t, "EdDSA", ed, nil, with(nil))))
		require.Equal(t, want == packets.Success, done, "%q", name)
		if !done {
			require.Equal(t, want, packets.CodeOf(err))
			require.Equal(t, hooks.Grant{}, *r.Grant)
		}
	}
}
