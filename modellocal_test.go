package dunlin

import (
	"context"
)

// A modelLocal is a named Subscription of the program in the model, see model_test.go.
type modelLocal struct {
	inbox
	ends   bool
	manual bool
	sub    *Subscription // nil: nobody reads
	calls  int
	trying bool // Subscribe is under way
	absent bool // no Session of it may be there
}

// step does something with the Subscription.
func (x *modelLocal) step() {
	w := x.w
	switch n := w.rnd.IntN(4); {
	case x.sub == nil:
		x.subscribe()
	case n == 0:
		w.say("%s is closed", x.id)
		x.sub.Close()
		x.cut()
	case n == 1 && x.ends:
		x.delete()
	}
}

// cut is the end of the reader.
func (x *modelLocal) cut() { x.sub, x.trying = nil, false; x.calls++ }

// subscribe has the program subscribe, and read.
func (x *modelLocal) subscribe() {
	w := x.w
	if x.sub != nil || x.trying {
		return
	}
	w.say("%s subscribes", x.id)
	x.trying, x.absent = true, false
	x.calls++
	b, call := w.b, x.calls
	go func() {
		o := &SubscribeOptions{Name: x.id, QoS: x.qos, ManualAck: x.manual}
		sub, err := b.Subscribe(context.Background(), x.filter, o)
		w.answer(func() {
			if x.calls != call {
				return
			}
			x.trying = false
			if err != nil {
				w.say("  %s: %v", x.id, err)
				return
			}
			x.sub = sub
			x.begin()
		})
		if err != nil {
			return
		}
		for m := range sub.Messages() {
			m.Ack()
			if !m.Retain {
				w.answer(func() { x.got(string(m.Payload)) })
			}
		}
	}()
}

// delete has the program end the Session.
func (x *modelLocal) delete() {
	w := x.w
	w.say("%s is deleted", x.id)
	x.endLife()
	sub := x.sub
	x.cut()
	call := x.calls
	go func() {
		err := sub.Delete()
		w.answer(func() {
			if err == nil && x.calls == call {
				x.absent = true
			}
		})
	}()
}
