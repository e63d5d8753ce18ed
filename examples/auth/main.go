// Command auth is a broker with an Authenticator and an Authorizer of its own: a shared secret lets
// devices in, and each may write below its own name and read what is for all.
package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A factory knows the secret that the passwords of all devices are made from.
type factory struct{ secret []byte }

// password returns that of a device, as the factory puts it into the device.
func (f factory) password(device string) string {
	h := hmac.New(sha256.New, f.secret)
	io.WriteString(h, device)
	return hex.EncodeToString(h.Sum(nil))
}

// Authenticate accepts a device whose User Name and Password go together, and gives it the role of
// one.
func (f factory) Authenticate(_ context.Context, r *hooks.ConnectRequest) error {
	device := r.Client.Username
	right := hmac.Equal(r.Connect.Password, []byte(f.password(device)))
	if !right || device == "" || strings.ContainsAny(device, "/+#") {
		return packets.Errorf(packets.BadUserNameOrPassword, "not one of our devices")
	}
	r.Grant.Identity = hooks.Identity{Principal: device, Roles: []string{"device"}}
	r.Grant.Limits.PacketSize = 64 << 10
	return nil
}

// Authorize lets a device write to devices/NAME/..., and read that and whatever there is below
// all/.
func (f factory) Authorize(_ context.Context, r *hooks.AccessRequest) error {
	name, _ := r.Client.User()
	switch {
	case strings.HasPrefix(r.Topic, "devices/"+name+"/"):
		return nil
	case r.Action == hooks.ActionSubscribe && strings.HasPrefix(r.Topic, "all/"):
		return nil
	}
	return packets.Errorf(packets.NotAuthorized, "%s may not %s there", name, r.Action)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("auth", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1883", "`address` to listen on")
	secret := fs.String("secret", "change me", "what the passwords are made from")
	fs.Parse(args)

	f := factory{[]byte(*secret)}
	b, err := dunlin.New(dunlin.Config{Authenticator: f, Authorizer: f})
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
	fmt.Fprintln(out, "now type this, then change a letter of the name, the password or the topic:")
	fmt.Fprintf(out, "  mosquitto_pub -p %s -V 5 -q 1 -u d1 -P %s -t devices/d1/state -m on\n",
		port, f.password("d1"))
	defer context.AfterFunc(ctx, func() { b.Close() })()
	if err := b.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}
