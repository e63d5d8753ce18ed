package dunlin

import (
	"reflect"
	"slices"
	"sync/atomic"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// This file is what changes of Config while the Broker runs.

// A configuration is the Config of a Broker, which can change while it runs.
type configuration struct {
	config        atomic.Pointer[settings] // see cfg
	reconfiguring lock.Mutex[reconfigureLock]
	sysChanged    chan struct{} // SysInterval is another one
}

// Reconfigure gives a running Broker another Config, for instance because a file has changed. cfg
// is a whole Config, as for New: a field that is zero gets its default. Nobody is disconnected, and
// nothing that is kept is removed because it is beyond a smaller limit. The fields take effect as
// follows.
//
// At once: BanTime, CheckPayloadFormat, ConnectRate, ConnectRatePerIP, MaxAuthFailures,
// MaxAuthFailuresPerIP, MaxConnecting, MaxConnections, MaxConnectionsPerIP, MaxDelay, MaxFilters,
// MaxMessageExpiry, MaxOutboundBytes, MaxRetained, MaxRetainedBytes, MaxSessions, MaxSubscriptions,
// MaxTakeovers, MaxTopicLength, MaxTopicLevels, MaxUserProperties, MaxWildcardLevels,
// MinWildcardLevel, OverRate, QueueQoS0, ReceiptProperty, Shared, SlowLinkRate, SysInterval,
// SystemTopics, WriteTimeout.
//
// For new connections and their Sessions: ConnectTimeout, DisableTopicAlias,
// MaxConnectionsPerPrincipal, MaxConnectSize, MaxDelayedPerPrincipal, MaxInflight, MaxKeepAlive,
// MaxKeptBytesPerPrincipal, MaxPacketSize, MaxQoS, MaxQueuedBytes, MaxQueuedBytesPerPrincipal,
// MaxQueuedMessages, MaxRetainedBytesPerPrincipal, MaxRetainedPerPrincipal, MaxSessionExpiry,
// MaxSessionsPerPrincipal, MaxSubscriptionsPerPrincipal, Overflow, PublishBytes, PublishRate,
// ReceiveMaximum, TopicAliasMaximum, Versions. A principal has the limits and rates of its
// connection that came last.
//
// With another Broker only: DisableRetain, DisableShared, DisableSubscriptionIDs, DisableWildcards,
// EventLoops, MaxDrops, MaxEnded, MaxMemory, MaxOverlapping, MaxUncommittedBytes,
// ResponseInformation, SessionPerPrincipal. Where nobody is verified and no limit of a principal
// was set, these need one, too. Those of these fields that differ stay as they are, and kept has
// their names.
//
// Not looked at, since functions cannot be compared: Authenticator, Authorizer, ConnContext,
// DeliveryInterceptor, EnhancedAuth, Interceptor, Logger, Observer, Store, SubscribeInterceptor.
// They stay, and may be nil in cfg.
//
// The error says what makes no sense in cfg. Then nothing has changed. Reconfigure does not block.
// It returns ErrBrokerClosed after Shutdown or Close.
func (b *Broker) Reconfigure(cfg Config) (kept []string, err error) {
	if b.isClosed() {
		return nil, ErrBrokerClosed
	}
	strict := cfg.strictness()
	cfg.detach()
	b.reconfiguring.Lock()
	defer b.reconfiguring.Unlock()
	old := b.cfg()
	cfg.keep(&old.Config, unseen)
	asked := cfg // with the defaults that follow from what is asked for
	if err := asked.check(); err != nil {
		return nil, err
	}
	fixed := fixed
	if b.owners == nil { // nothing is counted, and what is there would have to be
		fixed = slices.Concat(fixed, ofPrincipals)
	}
	cfg.keep(&old.Config, fixed)
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &settings{cfg, strict}
	b.config.Store(s)
	b.guard.Addresses.Limit(s.addressLimits())
	b.logins.Limit(s.loginLimits())
	b.owners.Limit(s.defaultLimits())
	b.retained.Limit(s.retainedLimits())
	if s.SysInterval != old.SysInterval {
		select {
		case b.sysChanged <- struct{}{}:
		default: // it is told already
		}
	}
	return asked.differs(&old.Config, fixed), nil
}

// The fields of Config that Reconfigure leaves as they are.
var (
	unseen = []string{
		"Authenticator", "Authorizer", "ConnContext", "DeliveryInterceptor", "EnhancedAuth",
		"Interceptor", "Logger", "Observer", "Store", "SubscribeInterceptor",
	}
	fixed = []string{
		"DisableRetain", "DisableShared", "DisableSubscriptionIDs", "DisableWildcards",
		"EventLoops", "MaxDrops", "MaxEnded", "MaxMemory", "MaxOverlapping",
		"MaxUncommittedBytes", "ResponseInformation",
		"SessionPerPrincipal",
	}
	ofPrincipals = []string{
		"MaxConnectionsPerPrincipal", "MaxDelayedPerPrincipal",
		"MaxKeptBytesPerPrincipal",
		"MaxQueuedBytesPerPrincipal", "MaxRetainedBytesPerPrincipal", "MaxRetainedPerPrincipal",
		"MaxSessionsPerPrincipal", "MaxSubscriptionsPerPrincipal",
	}
)

// keep sets the named fields to those of old.
func (c *Config) keep(old *Config, names []string) {
	to, from := reflect.ValueOf(c).Elem(), reflect.ValueOf(old).Elem()
	for _, name := range names {
		to.FieldByName(name).Set(from.FieldByName(name))
	}
}

// differs returns those of the named fields that are not as in old.
func (c *Config) differs(old *Config, names []string) (which []string) {
	x, y := reflect.ValueOf(c).Elem(), reflect.ValueOf(old).Elem()
	for _, name := range names {
		if !x.FieldByName(name).Equal(y.FieldByName(name)) {
			which = append(which, name)
		}
	}
	return which
}
