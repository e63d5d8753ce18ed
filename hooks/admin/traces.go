package admin

import (
	"cmp"
	"errors"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks/trace"
)

// This file is traces: packets that are written to files.

func traceRoutes() []route {
	return []route{
		{method: "GET", path: ofBroker + "/traces", role: RoleRead, serve: (*call).listTraces,
			answer: page[traceView]{}},
		{method: "GET", path: ofBroker + "/trace-file", role: RoleAct, serve: (*call).traceFile,
			params: []string{"name", "file"}},
		{method: "POST", path: ofBroker + "/start-trace", role: RoleAct, serve: (*call).startTrace,
			body: startTraceBody{}, answer: doneView{}},
		{method: "POST", path: ofBroker + "/stop-trace", role: RoleAct, serve: (*call).stopTrace,
			body: stopTraceBody{}, answer: doneView{}},
	}
}

// keptTraces is how many traces that have ended are remembered.
const keptTraces = 20

// A traceView is a trace that was started here.
type traceView struct {
	Name    string    `json:"name"`
	Format  string    `json:"format"` // "text", "json" or "pcapng"
	ID      string    `json:"id,omitempty"`
	Address string    `json:"address,omitempty"`
	Filter  string    `json:"filter,omitempty"`
	Started time.Time `json:"started"`
	Running bool      `json:"running"`
	Packets int64     `json:"packets"`
	Bytes   int64     `json:"bytes"`
	// Lost is how many packets the disk was too slow for.
	Lost uint64 `json:"lost,omitempty"`
	// Files is how many files there are. The first one, number 0, has the newest packets.
	Files int    `json:"files"`
	Err   string `json:"err,omitempty"`
}

func asTrace(t *trace.Trace) traceView {
	v := traceView{Name: t.Name, Format: t.Format.String(), ID: t.What.ClientID,
		Address: t.What.Address, Filter: t.What.Filter, Started: t.Started, Running: true,
		Packets: t.Packets(), Bytes: t.Bytes(), Lost: t.Lost()}
	select {
	case <-t.Done():
		v.Running = false
	default:
	}
	if err := t.Err(); err != nil {
		v.Err = err.Error()
	}
	for _, name := range t.Files() {
		if _, err := os.Stat(name); err == nil {
			v.Files++
		}
	}
	return v
}

// traces are those of a broker that were started here, the oldest first.
type traces struct {
	recorder *trace.Recorder // nil: none

	mu  sync.Mutex
	all []*trace.Trace // guarded by mu
}

// list returns the traces, the newest first.
func (x *traces) list() (all []*trace.Trace) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range x.all {
		all = append(all, x.all[len(x.all)-1-i])
	}
	return all
}

// find returns the newest trace with a name, nil if there is none.
func (x *traces) find(name string) *trace.Trace {
	for _, t := range x.list() {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// add remembers a trace, in the place of an older one with the same name, whose files it has.
func (x *traces) add(t *trace.Trace) {
	x.mu.Lock()
	defer x.mu.Unlock()
	kept := x.all[:0]
	for _, other := range x.all {
		if other.Name != t.Name {
			kept = append(kept, other)
		}
	}
	x.all = append(kept[max(0, len(kept)-keptTraces):], t)
}

// recorder returns the Recorder of the broker.
func (c *call) recorder() (*trace.Recorder, error) {
	if r := c.desk.traces.recorder; r != nil {
		return r, nil
	}
	return nil, fail(http.StatusNotImplemented, "traces", "the program has given this page no "+
		"place for traces (Options.Traces)")
}

// listTraces lists the traces that were started here, the newest first.
func (c *call) listTraces() error {
	page := page[traceView]{Items: []traceView{}}
	for _, t := range c.desk.traces.list() {
		page.Items = append(page.Items, asTrace(t))
	}
	return c.answer(page)
}

// startTraceBody writes the packets of a client, an address or of topics to files. Passwords are
// left out, the contents of messages are not.
type startTraceBody struct {
	// Name is that of the file: letters, digits, dots, underscores and hyphens.
	Name    string `json:"name"`
	Format  string `json:"format"` // "text", "json" or "pcapng"
	ID      string `json:"id,omitempty"`
	Address string `json:"address,omitempty"`
	Filter  string `json:"filter,omitempty"`
	// Seconds is how long, at most a day. Zero: ten minutes.
	Seconds int `json:"seconds,omitempty"`
}

// The bounds of a trace. Its files are bounded by the Recorder.
const (
	longestTrace  = 24 * time.Hour
	shortestTrace = 10 * time.Minute // if nothing else is said
	// longestDownload is how long the download of a file may take.
	longestDownload = 10 * time.Minute
)

// startTrace begins to write packets to files.
func (c *call) startTrace() error {
	var a startTraceBody
	if err := c.read(&a); err != nil {
		return err
	}
	c.about = a.Name + " " + a.ID + a.Address + a.Filter
	r, err := c.recorder()
	if err != nil {
		return err
	}
	format, err := trace.ParseFormat(a.Format)
	if err != nil {
		return err
	}
	long := time.Duration(a.Seconds) * time.Second
	if a.Seconds < 0 || a.Seconds > int(longestTrace/time.Second) {
		return fail(http.StatusBadRequest, "trace", "a trace is at most a day long")
	}
	t, err := r.Start(c.h.ctx, a.Name, format, dunlin.TapOptions{ClientID: a.ID,
		Address: a.Address, Filter: a.Filter, MaxPackets: -1, MaxBytes: -1,
		For: cmp.Or(long, shortestTrace)})
	if err != nil {
		return err
	}
	c.desk.traces.add(t)
	return c.did(1)
}

// stopTraceBody ends a trace. Its files stay.
type stopTraceBody struct {
	Name string `json:"name"`
}

// stopTrace ends a trace. Its files stay.
func (c *call) stopTrace() error {
	var a stopTraceBody
	if err := c.read(&a); err != nil {
		return err
	}
	c.about = a.Name
	r, err := c.recorder()
	if err != nil {
		return err
	}
	if !r.Stop(a.Name) {
		return fail(http.StatusNotFound, "no_trace", "no trace with that name is running")
	}
	return c.did(1)
}

// traceFile gives a file of a trace that was started here.
func (c *call) traceFile() error {
	name, err := c.need("name")
	if err != nil {
		return err
	}
	c.about = name
	n, err := c.number("file", 0, 1000)
	if err != nil {
		return err
	}
	t := c.desk.traces.find(name)
	if t == nil {
		return fail(http.StatusNotFound, "no_trace", "no trace with that name was started here")
	}
	files := t.Files()
	if n >= len(files) {
		return fail(http.StatusNotFound, "no_file", "there is no such file")
	}
	f, err := os.Open(files[n])
	if errors.Is(err, os.ErrNotExist) {
		return fail(http.StatusNotFound, "no_file", "there is no such file")
	} else if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// a file may be large, and that of the server is for a page. Not every writer has one
	_ = c.control().SetWriteDeadline(time.Now().Add(longestDownload))
	base := filepath.Base(files[n])
	c.w.Header().Set("Content-Type", "application/octet-stream")
	c.w.Header().Set("Content-Disposition",
		mime.FormatMediaType("attachment", map[string]string{"filename": base}))
	http.ServeContent(c.w, c.r, "", info.ModTime(), f)
	return nil
}
