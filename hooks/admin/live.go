package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the packets of clients, as they pass.

func liveRoutes() []route {
	return []route{
		{method: "GET", path: ofBroker + "/packets", role: RoleAct, serve: (*call).packets,
			params: []string{"id", "address", "filter"}},
	}
}

// How much one request for packets shows.
const (
	livePackets = 20_000
	liveBytes   = 64 << 20
	liveFor     = 10 * time.Minute
)

// A packetView is one packet.
type packetView struct {
	At       time.Time `json:"at"`
	Client   string    `json:"client"`
	Conn     uint64    `json:"conn"`
	Incoming bool      `json:"incoming"` // from the client
	Bytes    int       `json:"bytes"`
	// Line is the packet in one line, without its payload.
	Line    string       `json:"line"`
	Message *messageView `json:"message,omitempty"`
	// Lost is how many packets before this one there was no room for.
	Lost uint64 `json:"lost,omitempty"`
}

func asPacket(t *dunlin.TapPacket) packetView {
	v := packetView{At: t.Time, Client: t.Client.ID, Conn: t.Conn, Incoming: t.Incoming,
		Bytes: len(t.Data), Lost: t.Lost}
	p, err := t.Packet()
	switch {
	case t.Withheld:
		v.Line = "not shown: it may hold a password"
	case err != nil:
		v.Line = "not understood: " + err.Error()
	default:
		if x, ok := p.(*packets.Publish); ok {
			m := packets.Message{Topic: string(x.Topic), Payload: x.Payload, QoS: x.QoS,
				Retain: x.Retain, Properties: x.Properties}
			v.Message = new(asMessage(&m))
		}
		v.Line = packets.Trace(p)
	}
	if most := 2048; len(v.Line) > most {
		for most > 0 && !utf8.RuneStart(v.Line[most]) {
			most--
		}
		v.Line = v.Line[:most] + " ..."
	}
	return v
}

// packets sends the packets of a client, of an address, or of topics, as they pass, for at most ten
// minutes. Passwords are not shown.
func (c *call) packets() error {
	o := dunlin.TapOptions{ClientID: c.text("id"), Address: c.text("address"),
		Filter: c.text("filter"), MaxPackets: livePackets, MaxBytes: liveBytes, For: liveFor}
	c.about = o.ClientID + o.Address + o.Filter
	if c.about == "" {
		return fail(http.StatusBadRequest, "query", "say whose packets: id, address or filter")
	}
	ctx, cancel := context.WithCancel(c.r.Context())
	defer cancel()
	defer context.AfterFunc(c.h.ctx, cancel)()
	tap, err := c.desk.b.Tap(ctx, o)
	if errors.Is(err, dunlin.ErrBrokerClosed) {
		return err
	} else if err != nil {
		return fail(http.StatusBadRequest, "tap", "%v", err)
	}
	defer tap.Stop()
	out, end, err := c.open()
	if err != nil {
		return err
	}
	defer end()
	c.record(nil) // now: it may last for minutes
	if out.write([]byte(": here are the packets\n\n")) != nil {
		return nil
	}
	asked := time.Now()
	for p := range tap.Packets() {
		if time.Since(asked) >= heartbeat {
			if asked = time.Now(); !c.mayStill() {
				return nil
			}
		}
		text, err := json.Marshal(asPacket(&p))
		if err == nil && out.write(event("packet", text)) != nil {
			return nil // whoever reads is gone, or does not read
		}
	}
	if ctx.Err() == nil {
		_ = out.write(event("end", []byte(`{}`))) // whoever reads may be gone
	}
	return nil
}
