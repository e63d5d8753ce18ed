package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
)

var shots = flag.String("shots", "", "folder for screenshots of the page")

// A browser is a headless Chromium with one page, driven by its DevTools protocol over a pipe.
type browser struct {
	t       *testing.T
	to      io.WriteCloser
	from    *bufio.Reader
	next    int
	session string
	bad     []string // errors of the page
}

func startBrowser(t *testing.T) *browser {
	t.Helper()
	path := try.Need(t, "chromium", "chromium")
	dir, err := os.MkdirTemp("", "page") // not t.TempDir: Chromium still writes while it ends
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--disable-dev-shm-usage", "--hide-scrollbars", "--user-data-dir="+dir,
		"--remote-debugging-pipe")
	theirIn, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirIn.Close()
	theirOut.Close()
	t.Cleanup(func() {
		cmd.Process.Kill()
		io.Copy(io.Discard, from) // until the last of its processes has ended
		cmd.Wait()
		os.RemoveAll(dir)
	})
	b := &browser{t: t, to: to, from: bufio.NewReader(from)}
	b.open()
	return b
}

// open opens a new tab.
func (b *browser) open() {
	b.t.Helper()
	b.session = ""
	var target struct{ TargetID string }
	b.call("Target.createTarget", object{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", object{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		b.call(domain+".enable", object{}, nil)
	}
	b.size(1280, 820)
}

// close closes the tab.
func (b *browser) close() {
	b.t.Helper()
	b.call("Page.close", object{}, nil)
}

func (b *browser) size(width, height int) {
	b.t.Helper()
	b.call("Emulation.setDeviceMetricsOverride", object{"width": width, "height": height,
		"deviceScaleFactor": 1, "mobile": width < 500}, nil)
}

func (b *browser) visit(url string) {
	b.t.Helper()
	b.call("Page.navigate", object{"url": url}, nil)
}

// call calls a method of the protocol.
func (b *browser) call(method string, params object, result any) {
	b.t.Helper()
	b.next++
	m := object{"id": b.next, "method": method, "params": params}
	if b.session != "" {
		m["sessionId"] = b.session
	}
	text, err := json.Marshal(m)
	if err == nil {
		_, err = b.to.Write(append(text, 0))
	}
	for err == nil {
		if text, err = b.from.ReadBytes(0); err != nil {
			break
		}
		var answer struct {
			ID             int
			Method         string
			Params, Result json.RawMessage
			Error          *struct{ Message string }
		}
		if err = json.Unmarshal(text[:len(text)-1], &answer); err != nil {
			break
		}
		switch {
		case answer.Method == "Runtime.exceptionThrown",
			answer.Method == "Log.entryAdded" && strings.Contains(string(answer.Params), "Policy"),
			answer.Method == "Page.javascriptDialogOpening":
			b.bad = append(b.bad, answer.Method+" "+string(answer.Params))
		case answer.ID != b.next:
		case answer.Error != nil:
			b.t.Fatalf("%s: %s", method, answer.Error.Message)
		default:
			if result != nil {
				err = json.Unmarshal(answer.Result, result)
			}
			if err == nil {
				return
			}
		}
	}
	b.t.Fatalf("%s: %v", method, err)
}

// eval returns the value of an expression, as text.
func (b *browser) eval(expression string) string {
	b.t.Helper()
	var r struct {
		Result           struct{ Value any }
		ExceptionDetails *struct{ Exception struct{ Description string } }
	}
	b.call("Runtime.evaluate", object{"expression": expression, "returnByValue": true,
		"awaitPromise": true, "userGesture": true}, &r)
	if r.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, r.ExceptionDetails.Exception.Description)
	}
	return fmt.Sprint(r.Result.Value)
}

// wait waits until an expression is true. The page itself looks. An expression that fails is not
// true: the page may not be there yet.
func (b *browser) wait(expression string) {
	b.t.Helper()
	if b.eval(fmt.Sprintf(`(async () => { const is = () => { try { return %s; } catch { } };
		for (const end = Date.now() + 40000; !is();
		await new Promise((again) => setTimeout(again, 20))) {
		if (Date.now() > end) { return false; } } return true; })()`, expression)) != "true" {
		b.t.Fatalf("it does not come true that %s; the page says:\n%s\n%s", expression,
			b.eval("document.body.innerText"), strings.Join(b.bad, "\n"))
	}
}

// shot writes what is seen to a file, if somebody wants to look.
func (b *browser) shot(name string) {
	b.t.Helper()
	if *shots == "" {
		return
	}
	var shot struct{ Data string }
	b.call("Page.captureScreenshot", object{"format": "png"}, &shot)
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	if err == nil {
		err = os.WriteFile(filepath.Join(*shots, name+".png"), png, 0o644)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// says is an expression that is true if a text stands in an element.
func says(selector, text string) string {
	return fmt.Sprintf("document.querySelector(%q)?.innerText.includes(%q)", selector, text)
}

func (b *browser) click(selector string) {
	b.t.Helper()
	b.wait(fmt.Sprintf("document.querySelector(%q)", selector))
	b.eval(fmt.Sprintf("document.querySelector(%q).click()", selector))
}

func (b *browser) write(text string) {
	b.t.Helper()
	b.eval(fmt.Sprintf(`document.getElementById("body").value = %q;
		document.getElementById("send").requestSubmit()`, text))
}

// Two browsers: ann writes, and ben gets it; he closes the page, comes back, and has what he
// missed. Nothing that anybody writes is executed, and the page works without a connection.
func TestPage(t *testing.T) {
	s := start(t)
	ann, ben := s.account("users/ann"), s.account("users/ben")
	s.account("devices/door")
	for _, path := range []string{"groups/garden/members/ann", "groups/garden/members/ben",
		"groups/night-shift/members/ann", "devices/door/owners/ben"} {
		s.must("PUT", "/v1/"+path, nil)
	}
	a, b := startBrowser(t), startBrowser(t)
	a.visit(s.url)
	a.wait(`!document.getElementById("door").hidden`)
	a.shot("door")
	a.eval(`document.getElementById("token").value = "wrong";
		document.getElementById("signin").requestSubmit()`)
	a.wait(says("#trouble", "not valid"))
	a.eval(fmt.Sprintf(`document.getElementById("token").value = %q;
		document.getElementById("signin").requestSubmit()`, ann))
	a.wait(says("#status", "Connected"))
	b.visit(s.url + "/#token=" + ben) // a link
	b.wait(says("#status", "Connected"))
	b.wait(`!location.hash`)

	s.must("POST", "/v1/push", object{"to": "users/ben", "priority": "high",
		"body": "The gate closes at eight tonight."})
	b.wait(says(`#messages`, "closes at eight"))
	a.click(`[data-key="groups/garden"]`)
	a.write("Who waters the tomatoes tomorrow?")
	b.wait(says(`[data-key="groups/garden"] .count`, "1"))
	b.click(`[data-key="groups/garden"]`)
	b.write("I will, after work. The hose is in the shed.")
	a.wait(says("#messages", "after work"))
	evil := `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>`
	a.write(evil)
	b.wait(says("#messages", "onerror"))
	if b.eval(`document.querySelectorAll("#messages img, #messages script").length`) != "0" {
		t.Error("what a user has written became HTML")
	}
	b.wait(`document.querySelector('[data-key="users/ann"] .here')`) // presence
	a.wait(`document.querySelectorAll("#messages .mine").length === 2 &&
		!document.querySelector("#messages").innerText.includes("not sent")`)

	b.close()
	a.write("And bring the small spade, please.")
	a.click(`[data-key="users/ben"]`)
	a.write("See you at six?")
	s.push("groups/garden", "Rain is expected on Thursday.")
	a.wait(`!document.querySelector("#messages").innerText.includes("not sent")`)
	a.wait(says("#members", "not connected"))
	b.open()
	b.visit(s.url)
	b.wait(says(`[data-key="groups/garden"] .count`, "2"))
	b.wait(says(`[data-key="users/ann"] .count`, "1"))
	b.shot("wide-back")
	b.click(`[data-key="groups/garden"]`)
	b.wait(says("#messages", "small spade"))
	b.wait(says("#messages", "Thursday"))
	b.shot("wide")

	narrow(b)
	offline(s, a, b)
	for _, x := range []*browser{a, b} {
		if len(x.bad) > 0 || strings.Contains(x.eval("document.title"), "owned") {
			t.Errorf("the page had errors, or ran what a user had written: %v", x.bad)
		}
	}
}

// narrow looks at the page as on a phone.
func narrow(b *browser) {
	b.t.Helper()
	b.size(360, 740)
	for _, name := range []string{"narrow-chat", "narrow-list"} {
		if b.eval("document.documentElement.scrollWidth") != "360" {
			b.t.Errorf("%s: the page is wider than the screen", name)
		}
		b.shot(name)
		b.click("#back")
		b.wait(`document.getElementById("chat").hidden`)
	}
	b.click(`[data-key="groups/garden"]`)
}

// offline cuts the connection of b, has it write, and loads the page again meanwhile.
func offline(s *bench, a, b *browser) {
	b.t.Helper()
	b.wait(`navigator.serviceWorker.controller || !navigator.serviceWorker`)
	cut := func(off bool) {
		b.call("Network.emulateNetworkConditions", object{"offline": off, "latency": 0,
			"downloadThroughput": -1, "uploadThroughput": -1}, nil)
	}
	s.program.Stop()
	b.wait(says("#app", "garden"))
	b.wait(`!document.getElementById("banner").hidden`)
	cut(true)
	b.visit(s.url)
	b.wait(says(`[data-key="groups/garden"]`, "garden")) // what was kept
	b.click(`[data-key="groups/garden"]`)
	b.write("Written in the tunnel.")
	b.wait(says("#messages", "not sent"))
	b.shot("narrow-offline")
	cut(false)
	for i, address := range []string{s.devices, strings.TrimPrefix(s.url, "http://"), s.inband} {
		s.args[2*i+1] = address
	}
	s.begin()
	a.click(`[data-key="groups/garden"]`)
	a.wait(says("#messages", "in the tunnel"))
	b.wait(`!document.querySelector("#messages").innerText.includes("not sent")`)
	a.shot("wide-after")
}
