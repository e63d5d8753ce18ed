// Command several runs several brokers in one process, one for each tenant, that know nothing of
// one another: there is no state but what a Broker holds. The program reads the messages of all of
// them.
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
	addrs := fs.String("listen", "127.0.0.1:1883,127.0.0.1:1884",
		"`addresses`, one for each tenant")
	tenants := fs.String("tenants", "red,blue", "`names` of the tenants")
	fs.Parse(args)
	names, listen := strings.Split(*tenants, ","), strings.Split(*addrs, ",")
	if len(listen) != len(names) {
		return fmt.Errorf("-listen has %d addresses for %d tenants, give one for each", len(listen),
			len(names))
	}

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
	for i, name := range names {
		// Each may have a Config of its own: its users, its limits, its store.
		b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
		if err != nil {
			return err
		}
		brokers = append(brokers, b)
		o := &dunlin.SubscribeOptions{Overflow: dunlin.OverflowDropNewest}
		sub, err := b.Subscribe(ctx, "#", o)
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", listen[i])
		if err != nil {
			return err
		}
		go b.Serve(l) // ends with b
		_, port, _ := net.SplitHostPort(l.Addr().String())
		fmt.Fprintf(out, "%s listens on %v\n", name, l.Addr())
		fmt.Fprintf(out, "now type:\n  mosquitto_pub -p %s -t hello -m 'for %s'\n", port, name)
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
