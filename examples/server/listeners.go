package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/auth/tlsfiles"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/listeners/quic"
)

// This file is the listeners: -listen, -tls-listen, -ws, -wss, -quic, -p and those of a
// mosquitto.conf.

// transport are the flags.
type transport struct {
	listen, tlsListen, ports list
	quic                     list
	web                      web
	proxy                    proxy
	tlsFlags
	unixMode fileMode
	byFile   bool         // there is a mosquitto.conf
	more     []*listening // those of it
	all      []*listening // all of them; check makes them
	configs  map[tlsKey]*tls.Config
}

func (tr *transport) flags(fs *flag.FlagSet) {
	fs.Var(&tr.listen, "listen", "`address` to listen on, repeatable: host:port, or unix:path "+
		"(default 127.0.0.1:1883 unless there is a -tls-listen, -ws, -wss or -quic)")
	fs.Var(&tr.ports, "p", "`port` of this machine to listen on, as mosquitto -p, repeatable; "+
		"only this machine can connect to it")
	fs.Var(&tr.tlsListen, "tls-listen", "`address` to listen on with TLS, repeatable; needs "+
		"-tls-cert and -tls-key")
	tr.tlsFlags.flags(fs)
	tr.proxy.flags(fs)
	tr.web.flags(fs)
	fs.Var(&tr.unixMode, "unix-mode", "who may connect to unix sockets, as `rights` of a file, "+
		"for "+
		"instance 0660: who may write may connect (default as the umask says)")
	fs.Var(&tr.quic, "quic", "UDP `address` to listen on for MQTT over QUIC, repeatable; without "+
		"-tls-cert its certificate is made up at each start")
}

// fileMode is a flag of the rights of a file, in octal digits.
type fileMode os.FileMode

func (m *fileMode) String() string { return fmt.Sprintf("%#o", uint32(*m)) }

func (m *fileMode) Set(s string) error {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n == 0 || n > 0o777 {
		return errors.New("expected octal digits, as in 0660")
	}
	*m = fileMode(n)
	return nil
}

// A listening is one address that is listened on, and what holds for the clients there.
type listening struct {
	at       string // where a mosquitto.conf says so
	network  string // tcp, tcp4, tcp6, unix or udp
	addr     string
	protocol string // mqtt, websockets or quic
	secure   bool   // TLS
	files    tlsfiles.Options
	optional bool // does without if the machine has no such address
	proxy    int  // version of the PROXY protocol, 0 for none
	web      *web
	httpDir  string
	entry    *entry          // who may come in; nil: as the flags say
	as       *hooks.Listener // for hooks; nil if there is no entry
}

// name says what x is, for the log.
func (x *listening) name() string {
	if x.secure && x.protocol != "quic" {
		return x.protocol + " over TLS"
	}
	return x.protocol
}

// listenings are all listeners: those of the flags, then those of a mosquitto.conf.
func (tr *transport) listenings() (all []*listening) {
	add := func(addrs list, x listening) {
		for _, addr := range addrs {
			one := x
			one.network, one.addr = split(addr)
			if one.network == "unix" {
				one.proxy = 0
			}
			all = append(all, &one)
		}
	}
	add(tr.listen, listening{protocol: "mqtt", proxy: tr.proxy.version})
	for _, port := range tr.ports {
		add(list{net.JoinHostPort("127.0.0.1", port)}, listening{protocol: "mqtt"})
		add(list{net.JoinHostPort("::1", port)}, listening{protocol: "mqtt", optional: true})
	}
	add(tr.web.listen, listening{protocol: "websockets", proxy: tr.proxy.version, web: &tr.web})
	add(tr.web.secure, listening{protocol: "websockets", proxy: tr.proxy.version, web: &tr.web,
		secure: true, files: tr.files})
	add(tr.tlsListen, listening{protocol: "mqtt", proxy: tr.proxy.version, secure: true,
		files: tr.files})
	for _, addr := range tr.quic {
		all = append(all, &listening{network: "udp", addr: addr, protocol: "quic", secure: true,
			files: tr.files})
	}
	return append(all, tr.more...)
}

// split takes host:port and unix:path apart.
func split(addr string) (network, address string) {
	const unix = "unix:"
	if len(addr) > len(unix) && addr[:len(unix)] == unix {
		return "unix", addr[len(unix):]
	}
	return "tcp", addr
}

// check says what does not go together. With localOnly nobody is verified, so that only this
// machine may connect.
func (tr *transport) check(localOnly bool) error {
	secure := len(tr.tlsListen) + len(tr.web.secure)
	switch {
	case localOnly && (tr.proxy.version != 0 || len(tr.web.proxies) > 0):
		return fmt.Errorf("-proxy-protocol and -ws-trusted-proxy bring clients from elsewhere: %s",
			opensUp)
	case secure > 0 && tr.files.Certificate == "", tr.files != tlsfiles.Options{} &&
		(tr.files.Certificate == "" || tr.files.Key == ""):
		return errors.New("-tls-listen and -wss need -tls-cert and -tls-key")
	case secure+len(tr.quic) == 0 && (tr.identity || tr.files != tlsfiles.Options{}):
		return errors.New("the flags that begin with -tls need -tls-listen, -wss or -quic")
	case tr.files.ClientCAs == "" && (tr.files.RequireClient || tr.files.CRL != "" || tr.identity):
		return errors.New("-tls-require-cert, -tls-crl and -tls-identity-as-username need " +
			"-tls-client-ca")
	}
	proxied := func(x *listening) bool { return x.proxy > 0 }
	if err := tr.proxy.check(slices.ContainsFunc(tr.more, proxied)); err != nil {
		return err
	}
	if err := tr.web.check(); err != nil {
		return err
	}
	if tr.all = tr.listenings(); len(tr.all) == 0 {
		if tr.byFile { // as Mosquitto, at both addresses of this machine
			tr.ports = list{"1883"}
		} else {
			tr.listen = list{"127.0.0.1:1883"}
		}
		tr.all = tr.listenings()
	}
	return tr.checkALPN(tr.all)
}

// opensUp is what to do about a listener that is refused because nobody is verified.
const opensUp = "give -password-file to say who may connect, or -allow-anonymous to let " +
	"everybody " +
	"in"

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

// An opened listener is what the broker serves.
type opened struct {
	net.Listener
	*listening
}

// An opener opens listeners.
type opener struct {
	*transport
	local bool // only this machine may connect
	log   *slog.Logger
	admit func(net.Addr) error // the Broker's Admits
}

// open opens all listeners, or none.
func (o *opener) open() (all []opened, err error) {
	defer func() {
		if err != nil {
			for _, l := range all {
				l.Close()
			}
			all = nil
		}
	}()
	for _, x := range o.all {
		l, err := o.one(x)
		if err != nil && x.optional {
			o.log.Debug("not listening", "addr", x.addr, "err", err)
			continue
		}
		if err != nil {
			return all, fmt.Errorf("listening on %s: %w", x.addr, err)
		}
		all = append(all, opened{l, x})
		if o.local && !isLocal(l.Addr()) {
			return all, fmt.Errorf("not listening on %s, which is not only for this machine: %s",
				x.addr, opensUp)
		}
	}
	return all, nil
}

// one opens a listener.
func (o *opener) one(x *listening) (net.Listener, error) {
	var conf *tls.Config
	if x.secure {
		conf = o.configs[keyOf(x)]
	}
	if x.secure && conf == nil { // -quic without files
		var err error
		if conf, err = selfSigned(o.log); err != nil {
			return nil, err
		}
	}
	if x.protocol == "quic" {
		return quic.Listen(x.network, x.addr, conf, quic.Options{Admit: o.admit})
	}
	l, err := listen(x.network, x.addr)
	if err != nil {
		return nil, err
	}
	if x.network == "unix" && o.unixMode != 0 {
		if err := os.Chmod(x.addr, os.FileMode(o.unixMode)); err != nil {
			l.Close()
			return nil, err
		}
	}
	if x.proxy != 0 {
		if l, err = newProxied(l, byte(x.proxy), o.transport.proxy.from); err != nil {
			return nil, err
		}
	}
	if conf != nil {
		l = listeners.NewTLS(l, conf)
	}
	if x.protocol == "websockets" {
		return x.web.serve(l, x.httpDir, o.admit)
	}
	return l, nil
}

func listen(network, addr string) (net.Listener, error) {
	if network == "unix" {
		if err := removeStale(addr); err != nil {
			return nil, err
		}
		return net.Listen(network, addr)
	}
	// MQTT has its own Keep Alive; the broker turns TCP's on for clients without
	noProbes := net.ListenConfig{KeepAlive: -1}
	return noProbes.Listen(context.Background(), network, addr)
}

// removeStale removes the socket of a process that has ended without doing so.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return nil // Listen says what is wrong
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s is the socket of a running process", path)
	}
	return os.Remove(path)
}

// lookUp returns the addresses of a host to listen on. domain is "4", "6" or "" for both.
func lookUp(host, domain string) ([]string, error) {
	if host == "" {
		return []string{""}, nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(context.Background(), "ip"+domain, host)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, ip := range ips {
		all = append(all, cmp.Or(ip.Unmap().String(), host))
	}
	return all, nil
}
