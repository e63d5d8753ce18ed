package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestRun(t *testing.T) {
	p := try.Start(t, run, "-listen", "127.0.0.1:0", "-http", "127.0.0.1:0")
	addr := p.Line("listening on ")
	url, _, _ := strings.Cut(p.Line("metrics at "), " and")
	sub, pub := try.Connect(t, addr, "sub"), try.Connect(t, addr, "pub")
	sub.Subscribe("a", 1)
	pub.Publish("a", "heard")
	sub.Want("a", "heard")
	pub.Publish("b", "unheard")
	_, ack := try.Dial(t, addr, &packets.Connect{Version: packets.V5, ClientID: "$local/x"})
	if !ack.Code.Failed() {
		t.Fatal("a Client Identifier of the server was accepted")
	}

	text := get(t, url)
	for _, want := range []string{
		"mqtt_connections 2\n", "mqtt_subscriptions 1\n",
		"mqtt_connected_total{version=\"5.0\"} 2\n",
		"mqtt_published_total{qos=\"1\"} 2\n", "mqtt_unheard_total{qos=\"1\"} 1\n",
		"mqtt_bytes_total{direction=\"in\"} ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
	var vars map[string]map[string]int
	if err := json.Unmarshal([]byte(get(t, strings.Replace(url, "/metrics", "/vars", 1))),
		&vars); err != nil {
		t.Fatal(err)
	}
	if vars["published"]["1"] != 2 {
		t.Errorf("the variables are %v", vars)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
