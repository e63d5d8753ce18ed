package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/dunlin-mqtt/dunlin/store"
)

// errStop ends a Load that nobody wants to go on.
var errStop = errors.New("stop")

// A loader yields what is in the database.
type loader struct {
	ctx   context.Context
	db    *sql.DB
	yield func(store.Op, error) bool
}

func (l *loader) give(op store.Op) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	if !l.yield(op, nil) {
		return errStop
	}
	return nil
}

// each calls do for each row of a query.
func (l *loader) each(query string, do func(rows *sql.Rows) error) error {
	rows, err := l.db.Query(query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := do(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (l *loader) all() error {
	if err := l.sessions(); err != nil {
		return err
	}
	publishes := make(map[int64]*store.Publish)
	progress := make(map[int64][]store.Op)
	if err := l.queues(publishes, progress); err != nil {
		return err
	}
	err := l.each(
		"SELECT message, topic, payload, properties, qos, retain, expires, sender FROM messages "+
			"ORDER BY message",
		func(rows *sql.Rows) error {
			var id int64
			m := new(store.Message)
			var properties []byte
			if err := rows.Scan(&id, &m.Topic, &m.Payload, &properties, &m.QoS, &m.Retain,
				&m.Expires, &m.From); err != nil {
				return err
			}
			p := publishes[id]
			p.Message, m.Properties = m, properties
			if err := l.give(p); err != nil {
				return err
			}
			for _, op := range progress[id] {
				if err := l.give(op); err != nil {
					return err
				}
			}
			return nil
		})
	if err != nil {
		return err
	}
	return l.ctx.Err()
}

func (l *loader) sessions() error {
	err := l.each("SELECT * FROM sessions", func(rows *sql.Rows) error {
		op := new(store.PutSession)
		var session int64
		var will *string
		if err := rows.Scan(&session, &op.ClientID, &op.Principal, &op.Username, &op.Named,
			&op.Mount, &op.Expiry, &op.ExpiresAt, &will); err != nil {
			return err
		}
		op.Session = uint64(session)
		if will != nil {
			op.Will = new(store.Will)
			if err := json.Unmarshal([]byte(*will), op.Will); err != nil {
				return err
			}
		}
		return l.give(op)
	})
	if err != nil {
		return err
	}
	err = l.each("SELECT * FROM subscriptions", func(rows *sql.Rows) error {
		op := new(store.PutSubscription)
		var session int64
		if err := rows.Scan(&session, &op.Filter, &op.QoS, &op.NoLocal, &op.RetainAsPublished,
			&op.RetainHandling, &op.ID); err != nil {
			return err
		}
		op.Session = uint64(session)
		return l.give(op)
	})
	if err != nil {
		return err
	}
	return l.each("SELECT * FROM received", func(rows *sql.Rows) error {
		op := new(store.Received)
		var session int64
		if err := rows.Scan(&session, &op.ID); err != nil {
			return err
		}
		op.Session = uint64(session)
		return l.give(op)
	})
}

// queues fills publishes, by message, and what has become of their deliveries.
func (l *loader) queues(publishes map[int64]*store.Publish, progress map[int64][]store.Op) error {
	of := func(message int64) *store.Publish {
		p := publishes[message]
		if p == nil {
			p = new(store.Publish)
			publishes[message] = p
		}
		return p
	}
	err := l.each(
		"SELECT session, seq, message, qos, retain, ids, share, packet_id, released FROM queue",
		func(rows *sql.Rows) error {
			var d store.Delivery
			var session, seq, message int64
			var ids *string
			var packetID uint16
			var released bool
			if err := rows.Scan(&session, &seq, &message, &d.QoS, &d.Retain, &ids, &d.Group, &packetID,
				&released); err != nil {
				return err
			}
			if ids != nil {
				if err := json.Unmarshal([]byte(*ids), &d.IDs); err != nil {
					return err
				}
			}
			d.Session, d.Seq = uint64(session), uint64(seq)
			p := of(message)
			p.To = append(p.To, d)
			if packetID != 0 {
				progress[message] = append(progress[message],
					&store.Sent{Session: d.Session, Seq: d.Seq, ID: packetID})
			}
			if released {
				progress[message] = append(progress[message],
					&store.Released{Session: d.Session, Seq: d.Seq})
			}
			return l.ctx.Err()
		})
	if err != nil {
		return err
	}
	return l.each("SELECT message FROM retained", func(rows *sql.Rows) error {
		var message int64
		if err := rows.Scan(&message); err != nil {
			return err
		}
		of(message).Retain = true
		return nil
	})
}
