package packets

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// requireNoAllocs fails the test if f allocates.
func requireNoAllocs(t *testing.T, what string, f func()) {
	t.Helper()
	require.Zero(t, testing.AllocsPerRun(100, f), "%s must not allocate", what)
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	for _, s := range allSamples() {
		b := encode(t, s.p, s.v)
		dst := make([]byte, 0, len(b))
		requireNoAllocs(t, s.name+" into a buffer with room",
			func() { _, _ = s.p.Append(dst, s.v) })
		requireNoAllocs(t, "the size of "+s.name, func() { s.p.Size(s.v) })
		requireNoAllocs(t, "the header of "+s.name, func() { _, _ = ParseHeader(b, s.v) })
		requireNoAllocs(t, "the limits of "+s.name,
			func() { _ = Limits{1 << 20, 10, 10}.Check(s.p) })
		h, body := split(t, b, s.v)
		switch s.p.(type) {
		case *Publish:
			var p Publish
			requireNoAllocs(t, "decoding "+s.name, func() { _ = p.Decode(h, body, s.v) })
		case *Ack:
			var a Ack
			requireNoAllocs(t, "decoding "+s.name, func() { _ = a.Decode(h, body, s.v) })
		case *Connack, *Disconnect, *Auth, *Pingreq, *Pingresp:
			p := empty(h.Type)
			requireNoAllocs(t, "decoding "+s.name, func() { _ = p.Decode(h, body, s.v) })
		}
	}
	requireNoAllocs(t, "half a header", func() { _, _ = ParseHeader([]byte{0x30, 0x80}, V5) })
}

func TestPropertiesAreReadWithoutAllocation(t *testing.T) {
	p := Properties(nil).AppendUser("k", "v").AppendUint(MessageExpiryInterval, 5).
		AppendText(ContentType, "t").
		AppendUint(SubscriptionIdentifier, 7)
	dst := make(Properties, 0, 100)
	n := 0
	requireNoAllocs(t, "Uint", func() { _, _ = p.Uint(MessageExpiryInterval) })
	requireNoAllocs(t, "Bytes", func() { _, _ = p.Bytes(ContentType) })
	requireNoAllocs(t, "Has", func() { _ = p.Has(TopicAlias) })
	requireNoAllocs(t, "Offset", func() { _ = p.Offset(MessageExpiryInterval) })
	requireNoAllocs(t, "Check", func() { _ = p.Check(TypePublish) })
	requireNoAllocs(t, "Without", func() { p.Without(dst, SubscriptionIdentifier, TopicAlias) })
	requireNoAllocs(t, "All", func() {
		for range p.All() {
			n++
		}
	})
	requireNoAllocs(t, "SubscriptionIDs", func() {
		for range p.SubscriptionIDs() {
			n++
		}
	})
}

func TestTopicsAreCheckedWithoutAllocation(t *testing.T) {
	const name = "höhe/7/line/3/speed"
	b := []byte(name)
	requireNoAllocs(t, "a string", func() { ValidTopicName(name) })
	requireNoAllocs(t, "bytes", func() { ValidTopicName(b) })
	requireNoAllocs(t, "text", func() { ValidUTF8(b) })
	requireNoAllocs(t, "a filter", func() { ValidTopicFilter("+/a/#") })
	requireNoAllocs(t, "matching", func() { _ = MatchTopic("+/7/line/#", name) })
	requireNoAllocs(t, "a shared filter", func() { _, _, _ = SplitShared("$share/g/a/#") })
	requireNoAllocs(t, "levels", func() { Levels(b) })
}
