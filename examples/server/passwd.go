package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/hooks/auth/crypt"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/term"
)

// This file is the command passwd, which changes the file of -password-file.

const passwdUsage = `usage: server passwd [-hash KIND] [-iterations N] create|add|update|delete FILE USER

  create  makes FILE, which must not exist, with one user
  add     adds a user who is not in FILE
  update  gives a user of FILE another password
  delete  takes a user out of FILE

The password is read from the terminal, twice and without showing it, or else from the first line of
standard input. A server that uses FILE reads it again by itself.
`

// A hashing is a kind of -hash.
type hashing struct {
	iterations, most int // what -iterations is by default, and at most: what the server accepts
	of               func(password string, iterations int) (string, error)
}

var hashings = map[string]hashing{
	"pbkdf2": {210_000, 10_000_000, func(password string, n int) (string,
		error) {
		return auth.Hash(password, n), nil
	}},
	"scram": {15_000, 10_000_000, func(password string, n int) (string,
		error) {
		return auth.HashSCRAM(password, n), nil
	}},
	"bcrypt": {12, 20, func(password string, n int) (string, error) {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), n)
		return string(hash), err
	}},
	"argon2id": {3, 1000, func(password string, n int) (string, error) {
		const memory, threads = 64 << 10, 4 // KiB
		salt := make([]byte, 16)
		_, _ = rand.Read(salt) // never fails
		key := argon2.IDKey([]byte(password), salt, uint32(n), memory, threads, 32)
		text := base64.RawStdEncoding.EncodeToString
		return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, memory, n,
			threads, text(salt), text(key)), nil
	}},
}

// passwd runs the command.
func passwd(args []string, in io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("server passwd", flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprint(f.Output(), passwdUsage)
		f.PrintDefaults()
	}
	kind := f.String("hash", "pbkdf2", "pbkdf2 (as mosquitto_passwd), bcrypt, argon2id, or scram "+
		"(clients need not send the password)")
	n := f.Int("iterations", 0, "how often the password is hashed; for bcrypt its cost (default "+
		"210000, 12, 3, 15000)")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 3 {
		return fmt.Errorf("expected three words, got %d\n%s", f.NArg(), passwdUsage)
	}
	hash, ok := hashings[*kind]
	if !ok {
		return fmt.Errorf("-hash %q: expected pbkdf2, bcrypt, argon2id or scram", *kind)
	}
	if *n == 0 {
		*n = hash.iterations
	}
	if *n < 0 || *n > hash.most {
		return fmt.Errorf("-iterations %d: expected 1 to %d", *n, hash.most)
	}
	do, name, user := f.Arg(0), f.Arg(1), f.Arg(2)
	if !slices.Contains([]string{"create", "add", "update", "delete"}, do) {
		return fmt.Errorf("expected create, add, update or delete, got %q", do)
	}
	if err := checkUser(user); err != nil {
		return err
	}
	var password string
	if do != "delete" { // before the file is locked: the wait may be long, and end with Control-C
		var err error
		if password, err = readPassword(in, out); err != nil {
			return err
		}
	}
	before, _ := os.Stat(name)
	err := changeFile(name, do == "create", func(lines []string) ([]string, error) {
		return edit(lines, name, do, user, func() (string, error) { return hash.of(password, *n) })
	})
	if err == nil && before != nil {
		sayWhoNoLongerReads(out, name, before.Mode())
	}
	return err
}

// edit returns the lines of a password file after the change, whose password hash makes.
func edit(lines []string, name, do, user string, hash func() (string, error)) ([]string, error) {
	i := slices.IndexFunc(lines, func(l string) bool { return userOf(l) == user })
	switch {
	case do == "delete" && i >= 0:
		return slices.Delete(lines, i, i+1), nil
	case (do == "delete" || do == "update") && i < 0:
		return nil, fmt.Errorf("%s has no user %q", name, user)
	case do == "add" && i >= 0:
		return nil, fmt.Errorf("%s has a user %q already; update gives that user another "+
			"password", name, user)
	}
	hashed, err := hash()
	if err != nil {
		return nil, err
	}
	if i < 0 {
		i, lines = len(lines), append(lines, "")
	}
	lines[i] = user + ":" + hashed
	_, err = auth.ParseUsers(strings.NewReader(lines[i]), name, crypt.Bcrypt, crypt.Argon2id)
	return lines, err // with -iterations out of bounds for instance
}

// sayWhoNoLongerReads tells of a file that everybody could read: the server may be one of those who
// no longer can. It would keep the users that it has, and not start again.
func sayWhoNoLongerReads(out io.Writer, name string, before fs.FileMode) {
	after, err := os.Stat(name)
	if err == nil && before&0o004 != 0 && after.Mode()&0o004 == 0 {
		fmt.Fprintf(out, "note: everybody could read %s before; now only its owner and its group "+
			"can, and the server must run as one of them (see chown and chgrp)\n", name)
	}
}

// checkUser says which User Names a password file cannot have.
func checkUser(name string) error {
	switch {
	case name == "" || name != strings.TrimSpace(name) || name[0] == '#':
		return fmt.Errorf("%q is not a user name: it must not be empty, begin with #, or begin or "+
			"end with a space", name)
	case strings.Contains(name, ":") || strings.ContainsFunc(name, unicode.IsControl) ||
		!utf8.ValidString(name):
		return fmt.Errorf("%q is not a user name: it must be UTF-8 without a colon and control "+
			"characters", name)
	}
	return nil
}

// userOf returns the user of a line, empty if it has none.
func userOf(line string) string {
	if strings.HasPrefix(line, "#") {
		return ""
	}
	user, _, _ := strings.Cut(line, ":")
	return strings.TrimSpace(user)
}

// readPassword reads a password from a terminal, twice, or else one line.
func readPassword(in io.Reader, out io.Writer) (string, error) {
	f, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		line, err := bufio.NewReader(in).ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		return line, checkPassword(line)
	}
	ask := func(what string) (string, error) {
		fmt.Fprint(out, what)
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(out)
		return string(b), err
	}
	first, err := ask("Password: ")
	if err != nil {
		return "", err
	}
	second, err := ask("Again: ")
	if err != nil {
		return "", err
	}
	if first != second {
		return "", errors.New("the two passwords differ")
	}
	return first, checkPassword(first)
}

func checkPassword(p string) error {
	if p == "" {
		return errors.New("the password is empty: nobody could log in with it")
	}
	return nil
}

// changeFile puts a file in the place of another one, with lines that change makes of the former.
// There is never half a file, and nobody but the owner can read it. While it is made, nobody else
// can change the file in this way.
func changeFile(name string, isNew bool, change func([]string) ([]string, error)) (err error) {
	if target, err := filepath.EvalSymlinks(name); err == nil {
		name = target
	}
	before, err := os.ReadFile(name)
	switch {
	case isNew && err == nil:
		return fmt.Errorf("%s exists; add adds a user to it", name)
	case isNew && !errors.Is(err, fs.ErrNotExist), !isNew && err != nil:
		return err
	}
	next := name + ".new"
	f, err := os.OpenFile(next, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: the password file is being changed by somebody else; if not, "+
			"remove it", err)
	} else if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(next)
		}
	}()
	var lines []string
	for l := range bytes.Lines(before) {
		lines = append(lines, string(bytes.TrimRight(l, "\r\n")))
	}
	if lines, err = change(lines); err == nil {
		_, err = io.WriteString(f, strings.Join(append(lines, ""), "\n"))
	}
	if err == nil && !isNew {
		err = keepReaders(f, name)
	}
	if err == nil {
		err = f.Sync()
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return err
	}
	return os.Rename(next, name)
}

// keepReaders lets those read f who could read the file that it takes the place of, its group at
// most: the server, which is not root, has to.
func keepReaders(f *os.File, name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if err := keepOwner(f, name); err != nil {
		return err
	}
	return f.Chmod(info.Mode().Perm() & 0o640)
}
