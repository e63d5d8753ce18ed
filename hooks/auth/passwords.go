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

// Passwords is an Authenticator for clients with User Name and Password. It refuses others than its users, and a User Name
// without a Password or with an empty one, whatever the hash of the user, with Bad User Name or Password (0x86), and abstains
// where there is no User Name.
//
// A refusal takes as much work for a User Name that does not exist as for one that does.
//
// Checking passwords is made to be slow. At most half of the processors do it at a time, and other
// clients wait. They wait in two lines, whose first clients take turns: one line for the clients
// that are Known (see hooks.ConnectRequest), one for the others. In each line the addresses (see
// hooks.Client.Network) take turns. So neither somebody who tries many passwords from a few
// addresses, nor somebody who does it from many, keeps a client out that was there before. A line
// holds 1,024 clients; beyond, the address with the most clients in it loses its last one. A client
// that waited in vain is refused with Server busy (0x89).
type Passwords struct {
	users  atomic.Pointer[Users]
	secret atomic.Pointer[secret]
	turns  *turns.Queue
}

// maxWaiting is how many clients may wait in each line.
const maxWaiting = 1024

// NewPasswords returns an Authenticator for the users. Nil is none.
func NewPasswords(us *Users) *Passwords {
	n := max(1, runtime.GOMAXPROCS(0)/2)
	// a turn is short, so that one address may have all
	p := &Passwords{turns: turns.New(n, n, maxWaiting)}
	p.users.Store(us)
	s := newSecret()
	p.secret.Store(&s)
	return p
}

// SetSecret sets the secret by which names without a user are treated as if they had one: as whose
// password the password is checked, which says how long that takes, and which salt and iteration
// count SCRAM tells. Without it the secret is a random one, and these change with each start of the
// program. Whoever compares them then finds out which names have no user. Have at least 16 bytes,
// the same at each start, which nobody can guess: see [SecretFile]. It fails if there are less. It
// is to be called before the first client comes.
func (p *Passwords) SetSecret(b []byte) error {
	if len(b) < minSecret {
		return fmt.Errorf("auth: a secret of %d bytes, at least %d are wanted", len(b), minSecret)
	}
	s := secret(bytes.Clone(b))
	p.secret.Store(&s)
	return nil
}

// Set puts us in place of the users before, for clients that connect or authenticate anew from now on.
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
			Code: packets.ServerBusy, Reason: "too many passwords are being checked, try again later",
			Err: fmt.Errorf("auth: before the password was checked: %w", err),
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

// claim returns whose turns r uses up: those of its address or, where there is none, of its User
// Name.
func claim(r *hooks.ConnectRequest) turns.Claim {
	key := "name " + r.Connect.Username
	if ip, ok := r.Client.Network(); ok {
		key = ip.String()
	}
	return turns.Claim{Peer: key, Known: r.Known}
}

// grantTo writes what u gets to g.
func (u *User) grantTo(g *hooks.Grant) {
	if u.Grant != nil {
		*g = *u.Grant
	}
	g.Identity.Principal = u.principal()
}

// principal returns what u's connections have for Principal.
func (u *User) principal() string {
	if u.Grant != nil && u.Grant.Identity.Principal != "" {
		return u.Grant.Identity.Principal
	}
	return u.Name
}

// Find returns the user of that name, nil if there is none. The User must not be modified.
func (p *Passwords) Find(_ context.Context, name string) (*User, error) {
	if e := p.users.Load().get(name); e != nil {
		return &e.User, nil
	}
	return nil, nil
}

// SCRAM returns the Authentication Method SCRAM-SHA-256 for the users of p, as [NewSCRAM] does for
// others. A name without a user is told the iteration count of one of the users, and a salt as long
// as that one's.
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

// A PasswordFile is Passwords whose users come from a file.
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

// Reload reads the file again. If that fails, the users stay as they were, and the error, a *hooks.ParseError in its chain, says
// what is wrong.
func (f *PasswordFile) Reload() error { return f.set.Reload() }

// Watch looks every interval (zero: 2 s) whether the file has changed, and if so calls Reload and
// then report, if it is not nil, with the result. It returns when ctx ends. A file is read once it
// has stayed the same for one interval. What fails is tried again, less and less often, and
// reported again when the error or the file is another one.
func (f *PasswordFile) Watch(ctx context.Context, interval time.Duration, report func(error)) {
	f.set.Watch(ctx, interval, report)
}
