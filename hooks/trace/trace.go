// Package trace writes the packets that a Tap shows to files, and reads them again.
//
//	r := trace.New(b, trace.Options{Dir: "/var/log/dunlin"}) // b is a *dunlin.Broker
//	t, err := r.Start(ctx, "sensor-7", trace.FormatPCAPNG, hooks.TapOptions{ClientID: "sensor-7"})
//
// A trace ends when its Tap does, with ctx, or with Stop. The files are as large and as many as
// Options say; older packets are removed. A disk that is slow or full ends the trace or costs it
// packets, and delays nobody. Passwords and Authentication Data are not in the files, the content
// of messages is.
package trace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
)

// Format is the form of the files of a trace.
type Format byte

const (
	// FormatText has a line for each packet, as packets.Trace writes it.
	FormatText Format = iota
	// FormatJSON has a JSON object on each line, with the whole packet. Read reads it.
	FormatJSON
	// FormatPCAPNG is for Wireshark and tshark. The packets stand in TCP segments that are made up;
	// the server has port 1883, so that the packets are recognized, and also those that came by TLS
	// and WebSocket are readable. Read reads it.
	FormatPCAPNG
)

var formats = [...]struct {
	name, ext string
	make      func() encoder
}{
	{"text", ".txt", func() encoder { return new(textEncoder) }},
	{"json", ".jsonl", func() encoder { return new(jsonEncoder) }},
	{"pcapng", ".pcapng", func() encoder { return new(pcapEncoder) }},
}

// String returns "text", "json" or "pcapng".
func (f Format) String() string {
	if int(f) < len(formats) {
		return formats[f].name
	}
	return "unknown"
}

// ParseFormat is the reverse of String.
func ParseFormat(s string) (Format, error) {
	for i := range formats {
		if formats[i].name == s {
			return Format(i), nil
		}
	}
	return 0, fmt.Errorf("trace: expected text, json or pcapng, got %q", s)
}

// An encoder writes packets. It belongs to one file.
type encoder interface {
	// begin appends what a file begins with.
	begin(dst []byte) []byte
	// add appends a packet.
	add(dst []byte, p *hooks.TapPacket) []byte
}

// A Source is a broker.
type Source interface {
	Tap(ctx context.Context, o hooks.TapOptions) (hooks.Tap, error)
}

// Options are those of a Recorder.
type Options struct {
	// Dir is the folder of the files. It must exist. Empty: the current one.
	Dir string
	// FileBytes is how large a file may become, Files how many of a trace are kept. Zero: 16 MiB,
	// 4.
	FileBytes int64
	Files     int
	// Traces is how many traces may run at a time. Zero: 10, which is also the most.
	Traces int
}

// maxTraces is how many traces a Recorder runs at a time.
const maxTraces = 10

// A Recorder writes traces of a broker. All methods may be called from any goroutine.
type Recorder struct {
	from Source
	o    Options

	mu     sync.Mutex
	traces []*Trace
	closed bool
}

// New returns a Recorder for the packets of a broker.
func New(from Source, o Options) *Recorder {
	if o.FileBytes <= 0 {
		o.FileBytes = 16 << 20
	}
	if o.Files <= 0 {
		o.Files = 4
	}
	if o.Traces <= 0 || o.Traces > maxTraces {
		o.Traces = maxTraces
	}
	return &Recorder{from: from, o: o}
}

// ErrClosed is returned by Start after Close.
var ErrClosed = errors.New("trace: the Recorder is closed")

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Start begins a trace. name becomes the name of the file: at most 64 letters, digits, dots,
// underscores and hyphens, of which the first is a letter or a digit. Files of an earlier trace
// with
// that name and format are replaced.
func (r *Recorder) Start(ctx context.Context, name string, f Format, what hooks.TapOptions) (
	*Trace, error) {
	switch {
	case !validName.MatchString(name) || strings.Contains(name, ".."):
		return nil, fmt.Errorf(
			"trace: expected a name of letters, digits, '.', '_' and '-', got %q", name)
	case int(f) >= len(formats):
		return nil, fmt.Errorf("trace: format %d is not known", f)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return nil, ErrClosed
	case len(r.traces) >= r.o.Traces:
		return nil, fmt.Errorf("trace: %d traces are running, stop one of them first",
			len(r.traces))
	case slices.ContainsFunc(r.traces, func(t *Trace) bool { return t.Name == name }):
		return nil, fmt.Errorf("trace: a trace with the name %q is running", name)
	}
	t := &Trace{
		Name: name, Format: f, What: what, Started: time.Now(), of: r, done: make(chan struct{}),
	}
	if err := t.open(); err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	for n := 1; n < 1000; n++ { // of an earlier trace, which may have had more files
		if os.Remove(t.path(n)) != nil {
			break
		}
	}
	tap, err := r.from.Tap(ctx, what)
	if err != nil {
		t.file.Close()
		os.Remove(t.path(0))
		return nil, err
	}
	t.tap = tap
	r.traces = append(r.traces, t)
	go t.run() // Stop and Close wait for it
	return t, nil
}

// Traces returns the traces that are running, in the order in which they were started.
func (r *Recorder) Traces() []*Trace {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.traces)
}

// Stop ends the trace with a name, and waits until its file is complete. It returns false if none
// with that name is running.
func (r *Recorder) Stop(name string) bool {
	for _, t := range r.Traces() {
		if t.Name == name {
			t.Stop()
			return true
		}
	}
	return false
}

// Close ends all traces, and waits until their files are complete.
func (r *Recorder) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	for _, t := range r.Traces() {
		t.Stop()
	}
}

// A Trace is one that was started. All methods may be called from any goroutine.
type Trace struct {
	// Immutable.
	Name    string
	Format  Format
	What    hooks.TapOptions
	Started time.Time

	of   *Recorder
	tap  hooks.Tap
	done chan struct{}

	packets, written atomic.Int64
	err              error // set before done is closed

	// Owned by run.
	file *os.File
	enc  encoder
	size int64
	buf  []byte
}

// Packets returns how many packets the trace has written, Bytes how many bytes.
func (t *Trace) Packets() int64 { return t.packets.Load() }

// Bytes returns how many bytes the trace has written, those of files that are gone included.
func (t *Trace) Bytes() int64 { return t.written.Load() }

// Lost returns how many packets were not written because the disk did not keep up.
func (t *Trace) Lost() uint64 { return t.tap.Lost() }

// Done is closed when the trace has ended and its file is complete.
func (t *Trace) Done() <-chan struct{} { return t.done }

// Err returns what ended the trace, nil if it is running or nothing went wrong.
func (t *Trace) Err() error {
	select {
	case <-t.done:
		return t.err
	default:
		return nil
	}
}

// Files returns the names of the files that there may be, the newest first.
func (t *Trace) Files() []string {
	all := make([]string, t.of.o.Files)
	for i := range all {
		all[i] = t.path(i)
	}
	return all
}

// Stop ends the trace, and waits until its file is complete.
func (t *Trace) Stop() {
	t.tap.Stop()
	<-t.done
}

// path is the name of file n, 0 for the one that is written.
func (t *Trace) path(n int) string {
	name := t.Name
	if n > 0 {
		name = fmt.Sprintf("%s.%d", name, n)
	}
	return filepath.Join(t.of.o.Dir, name+formats[t.Format].ext)
}

// open begins a file.
func (t *Trace) open() error {
	f, err := os.OpenFile(t.path(0), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	t.file, t.enc, t.size = f, formats[t.Format].make(), 0
	return t.write(t.enc.begin(t.buf[:0]))
}

func (t *Trace) write(b []byte) error {
	t.buf = b
	n, err := t.file.Write(b)
	t.size += int64(n)
	t.written.Add(int64(n))
	return err
}

// run writes until the Tap has ended.
func (t *Trace) run() {
	for p := range t.tap.Packets() {
		if t.err = t.one(&p); t.err != nil {
			break
		}
		t.packets.Add(1)
	}
	t.tap.Stop()
	t.err = errors.Join(t.err, t.file.Close())
	t.of.mu.Lock()
	t.of.traces = slices.DeleteFunc(t.of.traces, func(x *Trace) bool { return x == t })
	t.of.mu.Unlock()
	close(t.done)
}

// one writes a packet, into a new file if it has no room in this one.
func (t *Trace) one(p *hooks.TapPacket) error {
	b := t.enc.add(t.buf[:0], p)
	if t.size > 0 && t.size+int64(len(b)) > t.of.o.FileBytes {
		if err := t.rotate(); err != nil {
			return err
		}
		b = t.enc.add(t.buf[:0], p)
	}
	return t.write(b)
}

// rotate begins a new file, and removes the oldest one.
func (t *Trace) rotate() error {
	if err := t.file.Close(); err != nil {
		return err
	}
	for n := t.of.o.Files - 1; n > 0; n-- {
		if err := os.Rename(t.path(n-1), t.path(n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return t.open()
}
