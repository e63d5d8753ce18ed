package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	cmd := exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1280,860", "--user-data-dir="+dir,
		"--remote-debugging-port=0", "about:blank")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		for range 50 {
			if os.RemoveAll(dir) == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	b := &browser{t: t}
	var port, target string
	b.until("Chromium does not open its DevTools port", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "DevToolsActivePort"))
		port, target, _ = strings.Cut(strings.TrimSpace(string(text)), "\n")
		return err == nil && target != ""
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if b.c, _, err = websocket.Dial(ctx, "ws://127.0.0.1:"+port+target, nil); err != nil {
		t.Fatal(err)
	}
	b.c.SetReadLimit(64 << 20)
	t.Cleanup(func() { b.c.CloseNow() })
	return b
}

// until calls f until it returns true.
func (b *browser) until(why string, f func() bool) {
	b.t.Helper()
	for start := time.Now(); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > 60*time.Second {
			b.t.Fatal(why)
		}
	}
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
	b.call("", "Target.createTarget", map[string]any{"url": url}, &target)
	var attached struct{ SessionID string }
	b.call("", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.call(attached.SessionID, "Emulation.setDeviceMetricsOverride", map[string]any{"width": 1280, "height": 820, "deviceScaleFactor": 1, "mobile": false}, nil)
	return &page{b, attached.SessionID}
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
	p.call(p.session, "Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &r)
	if r.ExceptionDetails != nil {
		p.t.Fatalf("%s: %s", expression, r.ExceptionDetails.Exception.Description)
	}
	return fmt.Sprint(r.Result.Value)
}

// wait waits until an expression is true.
func (p *page) wait(expression string) {
	p.t.Helper()
	for start := time.Now(); p.eval("!!("+expression+")") != "true"; time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > 60*time.Second {
			p.t.Fatalf("it does not come true that %s; the page says:\n%s", expression, p.eval("document.body.innerText"))
		}
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
