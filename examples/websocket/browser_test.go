package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
)

// A browser is a headless Chromium with one page, driven by its DevTools protocol.
type browser struct {
	t    *testing.T
	c    *websocket.Conn
	next int
}

// startBrowser starts Chromium, if it is installed, and ends it with the test.
func startBrowser(t *testing.T) *browser {
	t.Helper()
	path := try.Need(t, "chromium", "chromium")
	dir, err := os.MkdirTemp("", "page") // not t.TempDir: Chromium still writes while it ends
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
		"--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
		"--hide-scrollbars", "--window-size=1280,860", "--user-data-dir="+dir,
		"--remote-debugging-port=0", "about:blank")
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address, silent := make(chan string, 1), make(chan struct{})
	go func() { // ends with the last process of the browser
		defer close(silent)
		defer close(address)
		lines := bufio.NewScanner(said)
		for lines.Scan() {
			if _, a, ok := strings.Cut(lines.Text(), "DevTools listening on "); ok {
				address <- a
				break
			}
		}
		io.Copy(io.Discard, said)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-silent
		cmd.Wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	devTools, ok := <-address
	if !ok {
		t.Fatal("Chromium has ended before it opened its DevTools port")
	}
	b := &browser{t: t}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if b.c, _, err = websocket.Dial(ctx, devTools, nil); err != nil {
		t.Fatal(err)
	}
	b.c.SetReadLimit(64 << 20)
	t.Cleanup(func() { b.c.CloseNow() })
	return b
}

// call calls a method of the protocol, in a session if that is not empty.
func (b *browser) call(session, method string, params any, result any) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 60*time.Second)
	defer cancel()
	b.next++
	m := map[string]any{"id": b.next, "method": method, "params": params}
	if session != "" {
		m["sessionId"] = session
	}
	text, err := json.Marshal(m)
	if err == nil {
		err = b.c.Write(ctx, websocket.MessageText, text)
	}
	for err == nil {
		var answer struct {
			ID     int
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		if _, text, err = b.c.Read(ctx); err != nil {
			break
		}
		if err = json.Unmarshal(text, &answer); err != nil || answer.ID != b.next {
			continue // an event
		}
		if answer.Error != nil {
			b.t.Fatalf("%s: %s", method, answer.Error.Message)
		}
		if result != nil {
			err = json.Unmarshal(answer.Result, result)
		}
		break
	}
	if err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
}

// A page is a tab of the browser.
type page struct {
	*browser
	session string
}

func (b *browser) open(url string) *page {
	b.t.Helper()
	var target struct{ TargetID string }
	b.call("", "Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("", "Target.attachToTarget",
		map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.call(attached.SessionID, "Emulation.setDeviceMetricsOverride",
		map[string]any{"width": 1280, "height": 820, "deviceScaleFactor": 1, "mobile": false}, nil)
	b.call(attached.SessionID, "Page.navigate", map[string]any{"url": url}, nil)
	return &page{b, attached.SessionID}
}

// resize gives the page the size of another screen.
func (p *page) resize(width, height int) {
	p.t.Helper()
	p.call(p.session, "Emulation.setDeviceMetricsOverride",
		map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": true},
		nil)
}

// eval returns the value of an expression, as text.
func (p *page) eval(expression string) string {
	p.t.Helper()
	var r struct {
		Result           struct{ Value any }
		ExceptionDetails *struct {
			Exception struct{ Description string }
		}
	}
	p.call(p.session, "Runtime.evaluate",
		map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &r)
	if r.ExceptionDetails != nil {
		p.t.Fatalf("%s: %s", expression, r.ExceptionDetails.Exception.Description)
	}
	return fmt.Sprint(r.Result.Value)
}

// wait waits until an expression is true.
func (p *page) wait(expression string) {
	p.t.Helper()
	// The page itself looks: this side has nothing to do meanwhile.
	if p.eval(fmt.Sprintf(`(async () => { for (const end = Date.now() + 50000; !(%s); await new Promise((again) => setTimeout(again, 20))) {
		if (Date.now() > end) { return false; } } return true; })()`, expression)) != "true" {
		p.t.Fatalf("it does not come true that %s; the page says:\n%s", expression,
			p.eval("document.body.innerText"))
	}
}

// screenshot writes what is seen to a PNG file.
func (p *page) screenshot(name string) {
	p.t.Helper()
	var shot struct{ Data string }
	p.call(p.session, "Page.captureScreenshot", map[string]any{"format": "png"}, &shot)
	b, err := base64.StdEncoding.DecodeString(shot.Data)
	if err == nil {
		err = os.WriteFile(name, b, 0o644)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}
