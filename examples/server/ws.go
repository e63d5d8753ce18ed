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

// This file is MQTT over WebSocket: -ws, -ws-origin, -ws-trusted-proxy.

// wsPath is where the broker is; the path has no meaning for MQTT.
const wsPath = "/mqtt"

// web are the flags.
type web struct {
	listen, origins, proxies list
	anyPath                  bool // the broker is at every path, as in Mosquitto
}

func (w *web) flags(fs *flag.FlagSet) {
	fs.Var(&w.listen, "ws",
		"`address` to listen on for MQTT over WebSocket, at the path "+wsPath+", repeatable")
	fs.Var(&w.origins, "ws-origin",
		"`host` of web pages that may connect, such as example.com or https://*.example.com, "+
			"repeatable; * for all (default the same host only)")
	fs.Var(&w.proxies, "ws-trusted-proxy",
		"address or `prefix` of a reverse proxy whose X-Forwarded-For is believed, repeatable")
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

// serve serves HTTP on a listener, for the broker: at wsPath, or at every path if it comes from a
// mosquitto.conf. Other requests get the files in the folder httpDir, if there is one. admit is the
// Broker's Admits.
func (w *web) serve(below net.Listener, httpDir string, admit func(net.Addr) error) (net.Listener,
	error) {
	proxies, err := w.trusted()
	if err != nil {
		below.Close()
		return nil, err
	}
	l := websocket.New(websocket.Options{Origins: w.origins, TrustedProxies: proxies, Admit: admit})
	mux := http.NewServeMux()
	mux.Handle(wsPath, l)
	if w.anyPath {
		mux = http.NewServeMux()
		mux.Handle("/", anyPath(l, httpDir))
	}
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

// anyPath gives WebSocket handshakes to l, and files of a folder to all other requests.
func anyPath(l http.Handler, folder string) http.Handler {
	files := http.NotFoundHandler()
	if folder != "" {
		files = http.FileServer(http.Dir(folder))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
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
