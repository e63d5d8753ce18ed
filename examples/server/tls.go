package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"

	"github.com/dunlin-mqtt/dunlin/hooks/auth/tlsfiles"
	"github.com/dunlin-mqtt/dunlin/listeners/quic"
)

// This file is the listeners, with TLS and the PROXY protocol: -tls-listen, -tls-cert and so on, -proxy-protocol.

// transport are the flags.
type transport struct {
	listen, tlsListen, proxyFrom list
	files                        tlsfiles.Options
	identity                     bool
	proxyProtocol                int
	localOnly                    bool // only this machine may connect
	web                          web
	quic                         list
}

func (tr *transport) flags(fs *flag.FlagSet) {
	fs.Var(&tr.listen, "listen", "`address` to listen on, repeatable: host:port, or unix:path (default 127.0.0.1:1883 unless there is a -tls-listen, -ws or -quic)")
	fs.Var(&tr.tlsListen, "tls-listen", "`address` to listen on with TLS, repeatable; needs -tls-cert and -tls-key")
	fs.StringVar(&tr.files.Certificate, "tls-cert", "", "PEM `file` with the server's certificate and its intermediate ones")
	fs.StringVar(&tr.files.Key, "tls-key", "", "PEM `file` with the server's private key")
	fs.StringVar(&tr.files.ClientCAs, "tls-client-ca", "", "PEM `file` with the authorities of client certificates; clients are then asked for one")
	fs.BoolVar(&tr.files.RequireClient, "tls-require-cert", false, "refuse clients without a certificate")
	fs.StringVar(&tr.files.CRL, "tls-crl", "", "`file` with the certificate revocation lists of the authorities in -tls-client-ca")
	fs.BoolVar(&tr.identity, "tls-identity-as-username", false, "on TLS the Common Name of the client's certificate is its user name, and no password is asked for")
	fs.IntVar(&tr.proxyProtocol, "proxy-protocol", 0, "`version`, 1 or 2, of the PROXY protocol that has to begin every connection over TCP (default none)")
	fs.Var(&tr.proxyFrom, "proxy-from", "address or `prefix` of the proxies, repeatable; connections from elsewhere are closed (default 127.0.0.0/8 and ::1)")
	tr.web.flags(fs)
	fs.Var(&tr.quic, "quic", "UDP `address` to listen on for MQTT over QUIC, repeatable; without -tls-cert its certificate is made up at each start")
}

// check says what does not go together. With localOnly nobody is verified, so that only this machine may connect.
func (tr *transport) check(localOnly bool) error {
	tr.localOnly = localOnly
	switch {
	case localOnly && (tr.proxyProtocol != 0 || len(tr.web.proxies) > 0):
		return fmt.Errorf("-proxy-protocol and -ws-trusted-proxy bring clients from elsewhere: %s", opensUp)
	case (len(tr.tlsListen) > 0 || tr.files != tlsfiles.Options{} && len(tr.quic) > 0) && (tr.files.Certificate == "" || tr.files.Key == ""):
		return errors.New("-tls-listen needs -tls-cert and -tls-key")
	case len(tr.tlsListen)+len(tr.quic) == 0 && (tr.identity || tr.files != tlsfiles.Options{}):
		return errors.New("the flags that begin with -tls need -tls-listen or -quic")
	case tr.files.ClientCAs == "" && (tr.files.RequireClient || tr.files.CRL != "" || tr.identity):
		return errors.New("-tls-require-cert, -tls-crl and -tls-identity-as-username need -tls-client-ca")
	case tr.proxyProtocol < 0 || tr.proxyProtocol > 2:
		return fmt.Errorf("-proxy-protocol %d is not 1 or 2", tr.proxyProtocol)
	case tr.proxyProtocol == 0 && len(tr.proxyFrom) > 0:
		return errors.New("-proxy-from needs -proxy-protocol")
	}
	if err := tr.web.check(); err != nil {
		return err
	}
	if len(tr.listen)+len(tr.tlsListen)+len(tr.web.listen)+len(tr.quic) == 0 {
		tr.listen = list{"127.0.0.1:1883"}
	}
	return nil
}

// opensUp is what to do about a listener that is refused because nobody is verified.
const opensUp = "give -password-file to say who may connect, or -allow-anonymous to let everybody in"

// isLocal says whether only this machine can connect to a.
func isLocal(a net.Addr) bool {
	switch a := a.(type) {
	case *net.UnixAddr:
		return true
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UDPAddr:
		return a.IP.IsLoopback()
	}
	return false
}

// open opens all listeners, or none. What can be reloaded is added to r. admit is the Broker's Admits.
func (tr *transport) open(r reloads, log *slog.Logger, admit func(net.Addr) error) (ls []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range ls {
				l.Close()
			}
			ls = nil
		}
	}()
	add := func(addrs list, open func(addr string) (net.Listener, error)) {
		for _, addr := range addrs {
			var l net.Listener
			if err == nil {
				if l, err = open(addr); err == nil {
					ls = append(ls, l)
					if tr.localOnly && !isLocal(l.Addr()) {
						err = fmt.Errorf("not listening on %s, which is not only for this machine: %s", addr, opensUp)
					}
				}
			}
		}
	}
	add(tr.listen, tr.openOne)
	add(tr.web.listen, func(addr string) (net.Listener, error) { return tr.web.open(addr, tr.openOne, admit) })
	if err != nil || len(tr.tlsListen)+len(tr.quic) == 0 {
		return ls, err
	}
	conf, err := tr.tlsConfig(r, log)
	if err != nil {
		return ls, err
	}
	add(tr.tlsListen, func(addr string) (net.Listener, error) {
		l, err := tr.openOne(addr)
		if err != nil {
			return nil, err
		}
		return tls.NewListener(l, conf), nil
	})
	add(tr.quic, func(addr string) (net.Listener, error) {
		return quic.Listen("udp", addr, conf, quic.Options{Admit: admit})
	})
	return ls, err
}

// tlsConfig is made of the files, or of a certificate that is made up for -quic.
func (tr *transport) tlsConfig(r reloads, log *slog.Logger) (*tls.Config, error) {
	if tr.files == (tlsfiles.Options{}) {
		return selfSigned(log)
	}
	files, err := tlsfiles.Open(tr.files)
	if err != nil {
		return nil, err
	}
	r["TLS files"] = files
	return files.Config(), nil
}

func (tr *transport) openOne(addr string) (net.Listener, error) {
	l, err := listen(addr)
	if err != nil || tr.proxyProtocol == 0 || l.Addr().Network() == "unix" {
		return l, err
	}
	return newProxied(l, byte(tr.proxyProtocol), tr.proxyFrom)
}
