package main

import (
	"cmp"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"

	"github.com/dunlin-mqtt/dunlin/examples/server/mosquittoconf"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/auth/tlsfiles"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is -config: a mosquitto.conf, or our own flags, or both.

// parse reads the flags, those of the config file first.
func parse(args []string) (*options, error) {
	o, _, errs := parseAll(args)
	return o, errors.Join(errs...)
}

// parseAll is parse. It returns all that is wrong, and what the config file says, nil without one.
func parseAll(args []string) (*options, *mosquittoconf.Config, []error) {
	o, fs, err := parseFlags(args, func(*options, *flag.FlagSet) {})
	if err != nil {
		return nil, nil, []error{err}
	}
	if o.config == "" {
		return o, nil, o.finish(fs)
	}
	conf := mosquittoconf.Read(o.config, known(fs), names(fs))
	errs := conf.Errors
	o, fs, err = parseFlags(args, func(o *options, fs *flag.FlagSet) {
		errs = append(errs, o.take(conf, fs)...)
	})
	if err != nil {
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		errs = o.finish(fs)
	}
	return o, conf, errs
}

// parseFlags makes options of flags. first sets what flags take precedence of.
func parseFlags(args []string, first func(*options, *flag.FlagSet)) (
	o *options, fs *flag.FlagSet, err error,
) {
	o = new(options)
	fs = o.flags()
	first(o, fs)
	fs.SetOutput(io.Discard) // an error is returned, and run prints the flags
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil, nil, err
	} else if err != nil {
		return nil, nil, fmt.Errorf("%w; server -h lists the flags", err)
	}
	if fs.NArg() > 0 {
		return nil, nil, fmt.Errorf("unexpected argument %q; the commands are check, health, "+
			"passwd, top and version", fs.Arg(0))
	}
	return o, fs, nil
}

// known says which flags there are.
func known(fs *flag.FlagSet) mosquittoconf.Known {
	return func(name string) (isSwitch, ok bool) {
		f := fs.Lookup(name)
		if f == nil {
			return false, false
		}
		b, ok := f.Value.(interface{ IsBoolFlag() bool })
		return ok && b.IsBoolFlag(), true
	}
}

func names(fs *flag.FlagSet) (all []string) {
	fs.VisitAll(func(f *flag.Flag) { all = append(all, f.Name) })
	return all
}

// take takes over what a file says. Flags that are given directly win: they are set later.
func (o *options) take(conf *mosquittoconf.Config, fs *flag.FlagSet) (errs []error) {
	fail := func(l mosquittoconf.Line, err error) {
		if err != nil {
			errs = append(errs, &mosquittoconf.Error{Line: l, Err: err})
		}
	}
	for _, f := range conf.Flags {
		if err := fs.Set(f.Name, f.Value); err != nil {
			fail(f.Line, fmt.Errorf("%q: %w", f.Value, err))
		}
	}
	s := &conf.Shared
	o.said, o.perListener = conf.Said, conf.PerListener
	o.access.security.noEmptyID, o.access.security.idPrefix = o.noEmptyID || s.NoEmptyClientID,
		cmp.Or(s.AutoIDPrefix, o.idPrefix)
	o.passwordFile, o.aclFile = cmp.Or(s.PasswordFile, o.passwordFile), cmp.Or(s.ACLFile, o.aclFile)
	if s.AllowAnonymous != nil {
		fs.Set("allow-anonymous", strconv.FormatBool(*s.AllowAnonymous)) // never fails
	}
	o.clientPrefix, o.byFile = conf.ClientIDPrefix, true
	for _, l := range conf.Listeners {
		xs, err := newListenings(l, conf.PerListener)
		fail(l.Line, err)
		o.more = append(o.more, xs...)
	}
	for _, l := range conf.Connections {
		if len(conf.Errors) == 0 { // otherwise it may lack what the file says wrongly
			fail(l.Line, o.takeConnection(l))
		}
	}
	return errs
}

// newListenings returns the addresses that a listener of a mosquitto.conf stands for, with what
// holds there.
func newListenings(l *mosquittoconf.Listener, own bool) (all []*listening, err error) {
	x := listening{at: l.Line.At(), network: "tcp" + l.Domain, protocol: "mqtt",
		proxy: l.ProxyProtocol, secure: l.CertFile != "", files: filesOf(l)}
	x.entry, x.as = entryOf(l, own), &hooks.Listener{Name: l.Line.At(),
		MaxConnections: l.MaxConnections}
	if l.WebSockets {
		x.protocol, x.httpDir, x.web = "websockets", l.HTTPDir, &web{origins: l.Origins}
		if len(l.Origins) == 0 {
			x.web.origins = list{"*"}
		}
	}
	if l.Path != "" {
		x.network, x.addr = "unix", l.Path
		return []*listening{&x}, nil
	}
	hosts, err := lookUp(l.Host, l.Domain)
	if err != nil {
		return nil, err
	}
	for _, host := range hosts {
		one := x
		one.addr = net.JoinHostPort(host, strconv.Itoa(l.Port))
		all = append(all, &one)
	}
	return all, nil
}

// filesOf returns the files of TLS. A client is asked for a certificate only where it must have
// one, as in Mosquitto.
func filesOf(l *mosquittoconf.Listener) (o tlsfiles.Options) {
	if l.CertFile == "" {
		return o
	}
	o.Certificate, o.Key, o.Chain = l.CertFile, l.KeyFile, l.CAFile
	if l.RequireCertificate {
		o.ClientCAs, o.RequireClient, o.CRL = l.CAFile, true, l.CRLFile
	}
	if l.TLSVersion != 0 || l.Ciphers != nil {
		o.Base = &tls.Config{MinVersion: l.TLSVersion, CipherSuites: l.Ciphers}
	}
	return o
}

// entryOf returns what holds for the clients of a listener. Its gate is opened later: own says that
// it is not that of the flags.
func entryOf(l *mosquittoconf.Listener, own bool) *entry {
	e := &entry{usernameAsID: l.UsernameAsClientID, mount: l.MountPoint}
	if own {
		s := l.Security
		e.gate = &gate{security: security{
			allowAnonymous: s.AllowAnonymous != nil && *s.AllowAnonymous,
			passwordFile:   s.PasswordFile, aclFile: s.ACLFile,
			noEmptyID: s.NoEmptyClientID, idPrefix: s.AutoIDPrefix,
		}}
	}
	if l.IdentityAsUsername {
		e.identity = firstCommonName
	} else if l.SubjectAsUsername {
		e.identity = wholeSubject
	}
	for _, v := range l.Versions {
		e.versions = append(e.versions, packets.Version(v))
	}
	if l.MaxQoS != nil {
		q := packets.QoS(*l.MaxQoS)
		e.limits.MaxQoS = &q
	}
	if l.MaxTopicAlias != nil {
		e.limits.TopicAliasMaximum, e.limits.DisableTopicAlias = uint16(*l.MaxTopicAlias),
			*l.MaxTopicAlias == 0
	}
	return e
}

// raise raises limits of all listeners to what a mosquitto.conf says for one. Those that say
// nothing keep the default.
func (o *options) raise() {
	const aliases, connections = 32, 100_000 // the defaults of Config
	most, sum, raised := uint16(0), 0, o.cfg.TopicAliasMaximum == 0
	for _, x := range o.more {
		most, sum = max(most, x.entry.limits.TopicAliasMaximum), sum+x.as.MaxConnections
	}
	if most > aliases && raised {
		o.cfg.TopicAliasMaximum = int(most)
		for _, x := range o.more {
			if l := &x.entry.limits; l.TopicAliasMaximum == 0 && !l.DisableTopicAlias {
				l.TopicAliasMaximum = aliases
			}
		}
	}
	if sum > connections && o.cfg.MaxConnections == 0 {
		o.cfg.MaxConnections = sum
	}
}

// openEntries opens the gates of all listeners, and sets what decides in the Config of the broker.
func (o *options) openEntries() (errs []error) {
	k := &gatekeeper{access: &o.access, reloads: o.reloads, passwords: passwordFiles{},
		rules: ruleFiles{}, failed: map[string]bool{}, at: o.at}
	own := k.open(o.access.security)
	shared := &entry{gate: own, clientPrefix: o.clientPrefix}
	o.raise()
	for _, x := range o.all {
		if x.entry == nil {
			continue
		}
		x.entry.clientPrefix = o.clientPrefix
		if x.entry.gate == nil {
			x.entry.gate = own
		} else if x.entry.users == nil {
			x.entry.gate = k.open(x.entry.security)
		}
	}
	if len(k.errs) > 0 {
		return k.errs
	}
	if err := o.access.check(len(k.passwords) > 0, len(k.rules) > 0); err != nil {
		return []error{err}
	}
	setEntries(&o.cfg, o.all, shared, o.identity)
	return nil
}

// openListenings opens the files of all listeners, but not yet their ports.
func (o *options) openListenings() (errs []error) {
	for _, x := range o.all {
		if err := o.openFiles(x, o.reloads); err != nil && x.at != "" {
			errs = append(errs, fmt.Errorf("%s: listener: %w", x.at, err))
		} else if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// at returns err with the line of the config file that has the setting, if one does.
func (o *options) at(name, value string, err error) error {
	for _, s := range slices.Backward(o.said) {
		if s.Line.Name == name && s.Line.Rest == value {
			return &mosquittoconf.Error{Line: s.Line, Err: err}
		}
	}
	return err
}
