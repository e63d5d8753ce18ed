package acl

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"unicode"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/internal/files"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// blanks are the characters that Mosquitto trims.
const blanks = " \t\v\f\r"

// ParseMosquitto reads an acl_file as Mosquitto 2.0 does. file is its name in errors. Every error
// is a *hooks.ParseError, several of these, joined, one for each bad line, or an error of r.
//
//	topic [read|write|readwrite|deny] <filter>
//	pattern [read|write|readwrite|deny] <filter with %u and %c>
//	user <user name>
//	# comment
//
// Topics before the first user are for clients without a name, topics after a user for that user
// alone, and patterns for everybody. The order for a client is: its denied topics, its other
// topics, the denied patterns, the other patterns. Everything else is refused, so an empty file
// refuses everything.
//
// ParseMosquitto is stricter than Mosquitto where that is safer. A name with / gets nothing from a
// pattern that holds it, just as a name with + or #. %u and %c do not reach topics that begin with
// $. Subscriptions are decided as the package describes, while Mosquitto grants them all and leaves
// out topics that the client may not read.
func ParseMosquitto(r io.Reader, file string) (*List, error) {
	var b builder
	user := "" // of the topics that follow
	err := files.EachLine(r, file, func(line string, n int) error {
		position := fmt.Sprintf("%s:%d", file, n)
		line = strings.TrimRight(line, blanks)
		if line == "" || line[0] == '#' {
			return nil
		}
		keyword, rest, _ := strings.Cut(strings.TrimLeft(line, " "), " ")
		rest = strings.TrimLeft(rest, " ")
		switch keyword {
		case "user":
			if rest == "" {
				return errors.New("expected a name after user")
			}
			user = strings.TrimLeft(rest, blanks)
			return nil
		case "topic":
			x := build{user: user, anonymous: user == ""}
			return b.mosquitto(x, rest, position)
		case "pattern":
			x := build{section: 2}
			x.plain = true
			return b.mosquitto(x, rest, position)
		}
		return fmt.Errorf("expected topic, pattern or user, got %q", keyword)
	})
	if err != nil {
		return nil, err
	}
	return b.list(), nil
}

// mosquitto adds x for the text after "topic" or "pattern", which is section 2.
func (b *builder) mosquitto(x build, s, position string) error {
	access, filter, found := strings.Cut(s, " ")
	if !found {
		access, filter = "readwrite", s
	}
	filter = strings.TrimLeft(filter, blanks)
	effect := EffectAllow
	switch access {
	case "read":
		x.actions = 1 << hooks.ActionSubscribe
	case "write":
		x.actions = 1 << hooks.ActionPublish
	case "readwrite":
		x.actions = 1<<hooks.ActionPublish | 1<<hooks.ActionSubscribe
	case "deny":
		effect = EffectDeny
		x.actions = 1<<hooks.ActionPublish | 1<<hooks.ActionSubscribe
	default:
		return fmt.Errorf("expected read, write, readwrite or deny, got %q", access)
	}
	switch {
	case filter == "":
		return errors.New("expected a topic filter")
	case strings.ContainsFunc(filter, unicode.IsControl):
		return fmt.Errorf("%q holds a control character: expected spaces, not tabs, between words",
			filter)
	}
	names := name(0)
	if x.section == 2 {
		names = userName | clientID
	}
	if effect == EffectAllow {
		x.section++
	}
	b.rules++
	return b.add(x, effect, filter, names, position)
}

// Parse reads rules, one per line. file is its name in errors. Every error is a *hooks.ParseError,
// several of these, joined, one for each bad line, or an error of r.
//
//	allow|deny [user=<name>] [anonymous] [client=<id>] [role=<role>] [tenant=<tenant>]
//	           [${<attribute>}=<value>] [listener=<name>] [addr=<address or prefix>]
//	           [qos=<QoS>[,<QoS>]...] [retain]
//	           publish|subscribe|all <filter> ...
//
// Each line is a [Rule]. Without conditions it applies to all clients. Words are separated by white
// space. A word that contains white space or begins with a double quote is written as a Go string.
// Empty lines and lines that begin with # are ignored.
//
//	# The operators may do everything but forge readings.
//	deny  role=operator publish sensors/#
//	allow role=operator all #
//	allow publish sensors/%c/#
//	allow addr=10.0.0.0/8 "user=night shift" subscribe sensors/+/state alarms/#
//	# The public listener accepts no retained messages and no QoS 2.
//	deny  listener=public retain publish #
//	deny  listener=public qos=2 all #
//	allow ${plan}=paid all regions/${region}/#
func Parse(r io.Reader, file string) (*List, error) {
	var b builder
	err := files.EachLine(r, file, func(line string, n int) error {
		position := fmt.Sprintf("%s:%d", file, n)
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			return nil
		}
		words, err := fields(line)
		if err != nil {
			return err
		}
		rule, err := parseRule(words)
		if err != nil {
			return err
		}
		return b.rule(rule, position)
	})
	if err != nil {
		return nil, err
	}
	return b.list(), nil
}

// fields splits a line into words.
func fields(line string) (words []string, err error) {
	for line != "" {
		word := line
		if i := strings.IndexFunc(line, unicode.IsSpace); i >= 0 {
			word = line[:i]
		}
		rest := line[len(word):]
		if line[0] == '"' {
			quoted, err := strconv.QuotedPrefix(line)
			if err != nil {
				return nil, fmt.Errorf("%s is not a Go string", line)
			}
			rest = line[len(quoted):]
			if rest != "" && !strings.ContainsAny(rest[:1], " \t") {
				return nil, fmt.Errorf("no space after %s", quoted)
			}
			word, _ = strconv.Unquote(quoted)
		}
		words = append(words, word)
		line = strings.TrimLeftFunc(rest, unicode.IsSpace)
	}
	return words, nil
}

// parseRule makes a Rule of the words of a line.
func parseRule(words []string) (r Rule, err error) {
	switch words[0] {
	case "allow":
		r.Effect = EffectAllow
	case "deny":
		r.Effect = EffectDeny
	default:
		return r, fmt.Errorf("expected allow or deny, got %q", words[0])
	}
	for i, word := range words[1:] {
		switch word {
		case "publish":
			r.Action = hooks.ActionPublish
		case "subscribe":
			r.Action = hooks.ActionSubscribe
		case "all":
		default:
			if err := r.parse(word); err != nil {
				return r, err
			}
			continue
		}
		r.Filters = words[1+i+1:]
		return r, nil
	}
	return r, errors.New("expected publish, subscribe or all")
}

// parse sets the condition in word.
func (r *Rule) parse(word string) error {
	key, value, _ := strings.Cut(word, "=")
	switch key {
	case "qos":
		return r.parseQoS(word, value)
	case "retain":
		if word != key || r.Retain {
			return fmt.Errorf("%q: retain stands alone, and once", word)
		}
		r.Retain = true
		return nil
	}
	return r.Who.parse(word, key, value)
}

func (r *Rule) parseQoS(word, value string) error {
	if r.QoS != nil {
		return fmt.Errorf("%q: qos stands once, as in qos=0,1", word)
	}
	for s := range strings.SplitSeq(value, ",") {
		if len(s) != 1 || s < "0" || s > "2" {
			return fmt.Errorf("expected 0, 1 or 2 as QoS, or several as in qos=0,1, got %q", word)
		}
		r.QoS = append(r.QoS, packets.QoS(s[0]-'0'))
	}
	return nil
}

// parse sets the condition in word, which is key=value.
func (w *Who) parse(word, key, value string) error {
	if strings.HasPrefix(key, "${") {
		return w.parseAttribute(word)
	}
	var to *string
	switch key {
	case "user":
		to = &w.User
	case "client":
		to = &w.ClientID
	case "role":
		to = &w.Role
	case "tenant":
		to = &w.Tenant
	case "listener":
		to = &w.Listener
	case "addr":
		return w.parseAddr(value)
	case "anonymous":
		if word != key || w.Anonymous {
			return fmt.Errorf("%q: anonymous stands alone, and once", word)
		}
		w.Anonymous = true
		return nil
	default:
		return fmt.Errorf("expected a condition, publish, subscribe or all, got %q", word)
	}
	if value == "" || *to != "" {
		return fmt.Errorf("%q: %s wants one value, once", word, key)
	}
	*to = value
	return nil
}

func (w *Who) parseAttribute(word string) error {
	p, n, err := nameAt(word)
	if err != nil {
		return err
	}
	value, ok := strings.CutPrefix(word[n:], "=")
	if _, twice := w.Attributes[p.text]; !ok || value == "" || twice {
		return fmt.Errorf("%q: ${%s} wants one value, once", word, p.text)
	}
	if w.Attributes == nil {
		w.Attributes = make(map[string]string)
	}
	w.Attributes[p.text] = value
	return nil
}

func (w *Who) parseAddr(s string) error {
	if w.Addr.IsValid() {
		return errors.New("addr wants one value, once")
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return fmt.Errorf("expected an address or a prefix, got %q", s)
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	w.Addr = p
	return nil
}
