package auth

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/internal/files"
)

// Passwords is an Authenticator for clients with User Name and Password. It refuses others than its users, and a User Name
// without a Password, with Bad User Name or Password (0x86), and abstains where there is no User Name.
//
// A refusal takes as much work for a User Name that does not exist as for one that does. Checking passwords is made to be slow: at
// most half of the processors do it at a time, and other clients wait for them.
type Passwords struct {
	users atomic.Pointer[Users]
	busy  chan struct{} // holds an element for each check under way
}

// NewPasswords returns an Authenticator for the users. Nil is none.
func NewPasswords(us *Users) *Passwords {
	p := &Passwords{busy: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
	p.users.Store(us)
	return p
}

// Set puts us in place of the users before, for clients that connect or authenticate anew from now on.
func (p *Passwords) Set(us *Users) { p.users.Store(us) }

// Authenticate decides r. The error is hooks.ErrAbstain, a *packets.Error, or that of a context that ended before the password
// could be checked.
func (p *Passwords) Authenticate(ctx context.Context, r *hooks.ConnectRequest) error {
	if !r.Connect.HasUsername {
		return hooks.ErrAbstain
	}
	e, known := p.users.Load().find(r.Connect.Username)
	if e == nil || !r.Connect.HasPassword {
		return errPassword
	}
	select {
	case p.busy <- struct{}{}:
		defer func() { <-p.busy }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if right := e.verify(r.Connect.Password); !right || !known {
		return errPassword
	}
	e.grantTo(r.Grant)
	return nil
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

// Find returns the user of that name, nil if there is none. The User must not be modified. It is the function that SCRAM asks for.
func (p *Passwords) Find(_ context.Context, name string) (*User, error) {
	if e, known := p.users.Load().find(name); known {
		return &e.User, nil
	}
	return nil, nil
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

// Watch looks every interval (zero: 2 s) whether the file has changed, and if so calls Reload and then report, if it is not nil,
// with the result. It returns when ctx ends. A file is read once it has stayed the same for one interval.
func (f *PasswordFile) Watch(ctx context.Context, interval time.Duration, report func(error)) {
	f.set.Watch(ctx, interval, report)
}
