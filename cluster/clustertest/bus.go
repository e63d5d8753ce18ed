package clustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
)

// synced is Interest and then Synced.
func (e *env) synced(n *node, add, drop []string) error {
	n.Interest(add, drop)
	ctx, stop := context.WithTimeout(e.ctx, patience)
	defer stop()
	if err := n.Synced(ctx); err != nil {
		return fmt.Errorf("a Synced on node %d: %w", n.at, err)
	}
	return nil
}

// sent sends a message from a node, and waits until another one has got it.
func (e *env) sent(from, to *node, topic string) error {
	m := e.record(0, topic).Message
	from.Send(m)
	return e.until(fmt.Sprintf("Handler.Message of node %d gets %s of node %d", to.at, topic, from.at),
		10*time.Second, func() bool { return to.got(string(m.Payload)) })
}

func checkInterest(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	for round := range 30 {
		to := e.nodes[round%3]
		exact, wild := fmt.Sprintf("x/%d", round), fmt.Sprintf("w/%d/+/#", round)
		if err := e.synced(to, []string{exact, wild}, nil); err != nil {
			return err
		}
		for i := 1; i < 3; i++ {
			from := e.nodes[(round+i)%3]
			for _, topic := range []string{exact, fmt.Sprintf("w/%d/a/b", round)} {
				if err := e.sent(from, to, topic); err != nil {
					return err
				}
			}
		}
		if err := e.synced(to, nil, []string{exact}); err != nil {
			return err
		}
		gone := e.record(0, exact).Message
		e.nodes[(round+1)%3].Send(gone)
		e.nodes[(round+1)%3].Send(e.record(0, fmt.Sprintf("other/%d", round)).Message)
		own := e.record(0, fmt.Sprintf("w/%d/own", round)).Message
		to.Send(own)
		if err := e.sent(e.nodes[(round+1)%3], to, fmt.Sprintf("w/%d/last", round)); err != nil {
			return err
		}
		if to.got(string(gone.Payload)) {
			return errors.New("a node gets a message although it has dropped its Interest")
		}
		if to.got(string(own.Payload)) {
			return errors.New("a node gets the message that it has sent itself")
		}
	}
	e.kill(1)
	if err := e.synced(e.nodes[0], []string{"late"}, nil); err != nil {
		return err
	}
	if err := e.start(1); err != nil {
		return err
	}
	if err := e.sent(e.nodes[1], e.nodes[0], "late"); err != nil {
		return fmt.Errorf("a node that has started after Interest: %w", err)
	}
	return nil
}

func checkCalls(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	a, b := e.nodes[0], e.nodes[1]
	if err := e.until("all nodes are in the list", patience, func() bool {
		return a.lives(name(1), 0) && a.lives(name(2), 0)
	}); err != nil {
		return err
	}
	got, err := a.Call(e.ctx, name(1), []byte("hello"))
	if err != nil {
		return fmt.Errorf("a Call: %w", err)
	}
	if string(got) != name(0)+":hello" {
		return fmt.Errorf("a Call returns %q", got)
	}
	release, second := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.locked(func() {
		b.called = func(ctx context.Context, _ string, body []byte) ([]byte, error) {
			switch string(body) {
			case "wait":
				select {
				case <-release:
				case <-ctx.Done():
				}
			case "go":
				once.Do(func() { close(second) })
			case "fail":
				return nil, errors.New("this fails")
			}
			return bytes.ToUpper(body), nil
		}
	})
	first := make(chan error, 1)
	go func() { // this function waits for it
		_, err := a.Call(e.ctx, name(1), []byte("wait"))
		first <- err
	}()
	e.sleep(100 * time.Millisecond)
	ctx, stop := context.WithTimeout(e.ctx, 5*time.Second)
	defer stop()
	if _, err := a.Call(ctx, name(1), []byte("go")); err != nil {
		return fmt.Errorf("a Call while another one waits: %w", err)
	}
	<-second
	close(release)
	if err := <-first; err != nil {
		return fmt.Errorf("a Call whose answer took long: %w", err)
	}
	_, err = a.Call(e.ctx, name(1), []byte("fail"))
	if failed := new(cluster.CallError); !errors.As(err, &failed) || failed.Node != name(1) ||
		!strings.Contains(failed.Text, "this fails") {
		return fmt.Errorf("a Call returns %v, want the error of Handler.Called", err)
	}
	return e.callsThatFail(a, b)
}

// callsThatFail makes calls that get no answer.
func (e *env) callsThatFail(a, b *node) error {
	began := time.Now()
	if _, err := a.Call(e.ctx, "nobody", nil); !errors.Is(err, cluster.ErrNoNode) {
		return fmt.Errorf("a Call of an unknown node returns %v, want %v", err, cluster.ErrNoNode)
	}
	if took := time.Since(began); took > time.Second {
		return fmt.Errorf("a Call of an unknown node takes %v", took)
	}
	large := make([]byte, a.limits.Value+1)
	if _, err := a.Call(e.ctx, name(1), large); !errors.Is(err, cluster.ErrTooLarge) {
		return fmt.Errorf("a Call with %d bytes returns %v, want %v", len(large), err,
			cluster.ErrTooLarge)
	}
	b.locked(func() {
		b.called = func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	ctx, stop := context.WithTimeout(e.ctx, 200*time.Millisecond)
	defer stop()
	if _, err := a.Call(ctx, name(1), nil); !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("a Call returns %v when its context has ended", err)
	}
	done := make(chan error, 1)
	go func() { // this function waits for it
		_, err := a.Call(e.ctx, name(1), nil)
		done <- err
	}()
	e.sleep(100 * time.Millisecond)
	e.kill(1)
	limit := time.NewTimer(cluster.Lease + time.Second + 2*e.Election)
	defer limit.Stop()
	select {
	case err := <-done:
		if !errors.Is(err, cluster.ErrNoNode) {
			return fmt.Errorf("a Call of a node that dies returns %v, want %v", err,
				cluster.ErrNoNode)
		}
	case <-limit.C:
		return errors.New("a Call of a node that has died does not return")
	}
	return e.start(1)
}
