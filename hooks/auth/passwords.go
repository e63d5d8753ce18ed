package auth

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/internal/files"
	"github.com/dunlin-mqtt/dunlin/hooks/internal/turns"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Passwords is an Authenticator for clients with User Name and Password. It refuses with Bad User
// Name or Password (0x86) if the user is unknown, the Password wrong, missing or empty. An empty
// Password is refused whatever the hash of the user. Passwords abstains from clients without a User
// Name.
//
// Refusing an unknown User Name takes as much work as refusing a known one.
//
// Checking passwords is slow by design. At most half of the processors do it at a time, and other
// clients wait in two lines, whose first clients take turns: one line for the clients that are
// Known (see hooks.ConnectRequest), one for the others. In each line the addresses (see
// hooks.Client.Network) take turns. An attacker who tries many passwords, from few addresses or
// from many, therefore does not keep out a Known client. A line holds 1,024 clients. If it is full,
// the address with the most clients in it loses its last one. A client that loses its place is
// refused with Server busy (0x89).
type Passwords struct {
	users  atomic.Pointer[Users]
	secret atomic.Pointer[secret]
	turns  *turns.Queue
}

// maxWaiting is how many clients may wait in each line.
const maxWaiting = 1024

// NewPasswords returns an Authenticator for the users. Nil means no users.
func NewPasswords(us *Users) *Passwords {
	n := max(1, runtime.GOMAXPROCS(0)/2)
	// a turn is short, so that one address may have all
	p := &Passwords{turns: turns.New(n, n, maxWaiting)}
	p.users.Store(us)
	s := newSecret()
	p.secret.Store(&s)
	return p
}

// SetSecret sets the secret for names without a user. It determines the user in whose place their
// password is checked, and so how long the check takes. It also determines the salt and the
// iteration count that SCRAM sends. Without SetSecret the secret is random, and these values change
// with each start of the program. A client that compares them then finds out which names have no
// user. The secret must have at least 16 bytes, should be the same at each start, and must be hard
// to guess: see [SecretFile]. SetSecret fails if the secret is too short. Call it before the first
// client connects.
func (p *Passwords) SetSecret(b []byte) error {
	if len(b) < minSecret {
		return fmt.Errorf("auth: a secret of %d bytes, at least %d are wanted", len(b), minSecret)
	}
	s := secret(bytes.Clone(b))
	p.secret.Store(&s)
	return nil
}

// Set replaces the users with us. It affects clients that connect or authenticate from now on.
func (p *Passwords) Set(us *Users) { p.users.Store(us) }

// Authenticate decides r. It blocks while the client waits for its turn, until ctx ends, and while
// the password is checked. The error is hooks.ErrAbstain or a *packets.Error.
func (p *Passwords) Authenticate(ctx context.Context, r *hooks.ConnectRequest) error {
	if !r.Connect.HasUsername {
		return hooks.ErrAbstain
	}
	if len(r.Connect.Password) == 0 || p.users.Load().Len() == 0 {
		return errPassword
	}
	end, err := p.turns.Take(ctx, claim(r))
	if err != nil {
		return &packets.Error{
			Code:   packets.ServerBusy,
			Reason: "too many passwords are being checked, try again later",
			Err:    fmt.Errorf("auth: before the password was checked: %w", err),
		}
	}
	defer end()
	e, known := p.users.Load().find(r.Connect.Username, *p.secret.Load())
	if e == nil {
		return errPassword
	}
	if right := e.verify(r.Connect.Password); !right || !known {
		return errPassword
	}
	e.grantTo(r.Grant)
	return nil
}

// claim returns the key for the turns of r: its address or, without one, its User Name.
func claim(r *hooks.ConnectRequest) turns.Claim {
	key := "name " + r.Connect.Username
	if ip, ok := r.Client.Network(); ok {
		key = ip.String()
	}
	return turns.Claim{Peer: key, Known: r.Known}
}

// grantTo copies the Grant of u to g.
func (u *User) grantTo(g *hooks.Grant) {
	if u.Grant != nil {
		*g = *u.Grant
	}
	g.Identity.Principal = u.principal()
}

// principal returns the Principal of u's connections.
func (u *User) principal() string {
	if u.Grant != nil && u.Grant.Identity.Principal != "" {
		return u.Grant.Identity.Principal
	}
	return u.Name
}

// Find returns the user with that name, or nil. The User must not be modified.
func (p *Passwords) Find(_ context.Context, name string) (*User, error) {
	if e := p.users.Load().get(name); e != nil {
		return &e.User, nil
	}
	return nil, nil
}

// SCRAM returns the Authentication Method SCRAM-SHA-256 for the users of p. [NewSCRAM] does the
// same for other users. A name without a user gets the iteration count of one of the users, and a
// salt of the same length as this user's.
func (p *Passwords) SCRAM() hooks.EnhancedAuthenticator {
	return &scram{
		find: func(_ context.Context, name string) (*User, *scramKeys, error) {
			if e := p.users.Load().get(name); e != nil {
				return &e.User, e.keys, nil
			}
			return nil, nil, nil
		},
		standIn: func(name string) *scramKeys {
			s, saltLength, iterations := *p.secret.Load(), saltSize, scramIterations
			if us := p.users.Load(); us != nil && len(us.scram) > 0 {
				like := us.scram[s.pick(name, len(us.scram))].keys
				saltLength, iterations = len(like.salt), like.iterations
			}
			return s.scramKeys(name, saltLength, iterations)
		},
	}
}

// A PasswordFile is Passwords with users from a file.
type PasswordFile struct {
	*Passwords
	set *files.Set
}

// Open reads the file with ParseUsers, and returns an Authenticator for the users in it.
func Open(name string, schemes ...Scheme) (*PasswordFile, error) {
	f := &PasswordFile{Passwords: NewPasswords(nil)}
	var err error
	f.set, err = files.New(func() error { return f.load(name, schemes) }, name)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (f *PasswordFile) load(name string, schemes []Scheme) error {
	r, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("auth: %w", err)
	}
	defer r.Close()
	us, err := ParseUsers(r, name, schemes...)
	if err != nil {
		return fmt.Errorf("auth: %w", err)
	}
	f.Set(us)
	return nil
}

// Reload reads the file again. If that fails, the users stay as they were, and the error has a
// *hooks.ParseError in its chain that says what is wrong.
func (f *PasswordFile) Reload() error { return f.set.Reload() }

// Watch checks every interval (zero: 2 s) whether the file has changed. If so, it calls Reload and
// passes the result to report, unless report is nil. It returns when ctx ends. Watch reads a file
// once it has stayed the same for one interval. It retries after an error, at growing intervals. It
// reports an error again if the error or the file has changed.
func (f *PasswordFile) Watch(ctx context.Context, interval time.Duration, report func(error)) {
	f.set.Watch(ctx, interval, report)
}
