package main

import (
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin"
)

// limits are the flags against abuse. A limit for addresses that is not set does not hold for
// loopback addresses; one that is set does.
type limits struct {
	bans     list
	exceeded string
}

func (l *limits) flags(fs *flag.FlagSet, c *dunlin.Config) {
	fs.Float64Var(&c.ConnectRate, "rate-connect", 0,
		"connections taken up per second in all (default 50000, negative: no limit)")
	fs.Float64Var(&c.ConnectRatePerIP, "rate-connect-ip", 0,
		"connections taken up per second from one address or IPv6 /64 (default 1000, negative: "+
			"no limit)")
	fs.Float64Var(&c.PublishRate, "rate-publish", 0,
		"PUBLISH packets per second of one client (default no limit)")
	fs.Float64Var(&c.PublishBytes, "rate-publish-bytes", 0,
		"bytes of PUBLISH packets per second of one client (default no limit)")
	fs.StringVar(&l.exceeded, "rate-exceeded", "pause",
		"what happens beyond the rates of PUBLISH: pause reading, or refuse with 0x97")
	fs.IntVar(&c.MaxConnectionsPerIP, "max-connections-ip", 0,
		"connections from one address or IPv6 /64 (default 10000, negative: no limit)")
	fs.IntVar(&c.MaxConnecting, "max-connecting", 0, "connections without CONNECT (default 32768)")
	fs.IntVar(&c.MaxAuthFailures, "max-auth-failures", 0,
		"failed authentications per minute of one user name from one address before they are "+
			"slowed down (default 60, negative: no limit)")
	fs.IntVar(&c.MaxAuthFailuresPerIP, "max-auth-failures-ip", 0,
		"the same from one address or IPv6 /64 in all; user names that were accepted from there "+
			"are let through (default 5 times -max-auth-failures)")
	fs.IntVar(&c.MaxTakeovers, "max-takeovers", 0,
		"takeovers per minute of one client identifier before it is banned (default 60, "+
			"negative: no limit)")
	fs.DurationVar(&c.BanTime, "ban-time", 0, "how long such a ban lasts (default 5m)")
	fs.Var(&l.bans, "ban", "ban `address:A`, address:NETWORK, client:ID or user:NAME, repeatable")
	fs.BoolVar(&c.SessionPerPrincipal, "session-per-principal", false,
		"users with the same client identifier get sessions of their own, instead of 0x85")
	fs.IntVar(&c.MinWildcardLevel, "min-wildcard-level", 0,
		"levels that must come before the first wildcard of a subscription (default 0)")
	fs.IntVar(&c.MaxRetained, "max-retained", 0, "retained messages (default 1000000)")
	fs.Var((*size)(&c.MaxRetainedBytes), "max-retained-bytes",
		"bytes of retained messages (default 1 GiB)")
	fs.IntVar(&c.MaxSessionsPerPrincipal, "max-sessions-user", 0,
		"sessions of one user (default three quarters of 1000000, negative: no limit)")
	fs.IntVar(&c.MaxConnectionsPerPrincipal, "max-connections-user", 0,
		"connections of one user (default three quarters of 100000, negative: no limit)")
	fs.IntVar(&c.MaxSubscriptionsPerPrincipal, "max-subscriptions-user", 0,
		"subscriptions of one user (default one for each 2 KiB of -max-memory, negative: no limit)")
	fs.IntVar(&c.MaxRetainedPerPrincipal, "max-retained-user", 0,
		"retained messages of one user (default three quarters of -max-retained, negative: no "+
			"limit)")
	fs.Var((*size)(&c.MaxRetainedBytesPerPrincipal), "max-retained-bytes-user",
		"bytes of retained messages of one user (default three quarters of -max-retained-bytes, "+
			"negative: no limit)")
	fs.Var((*size)(&c.MaxKeptBytesPerPrincipal), "max-kept-bytes-user",
		"bytes of memory that retained messages, subscriptions, sessions and connections of one "+
			"user "+
			"take together (default 37 % of -max-memory, negative: no limit)")
	fs.DurationVar(&c.MaxDelay, "max-delay", 0, "longest delay of a message to "+
		"$delayed/SECONDS/TOPIC, for instance 24h (default nobody may delay)")
	fs.IntVar(&c.MaxDelayedPerPrincipal, "max-delayed-user", 0,
		"delayed messages of one user (default 10000, negative: no limit)")
	fs.Var((*size)(&c.MaxQueuedBytesPerPrincipal), "max-queued-bytes-user",
		"bytes that wait in the queues of one user (default half of -max-memory, negative: no "+
			"limit)")
	fs.Var((*size)(&c.MaxMemory), "max-memory",
		"bytes of all messages in memory (default half of GOMEMLIMIT, or 4 GiB)")
}

// set sets what takes more than a variable.
func (l *limits) set(c *dunlin.Config) error {
	switch l.exceeded {
	case "pause":
		c.OverRate = dunlin.OverRatePauseReading
	case "refuse":
		c.OverRate = dunlin.OverRateRefusePublish
	default:
		return fmt.Errorf("-rate-exceeded %q is neither pause nor refuse", l.exceeded)
	}
	if c.BanTime < 0 {
		return fmt.Errorf("-ban-time %v is negative: for no bans say -max-takeovers -1", c.BanTime)
	}
	return nil
}

// ban puts the bans in force.
func (l *limits) ban(b *dunlin.Broker) error {
	for _, s := range l.bans {
		kind, value, _ := strings.Cut(s, ":")
		x := dunlin.Ban{Value: value, Reason: "-ban, " + time.Now().Format(time.RFC3339)}
		switch kind {
		case "address":
			x.Kind = dunlin.BanAddress
		case "client":
			x.Kind = dunlin.BanClient
		case "user":
			x.Kind = dunlin.BanUser
		default:
			return fmt.Errorf("-ban %q does not begin with address:, client: or user: as it has to",
				s)
		}
		if err := b.Ban(x); err != nil {
			return fmt.Errorf("-ban %q: %w", s, err)
		}
	}
	return nil
}
