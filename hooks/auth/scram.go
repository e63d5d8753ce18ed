package auth

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// SCRAMSHA256 is the name of the Authentication Method.
const SCRAMSHA256 = "SCRAM-SHA-256"

// scramIterations is the default of HashSCRAM. The client, often a small device, computes them too.
// (RFC 7677 section 4 asks for at least 4096.)
const scramIterations = 15_000

// HashSCRAM returns the hash of a password for SCRAM-SHA-256, which also serves clients that send
// the password itself. It begins with SCRAM-SHA-256$ and has the form that PostgreSQL stores.
// iterations is how often clients hash the password each time; zero means 15,000. The password is
// not normalized (SASLprep): if it has characters beyond ASCII, clients have to send the same form.
func HashSCRAM(password string, iterations int) string {
	if iterations <= 0 {
		iterations = scramIterations
	}
	k := scramKeysOf(password, randomBytes(saltSize), iterations)
	return fmt.Sprintf("%s$%d:%s$%s:%s", SCRAMSHA256, k.iterations, encode(k.salt),
		encode(k.stored), encode(k.server))
}

// scramKeys are the values that a server stores for a password (RFC 5802 section 3).
type scramKeys struct {
	iterations     int
	salt           []byte
	stored, server []byte // StoredKey and ServerKey
}

func scramKeysOf(password string, salt []byte, iterations int) *scramKeys {
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		panic("BUG: " + err.Error()) // only for parameters that the callers do not use
	}
	stored := sha256.Sum256(mac(salted, "Client Key"))
	return &scramKeys{iterations, salt, stored[:], mac(salted, "Server Key")}
}

func mac(key []byte, message string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(message))
	return h.Sum(nil)
}

// parseSCRAM parses a hash of HashSCRAM. It returns nil, and no error, for other hashes.
func parseSCRAM(hash string) (*scramKeys, error) {
	fields, found := strings.CutPrefix(hash, SCRAMSHA256+"$")
	if !found {
		return nil, nil
	}
	first, second, _ := strings.Cut(fields, "$")
	n, salt, _ := strings.Cut(first, ":")
	stored, server, _ := strings.Cut(second, ":")
	iterations, err := parseIterations(n)
	if err != nil {
		return nil, err
	}
	k := &scramKeys{iterations: iterations}
	for _, f := range []struct {
		to   *[]byte
		text string
	}{{&k.salt, salt}, {&k.stored, stored}, {&k.server, server}} {
		if *f.to, err = base64.StdEncoding.DecodeString(f.text); err != nil {
			return nil, errors.New("the hash is not base64")
		}
	}
	if len(k.salt) == 0 || len(k.stored) != sha256.Size || len(k.server) != sha256.Size {
		return nil, errors.New("the hash has not the length of a SHA-256")
	}
	return k, nil
}

// scramScheme is the Scheme for clients that send the password itself.
func scramScheme(hash string) (Verifier, error) {
	k, err := parseSCRAM(hash)
	if k == nil || err != nil {
		return nil, err
	}
	return func(password []byte) bool {
		return subtle.ConstantTimeCompare(scramKeysOf(string(password), k.salt,
			k.iterations).stored, k.stored) == 1
	}, nil
}

// SCRAMOptions say where the users of SCRAM come from, and how to hide which names have a user.
type SCRAMOptions struct {
	// Find returns the user with that name, or nil if there is none. An error ends the
	// authentication. The hash of the user must come from HashSCRAM. A user with another hash or an
	// empty password cannot authenticate with SCRAM. Required.
	Find func(ctx context.Context, name string) (*User, error)
	// Secret determines the salt and the iteration count for a name without a user. It should be
	// the same at each start, as the salts of users are. Otherwise a client that compares them
	// finds out which names have a user: see [SecretFile]. It must have at least 16 bytes that
	// nobody can guess. Empty: random bytes.
	Secret []byte
	// Iterations are the iteration counts of the users. A name without a user gets one of them,
	// always the same. A count that occurs several times is chosen more often. Empty: 15,000, the
	// default of HashSCRAM.
	Iterations []int
}

// NewSCRAM returns the Authentication Method SCRAM-SHA-256 (RFC 5802, RFC 7677), without channel
// binding, for users from anywhere. For the users of Passwords use Passwords.SCRAM. It fails if the
// options are invalid.
//
// The client sends its first message as the Authentication Data of the CONNECT, or in answer to an
// empty message if it sent none there. A client whose authentication fails is refused with Not
// authorized (0x87), whatever the reason. An unknown user and a wrong password look the same to the
// client, and fail at the same step. A re-authentication must be by the same user.
func NewSCRAM(o SCRAMOptions) (hooks.EnhancedAuthenticator, error) {
	key := secret(bytes.Clone(o.Secret))
	switch {
	case o.Find == nil:
		return nil, errors.New("auth: SCRAMOptions.Find is nil: without it there are no users")
	case len(key) == 0:
		key = newSecret()
	case len(key) < minSecret:
		return nil, fmt.Errorf("auth: SCRAMOptions.Secret has %d bytes, at least %d are wanted",
			len(key), minSecret)
	}
	counts := slices.Sorted(slices.Values(o.Iterations))
	if len(counts) == 0 {
		counts = []int{scramIterations}
	}
	if counts[0] < 1 || counts[len(counts)-1] > maxIterations {
		return nil, fmt.Errorf("auth: SCRAMOptions.Iterations are not all 1 to %d", maxIterations)
	}
	return newSCRAM(o.Find, key, counts), nil
}

// SCRAM is NewSCRAM with default options and a function that finds users.
func SCRAM(find func(ctx context.Context, name string) (*User, error)) hooks.EnhancedAuthenticator {
	return newSCRAM(find, newSecret(), []int{scramIterations})
}

func newSCRAM(find func(context.Context, string) (*User, error), key secret, counts []int) *scram {
	nobody := HashSCRAM("", 1)
	return &scram{
		find: func(ctx context.Context, name string) (*User, *scramKeys, error) {
			u, err := find(ctx, name)
			if err != nil {
				return nil, nil, err
			}
			if u == nil {
				_, _ = parseSCRAM(nobody) // it takes its time
				return nil, nil, nil
			}
			keys, err := parseSCRAM(u.Hash)
			if err != nil {
				return nil, nil, &brokenUser{name, err}
			}
			return u, keys, nil
		},
		standIn: func(name string) *scramKeys {
			return key.scramKeys(name, saltSize, counts[key.pick(name, len(counts))])
		},
	}
}

// scramKeys returns the keys for a name without a user. No password matches them.
func (s secret) scramKeys(name string, saltLength, iterations int) *scramKeys {
	return &scramKeys{
		iterations: iterations, salt: s.bytes("salt", name, saltLength),
		stored: s.bytes("stored", name, sha256.Size), server: s.bytes("server", name, sha256.Size),
	}
}

type scram struct {
	// find returns a user and its keys. Both are nil if there is no user. The keys alone are
	// returned for a user whose hash does not come from HashSCRAM.
	find    func(ctx context.Context, name string) (*User, *scramKeys, error)
	standIn func(name string) *scramKeys

	mu sync.Mutex
	// whether StoredKeys are those of the empty password; guarded by mu
	empty map[[sha256.Size]byte]bool
}

// maxLooked bounds the cached results of isEmpty.
const maxLooked = 1 << 14

// isEmpty says whether k are the keys of the empty password. The check takes as much work as a
// client has, so the result is cached.
func (s *scram) isEmpty(k *scramKeys) bool {
	key := [sha256.Size]byte(k.stored)
	s.mu.Lock()
	empty, looked := s.empty[key]
	s.mu.Unlock()
	if looked {
		return empty
	}
	empty = subtle.ConstantTimeCompare(scramKeysOf("", k.salt, k.iterations).stored, k.stored) == 1
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.empty == nil || len(s.empty) >= maxLooked {
		s.empty = make(map[[sha256.Size]byte]bool)
	}
	s.empty[key] = empty
	return empty
}

// A brokenUser is the error of a user with an invalid hash. The client does not learn that the user
// exists.
type brokenUser struct {
	name string
	err  error
}

func (e *brokenUser) Error() string { return fmt.Sprintf("user %q: %v", e.name, e.err) }

func (s *scram) Start(_ context.Context, r *hooks.ConnectRequest) (hooks.Exchange, error) {
	return &scramExchange{
		scram:  s,
		client: r.Client,
		grant:  r.Grant,
		again:  r.Connect == nil,
		nonce:  base64.RawStdEncoding.EncodeToString(randomBytes(18)),
	}, nil
}

// A scramExchange is one authentication.
type scramExchange struct {
	*scram
	client *hooks.Client
	grant  *hooks.Grant
	again  bool // the client has been accepted before
	state  scramState
	nonce  string // the server's part, later the whole

	gs2    string // header of the client's first message
	signed string // as much of the AuthMessage as is known
	user   *User  // nil: there is none
	keys   *scramKeys
	why    string // there is none, if that is not simply so
}

// scramState is the message that the client must send next.
type scramState byte

const (
	scramStart scramState = iota // the first message, or nothing
	scramFirst                   // the first message
	scramFinal                   // the final message
	scramEnd                     // nothing
)

// errSCRAM is the answer to a client whose authentication fails.
func errSCRAM(why string) error {
	return &packets.Error{Code: packets.NotAuthorized, Reason: "authentication failed",
		Err: errors.New("auth: " + SCRAMSHA256 + ": " + why)}
}

// Next handles a message of the client.
func (x *scramExchange) Next(ctx context.Context, data []byte) (reply []byte, done bool,
	err error) {
	state := x.state
	x.state = scramEnd
	switch {
	case !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0:
		return nil, false, errSCRAM("a message that is not text")
	case state == scramStart && len(data) == 0:
		x.state = scramFirst
		return []byte{}, false, nil
	case state <= scramFirst:
		reply, err = x.first(ctx, string(data))
		if err == nil {
			x.state = scramFinal
		}
		return reply, false, err
	case state == scramFinal:
		reply, err = x.final(string(data))
		return reply, err == nil, err
	}
	return nil, false, errSCRAM("a message too many")
}

// first answers client-first-message with server-first-message.
func (x *scramExchange) first(ctx context.Context, message string) ([]byte, error) {
	bare, name, clientNonce, err := x.parseFirst(message)
	if err != nil {
		return nil, err
	}
	x.keys = x.standIn(name) // for users, too: it takes its time
	u, keys, err := x.find(ctx, name)
	if broken, ok := errors.AsType[*brokenUser](err); ok {
		x.why, err = broken.Error(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("auth: %s: %w", SCRAMSHA256, err)
	}
	if keys != nil {
		x.user, x.keys = u, keys
	}
	x.nonce = clientNonce + x.nonce
	reply := "r=" + x.nonce + ",s=" + encode(x.keys.salt) + ",i=" + strconv.Itoa(x.keys.iterations)
	x.signed = bare + "," + reply + ","
	return []byte(reply), nil
}

// parseFirst parses a client-first-message (RFC 5802 section 7).
func (x *scramExchange) parseFirst(message string) (bare, name, nonce string, err error) {
	binding, rest, _ := strings.Cut(message, ",")
	authzid, bare, found := strings.Cut(rest, ",")
	switch {
	case !found:
		return "", "", "", errSCRAM("an incomplete first message")
	case strings.HasPrefix(binding, "p="):
		return "", "", "", errSCRAM("channel binding is not supported")
	case binding != "n" && binding != "y":
		return "", "", "", errSCRAM("a first message without a binding flag")
	}
	x.gs2 = message[:len(message)-len(bare)]
	nameField, rest, _ := strings.Cut(bare, ",")
	nonceField, _, _ := strings.Cut(rest, ",")
	name, ok := saslName(nameField, "n=")
	if !ok {
		// or with an extension that must be understood
		return "", "", "", errSCRAM("a first message without a valid user name")
	}
	if authzid != "" {
		if as, ok := saslName(authzid, "a="); !ok || as != name {
			return "", "", "", errSCRAM("a client that wants to be somebody else")
		}
	}
	nonce, ok = strings.CutPrefix(nonceField, "r=")
	if !ok || nonce == "" || strings.ContainsFunc(nonce, func(r rune) bool {
		return r < '!' || r > '~'
	}) {
		return "", "", "", errSCRAM("a first message without a valid nonce")
	}
	return bare, name, nonce, nil
}

// saslName decodes a field that holds a saslname.
func saslName(field, prefix string) (name string, ok bool) {
	s, ok := strings.CutPrefix(field, prefix)
	if !ok || s == "" || strings.ContainsFunc(s, unicode.IsControl) {
		return "", false
	}
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, "=")
		b.WriteString(before)
		switch {
		case !found:
			return b.String(), true
		case strings.HasPrefix(after, "2C"):
			b.WriteByte(',')
		case strings.HasPrefix(after, "3D"):
			b.WriteByte('=')
		default:
			return "", false
		}
		s = after[2:]
	}
}

// final checks client-final-message, and answers it with server-final-message.
func (x *scramExchange) final(message string) ([]byte, error) {
	i := strings.LastIndex(message, ",p=")
	if i < 0 {
		return nil, errSCRAM("a final message without a proof")
	}
	proof, err := base64.StdEncoding.DecodeString(message[i+len(",p="):])
	if err != nil || len(proof) != sha256.Size {
		return nil, errSCRAM("a proof that is none")
	}
	binding, rest, _ := strings.Cut(message[:i], ",")
	nonce, _, _ := strings.Cut(rest, ",")
	if binding != "c="+encode([]byte(x.gs2)) {
		return nil, errSCRAM("a final message that does not go with the first")
	}
	if nonce != "r="+x.nonce {
		return nil, errSCRAM("the nonce of another authentication")
	}
	x.signed += message[:i]
	key := mac(x.keys.stored, x.signed)
	subtle.XORBytes(key, key, proof)
	stored := sha256.Sum256(key)
	if right := subtle.ConstantTimeCompare(stored[:], x.keys.stored) == 1; !right || x.user == nil {
		return nil, errSCRAM(cmp.Or(x.why, "wrong user name or password"))
	}
	if x.isEmpty(x.keys) {
		return nil, errSCRAM("the password of the user is empty")
	}
	if x.again && x.user.principal() != x.client.Identity.Principal {
		return nil, errSCRAM("a client that has become somebody else")
	}
	x.user.grantTo(x.grant)
	return []byte("v=" + encode(mac(x.keys.server, x.signed))), nil
}
