package packets_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/dunlin-mqtt/dunlin/packets"
)

func ExampleDecode() {
	buf := []byte("\x30\x07\x00\x03a/bhi\xC0") // a PUBLISH, and the first byte of a PINGREQ
	for {
		p, n, err := packets.Decode(buf, packets.V311, packets.Limits{PacketSize: 1024})
		if err == packets.ErrShort {
			fmt.Println(len(buf), "byte left for later")
			break
		}
		if err != nil {
			fmt.Println("close the connection:", err)
			break
		}
		fmt.Println(packets.Trace(p))
		buf = buf[n:]
	}
	// Output:
	// PUBLISH qos=0 topic=a/b payload=hi
	// 1 byte left for later
}

func ExampleDecode_error() {
	_, _, err := packets.Decode([]byte("\x30\x07\x00\x03a/#\x00hi"), packets.V5, packets.Limits{})
	if e, ok := errors.AsType[*packets.Error](err); ok {
		answer := &packets.Disconnect{Code: e.Code}
		answer.Properties = answer.Properties.AppendText(packets.ReasonString, e.Reason)
		fmt.Println(packets.Trace(answer))
	}
	// Output:
	// DISCONNECT code=0x90 reason-string="PUBLISH: the topic name contains a wildcard"
}

func ExampleReader() {
	conn := new(bytes.Buffer) // a net.Conn, elsewhere
	for _, p := range []packets.Packet{
		&packets.Connect{Version: packets.V5, CleanStart: true, ClientID: "c1", KeepAlive: 60},
		&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "a/#", QoS: packets.QoS1}}},
		&packets.Disconnect{},
	} {
		b, err := p.Append(conn.AvailableBuffer(), packets.V5)
		if err != nil {
			fmt.Println(err)
			return
		}
		conn.Write(b)
	}
	r := packets.NewReader(conn, packets.Limits{PacketSize: 64 << 10, Filters: 100})
	for {
		p, err := r.ReadPacket()
		if err == io.EOF {
			break
		}
		if err != nil {
			fmt.Println(err)
			return
		}
		switch p := p.(type) {
		case *packets.Connect:
			fmt.Println(p.ClientID, "speaks", p.Version)
		default:
			fmt.Println(packets.Trace(p))
		}
	}
	// Output:
	// c1 speaks 5.0
	// SUBSCRIBE id=1 filter=a/#:1
	// DISCONNECT code=0x00
}

func ExampleProperties() {
	var p packets.Properties
	p = p.AppendUint(packets.MessageExpiryInterval, 60).AppendText(packets.ContentType, "text/plain")
	p = p.AppendUser("unit", "°C").AppendUint(packets.TopicAlias, 3)

	p = p.Without(nil, packets.TopicAlias) // which is the business of one connection
	if seconds, ok := p.Uint(packets.MessageExpiryInterval); ok {
		fmt.Println("expires after", seconds, "s")
	}
	for name, value := range p.User() {
		fmt.Println(name, "is", value)
	}
	fmt.Println(len(p), "bytes, allowed in PUBLISH:", p.Check(packets.TypePublish) == nil)
	// Output:
	// expires after 60 s
	// unit is °C
	// 30 bytes, allowed in PUBLISH: true
}

func ExampleMatchTopic() {
	fmt.Println(packets.MatchTopic("plant/+/speed", "plant/7/speed"))
	fmt.Println(packets.MatchTopic("plant/#", "plant"))
	fmt.Println(packets.MatchTopic("#", "$SYS/uptime"))

	group, filter, err := packets.SplitShared("$share/workers/jobs/+")
	fmt.Println(group, packets.MatchTopic(filter, "jobs/12"), err)
	// Output:
	// true
	// true
	// false
	// workers true <nil>
}
