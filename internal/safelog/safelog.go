// Package safelog makes the slog.Handler of a program safe: what panics in it loses its line, and
// nothing else. It needs the standard library only, and every package may import it.
package safelog

import (
	"context"
	"errors"
	"log/slog"
)

// Logger returns l, or slog.Default() if l is nil, with its Handler made safe.
func Logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		l = slog.Default()
	}
	return slog.New(Handler(l.Handler()))
}

// Handler returns h made safe. A line is lost if h panics, or if it panics when it is asked whether
// it wants the line.
func Handler(h slog.Handler) slog.Handler {
	if safe, ok := h.(handler); ok {
		return safe
	}
	return handler{h}
}

type handler struct{ unsafe slog.Handler }

var errPanic = errors.New("the slog.Handler has panicked")

// Enabled is that of slog.Handler.
func (h handler) Enabled(ctx context.Context, l slog.Level) (wants bool) {
	defer func() {
		if v := recover(); v != nil {
			wants = false
		}
	}()
	return h.unsafe.Enabled(ctx, l)
}

// Handle is that of slog.Handler.
func (h handler) Handle(ctx context.Context, r slog.Record) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = errPanic
		}
	}()
	return h.unsafe.Handle(ctx, r)
}

// WithAttrs is that of slog.Handler. If that panics the lines are without the attributes.
func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.with(func() slog.Handler { return h.unsafe.WithAttrs(attrs) })
}

// WithGroup is that of slog.Handler. If that panics the lines are without the group.
func (h handler) WithGroup(name string) slog.Handler {
	return h.with(func() slog.Handler { return h.unsafe.WithGroup(name) })
}

func (h handler) with(more func() slog.Handler) (out slog.Handler) {
	out = h
	defer func() {
		if v := recover(); v != nil {
			out = h
		}
	}()
	if got := more(); got != nil {
		out = Handler(got)
	}
	return out
}
