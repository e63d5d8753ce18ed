package auth_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// login asks an Authenticator about a User Name and a Password and prints who the client is.
func login(a hooks.Authenticator, user, password string) {
	r := &hooks.ConnectRequest{
		Client: &hooks.Client{ID: "c1", Username: user, HasUsername: true},
		Connect: &packets.Connect{HasUsername: true, Username: user, HasPassword: true,
			Password: []byte(password)},
		Grant: new(hooks.Grant),
	}
	if err := a.Authenticate(context.Background(), r); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(r.Grant.Identity.Principal, r.Grant.Identity.Roles)
}

// Users from the program's own code or database.
func ExampleNewUsers() {
	users, err := auth.NewUsers([]auth.User{{
		// 0 for as many iterations as a real one should have
		Name: "jane", Hash: auth.Hash("pencil", 1000),
		Grant: &hooks.Grant{Identity: hooks.Identity{Roles: []string{"operator"}}},
	}})
	if err != nil {
		log.Fatal(err)
	}
	passwords := auth.NewPasswords(users)
	login(passwords, "jane", "pencil")
	login(passwords, "jane", "brush")
	login(passwords, "nobody", "pencil")
	// Output:
	// jane [operator]
	// Bad User Name or Password: bad user name or password
	// Bad User Name or Password: bad user name or password
}

// A password file of Mosquitto, also for SCRAM-SHA-256, with a secret that hides which users exist.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "auth")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "passwords")
	if err := os.WriteFile(name, []byte("jane:"+auth.HashSCRAM("pencil", 0)+"\n"), 0o600); err != nil {
		log.Fatal(err)
	}
	file, err := auth.Open(name)
	if err != nil {
		log.Fatal(err)
	}
	secret, err := auth.SecretFile(filepath.Join(dir, "secret")) // made the first time
	if err != nil {
		log.Fatal(err)
	}
	if err := file.SetSecret(secret); err != nil {
		log.Fatal(err)
	}
	// In a program: go file.Watch(ctx, 0, nil), and
	// Config.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{auth.SCRAMSHA256: file.SCRAM()}
	login(file, "jane", "pencil")
	// Output: jane []
}
