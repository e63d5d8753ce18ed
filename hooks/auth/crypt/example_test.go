package crypt_test

import (
	"fmt"
	"log"
	"strings"

	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/hooks/auth/crypt"
)

// The file of auth.Open may have hashes of bcrypt, as htpasswd -B makes them.
func ExampleBcrypt() {
	const line = "jane:$2a$12$tsYwMZhKoryLKqvCIRtQL.zYZO3AySzDgEL8IPlEUQDIuY5shHHYK"
	users, err := auth.ParseUsers(strings.NewReader(line), "passwords", crypt.Bcrypt,
		crypt.Argon2id)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(users.Len(), "user")
	_, hash, _ := strings.Cut(line, ":")
	is, err := crypt.Bcrypt(hash)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(is([]byte("x")), is([]byte("y")))
	// Output:
	// 1 user
	// true false
}
