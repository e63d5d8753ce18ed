// Command systemd is a broker that gets its sockets from systemd, or from anything else that speaks
// the same protocol: open descriptors from 3 on, and LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES in
// the environment. So it needs no right to open a low port, and connections that are made while it
// is restarted wait instead of failing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("systemd", flag.ExitOnError)
	addr := fs.String("listen", "",
		"`address` to listen on when nobody hands a socket over (default none: that is an error)")
	fs.Parse(args)

	ls, err := inherited(os.Getenv, os.Getpid(), 3)
	if err != nil && *addr != "" {
		ls = make([]net.Listener, 1)
		ls[0], err = net.Listen("tcp", *addr)
	}
	if err != nil {
		return err
	}
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
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
	stop := context.AfterFunc(ctx, func() { b.Shutdown(context.Background()) })
	defer stop()
	errs := make(chan error, len(ls))
	for _, l := range ls {
		fmt.Fprintln(out, "serving", l.Addr())
		go func() { errs <- b.Serve(l) }() // ends with b
	}
	if _, port, err := net.SplitHostPort(ls[0].Addr().String()); err == nil {
		fmt.Fprintf(out, "now type:\n  mosquitto_pub -p %s -t hello -m hi\n", port)
	}
	if err := <-errs; err != dunlin.ErrBrokerClosed {
		return err
	}
	return nil
}

// inherited returns the listeners that were handed to this process, the first with descriptor
// first.
func inherited(getenv func(string) string, pid, first int) ([]net.Listener, error) {
	if getenv("LISTEN_PID") != strconv.Itoa(pid) {
		return nil, errors.New(
			"LISTEN_PID is not this process: start it by a systemd socket unit, or with " +
				"systemd-socket-activate")
	}
	n, err := strconv.Atoi(getenv("LISTEN_FDS"))
	if err != nil || n < 1 {
		return nil, fmt.Errorf("LISTEN_FDS is %q, it must say how many sockets there are",
			getenv("LISTEN_FDS"))
	}
	names := strings.Split(getenv("LISTEN_FDNAMES"), ":")
	var ls []net.Listener
	for i := range n {
		name := "socket " + strconv.Itoa(i)
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		f := os.NewFile(uintptr(first+i), name)
		l, err := net.FileListener(f) // a copy of the descriptor
		f.Close()
		if err != nil {
			for _, l := range ls {
				l.Close()
			}
			return nil, fmt.Errorf("%s is not a listening stream socket: %w", name, err)
		}
		ls = append(ls, l)
	}
	return ls, nil
}
