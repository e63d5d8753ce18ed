package httpgw

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
)

func TestPublishAndReadRetained(t *testing.T) {
	d := open(t, func(o *Options) { o.MaxBody = 10 })
	code, text := d.do("ann", "POST", "/topics/ann/a?qos=1&retain=1", "one")
	require.Equal(t, 200, code, text)
	require.JSONEq(t, `{"matched":0,"acknowledged":0,"lost":0}`, text)
	code, text = d.do("ann", "GET", "/topics/ann/a", "")
	require.Equal(t, 200, code)
	require.Equal(t, "one", text)
	code, text = d.do("ann", "GET", "/retained?filter=ann/%23", "")
	require.Equal(t, 200, code)
	require.JSONEq(t, `{"messages":[{"topic":"ann/a","payload":"b25l","qos":1,"retain":true,
		"contentType":"text/x"}],"after":""}`, text)
	sub, err := d.b.Subscribe(t.Context(), "ann/#", &dunlin.SubscribeOptions{QoS: 1,
		RetainHandling: dunlin.RetainHandlingSkip})
	require.NoError(t, err)
	go func() { // ends with the message
		sub.Next(t.Context())
	}()
	_, text = d.do("ann", "POST", "/topics/ann/b?qos=1&wait=60", "two")
	require.JSONEq(t, `{"matched":1,"acknowledged":1,"lost":0}`, text)
	a, _ := d.ask(call{method: "POST", path: "/topics/ann/b", body: "three",
		head: [][2]string{{"Authorization", "Bearer token of ann"}}})
	require.Equal(t, 200, a.StatusCode, "a token is a password")
	code, _ = d.do("ann", "POST", "/topics/ann/b", "more than ten bytes")
	require.Equal(t, 413, code)
	require.NoError(t, d.b.Ban(dunlin.Ban{Kind: dunlin.BanUser, Value: "ann"}))
	code, _ = d.do("ann", "GET", "/topics/ann/a", "")
	require.Equal(t, 403, code)
}

// The properties of a message go in as headers, and come out with events.
func TestPropertiesTravel(t *testing.T) {
	d := open(t, nil)
	a, text := d.ask(call{"ann", "POST", "/topics/ann/a?retain=1", "x", [][2]string{
		{contentType, "text/plain"}, {responseTopic, "ann/r"}, {correlation, "AP8="},
		{userProperty, "a=1"}, {userProperty, "a=b=c"}, {payloadFormat, "1"},
	}})
	require.Equal(t, 200, a.StatusCode, text)
	_, text = d.do("ann", "GET", "/retained?filter=ann/%2B", "")
	require.JSONEq(t, `{"messages":[{"topic":"ann/a","payload":"eA==","qos":0,"retain":true,
		"contentType":"text/plain","responseTopic":"ann/r","correlation":"AP8=",
		"user":[["a","1"],["a","b=c"]]}],"after":""}`, text)
	for _, h := range [][2]string{{contentType, "\xff"}, {responseTopic, "a/#"},
		{correlation, "?"}, {userProperty, "none"}, {userProperty, "\xff=1"},
		{payloadFormat, "2"}, {userProperty, "a=" + strings.Repeat("x", 65_536)},
		{correlation, strings.Repeat("AAAA", 30_000)}} {
		a, _ := d.ask(call{"ann", "POST", "/topics/ann/a", "x", [][2]string{h}})
		require.Equal(t, 400, a.StatusCode, "%.50q", h)
	}
	many := slices.Repeat([][2]string{{userProperty, "a=b"}}, 1001)
	a, _ = d.ask(call{"ann", "POST", "/topics/ann/a", "x", many})
	require.Equal(t, 429, a.StatusCode, "MaxUserProperties holds")
}

// An answer with retained messages says where to go on.
func TestASubtreeComesInParts(t *testing.T) {
	d := open(t, nil)
	d.h.subtreeBytes = 1000
	d.grant.MountPoint = "m/"
	want := map[string]bool{}
	for i := range 25 {
		m := &dunlin.Message{Topic: fmt.Sprintf("m/ann/%02d", i), Payload: make([]byte, 60),
			Retain: true}
		want[m.Topic[2:]] = true
		require.NoError(t, d.b.Publish(t.Context(), m))
	}
	require.NoError(t, d.b.Publish(t.Context(),
		&dunlin.Message{Topic: "m/ann/secret", Payload: []byte("x"), Retain: true}))
	parts := 0
	for after, more := "", true; more; parts++ {
		code, text := d.do("ann", "GET", "/retained?filter=ann/%23&after="+after, "")
		require.Equal(t, 200, code)
		require.Less(t, len(text), 1200)
		var a struct {
			Messages []event
			After    string
		}
		require.NoError(t, json.Unmarshal([]byte(text), &a))
		for _, m := range a.Messages {
			require.True(t, want[m.Topic], "each comes once: %s", m.Topic)
			delete(want, m.Topic)
		}
		after, more = a.After, a.After != ""
	}
	require.Empty(t, want)
	require.Greater(t, parts, 1)
}

// A document is what openapi.json says, as far as it is looked at.
type document struct {
	Paths map[string]map[string]struct {
		Parameters []struct{ Name string }
		Responses  map[string]struct {
			Content map[string]struct{ Schema map[string]any }
		}
	}
	Components struct {
		Schemas map[string]struct {
			Required   []string
			Properties map[string]map[string]any
		}
	}
}

// Each route gives the answers that the file describes, and no others, and takes the parameters
// that it describes.
func TestEachRouteIsAsItsOpenAPIFileSays(t *testing.T) {
	d := open(t, func(o *Options) { o.MaxBody, o.MaxPerUser = 10, 1 })
	var file document
	_, text := d.do("", "GET", "/openapi.json", "")
	require.NoError(t, json.Unmarshal([]byte(text), &file))
	var described, routes []string
	for path, methods := range file.Paths {
		for method := range methods {
			described = append(described, strings.ToUpper(method)+" "+path)
		}
	}
	for _, r := range d.h.routes {
		routes = append(routes, r.method+" "+r.path)
	}
	require.ElementsMatch(t, routes, described)
	d.do("ann", "POST", "/topics/ann/a?retain=1", "kept")

	// What makes each route answer with a status. 429 and 503 are the same for all.
	valid := map[string]string{"/topics/{topic}": "/topics/ann/a", "/topics": "/topics?topic=ann/a",
		"/retained": "/retained?filter=ann/%23", "/poll": "/poll?filter=ann/%23",
		"/events": "/events?filter=ann/%23"}
	wrong := map[string]string{"/topics/{topic}": "/topics/ann/%23", "/topics": "/topics?topic=",
		"/retained": "/retained?filter=$share/g/ann/%23", "/poll": "/poll?filter=ann/%23&wait=x",
		"/events": "/events?filter=ann/%23/x"}
	for path, methods := range file.Paths {
		for method, op := range methods {
			method = strings.ToUpper(method)
			for status, response := range op.Responses {
				c := call{"ann", method, valid[path], "", nil}
				switch status {
				case "200":
					if path == "/openapi.json" {
						c.path = path
					}
				case "400":
					c.path = wrong[path]
				case "401":
					c.user = ""
				case "403":
					c.user = "bob"
				case "404":
					c.path = strings.ReplaceAll(c.path, "ann/a", "ann/none")
				case "413":
					c.body = "more than ten bytes"
				case "429":
					require.NoError(t, d.h.users.begin("user ann"))
				case "503":
					continue // below
				}
				if path == "/events" && status == "200" {
					s := d.stream("ann/%23", "")
					s.close()
					d.gone("ann")
					continue
				}
				a, text := d.ask(c)
				at := fmt.Sprint(method, " ", path, " ", status, ": ", text)
				require.Equal(t, status, fmt.Sprint(a.StatusCode), at)
				if status == "429" {
					d.h.users.end("user ann")
				}
				media, _, _ := strings.Cut(a.Header.Get("Content-Type"), ";")
				require.Contains(t, response.Content, media, at)
				file.check(t, at, response.Content[media].Schema, text)
			}
			require.True(t, path == "/openapi.json" || len(op.Responses) >= 6)
		}
	}
	d.b.Close()
	for path := range valid {
		code, _ := d.do("ann", "GET", valid[path], "")
		require.Equal(t, 503, code, path)
	}
}

// check compares an answer with its schema, two levels deep.
func (f *document) check(t *testing.T, at string, schema map[string]any, text string) {
	t.Helper()
	ref, _ := schema["$ref"].(string)
	if ref == "" {
		return
	}
	of, ok := f.Components.Schemas[strings.TrimPrefix(ref, "#/components/schemas/")]
	require.True(t, ok, at)
	var got map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(text), &got), at)
	for name := range got {
		require.Contains(t, of.Properties, name, at)
	}
	for _, name := range of.Required {
		require.Contains(t, got, name, at)
	}
	for name, value := range got {
		var items []json.RawMessage
		if inner, ok := of.Properties[name]["items"].(map[string]any); ok &&
			json.Unmarshal(value, &items) == nil {
			for _, item := range items {
				f.check(t, at+" "+name, inner, string(item))
			}
		}
	}
}

// Pages of other sites may come in if they are named, and only then.
func TestOrigins(t *testing.T) {
	d := open(t, nil)
	for origin, want := range map[string]string{"https://page.example": "https://page.example",
		"https://evil.example": ""} {
		a, _ := d.ask(call{"", "OPTIONS", "/topics/ann/a", "", [][2]string{{"Origin", origin}}})
		require.Equal(t, want, a.Header.Get("Access-Control-Allow-Origin"))
		require.Empty(t, a.Header.Get("Access-Control-Allow-Credentials"))
	}
	host := strings.TrimPrefix(d.s.URL, "http://")
	for _, x := range []struct {
		head [2]string
		want int
	}{
		{[2]string{"Origin", "https://page.example"}, 200},
		{[2]string{"Origin", "http://" + host}, 200},
		{[2]string{"Origin", "https://evil.example"}, 403},
		{[2]string{"Origin", "https://page.example.evil.example"}, 403},
		{[2]string{"Origin", "null"}, 403},
		{[2]string{"Sec-Fetch-Site", "cross-site"}, 403},
		{[2]string{"Sec-Fetch-Site", "same-site"}, 403},
		{[2]string{"Sec-Fetch-Site", "same-origin"}, 200},
	} {
		for _, media := range []string{"text/plain", "application/x-www-form-urlencoded"} {
			a, _ := d.ask(call{"ann", http.MethodPost, "/topics/ann/a", "x",
				[][2]string{x.head, {"Content-Type", media}}})
			require.Equal(t, x.want, a.StatusCode, "%v", x.head)
		}
		a, _ := d.ask(call{"ann", http.MethodGet, "/poll?filter=ann/a", "", [][2]string{x.head}})
		require.Equal(t, x.want, a.StatusCode, "%v", x.head)
	}
	for _, bad := range []string{"page.example", "https://page.example/", "*", ""} {
		_, err := New(d.b, Options{Origins: []string{bad}})
		require.ErrorContains(t, err, "Origins", bad)
	}
	_, err := New(d.b, Options{Keep: -1})
	require.Error(t, err)
}
