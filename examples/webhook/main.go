// Command webhook is a broker that asks an HTTP server who may do what, and tells it what happens.
// So that there is something to try it with, the program is that server, too.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks/webhook"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// api is what your own server would be, in whatever language.
func api(secret []byte, out io.Writer) http.Handler {
	mux := http.NewServeMux()
	// signed reads a body into v, if the broker has signed it.
	signed := func(f func(w http.ResponseWriter, body []byte)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
			if err == nil {
				err = webhook.Verify(secret, r.Header, body, 0)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusForbidden)
				return
			}
			f(w, body)
		}
	}
	mux.HandleFunc("POST /connect", signed(func(w http.ResponseWriter, body []byte) {
		var q struct{ Username, Password string }
		if json.Unmarshal(body, &q); q.Username == "jane" && q.Password == "pencil" {
			fmt.Fprint(w, `{"result": "allow", "principal": "jane", "roles": ["operator"], "expires_seconds": 3600}`)
			return
		}
		fmt.Fprint(w, `{"result": "deny"}`)
	}))
	mux.HandleFunc("POST /access", signed(func(w http.ResponseWriter, body []byte) {
		var q struct{ User, Topic string }
		if json.Unmarshal(body, &q); strings.HasPrefix(q.Topic, q.User+"/") {
			fmt.Fprint(w, `{"result": "allow"}`)
			return
		}
		fmt.Fprintf(w, `{"result": "deny", "reason": "only below %s/"}`, q.User)
	}))
	mux.HandleFunc("POST /events", signed(func(_ http.ResponseWriter, body []byte) {
		var d struct{ Events []webhook.Event }
		json.Unmarshal(body, &d)
		for _, e := range d.Events {
			fmt.Fprintln(out, "event:", e.Event, e.ClientID, e.Topic)
		}
	}))
	return mux
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("webhook", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1883", "`address` to listen on")
	apiAddr := fs.String("api", "127.0.0.1:8080", "`address` of the HTTP server")
	fs.Parse(args)

	secret := []byte("shared by broker and server")
	al, err := net.Listen("tcp", *apiAddr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: api(secret, out), ReadHeaderTimeout: 5 * time.Second}
	go server.Serve(al) // ends with server
	defer server.Close()
	url := "http://" + al.Addr().String()

	who, err := webhook.NewAuthenticator(webhook.Options{URL: url + "/connect", Secret: secret})
	if err != nil {
		return err
	}
	what, err := webhook.NewAuthorizer(webhook.Options{URL: url + "/access", Secret: secret})
	if err != nil {
		return err
	}
	events, err := webhook.NewEvents(webhook.EventOptions{URL: url + "/events", Secret: secret})
	if err != nil {
		return err
	}
	b, err := dunlin.New(dunlin.Config{Authenticator: who, Authorizer: what,
		Observer: events.Observer()})
	if err != nil {
		return err
	}
	defer b.Close()
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "listening on", l.Addr())
	_, port, _ := net.SplitHostPort(l.Addr().String())
	fmt.Fprintln(out, "now type this, then change the name, the password or the topic:")
	fmt.Fprintf(out, "  mosquitto_pub -p %s -V 5 -q 1 -u jane -P pencil -t jane/state -m on\n",
		port)
	defer context.AfterFunc(ctx, func() { b.Close() })()
	if err := b.Serve(l); ctx.Err() == nil {
		return err
	}
	b.Close() // when it returns all connections have ended, and nothing more happens
	patient, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return events.Close(patient)
}
