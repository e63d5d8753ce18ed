// Package jwt authenticates clients by JSON Web Tokens (RFC 7519). A token can also say what its
// client may publish and subscribe to. The package is a module of its own because it needs
// github.com/golang-jwt/jwt.
//
//	keys, err := jwt.FetchKeys(ctx, "https://id.example.org/jwks.json", nil)
//	...
//	tokens, err := jwt.New(jwt.Options{
//		Keys: keys, Issuer: "https://id.example.org", Audience: "mqtt"})
//	...
//	config.Authenticator = tokens
//	config.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{jwt.Method: tokens.Enhanced()}
//	config.Authorizer = hooks.ChainAuthorizers(tokens.Authorizer(), rules)
//
// When a token expires, its client is disconnected with Maximum connect time (0xA0). To stay
// connected, the client uses the Authentication Method and sends a new token for the same principal
// in time.
//
// # Which tokens are accepted
//
// The signature must be valid for a key of the issuer, and the key must be for the algorithm: an
// RSA key verifies RS and PS signatures, a key on P-256 verifies ES256, a secret HS signatures, and
// so on. The token itself never selects another kind of key, and "none" is not an algorithm. The
// token must have an expiry time that has not passed. Issuer and audience must be as in the
// Options. A token with the header "crit" is refused.
package jwt

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/golang-jwt/jwt/v5"
)

// A Source says in which field of the CONNECT the token is.
type Source byte

const (
	// SourcePassword: the token is the Password. The User Name is ignored, unless
	// Options.CheckUsername is set.
	SourcePassword Source = iota
	// SourceUsername: the token is the User Name, for clients that can send nothing else.
	SourceUsername
)

// Options say which tokens are accepted and what is taken from them.
type Options struct {
	// Keys verify the signatures. Required.
	Keys KeySource
	// Algorithms are the accepted algorithms. Empty: all that the Keys are for.
	Algorithms []string
	// The claim iss must be Issuer, and the claim aud must contain Audience. Empty: not checked.
	Issuer, Audience string
	// Leeway is how far the clocks of issuer and broker may differ. Zero: not at all.
	Leeway time.Duration
	// AllowUnlimited accepts tokens without an expiry time.
	AllowUnlimited bool
	// From says where the token is.
	From Source
	// CheckUsername refuses a CONNECT with a User Name other than the Principal.
	CheckUsername bool
	// Claims are the names of the claims that say who the client is.
	Claims Claims
	// Now returns the time. Nil: time.Now.
	Now func() time.Time
}

// Claims are names of claims. A name with dots, for instance "realm_access.roles", selects a claim
// inside another one.
type Claims struct {
	// Principal is a string that is not empty. Default "sub".
	Principal string
	// Roles is an array of strings, or one string of several with spaces between. Default "roles".
	Roles string
	// Tenant is a string. Default "tenant".
	Tenant string
	// Publish and Subscribe are arrays of Topic Filters, or one, that the client may publish and
	// subscribe to: see Tokens.Authorizer. In them %u is the Principal and %c the Client
	// Identifier. Defaults "publish" and "subscribe".
	Publish, Subscribe string
	// Attributes are further claims. They go into the Identity's Attributes under the same names. A
	// claim that is not a string becomes JSON.
	Attributes []string
}

// Tokens is an Authenticator for clients with a token. It refuses an invalid token with Bad User
// Name or Password (0x86). If its Keys fail, so that it cannot verify the token, it refuses with
// Server unavailable (0x88). It abstains if the client has no token, or if the field does not have
// the form of a token.
type Tokens struct {
	o      Options
	parser *jwt.Parser
}

// New returns an Authenticator. It fails if the Options are invalid.
func New(o Options) (*Tokens, error) {
	if o.Keys == nil {
		return nil, errors.New("jwt: Options.Keys is nil: without keys no token can be verified")
	}
	if o.From > SourceUsername {
		return nil, errors.New("jwt: Options.From is neither SourcePassword nor SourceUsername")
	}
	if o.Leeway < 0 {
		return nil, fmt.Errorf("jwt: Options.Leeway is %v, which is negative", o.Leeway)
	}
	if len(o.Algorithms) == 0 {
		o.Algorithms = algorithms
	}
	for _, a := range o.Algorithms {
		if !known(a) {
			return nil, fmt.Errorf("jwt: Options.Algorithms: %q is none of %s", a,
				strings.Join(algorithms, ", "))
		}
	}
	for _, c := range []struct {
		name *string
		def  string
	}{
		{&o.Claims.Principal, "sub"}, {&o.Claims.Roles, "roles"}, {&o.Claims.Tenant, "tenant"},
		{&o.Claims.Publish, "publish"}, {&o.Claims.Subscribe, "subscribe"},
	} {
		if *c.name == "" {
			*c.name = c.def
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	how := []jwt.ParserOption{jwt.WithValidMethods(o.Algorithms), jwt.WithLeeway(o.Leeway),
		jwt.WithStrictDecoding(), jwt.WithTimeFunc(o.Now)}
	if !o.AllowUnlimited {
		how = append(how, jwt.WithExpirationRequired())
	}
	if o.Issuer != "" {
		how = append(how, jwt.WithIssuer(o.Issuer))
	}
	if o.Audience != "" {
		how = append(how, jwt.WithAudience(o.Audience))
	}
	return &Tokens{o: o, parser: jwt.NewParser(how...)}, nil
}

// Authenticate decides r.
func (t *Tokens) Authenticate(ctx context.Context, r *hooks.ConnectRequest) error {
	token, has := string(r.Connect.Password), r.Connect.HasPassword
	if t.o.From == SourceUsername {
		token, has = r.Connect.Username, r.Connect.HasUsername
	}
	if !has || strings.Count(token, ".") != 2 {
		return hooks.ErrAbstain
	}
	g, err := t.verify(ctx, token)
	if err == nil {
		err = t.checkUsername(r.Connect.Username, r.Connect.HasUsername, g.Identity.Principal)
	}
	if err != nil {
		return refuse(packets.BadUserNameOrPassword, err)
	}
	r.Grant.Identity, r.Grant.Expires = g.Identity, g.Expires
	return nil
}

// checkUsername applies Options.CheckUsername to the User Name of a CONNECT.
func (t *Tokens) checkUsername(name string, has bool, principal string) error {
	if t.o.CheckUsername && t.o.From == SourcePassword && has && name != principal {
		return errors.New("the User Name is not that of the token")
	}
	return nil
}

// errKeys is the error of a KeySource.
type errKeys struct{ error }

// Unwrap returns the error of the KeySource.
func (e errKeys) Unwrap() error { return e.error }

// refuse returns the answer to a client whose token is not accepted. The client does not learn the
// reason, unless the keys are unavailable: then it may try again.
func refuse(code packets.ReasonCode, err error) error {
	if _, failed := errors.AsType[errKeys](err); failed {
		return &packets.Error{Code: packets.ServerUnavailable,
			Reason: "tokens cannot be verified now", Err: fmt.Errorf("jwt: %w", err)}
	}
	return &packets.Error{Code: code, Reason: "the token is not accepted",
		Err: fmt.Errorf("jwt: %w", err)}
}

// verify returns what a token grants.
func (t *Tokens) verify(ctx context.Context, token string) (g hooks.Grant, err error) {
	claims := &payload{jwt.MapClaims{}}
	_, err = t.parser.ParseWithClaims(token, claims, func(token *jwt.Token) (any, error) {
		if _, has := token.Header["crit"]; has {
			return nil, errors.New("a critical header that is not understood")
		}
		id, _ := token.Header["kid"].(string)
		return t.keysFor(ctx, id, token.Method.Alg())
	})
	if err != nil {
		return g, err
	}
	if g.Identity, err = t.identity(claims.MapClaims); err != nil {
		return g, err
	}
	expires, err := claims.GetExpirationTime()
	if err == nil && expires != nil {
		g.Expires = expires.Add(t.o.Leeway)
	}
	return g, err
}

// keysFor returns the keys with identifier id that are for algorithm; an empty id selects all.
func (t *Tokens) keysFor(ctx context.Context, id, algorithm string) (any, error) {
	found, err := t.o.Keys.Find(ctx, id)
	if err != nil {
		return nil, errKeys{err}
	}
	var set jwt.VerificationKeySet
	for i := range found {
		if found[i].fits(algorithm) {
			set.Keys = append(set.Keys, found[i].Key)
		}
	}
	if len(set.Keys) == 0 {
		return nil, fmt.Errorf("no key %q for %s", id, algorithm)
	}
	return set, nil
}

// checkName returns why a claim cannot be a name.
func checkName(s string) error {
	switch {
	case s == "":
		return errors.New("is empty")
	case !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl):
		return errors.New("holds control characters, or is not UTF-8")
	}
	return nil
}
