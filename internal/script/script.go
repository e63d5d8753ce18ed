// Package script reads and runs conversations with an MQTT broker that are written down as text:
// what each client sends, what it expects back, and how much time passes.
//
// A file holds scenarios, separated by lines "---". In a scenario every line is one of
//
//	# 5.0 MQTT-4.3.3-11, 3.1.1 MQTT-4.3.3-2: each PUBREL gets a PUBCOMP.
//	config receive-maximum=10
//	each qos ack: 1 PUBACK | 2 PUBREC
//	c1> CONNECT v=5 client=c1 clean
//	c1< CONNACK code=0x00
//	advance 90s
//
// A comment may begin with the statements that what follows proves, each with its version, up to a
// colon. It is the sentence that a failure prints for the lines below it. A config line gives
// settings to the broker. An each line makes one scenario of every column between the bars, in
// which ${qos} and ${ack} stand for the column's words (with a single name, for all of it).
//
// Sending, from the client whose name stands before the sign, which connects when the name is used
// for the first time or after its connection has ended:
//
//	c1> PUBLISH qos=1 id=1 topic=a payload=x    a packet in the notation of packets.Trace; what is not given is zero
//	c1>+ PINGREQ                                the same, but held back and sent in one piece with the next
//	c1> raw 30 [ ("a") 00 "x" ]                 bytes in hex; "text"; [ ] and ( ) put a Variable Byte Integer or two
//	                                            bytes of length before what they enclose; 00*9 is nine times 00
//	c1> close                                   cut the Network Connection
//
// Expecting, always the next packet of that connection:
//
//	c1< PUBLISH qos=1 !dup id=$n payload=x|y    all of these are in its trace; ! means absent, | or, * anything; $n is
//	                                            kept when it is first seen and compared afterwards; id=!$n and
//	                                            id=!1 mean present and different; a key that repeats has to repeat equally
//	c1< DISCONNECT? code=0x81                   this packet or none of its type
//	c1< raw 20 03 00 .. 00                      exactly these bytes, .. for any
//	c1< idle                                    nothing more has come
//	c1< closed                                  nothing more has come and the connection has ended
//
// Between lines "{" and "}" the packets of each connection may come in any order. At the end of a
// scenario no packet may be left over. Values with spaces and special characters are quoted as Go
// strings; <100 bytes> is a text of that length and <100*ab> a text a hundred times.
//
// Besides what the lines say, a run checks every packet that comes for the rules that hold always,
// see watch.go.
package script

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A Script is one scenario.
type Script struct {
	// File and Line say where it stands, Name is a short name for a subtest.
	File string
	Line int
	Name string
	// Cites are the statements that its comments name, in order.
	Cites []Citation
	// Config are the settings for the broker, in order.
	Config []Setting

	steps []step
}

// A Citation names a statement of the standard.
type Citation struct{ Version, ID string }

// String returns for instance "5.0 MQTT-4.3.3-11".
func (c Citation) String() string { return c.Version + " " + c.ID }

// A Setting is a word of a config line. Value is empty where there was no "=".
type Setting struct{ Key, Value string }

// Timed says whether s needs a clock that the test sets: it lets time pass, counts what is left of
// a message's time, or names a time of less than a minute, so that a slow machine would see it end.
func (s *Script) Timed() bool {
	for _, c := range s.Config {
		d, err := time.ParseDuration(c.Value)
		if err != nil && strings.HasSuffix(c.Key, "-keep-alive") {
			d, _ = time.ParseDuration(c.Value + "s")
		}
		if soon(d) {
			return true
		}
	}
	return slices.ContainsFunc(s.steps, func(st step) bool {
		return st.timed() || slices.ContainsFunc(st.steps, func(st step) bool { return st.timed() })
	})
}

// soon says whether d is a time that may end while a test runs.
func soon(d time.Duration) bool { return d > 0 && d < time.Minute }

func (st *step) timed() bool {
	return st.verb == advance || slices.ContainsFunc(st.tokens, func(t token) bool {
		if strings.HasSuffix(t.key, "message-expiry-interval") && !t.absent {
			return true
		}
		if st.verb != send || t.key != "keepalive" && !strings.HasSuffix(t.key, "-interval") {
			return false
		}
		d, _ := time.ParseDuration(t.value + "s")
		return soon(d)
	})
}

type verb byte

const (
	send verb = iota
	sendRaw
	cut
	expect
	expectRaw
	idle
	closed
	advance
	group
)

// A step is one line, or one group of lines.
type step struct {
	line     int
	text     string // the line
	sentence string // the comment above it
	verb     verb
	conn     string
	packet   string  // name of the packet type
	tokens   []token // of the packet
	raw      []int16 // -1: any byte
	held     bool    // send it together with the next
	optional bool
	wait     time.Duration
	steps    []step // of a group
}

var sendLine, expectLine = regexp.MustCompile(`^(\w+)>(\+?) (.+)$`),
	regexp.MustCompile(`^(\w+)< (.+)$`)

// Parse reads the scenarios of a file. The error joins everything that is wrong with it, each with
// its line. File is the name for messages only.
func Parse(file, text string) ([]*Script, error) {
	var all []*Script
	var errs []error
	lines := strings.Split(text, "\n")
	for first := 0; first < len(lines); {
		end := first
		for end < len(lines) && strings.TrimSpace(lines[end]) != "---" {
			end++
		}
		scripts, err := parseScenario(file, first, lines[first:end])
		all = append(all, scripts...)
		if err != nil {
			errs = append(errs, err)
		}
		first = end + 1
	}
	return all, errors.Join(errs...)
}

// parseScenario reads the lines of a scenario, of which the first has the index first.
func parseScenario(file string, first int, lines []string) ([]*Script, error) {
	lines = append([]string(nil), lines...)
	var columns []column
	start := -1
	for i, l := range lines {
		l = strings.TrimSpace(l)
		lines[i] = l
		if l != "" && start < 0 {
			start = i
		}
		if rest, ok := strings.CutPrefix(l, "each "); ok {
			var err error
			if columns != nil {
				err = errors.New("a second each line")
			} else {
				columns, err = parseEach(rest)
			}
			if err != nil {
				return nil, fmt.Errorf("%s:%d: %w", file, first+i+1, err)
			}
			lines[i] = ""
		}
	}
	if start < 0 {
		return nil, fmt.Errorf("%s:%d: an empty scenario", file, first+1)
	}
	if columns == nil {
		columns = []column{{}}
	}
	var all []*Script
	for _, c := range columns {
		p := parser{s: &Script{File: file, Line: first + start + 1}, first: first}
		p.s.Name = fmt.Sprintf("%s:%d%s", strings.TrimSuffix(path.Base(file), path.Ext(file)),
			p.s.Line, c.suffix)
		p.parse(c.apply(lines))
		if p.errs != nil {
			return all, errors.Join(p.errs...)
		}
		all = append(all, p.s)
	}
	return all, nil
}

// A column of an each line.
type column struct {
	suffix   string
	replacer *strings.Replacer
}

func (c column) apply(lines []string) []string {
	if c.replacer == nil {
		return lines
	}
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = c.replacer.Replace(l)
	}
	return out
}

func parseEach(s string) ([]column, error) {
	head, rest, ok := strings.Cut(s, ":")
	names := strings.Fields(head)
	if !ok || len(names) == 0 {
		return nil, errors.New(`an each line is "each name ...: value ... | value ..."`)
	}
	var cs []column
	for value := range strings.SplitSeq(rest, " | ") {
		value = strings.TrimSpace(value)
		words := []string{value}
		if len(names) > 1 {
			words = strings.Fields(value)
		}
		if len(words) != len(names) {
			return nil, fmt.Errorf("each: %q has not as many words as there are names", value)
		}
		var pairs []string
		for i, n := range names {
			pairs = append(pairs, "${"+n+"}", words[i])
		}
		cs = append(cs, column{suffix: "/" + words[0], replacer: strings.NewReplacer(pairs...)})
	}
	return cs, nil
}

// A parser reads the lines of one scenario.
type parser struct {
	s        *Script
	first    int // index of the first line in the file
	errs     []error
	sentence string
	group    *step
}

func (p *parser) parse(lines []string) {
	for i := 0; i < len(lines); i++ {
		l := lines[i]
		if strings.HasPrefix(l, "#") {
			from := i
			for i+1 < len(lines) && strings.HasPrefix(lines[i+1], "#") {
				i++
			}
			p.comment(from, lines[from:i+1])
			continue
		}
		if l == "" {
			continue
		}
		st := step{line: p.first + i + 1, text: l, sentence: p.sentence}
		if err := p.statement(st); err != nil {
			p.errs = append(p.errs, fmt.Errorf("%s:%d: %w", p.s.File, st.line, err))
		}
	}
	switch {
	case p.group != nil:
		p.errs = append(p.errs, fmt.Errorf("%s:%d: the group is not closed", p.s.File,
			p.group.line))
	case len(p.s.steps) == 0 && p.errs == nil:
		p.errs = append(p.errs,
			fmt.Errorf("%s:%d: a scenario in which nothing happens", p.s.File, p.s.Line))
	}
}

// comment takes the citations out of a block of comment lines; the rest is the sentence for what
// follows.
func (p *parser) comment(at int, lines []string) {
	var sentence []string
	for i := 0; i < len(lines); i++ {
		l := strings.TrimSpace(strings.TrimPrefix(lines[i], "#"))
		if !strings.HasPrefix(l, "5.0 MQTT") && !strings.HasPrefix(l, "3.1.1 MQTT") {
			sentence = append(sentence, l)
			continue
		}
		for strings.HasSuffix(l, ",") && i+1 < len(lines) {
			i++
			l += " " + strings.TrimSpace(strings.TrimPrefix(lines[i], "#"))
		}
		list, rest, ok := strings.Cut(l, ":")
		if !ok {
			p.errs = append(p.errs,
				fmt.Errorf("%s:%d: no colon behind the statements", p.s.File, p.first+at+i+1))
		}
		for item := range strings.SplitSeq(list, ",") {
			version, id, ok := strings.Cut(strings.TrimSpace(item), " ")
			if !ok || version != "5.0" && version != "3.1.1" || !strings.HasPrefix(id, "MQTT") {
				p.errs = append(p.errs, fmt.Errorf("%s:%d: %q is not a version and a statement",
					p.s.File, p.first+at+i+1, item))
				continue
			}
			p.s.Cites = append(p.s.Cites, Citation{version, id})
		}
		if rest = strings.TrimSpace(rest); rest != "" {
			sentence = append(sentence, rest)
		}
	}
	p.sentence = strings.Join(sentence, " ")
}

func (p *parser) statement(st step) error {
	var err error
	if l, ok := strings.CutPrefix(st.text, "config "); ok {
		if len(p.s.steps) > 0 || p.group != nil {
			return errors.New("config has to come before everything else")
		}
		ts, err := tokenize(l)
		for _, t := range ts {
			p.s.Config = append(p.s.Config, Setting{t.key, t.value})
		}
		return err
	}
	switch {
	case st.text == "{":
		if p.group != nil {
			return errors.New("a group in a group")
		}
		st.verb = group
		p.group = &st
		return nil
	case st.text == "}":
		if p.group == nil {
			return errors.New("no group is open")
		}
		p.s.steps = append(p.s.steps, *p.group)
		p.group = nil
		return nil
	case strings.HasPrefix(st.text, "advance "):
		st.verb = advance
		st.wait, err = time.ParseDuration(strings.TrimPrefix(st.text, "advance "))
	default:
		err = st.exchange()
	}
	if err != nil {
		return err
	}
	if p.group == nil {
		p.s.steps = append(p.s.steps, st)
		return nil
	}
	if st.verb != expect || st.optional {
		return errors.New("a group holds packets that are expected, nothing else")
	}
	p.group.steps = append(p.group.steps, st)
	return nil
}

// exchange reads a line with > or <.
func (st *step) exchange() error {
	if m := sendLine.FindStringSubmatch(st.text); m != nil {
		st.conn, st.held = m[1], m[2] != ""
		return st.parseSend(m[3])
	}
	if m := expectLine.FindStringSubmatch(st.text); m != nil {
		st.conn = m[1]
		return st.parseExpect(m[2])
	}
	return fmt.Errorf("%q is none of config, each, advance, {, }, name> and name<", st.text)
}

func (st *step) parseSend(l string) error {
	var err error
	if raw, ok := strings.CutPrefix(l, "raw "); ok {
		st.verb = sendRaw
		st.raw, err = parseRaw(raw)
		for _, b := range st.raw {
			if b < 0 {
				return errors.New(".. can only be expected")
			}
		}
		return err
	}
	if l == "close" {
		st.verb = cut
		return nil
	}
	st.verb = send
	st.packet, l, _ = strings.Cut(l, " ")
	if st.tokens, err = tokenize(l); err != nil {
		return err
	}
	_, _, err = build(st.packet, substitute(st.tokens, nil))
	return err
}

func (st *step) parseExpect(l string) error {
	var err error
	switch {
	case l == "idle":
		st.verb = idle
		return nil
	case l == "closed":
		st.verb = closed
		return nil
	case strings.HasPrefix(l, "raw "):
		st.verb = expectRaw
		st.raw, err = parseRaw(strings.TrimPrefix(l, "raw "))
		return err
	}
	st.verb = expect
	st.packet, l, _ = strings.Cut(l, " ")
	st.packet, st.optional = strings.CutSuffix(st.packet, "?")
	if !known(st.packet) {
		return fmt.Errorf("%q is not a packet type", st.packet)
	}
	st.tokens, err = tokenize(l)
	return err
}
