package admin

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/hooks/trace"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the dashboard in a headless Chromium, driven by its DevTools protocol over a pipe.

// A browser is Chromium with one page.
type browser struct {
	t       *testing.T
	to      io.Writer
	from    *bufio.Reader
	next    int
	session string
	bad     []string // errors of pages
	clicks  int
}

// startBrowser starts Chromium. Without Chromium it skips the test, in the gate it fails.
func startBrowser(t *testing.T) *browser {
	path, err := exec.LookPath("chromium")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("there is no chromium")
	} else if err != nil {
		t.Skip("there is no chromium")
	}
	dir, err := os.MkdirTemp("", "desk") // not t.TempDir: Chromium still writes while it ends
	require.NoError(t, err)
	cmd := exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--disable-dev-shm-usage", "--hide-scrollbars", "--user-data-dir="+dir,
		"--remote-debugging-pipe")
	ours, theirs := pipe(t), pipe(t)
	cmd.ExtraFiles = []*os.File{ours.r, theirs.w} // 3 and 4
	require.NoError(t, cmd.Start())
	ours.r.Close()
	theirs.w.Close()
	t.Cleanup(func() {
		cmd.Process.Kill()
		io.Copy(io.Discard, theirs.r) // until the last of its processes has ended
		cmd.Wait()
		os.RemoveAll(dir)
	})
	w := &browser{t: t, to: ours.w, from: bufio.NewReader(theirs.r)}
	var target struct{ TargetID string }
	w.call("Target.createTarget", object{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	w.call("Target.attachToTarget", object{"targetId": target.TargetID, "flatten": true}, &attached)
	w.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		w.call(domain+".enable", object{}, nil)
	}
	return w
}

// visit opens the overview of a bench.
func (w *browser) visit(b *bench) {
	srv := httptest.NewServer(b.h)
	b.t.Cleanup(srv.Close)
	b.t.Cleanup(func() { b.h.Close() }) // before: streams
	w.t, w.bad = b.t, nil
	b.t.Cleanup(func() { w.call("Page.navigate", object{"url": "about:blank"}, nil) })
	secret := base64.StdEncoding.EncodeToString([]byte(b.role + ":x"))
	w.call("Network.setExtraHTTPHeaders", object{"headers": object{
		"Authorization": "Basic " + secret}}, nil)
	w.size(1280)
	w.call("Page.navigate", object{"url": srv.URL}, nil)
	w.wait("document.querySelector('h1')?.textContent === 'Overview'")
	w.clicks = 0
}

type twoEnds struct{ r, w *os.File }

func pipe(t *testing.T) twoEnds {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return twoEnds{r, w}
}

// call calls a method of the protocol. Errors of the page that are told meanwhile are kept.
func (w *browser) call(method string, params object, result any) {
	w.t.Helper()
	w.next++
	m := object{"id": w.next, "method": method, "params": params}
	if w.session != "" {
		m["sessionId"] = w.session
	}
	text, err := json.Marshal(m)
	require.NoError(w.t, err)
	_, err = w.to.Write(append(text, 0))
	require.NoError(w.t, err)
	for {
		text, err := w.from.ReadBytes(0)
		require.NoError(w.t, err, "Chromium has ended")
		var answer struct {
			ID     int
			Method string
			Params json.RawMessage
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		require.NoError(w.t, json.Unmarshal(text[:len(text)-1], &answer))
		switch {
		case answer.Method != "":
			w.event(answer.Method, string(answer.Params))
		case answer.ID != w.next:
		case answer.Error != nil:
			w.t.Fatalf("%s: %s", method, answer.Error.Message)
		default:
			if result != nil {
				require.NoError(w.t, json.Unmarshal(answer.Result, result))
			}
			return
		}
	}
}

// event keeps what a page should not do.
func (w *browser) event(method, params string) {
	switch method {
	case "Runtime.exceptionThrown", "Page.javascriptDialogOpening":
		w.bad = append(w.bad, method+" "+params)
	case "Log.entryAdded":
		if strings.Contains(params, `"level":"error"`) {
			w.bad = append(w.bad, params)
		}
	}
}

// eval evaluates an expression, which may be a promise, and returns its value.
func (w *browser) eval(expression string) any {
	w.t.Helper()
	var answer struct {
		Result           struct{ Value any }
		ExceptionDetails *struct {
			Exception struct{ Description string }
		}
	}
	w.call("Runtime.evaluate", object{"expression": expression, "awaitPromise": true,
		"returnByValue": true}, &answer)
	if e := answer.ExceptionDetails; e != nil {
		w.t.Fatalf("%s: %s\nthe page: %v", expression, e.Exception.Description,
			w.eval("document.body.innerText"))
	}
	return answer.Result.Value
}

// wait waits until a condition holds in the page.
func (w *browser) wait(condition string) {
	w.t.Helper()
	w.eval(`new Promise((done, fail) => {
		const end = Date.now() + 20000;
		(function look() {
			if (` + condition + `) done(true);
			else if (Date.now() > end) fail(new Error("not within 20 seconds"));
			else setTimeout(look, 20);
		})();
	})`)
}

// sees waits until the page shows a text.
func (w *browser) sees(text string) {
	w.t.Helper()
	w.wait("document.body.innerText.includes(" + quote(text) + ")")
}

// click clicks what has that text, or that name in the tree.
func (w *browser) click(text string) {
	w.t.Helper()
	w.clicks++
	find := `[...(document.querySelector("dialog[open]:last-of-type") ?? document)
		.querySelectorAll("a, button, summary, [role=button]")].find(e => e.offsetParent &&
		!e.disabled && (e.querySelector(".name") ?? e).textContent.trim() === ` + quote(text) + `)`
	w.wait(find)
	w.eval(find + ".click()")
}

// fill types a text into the field with a label, or the search box if label is empty.
func (w *browser) fill(label, text string) {
	w.t.Helper()
	find := `document.querySelector("main input[type=search], " +
		"main input[aria-label=Topic]")`
	if label != "" {
		find = `[...document.querySelectorAll("dialog[open]:last-of-type label, main label")]
			.find(e => e.textContent.startsWith(` + quote(label) + `))
			?.querySelector("input, textarea, select")`
	}
	w.wait(find)
	w.eval(`(e => { e.focus(); e.value = ` + quote(text) + `;
		e.dispatchEvent(new Event("input")); e.dispatchEvent(new Event("change")); })(` + find + `)`)
}

// choose chooses a value of a select box with a name for those who do not see.
func (w *browser) choose(name, value string) {
	w.t.Helper()
	w.clicks++
	find := `document.querySelector("main select[aria-label=` + name + `]")`
	w.wait(find)
	w.eval(`(e => { e.value = ` + quote(value) + `; e.dispatchEvent(new Event("change")); })(` +
		find + `)`)
}

// key presses a key that has a character, or Enter.
func (w *browser) key(key string) {
	w.t.Helper()
	text := key
	if key == "Enter" {
		text = "\r"
	}
	w.call("Input.dispatchKeyEvent", object{"type": "keyDown", "key": key, "text": text}, nil)
	w.call("Input.dispatchKeyEvent", object{"type": "keyUp", "key": key}, nil)
}

// size gives the page a width.
func (w *browser) size(width int) {
	w.call("Emulation.setDeviceMetricsOverride", object{"width": width, "height": 800,
		"deviceScaleFactor": 1, "mobile": false}, nil)
}

// open opens a page by its address.
func (w *browser) open(hash, title string) {
	w.t.Helper()
	w.eval("location.hash = " + quote(hash))
	w.wait("document.querySelector('main h1')?.textContent.includes(" + quote(title) + ")")
}

// screenshot writes pictures, in light and in dark, into the folder that DESK_SHOTS names, to look
// at.
func (w *browser) screenshot(name string) {
	dir := os.Getenv("DESK_SHOTS")
	if dir == "" {
		return
	}
	for _, scheme := range []string{"dark", "light"} {
		w.call("Emulation.setEmulatedMedia", object{"features": []object{
			{"name": "prefers-color-scheme", "value": scheme}}}, nil)
		var shot struct{ Data []byte }
		w.call("Page.captureScreenshot", object{"format": "png"}, &shot)
		require.NoError(w.t, os.WriteFile(dir+"/"+name+"-"+scheme+".png", shot.Data, 0o644))
	}
}

// well fails the test if a page has complained.
func (w *browser) well() {
	w.t.Helper()
	require.Empty(w.t, w.bad, "what the pages did")
}

func TestTheDashboardInABrowser(t *testing.T) {
	w := startBrowser(t)
	t.Run("every page", func(t *testing.T) { everyPage(t, w) })
	t.Run("what would not be seen", func(t *testing.T) {
		b := newBench(t)
		b.connect("\u202etxt.exe\t")
		w.visit(b)
		w.open("#/main/clients", "Clients")
		w.sees("U+202Etxt.exeU+0009")
		b.broker.Client(t, "c", func(p *packets.Connect) {
			p.Username, p.HasUsername = "\u202enna", true
		})
		w.open("#/main/client?id=c", "c")
		w.click("Ban")
		w.wait("document.querySelector('dialog[open]').textContent.includes('the user U+202Enna')")
		w.well()
	})
	t.Run("an address that nobody can read", func(t *testing.T) {
		w.visit(newBench(t))
		for _, hash := range []string{"#/%E0%A4%A", "#/%", "#/nobody/clients", "#//", "#/main/%zz?%=%"} {
			w.eval("location.hash = " + quote(hash))
			w.open("#/main/desk", "Desk")
			w.eval("location.hash = " + quote(hash))
			w.wait("document.querySelector('main h1')?.textContent === 'Overview'")
		}
		w.well()
	})
	t.Run("keys", func(t *testing.T) { keys(t, w) })
	t.Run("whoever may only look has no buttons", func(t *testing.T) {
		b := newBench(t)
		b.connect("c")
		b.role = "reader"
		w.visit(b)
		w.open("#/main/client?id=c", "c")
		w.sees("Subscriptions")
		require.Zero(t, w.eval("document.querySelectorAll('main .top button').length"))
		w.well()
	})
	for _, task := range tasks {
		t.Run(task.name, func(t *testing.T) {
			b := newBench(t)
			b.broker.Client(t, "victim", asAnn, func(p *packets.Connect) {
				p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval, 3600)
			})
			w.visit(b)
			task.do(b, w)
			require.LessOrEqual(t, w.clicks, 5)
			w.well()
			name := "task-" + strings.ReplaceAll(task.name, " ", "-")
			w.screenshot(name + "-1280")
			w.size(360)
			w.screenshot(name + "-360")
		})
	}
}

func everyPage(t *testing.T, w *browser) {
	events := NewEvents()
	b := newBench(t, func(o *Options) { o.Events = map[string]*Events{"main": events} })
	b.connect(odd...)
	b.retain("home/kitchen/temperature", "home", "<b>x</b>/<script>alert(1)</script>", "\u202e/x")
	for _, id := range odd {
		events.refused.add("", securityEvent{What: "refused", Client: id, User: id, About: id, Reason: id})
	}
	b.act(1, "ban", `{"kind":"client","value":"<i>x</i>","reason":"<b>why</b>"}`)
	w.visit(b)
	for _, width := range []int{1280, 360} {
		w.size(width)
		fits := func(what string) {
			t.Helper()
			is := int(w.eval("document.documentElement.scrollWidth").(float64))
			require.LessOrEqual(t, is, width, "%s at %d", what, width)
		}
		for page, title := range map[string]string{"": "Overview", "clients": "Clients",
			"topics": "Retained", "bans": "Bans", "who?topic=home": "Who", "ended": "Ended", "drops": "Drops",
			"security": "Security", "desk": "Desk", "seen": "Topics seen", "topics?filter=%23": "Retained",
			"nowhere": "Overview"} {
			w.open("#/main/"+page, title)
			fits(title)
			require.Equal(t, false,
				w.eval("/[\\u200b\\u202e\\u007f]/.test(document.body.textContent)"),
				"%s: all that is there is seen", page)
			w.screenshot(fmt.Sprintf("%s-%d", strings.NewReplacer("?", "-", "%", "").Replace(page), width))
		}
		for _, id := range odd {
			w.eval("location.hash = '#/main/client?id=' + encodeURIComponent(" + quote(id) + ")")
			w.wait("document.querySelector('main h1')?.title === " + quote(id))
			fits(id)
		}
	}
	require.Zero(t, w.eval(`document.querySelectorAll(
		"main script, main b, main img").length`))
	w.well()
}

func keys(t *testing.T, w *browser) {
	b := newBench(t)
	b.connect("sensor-7", "sensor-8")
	w.visit(b)
	w.key("g")
	w.key("c")
	w.sees("sensor-8")
	w.key("/")
	w.wait("document.activeElement.type === 'search'")
	w.eval("document.activeElement.value = 'sensor-7'")
	w.key("Enter")
	w.wait("!document.body.innerText.includes('sensor-8')")
	w.sees("sensor-7")
	w.eval("document.activeElement.blur()")
	w.key("?")
	w.sees("this list")
	w.well()
}

// tasks are what operators have to do, each in at most five clicks.
var tasks = []struct {
	name string
	do   func(b *bench, w *browser)
}{
	{"kick a client", func(b *bench, w *browser) {
		w.click("Clients")
		w.click("victim")
		w.click("Disconnect")
		w.click("Disconnect")
		w.sees("away")
		w.sees("It was disconnected.")
	}},
	{"keep a user out", func(b *bench, w *browser) {
		w.click("Clients")
		w.click("victim")
		w.click("Ban")
		w.fill("Whom", "user")
		w.fill("Why", "floods")
		w.click("Ban")
		w.click("Bans")
		w.sees("floods")
		require.Equal(b.t, "ann", b.broker.Broker().Bans()[0].Value)
	}},
	{"lift a ban", func(b *bench, w *browser) {
		b.act(1, "ban", `{"kind":"address","value":"192.0.2.0/24"}`)
		w.click("Bans")
		w.click("Lift")
		w.click("Lift it")
		w.sees("Nobody is banned.")
	}},
	{"clear retained messages", func(b *bench, w *browser) {
		for i := range 10_000 {
			m := &dunlin.Message{Topic: fmt.Sprintf("old/%d", i), Payload: []byte("x"), Retain: true}
			require.NoError(b.t, b.broker.Broker().Publish(b.t.Context(), m))
		}
		w.click("Topics")
		w.click("Clear ...")
		w.fill("That match", "old/#")
		w.click("Count them")
		w.sees("Clear 10,000 retained messages?")
		w.fill("Type the number", "9999")
		w.click("Clear them")
		w.sees("Type 10000.")
		w.fill("Type the number", "10000")
		w.click("Clear them")
		w.sees("10,000 were cleared.")
		require.Empty(b.t, slices.Collect(b.broker.Broker().Retained("old/#")))
	}},
	{"look a value up", func(b *bench, w *browser) {
		b.retain("home/kitchen/temperature")
		w.click("Topics")
		w.click("home")
		w.click("kitchen")
		w.click("temperature")
		w.sees("QoS 0, 24 B")
	}},
	{"why does it get nothing", func(b *bench, w *browser) {
		w.click("Clients")
		w.click("victim")
		w.sees("Why does it get nothing?")
		w.fill("", "home/kitchen")
		w.click("Explain")
		w.sees("no subscription")
	}},
	{"who was refused", func(b *bench, w *browser) {
		b.broker.Broker().Ban(dunlin.Ban{Kind: dunlin.BanClient, Value: "intruder"})
		c := b.broker.Open(b.t)
		c.Send(&packets.Connect{Version: packets.V5, ClientID: "intruder"})
		c.WantType("a refusal", packets.TypeConnack)
		c.WantClosed("and no more")
		w.click("Ended")
		w.sees("intruder")
		w.sees("client banned")
	}},
	{"who gets a topic", func(b *bench, w *browser) {
		b.subscribe("reader", "home/#")
		w.click("Who gets it")
		w.wait("document.querySelector('main input[type=search]')")
		w.fill("", "home/kitchen")
		w.click("Show")
		w.sees("reader")
		w.sees("1 subscription matches")
	}},
	{"which messages were lost", func(b *bench, w *browser) {
		c := b.broker.Client(b.t, "small", func(p *packets.Connect) {
			p.Properties = p.Properties.AppendUint(packets.MaximumPacketSize, 64)
		})
		c.Send(&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "#"}}})
		c.WantType("an answer", packets.TypeSuback)
		b.act(1, "publish", `{"topic":"big/one","text":"`+strings.Repeat("x", 100)+`"}`)
		w.click("Drops")
		w.sees("big/one")
		w.sees("too large")
	}},
	{"watch a device", func(b *bench, w *browser) {
		w.click("Clients")
		w.click("victim")
		w.click("Show live packets")
		w.sees("waiting for packets")
		b.act(1, "disconnect", `{"id":"victim"}`)
		w.sees("DISCONNECT")
	}},
	{"trace a device", func(b *bench, w *browser) {
		r := trace.New(b.broker.Broker(), trace.Options{Dir: b.t.TempDir()})
		b.t.Cleanup(r.Close)
		b.h.brokers["main"].traces.recorder = r
		w.click("Desk")
		w.click("Start a trace")
		w.fill("Which", "victim")
		w.click("Start")
		w.sees("The trace is running.")
		b.act(1, "disconnect", `{"id":"victim"}`)
		w.click("Stop")
		w.sees("Download")
	}},
	{"move everybody away", func(b *bench, w *browser) {
		w.click("Desk")
		w.click("Move them ...")
		w.fill("To which", "b.example")
		w.click("Move them")
		w.sees("This broker accepts no clients.")
		w.click("Let clients in again")
		w.sees("Clients are welcome again.")
	}},
	{"subscribe and unsubscribe a client", func(b *bench, w *browser) {
		w.open("#/main/client?id=victim", "victim")
		w.click("Subscribe ...")
		w.fill("Topic Filter", "news/#")
		w.fill("QoS", "1")
		w.click("Subscribe")
		w.sees("The client was subscribed.")
		w.sees("by the server")
		require.EqualValues(b.t, 1, w.eval(`[...document.querySelectorAll("td .id")].filter(
			e => e.textContent === "news/#").length`))
		w.click("Unsubscribe")
		w.screenshot("dialog-unsubscribe")
		w.click("Unsubscribe")
		w.sees("The subscription was ended.")
		w.sees("It subscribes to nothing.")
	}},
	{"who floods", func(b *bench, w *browser) {
		c := b.broker.Client(b.t, "flooder")
		for range 500 {
			c.Send(&packets.Publish{Topic: []byte("flood"), Payload: []byte("x")})
		}
		w.click("Clients")
		w.choose("Order", "received")
		w.wait("document.querySelector('main tbody tr').textContent.includes('flooder')")
		w.sees("500")
	}},
	{"kick all of a network", func(b *bench, w *browser) {
		w.click("Bans")
		w.click("Ban ...")
		w.fill("Whom", "address")
		w.fill("Which", "192.0.2.0/24")
		w.fill("Why", "scans")
		w.click("Ban")
		w.sees("The ban is in force.")
		w.sees("192.0.2.0/24")
	}},
	{"is it the store", func(b *bench, w *browser) {
		w.click("Overview")
		w.sees("All is well.")
		w.sees("How long it takes")
	}},
	{"is an access rule in force", func(b *bench, w *browser) {
		rules, err := acl.Parse(strings.NewReader("deny all secret/#\nallow all #\n"), "rules")
		require.NoError(b.t, err)
		b = benchOf(b.t, mqtttest.NewBroker(b.t, mqtttest.Config(func(c *dunlin.Config) {
			c.Authorizer = acl.New(rules)
		})))
		b.connect("device")
		w.visit(b)
		w.click("Clients")
		w.click("device")
		w.sees("Why does it get nothing?")
		w.fill("", "secret/plan")
		w.click("Explain")
		w.sees("not authorized")
		w.sees("rules:1")
	}},
	{"which topics are alive", func(b *bench, w *browser) {
		b.subscribe("reader", "home/#")
		w.click("Topics")
		w.click("Seen lately")
		c := b.broker.Client(b.t, "pub")
		for range 100 {
			c.Send(&packets.Publish{Topic: []byte("home/kitchen/temperature"), Payload: []byte("21")})
			w.wait("true")
		}
		w.sees("home/kitchen/temperature")
		w.sees("1 topic")
	}},
	{"keep a token out", func(b *bench, w *browser) {
		b.broker.Client(b.t, "device", func(p *packets.Connect) {
			p.Username, p.HasUsername = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", true
			p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval, 3600)
		})
		w.open("#/main/client?id=device", "device")
		w.click("Ban")
		w.fill("Whom", "user")
		w.click("Ban")
		w.sees("The ban is in force.")
		w.click("Bans")
		w.sees("(a token, ")
		w.click("Lift")
		w.click("Lift it")
		w.sees("Nobody is banned.")
	}},
	{"who has the longest queue", func(b *bench, w *browser) {
		w.click("Clients")
		w.choose("Order", "queued")
		w.sees("victim")
	}},
}
