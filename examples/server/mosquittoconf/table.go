package mosquittoconf

import (
	"math"
	"slices"
)

const (
	anyNumber = math.MaxInt32
	most      = math.MaxInt
)

// table has every option of mosquitto.conf(5) of version 2.0, and some of later ones.
var table []option

func init() {
	table = slices.Concat(general, listening, tlsOptions, bridges)
}

var general = []option{
	{"acl_file", text, secure(func(s *Security, v value) { s.ACLFile = v.Rest })},
	{"allow_anonymous", boolean, secure(func(s *Security, v value) { s.AllowAnonymous = &v.on })},
	{"allow_duplicate_messages", boolean, ignored("a client gets a message once, however many of " +
		"its subscriptions match")},
	{"allow_zero_length_clientid", boolean, secure(emptyClientID)},
	{"auth_opt_*", anything, refused(ofPlugin)},
	{"auth_plugin", text, refused(noPlugins)},
	{"auth_plugin_deny_special_chars", boolean, ignored("there are no plugins")},
	{"auto_id_prefix", text, secure(func(s *Security, v value) { s.AutoIDPrefix = v.Rest })},
	{"autosave_interval", number(math.MinInt32, anyNumber), ignored(durableAtOnce)},
	{"autosave_on_changes", boolean, ignored(durableAtOnce)},
	{"check_retain_source", boolean,
		ignored("a retained message stays until somebody removes it, " +
			"whatever its publisher may do now")},
	{"clientid_prefixes", text, (*parser).clientIDPrefixes},
	{"connection_messages", boolean, toFlag("connection-messages", asBool)},
	{"global_max_clients", number(-1, anyNumber), toFlag("max-connections", asLimit)},
	{"global_max_connections", number(-1, anyNumber), toFlag("max-connections", asLimit)},
	{"include_dir", text, (*parser).includeDir},
	{"log_dest", text, (*parser).logDest},
	{"log_facility", number(0, 7), ignored("the service manager sends the log to syslog")},
	{"log_timestamp", boolean, toFlag("log-timestamp", asBool)},
	{"log_timestamp_format", text, ignored(textLog)},
	{"log_type", text, (*parser).logType},
	{"max_inflight_bytes", number(0, most), ignored("max_inflight_messages and the client's own " +
		"limit bound what is in flight")},
	{"max_inflight_messages", number(0, 65535), toFlag("max-inflight", asLimit)},
	{"max_keepalive", number(10, 65535), toFlag("server-keep-alive", asSeconds)},
	{"max_packet_size", number(20, 268_435_460), toFlag("max-packet-size", asLimit)},
	{"max_queued_bytes", number(0, most), toFlag("max-queued-bytes", asLimit)},
	{"max_queued_messages", number(0, anyNumber), toFlag("max-queued-messages", asLimit)},
	{"memory_limit", number(0, most), toFlag("max-memory", asLimit)},
	{"message_size_limit", number(0, 268_435_455), toFlag("max-payload", asNumber)},
	{"password_file", text, secure(func(s *Security, v value) { s.PasswordFile = v.Rest })},
	{"per_listener_settings", boolean, (*parser).perListener},
	{"persistence", boolean, (*parser).persistenceOn},
	{"persistence_file", text, ignored("the store has files of its own, below " +
		"persistence_location")},
	{"persistence_location", text, (*parser).persistenceLocation},
	{"persistent_client_expiration", duration, toFlag("max-session-expiry", asHours)},
	{"pid_file", text, ignored("the service manager knows the process")},
	{"plugin", text, refused(noPlugins)},
	{"plugin_opt_*", anything, refused(ofPlugin)},
	{"psk_file", text, refused(noPSK)},
	{"queue_qos0_messages", boolean, toFlag("queue-qos0", asBool)},
	{"retain_available", boolean, toFlag("no-retain", asNot)},
	{"retained_persistence", boolean, (*parser).persistenceOn},
	{"retry_interval", anything, ignored(mosquitto1)},
	{"set_tcp_nodelay", boolean, ignored("TCP_NODELAY is always set; packets that are due " +
		"together are written together")},
	{"store_clean_interval", anything, ignored(mosquitto1)},
	{"sys_interval", number(0, 65535), toFlag("sys-interval", asSeconds)},
	{"upgrade_outgoing_qos", boolean, refusedIf(true, "the QoS of a message is never raised "+
		"(3.8.4 of the standard): "+
		"publish with the QoS that subscribers are to get")},
	{"user", text, ignored("start the process as that user, for instance with User= of systemd")},
}

var listening = []option{
	{"accept_protocol_versions", text, listen(versions)},
	{"bind_address", text, (*parser).bindAddress},
	{"bind_interface", text, refused("a listener is bound to an address: give it as the second " +
		"value of listener")},
	{"enable_proxy_protocol", number(1, 2), listen(proxyProtocol)},
	{"http_dir", text, listenText(func(x *Listener) *string { return &x.HTTPDir })},
	{"listener", text, (*parser).startListener},
	{"max_connections", number(-1, anyNumber), listen(maxConnections)},
	{"max_qos", number(0, 2), listen(maxQoS)},
	{"max_topic_alias", number(0, 65535), listen(maxTopicAlias)},
	{"mount_point", text, (*parser).mountPoint},
	{"port", number(1, 65535), (*parser).port},
	{"protocol", oneOf("mqtt", "websockets"), listen(protocol)},
	{"socket_domain", oneOf("ipv4", "ipv6"), listen(socketDomain)},
	{"use_username_as_clientid", boolean,
		listenBool(func(x *Listener) *bool { return &x.UsernameAsClientID })},
	{"websockets_headers_size", number(0, anyNumber), ignored("headers of a WebSocket handshake " +
		"may have 16 KiB")},
	{"websockets_log_level", number(0, anyNumber), ignored("there is one log for all listeners")},
	{"websockets_origin", text, listen(origin)},
}

var tlsOptions = []option{
	{"cafile", text, listenText(func(x *Listener) *string { return &x.CAFile })},
	{"capath", text, refused("a folder of authorities cannot be used: put its certificates into " +
		"one file, and name that with cafile")},
	{"certfile", text, listenText(func(x *Listener) *string { return &x.CertFile })},
	{"ciphers", text, listen(ciphers)},
	{"ciphers_tls1.3", text, ignored("all cipher suites of TLS 1.3 are on, and all are strong")},
	{"crlfile", text, listenText(func(x *Listener) *string { return &x.CRLFile })},
	{"dhparamfile", text, ignored("keys are exchanged with elliptic curves, which need no " +
		"parameters")},
	{"keyfile", text, listenText(func(x *Listener) *string { return &x.KeyFile })},
	{"psk_hint", text, refused(noPSK)},
	{"require_certificate", boolean,
		listenBool(func(x *Listener) *bool { return &x.RequireCertificate })},
	{"tls_engine", text, refused(noEngine)},
	{"tls_engine_kpass_sha1", text, refused(noEngine)},
	{"tls_keyform", oneOf("pem", "engine"), keyForm},
	{"tls_version", oneOf("tlsv1.1", "tlsv1.2", "tlsv1.3"), listen(tlsVersion)},
	{"use_identity_as_username", boolean,
		listenBool(func(x *Listener) *bool { return &x.IdentityAsUsername })},
	{"use_subject_as_username", boolean,
		listenBool(func(x *Listener) *bool { return &x.SubjectAsUsername })},
}
