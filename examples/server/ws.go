package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/dunlin-mqtt/dunlin/listeners/websocket"
)

// This file is MQTT over WebSocket: -ws, -ws-origin, -ws-trusted-proxy.

// wsPath is where the broker is; the path has no meaning for MQTT.
const wsPath = "/mqtt"

// web are the flags.
type web struct{ listen, origins, proxies list }

func (w *web) flags(fs *flag.FlagSet) {
	fs.Var(&w.listen, "ws", "`address` to listen on for MQTT over WebSocket, at the path "+wsPath+", repeatable")
	fs.Var(&w.origins, "ws-origin", "`host` of web pages that may connect, such as example.com or https://*.example.com, repeatable; * for all (default the same host only)")
	fs.Var(&w.proxies, "ws-trusted-proxy", "address or `prefix` of a reverse proxy whose X-Forwarded-For is believed, repeatable")
}

// check says what does not go together.
func (w *web) check() error {
	if len(w.listen) == 0 && len(w.origins)+len(w.proxies) > 0 {
		return errors.New("-ws-origin and -ws-trusted-proxy need -ws")
	}
	_, err := w.trusted()
	return err
}

// trusted is -ws-trusted-proxy.
func (w *web) trusted() (ps []netip.Prefix, err error) {
	for _, s := range w.proxies {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			ip, ipErr := netip.ParseAddr(s)
			if ipErr != nil {
				return nil, fmt.Errorf("-ws-trusted-proxy %q is neither an address nor a prefix", s)
			}
			p = netip.PrefixFrom(ip, ip.BitLen())
		}
		ps = append(ps, p)
	}
	return ps, nil
}

// open serves HTTP on an address, for the broker alone. admit is the Broker's Admits.
func (w *web) open(addr string, listen func(string) (net.Listener, error), admit func(net.Addr) error) (net.Listener, error) {
	proxies, err := w.trusted()
	if err != nil {
		return nil, err
	}
	below, err := listen(addr)
	if err != nil {
		return nil, err
	}
	l := websocket.New(websocket.Options{Origins: w.origins, TrustedProxies: proxies, Admit: admit})
	mux := http.NewServeMux()
	mux.Handle(wsPath, l)
	s := &webListener{
		Listener: l, addr: below.Addr(), ended: make(chan struct{}),
		srv: &http.Server{ // the times are for HTTP, and end with the handshake
			Handler: mux, ConnState: l.ConnState, MaxHeaderBytes: 16 << 10,
			ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		},
	}
	go func() { // Close waits for it
		defer close(s.ended)
		s.srv.Serve(below) // ends by Close, or when the socket fails: then nobody connects any more
		l.Close()
	}()
	return s, nil
}

// A webListener takes its HTTP server along when it is closed.
type webListener struct {
	*websocket.Listener
	srv   *http.Server
	addr  net.Addr
	ended chan struct{}
}

func (s *webListener) Addr() net.Addr { return s.addr }

// Close closes the port; connections that the broker has go on.
func (s *webListener) Close() error {
	err := s.srv.Close()
	<-s.ended
	return err
}
