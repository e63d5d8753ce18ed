package dunlin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is request and response as MQTT 5.0 has them (4.10): a request names the topic of its
// answer and data to know it by.

// ErrNoResponder is returned by Request if nobody subscribes to the topic of the request.
var ErrNoResponder = errors.New("dunlin: nobody subscribes to the topic of the request")

// A ResponseError is what Request returns if the handler of a Respond failed. Clients see it as the
// User Property "error" of an empty response.
type ResponseError struct{ Reason string }

// Error returns the reason.
func (e *ResponseError) Error() string { return "dunlin: the responder failed: " + e.Reason }

// errorProperty is the name of that User Property.
const errorProperty = "error"

// Request publishes payload to topic at QoS 1, with a Response Topic and Correlation Data of its
// own, and returns the first response. Who responds may be a client of MQTT 5.0 or Respond. ctx
// should have an end: a responder need not answer.
//
// The Response Topic is Config.ResponseInformation, or "response" without that, with a random last
// level. A client needs the right to publish to it. If it has a mount point (hooks.Grant) its
// response comes with that in front, as the Topic of the result shows; that is listened for where
// the client gets the request at the time of the call. A client with another mount point cannot
// answer in its place.
//
// The error is ErrNoResponder, a *ResponseError, the cause of ctx, or one of Publish.
func (b *Broker) Request(ctx context.Context, topic string, payload []byte) (*Incoming, error) {
	return b.RequestMessage(ctx, &Message{Topic: topic, Payload: payload, QoS: packets.QoS1})
}

// RequestMessage is Request for a whole message. Response Topic and Correlation Data are added to
// its Properties and must not be there.
func (b *Broker) RequestMessage(ctx context.Context, m *Message) (*Incoming, error) {
	if m.Properties.Has(packets.ResponseTopic) || m.Properties.Has(packets.CorrelationData) {
		return nil, packets.Errorf(packets.ProtocolError,
			"a request that has a Response Topic or Correlation Data already")
	}
	id := rand.Text()
	to := strings.TrimSuffix(b.responses(), "/") + "/" + id
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the subscription
	o := &SubscribeOptions{QoS: packets.QoS2, Buffer: 16, RetainHandling: RetainHandlingSkip}
	sub, err := b.Subscribe(ctx, to, o)
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	for _, mount := range b.mountsFor(m.Topic) {
		if err := sub.Add(mount+to, o); err != nil {
			return nil, err
		}
	}
	q := *m
	q.Properties = append(packets.Properties(nil), m.Properties...)
	q.Properties = q.Properties.AppendText(packets.ResponseTopic,
		to).AppendBytes(packets.CorrelationData, []byte(id))
	switch matched, err := b.publishLocal(ctx, &q, local{}); {
	case err != nil:
		return nil, err
	case matched == 0:
		return nil, ErrNoResponder
	}
	for {
		r, err := sub.Next(ctx)
		if err != nil {
			return nil, err
		}
		if string(r.CorrelationData()) != id {
			continue // somebody who answers without it answers nobody in particular
		}
		for k, v := range r.Properties.User() {
			if k == errorProperty {
				return nil, &ResponseError{v}
			}
		}
		return r, nil
	}
}

// mountsFor returns the mount points of those who would get a message of topic. None of them sees
// more of a Response Topic than what follows it.
func (b *Broker) mountsFor(topic string) (mounts []string) {
	if !packets.ValidTopicName(topic) {
		return nil // for Publish to refuse
	}
	add := func(of []target) {
		for i := range of {
			if m := of[i].s.mount; m != "" && strings.HasPrefix(topic, m) &&
				!slices.Contains(mounts, m) {
				mounts = append(mounts, m)
			}
		}
	}
	b.work(func(t *turn) {
		t.topic = append(t.topic[:0], topic...)
		t.route.fill(t, t.topic, origin{})
		add(t.route.targets)
		for i := range t.route.shared {
			add(t.route.shared[i].members)
		}
	})
	return mounts
}

// responses is what the topics of responses begin with.
func (b *Broker) responses() string {
	if b.cfg().ResponseInformation != "" {
		return b.cfg().ResponseInformation
	}
	return "response"
}

// A Handler answers one request. Its response needs no Topic and no Correlation Data; its other
// properties, QoS and Retain are used as they are. Nil means no response. An error is told to the
// requester, as a ResponseError says, and logged at Debug: the first 1,024 bytes of its text, made
// UTF-8 without control characters. A response that cannot be published is told as an error as
// well.
//
// ctx ends with the Responder. If the handler calls Close of the Responder, or Close or Shutdown of
// the Broker, that does not wait, and returns an error with ErrStillClosing: the end comes when the
// handler has returned.
type Handler func(ctx context.Context, request *Incoming) (response *Message, err error)

// A Responder answers requests until it is closed.
type Responder struct {
	b       *Broker
	sub     *Subscription
	handler Handler
	cancel  context.CancelFunc
	done    chan struct{}

	handling atomic.Bool // the handler is being called
}

// Respond calls handler for each request that is published to filter, one after the other, on one
// goroutine that ends when ctx does, with Close of the Responder, or with the Broker. Several
// Responders may share the work with a shared filter. Messages without a Response Topic are
// requests that want no response. A panic of the handler is logged and answered as an error.
//
// A response is published in the name of the Broker, so a client could have it written to where the
// client itself may not write. Therefore the Response Topic of a client's request must not begin
// with "$"; must begin with Config.ResponseInformation if that is set; and, where there is an
// Authorizer, the client must still be there, and be allowed to subscribe to it; where mount points
// are granted, its Session must still be there, whose mount point is put in front. What is not gets
// no response, which is logged at Debug.
//
// Errors are that handler is nil, and those of Subscribe, of which requests are taken at QoS 2 with
// the default Buffer, without retained ones.
func (b *Broker) Respond(ctx context.Context, filter string, handler Handler) (*Responder, error) {
	if handler == nil {
		return nil, errors.New("dunlin: Respond: the handler is nil")
	}
	ctx, cancel := context.WithCancel(ctx)
	sub, err := b.Subscribe(ctx, filter, &SubscribeOptions{QoS: packets.QoS2,
		RetainHandling: RetainHandlingSkip})
	if err != nil {
		cancel()
		return nil, err
	}
	r := &Responder{b: b, sub: sub, handler: handler, cancel: cancel, done: make(chan struct{})}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		cancel()
		return nil, ErrBrokerClosed
	}
	b.responders.Add(1)
	b.mu.Unlock()
	go r.run(ctx) // Close of the Responder and of the Broker wait for it
	return r, nil
}

// Close ends the Responder and waits for its handler to return. It returns nil; called by a handler
// or a hook while the handler of this Responder runs, it does not wait, and returns an error with
// ErrStillClosing.
func (r *Responder) Close() error {
	r.cancel()
	if r.handling.Load() && calledBack() {
		return fmt.Errorf(
			"%w: a Responder was closed by a function that a Broker has called; it ends when its "+
				"handler returns", ErrStillClosing)
	}
	lock.NoneHeld("a wait")
	<-r.done
	return nil
}

func (r *Responder) run(ctx context.Context) {
	defer r.b.responders.Done()
	defer close(r.done)
	defer r.cancel()
	stop := context.AfterFunc(r.b.ctx, r.cancel)
	defer stop()
	defer r.sub.Close()
	for {
		m, err := r.sub.Next(ctx)
		if err != nil {
			return
		}
		r.answer(ctx, m)
	}
}

// answer handles one request.
func (r *Responder) answer(ctx context.Context, m *Incoming) {
	b := r.b
	response, err := r.call(ctx, m)
	if err != nil {
		b.log.Debug("a request failed", "topic", m.Topic, "client", m.Publisher, "err", err)
		response = failure(m, err)
	}
	if response == nil || m.ResponseTopic() == "" {
		return
	}
	to, err := b.responseTopic(m)
	if err == nil {
		err = r.send(ctx, m, to, response)
		// which may have been sent
		if err != nil && ctx.Err() == nil && !errors.Is(err, journal.ErrNotStored) {
			b.log.Debug("a response could not be published", "topic", m.Topic, "client",
				m.Publisher, "err", err)
			err = r.send(ctx, m, to, failure(m,
				fmt.Errorf("the response could not be published: %w", err)))
		}
	}
	if err != nil && ctx.Err() == nil {
		b.log.Debug("a response was not published", "topic", m.ResponseTopic(), "client",
			m.Publisher, "err", err)
	}
}

// failure is the response that tells an error.
func failure(m *Incoming, err error) *Message {
	return &Message{QoS: m.QoS, Properties: packets.Properties(nil).AppendUser(errorProperty,
		legible(err.Error()))}
}

// send publishes the response to m.
func (r *Responder) send(ctx context.Context, m *Incoming, to string, response *Message) error {
	out := *response
	out.Topic = to
	if err := r.b.sound(&out); err != nil { // before anything is taken out of its properties
		return err
	}
	out.Properties = out.Properties.Without(nil, packets.CorrelationData, packets.ResponseTopic)
	if c := m.CorrelationData(); c != nil {
		out.Properties = out.Properties.AppendBytes(packets.CorrelationData, c)
	}
	return r.b.Publish(ctx, &out)
}

// call calls the handler and makes an error of its panic.
func (r *Responder) call(ctx context.Context, m *Incoming) (response *Message, err error) {
	defer func() {
		if v := recover(); v != nil {
			r.b.stats.panics.Add(1)
			r.b.log.Error("panic in the handler of a request", "topic", m.Topic, "panic", v,
				"stack", string(debug.Stack()))
			response, err = nil, errors.New("internal error")
		}
	}()
	r.handling.Store(true)
	defer r.handling.Store(false)
	lock.NoneHeld("a handler")
	if response, err = r.handler(ctx, m); err != nil {
		err = errors.New(legible(err.Error())) // here, where a panic of Error is caught
	}
	return response, err
}

// responseTopic returns where the response to m goes, as its publisher may have it.
func (b *Broker) responseTopic(m *Incoming) (string, error) {
	topic := m.ResponseTopic()
	if m.Publisher == "" || strings.HasPrefix(m.Publisher, localPrefix) {
		return topic, nil
	}
	switch {
	case b.reserved(topic):
		return "", errReserved
	case !strings.HasPrefix(topic, b.cfg().ResponseInformation):
		return "", packets.Errorf(packets.NotAuthorized,
			"the Response Topic does not begin with the Response Information")
	}
	s := b.sessionAt(b.placeOf(m.from))
	var client *hooks.Client // nil: it has left
	var mount string
	if s != nil {
		s.mu.Lock()
		if mount = s.mount; s.conn != nil {
			client = s.client
		}
		s.mu.Unlock()
	}
	// whose mount point was it?
	if client == nil && (b.authorizer != nil || s == nil && b.mounts.Load()) {
		return "", errors.New("the client that asked has left")
	}
	if b.authorizer != nil {
		r := hooks.AccessRequest{Client: client, Action: hooks.ActionSubscribe, Topic: topic,
			QoS: m.QoS}
		if err := b.authorizeSafely(b.ctx, &r, mount); err != nil {
			return "", err
		}
	}
	return mount + topic, nil
}
