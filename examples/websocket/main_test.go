package main

import (
	"flag"
	"fmt"
	"net/http"
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
)

var screenshot = flag.String("screenshot", "",
	"`file` for a picture of the page with the values of a minute in it")

func start(t *testing.T, tcp, web string, args ...string) (p *try.Program, addr, url string) {
	p = try.Start(t, run, append([]string{"-listen", tcp, "-http", web}, args...)...)
	return p, p.Line("listening on "), p.Line("the page is at ")
}

func TestThePageSubscribesPublishesAndSurvivesARestart(t *testing.T) {
	b := startBrowser(t)
	p, addr, url := start(t, "127.0.0.1:0", "127.0.0.1:0", "-demo", "0")
	page := b.open(url)
	const connected = `document.readyState === "complete" && document.getElementById("status")?.dataset.state === "connected"`
	page.wait(connected)
	page.wait(`document.querySelector("#filters li")`)

	// What others publish is seen.
	pub := try.Connect(t, addr, "pub")
	pub.Publish("house/hall/temperature", "19.5")
	pub.Publish("house/hall/<b>door</b>", "<img src=x onerror=window.hurt=1>")
	page.wait(shown("house/hall/temperature", "19.5"))
	page.wait(shown("house/hall/<b>door</b>", "<img src=x onerror=window.hurt=1>"))
	page.wait(`document.getElementById("selected").textContent === "house/hall/temperature"`)
	if page.eval(`document.querySelector("#tree b, #tree img, #log img") === null && !window.hurt`) != "true" {
		t.Fatal("what came by MQTT became part of the page")
	}

	// What the page publishes is seen by others, at QoS 2, once.
	sub := try.Connect(t, addr, "sub")
	sub.Subscribe("garden/#", 2)
	publish := func(payload string) {
		t.Helper()
		page.eval(fmt.Sprintf(`(() => { const f = document.getElementById("publish"); f.elements.topic.value = "garden/note"; f.elements.payload.value = %q;
			f.elements.qos.value = "2"; f.querySelector("button").click(); })()`, payload))
		page.wait(`document.getElementById("publish").elements.result.value.startsWith("published at QoS 2")`)
		page.wait(shown("garden/note", payload))
	}
	publish("first")
	m := sub.Message()
	if string(m.Payload) != "first" || m.QoS != packets.QoS2 {
		t.Fatalf("%q came at QoS %d", m.Payload, m.QoS)
	}
	sub.Send(&packets.Ack{Kind: packets.TypePubrec, PacketID: m.PacketID})
	if rel, ok := sub.Receive().(*packets.Ack); !ok || rel.Kind != packets.TypePubrel {
		t.Fatal("something other than PUBREL came")
	}

	// The broker ends and starts again, with no memory of the page.
	p.Stop()
	page.wait(`document.getElementById("status").dataset.state !== "connected"`)
	p, addr, _ = start(t, addr, url[len("http://"):len(url)-1], "-demo", "0")
	page.wait(connected)
	try.Connect(t, addr, "pub").Publish("house/hall/temperature",
		"20.25") // the page has subscribed again, or will hear the next one
	page.wait(`(client.connected && (client.publish("garden/probe", String(Date.now())), true)) && ` + shown("garden/probe", ""))
	publish("second")
	p.Stop()
}

// A wildcard in the box for a Topic Name would make the broker end the connection, and an
// ill-formed Topic Filter too.
func TestWildcardsWhereTheyDoNotBelong(t *testing.T) {
	_, _, url := start(t, "127.0.0.1:0", "127.0.0.1:0", "-demo", "0")
	page := startBrowser(t).open(url)
	page.wait(`document.querySelector("#filters li")`)
	for _, topic := range []string{"garden/#", "+/note"} {
		page.eval(fmt.Sprintf(`(() => { const f = document.getElementById("publish"); f.elements.topic.value = %q; f.querySelector("button").click(); })()`, topic))
		page.wait(`document.getElementById("publish").elements.result.value.startsWith("not published: a Topic Name has no + or #")`)
	}
	for filter, well := range map[string]bool{
		"a/+/b": true, "a/#": true, "+": true, "#": true, "$share/g/a/#": true, "": false,
		"a+": false, "a#": false, "a/#/b": false, "##": false, "$share/g": false,
		"$share//a": false, "$share/+/a": false,
	} {
		page.eval(fmt.Sprintf(`(() => { const f = document.getElementById("subscribe"), i = f.elements.filter; i.value = %q; i.oninput({target: i}); f.querySelector("button").click(); })()`, filter))
		if got := page.eval(`document.getElementById("subscribe").elements.filter.validity.valid`); got != fmt.Sprint(well) {
			t.Errorf("the Topic Filter %q is valid: %s", filter, got)
		}
	}
	// The connection has lived through all of that.
	page.eval(`(() => { const f = document.getElementById("publish"); f.elements.topic.value = "garden/note"; f.querySelector("button").click(); })()`)
	page.wait(shown("garden/note", "hello"))
	if got := page.eval(`document.getElementById("status").textContent`); got != "connected" {
		t.Fatalf("the page is %s", got)
	}
}

// On the screen of a telephone nothing is cut off at the side, and the chart of a topic comes into
// view when it is chosen.
func TestOnANarrowScreen(t *testing.T) {
	_, addr, url := start(t, "127.0.0.1:0", "127.0.0.1:0", "-demo", "200ms")
	page := startBrowser(t).open(url)
	page.resize(360, 640)
	page.wait(`document.querySelector("#filters li")`)
	try.Connect(t, addr, "pub").
		Publish("house/hall/a rather long name of a sensor/temperature", "19.5")
	const topic = "house/hall/a rather long name of a sensor/temperature"
	page.wait(shown(topic, "19.5"))
	row := fmt.Sprintf(`[...document.querySelectorAll("#tree .row")].find((r) => r.dataset.topic === %q)`, topic)
	page.eval(row + `.click()`)
	page.wait(`document.getElementById("selected").textContent.endsWith("sensor/temperature")`)
	for _, is := range []string{
		`document.documentElement.scrollWidth <= 360`,
		`(() => { const r = document.getElementById("chart").getBoundingClientRect(); return r.top >= 0 && r.bottom <= 640 && r.width >= 300; })()`,
		`(() => { const v = ` + row +
			`.querySelector(".value"); return v.scrollWidth <= v.clientWidth; })()`,
	} {
		if page.eval(is) != "true" {
			t.Errorf("it is not so that %s", is)
		}
	}
	if *screenshot != "" {
		page.screenshot(*screenshot + ".narrow.png")
	}
}

// shown is an expression: the tree has a topic with a payload, or with any.
func shown(topic, payload string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("#tree .row")].some((r) => r.dataset.topic === %q && (%q === "" ? r.querySelector(".value").textContent !== ""
		: r.querySelector(".value").textContent === %q))`, topic, payload, payload)
}

func TestFilesAreServedWithTheirHeaders(t *testing.T) {
	_, _, url := start(t, "127.0.0.1:0", "127.0.0.1:0")
	for _, name := range []string{"", "app.js", "style.css", "mqtt.min.js", "mqtt.LICENSES.txt",
		"icon.svg"} {
		r, err := http.Get(url + name)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != http.StatusOK || r.Header.Get("Content-Security-Policy") == "" {
			t.Errorf("/%s: %s, %v", name, r.Status, r.Header)
		}
	}
	r, err := http.Get(url + "mqtt")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("a request for /mqtt that is no WebSocket handshake was answered with %s",
			r.Status)
	}
}

func TestScreenshot(t *testing.T) {
	if *screenshot == "" {
		t.Skip("-screenshot names no file")
	}
	_, _, url := start(t, "127.0.0.1:0", "127.0.0.1:0", "-demo", "200ms")
	page := startBrowser(t).open(url)
	page.wait(`[...document.querySelectorAll("#tree .row")].some((r) => r.dataset.topic === "house/kitchen/temperature")`)
	page.eval(`[...document.querySelectorAll("#tree .row")].find((r) => r.dataset.topic === "house/kitchen/temperature").click()`)
	page.wait(`selected.points.length > 250`)
	page.screenshot(*screenshot)
}
