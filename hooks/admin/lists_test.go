package admin

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// odd are texts that clients may choose, and that no page, path or log may take for its own.
var odd = []string{
	"<script>alert(1)</script>", "a\"'><img src=x onerror=alert(1)>", "../../etc/passwd", "..", ".",
	"a/b?c=d&e#f", "a b", "\u202etxt.exe", "\u200b", "\ufeff", "%2e%2e%2f", "日本語", "a\\b",
	"tab\tline\n", "\x7f\u0085", "$share/g/a", "-",
}

// connect connects clients with these Client Identifiers, which may be any.
func (b *bench) connect(ids ...string) {
	for _, id := range ids {
		b.broker.Client(b.t, id)
	}
}

func ids(items []clientView) (all []string) {
	for _, x := range items {
		all = append(all, x.ID)
	}
	return all
}

// pages asks for all pages of a list of clients.
func (b *bench) pages(query ...string) (all []string, requests int) {
	for after := ""; ; requests++ {
		var page clientPage
		b.get(&page, "clients", append(slices.Clone(query), "after", after)...)
		all = append(all, ids(page.Items)...)
		if after = page.Next; after == "" {
			return all, requests + 1
		}
	}
}

func TestClientsComeInPages(t *testing.T) {
	b := newBench(t)
	var want []string
	for i := range 10 {
		want = append(want, fmt.Sprintf("c%02d", i))
	}
	b.connect(want...)
	got, requests := b.pages("limit", "3")
	require.Equal(t, want, got)
	require.Equal(t, 4, requests)
	got, _ = b.pages("limit", "3", "prefix", "c0")
	require.Equal(t, want, got)
	got, _ = b.pages("prefix", "c05")
	require.Equal(t, []string{"c05"}, got)
	got, _ = b.pages("prefix", "d")
	require.Empty(t, got)
	got, _ = b.pages("id", "07")
	require.Equal(t, []string{"c07"}, got)
}

func TestClientsAreFoundByWhatTheyAre(t *testing.T) {
	b := newBench(t)
	b.connect("a", "b")
	b.broker.Client(t, "named", func(p *packets.Connect) {
		p.Username, p.HasUsername = "ann", true
	})
	for _, tt := range []struct {
		query []string
		want  []string
	}{
		{[]string{"user", "ann"}, []string{"named"}},
		{[]string{"user", "an"}, nil},
		{[]string{"connected", "true"}, []string{"a", "b", "named"}},
		{[]string{"connected", "false"}, nil},
		{[]string{"address", "192.0.2.0/24"}, nil},
		{[]string{"listener", "none"}, nil},
	} {
		got, _ := b.pages(tt.query...)
		require.Equal(t, tt.want, got, tt.query)
	}
}

func TestAddressesAreCompared(t *testing.T) {
	c := subject{address: addressOf("[::ffff:192.0.2.7]:1883")}
	for text, want := range map[string]bool{"192.0.2.7": true, "192.0.2.0/24": true,
		"::ffff:192.0.2.7": true, "192.0.3.0/24": false, "192.0.2.8": false} {
		n, err := parseNetwork(text)
		require.NoError(t, err)
		require.Equal(t, want, (&clientFilter{network: n}).wants(c), text)
	}
	_, err := parseNetwork("192.0.2.0/33")
	require.Error(t, err)
}

func TestClientsAreSortedByAFigure(t *testing.T) {
	b := newBench(t)
	b.connect("none", "also none")
	for i := 1; i <= 5; i++ {
		c := b.broker.Client(t, fmt.Sprintf("c%d", i))
		s := &packets.Subscribe{PacketID: 1}
		for n := range i {
			s.Subscriptions = append(s.Subscriptions,
				packets.Subscription{Filter: fmt.Sprintf("f/%d", n)})
		}
		c.Send(s)
		c.WantType("an answer", packets.TypeSuback)
	}
	want := []string{"c5", "c4", "c3", "c2", "c1", "also none", "none"}
	for _, limit := range []string{"1", "2", "3", "7", "8"} {
		got, _ := b.pages("sort", "subscriptions", "limit", limit)
		require.Equal(t, want, got, limit)
	}
	got, _ := b.pages("sort", "subscriptions", "limit", "2", "prefix", "c", "id", "3")
	require.Equal(t, []string{"c3"}, got)
}

func TestOddTextsAreShownAsTheyAre(t *testing.T) {
	b := newBench(t)
	b.connect(odd...)
	want := slices.Sorted(slices.Values(odd))
	got, _ := b.pages("limit", "2")
	require.Equal(t, want, got)
	for _, id := range odd {
		var c clientView
		b.get(&c, "client", "id", id)
		require.Equal(t, id, c.ID)
		require.True(t, c.Connected)
		got, _ := b.pages("prefix", id)
		require.Contains(t, got, id)
		text := b.do(b.request("GET", at("client", "id", id), ""), 200)
		require.NotContains(t, text, "<", "JSON escapes what HTML would read")
		b.act(1, "disconnect", `{"id":`+quote(id)+`}`)
	}
	require.Equal(t, "no_client", b.refused(404, "client", "id", "<b>").Code)
	require.Equal(t, "query", b.refused(400, "client").Code)
}

func TestAFilterLooksAtABoundedNumber(t *testing.T) {
	b := newBench(t)
	b.connect("a", "b", "c")
	old := looks
	defer func() { looks = old }()
	looks = 2
	var page clientPage
	b.get(&page, "clients", "id", "c")
	require.Empty(t, page.Items)
	require.Equal(t, 2, page.Looked)
	got, requests := b.pages("id", "c")
	require.Equal(t, []string{"c"}, got)
	require.Equal(t, 2, requests)
}

func TestSubscriptionsComeInPages(t *testing.T) {
	b := newBench(t)
	c := b.broker.Client(t, "c")
	c.Send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{
		{Filter: "b/#", QoS: 1}, {Filter: "a", QoS: 2, NoLocal: true}, {Filter: "$share/g/x"},
	}})
	c.WantType("an answer", packets.TypeSuback)
	var first, second page[subscriptionView]
	b.get(&first, "subscriptions", "id", "c", "limit", "2")
	require.Equal(t, []subscriptionView{
		{Filter: "b/#", QoS: 1}, {Filter: "a", QoS: 2, NoLocal: true},
	}, first.Items)
	b.get(&second, "subscriptions", "id", "c", "limit", "2", "after", first.Next)
	require.Equal(t, []subscriptionView{{Filter: "$share/g/x"}}, second.Items)
	require.Empty(t, second.Next)
	b.refused(404, "subscriptions", "id", "nobody")
}

// retain publishes retained messages with their topic as the payload.
func (b *bench) retain(topics ...string) {
	for _, topic := range topics {
		b.broker.PublishMessage(&dunlin.Message{Topic: topic, Payload: []byte(topic), Retain: true})
	}
}

func TestRetainedMessagesComeInPages(t *testing.T) {
	b := newBench(t)
	b.retain("a/1", "a/2", "a/3", "b", "<i>/\u202e")
	var first, second page[messageView]
	b.get(&first, "retained", "filter", "a/+", "limit", "2")
	ages := func(items []messageView) []messageView {
		for i := range items {
			require.WithinDuration(t, time.Now(), items[i].Since, time.Minute)
			items[i].Since = time.Time{}
		}
		return items
	}
	require.Equal(t, []messageView{{Topic: "a/1", Bytes: 3, Text: "a/1"},
		{Topic: "a/2", Bytes: 3, Text: "a/2"}}, ages(first.Items))
	b.get(&second, "retained", "filter", "a/+", "limit", "2", "after", first.Next)
	require.Equal(t, []messageView{{Topic: "a/3", Bytes: 3, Text: "a/3"}}, ages(second.Items))
	require.Empty(t, second.Next)
	var n countView
	b.get(&n, "retained/count")
	require.Equal(t, 5, n.Count)
	b.get(&n, "retained/count", "filter", "a/#")
	require.Equal(t, 3, n.Count)
	b.refused(400, "retained", "filter", "a#")
	b.refused(400, "retained", "filter", "$share/g/a")
}

func TestPayloadsAreCut(t *testing.T) {
	long := strings.Repeat("é", maxShown) // two bytes each
	for _, tt := range []struct {
		name    string
		payload []byte
		text    int
		base64  int
	}{
		{"a text", []byte("hello"), 5, 0},
		{"a long text", []byte(long), maxShown, 0},
		{"a long text that would be cut in a character", []byte("x" + long), maxShown - 1, 0},
		{"bytes", []byte{0xFF, 0}, 0, 2},
		{"many bytes", []byte(strings.Repeat("\xff", 2*maxShown)), 0, maxShown},
		{"nothing", nil, 0, 0},
	} {
		m := asMessage(&packets.Message{Topic: "t", Payload: tt.payload})
		require.Equal(t, len(tt.payload), m.Bytes, tt.name)
		require.Len(t, m.Text, tt.text, tt.name)
		require.Len(t, m.Base64, tt.base64, tt.name)
	}
}

// levels are the names of levels, those with a message with "=" and those with more below with "/".
func levels(items []topicLevel) (all []string) {
	for _, x := range items {
		name := x.Name
		if x.Message != nil {
			name += "="
		}
		if x.More {
			name += "/"
		}
		all = append(all, name)
	}
	return all
}

func TestTopicsAreATree(t *testing.T) {
	b := newBench(t)
	b.retain("a", "a!", "a/b", "a/b/c", "a/b/d", "a0", "b/c/d/e", "/x", "b//y", "b/", "c/\U0010ffff",
		"é/ü", "$SYS/z/1", "$SYS/z/2")
	for _, tt := range []struct {
		name  string
		query []string
		want  []string
	}{
		{"the top", nil, []string{"/", "a=/", "a!=", "a0=", "b/", "c/", "é/", "$SYS/"}},
		{"below a message", []string{"below", "a"}, []string{"b=/"}},
		{"below two", []string{"below", "a/b"}, []string{"c=", "d="}},
		{"an empty level, and one below it", []string{"below", "b"}, []string{"=/", "c/"}},
		{"below the empty level", []string{"below", "b/"}, []string{"y="}},
		{"below the empty level at the top", []string{"below", ""}, []string{"x="}},
		{"the last character there is", []string{"below", "c"}, []string{"\U0010ffff="}},
		{"of the broker", []string{"below", "$SYS"}, []string{"z/"}},
		{"of the broker, deeper", []string{"below", "$SYS/z"}, []string{"1=", "2="}},
		{"nothing", []string{"below", "nothing"}, nil},
		{"a wildcard is no level", []string{"below", "+"}, nil},
	} {
		for _, limit := range []string{"1", "2", "50"} {
			var got []string
			for after := ""; ; {
				var page levelPage
				b.get(&page, "topics", append(slices.Clone(tt.query), "limit", limit, "after",
					after)...)
				got = append(got, levels(page.Items)...)
				if after = page.Next; after == "" {
					break
				}
			}
			require.Equal(t, tt.want, got, "%s, %s at a time", tt.name, limit)
		}
	}
	b.refused(400, "topics", "below", "\xff")
}

func TestAClientHasItsFacts(t *testing.T) {
	b := newBench(t)
	c := b.broker.Client(t, "c", asAnn, func(p *packets.Connect) {
		p.KeepAlive = 60
		p.Will = &packets.Will{Topic: "gone"}
	})
	c.Send(&packets.Publish{Topic: []byte("t"), QoS: 2, PacketID: 1, Payload: []byte("hello")})
	c.WantType("an answer", packets.TypePubrec)
	var v clientView
	b.get(&v, "client", "id", "c")
	require.Equal(t, "ann", v.User)
	require.Equal(t, "5.0", v.Protocol)
	require.Equal(t, 60.0, v.KeepAlive)
	require.Equal(t, "gone", v.WillTopic)
	require.EqualValues(t, 1, v.Received.Messages)
	require.Positive(t, v.Received.Bytes)
	require.Equal(t, 1, v.AwaitingPubrel)
	require.False(t, v.ConnectedAt.IsZero())
	got, _ := b.pages("sort", "received", "limit", "1")
	require.Equal(t, []string{"c"}, got)
	var s statsView
	b.get(&s, "stats")
	require.EqualValues(t, 1, s.MessagesReceived)
	require.EqualValues(t, 1, s.Listeners[len(s.Listeners)-1].MessagesReceived)
	sum := int64(0)
	for _, n := range s.MemoryBy {
		sum += n
	}
	require.Equal(t, s.Memory, sum)
}

// asAnn gives a CONNECT the User Name "ann".
func asAnn(p *packets.Connect) { p.Username = "ann" }
