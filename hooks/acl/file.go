package acl

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks/internal/files"
)

// A File is an ACL whose rules come from a file.
type File struct {
	ACL
	set *files.Set
}

// Open reads the file with parse, which is Parse or ParseMosquitto, and returns an ACL that decides by what it holds.
func Open(name string, parse func(r io.Reader, file string) (*List, error)) (*File, error) {
	f := new(File)
	var err error
	f.set, err = files.New(func() error { return f.load(name, parse) }, name)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (f *File) load(name string, parse func(io.Reader, string) (*List, error)) error {
	r, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("acl: %w", err)
	}
	defer r.Close()
	l, err := parse(r, name)
	if err != nil {
		return fmt.Errorf("acl: %w", err)
	}
	f.Set(l)
	return nil
}

// Reload reads the file again. If that fails, the rules in force stay, and the error, a *hooks.ParseError in its chain, says what is
// wrong. Otherwise all rules of the file are in force when Reload returns, and OnReload's functions have been called.
func (f *File) Reload() error { return f.set.Reload() }

// Watch looks every interval (zero: 2 s) whether the file has changed, and if so calls Reload and
// then report, if it is not nil, with the result. It returns when ctx ends. A file is read once it
// has stayed the same for one interval, so that one that is being written is not taken for a
// shorter one. What fails is tried again, less and less often, and reported again when the error or
// the file is another one.
func (f *File) Watch(ctx context.Context, interval time.Duration, report func(error)) {
	f.set.Watch(ctx, interval, report)
}
