package mosquittoconf

import (
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/dunlin-mqtt/dunlin/bridge"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is "connection", a bridge to another broker, with the options that belong to it.

// A Connection is one "connection".
type Connection struct {
	Line Line
	// Link is what the options say, except TLS. An empty ClientID is the default, HOST.NAME.
	Link bridge.Link

	CAFile, CAPath, CertFile, KeyFile, ALPN string
	SystemCAs                               bool // the authorities of the system
	Insecure                                bool // the name in the certificate may be another
	TLSVersion                              uint16
	Ciphers                                 []uint16 // of package crypto/tls; nil: its defaults
	// Immediate applies changes of the connection on SIGHUP at once, and not when it ends.
	Immediate bool

	cleanHere *bool // local_cleansession
}

// TLS says whether the connection is encrypted.
func (c *Connection) TLS() bool { return c.CAFile != "" || c.CAPath != "" || c.SystemCAs }

// bridges are the options of connections.
var bridges = []option{
	{"address", text, linked(address)},
	{"addresses", text, linked(address)},
	{"bridge_alpn", text, linkText(func(c *Connection) *string { return &c.ALPN })},
	{"bridge_attempt_unsubscribe", boolean,
		linkBool(func(c *Connection) *bool { return &c.Link.Unsubscribe })},
	{"bridge_bind_address", text, linked(bindTo)},
	{"bridge_cafile", text, linkText(func(c *Connection) *string { return &c.CAFile })},
	{"bridge_capath", text, linkText(func(c *Connection) *string { return &c.CAPath })},
	{"bridge_certfile", text, linkText(func(c *Connection) *string { return &c.CertFile })},
	{"bridge_ciphers", text, linked(func(c *Connection, v value) (string, error) {
		x := new(Listener)
		err := ciphers(x, v)
		c.Ciphers = x.Ciphers
		return "", err
	})},
	{"bridge_ciphers_tls1.3", text, belongs("ignored: all cipher suites of TLS 1.3 are on, and " +
		"all are strong")},
	{"bridge_identity", text, refused(noPSK)},
	{"bridge_insecure", boolean, linkBool(func(c *Connection) *bool { return &c.Insecure })},
	{"bridge_keyfile", text, linkText(func(c *Connection) *string { return &c.KeyFile })},
	{"bridge_max_packet_size", number(0, 268_435_455), linked(maxSent)},
	{"bridge_max_topic_alias", number(0, 65535), belongs("ignored: a bridge uses no Topic Aliases")},
	{"bridge_outgoing_retain", boolean, linkNot(func(c *Connection) *bool {
		return &c.Link.DisableRetain
	})},
	{"bridge_protocol_version", oneOf("mqttv31", "mqttv311", "mqttv50"), linked(bridgeVersion)},
	{"bridge_psk", text, refused(noPSK)},
	{"bridge_receive_maximum", number(1, 65535), linked(func(c *Connection, v value) (string,
		error) {
		c.Link.Window = v.n
		return "", nil
	})},
	{"bridge_reload_type", oneOf("lazy", "immediate"), linked(func(c *Connection,
		v value) (string, error) {
		c.Immediate = v.n == 1
		return "", nil
	})},
	{"bridge_require_ocsp", boolean, refusedIf(true, "answers of OCSP are not looked at: check "+
		"revocation elsewhere, and set it to false")},
	{"bridge_session_expiry_interval", text, linked(sessionExpiry)},
	{"bridge_tcp_keepalive", text, belongs("ignored: TCP probes a silent connection every 15 s")},
	{"bridge_tcp_user_timeout", number(0, anyNumber), belongs("ignored: the bridge ends a " +
		"connection whose other side takes nothing for 20 s, or acknowledges nothing for 60 s")},
	{"bridge_tls_use_os_certs", boolean,
		linkBool(func(c *Connection) *bool { return &c.SystemCAs })},
	{"bridge_tls_version", oneOf("tlsv1.1", "tlsv1.2", "tlsv1.3"), linked(func(c *Connection,
		v value) (string, error) {
		x := new(Listener)
		err := tlsVersion(x, v)
		c.TLSVersion = x.TLSVersion
		return "the lowest version", err
	})},
	{"cleansession", boolean, linkBool(func(c *Connection) *bool { return &c.Link.CleanStart })},
	{"clientid", text, linkText(func(c *Connection) *string { return &c.Link.ClientID })},
	{"connection", text, (*parser).connection},
	{"idle_timeout", number(0, anyNumber), linkSeconds(1, func(c *Connection) *time.Duration {
		return &c.Link.IdleTimeout
	})},
	{"keepalive_interval", number(0, 65535), linkSeconds(5, func(c *Connection) *time.Duration {
		return &c.Link.KeepAlive
	})},
	{"local_cleansession", boolean, linked(func(c *Connection, v value) (string, error) {
		c.cleanHere = &v.on
		return "", nil
	})},
	{"local_clientid", text, belongs("ignored: the Session here that has the queue of a " +
		"connection NAME is $bridge/NAME")},
	{"local_password", text, belongs(noAccount)},
	{"local_username", text, belongs(noAccount)},
	{"notification_topic", text,
		linkText(func(c *Connection) *string { return &c.Link.StateTopic })},
	{"notifications", boolean,
		linkNot(func(c *Connection) *bool { return &c.Link.DisableNotifications })},
	{"notifications_local_only", boolean,
		linkBool(func(c *Connection) *bool { return &c.Link.LocalNotifications })},
	{"password", text, linkText(func(c *Connection) *string { return &c.Link.Password })},
	{"remote_clientid", text, linkText(func(c *Connection) *string { return &c.Link.ClientID })},
	{"remote_password", text, linkText(func(c *Connection) *string { return &c.Link.Password })},
	{"remote_username", text, linkText(func(c *Connection) *string { return &c.Link.Username })},
	{"restart_timeout", text, linked(restartTimeout)},
	{"round_robin", boolean, linkBool(func(c *Connection) *bool { return &c.Link.RoundRobin })},
	{"start_type", oneOf("automatic", "once", "lazy"), linked(func(c *Connection,
		v value) (string, error) {
		c.Link.Start = bridge.StartType(v.n)
		return "", nil
	})},
	{"threshold", number(0, anyNumber), linked(func(c *Connection, v value) (string, error) {
		c.Link.Threshold = max(v.n, 1)
		return "", nil
	})},
	{"topic", text, linked(topic)},
	{"try_private", boolean, linkNot(func(c *Connection) *bool { return &c.Link.DisableBridgeBit })},
	{"username", text, linkText(func(c *Connection) *string { return &c.Link.Username })},
}

const noAccount = "ignored: a bridge needs no account here, and carries what its topics say, as " +
	"in Mosquitto"

// connection reads "connection NAME". What is set here are Mosquitto's defaults.
func (p *parser) connection(v value) (string, error) {
	name := strings.Fields(v.Rest)[0] // the rest is for nobody, as in Mosquitto
	c := &Connection{Line: v.Line, Link: bridge.Link{
		Name: name, Version: packets.V311, Unsubscribe: true, Transit: true,
		KeepAlive: time.Minute, MinBackoff: 5 * time.Second, MaxBackoff: 30 * time.Second,
	}}
	p.bridge = c
	i := slices.IndexFunc(p.Connections, func(x *Connection) bool { return x.Link.Name == name })
	if i >= 0 {
		return "", fmt.Errorf("the connection at %s has the same name",
			p.Connections[i].Line.At())
	}
	p.Connections = append(p.Connections, c)
	return "a bridge to another broker", nil
}

// linked makes an option of a Connection. What set returns says how it was understood.
func linked(set func(*Connection, value) (string, error)) func(*parser, value) (string, error) {
	return func(p *parser, v value) (string, error) {
		if p.bridge == nil {
			return "", errors.New("it belongs to a bridge, and there is no connection line " +
				"before it")
		}
		what, err := set(p.bridge, v)
		whose := "for the connection at " + p.bridge.Line.At()
		if strings.HasPrefix(what, "ignored") {
			return what, err
		} else if what != "" {
			whose += ": " + what
		}
		return whose, err
	}
}

// belongs makes an option of a Connection that changes nothing.
func belongs(why string) func(*parser, value) (string, error) {
	return linked(func(*Connection, value) (string, error) { return why, nil })
}

func linkText(of func(*Connection) *string) func(*parser, value) (string, error) {
	return linked(func(c *Connection, v value) (string, error) {
		*of(c) = v.Rest
		return "", nil
	})
}

func linkBool(of func(*Connection) *bool) func(*parser, value) (string, error) {
	return linked(func(c *Connection, v value) (string, error) {
		*of(c) = v.on
		return "", nil
	})
}

func linkNot(of func(*Connection) *bool) func(*parser, value) (string, error) {
	return linked(func(c *Connection, v value) (string, error) {
		*of(c) = !v.on
		return "", nil
	})
}

// linkSeconds makes an option of seconds. Less than least counts as that, as in Mosquitto.
func linkSeconds(
	least int, of func(*Connection) *time.Duration,
) func(*parser, value) (string, error) {
	return linked(func(c *Connection, v value) (what string, err error) {
		if v.n < least {
			what = fmt.Sprintf("%d s, which is the least, as in Mosquitto", least)
		}
		*of(c) = time.Duration(max(v.n, least)) * time.Second
		return what, nil
	})
}

// address reads "HOST[:PORT] ...".
func address(c *Connection, v value) (string, error) {
	for _, s := range words(v.Rest) {
		host, port := s, "1883"
		switch i := strings.LastIndex(s, ":"); {
		case strings.HasSuffix(s, "]"):
		case i >= 0:
			host, port = s[:i], s[i+1:]
		}
		n, err := strconv.Atoi(port)
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
		v6 := strings.Contains(host, ":")
		if err != nil || n < 1 || n > 65535 || host == "" || v6 && net.ParseIP(host) == nil {
			return "", fmt.Errorf("expected HOST or HOST:PORT, and behind an IPv6 address always "+
				"the port, got %q", s)
		}
		c.Link.Addresses = append(c.Link.Addresses, net.JoinHostPort(host, port))
	}
	return "", nil
}

// words takes a line apart at spaces, except within quotes, and leaves out a comment behind the
// first word.
func words(s string) (all []string) {
	quoted := false
	for _, w := range strings.FieldsFunc(s, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return unicode.IsSpace(r) && !quoted
	}) {
		if len(all) > 0 && w[0] == '#' {
			break
		}
		if len(w) > 1 && w[0] == '"' && w[len(w)-1] == '"' {
			w = w[1 : len(w)-1]
		}
		all = append(all, w)
	}
	return all
}

func bindTo(c *Connection, v value) (string, error) {
	if net.ParseIP(v.Rest) == nil {
		return "", fmt.Errorf("expected an IP address of this machine, got %q", v.Rest)
	}
	c.Link.LocalAddress = v.Rest
	return "", nil
}

func maxSent(c *Connection, v value) (string, error) {
	if v.n > 0 && v.n < 128 {
		return "", fmt.Errorf("expected 0, for no limit, or at least 128, got %d", v.n)
	}
	c.Link.MaxSentSize = v.n
	return "", nil
}

func bridgeVersion(c *Connection, v value) (string, error) {
	if v.n == 0 {
		return "", errors.New("over MQTT 3.1 a bridge cannot know what the other broker still " +
			"has of it: use mqttv311, which Mosquitto knows since version 1.3")
	}
	c.Link.Version = [...]packets.Version{packets.V31, packets.V311, packets.V5}[v.n]
	return "", nil
}

// sessionExpiry reads bridge_session_expiry_interval. The largest value is for ever, as is zero in
// a Link.
func sessionExpiry(c *Connection, v value) (string, error) {
	n, err := strconv.ParseUint(v.Rest, 0, 32)
	if err != nil {
		return "", fmt.Errorf("expected seconds from 0 to 4294967295, got %q", v.Rest)
	}
	c.Link.SessionExpiry = time.Duration(n) * time.Second
	switch n {
	case 0:
		c.Link.CleanStart = true
		return "as cleansession true", nil
	case math.MaxUint32:
		c.Link.SessionExpiry = 0
		return "for ever", nil
	}
	return "", nil
}

// restartTimeout reads "SECONDS" or "BASE CAP".
func restartTimeout(c *Connection, v value) (string, error) {
	var seconds []int
	for _, s := range words(v.Rest) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > anyNumber {
			return "", fmt.Errorf("expected seconds, or a base and a cap in seconds, got %q",
				v.Rest)
		}
		seconds = append(seconds, n)
	}
	c.Link.MinBackoff = time.Duration(seconds[0]) * time.Second
	c.Link.MaxBackoff = c.Link.MinBackoff
	what := fmt.Sprintf("a pause of %v between attempts", c.Link.MinBackoff)
	switch {
	case len(seconds) > 2:
		return "", fmt.Errorf("expected seconds, or a base and a cap in seconds, got %q", v.Rest)
	case len(seconds) == 2 && seconds[1] < seconds[0]:
		return "", fmt.Errorf("the cap, %d, is lower than the base, %d", seconds[1], seconds[0])
	case len(seconds) == 2:
		c.Link.MaxBackoff = time.Duration(seconds[1]) * time.Second
		what = fmt.Sprintf("a random pause between attempts that grows from %v to %v",
			c.Link.MinBackoff, c.Link.MaxBackoff)
	}
	return what, nil
}

// topic reads "PATTERN [DIRECTION [QOS [LOCAL-PREFIX [REMOTE-PREFIX]]]]".
func topic(c *Connection, v value) (string, error) {
	args := words(v.Rest)
	switch {
	case strings.Count(v.Rest, `"`)%2 != 0:
		return "", errors.New("a quotation mark is missing")
	case len(args) > 5:
		return "", fmt.Errorf("expected PATTERN DIRECTION QOS LOCAL-PREFIX REMOTE-PREFIX, got %d "+
			"words", len(args))
	}
	given := [5]string{"", "out", "0"}
	copy(given[:], args)
	ways := map[string]bridge.Direction{"out": bridge.DirectionOut, "in": bridge.DirectionIn,
		"both": bridge.DirectionBoth}
	way, ok := ways[given[1]]
	qos, err := strconv.Atoi(given[2])
	switch {
	case !ok:
		return "", fmt.Errorf("expected the direction out, in or both behind the pattern, got %q",
			given[1])
	case err != nil || qos < 0 || qos > 2:
		return "", fmt.Errorf("expected the QoS 0, 1 or 2 behind the direction, got %q", given[2])
	}
	t := bridge.Topic{Filter: given[0], Direction: way, QoS: packets.QoS(qos),
		LocalPrefix: given[3], RemotePrefix: given[4]}
	if err := t.Check(); err != nil {
		return "", err
	}
	c.Link.Topics = append(c.Link.Topics, t)
	arrow := map[bridge.Direction]string{bridge.DirectionOut: "goes to",
		bridge.DirectionIn: "comes from", bridge.DirectionBoth: "is the same as"}[way]
	return fmt.Sprintf("%s here %s %s there, at QoS %d", t.LocalPrefix+t.Filter, arrow,
		t.RemotePrefix+t.Filter, qos), nil
}

// checkConnection says what does not go together, and completes c.
func (p *parser) checkConnection(c *Connection) {
	l := &c.Link
	switch {
	case len(l.Addresses) == 0:
		p.fail(c.Line, "there is no address line: expected \"address HOST:PORT\"")
	case len(l.Topics) == 0:
		p.fail(c.Line, "there is no topic line: expected \"topic PATTERN DIRECTION QOS\"")
	case l.Password != "" && l.Username == "":
		p.fail(c.Line, "remote_password needs remote_username")
	case (c.CertFile == "") != (c.KeyFile == ""):
		p.fail(c.Line, "bridge_certfile and bridge_keyfile need each other")
	case !c.TLS() && (c.CertFile != "" || c.Insecure || c.ALPN != "" || c.TLSVersion != 0 ||
		c.Ciphers != nil):
		p.fail(c.Line, "it has settings of TLS, but none of bridge_cafile, bridge_capath and "+
			"bridge_tls_use_os_certs: without one of them Mosquitto connects without TLS")
	}
	scheme := "mqtt://"
	if c.TLS() {
		scheme = "mqtts://"
	}
	for i, a := range l.Addresses {
		l.Addresses[i] = scheme + a
	}
	l.CleanStartHere = l.CleanStart
	if c.cleanHere != nil {
		l.CleanStartHere = *c.cleanHere
	}
	if l.Start == bridge.StartLazy { // what it waits for is its queue
		l.CleanStartHere = false
	}
}
