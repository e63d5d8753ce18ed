// Command chat is a chat: rooms are topics, what everybody said last is retained for whoever comes,
// and when a connection breaks, the others are told, by a Will. The program that runs it takes part
// from its terminal; everybody else comes with an MQTT client.
package main

import (
	"bufio"
	"context"
	"errors"
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

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stdin); err != nil {
		log.Fatal(err)
	}
}

// allow lets everybody read the rooms, and write only under a name of one's own: chat/ROOM/NAME.
func allow(_ context.Context, r *hooks.AccessRequest) error {
	levels := strings.Split(r.Topic, "/")
	switch {
	case levels[0] != "chat":
		return packets.Errorf(packets.NotAuthorized, "there is nothing but chat/ROOM/NAME")
	case r.Action == hooks.ActionPublish && (len(levels) != 3 || levels[2] != r.Client.Username):
		return packets.Errorf(packets.NotAuthorized, "publish to chat/ROOM/%s", r.Client.Username)
	}
	return nil
}

// named wants everybody to have a name that is one level of a topic.
func named(_ context.Context, r *hooks.ConnectRequest) error {
	if n := r.Client.Username; n == "" || strings.ContainsAny(n, "/+#") {
		return packets.Errorf(packets.BadUserNameOrPassword, "come with a user name, without / + #")
	}
	return nil
}

func run(ctx context.Context, args []string, out io.Writer, in io.Reader) error {
	fs := flag.NewFlagSet("chat", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1883", "`address` to listen on")
	room := fs.String("room", "lobby", "`room` to be in")
	name := fs.String("name", "host", "who is at this terminal")
	fs.Parse(args)

	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AuthenticatorFunc(named),
		Authorizer: hooks.AuthorizerFunc(allow)})
	if err != nil {
		return err
	}
	defer b.Close()
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	go b.Serve(l) // ends with b
	fmt.Fprintf(out, "listening on %v\n", l.Addr())
	_, port, _ := net.SplitHostPort(l.Addr().String())
	fmt.Fprintf(out, "read:  mosquitto_sub -p %s -u ann -t 'chat/%s/+' -F '%%t: %%p'\n", port,
		*room)
	fmt.Fprintf(out, "write: mosquitto_pub -p %s -u ann -t chat/%s/ann -l\n", port, *room)

	sub, err := b.Subscribe(ctx, "chat/"+*room+"/+", &dunlin.SubscribeOptions{NoLocal: true})
	if err != nil {
		return err
	}
	go func() { // ends with in, or is left behind in a read of the terminal
		for s := bufio.NewScanner(in); s.Scan(); {
			sub.Publish(ctx, &dunlin.Message{Topic: "chat/" + *room + "/" + *name,
				Payload: []byte(s.Text()), Retain: true})
		}
	}()
	for {
		m, err := sub.Next(ctx)
		switch {
		case errors.Is(err, context.Canceled):
			return nil
		case err != nil:
			return err
		}
		fmt.Fprintf(out, "%s: %s\n", m.Topic[strings.LastIndexByte(m.Topic, '/')+1:], m.Payload)
	}
}
