package httpgw

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is POST /topics.

// The headers that are properties of the message. The first is the usual one.
const (
	contentType    = "Content-Type"
	responseTopic  = "Mqtt-Response-Topic"
	correlation    = "Mqtt-Correlation-Data" // base64
	userProperty   = "Mqtt-User-Property"    // name=value, as often as wanted
	payloadFormat  = "Mqtt-Payload-Format"   // 0 or 1
	allowedHeaders = "Authorization, Last-Event-ID, " + contentType + ", " + responseTopic + ", " +
		correlation + ", " + userProperty + ", " + payloadFormat
)

// How long a whole body may take, and how long a client may take nothing of an answer.
const (
	bodyTime   = 30 * time.Second
	answerTime = 30 * time.Second
)

// topicOf is the Topic Name of a request: what follows /topics/, or the parameter topic.
func topicOf(r *http.Request) string {
	if topic, ok := strings.CutPrefix(r.URL.Path, "/topics/"); ok {
		return topic
	}
	return r.URL.Query().Get("topic")
}

// publish is POST /topics/TOPIC.
func (h *Handler) publish(w http.ResponseWriter, r *http.Request, v *visitor) {
	m, wait, err := message(r)
	if err != nil {
		fail(w, err)
		return
	}
	held := body{h: h, v: v, r: r.Body}
	defer held.free()
	if m.Payload, err = held.receive(w); err != nil {
		fail(w, err)
		return
	}
	as := dunlin.Publisher{Client: v.client, Grant: &v.grant, Wait: wait}
	out, err := h.b.PublishAs(r.Context(), as, m)
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, struct {
		Matched      int `json:"matched"`
		Acknowledged int `json:"acknowledged"`
		Lost         int `json:"lost"`
	}{out.Matched, out.Acknowledged, out.Lost})
}

// A body is counted while it is received.
type body struct {
	h       *Handler
	v       *visitor
	r       io.Reader
	read    int64
	counted int64
}

// receive reads the whole body.
func (b *body) receive(w http.ResponseWriter) ([]byte, error) {
	c := http.NewResponseController(w)
	c.SetReadDeadline(time.Now().Add(bodyTime))
	all, err := io.ReadAll(b)
	if err == nil {
		c.SetReadDeadline(time.Time{}) // or the request would end with it
		return all, nil
	}
	w.Header().Set("Connection", "close") // the rest of it is not wanted
	if _, ok := errors.AsType[*packets.Error](err); ok {
		return nil, err
	}
	return nil, packets.Errorf(packets.MalformedPacket, "the body did not come in whole")
}

// Read is that of io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.read += int64(n); b.read > b.h.o.MaxBody {
		return n, packets.Errorf(packets.PacketTooLarge, "at most %d bytes", b.h.o.MaxBody)
	}
	if b.read > b.counted {
		more := max(b.read-b.counted, 4<<10)
		if err := b.h.users.carry(b.v.user, more); err != nil {
			return n, err
		}
		b.counted += more
	}
	return n, err
}

// free ends the counting.
func (b *body) free() { b.h.users.carry(b.v.user, -b.counted) }

// message makes a message of the parameters and headers of a request.
func message(r *http.Request) (m *dunlin.Message, wait time.Duration, err error) {
	m = &dunlin.Message{Topic: topicOf(r)}
	n := numbers{r: r}
	m.QoS = dunlin.QoS(n.of("qos", 2))
	m.Retain = n.of("retain", 1) == 1
	if x := n.of("expiry", 1<<32-1); x > 0 {
		m.Properties = m.Properties.AppendUint(packets.MessageExpiryInterval, uint32(x))
	}
	wait = time.Duration(n.of("wait", 60)) * time.Second
	if n.err != nil {
		return nil, 0, n.err
	}
	switch r.Header.Get(payloadFormat) {
	case "", "0":
	case "1":
		m.Properties = m.Properties.AppendUint(packets.PayloadFormatIndicator, 1)
	default:
		return nil, 0, packets.Errorf(packets.MalformedPacket, "%s: expected 0 or 1", payloadFormat)
	}
	for name, id := range map[string]packets.Property{
		contentType: packets.ContentType, responseTopic: packets.ResponseTopic,
	} {
		if err := text(&m.Properties, id, name, r.Header.Get(name)); err != nil {
			return nil, 0, err
		}
	}
	if x := r.Header.Get(correlation); x != "" {
		data, err := base64.StdEncoding.DecodeString(x)
		if err != nil || len(data) > maxText {
			return nil, 0, packets.Errorf(packets.MalformedPacket, "%s: expected base64",
				correlation)
		}
		m.Properties = m.Properties.AppendBytes(packets.CorrelationData, data)
	}
	for _, x := range r.Header.Values(userProperty) {
		name, value, ok := strings.Cut(x, "=")
		if !ok || max(len(name), len(value)) > maxText || !packets.ValidUTF8(x) {
			return nil, 0, packets.Errorf(packets.MalformedPacket, "%s: expected name=value",
				userProperty)
		}
		m.Properties = m.Properties.AppendUser(name, value)
	}
	return m, wait, nil
}

// maxText is the longest string of a packet.
const maxText = 65_535

// text appends a property, unless the text is empty.
func text(to *packets.Properties, id packets.Property, name, value string) error {
	if len(value) > maxText || !packets.ValidUTF8(value) {
		return packets.Errorf(packets.MalformedPacket, "%s: expected UTF-8 of at most %d bytes",
			name, maxText)
	}
	if value != "" {
		*to = to.AppendText(id, value)
	}
	return nil
}

// numbers reads parameters of a request that are numbers.
type numbers struct {
	r   *http.Request
	err error // what was wrong with one
}

// of returns a parameter, 0 if it is absent.
func (x *numbers) of(name string, most uint64) uint64 {
	text := x.r.URL.Query().Get(name)
	if text == "" {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n > most {
		x.err = packets.Errorf(packets.MalformedPacket, "%s: expected 0 to %d, got %.20q", name,
			most, text)
	}
	return n
}

func answer(w http.ResponseWriter, x any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(x)
}

// A patient writes an answer to a client that may take its time, as long as it takes something.
type patient struct {
	http.ResponseWriter
	control *http.ResponseController
}

func patiently(w http.ResponseWriter) *patient { return &patient{w, http.NewResponseController(w)} }

// pieceBytes is how much a client has to take in answerTime.
const pieceBytes = 64 << 10

// Write is that of io.Writer.
func (p *patient) Write(b []byte) (n int, err error) {
	for len(b) > 0 && err == nil {
		piece := b[:min(len(b), pieceBytes)]
		p.control.SetWriteDeadline(time.Now().Add(answerTime))
		var m int
		m, err = p.ResponseWriter.Write(piece)
		n, b = n+m, b[m:]
	}
	return n, err
}

// flush sends what was written.
func (p *patient) flush() error {
	p.control.SetWriteDeadline(time.Now().Add(answerTime))
	return p.control.Flush()
}
