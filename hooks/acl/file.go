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

// Open reads the file with parse, which is Parse or ParseMosquitto, and returns an ACL with its
// rules.
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

// Reload reads the file again. If that fails, the rules in force stay, and the error has a
// *hooks.ParseError in its chain that says what is wrong. Otherwise all rules of the file are in
// force when Reload returns, and the functions of OnReload have been called.
func (f *File) Reload() error { return f.set.Reload() }

// Watch checks every interval (zero: 2 s) whether the file has changed. If so, it calls Reload and
// passes the result to report, unless report is nil. It returns when ctx ends. Watch reads a file
// once it has stayed the same for one interval, so that it does not take a half-written file for a
// complete one. It retries after an error, at growing intervals. It reports an error again if the
// error or the file has changed.
func (f *File) Watch(ctx context.Context, interval time.Duration, report func(error)) {
	f.set.Watch(ctx, interval, report)
}
