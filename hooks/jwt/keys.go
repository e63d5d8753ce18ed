package jwt

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks/internal/files"
)

// algorithms are the algorithms a key can be for.
var algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384",
	"ES512", "EdDSA", "HS256", "HS384", "HS512"}

func known(algorithm string) bool { return slices.Contains(algorithms, algorithm) }

// A KeySource finds the keys that verify tokens.
type KeySource interface {
	// Find returns the keys with an identifier (the header kid of a token), or all if it is empty.
	// An error or an empty result refuses the token. The result must not be modified.
	Find(ctx context.Context, id string) ([]Key, error)
}

// A Key verifies signatures.
type Key struct {
	// ID is its identifier. It may be empty.
	ID string
	// Algorithm is the only algorithm of the key. Empty: all algorithms of its kind.
	Algorithm string
	// Key is a *rsa.PublicKey of 2048 to 16384 bits, an *ecdsa.PublicKey on P-256, P-384 or P-521,
	// an ed25519.PublicKey, or a secret of at least 32 bytes as a []byte.
	Key any
}

// fits reports whether the key is for an algorithm.
func (k *Key) fits(algorithm string) bool {
	if k.Algorithm != "" && k.Algorithm != algorithm {
		return false
	}
	switch key := k.Key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(algorithm, "RS") || strings.HasPrefix(algorithm, "PS")
	case *ecdsa.PublicKey:
		return algorithm == map[int]string{256: "ES256", 384: "ES384",
			521: "ES512"}[key.Curve.Params().BitSize]
	case ed25519.PublicKey:
		return algorithm == "EdDSA"
	case []byte:
		return strings.HasPrefix(algorithm, "HS")
	}
	return false
}

// check returns why the key is unusable.
func (k *Key) check() error {
	switch key := k.Key.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < 2048 || n > 16_384 {
			return fmt.Errorf("an RSA key of %d bits, at least 2048 and at most 16384 are wanted",
				n)
		}
	case ed25519.PublicKey:
		if len(key) != ed25519.PublicKeySize {
			return fmt.Errorf("an Ed25519 key of %d bytes, not %d", len(key), ed25519.PublicKeySize)
		}
	case []byte:
		if len(key) < 32 {
			return fmt.Errorf("a secret of %d bytes, at least 32 are wanted", len(key))
		}
	}
	for _, a := range algorithms {
		if k.fits(a) {
			return nil
		}
	}
	return fmt.Errorf("a key of type %T that is not for %q", k.Key, k.Algorithm)
}

// Keys are a KeySource that never changes.
type Keys struct{ keys []Key }

// NewKeys returns a KeySource of keys, at least one.
func NewKeys(keys ...Key) (*Keys, error) {
	if len(keys) == 0 {
		return nil, errors.New("jwt: no keys")
	}
	for i := range keys {
		if err := keys[i].check(); err != nil {
			return nil, fmt.Errorf("jwt: key %q: %w", keys[i].ID, err)
		}
	}
	return &Keys{slices.Clone(keys)}, nil
}

// Find returns the keys with the identifier.
func (k *Keys) Find(_ context.Context, id string) ([]Key, error) { return k.find(id), nil }

func (k *Keys) find(id string) (found []Key) {
	if id == "" {
		return k.keys
	}
	for _, key := range k.keys {
		if key.ID == id {
			found = append(found, key)
		}
	}
	return found
}

// A KeyFile is a KeySource from a file.
type KeyFile struct {
	current atomic.Pointer[Keys]
	set     *files.Set
}

// OpenKeys reads a JSON Web Key Set (RFC 7517 section 5) from a file. It ignores unusable keys:
// keys that are not for verifying signatures, keys of an unknown kind, keys that are too short, and
// malformed keys. It is an error if no key is left.
func OpenKeys(name string) (*KeyFile, error) {
	f := new(KeyFile)
	var err error
	f.set, err = files.New(func() error {
		b, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("jwt: %w", err)
		}
		keys, err := parseSet(b, true)
		if err != nil {
			return fmt.Errorf("jwt: %s: %w", name, err)
		}
		f.current.Store(keys)
		return nil
	}, name)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Find returns the keys with the identifier.
func (f *KeyFile) Find(ctx context.Context, id string) ([]Key, error) {
	return f.current.Load().Find(ctx, id)
}

// Reload reads the file again. If that fails the keys stay as they were.
func (f *KeyFile) Reload() error { return f.set.Reload() }

// Watch checks every interval (zero: 2 s) whether the file has changed. If so, it calls Reload and
// passes the result to report, unless report is nil. It returns when ctx ends. Watch reads a file
// once it has stayed the same for one interval. It retries after an error, at growing intervals. It
// reports an error again if the error or the file has changed.
func (f *KeyFile) Watch(ctx context.Context, interval time.Duration, report func(error)) {
	f.set.Watch(ctx, interval, report)
}

// webKey is a key in a set.
type webKey struct {
	Kty, Use, Alg, Kid, Crv string
	KeyOps                  []string `json:"key_ops"`
	N, E, X, Y, K           string
}

// parseSet reads a set. secrets says whether the set may contain secrets. Unusable keys are ignored
// (RFC 7517 section 5).
func parseSet(b []byte, secrets bool) (*Keys, error) {
	var set struct{ Keys []json.RawMessage }
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("not a JSON Web Key Set: %w", err)
	}
	keys := new(Keys)
	var why error // the first key that could be meant is of no use
	for i, text := range set.Keys {
		k, err := parseKey(text, secrets)
		switch {
		case err != nil && why == nil:
			why = fmt.Errorf(", and key %d is of no use: %w", i+1, err)
		case k != nil:
			keys.keys = append(keys.keys, *k)
		}
	}
	if len(keys.keys) == 0 {
		if why != nil {
			return nil, fmt.Errorf("the set holds no key for verifying signatures%w", why)
		}
		return nil, errors.New("the set holds no key for verifying signatures")
	}
	return keys, nil
}

// parseKey reads a key of a set. It returns nil for a key with another purpose, and an error for a
// malformed key.
func parseKey(text []byte, secrets bool) (*Key, error) {
	var w webKey
	if err := json.Unmarshal(text, &w); err != nil {
		return nil, err
	}
	if w.Use != "" && w.Use != "sig" || w.KeyOps != nil && !slices.Contains(w.KeyOps, "verify") ||
		w.Alg != "" && !known(w.Alg) || w.Kty == "oct" && !secrets {
		return nil, nil
	}
	key, err := w.key()
	if key == nil || err != nil {
		return nil, err
	}
	k := &Key{ID: w.Kid, Algorithm: w.Alg, Key: key}
	if err := k.check(); err != nil {
		return nil, err
	}
	return k, nil
}

// key returns the key itself (RFC 7518 section 6, RFC 8037), or nil if its kind is unknown.
func (w *webKey) key() (any, error) {
	switch w.Kty {
	case "RSA":
		n, errN := decode(w.N)
		e, errE := decode(w.E)
		exponent := new(big.Int).SetBytes(e)
		if errN != nil || errE != nil || len(n) == 0 || !exponent.IsInt64() ||
			exponent.Int64() < 3 || exponent.Int64() > 1<<31-1 {
			return nil, errors.New("n and e are not those of an RSA key")
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(exponent.Int64())}, nil
	case "EC":
		curve := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(),
			"P-521": elliptic.P521()}[w.Crv]
		if curve == nil {
			return nil, nil
		}
		size := (curve.Params().BitSize + 7) / 8
		x, errX := decode(w.X)
		y, errY := decode(w.Y)
		if errX != nil || errY != nil || len(x) != size || len(y) != size {
			return nil, fmt.Errorf("x and y are not %d bytes each", size)
		}
		return ecdsa.ParseUncompressedPublicKey(curve, slices.Concat([]byte{4}, x, y))
	case "OKP":
		if w.Crv != "Ed25519" {
			return nil, nil
		}
		x, err := decode(w.X)
		return ed25519.PublicKey(x), err
	case "oct":
		return decode(w.K)
	}
	return nil, nil
}

func decode(s string) ([]byte, error) { return base64.RawURLEncoding.Strict().DecodeString(s) }
