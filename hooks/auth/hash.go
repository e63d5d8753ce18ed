package auth

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	// hashIterations is the default of Hash: about a tenth of a second of one processor.
	hashIterations = 210_000
	// maxIterations is an upper limit for a check that takes far too long.
	maxIterations = 10_000_000
	saltSize      = 16
	// saltSize512 is the only salt size that Mosquitto 2.0 accepts: 96 bits. Two equal salts are
	// very unlikely.
	saltSize512 = 12
)

// Hash returns the hash of a password in the format of mosquitto_passwd: PBKDF2 with SHA-512 and a
// random salt. It begins with $7$. iterations is how often the password is hashed, now and at each
// CONNECT; zero means 210,000. Mosquitto's own default of 101 does not protect against somebody who
// has the file.
func Hash(password string, iterations int) string {
	if iterations <= 0 {
		iterations = hashIterations
	}
	salt := randomBytes(saltSize512)
	key := derive512([]byte(password), salt, iterations)
	return fmt.Sprintf("$7$%d$%s$%s", iterations, encode(salt), encode(key))
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

func encode(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func derive512(password, salt []byte, iterations int) []byte {
	key, err := pbkdf2.Key(sha512.New, string(password), salt, iterations, sha512.Size)
	if err != nil {
		panic("BUG: " + err.Error()) // only for parameters that the callers do not use
	}
	return key
}

// pbkdf2SHA512 is the Scheme of $7$: iterations, salt, key.
func pbkdf2SHA512(hash string) (Verifier, error) {
	fields, found := strings.CutPrefix(hash, "$7$")
	if !found {
		return nil, nil
	}
	n, rest, _ := strings.Cut(fields, "$")
	iterations, err := parseIterations(n)
	if err != nil {
		return nil, err
	}
	salt, key, err := saltAndKey(rest)
	if err != nil {
		return nil, err
	}
	return func(password []byte) bool {
		return subtle.ConstantTimeCompare(derive512(password, salt, iterations), key) == 1
	}, nil
}

// saltedSHA512 is the Scheme of $6$, from before Mosquitto 2.0: salt, SHA-512 of password and salt.
func saltedSHA512(hash string) (Verifier, error) {
	fields, found := strings.CutPrefix(hash, "$6$")
	if !found {
		return nil, nil
	}
	salt, key, err := saltAndKey(fields)
	if err != nil {
		return nil, err
	}
	return func(password []byte) bool {
		h := sha512.New()
		h.Write(password)
		h.Write(salt)
		return subtle.ConstantTimeCompare(h.Sum(nil), key) == 1
	}, nil
}

func parseIterations(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxIterations {
		return 0, fmt.Errorf("the hash says %q iterations, not 1 to %d", s, maxIterations)
	}
	return n, nil
}

// saltAndKey decodes the end of a hash.
func saltAndKey(s string) (salt, key []byte, err error) {
	first, second, _ := strings.Cut(s, "$")
	if salt, err = base64.StdEncoding.DecodeString(first); err != nil || len(salt) == 0 {
		return nil, nil, errors.New("the salt of the hash is not base64")
	}
	if key, err = base64.StdEncoding.DecodeString(second); err != nil || len(key) != sha512.Size {
		return nil, nil, fmt.Errorf("the hash does not end with %d bytes of base64", sha512.Size)
	}
	return salt, key, nil
}
