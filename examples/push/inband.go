package main

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/dunlin-mqtt/dunlin/examples/internal/inband"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is for clients that publish their token.

const (
	authTopic     = "service/auth"
	inbandPrefix  = "inband/" // of the Client Identifiers at the broker
	inbandTimeout = 10 * time.Second
	maxInband     = 1000 // connections that have not shown their token yet
)

// inbandKey is in the context of connections that serveInband has accepted.
type inbandKey struct{}

// serveInband serves clients that show their token in a PUBLISH until l is closed.
func (s *service) serveInband(ctx context.Context, l net.Listener) error {
	places := make(chan struct{}, maxInband)
	o := inband.Options{Topic: authTopic, MaxConnect: maxConnect, Timeout: inbandTimeout,
		Connack: s.greet}
	for {
		nc, err := l.Accept()
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return err
		}
		if err != nil { // such as too many open files
			time.Sleep(10 * time.Millisecond)
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			nc.Close()
			continue
		}
		if s.broker.Admits(nc.RemoteAddr()) != nil {
			nc.Close()
			<-places
			continue
		}
		go func() { // ends within inbandTimeout, or with the connection
			c, err := inband.Ask(nc, o)
			<-places
			if err != nil {
				nc.Close()
				return
			}
			s.broker.ServeConn(context.WithValue(ctx, inbandKey{}, true), c)
		}()
	}
}

// greet says in the CONNACK what the broker will say.
func (s *service) greet(p *packets.Connect, ack *packets.Connack) {
	if _, ok := s.broker.Session(inbandPrefix + p.ClientID); ok {
		ack.SessionPresent = !p.CleanStart
	}
	for id, n := range map[packets.Property]uint32{packets.ReceiveMaximum: receiveMaximum,
		packets.MaximumPacketSize: maxPacket, packets.RetainAvailable: 0,
		packets.SharedSubscriptionAvailable: 0} {
		ack.Properties = ack.Properties.AppendUint(id, n)
	}
	const most = uint32(maxTTL / time.Second)
	if n, _ := p.Properties.Uint(packets.SessionExpiryInterval); n > most {
		ack.Properties = ack.Properties.AppendUint(packets.SessionExpiryInterval, most)
	}
}
