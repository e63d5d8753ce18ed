// Command bridge is a broker that is bridged to another one by autopaho: what is published here
// under the topics of -out goes there, and what is published there under those of -in comes here.
// While the other broker is away, messages of QoS 1 and 2 wait in a named Subscription, and there
// in the Session of the bridge. Nothing comes back to where it came from.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// A bridge takes messages from here to there and back.
type bridge struct {
	local *dunlin.Subscription
	in    []string
	out   io.Writer
	retry time.Duration // between attempts to send
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("bridge", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1884", "`address` to listen on")
	remote := fs.String("remote", "mqtt://127.0.0.1:1883", "`URL` of the other broker")
	id := fs.String("id", "dunlin-bridge", "Client Identifier there")
	outbound := fs.String("out", "out/#", "Topic `filters` of what goes there, separated by commas")
	inbound := fs.String("in", "in/#", "Topic `filters` of what comes here")
	retry := fs.Duration("retry", 5*time.Second, "how long to wait between attempts to connect")
	fs.Parse(args)
	server, err := url.Parse(*remote)
	if err != nil {
		return err
	}
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		return err
	}
	defer b.Close()
	br := &bridge{in: strings.Split(*inbound, ","), out: out, retry: *retry}
	filters := strings.Split(*outbound, ",")
	o := &dunlin.SubscribeOptions{Name: *id, QoS: 2, NoLocal: true, RetainAsPublished: true,
		ManualAck: true, Buffer: 10_000}
	if br.local, err = b.Subscribe(ctx, filters[0], o); err != nil {
		return err
	}
	for _, f := range filters[1:] {
		if err := br.local.Add(f, o); err != nil {
			return err
		}
	}
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	go b.Serve(l) // ends with b
	_, port, _ := net.SplitHostPort(l.Addr().String())
	fmt.Fprintln(out, "listening on", l.Addr())
	fmt.Fprintln(out, "now subscribe there and publish here:")
	fmt.Fprintf(out, "  mosquitto_sub -L %s/out/# -v\n", *remote)
	fmt.Fprintf(out, "  mosquitto_pub -p %s -t out/hello -m hi\n", port)

	cm, err := autopaho.NewConnection(ctx, autopaho.ClientConfig{
		ServerUrls: []*url.URL{server}, KeepAlive: 30, SessionExpiryInterval: 7 * 24 * 3600,
		ReconnectBackoff: func(int) time.Duration { return *retry },
		OnConnectionUp: func(cm *autopaho.ConnectionManager, _ *paho.Connack) {
			go br.subscribe(ctx, cm) // ends after one exchange
		},
		OnConnectError: func(err error) { fmt.Fprintln(out, "not connected:", err) },
		ClientConfig: paho.ClientConfig{
			ClientID:      *id,
			PacketTimeout: 2 * time.Second,
			// for an acknowledgement, also when the connection has broken meanwhile
			OnPublishReceived: []func(paho.PublishReceived) (bool,
				error){func(p paho.PublishReceived) (bool, error) {
				return true,
					br.receive(ctx, p.Packet)
			}},
		},
	})
	if err != nil {
		return err
	}
	err = br.send(ctx, cm)
	<-cm.Done() // ends with ctx
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// subscribe subscribes there. With No Local the other broker does not send back what it got from
// here.
func (br *bridge) subscribe(ctx context.Context, cm *autopaho.ConnectionManager) {
	s := new(paho.Subscribe)
	for _, f := range br.in {
		s.Subscriptions = append(s.Subscriptions,
			paho.SubscribeOptions{Topic: f, QoS: 2, NoLocal: true, RetainAsPublished: true})
	}
	if _, err := cm.Subscribe(ctx, s); err != nil {
		fmt.Fprintln(br.out, "not subscribed there:", err)
		return
	}
	fmt.Fprintln(br.out, "bridged")
}

// send takes messages there. One that the other broker has not acknowledged when a connection
// breaks is sent again on the next.
func (br *bridge) send(ctx context.Context, cm *autopaho.ConnectionManager) error {
	for {
		m, err := br.local.Next(ctx)
		if err != nil {
			return err
		}
		p := &paho.Publish{Topic: m.Topic, Payload: m.Payload, QoS: byte(m.QoS), Retain: m.Retain,
			Properties: propertiesThere(m)}
		for sent := false; !sent; {
			if err := cm.AwaitConnection(ctx); err != nil {
				return err
			}
			_, err := cm.Publish(ctx, p)
			if sent = err == nil; !sent {
				fmt.Fprintf(br.out, "%s is not there yet: %v\n", m.Topic, err)
				select { // the connection may be broken, and not known to be
				case <-time.After(br.retry):
				case <-ctx.Done():
				}
			}
		}
		m.Ack()
	}
}

// receive publishes here what came from there. It is acknowledged there when this returns.
func (br *bridge) receive(ctx context.Context, p *paho.Publish) error {
	return br.local.Publish(ctx, &dunlin.Message{
		Topic: p.Topic, Payload: p.Payload, QoS: packets.QoS(p.QoS), Retain: p.Retain,
		Properties: propertiesHere(p.Properties),
	})
}

func propertiesThere(m *dunlin.Incoming) *paho.PublishProperties {
	q := &paho.PublishProperties{ContentType: m.ContentType(), ResponseTopic: m.ResponseTopic(),
		CorrelationData: m.CorrelationData()}
	if n, ok := m.Properties.Uint(packets.PayloadFormatIndicator); ok {
		f := byte(n)
		q.PayloadFormat = &f
	}
	if !m.Expires.IsZero() {
		left := uint32(max(time.Until(m.Expires), 0) / time.Second)
		q.MessageExpiry = &left
	}
	for k, v := range m.Properties.User() {
		q.User.Add(k, v)
	}
	return q
}

func propertiesHere(q *paho.PublishProperties) (p packets.Properties) {
	if q == nil {
		return nil
	}
	if q.PayloadFormat != nil {
		p = p.AppendUint(packets.PayloadFormatIndicator, uint32(*q.PayloadFormat))
	}
	if q.MessageExpiry != nil {
		p = p.AppendUint(packets.MessageExpiryInterval, *q.MessageExpiry)
	}
	if q.ContentType != "" {
		p = p.AppendText(packets.ContentType, q.ContentType)
	}
	if q.ResponseTopic != "" {
		p = p.AppendText(packets.ResponseTopic, q.ResponseTopic)
	}
	if q.CorrelationData != nil {
		p = p.AppendBytes(packets.CorrelationData, q.CorrelationData)
	}
	for _, u := range q.User {
		p = p.AppendUser(u.Key, u.Value)
	}
	return p
}
