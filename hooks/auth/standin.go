package auth

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
)

// This file makes the values that a name without a user gets in place of a user's. They depend only
// on the name and a secret. So they are the same each time, as the values of a user are.

// minSecret is the minimum length of a secret, in bytes.
const minSecret = 16

// A secret determines the stand-in values.
type secret []byte

func newSecret() secret { return randomBytes(sha256.Size) }

// pick returns a number below n for a name. If n grows a little, most names keep their number or
// get the next one.
func (s secret) pick(name string, n int) int {
	h := hmac.New(sha256.New, s)
	h.Write([]byte("pick " + name))
	i, _ := bits.Mul64(binary.BigEndian.Uint64(h.Sum(nil)), uint64(n))
	return int(i)
}

// bytes returns n bytes for a name. Different uses get different bytes.
func (s secret) bytes(use, name string, n int) []byte {
	const most = 255 * sha256.Size
	b, err := hkdf.Key(sha256.New, s, nil, use+" "+name, min(n, most))
	if err != nil {
		panic("BUG: " + err.Error()) // only for more than most bytes
	}
	return b
}

// SecretFile returns the secret in a file, for Passwords.SetSecret and SCRAMOptions.Secret. If the
// file does not exist, SecretFile creates it, with 32 random bytes, readable only by its owner. A
// file of less than 16 bytes is an error.
func SecretFile(name string) ([]byte, error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		if err := writeSecret(name); err != nil {
			return nil, fmt.Errorf("auth: making a secret: %w", err)
		}
		b, err = os.ReadFile(name)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("auth: %w", err)
	case len(b) < minSecret:
		return nil, fmt.Errorf("auth: %s holds %d bytes, a secret has at least %d: "+
			"remove the file to have one made", name, len(b), minSecret)
	}
	return b, nil
}

// writeSecret creates the file, completely or not at all.
func writeSecret(name string) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".secret-*") // for its owner alone
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // in vain once it has its name
	b := make([]byte, sha256.Size)
	_, _ = rand.Read(b) // never fails
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
