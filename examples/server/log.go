package main

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
)

// This file is where log lines go, and which: -log-level, -log-dest, -log-timestamp.

// logging are the flags.
type logging struct {
	logLevel   string
	level      slog.LevelVar
	dest       list
	timestamp  bool
	connection bool // of clients that come and go
	packets    bool // each of them
	files      []*logFile
}

func (lo *logging) flags(fs *flag.FlagSet) {
	fs.StringVar(&lo.logLevel, "log-level", "info", "debug, info, warn, error or none")
	fs.Var(&lo.dest, "log-dest", "where log lines go, repeatable: stderr, stdout, none or a "+
		"`file`, which is opened anew on SIGHUP (default stderr)")
	fs.BoolVar(&lo.timestamp, "log-timestamp", true, "begin log lines with the time")
	fs.BoolVar(&lo.connection, "connection-messages", true, "log who comes, goes and is refused")
	fs.BoolVar(&lo.packets, "v", false,
		"log CONNECT, SUBSCRIBE, UNSUBSCRIBE, PUBLISH and DISCONNECT, one line each, in the "+
			"words of mosquitto -v")
}

// silent is above all levels.
const silent = slog.LevelError + 100

// finish checks the flags.
func (lo *logging) finish() error {
	level := silent
	if lo.logLevel != "none" {
		if err := level.UnmarshalText([]byte(lo.logLevel)); err != nil {
			return fmt.Errorf("-log-level %q is not debug, info, warn, error or none", lo.logLevel)
		}
	}
	lo.level.Set(level)
	return nil
}

// logger returns what writes to the destinations, or to standard if none is named. Files are opened
// with the first line.
func (lo *logging) logger(standard io.Writer) *slog.Logger {
	var to each
	lo.files = nil
	for _, d := range slices.Compact(slices.Sorted(slices.Values(lo.dest))) {
		switch d {
		case "none":
		case "stderr":
			to = append(to, standard)
		case "stdout":
			to = append(to, os.Stdout)
		default:
			f := &logFile{name: d, otherwise: standard}
			lo.files = append(lo.files, f)
			to = append(to, f)
		}
	}
	if len(lo.dest) == 0 {
		to = each{standard}
	}
	options := &slog.HandlerOptions{Level: &lo.level}
	if !lo.timestamp {
		options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(to, options))
}

// each writes to all of its members: one that fails, such as a file on a full disk, takes no line
// from the others.
type each []io.Writer

func (e each) Write(b []byte) (int, error) {
	for _, w := range e {
		w.Write(b)
	}
	return len(b), nil
}

// A logFile is opened when it is first written to, and after each call of reopen: who rotates logs
// has renamed it.
type logFile struct {
	name      string
	otherwise io.Writer // what is written to while the file cannot be opened

	mu sync.Mutex
	f  *os.File // guarded by mu
}

func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		f, err := os.OpenFile(l.name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			fmt.Fprintln(l.otherwise, "-log-dest:", err)
			return l.otherwise.Write(b)
		}
		l.f = f
	}
	return l.f.Write(b)
}

// reopen has the next line open the file.
func (l *logFile) reopen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		l.f.Close() // every line has been written
		l.f = nil
	}
}
