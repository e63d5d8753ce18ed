// Package webhook lets an HTTP server decide which clients may connect ([NewAuthenticator]) and
// what they may publish and subscribe to ([NewAuthorizer]). It can also send events to a server
// ([NewEvents]).
//
// # Questions
//
// Each question is a POST with a JSON object. The question about a CONNECT:
//
//	{"action": "connect", "client_id": "c1", "username": "jane", "password": "pencil", "version": 5, "remote_ip": "192.0.2.7",
//	 "listener": "198.51.100.1:8883", "certificate": {"common_name": "jane", "fingerprint": "6f2d..."}}
//
// username and password are missing if the CONNECT had none. A password that is not UTF-8 is sent
// as "password_base64" instead. version is 3, 4 or 5 for MQTT 3.1, 3.1.1 and 5.0. certificate is
// present if the handshake has verified a client certificate. The question about a publish or
// subscription:
//
//	{"action": "publish", "client_id": "c1", "user": "jane", "roles": ["sensor"], "tenant": "t1", "attributes": {"k": "v"},
//	 "remote_ip": "192.0.2.7", "topic": "a/b", "qos": 1, "retain": true, "will": true}
//	{"action": "subscribe", "client_id": "c1", "user": "jane", "remote_ip": "192.0.2.7", "topic": "a/#", "group": "g", "qos": 1}
//
// user is the verified name, or else the User Name. It is missing for an anonymous client. topic is
// without "$share/group/"; group has the ShareName. Allow a subscription only if the client may
// read everything that its Topic Filter matches. Fields that are false, zero or empty may be
// missing.
//
// # Answers
//
// Status 200 and a JSON object:
//
//	{"result": "allow"}
//	{"result": "deny", "reason_code": 135, "reason": "not today"}
//	{"result": "abstain"}
//
// reason_code is a code of MQTT 5.0 from 128 on. Without it the client gets Bad User Name or
// Password (134) on a CONNECT and Not authorized (135) otherwise. 5.0 clients receive reason.
// "cache_seconds" is how long the answer may be cached, instead of the time in the Options; 0 means
// not at all. An answer that allows a CONNECT may have more fields:
//
//	{"result": "allow", "principal": "jane", "roles": ["sensor"], "tenant": "t1", "attributes": {"k": "v"},
//	 "mount_point": "tenants/t1/", "expires_seconds": 3600, "limits": {"receive_maximum": 10, "packet_size": 65536,
//	 "keep_alive_seconds": 60, "session_expiry_seconds": 3600, "queued_messages": 100, "queued_bytes": 65536,
//	 "publish_rate": 10, "publish_bytes": 10000}}
//
// # Failures
//
// Everything else refuses: no answer within the time-out, another status, an invalid body, an open
// circuit, a question that waited in vain for its turn. A CONNECT is then answered with Server
// unavailable (0x88), and a publish or subscription with Implementation specific error (0x83): the
// client may try again.
//
// Questions about one peer, an address or a user, do not delay the answers to others, however many
// they are and however the server fails at them: see Options.MaxConcurrent, MaxWaiting, MaxCached
// and BreakAfter.
//
// # Events
//
// Each request is a POST with several events:
//
//	{"sent": "2026-01-02T15:04:05Z", "dropped": 0, "events": [
//	  {"seq": 1, "time": "2026-01-02T15:04:05.123Z", "event": "connected", "client_id": "c1", "user": "jane", "remote_ip": "192.0.2.7",
//	   "session_present": true}]}
//
// seq counts events in the order in which they are delivered. If numbers are missing, events were
// dropped; dropped is their total number. [Event] describes the events and their fields. A status
// of 200 to 299 means that the server has the events. After 413 the server gets them again in
// smaller requests. After 408, 425, 429, and 500 and more, the request is repeated. After any other
// status, and after too many attempts, the events are dropped. The header Dunlin-Delivery is the
// same for each attempt at the same request.
//
// # Signatures
//
// With a Secret, each request has a header Dunlin-Timestamp, the time in seconds since 1970, and a
// header Dunlin-Signature: "sha256=" and, in hexadecimal digits, the HMAC-SHA256 of the timestamp,
// a full stop and the body. [Verify] checks them.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

const (
	timestampHeader = "Dunlin-Timestamp"
	signatureHeader = "Dunlin-Signature"
	deliveryHeader  = "Dunlin-Delivery"
	// maxAnswer is the maximum size of an answer, in bytes.
	maxAnswer = 64 << 10
	// idleConns is how many idle connections to the server are kept, for a while.
	idleConns = 64
)

// A poster makes requests to one URL.
type poster struct {
	client  *http.Client
	url     string
	header  http.Header
	secret  []byte
	timeout time.Duration
}

func (p *poster) check() error {
	u, err := url.Parse(p.url)
	switch {
	case err != nil:
		return fmt.Errorf("webhook: Options.URL: %w", err)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("webhook: Options.URL %q is not one with http or https and a host", p.url)
	}
	if p.client == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = idleConns
		p.client = &http.Client{Transport: t, CheckRedirect: func(*http.Request,
			[]*http.Request) error {
			return http.ErrUseLastResponse
		}}
	}
	if p.timeout <= 0 {
		p.timeout = 5 * time.Second
	}
	return nil
}

// post sends a body, and returns the status and body of the answer. A panic of the Client is an
// error.
func (p *poster) post(ctx context.Context, body []byte, delivery string) (status int, answer []byte,
	err error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	defer func() {
		if v := recover(); v != nil {
			status, answer, err = 0, nil, fmt.Errorf("panic in the HTTP client: %v", v)
		}
	}()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	for name, values := range p.header {
		r.Header[name] = values
	}
	r.Header.Set("Content-Type", "application/json")
	if delivery != "" {
		r.Header.Set(deliveryHeader, delivery)
	}
	if len(p.secret) > 0 {
		now := strconv.FormatInt(time.Now().Unix(), 10)
		r.Header.Set(timestampHeader, now)
		r.Header.Set(signatureHeader, signature(p.secret, now, body))
	}
	a, err := p.client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer a.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(a.Body, maxAnswer+1))
	if err == nil && len(answer) > maxAnswer {
		err = fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	}
	return a.StatusCode, answer, err
}

func signature(secret []byte, timestamp string, body []byte) string {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(timestamp))
	h.Write([]byte{'.'})
	h.Write(body)
	return "sha256=" + hex.EncodeToString(h.Sum(nil))
}

// Verify says whether a request with that header and body was made by somebody who has the secret,
// no longer ago than tolerance (zero: 5 minutes). The error says why not. Use it in the server.
func Verify(secret []byte, header http.Header, body []byte, tolerance time.Duration) error {
	if len(secret) == 0 {
		return errors.New("webhook: no secret")
	}
	if tolerance <= 0 {
		tolerance = 5 * time.Minute
	}
	timestamp := header.Get(timestampHeader)
	at, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return fmt.Errorf("webhook: the header %s is missing, or no number", timestampHeader)
	}
	if !hmac.Equal([]byte(header.Get(signatureHeader)),
		[]byte(signature(secret, timestamp, body))) {
		return fmt.Errorf("webhook: the header %s is not the request's signature", signatureHeader)
	}
	if age := time.Since(time.Unix(at, 0)); age > tolerance || age < -tolerance {
		return fmt.Errorf("webhook: the request is %v old", age.Round(time.Second))
	}
	return nil
}
