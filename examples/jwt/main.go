// Command jwt is a broker for clients that come with a JSON Web Token as password, which says who
// they are and what they may publish and subscribe to.
package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/jwt"
	gojwt "github.com/golang-jwt/jwt/v5"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("jwt", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1883", "`address` to listen on")
	from := fs.String("keys", "",
		"`file or URL` of the issuer's JSON Web Key Set (default a key of the program's own, and "+
			"a token to try it with)")
	issuer := fs.String("issuer", "", "what the claim iss must be (default anything)")
	audience := fs.String("audience", "mqtt", "what the claim aud must hold")
	fs.Parse(args)

	keys, err := findKeys(ctx, *from, *audience, out)
	if err != nil {
		return err
	}
	tokens, err := jwt.New(jwt.Options{Keys: keys, Issuer: *issuer, Audience: *audience})
	if err != nil {
		return err
	}
	b, err := dunlin.New(dunlin.Config{
		Authenticator: tokens,
		EnhancedAuth:  map[string]hooks.EnhancedAuthenticator{jwt.Method: tokens.Enhanced()},
		// for those that send a new one in time
		Authorizer: tokens.Authorizer(),
	})
	if err != nil {
		return err
	}
	defer b.Close()
	// Every message is printed.
	sub, err := b.Subscribe(ctx, "#", &dunlin.SubscribeOptions{Overflow: dunlin.OverflowDropNewest})
	if err != nil {
		return err
	}
	go func() { // ends with b
		for m := range sub.Messages() {
			fmt.Fprintf(out, "%s: %s\n", m.Topic, m.Payload)
		}
	}()
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	fmt.Fprintln(out, "listening on", l.Addr())
	fmt.Fprintln(out, "now type, with a token in place of TOKEN:")
	fmt.Fprintf(out, "  mosquitto_pub -p %s -V 5 -q 1 -u jane -P TOKEN -t users/jane/state -m on\n",
		port)
	defer context.AfterFunc(ctx, func() { b.Close() })()
	if err := b.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}

// findKeys returns the issuer's keys.
func findKeys(ctx context.Context, from, audience string, out io.Writer) (jwt.KeySource, error) {
	switch {
	case strings.HasPrefix(from, "https://") || strings.HasPrefix(from, "http://"):
		return jwt.FetchKeys(ctx, from, nil)
	case from != "":
		file, err := jwt.OpenKeys(from)
		if err == nil {
			// ends with ctx
			go file.Watch(ctx, 0, func(err error) { fmt.Fprintln(out, "new keys:", err) })
		}
		return file, err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	token, err := gojwt.NewWithClaims(gojwt.SigningMethodEdDSA, gojwt.MapClaims{
		"sub": "jane", "aud": audience, "exp": time.Now().Add(time.Hour).Unix(),
		"publish": []string{"users/%u/#"}, "subscribe": []string{"users/%u/#", "all/#"},
	}).SignedString(private)
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(out, "token", token)
	return jwt.NewKeys(jwt.Key{Key: public})
}
