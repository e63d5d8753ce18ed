// Package mosquittoconf reads the configuration of a Mosquitto, mosquitto.conf(5) of version 2.0,
// for a broker that is not one. It knows every option: each is carried out, stands for a flag of
// the program, is ignored, or is refused, and the package says which and why.
//
// Flags of the program itself may stand in the same file, as "name value", "name=value", or "name"
// if they are switches.
package mosquittoconf

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Line is one setting in a file.
type Line struct {
	File   string
	Number int
	Name   string
	Rest   string // what follows the name, without the spaces around it
}

// At returns where the line is, for messages.
func (l Line) At() string { return fmt.Sprintf("%s:%d", l.File, l.Number) }

// An Error is what is wrong with a line.
type Error struct {
	Line Line
	Err  error
}

// Error says where the line is, and what is wrong with it.
func (e *Error) Error() string { return e.Line.At() + ": " + e.Line.Name + ": " + e.Err.Error() }

// Unwrap returns what is wrong.
func (e *Error) Unwrap() error { return e.Err }

// A Said is how a line was understood.
type Said struct {
	Line Line
	What string
}

// A Flag is a flag of the program with its value: one that stands in the file, or one that an
// option of Mosquitto stands for.
type Flag struct {
	Line        Line
	Name, Value string
}

// Security says who may connect. Where per_listener_settings is true, each Listener has its own.
type Security struct {
	AllowAnonymous *bool // nil: nothing is said
	PasswordFile   string
	ACLFile        string
	// NoEmptyClientID refuses clients without Client Identifier (allow_zero_length_clientid false).
	NoEmptyClientID bool
	// AutoIDPrefix begins the Client Identifiers of clients that bring none.
	AutoIDPrefix string
}

// A Listener is one "listener", or what was set before the first.
type Listener struct {
	Line     Line   // where it begins
	Host     string // empty: all addresses
	Port     int    // 0: a unix socket, Path
	Path     string
	Domain   string    // "4" or "6": only these addresses; empty: both
	Security *Security // shared with others unless per_listener_settings is true

	WebSockets     bool
	Origins        []string // hosts of web pages that may connect; empty: all
	HTTPDir        string
	MaxConnections int  // 0: only the limit of the program
	MaxQoS         *int // nil: 2
	MaxTopicAlias  *int // nil: the limit of the program
	MountPoint     string
	Versions       []int // of MQTT; nil: all
	ProxyProtocol  int   // 0: none
	// UsernameAsClientID has the User Name take the place of the Client Identifier.
	UsernameAsClientID bool

	CertFile, KeyFile, CAFile, CRLFile string
	Ciphers                            []uint16 // of package crypto/tls; nil: its defaults
	TLSVersion                         uint16   // the lowest; 0: the default of package crypto/tls
	RequireCertificate                 bool
	IdentityAsUsername                 bool // the Common Name of the certificate
	SubjectAsUsername                  bool // all of its subject
}

// A Config is what a file says.
type Config struct {
	PerListener bool     // per_listener_settings
	Shared      Security // for all listeners, unless PerListener
	Listeners   []*Listener
	Connections []*Connection
	// ClientIDPrefix is what every Client Identifier has to begin with (clientid_prefixes).
	ClientIDPrefix string
	// Flags are in the order of the file. Of several with one name the last counts, unless the
	// program takes it several times.
	Flags []Flag
	// Said has an entry for each line, in the order of the files.
	Said []Said
	// Errors are all that is wrong. With one of them the rest is of no use.
	Errors []error
}

// A Known says whether the program has a flag of that name, and whether it is a switch, which needs
// no value.
type Known func(name string) (isSwitch, ok bool)

// Read reads a file, and those that it includes. names are the names of the program's flags, for
// suggestions.
func Read(file string, known Known, names []string) *Config {
	c := new(Config)
	p := &parser{Config: c, known: known, names: names, persist: new(persistence), main: file,
		file: file}
	lines, errs := readLines(file, known, true)
	c.Errors = errs
	for _, l := range lines {
		p.line(l)
	}
	p.end()
	return c
}

// A parser is what has been seen so far.
type parser struct {
	*Config
	known Known
	names []string
	position
	main, file string    // the main file, and the one that is read
	outer      position  // of the main file, while another one is read
	before     *Listener // the default listener: what was set before the first; nil: nothing
	own        Security  // of before, where PerListener
	secured    *Line     // the first setting of Security
	persist    *persistence
}

// A position is what settings are for now.
type position struct {
	current *Listener   // the last of the file, nil before the first
	bridge  *Connection // the last of the file, nil before the first
}

// enter goes on in another file. As in Mosquitto, an included file knows nothing of the listeners
// and connections that others began, and the main file then goes on where it was.
func (p *parser) enter(file string) {
	switch file {
	case p.file:
		return
	case p.main:
		p.position = p.outer
	default:
		if p.file == p.main {
			p.outer = p.position
		}
		p.position = position{}
	}
	p.file = file
}

// persistence takes several options to be known.
type persistence struct {
	on       *Line
	location string
}

func (p *parser) fail(l Line, format string, args ...any) {
	p.Errors = append(p.Errors, &Error{l, fmt.Errorf(format, args...)})
	p.say(l, "an error")
}

func (p *parser) say(l Line, what string) { p.Said = append(p.Said, Said{l, what}) }

// line handles one line.
func (p *parser) line(l Line) {
	p.enter(l.File)
	o, ok := find(l.Name)
	if !ok {
		if isSwitch, own := p.known(l.Name); own {
			p.flag(l, isSwitch)
			return
		}
		p.fail(l, "there is no such option%s", p.suggest(l.Name))
		return
	}
	v, err := o.kind.read(l)
	if err != nil {
		p.fail(l, "%w", err)
		return
	}
	what, err := o.do(p, v)
	if err != nil {
		p.fail(l, "%w", err)
		return
	}
	p.say(l, what)
}

// flag takes a flag of the program.
func (p *parser) flag(l Line, isSwitch bool) {
	switch {
	case l.Name == "config" || l.Name == "c":
		p.fail(l, "a file cannot name another one; see include_dir")
		return
	case l.Rest == "" && !isSwitch:
		p.fail(l, "the value is missing, as in %q", l.Name+" VALUE")
		return
	}
	p.Flags = append(p.Flags, Flag{l, l.Name, cmp.Or(l.Rest, "true")})
	p.say(l, "the flag -"+l.Name+" of this program")
}

// listener is the one that settings are for now: the default listener before the first.
func (p *parser) listener(l Line) *Listener {
	if p.current != nil {
		return p.current
	}
	return p.defaultListener(l)
}

// defaultListener is there as soon as something is set for it.
func (p *parser) defaultListener(l Line) *Listener {
	if p.before == nil {
		p.before = &Listener{Line: l, Port: 1883}
		if p.PerListener {
			p.before.Security = &p.own
		} else {
			p.before.Security = &p.Shared
		}
	}
	return p.before
}

// security is what the options of Security are for now.
func (p *parser) security(l Line) *Security {
	if p.secured == nil {
		p.secured = &l
	}
	switch {
	case !p.PerListener:
		return &p.Shared
	case p.current != nil:
		return p.current.Security
	}
	return p.defaultListener(l).Security
}

// begin begins a listener.
func (p *parser) begin(l Line) *Listener {
	x := &Listener{Line: l, Security: &p.Shared}
	if p.PerListener {
		x.Security = new(Security)
	}
	p.current = x
	p.Listeners = append(p.Listeners, x)
	return x
}

// end does what can be done when all lines are known.
func (p *parser) end() {
	if p.before != nil {
		p.Listeners = append(p.Listeners, p.before)
	}
	at := map[string]*Listener{}
	for _, x := range p.Listeners {
		p.checkListener(x)
		where := fmt.Sprintf("%s %d %s", x.Host, x.Port, cmp.Or(x.Path, x.Domain))
		if other := at[where]; other != nil && (x.Port != 0 || x.Path != "") {
			p.fail(x.Line, "the listener at %s is at the same address", other.Line.At())
		}
		at[where] = x
	}
	for _, c := range p.Connections {
		p.checkConnection(c)
	}
	if on := p.persist.on; on != nil {
		dir := strings.TrimSuffix(cmp.Or(p.persist.location, "."), "/") + "/dunlin"
		p.Flags = append(p.Flags, Flag{*on, "data", dir})
		i := slices.IndexFunc(p.Said, func(s Said) bool { return s.Line == *on })
		p.Said[i].What = "-data " + dir + "; the database of Mosquitto is not read"
	}
}

// checkListener says what does not go together.
func (p *parser) checkListener(x *Listener) {
	tls := x.CertFile != "" || x.KeyFile != ""
	switch {
	case tls && (x.CertFile == "" || x.KeyFile == ""):
		p.fail(x.Line, "TLS needs both certfile and keyfile")
	case !tls && (x.RequireCertificate || x.IdentityAsUsername || x.SubjectAsUsername ||
		x.CRLFile != ""):
		p.fail(x.Line, "client certificates need TLS: certfile and keyfile are missing")
	case (x.RequireCertificate || x.CRLFile != "") && x.CAFile == "":
		p.fail(x.Line, "require_certificate and crlfile need cafile")
	case (x.IdentityAsUsername || x.SubjectAsUsername) && !x.RequireCertificate:
		p.fail(x.Line, "use_identity_as_username and use_subject_as_username need "+
			"require_certificate true")
	case x.HTTPDir != "" && !x.WebSockets, len(x.Origins) > 0 && !x.WebSockets:
		p.fail(x.Line, "http_dir and websockets_origin need protocol websockets")
	case x.ProxyProtocol > 0 && x.Path != "":
		p.fail(x.Line, "enable_proxy_protocol is for TCP listeners")
	}
}
