package inband

import (
	"errors"
	"net"
	"sync"
	"time"
)

// A listener asks each connection for its token before it accepts it.
type listener struct {
	net.Listener
	o      Options
	places chan struct{} // taken while a connection is asked
	asked  chan net.Conn
	ended  chan struct{} // closed by Close
	once   sync.Once
	err    error // why l does not accept any more. Set before done is closed
	done   chan struct{}
}

// Listen returns a listener whose connections have shown their token. Others are closed. Its Close
// closes l.
func Listen(l net.Listener, o Options) net.Listener {
	x := &listener{Listener: l, o: o, places: make(chan struct{}, o.MaxAsked),
		asked: make(chan net.Conn), ended: make(chan struct{}), done: make(chan struct{})}
	go x.run() // until l is closed
	return x
}

// run hands out the connections that come.
func (l *listener) run() {
	for {
		nc, err := l.Listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			l.err = err
			close(l.done)
			return
		}
		if err != nil { // such as too many open files
			time.Sleep(10 * time.Millisecond)
			continue
		}
		select {
		case l.places <- struct{}{}:
			go l.ask(nc) // ends within Options.Timeout
		default:
			nc.Close()
		}
	}
}

func (l *listener) ask(nc net.Conn) {
	defer func() { <-l.places }()
	if l.o.Admit != nil && l.o.Admit(nc.RemoteAddr()) != nil {
		nc.Close()
		return
	}
	c, err := Ask(nc, l.o)
	if err != nil {
		nc.Close()
		return
	}
	select {
	case l.asked <- c:
	case <-l.ended:
		nc.Close()
	}
}

// Accept is that of net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.asked:
		return c, nil
	case <-l.done:
		return nil, l.err
	}
}

// Close is that of net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.ended) })
	return l.Listener.Close()
}
