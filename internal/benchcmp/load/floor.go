package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"os"
	"sync"
)

// A floorConn is a connection of the floor: its goroutine reads, hands each message on to the
// connections that subscribe to just its topic, and writes once for each of them and read.
type floorConn struct {
	c *conn

	mu   sync.Mutex
	cond *sync.Cond // the output became less
	// Guarded by mu.
	out, spare []byte
	busy       bool // somebody writes
	touched    bool
}

// A floorServer knows who subscribes to what.
type floorServer struct {
	topics sync.Map // string to []*floorConn
	mu     sync.Mutex
}

func runFloor(args []string) error {
	fs := flag.NewFlagSet("load floor", flag.ContinueOnError)
	addr := fs.String("addr", "127.0.0.1:1883", "`address` to listen on")
	if err := fs.Parse(args); err != nil {
		return err
	}
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "load floor:", err)
		return err
	}
	return serveFloor(l)
}

// serveFloor accepts connections until l is closed.
func serveFloor(l net.Listener) error {
	var s floorServer
	for {
		nc, err := l.Accept()
		if err != nil {
			return err
		}
		c := &floorConn{c: &conn{c: nc, v: 4, buf: make([]byte, 32<<10)}}
		c.cond = sync.NewCond(&c.mu)
		go s.serve(c) // ends when its client closes the connection
	}
}

// serve handles what each read brings, and then writes.
func (s *floorServer) serve(c *floorConn) {
	defer c.c.c.Close()
	var touched []*floorConn
	for {
		var reply []byte
		err := c.c.each(func(first byte, body []byte) error {
			switch first >> 4 {
			case pktConnect:
				reply = append(reply, pktConnack<<4, 2, 0, 0)
			case pktSubscribe:
				s.subscribe(c, string(body[4:4+binary.BigEndian.Uint16(body[2:])]))
				reply = append(reply, pktSuback<<4, 3, body[0], body[1], 0)
			case pktPingreq:
				reply = append(reply, pktPingresp<<4, 0)
			case pktPublish:
				n := 2 + int(binary.BigEndian.Uint16(body))
				payload := body[n:]
				if first&6 != 0 {
					reply = append(reply, pktPuback<<4, 2, payload[0], payload[1])
					payload = payload[2:]
				}
				touched = s.publish(touched, body[:n], payload)
			}
			return nil
		})
		if len(reply) > 0 {
			c.mu.Lock()
			c.out = append(c.out, reply...)
			c.mu.Unlock()
			c.flush()
		}
		for _, d := range touched {
			d.flush()
		}
		touched = touched[:0]
		if err == nil {
			err = c.c.fill()
		}
		if err != nil {
			return
		}
	}
}

func (s *floorServer) subscribe(c *floorConn, topic string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, _ := s.topics.Load(topic)
	list, _ := old.([]*floorConn)
	s.topics.Store(topic, append(append([]*floorConn{}, list...), c))
}

// publish appends a message to the output of each connection that it is for. topic is encoded.
func (s *floorServer) publish(touched []*floorConn, topic, payload []byte) []*floorConn {
	const full = 1 << 20
	list, _ := s.topics.Load(string(topic[2:]))
	to, _ := list.([]*floorConn)
	for _, d := range to {
		d.mu.Lock()
		for len(d.out) > full && d.busy {
			d.cond.Wait()
		}
		d.out = appendVar(append(d.out, pktPublish<<4), len(topic)+len(payload))
		d.out = append(append(d.out, topic...), payload...)
		if !d.touched {
			d.touched = true
			touched = append(touched, d)
		}
		d.mu.Unlock()
	}
	return touched
}

// flush writes what is there, unless somebody does so already.
func (c *floorConn) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.touched = false
	if c.busy {
		return
	}
	c.busy = true
	for len(c.out) > 0 {
		out := c.out
		c.out = c.spare[:0]
		c.mu.Unlock()
		c.c.c.Write(out)
		c.mu.Lock()
		c.spare = out
		c.cond.Broadcast()
	}
	c.busy = false
}
