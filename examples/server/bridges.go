package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/bridge"
	"github.com/dunlin-mqtt/dunlin/examples/server/mosquittoconf"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the bridges of a mosquitto.conf, its connections.

// connections are the bridges: those of the file, and the Node at work.
type connections struct {
	links []*mosquittoconf.Connection
	node  *bridge.Node // nil: there are none
}

// takeConnection completes a connection with what the rest of the file and this machine say.
func (o *options) takeConnection(c *mosquittoconf.Connection) (err error) {
	l := &c.Link
	if l.ClientID == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("remote_clientid is missing, and this machine has no name: %w", err)
		}
		l.ClientID = host + "." + l.Name
	}
	if c.TLS() {
		if l.TLS, err = tlsOf(c); err != nil {
			return err
		}
	}
	switch most := o.cfg.MaxInflight; {
	case l.Window != 0 || most == 0:
	case most < 0:
		l.Window = 65535
	default:
		l.Window = min(most, 65535)
	}
	if _, err := bridge.New(bridge.Config{Name: "check", Links: []bridge.Link{*l}}); err != nil {
		return err
	}
	o.links = append(o.links, c)
	return nil
}

// tlsOf reads the files of a connection. The certificate is read again for each connection.
func tlsOf(c *mosquittoconf.Connection) (*tls.Config, error) {
	roots, err := authorities(c)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{RootCAs: roots, MinVersion: c.TLSVersion, CipherSuites: c.Ciphers}
	if c.ALPN != "" {
		cfg.NextProtos = []string{c.ALPN}
	}
	if c.CertFile != "" {
		read := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			return &pair, err
		}
		if _, err := read(); err != nil {
			return nil, err
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return read()
		}
	}
	if c.Insecure { // the chain is verified, the name in the certificate is not
		cfg.InsecureSkipVerify = true
		cfg.VerifyConnection = func(s tls.ConnectionState) error {
			between := x509.NewCertPool()
			for _, x := range s.PeerCertificates[1:] {
				between.AddCert(x)
			}
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots,
				Intermediates: between})
			return err
		}
	}
	return cfg, nil
}

// authorities reads bridge_cafile and the files of bridge_capath.
func authorities(c *mosquittoconf.Connection) (pool *x509.CertPool, err error) {
	pool = x509.NewCertPool()
	if c.SystemCAs {
		if pool, err = x509.SystemCertPool(); err != nil {
			return nil, err
		}
	}
	if c.CAFile != "" {
		text, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, err
		}
		if !pool.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("bridge_cafile %s has no certificate in PEM form", c.CAFile)
		}
	}
	if c.CAPath == "" {
		return pool, nil
	}
	entries, err := os.ReadDir(c.CAPath)
	if err != nil {
		return nil, err
	}
	found := false
	for _, e := range entries { // those that are not certificates are left out, as in Mosquitto
		text, err := os.ReadFile(filepath.Join(c.CAPath, e.Name()))
		found = err == nil && pool.AppendCertsFromPEM(text) || found
	}
	if !found {
		return nil, fmt.Errorf("no file in bridge_capath %s is a certificate in PEM form", c.CAPath)
	}
	return pool, nil
}

// checkConnections says what of the flags does not go together with bridges.
func (o *options) checkConnections() error {
	if len(o.links) > 0 && !slices.Contains(o.cfg.Versions, packets.V5) {
		return fmt.Errorf("-versions %s does not go with the connection at %s: bridges connect "+
			"to the broker here with 5.0. To keep clients from that version, use "+
			"accept_protocol_versions", o.versions, o.links[0].Line.At())
	}
	return nil
}

// install puts the bridges into the Config of the broker.
func (o *options) install() error {
	if len(o.links) == 0 {
		return nil
	}
	host, err := os.Hostname()
	if err != nil {
		host = "dunlin"
	}
	// Messages over 5.0 carry the names of the brokers that they have passed. Two of one machine
	// must not have the same one.
	name := fmt.Sprintf("%.50s-%s", strings.Map(nameRune, host), rand.Text()[:8])
	cfg := bridge.Config{Name: name, Logger: o.cfg.Logger, DisableMarks: true}
	for _, c := range o.links {
		cfg.Links = append(cfg.Links, c.Link)
		cfg.DisableMarks = cfg.DisableMarks && c.Link.Version != packets.V5
	}
	if o.node, err = bridge.New(cfg); err != nil {
		return err
	}
	o.node.Install(&o.cfg)
	return nil
}

// nameRune makes a character one that the name of a Node may have.
func nameRune(r rune) rune {
	if r < 0x80 && (r == '-' || r == '.' || r == '_' || '0' <= r && r <= '9' ||
		'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z') {
		return r
	}
	return '-'
}

// isLink says whether a client is a bridge of this broker.
func isLink(c *hooks.Client) bool { return strings.HasPrefix(c.ID, "$bridge/") }

// changeLinks gives the running bridges the settings of options that were read again.
func (r *reloader) changeLinks(o *options) {
	marks := func(c *mosquittoconf.Connection) bool { return c.Link.Version == packets.V5 }
	newMarks := slices.ContainsFunc(o.links, marks) && !slices.ContainsFunc(r.links, marks)
	if r.node == nil && len(o.links) > 0 || newMarks {
		r.cfg.Logger.Warn("changed, and needs a restart", "what", "the first connection of the "+
			"configuration, or the first of mqttv50")
		return
	}
	for _, c := range o.links {
		old := connectionOf(r.links, c.Link.Name)
		if old == nil || !same(old, c) || c.TLS() {
			r.changeLink(c, old)
		}
	}
	for _, c := range r.links {
		if connectionOf(o.links, c.Link.Name) != nil {
			continue
		}
		patient, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := r.node.RemoveLink(patient, c.Link.Name)
		cancel()
		r.reportLink(c, "removed, with what waited for it", err)
	}
	r.links = o.links
}

// changeLink changes one bridge. If only the files of its certificates can have changed, it says
// nothing.
func (r *reloader) changeLink(c, old *mosquittoconf.Connection) {
	changed := old == nil || !same(old, c)
	err := r.node.SetLink(c.Link, changed && c.Immediate)
	switch {
	case err != nil || old == nil || c.Immediate && changed:
		r.reportLink(c, "changed", err)
	case changed:
		r.reportLink(c, "changed, from its next connection on: bridge_reload_type immediate does "+
			"not wait", nil)
	}
}

func (r *reloader) reportLink(c *mosquittoconf.Connection, what string, err error) {
	if err != nil {
		r.cfg.Logger.Error("a bridge was not changed", "link", c.Link.Name, "err", err)
		return
	}
	r.cfg.Logger.Info("a bridge was "+what, "link", c.Link.Name)
}

// connectionOf returns the connection of a name, nil if there is none.
func connectionOf(all []*mosquittoconf.Connection, name string) *mosquittoconf.Connection {
	i := slices.IndexFunc(all, func(c *mosquittoconf.Connection) bool {
		return c.Link.Name == name
	})
	if i < 0 {
		return nil
	}
	return all[i]
}

// same says whether two connections have the same settings.
func same(a, b *mosquittoconf.Connection) bool {
	x, y := *a, *b
	x.Line, y.Line, x.Link.TLS, y.Link.TLS = mosquittoconf.Line{}, mosquittoconf.Line{}, nil, nil
	return reflect.DeepEqual(x, y)
}

// startLinks starts the bridges. One that cannot connect tries again and again, and nobody waits.
func (o *options) startLinks(b *dunlin.Broker) error {
	if o.node == nil {
		return nil
	}
	return o.node.Start(b)
}

// endLinks ends the bridges, if there are any.
func (o *options) endLinks() {
	if o.node != nil {
		_ = o.node.Close() // returns nil
	}
}
