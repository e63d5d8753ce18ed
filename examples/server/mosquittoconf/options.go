package mosquittoconf

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// An option is one of mosquitto.conf(5). do carries it out, or says why not, and says how it was
// understood.
type option struct {
	name string // one that ends with * stands for all that begin so
	kind kind
	do   func(p *parser, v value) (what string, err error)
}

// find returns the option of a name.
func find(name string) (option, bool) {
	for _, o := range table {
		if prefix, any := strings.CutSuffix(o.name, "*"); o.name == name ||
			any && strings.HasPrefix(name, prefix) {
			return o, true
		}
	}
	return option{}, false
}

func optionNames() (names []string) {
	for _, o := range table {
		if !strings.HasSuffix(o.name, "*") {
			names = append(names, o.name)
		}
	}
	return names
}

// ignored makes an option that changes nothing, and says why.
func ignored(why string) func(*parser, value) (string, error) {
	return func(*parser, value) (string, error) { return "ignored: " + why, nil }
}

// refused makes an option that cannot be carried out, and says why and what to do.
func refused(why string) func(*parser, value) (string, error) {
	return func(*parser, value) (string, error) { return "", errors.New(why) }
}

// refusedIf refuses one of the two values of a boolean, and ignores the other.
func refusedIf(on bool, why string) func(*parser, value) (string, error) {
	return func(_ *parser, v value) (string, error) {
		if v.on == on {
			return "", errors.New(why)
		}
		return "as it is here", nil
	}
}

// toFlag makes an option that stands for a flag of the program, with the value that as makes of it.
func toFlag(name string, as func(value) string) func(*parser, value) (string, error) {
	return func(p *parser, v value) (string, error) {
		p.Flags = append(p.Flags, Flag{v.Line, name, as(v)})
		return "-" + name + " " + as(v), nil
	}
}

func asNumber(v value) string  { return strconv.Itoa(v.n) }
func asBool(v value) string    { return strconv.FormatBool(v.on) }
func asNot(v value) string     { return strconv.FormatBool(!v.on) }
func asSeconds(v value) string { return strconv.Itoa(v.n) + "s" }
func asHours(v value) string   { return strconv.Itoa(v.n) + "h" }

// asLimit is a number that means no limit if it is zero.
func asLimit(v value) string {
	if v.n == 0 {
		return "-1"
	}
	return asNumber(v)
}

// secure makes an option of Security.
func secure(set func(*Security, value)) func(*parser, value) (string, error) {
	return func(p *parser, v value) (string, error) {
		set(p.security(v.Line), v)
		if !p.PerListener {
			return "for all listeners", nil
		}
		return p.whose(v.Line), nil
	}
}

func emptyClientID(s *Security, v value) { s.NoEmptyClientID = !v.on }

// listen makes an option of a Listener.
func listen(set func(*Listener, value) error) func(*parser, value) (string, error) {
	return func(p *parser, v value) (string, error) {
		if err := set(p.listener(v.Line), v); err != nil {
			return "", err
		}
		return p.whose(v.Line), nil
	}
}

// whose says which listener settings are for now.
func (p *parser) whose(l Line) string {
	if x := p.listener(l); x == p.current {
		return "for the listener at " + x.Line.At()
	}
	return "for the listener that is there without a listener line, port 1883 unless port says " +
		"otherwise"
}

const (
	noPlugins = "plugins of Mosquitto cannot be loaded: use password_file and acl_file, or write " +
		"a " +
		"program with this broker and a hook of package hooks"
	ofPlugin      = "it belongs to a plugin: take it out with the plugin"
	noPSK         = "package crypto/tls has no pre-shared keys: use certfile and keyfile"
	noEngine      = "keys in an engine cannot be used: put the key into a PEM file, keyfile"
	durableAtOnce = "what is acknowledged is on disk at once, there is nothing to save later"
	textLog       = "a log line has the form time=... level=... msg=..., with the time of RFC 3339"
	mosquitto1    = "it is of an old version, and Mosquitto 2 ignores it as well"
)

// versions reads accept_protocol_versions.
func versions(x *Listener, v value) error {
	x.Versions = nil
	for s := range strings.SplitSeq(v.Rest, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil || n < 3 || n > 5 {
			return fmt.Errorf("expected 3, 4 and 5 with commas between them, got %q", v.Rest)
		}
		x.Versions = append(x.Versions, n)
	}
	return nil
}

// perListener reads per_listener_settings.
func (p *parser) perListener(v value) (string, error) {
	if p.secured != nil {
		return "", fmt.Errorf("it must stand before the settings that it is about, the first of "+
			"which is at %s",
			p.secured.At())
	}
	p.PerListener = v.on
	for _, x := range p.Listeners { // nothing has been set for them
		x.Security = &p.Shared
		if v.on {
			x.Security = new(Security)
		}
	}
	if p.before != nil && v.on {
		p.before.Security = &p.own
	}
	if v.on {
		return "users, rules and so on are those of each listener", nil
	}
	return "users, rules and so on are the same for all listeners", nil
}

func (p *parser) persistenceOn(v value) (string, error) {
	p.persist.on = nil
	if !v.on {
		return "nothing is kept over a restart", nil
	}
	p.persist.on = &v.Line
	return "", nil // end knows where
}

func (p *parser) persistenceLocation(v value) (string, error) {
	p.persist.location = v.Rest
	return "the folder for -data, if persistence is true", nil
}

func (p *parser) clientIDPrefixes(v value) (string, error) {
	p.ClientIDPrefix = v.Rest
	return "for all listeners", nil
}

func (p *parser) includeDir(v value) (string, error) { return "its files follow", nil }

// logDest reads log_dest.
func (p *parser) logDest(v value) (string, error) {
	kind, file, _ := strings.Cut(v.Rest, " ")
	file = strings.TrimSpace(file)
	switch kind {
	case "stdout", "stderr", "none":
	case "file":
		if file == "" {
			return "", errors.New("the name of the file is missing, as in: log_dest file " +
				"/var/log/dunlin.log")
		}
		kind = file
	case "syslog":
		kind = "stderr"
	case "topic":
		return "ignored: log lines are not published; the topics below $SYS have the numbers", nil
	case "dlt":
		return "ignored: there is no Diagnostic Log and Trace here", nil
	default:
		return "", fmt.Errorf("expected stdout, stderr, syslog, topic, file, dlt or none, got %q",
			v.Rest)
	}
	p.Flags = append(p.Flags, Flag{v.Line, "log-dest", kind})
	if strings.HasPrefix(v.Rest, "syslog") {
		return "-log-dest stderr: the service manager takes it from there", nil
	}
	return "-log-dest " + kind, nil
}

// logTypes are what a log_type lets through, as the level of -log-level.
var logTypes = map[string]string{
	"error": "error", "warning": "warn", "notice": "info", "information": "info", "debug": "debug",
	"all": "debug", "none": "none",
}

// levels are in the order of how much they let through.
var levels = []string{"none", "error", "warn", "info", "debug"}

// logType reads log_type. Of several the one that lets most through counts.
func (p *parser) logType(v value) (string, error) {
	level, ok := logTypes[v.Rest]
	switch {
	case v.Rest == "subscribe" || v.Rest == "unsubscribe":
		return "ignored: log_type all and -v print these packets, with all others", nil
	case v.Rest == "websockets":
		return "ignored: there is one log for all listeners", nil
	case !ok:
		return "", fmt.Errorf("expected debug, error, warning, notice, information, subscribe, "+
			"unsubscribe, "+
			"websockets, none or all, got %q", v.Rest)
	}
	i := slices.IndexFunc(p.Flags, func(f Flag) bool { return f.Name == "log-level" })
	if i < 0 {
		i = len(p.Flags)
		p.Flags = append(p.Flags, Flag{v.Line, "log-level", "none"})
	}
	if slices.Index(levels, level) > slices.Index(levels, p.Flags[i].Value) {
		p.Flags[i].Value = level
	}
	if level == "debug" {
		p.Flags = append(p.Flags, Flag{v.Line, "v", "true"})
		return "-log-level debug -v", nil
	}
	return "-log-level " + p.Flags[i].Value, nil
}
