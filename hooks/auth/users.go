package auth

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/internal/files"
)

// A User is a user with a password.
type User struct {
	// Name is the User Name, not empty.
	Name string
	// Hash is made from the password, for instance by [Hash]. Its beginning names the scheme.
	Hash string
	// Grant is the Grant of the User's connections. Nil: only the Principal. An empty Principal is
	// replaced by Name.
	Grant *hooks.Grant
}

// A Verifier reports whether a password is the one that a Hash was made from. It may be called
// concurrently, must take the same time for every password, and must not keep it.
type Verifier func(password []byte) bool

// A Scheme parses one kind of password hash. It returns nil, and no error, for a hash of another
// kind, and an error for a hash of its kind that is invalid.
type Scheme func(hash string) (Verifier, error)

// builtin are the Schemes that need only the standard library.
var builtin = []Scheme{pbkdf2SHA512, saltedSHA512, scramScheme}

// Users are a set of users. It is immutable.
type Users struct {
	byName map[string]*entry
	// all are the users, scram those with a hash of SCRAM, ordered by their hashes: those that take
	// the same work are beside each other.
	all, scram []*entry
}

type entry struct {
	User
	verify Verifier
	keys   *scramKeys // nil: the hash is not one of SCRAM
}

// NewUsers returns the set of the given users, whose names must differ. Their hashes may be those
// of Mosquitto's password files ($7$, which [Hash] makes, and $6$), of SCRAM-SHA-256 (which
// [HashSCRAM] makes), and of the further schemes.
func NewUsers(users []User, schemes ...Scheme) (*Users, error) {
	us := &Users{byName: map[string]*entry{}}
	for _, u := range users {
		if err := us.add(u, schemes); err != nil {
			return nil, fmt.Errorf("auth: user %q: %w", u.Name, err)
		}
	}
	us.order()
	return us, nil
}

// ParseUsers reads a password file as mosquitto_passwd writes it: lines of a User Name, a colon and
// a hash, as for NewUsers. It ignores empty lines and lines that begin with #. file is its name in
// errors. Every error is a *hooks.ParseError, several of these, joined, one for each bad line, or
// an error of r. One invalid line refuses the whole file.
func ParseUsers(r io.Reader, file string, schemes ...Scheme) (*Users, error) {
	us := &Users{byName: map[string]*entry{}}
	err := files.EachLine(r, file, func(line string, _ int) error {
		if strings.TrimSpace(line) == "" || line[0] == '#' {
			return nil
		}
		name, hash, found := strings.Cut(line, ":")
		if !found {
			return errors.New("no colon after the user name")
		}
		return us.add(User{Name: strings.TrimSpace(name), Hash: strings.TrimSpace(hash)}, schemes)
	})
	if err != nil {
		return nil, err
	}
	us.order()
	return us, nil
}

func (us *Users) add(u User, schemes []Scheme) error {
	if u.Name == "" {
		return errors.New("an empty user name")
	}
	if us.byName[u.Name] != nil {
		return errors.New("this user name is there already")
	}
	verify, err := verifier(u.Hash, schemes)
	if err != nil {
		return err
	}
	keys, err := parseSCRAM(u.Hash)
	if err != nil {
		return err
	}
	e := &entry{u, verify, keys}
	us.byName[u.Name] = e
	us.all = append(us.all, e)
	return nil
}

// order is called when all users are there.
func (us *Users) order() {
	slices.SortFunc(us.all, func(a, b *entry) int { return strings.Compare(a.Hash, b.Hash) })
	for _, e := range us.all {
		if e.keys != nil {
			us.scram = append(us.scram, e)
		}
	}
}

// verifier asks the schemes.
func verifier(hash string, schemes []Scheme) (Verifier, error) {
	for _, of := range [][]Scheme{builtin, schemes} {
		for _, s := range of {
			if v, err := s(hash); v != nil || err != nil {
				return v, err
			}
		}
	}
	return nil, errors.New(
		"the password is in no known form; mosquitto_passwd -U hashes plain ones")
}

// Len returns the number of users.
func (us *Users) Len() int {
	if us == nil {
		return 0
	}
	return len(us.all)
}

// find returns the user with that name. For an unknown name it returns another user, always the
// same, whose password can be checked in its place. It returns nil if there are no users.
func (us *Users) find(name string, s secret) (e *entry, known bool) {
	if us.Len() == 0 {
		return nil, false
	}
	instead := us.all[s.pick(name, len(us.all))] // for users, too: it takes its time
	if e := us.byName[name]; e != nil {
		return e, true
	}
	return instead, false
}

// get returns the user, nil if there is none.
func (us *Users) get(name string) *entry {
	if us == nil {
		return nil
	}
	return us.byName[name]
}
