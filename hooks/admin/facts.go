package admin

import (
	"iter"

	"github.com/dunlin-mqtt/dunlin"
)

// This file is the lists of a broker, each from a place on.

// sessionsFrom yields the Sessions that come after a place, each with its own.
func sessionsFrom(b *dunlin.Broker, after string) iter.Seq2[string, dunlin.SessionInfo] {
	return func(yield func(string, dunlin.SessionInfo) bool) {
		for s := range b.Sessions() {
			place := s.ClientID + "\x00" + s.Principal
			if place > after && !yield(place, s) {
				return
			}
		}
	}
}

// retainedFrom yields the retained messages that match a filter and whose topics come after one.
func retainedFrom(b *dunlin.Broker, filter, after string) iter.Seq[*dunlin.Message] {
	return func(yield func(*dunlin.Message) bool) {
		for m := range b.Retained(filter) {
			if m.Topic > after && !yield(m) {
				return
			}
		}
	}
}
