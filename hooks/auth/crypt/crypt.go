// Package crypt adds bcrypt and Argon2id to the password hashes that package auth knows. It is a
// module of its own because it needs golang.org/x/crypto:
//
//	file, err := auth.Open("passwords", crypt.Bcrypt, crypt.Argon2id)
package crypt

import (
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

var (
	_ auth.Scheme = Bcrypt
	_ auth.Scheme = Argon2id
)

const (
	// bcryptPassword is how many bytes of a password bcrypt uses.
	bcryptPassword = 72
	// bcryptSize is the length of a bcrypt hash.
	bcryptSize = 60
	// bcryptCost is the maximum accepted cost. Each further step doubles the work; this one takes
	// about a minute.
	bcryptCost = 20
)

// Bcrypt is the auth.Scheme of bcrypt. Its hashes begin with $2a$, $2b$ or $2y$, as "htpasswd -B"
// and many other programs make them. bcrypt ignores everything after 72 bytes, so a longer password
// is always refused.
func Bcrypt(hash string) (auth.Verifier, error) {
	if !strings.HasPrefix(hash, "$2a$") && !strings.HasPrefix(hash, "$2b$") &&
		!strings.HasPrefix(hash, "$2y$") {
		return nil, nil
	}
	stored := []byte(hash)
	cost, err := bcrypt.Cost(stored)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the hash is not one of bcrypt: %w", err)
	case cost > bcryptCost:
		return nil, fmt.Errorf("the hash has cost %d, more than %d", cost, bcryptCost)
	case len(hash) != bcryptSize:
		return nil, fmt.Errorf("the hash has %d characters, not %d", len(hash), bcryptSize)
	}
	for _, part := range []string{hash[7:29], hash[29:]} { // salt and key
		if _, err := bcryptEncoding.DecodeString(part); err != nil {
			return nil, errors.New("the hash is not in the base64 of bcrypt")
		}
	}
	return func(password []byte) bool {
		right := bcrypt.CompareHashAndPassword(stored,
			password[:min(len(password), bcryptPassword)]) == nil
		return right && len(password) <= bcryptPassword
	}, nil
}

var bcryptEncoding = base64.NewEncoding(
	"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
).WithPadding(base64.NoPadding)

const (
	// argon2Memory and argon2Time are the maximum accepted values for one check.
	argon2Memory = 1 << 20 // KiB
	argon2Time   = 1000
)

// Argon2id is the auth.Scheme of Argon2id in its usual form,
// $argon2id$v=19$m=65536,t=3,p=4$salt$key, as the argon2 command and newer versions of Mosquitto
// make it. Each check in progress takes the memory m of the hash, in KiB.
func Argon2id(hash string) (auth.Verifier, error) {
	fields := strings.Split(hash, "$")
	if len(fields) < 2 || fields[0] != "" || fields[1] != "argon2id" {
		return nil, nil
	}
	if len(fields) != 6 {
		return nil, errors.New("the hash has not the six parts of Argon2id")
	}
	if fields[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return nil, fmt.Errorf("the hash is of Argon2 version %q, not %d", fields[2],
			argon2.Version)
	}
	var memory, time uint32
	var threads uint8
	if _, err := fmt.Sscanf(fields[3], "m=%d,t=%d,p=%d", &memory, &time, &threads); err != nil ||
		fields[3] != fmt.Sprintf("m=%d,t=%d,p=%d", memory, time, threads) {
		return nil, fmt.Errorf("the hash has the parameters %q, not m=, t= and p=", fields[3])
	}
	if time < 1 || time > argon2Time || threads < 1 || memory < 8*uint32(threads) ||
		memory > argon2Memory {
		return nil, fmt.Errorf("the hash has parameters out of bounds: %s", fields[3])
	}
	salt, err := base64.RawStdEncoding.Strict().DecodeString(fields[4])
	if err != nil || len(salt) < 8 {
		return nil, errors.New("the salt of the hash is not 8 bytes of base64 or more")
	}
	key, err := base64.RawStdEncoding.Strict().DecodeString(fields[5])
	if err != nil || len(key) < 16 || len(key) > 1024 {
		return nil, errors.New("the key of the hash is not 16 to 1024 bytes of base64")
	}
	return func(password []byte) bool {
		made := argon2.IDKey(password, salt, time, memory, threads, uint32(len(key)))
		return subtle.ConstantTimeCompare(made, key) == 1
	}, nil
}
