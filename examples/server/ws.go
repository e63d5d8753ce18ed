package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/listeners/websocket"
)

// This file is MQTT over WebSocket: -ws, -wss, -ws-path, -ws-origin, -ws-trusted-proxy.

// web are the flags.
type web struct {
	listen, secure, origins, proxies list
	path                             string // empty: every path, as in Mosquitto
}

func (w *web) flags(fs *flag.FlagSet) {
	fs.Var(&w.listen, "ws", "`address` to listen on for MQTT over WebSocket, repeatable")
	fs.Var(&w.secure, "wss", "`address` to listen on for MQTT over WebSocket with TLS, "+
		"repeatable; needs -tls-cert and -tls-key")
	fs.StringVar(&w.path, "ws-path", "", "`path` of MQTT over WebSocket, such as /mqtt (default "+
		"any)")
	fs.Var(&w.origins, "ws-origin",
		"`host` of web pages that may connect, such as example.com or https://*.example.com, "+
			"repeatable; * for all (default the same host only)")
	fs.Var(&w.proxies, "ws-trusted-proxy",
		"address or `prefix` of a reverse proxy whose X-Forwarded-For is believed, repeatable")
}

// check says what does not go together.
func (w *web) check() error {
	switch {
	case len(w.listen)+len(w.secure) == 0 && (w.path != "" || len(w.origins)+len(w.proxies) > 0):
		return errors.New("-ws-path, -ws-origin and -ws-trusted-proxy need -ws or -wss")
	case w.path != "" && w.path[0] != '/':
		return fmt.Errorf("-ws-path %q: expected a path that begins with /, as in /mqtt", w.path)
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

// serve serves HTTP on a listener, for the broker. Other requests get the files in the folder
// httpDir, if there is one. admit is the Broker's Admits.
func (w *web) serve(below net.Listener, httpDir string, admit func(net.Addr) error) (net.Listener,
	error) {
	proxies, err := w.trusted()
	if err != nil {
		below.Close()
		return nil, err
	}
	l := websocket.New(websocket.Options{Origins: w.origins, TrustedProxies: proxies, Admit: admit})
	s := &webListener{
		Listener: l, addr: below.Addr(), ended: make(chan struct{}),
		srv: &http.Server{ // the times are for HTTP, and end with the handshake
			Handler: w.handler(l, httpDir), ConnState: l.ConnState, MaxHeaderBytes: 16 << 10,
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

// handler gives requests at the path to l, or all WebSocket handshakes if it is any path. Other
// requests get files of a folder.
func (w *web) handler(l http.Handler, folder string) http.Handler {
	path := w.path
	files := http.NotFoundHandler()
	if folder != "" {
		files = http.FileServer(http.Dir(folder))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == path || path == "" && strings.EqualFold(r.Header.Get("Upgrade"),
			"websocket") {
			l.ServeHTTP(w, r)
			return
		}
		files.ServeHTTP(w, r)
	})
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
