package mosquittoconf

import (
	"bytes"
	"crypto/tls"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// flags are some of the program's, true for switches.
var flags = map[string]bool{"max-memory": false, "listen": false, "queue-qos0": true, "data": false,
	"config": false, "v": true}

func known(name string) (isSwitch, ok bool) {
	isSwitch, ok = flags[name]
	return isSwitch, ok
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o700))
	require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
	return name
}

// read reads a file with that text.
func read(t *testing.T, text string) *Config {
	t.Helper()
	name := write(t, filepath.Join(t.TempDir(), "c"), text)
	return Read(name, known, []string{"max-memory", "listen", "queue-qos0", "data", "config", "v"})
}

// flat is what a Config says, in one line for each thing.
func flat(c *Config) (lines []string) {
	for _, f := range c.Flags {
		lines = append(lines, "-"+f.Name+" "+f.Value)
	}
	for _, l := range c.Listeners {
		x := *l
		words := ""
		if x.Security != nil && c.PerListener {
			words = security(x.Security)
		}
		if x.MaxQoS != nil {
			words += fmt.Sprint(" MaxQoS:", *x.MaxQoS)
		}
		if x.MaxTopicAlias != nil {
			words += fmt.Sprint(" MaxTopicAlias:", *x.MaxTopicAlias)
		}
		x.Security, x.MaxQoS, x.MaxTopicAlias, x.Line = nil, nil, nil, Line{}
		empty := fmt.Sprintf("%+v", Listener{})
		var set []string
		fields, zero := strings.Fields(fmt.Sprintf("%+v", x)), strings.Fields(empty)
		for _, f := range fields {
			if !slices.Contains(zero, f) {
				set = append(set, strings.Trim(f, "{}"))
			}
		}
		lines = append(lines, "listener "+strings.Join(set, " ")+words)
	}
	if s := security(&c.Shared); s != "" {
		lines = append(lines, "all"+s)
	}
	for _, x := range c.Connections {
		l := x.Link
		lines = append(lines, fmt.Sprint("connection ", l.Name, " to ", l.Addresses, ", ", l.Version,
			", as ", l.Username, ", topics ", len(l.Topics), ", TLS ", x.TLS()))
	}
	if c.ClientIDPrefix != "" {
		lines = append(lines, "prefix "+c.ClientIDPrefix)
	}
	return lines
}

func security(s *Security) (words string) {
	if s.AllowAnonymous != nil {
		words += fmt.Sprint(" anonymous:", *s.AllowAnonymous)
	}
	for name, v := range map[string]string{"passwords": s.PasswordFile, "auto": s.AutoIDPrefix} {
		if v != "" {
			words += " " + name + ":" + v
		}
	}
	if s.ACLFile != "" {
		words += " acl:" + s.ACLFile
	}
	if s.NoEmptyClientID {
		words += " noEmptyID"
	}
	return words
}

// The value of an option is what it needs to be understood, and what comes of it.
var options = []struct{ name, value, want, said string }{
	{"acl_file", "/etc/my acl", "all acl:/etc/my acl", "for all listeners"},
	{"allow_anonymous", "true", "all anonymous:true", "for all"},
	{"allow_anonymous", "false", "all anonymous:false", "for all"},
	{"allow_duplicate_messages", "false", "", "ignored: a client gets a message once"},
	{"allow_zero_length_clientid", "false", "all noEmptyID", "for all"},
	{"allow_zero_length_clientid", "true", "", "for all"},
	{"auth_opt_db", "x", "error", "belongs to a plugin"},
	{"auth_plugin", "/x.so", "error", "plugins"},
	{"auth_plugin_deny_special_chars", "true", "", "ignored"},
	{"auto_id_prefix", "auto-", "all auto:auto-", "for all"},
	{"autosave_interval", "1800", "", "ignored: what is acknowledged is on disk"},
	{"autosave_on_changes", "true", "", "ignored: what is acknowledged is on disk"},
	{"check_retain_source", "true", "", "ignored"},
	{"clientid_prefixes", "secure-", "prefix secure-", "for all"},
	{"connection_messages", "false", "-connection-messages false", ""},
	{"global_max_clients", "7", "-max-connections 7", ""},
	{"global_max_connections", "-1", "-max-connections -1", ""},
	{"log_dest", "stdout", "-log-dest stdout", ""},
	{"log_dest", "file /var/log/m.log", "-log-dest /var/log/m.log", ""},
	{"log_dest", "none", "-log-dest none", ""},
	{"log_dest", "syslog", "-log-dest stderr", "service manager"},
	{"log_dest", "topic", "", "ignored"},
	{"log_dest", "dlt", "", "ignored"},
	{"log_facility", "5", "", "ignored"},
	{"log_timestamp", "false", "-log-timestamp false", ""},
	{"log_timestamp_format", "%Y-%m-%dT%H:%M:%S", "", "ignored"},
	{"log_type", "error", "-log-level error", ""},
	{"log_type", "warning", "-log-level warn", ""},
	{"log_type", "notice", "-log-level info", ""},
	{"log_type", "information", "-log-level info", ""},
	{"log_type", "debug", "-log-level debug|-v true", ""},
	{"log_type", "all", "-log-level debug|-v true", ""},
	{"log_type", "none", "-log-level none", ""},
	{"log_type", "subscribe", "", "ignored"},
	{"log_type", "unsubscribe", "", "ignored"},
	{"log_type", "websockets", "", "ignored"},
	{"max_inflight_bytes", "0", "", "ignored"},
	{"max_inflight_messages", "20", "-max-inflight 20", ""},
	{"max_inflight_messages", "0", "-max-inflight -1", ""},
	{"max_keepalive", "65535", "-server-keep-alive 65535s", ""},
	{"max_packet_size", "1000", "-max-packet-size 1000", ""},
	{"max_queued_bytes", "0", "-max-queued-bytes -1", ""},
	{"max_queued_messages", "1000", "-max-queued-messages 1000", ""},
	{"memory_limit", "1000000", "-max-memory 1000000", ""},
	{"message_size_limit", "0", "-max-payload 0", ""},
	{"message_size_limit", "100", "-max-payload 100", ""},
	{"password_file", "/etc/passwd", "all passwords:/etc/passwd", "for all"},
	{"per_listener_settings", "true", "", "of each listener"},
	{"per_listener_settings", "false", "", "the same for all"},
	{"persistence", "true", "-data ./dunlin", "not read"},
	{"persistence", "false", "", "nothing is kept"},
	{"retained_persistence", "true", "-data ./dunlin", "not read"},
	{"persistence_file", "mosquitto.db", "", "ignored"},
	{"persistence_location", "/var/lib/mosquitto/", "", "the folder"},
	{"persistent_client_expiration", "2m", "-max-session-expiry 1440h", ""},
	{"persistent_client_expiration", "1h", "-max-session-expiry 1h", ""},
	{"persistent_client_expiration", "3d", "-max-session-expiry 72h", ""},
	{"persistent_client_expiration", "1w", "-max-session-expiry 168h", ""},
	{"persistent_client_expiration", "1y", "-max-session-expiry 8760h", ""},
	{"pid_file", "/run/x.pid", "", "ignored"},
	{"plugin", "/x.so", "error", "plugins"},
	{"plugin_opt_x", "y", "error", "belongs to a plugin"},
	{"psk_file", "/x", "error", "pre-shared"},
	{"queue_qos0_messages", "true", "-queue-qos0 true", ""},
	{"retain_available", "false", "-no-retain true", ""},
	{"retain_available", "true", "-no-retain false", ""},
	{"retry_interval", "20", "", "ignored"},
	{"set_tcp_nodelay", "true", "", "ignored"},
	{"store_clean_interval", "10", "", "ignored"},
	{"sys_interval", "0", "-sys-interval 0s", ""},
	{"upgrade_outgoing_qos", "false", "", "as it is"},
	{"upgrade_outgoing_qos", "true", "error", "never raised"},
	{"user", "mosquitto", "", "ignored"},

	{"accept_protocol_versions", "4, 5", "listener Port:1883 Versions:[4 5]", ""},
	{"bind_address", "127.0.0.1", "listener Host:127.0.0.1 Port:1883", "without a listener line"},
	{"bind_interface", "eth0", "error", "give it as the second value"},
	{"enable_proxy_protocol", "2", "listener Port:1883 ProxyProtocol:2", ""},
	{"http_dir", "/srv", "error", "need protocol websockets"},
	{"listener", "1884", "listener Port:1884", "port 1884 of all addresses"},
	{"listener", "1884 # the other one", "listener Port:1884", "port 1884 of all addresses"},
	{"listener", "1884 192.0.2.1", "listener Host:192.0.2.1 Port:1884", "port 1884 of 192.0.2.1"},
	{"listener", "0 /run/m.sock", "listener Path:/run/m.sock", "unix socket /run/m.sock"},
	{"listener", "0", "error", "expected a path"},
	{"listener", "mqtt", "error", "expected a port"},
	{"max_connections", "10", "listener Port:1883 MaxConnections:10", "without a listener line"},
	{"max_connections", "-1", "listener Port:1883", ""},
	{"max_qos", "1", "listener Port:1883 MaxQoS:1", ""},
	{"max_topic_alias", "0", "listener Port:1883 MaxTopicAlias:0", ""},
	{"mount_point", "a/", "error", "no listener line before it"},
	{"port", "1884", "listener Port:1884", "as listener 1884"},
	{"protocol", "websockets", "listener Port:1883 WebSockets:true", ""},
	{"protocol", "mqtt", "listener Port:1883", ""},
	{"socket_domain", "ipv6", "listener Port:1883 Domain:6", ""},
	{"use_username_as_clientid", "true", "listener Port:1883 UsernameAsClientID:true", ""},
	{"websockets_headers_size", "4096", "", "ignored"},
	{"websockets_log_level", "255", "", "ignored"},
	{"websockets_origin", "https://example.org", "error", "need protocol websockets"},

	{"cafile", "/ca", "listener Port:1883 CAFile:/ca", ""},
	{"capath", "/ca", "error", "into one file"},
	{"certfile", "/crt", "error", "needs both certfile and keyfile"},
	{"keyfile", "/key", "error", "needs both certfile and keyfile"},
	{"ciphers", "ECDHE-RSA-AES128-GCM-SHA256:RC4", fmt.Sprintf("listener Port:1883 Ciphers:[%d]",
		tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256), ""},
	{"ciphers", "HIGH:!aNULL", "error", "the defaults are strong"},
	{"ciphers_tls1.3", "TLS_AES_128_GCM_SHA256", "", "ignored"},
	{"crlfile", "/crl", "error", "certfile and keyfile are missing"},
	{"dhparamfile", "/dh", "", "ignored"},
	{"psk_hint", "x", "error", "pre-shared"},
	{"require_certificate", "true", "error", "certfile and keyfile are missing"},
	{"tls_engine", "tpm", "error", "engine"},
	{"tls_engine_kpass_sha1", "00", "error", "engine"},
	{"tls_keyform", "pem", "", "as it is"},
	{"tls_keyform", "engine", "error", "engine"},
	{"tls_version", "tlsv1.3", fmt.Sprintf("listener Port:1883 TLSVersion:%d", tls.VersionTLS13),
		""},
	{"use_identity_as_username", "true", "error", "certfile and keyfile are missing"},
	{"use_subject_as_username", "true", "error", "certfile and keyfile are missing"},
	{"connection", "b", "error", "there is no address line"},
	{"include_dir", "/nowhere/at all", "error", "no such file"},
}

func TestEachOption(t *testing.T) {
	tested := map[string]bool{}
	for _, tt := range options {
		o, ok := find(tt.name)
		require.True(t, ok, tt.name)
		tested[o.name] = true
		t.Run(tt.name+" "+tt.value, func(t *testing.T) {
			c := read(t, tt.name+" "+tt.value+"\n")
			if tt.want == "error" {
				require.NotEmpty(t, c.Errors)
				require.Contains(t, c.Errors[0].Error(), "c:1: "+tt.name+": ")
				require.Contains(t, c.Errors[0].Error(), tt.said)
				return
			}
			require.Empty(t, c.Errors)
			require.Equal(t, tt.want, strings.Join(flat(c), "|"))
			require.Len(t, c.Said, 1)
			require.Contains(t, c.Said[0].What, tt.said)
		})
	}
	for _, o := range bridges { // TestEachOptionOfAConnection
		tested[o.name] = true
	}
	for _, o := range table {
		require.True(t, tested[o.name], "no test for %s", o.name)
	}
}

// An option without its value, or with one of another kind, is an error, and the next line is still
// a line.
func TestEachOptionWithoutAValue(t *testing.T) {
	for _, o := range table {
		name := strings.ReplaceAll(o.name, "*", "x")
		if _, err := o.kind.read(Line{}); err == nil {
			continue // it is refused or ignored, whatever its value is
		}
		c := read(t, name+"\nmax_inflight_messages 3\n")
		require.Len(t, c.Errors, 1, name)
		require.Regexp(t, `c:1: `+regexp.QuoteMeta(name)+`: (the value is missing|expected)`,
			c.Errors[0].Error())
		require.Equal(t, []string{"-max-inflight 3"}, flat(c), name)
	}
}

func TestValuesThatAreNone(t *testing.T) {
	for _, tt := range [][2]string{
		{"allow_anonymous yes", `expected true or false, got "yes"`},
		{"max_inflight_messages many", `expected a number from 0 to 65535, got "many"`},
		{"max_inflight_messages 20 # is enough", "expected a number"},
		{"max_keepalive 5", "from 10 to 65535"},
		{"max_packet_size 10", "from 20 to"},
		{"persistent_client_expiration 2x", "as in 14d"},
		{"persistent_client_expiration d", "as in 14d"},
		{"persistent_client_expiration 999999y", "as in 14d"},
		{"log_type verbose", "expected debug"},
		{"log_dest printer", "expected stdout"},
		{"log_dest file", "the name of the file"},
		{"listener 65536", "expected a port"},
		{"tls_version sslv3", "expected tlsv1.1"},
		{"accept_protocol_versions 3,6", "expected 3, 4 and 5"},
	} {
		c := read(t, tt[0])
		require.Len(t, c.Errors, 1, tt[0])
		require.Contains(t, c.Errors[0].Error(), tt[1])
	}
}

func TestUnknownNamesAreErrorsWithASuggestion(t *testing.T) {
	for _, tt := range [][2]string{
		{"max_inflight_message 3", "did you mean max_inflight_messages?"},
		{"max_memory 3", "did you mean the flag max-memory?"},
		{"-listen :1883", "did you mean the flag listen?"},
		{"allow_anonymous=true", `write "allow_anonymous VALUE"`},
		{"Listener 1883", "did you mean listener?"},
		{"xyzzyxyzzy 3", "mosquitto.conf(5)"},
	} {
		c := read(t, "\n# a comment\n"+tt[0]+"\nmax_qos 1\n")
		require.Len(t, c.Errors, 1, tt[0])
		require.Contains(t, c.Errors[0].Error(), "c:3: ")
		require.Contains(t, c.Errors[0].Error(), "there is no such option; "+tt[1])
		require.Len(t, c.Listeners, 1, "the next line counts")
	}
}

func TestOurOwnFlagsStandInTheSameFile(t *testing.T) {
	c := read(t, "max-memory 64MiB\nmax-memory=1\nlisten = "+
		":1883\nqueue-qos0\nmax_inflight_messages 2\nqueue-qos0 false\n")
	require.Empty(t, c.Errors)
	require.Equal(t, []string{"-max-memory 64MiB", "-max-memory 1", "-listen :1883",
		"-queue-qos0 true", "-max-inflight 2", "-queue-qos0 false"}, flat(c))
	c = read(t, "max-memory\nlisten :1\nconfig other\n")
	require.Len(t, c.Errors, 2)
	require.ErrorContains(t, c.Errors[0], "the value is missing")
	require.ErrorContains(t, c.Errors[1], "cannot name another")
	require.Equal(t, []string{"-listen :1"}, flat(c))
	for name := range flags {
		_, ok := find(name)
		require.False(t, ok, "%s is an option of Mosquitto as well", name)
	}
}

func TestSettingsOfListeners(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"what stands before the first listener is another one",
			"max_connections 5\nlistener 1884\nmax_connections 6",
			"listener Port:1884 MaxConnections:6|listener Port:1883 MaxConnections:5"},
		{"port is that other one, wherever it stands", "listener 1884\nport 1885",
			"listener Port:1884|listener Port:1885"},
		{"settings of all listeners make none", "allow_anonymous true\nmax_queued_messages 1",
			"-max-queued-messages 1|all anonymous:true"},
		{"users of each listener", "per_listener_settings true\nlistener 1\npassword_file " +
			"a\nacl_file b\nlistener 2\nallow_anonymous true\nmount_point m/",
			"listener Port:1 passwords:a acl:b|listener Port:2 MountPoint:m/ anonymous:true"},
		{"users of the one that is there without a line", "per_listener_settings " +
			"true\nallow_anonymous true\nlistener 2",
			"listener Port:2|listener Port:1883 anonymous:true"},
		{"users of each listener, said behind the first", "listener 1\nper_listener_settings " +
			"true\npassword_file a\nlistener 2",
			"listener Port:1 passwords:a|listener Port:2"},
		{"users of all listeners, behind one", "listener 1\npassword_file a\nlistener 2",
			"listener Port:1|listener Port:2|all passwords:a"},
		{"persistence", "persistence true\npersistence_location /var/lib/x/\n",
			"-data /var/lib/x/dunlin"},
		{"persistence that is turned off again", "persistence true\npersistence_location " +
			"/x\npersistence false\n", ""},
		{"the type that lets most through", "log_type error\nlog_type notice\nlog_type warning",
			"-log-level info"},
		{"Windows, and spaces", "\xef\xbb\xbf  listener\t1884  \r\n\r\n", "listener Port:1884"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := read(t, tt.text)
			require.Empty(t, c.Errors)
			require.Equal(t, tt.want, strings.Join(flat(c), "|"))
		})
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	c := read(t, "allow_anonymous yes\nlistener 1\nlistener 1\nper_listener_settings true\ncolour "+
		"blue\nmax_qos 1\nconnection a\naddress b\ntopic # out\ntopic\n")
	var all []string
	for _, err := range c.Errors {
		all = append(all, err.Error()[strings.LastIndex(err.Error()[:strings.Index(err.Error(),
			": ")], "c:"):])
	}
	require.Len(t, all, 4, "%q", all)
	for i, want := range []string{"c:1: allow_anonymous", "c:5: colour", "c:10: topic: the value is missing", "c:3: listener: the listener at"} {
		require.True(t, strings.HasPrefix(all[i], want), "%q", all)
	}
	c = read(t, "allow_anonymous true\nper_listener_settings true\n")
	require.Len(t, c.Errors, 1)
	require.ErrorContains(t, c.Errors[0], "c:2: per_listener_settings: it must stand before")
	c = read(t, "topic # out\n")
	require.ErrorContains(t, c.Errors[0], "there is no connection line before it")
}

// An included file begins as if nothing stood before it, and the file that includes goes on where it
// was: what one says about its listener changes no other.
func TestAnIncludedFileHasListenersOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "d", "a.conf"), "listener 1\n")
	write(t, filepath.Join(dir, "d", "b.conf"), "allow_anonymous true\nlistener 2\nmax_qos 0\n")
	main := write(t, filepath.Join(dir, "m"), "per_listener_settings true\nlistener 3\n"+
		"include_dir "+filepath.Join(dir, "d")+"\nmax_qos 1\n")
	c := Read(main, known, nil)
	require.Empty(t, c.Errors)
	at := map[int]*Listener{}
	for _, x := range c.Listeners {
		at[x.Port] = x
	}
	require.Len(t, at, 4, "those three, and the one at port 1883 that b.conf opens to anybody")
	require.Nil(t, at[1].Security.AllowAnonymous, "b.conf does not mean the listener of a.conf")
	require.Nil(t, at[1].MaxQoS)
	require.True(t, *at[1883].Security.AllowAnonymous)
	require.Equal(t, 0, *at[2].MaxQoS)
	require.Equal(t, 1, *at[3].MaxQoS, "the main file goes on with its own listener")

	write(t, filepath.Join(dir, "e", "a.conf"), "address 127.0.0.1\n")
	c = Read(write(t, main, "connection x\naddress 127.0.0.1\ninclude_dir "+
		filepath.Join(dir, "e")+"\ntopic # out\n"), known, nil)
	require.Len(t, c.Errors, 1)
	require.ErrorContains(t, c.Errors[0], filepath.Join(dir, "e", "a.conf")+":1: address: ")
}

func TestIncludeDir(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"00.conf", "01.conf", "A.conf", "a.conf", "B.conf", "b.conf"} {
		write(t, filepath.Join(dir, "d", name), fmt.Sprintf("# %d\nmax_inflight_messages %d\n", i,
			i+1))
	}
	write(t, filepath.Join(dir, "d", "c.conf.bak"), "nonsense")
	write(t, filepath.Join(dir, "e", "x.conf"), "include_dir "+dir+"/d\nwhat\n")
	main := write(t, filepath.Join(dir, "m"), "max_inflight_messages 9\ninclude_dir "+
		""+filepath.Join(dir, "d")+"\nmax_inflight_messages 8\n")
	c := Read(main, known, nil)
	require.Empty(t, c.Errors)
	require.Equal(t, "-max-inflight 9|-max-inflight 1|-max-inflight 2|-max-inflight "+
		"3|-max-inflight 4|-max-inflight 5|-max-inflight 6|-max-inflight 8",
		strings.Join(flat(c), "|"))
	require.Equal(t, filepath.Join(dir, "d", "A.conf")+":2", c.Flags[3].Line.At())
	c = Read(write(t, main, "include_dir "+filepath.Join(dir, "e")), known, nil)
	require.Len(t, c.Errors, 2)
	require.ErrorContains(t, c.Errors[0], filepath.Join(dir, "e",
		"x.conf")+":1: include_dir: only the main file")
	require.ErrorContains(t, c.Errors[1], filepath.Join(dir, "e", "x.conf")+":2: what")
	require.Len(t, Read(filepath.Join(dir, "none"), known, nil).Errors, 1)
}

// The manual page of the Mosquitto that is installed names no option that is not here.
func TestTheManualNamesNoOther(t *testing.T) {
	page, err := exec.Command("man", "mosquitto.conf").Output()
	if err != nil {
		t.Skipf("there is no manual page of Mosquitto here: %v", err)
	}
	page = regexp.MustCompile(".\x08").ReplaceAll(page, nil)
	_, rest, ok := bytes.Cut(page, []byte("GENERAL OPTIONS"))
	require.True(t, ok)
	found := 0
	for _, m := range regexp.MustCompile(`(?m)^       ([a-z][a-z0-9_.]+\*?)(?:,|$| )`).FindAllStringSubmatch(string(rest), -1) {
		name := m[1]
		if strings.Contains(name, "_") || name == "listener" || name == "topic" || name == "port" {
			_, ok := find(strings.ReplaceAll(name, "*", "x"))
			require.True(t, ok, name)
			found++
		}
	}
	require.Greater(t, found, 90)
}

func FuzzRead(f *testing.F) {
	for _, o := range options {
		f.Add(o.name + " " + o.value)
	}
	f.Add("listener 1\r\nport 2\nallow_anonymous=true\n\x00")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "include_dir") {
			return // reads other files
		}
		c := read(t, text)
		settings := 0
		for raw := range strings.SplitSeq(strings.TrimPrefix(text, "\xef\xbb\xbf"), "\n") {
			if raw = strings.TrimSpace(raw); raw != "" && raw[0] != '#' {
				settings++
			}
		}
		var said []Said // without those that a listener as a whole got
		for _, s := range c.Said {
			if len(said) == 0 || said[len(said)-1].Line.Number < s.Line.Number {
				said = append(said, s)
			}
		}
		require.Len(t, said, settings, "each line is understood, or an error")
	})
}

var update = flag.Bool("update", false, "write what the files in testdata give")

// Each file in testdata is one as people have it. Beside it stands what it gives.
func TestFilesAsPeopleHaveThem(t *testing.T) {
	files, err := filepath.Glob("testdata/*.conf")
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(files), 10)
	all := func(name string) (isSwitch, ok bool) {
		return false, !strings.Contains(name, "_") && strings.Contains(name, "-")
	}
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			c := Read(file, all, nil)
			var b strings.Builder
			for _, s := range c.Said {
				fmt.Fprintf(&b, "%s: %s: %s\n", s.Line.At(), s.Line.Name, s.What)
			}
			for _, err := range c.Errors {
				fmt.Fprintln(&b, "error:", err)
			}
			for _, l := range flat(c) {
				fmt.Fprintln(&b, "gives:", l)
			}
			want := strings.TrimSuffix(file, ".conf") + ".txt"
			if *update {
				require.NoError(t, os.WriteFile(want, []byte(b.String()), 0o600))
			}
			text, err := os.ReadFile(want)
			require.NoError(t, err)
			require.Equal(t, string(text), b.String())
		})
	}
}
