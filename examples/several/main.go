// Command several runs several brokers in one process, one for each tenant, that know nothing of one another: there is no state but what a Broker
// holds. The program reads the messages of all of them.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

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
	fs := flag.NewFlagSet("several", flag.ExitOnError)
	tenants := fs.String("tenants", "red=127.0.0.1:1883,blue=127.0.0.1:1884", "`list` of name=address")
	fs.Parse(args)

	var brokers []*dunlin.Broker
	var readers sync.WaitGroup
	var printing sync.Mutex
	defer func() {
		stop, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		for _, b := range brokers {
			b.Shutdown(stop)
		}
		readers.Wait()
	}()
	for _, t := range strings.Split(*tenants, ",") {
		name, addr, ok := strings.Cut(t, "=")
		if !ok {
			return fmt.Errorf("-tenants: %q is not name=address", t)
		}
		// Each may have a Config of its own: its users, its limits, its store.
		b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
		if err != nil {
			return err
		}
		brokers = append(brokers, b)
		sub, err := b.Subscribe(ctx, "#", &dunlin.SubscribeOptions{Overflow: dunlin.DropNewest})
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		go b.Serve(l) // ends with b
		fmt.Fprintf(out, "%s listens on %v\n", name, l.Addr())
		readers.Go(func() { // ends with ctx
			for m := range sub.Messages() {
				printing.Lock()
				fmt.Fprintf(out, "%s: %s %s\n", name, m.Topic, m.Payload)
				printing.Unlock()
			}
		})
	}
	<-ctx.Done()
	return nil
}
