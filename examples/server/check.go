package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/examples/server/mosquittoconf"
)

// This file is the commands check, which says how a configuration is understood, and health, which
// asks a running broker.

// check prints how a configuration is understood, and all that is wrong with it.
func check(args []string, out io.Writer) error {
	o, conf, errs := parseAll(args)
	for _, err := range errs {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(out, "usage: server check [the flags that the server is to get], for "+
				"instance: server check -config mosquitto.conf")
			return err
		}
	}
	if conf != nil {
		for _, s := range conf.Said {
			fmt.Fprintf(out, "%s: %s: %s\n", s.Line.At(), setting(s.Line), s.What)
		}
	}
	for _, err := range errs {
		fmt.Fprintln(out, "error:", err)
	}
	switch len(errs) {
	case 0:
	case 1:
		return errors.New("1 error")
	default:
		return fmt.Errorf("%d errors", len(errs))
	}
	for _, x := range o.all {
		admits := o.access.admits(o.identity)
		if x.as != nil {
			admits = x.entry.admits()
		}
		fmt.Fprintf(out, "listens on %s (%s), admits %s\n", x.addr, x.name(), admits)
	}
	for _, c := range o.links {
		l := &c.Link
		fmt.Fprintf(out, "connects to %s as %s, bridge %s (MQTT %v)\n",
			strings.Join(l.Addresses, ", then "), l.ClientID, l.Name, l.Version)
	}
	if conf != nil {
		o.notes(out)
	}
	fmt.Fprintln(out, "no errors")
	return nil
}

// notes prints where the server differs from Mosquitto though no line of the file says so.
func (o *options) notes(out io.Writer) {
	if !o.sets("max-session-expiry") {
		fmt.Fprintln(out, "note: sessions of absent clients end after 7 days; in Mosquitto they "+
			"are kept for ever, "+
			"unless persistent_client_expiration says otherwise")
	}
	if !o.sets("max-packet-size") {
		fmt.Fprintln(out, "note: packets of more than 1 MiB are refused; in Mosquitto they are "+
			"not, unless max_packet_size says otherwise")
	}
	o.noteLinks(out)
	hasRules := o.aclFile != "" || slices.ContainsFunc(o.all, func(l *listening) bool {
		return l.entry != nil && l.entry.gate != nil && l.entry.gate.aclFile != ""
	})
	if hasRules && !o.aclAtDelivery {
		fmt.Fprintln(out, "note: a subscription is refused if the client may not read all that it "+
			"matches; Mosquitto grants it and leaves messages out, as this server does with the "+
			"line acl-at-delivery")
	}
}

// noteLinks prints what to know about bridges.
func (o *options) noteLinks(out io.Writer) {
	if len(o.links) > 0 {
		fmt.Fprintln(out, "note: while Mosquitto still runs with the same connection, both throw "+
			"each other out at the remote broker: leave it out of a copy of this file")
		fmt.Fprintln(out, "note: a bridge carries on what another one brought, as in Mosquitto: "+
			"do not bridge brokers in a circle")
	}
}

// sets says whether a flag has another value than its default.
func (o *options) sets(name string) bool {
	return o.settings[name] != new(options).flags().Lookup(name).DefValue
}

// secret are options whose value is nobody's business.
var secret = map[string]bool{"remote_password": true, "local_password": true, "password": true,
	"bridge_psk": true}

// setting is a line as it is printed.
func setting(l mosquittoconf.Line) string {
	if secret[l.Name] && l.Rest != "" {
		return l.Name + " ..."
	}
	if l.Rest == "" {
		return l.Name
	}
	return l.Name + " " + l.Rest
}

// health connects to a broker as a client of 3.1.1 without a name, and wants an answer: any, as it
// may ask for a name.
func health(args []string) error {
	fs := flag.NewFlagSet("server health", flag.ContinueOnError)
	addr := fs.String("addr", "127.0.0.1:1883", "`address` of the broker: host:port, or unix:path")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q; the broker is named as in -addr %s", fs.Arg(0),
			fs.Arg(0))
	}
	network, where := split(*addr)
	c, err := net.DialTimeout(network, where, 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	// CONNECT, Clean Session, Keep Alive 10 s, no Client Identifier
	if _, err := c.Write([]byte("\x10\x0c\x00\x04MQTT\x04\x02\x00\x0a\x00\x00")); err != nil {
		return err
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(c, answer); err != nil {
		return fmt.Errorf("no CONNACK: %w", err)
	}
	if answer[0] != 0x20 {
		return fmt.Errorf("%s is no MQTT broker: it answers with %x", *addr, answer)
	}
	_, _ = c.Write([]byte{0xE0, 0}) // DISCONNECT
	return nil
}
