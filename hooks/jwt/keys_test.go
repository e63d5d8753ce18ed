package jwt_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	dunlinjwt "github.com/dunlin-mqtt/dunlin/hooks/jwt"
	"github.com/dunlin-mqtt/dunlin/internal/testcert"
	"github.com/stretchr/testify/require"
)

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// webKey returns a key as it is in a set, with further fields.
func webKey(t *testing.T, key any, fields ...string) map[string]any {
	t.Helper()
	w := map[string]any{}
	switch key := key.(type) {
	case *rsa.PublicKey:
		w["kty"], w["n"], w["e"] = "RSA", encode(key.N.Bytes()),
			encode(big.NewInt(int64(key.E)).Bytes())
	case *ecdsa.PublicKey:
		b, err := key.Bytes()
		require.NoError(t, err)
		half := (len(b) - 1) / 2
		w["kty"], w["crv"], w["x"], w["y"] = "EC", key.Params().Name, encode(b[1:1+half]),
			encode(b[1+half:])
	case ed25519.PublicKey:
		w["kty"], w["crv"], w["x"] = "OKP", "Ed25519", encode(key)
	case []byte:
		w["kty"], w["k"] = "oct", encode(key)
	}
	for i := 0; i < len(fields); i += 2 {
		w[fields[i]] = fields[i+1]
	}
	return w
}

func webSet(t *testing.T, keys ...map[string]any) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{"keys": keys})
	require.NoError(t, err)
	return string(b)
}

func TestOpenKeys(t *testing.T) {
	name := filepath.Join(t.TempDir(), "keys")
	write := func(content string) { testcert.Write(t, name, []byte(content)) }
	write(webSet(t,
		webKey(t, &rsaKey.PublicKey, "kid", "rsa", "use", "sig", "alg", "RS256"),
		webKey(t, &p256.PublicKey, "kid", "p256"), webKey(t, &p384.PublicKey, "kid", "p384"),
		webKey(t, &p521.PublicKey, "kid", "p521"), webKey(t, edPublic, "kid", "ed"),
		webKey(t, secret, "kid", "secret"),
		webKey(t, &p256.PublicKey, "kid", "enc", "use", "enc"),
		webKey(t, &rsaKey.PublicKey, "kid", "oaep", "alg", "RSA-OAEP"),
		map[string]any{"kty": "EC", "crv": "secp256k1", "kid": "odd"}, map[string]any{"kty": "OKP",
			"crv": "X25519", "kid": "odd"}, map[string]any{"kty": "new", "kid": "odd"},
		map[string]any{"kty": "oct", "k": "AA", "key_ops": []string{"sign"}, "kid": "odd"},
	))
	keys, err := dunlinjwt.OpenKeys(name)
	require.NoError(t, err)
	tokens := newTokens(t, func(o *dunlinjwt.Options) { o.Keys = keys })
	for id, by := range map[string]struct {
		algorithm string
		key       any
	}{"rsa": {"RS256", rsaKey}, "p256": {"ES256", p256}, "p384": {"ES384", p384},
		"p521": {"ES512", p521}, "ed": {"EdDSA", ed}, "secret": {"HS256", secret}} {
		require.NoError(t, tokens.Authenticate(t.Context(),
			connect(sign(t, by.algorithm, by.key, kid(id), with(nil)))), id)
	}
	require.Error(t, tokens.Authenticate(t.Context(),
		connect(sign(t, "RS512", rsaKey, kid("rsa"), with(nil)))), "the key is for RS256")
	for _, id := range []string{"enc", "oaep", "odd"} {
		found, err := keys.Find(t.Context(), id)
		require.NoError(t, err)
		require.Empty(t, found, id)
	}

	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil { // a GODEBUG setting apart, package rsa refuses to make one
		n := new(big.Int).Lsh(big.NewInt(1), 1023)
		small = &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: 65537}}
	}
	for _, tt := range []struct{ name, content, say string }{
		{"no JSON", "{", "not a JSON Web Key Set"},
		{"no keys", `{"keys":[]}`, "no key for verifying"},
		{"a key, not a set", `{"kty":"oct","k":"AA"}`, "no key for verifying"},
		{"a short RSA key", webSet(t, webKey(t, &small.PublicKey)), "at least 2048"},
		{"an RSA key without e", webSet(t, map[string]any{"kty": "RSA", "n": "AQ"}),
			"not those of an RSA key"},
		{"an RSA key with e of one", webSet(t, map[string]any{"kty": "RSA", "n": "AQ", "e": "AQ"}),
			"not those of an RSA key"},
		{"a point that is not on the curve", webSet(t, map[string]any{"kty": "EC", "crv": "P-256",
			"x": encode(make([]byte, 32)), "y": encode(make([]byte, 32))}), "key 1"},
		{"a point of another curve", webSet(t, webKey(t, &p384.PublicKey, "crv", "P-256")),
			"32 bytes"},
		{"half an Ed25519 key", webSet(t, map[string]any{"kty": "OKP", "crv": "Ed25519",
			"x": encode(edPublic[:16])}), "16 bytes"},
		{"a short secret", webSet(t, webKey(t, []byte("secret"))), "at least 32"},
		{"a secret that is not base64", webSet(t, map[string]any{"kty": "oct", "k": "!"}), "key 1"},
		{"a key for another kind of signature", webSet(t, webKey(t, edPublic, "alg", "RS256")),
			"not for"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			write(tt.content)
			err := keys.Reload()
			require.ErrorContains(t, err, tt.say)
			require.ErrorContains(t, err, name)
			require.NoError(t, tokens.Authenticate(t.Context(), connect(sign(t, "EdDSA", ed,
				kid("ed"), with(nil)))), "the keys from before are in force")
			_, err = dunlinjwt.OpenKeys(name)
			require.Error(t, err)
		})
	}

	t.Run("keys of no use beside others", func(t *testing.T) {
		write(webSet(t,
			webKey(t, &small.PublicKey, "kid", "small"), map[string]any{"kty": 7},
			map[string]any{"kty": "EC", "kid": 7},
			map[string]any{"kty": "RSA", "n": "AQ"}, webKey(t, []byte("secret")),
			webKey(t, edPublic, "alg", "RS256"), webKey(t, edPublic, "kid", "ed"),
			map[string]any{"kty": "EC", "crv": "P-256", "x": encode(make([]byte, 32)),
				"y": encode(make([]byte, 32))},
			webKey(t, &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1<<15), E: 65537}, "kid",
				"huge"),
		))
		require.NoError(t, keys.Reload())
		all, err := keys.Find(t.Context(), "")
		require.NoError(t, err)
		require.Len(t, all, 1)
		require.NoError(t, tokens.Authenticate(t.Context(),
			connect(sign(t, "EdDSA", ed, kid("ed"), with(nil)))))
		write(`{"keys":[7,null,"x",` + webSet(t,
			webKey(t, edPublic, "kid", "ed"))[len(`{"keys":[`):])
		require.NoError(t, keys.Reload())
	})

	ctx, stop := context.WithCancel(t.Context())
	reports := make(chan error, 1)
	var watch sync.WaitGroup
	watch.Go(func() {
		keys.Watch(ctx, 5*time.Millisecond, func(err error) { reports <- err })
	}) // waited for below
	write(webSet(t, webKey(t, edPublic, "kid", "other than before")))
	require.NoError(t, <-reports)
	require.Error(t, tokens.Authenticate(t.Context(),
		connect(sign(t, "EdDSA", ed, kid("ed"), with(nil)))), "the key has another name now")
	stop()
	watch.Wait()
	_, err = dunlinjwt.OpenKeys(name + ".not")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestNewKeys(t *testing.T) {
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	require.NoError(t, err)
	for _, key := range []any{nil, "secret", []byte("secret"), rsaKey, &p224.PublicKey,
		edPublic[:3]} {
		_, err := dunlinjwt.NewKeys(dunlinjwt.Key{ID: "k", Key: key})
		require.ErrorContains(t, err, `jwt: key "k"`)
	}
	_, err = dunlinjwt.NewKeys()
	require.Error(t, err)
}

// A site is an http.RoundTripper that answers at once.
type site struct {
	mu     sync.Mutex
	status int
	body   string
	err    error
	asked  atomic.Int32
	wait   time.Duration
}

func (s *site) set(status int, body string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status, s.body, s.err = status, body, err
}

func (s *site) RoundTrip(r *http.Request) (*http.Response, error) {
	s.asked.Add(1)
	if s.wait > 0 {
		select {
		case <-time.After(s.wait):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	return &http.Response{StatusCode: s.status, Status: http.StatusText(s.status),
		Body: io.NopCloser(strings.NewReader(s.body)), Request: r}, nil
}

// TestFetchKeys plays the life of a key set at a URL in virtual time.
func TestFetchKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{status: 200, body: webSet(t, webKey(t, edPublic, "kid", "one"))}
		var reports []error
		keys, err := dunlinjwt.FetchKeys(t.Context(), "https://id.example.org/keys",
			&dunlinjwt.FetchOptions{
				Client: &http.Client{Transport: s},
				Report: func(err error) { reports = append(reports, err) },
			})
		require.NoError(t, err)
		tokens := newTokens(t, func(o *dunlinjwt.Options) { o.Keys = keys })
		// What tells the keys apart is their names.
		accepted := func(id string) bool {
			t.Helper()
			err := tokens.Authenticate(t.Context(),
				connect(sign(t, "EdDSA", ed, kid(id), with(nil))))
			synctest.Wait() // for a request that nobody waits for
			return err == nil
		}
		for range 10 {
			require.True(t, accepted("one"))
		}
		require.EqualValues(t, 1, s.asked.Load(), "what was fetched is kept")

		require.False(t, accepted("two"))
		require.EqualValues(t, 1, s.asked.Load(), "no second request so soon")
		time.Sleep(30 * time.Second)
		s.set(200, webSet(t, webKey(t, edPublic, "kid", "two")), nil)
		require.True(t, accepted("two"), "an unknown key is looked for")
		require.EqualValues(t, 2, s.asked.Load())
		require.False(t, accepted("one"), "and one that is gone is gone")
		for range 100 {
			require.False(t, accepted("never"))
		}
		require.EqualValues(t, 2, s.asked.Load(), "tokens cannot make it ask more often")

		time.Sleep(15 * time.Minute)
		require.True(t, accepted("two"))
		require.EqualValues(t, 3, s.asked.Load(), "keys of some age are fetched again")

		s.set(500, "", nil)
		time.Sleep(16 * time.Minute)
		require.True(t, accepted("two"), "the keys from before serve on")
		s.set(0, "", errors.New("no network"))
		time.Sleep(time.Hour)
		require.True(t, accepted("two"))
		s.set(200, webSet(t, webKey(t, secret, "kid", "two")), nil)
		time.Sleep(time.Hour)
		require.True(t, accepted("two"), "a secret at a URL is none")
		s.set(200, strings.Repeat(" ", 1<<20+1), nil)
		time.Sleep(time.Hour)
		require.True(t, accepted("two"))
		time.Sleep(24 * time.Hour)
		require.False(t, accepted("two"), "but not for ever")
		s.set(200, webSet(t, webKey(t, edPublic, "kid", "two")), nil)
		time.Sleep(time.Minute)
		require.True(t, accepted("two"))

		require.Len(t, reports, int(s.asked.Load())-1)
		require.NoError(t, reports[0])
		require.ErrorContains(t, reports[2], "Internal Server Error")
		require.ErrorContains(t, reports[3], "no network")
		require.ErrorContains(t, reports[4], "no key")
		require.ErrorContains(t, reports[5], "1 MiB")
	})
}

func TestFetchKeysTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{status: 200, body: webSet(t, webKey(t, edPublic, "kid", "one"))}
		keys, err := dunlinjwt.FetchKeys(t.Context(), "https://id.example.org/keys",
			&dunlinjwt.FetchOptions{Client: &http.Client{Transport: s}})
		require.NoError(t, err)
		time.Sleep(time.Minute)
		s.set(200, webSet(t, webKey(t, edPublic, "kid", "two")), nil)
		s.wait = time.Second
		var clients sync.WaitGroup
		for range 20 {
			clients.Go(func() { // waited for below
				found, err := keys.Find(t.Context(), "two")
				require.NoError(t, err)
				require.Len(t, found, 1)
			})
		}
		impatient, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err = keys.Find(impatient, "two")
		require.ErrorIs(t, err, context.DeadlineExceeded, "a client that goes away does not wait")
		found, err := keys.Find(t.Context(), "one")
		require.NoError(t, err)
		require.Len(t, found, 1, "others do not wait")
		clients.Wait()
		require.EqualValues(t, 2, s.asked.Load(), "one request for all")

		s.wait = time.Hour
		time.Sleep(time.Minute)
		began := time.Now()
		_, err = keys.Find(t.Context(), "three")
		require.NoError(t, err)
		require.Equal(t, 5*time.Second, time.Since(began), "a request that is not answered ends")
	})
}

// The key server is slow, and then does not answer any more. Tokens whose key is there do not wait
// for it, and others wait for one request.
func TestASlowKeyServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{status: 200, body: webSet(t, webKey(t, edPublic, "kid", "one"))}
		keys, err := dunlinjwt.FetchKeys(t.Context(), "https://id.example.org/keys",
			&dunlinjwt.FetchOptions{
				Client: &http.Client{Transport: s}, Retry: time.Millisecond,
				Timeout: 300 * time.Millisecond,
			})
		require.NoError(t, err)
		s.wait = time.Hour
		time.Sleep(15 * time.Minute)
		began := time.Now()
		for range 1000 {
			found, err := keys.Find(t.Context(), "one")
			require.NoError(t, err)
			require.Len(t, found, 1)
		}
		require.Zero(t, time.Since(began), "the key at hand is used")
		found, err := keys.Find(t.Context(), "two")
		require.NoError(t, err)
		require.Empty(t, found)
		require.Equal(t, 300*time.Millisecond, time.Since(began),
			"one that is not there waits for the request under way")
		require.EqualValues(t, 2, s.asked.Load())
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err = keys.Find(ctx, "two")
		require.NoError(t, err)
		require.EqualValues(t, 3, s.asked.Load(), "one request for one look-up")

		time.Sleep(24 * time.Hour)
		s.set(0, "", errors.New("no network"))
		s.wait = 0
		_, err = keys.Find(t.Context(), "one")
		require.ErrorContains(t, err, "24h")
		s.set(200, webSet(t, webKey(t, edPublic, "kid", "one")), nil)
		time.Sleep(time.Second)
		found, err = keys.Find(t.Context(), "one")
		require.NoError(t, err)
		require.Len(t, found, 1, "keys that are too old wait for new ones")
	})
}

func TestFetchKeysThatAreNotThere(t *testing.T) {
	for _, s := range []*site{{status: 404}, {status: 200, body: "<html>"},
		{err: errors.New("no network")}} {
		_, err := dunlinjwt.FetchKeys(t.Context(), "https://id.example.org/keys",
			&dunlinjwt.FetchOptions{Client: &http.Client{Transport: s}})
		require.ErrorContains(t, err, "jwt: ")
	}
	_, err := dunlinjwt.FetchKeys(t.Context(), ":", nil)
	require.ErrorContains(t, err, "jwt: ")
}

// A panicker is an http.RoundTripper that panics after n requests.
type panicker struct {
	*site
	n int
}

func (p *panicker) RoundTrip(r *http.Request) (*http.Response, error) {
	if p.n--; p.n < 0 {
		panic("transport")
	}
	return p.site.RoundTrip(r)
}

// A RoundTripper of the program that panics does not end the program: the keys stay.
func TestARoundTripperThatPanicsLeavesTheKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{status: 200, body: webSet(t, webKey(t, edPublic, "kid", "one"))}
		var reports []error
		keys, err := dunlinjwt.FetchKeys(t.Context(), "https://id.example.org/keys",
			&dunlinjwt.FetchOptions{
				Client: &http.Client{Transport: &panicker{s, 1}},
				Report: func(err error) { reports = append(reports, err) },
			})
		require.NoError(t, err)
		time.Sleep(time.Hour)
		got, err := keys.Find(t.Context(), "one")
		require.NoError(t, err)
		require.Len(t, got, 1)
		synctest.Wait()
		require.Len(t, reports, 1)
		require.ErrorContains(t, reports[0], "panic")
	})
}

// Nor does a Report that panics: the new keys are there all the same.
func TestAReportThatPanicsKeepsNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{status: 200, body: webSet(t, webKey(t, edPublic, "kid", "one"))}
		keys, err := dunlinjwt.FetchKeys(t.Context(), "https://id.example.org/keys",
			&dunlinjwt.FetchOptions{
				Client: &http.Client{Transport: s},
				Report: func(error) { panic("report") },
			})
		require.NoError(t, err)
		s.body = webSet(t, webKey(t, edPublic, "kid", "two"))
		time.Sleep(time.Hour)
		got, err := keys.Find(t.Context(), "two")
		require.NoError(t, err)
		require.Len(t, got, 1)
	})
}
