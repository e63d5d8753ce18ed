package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/hooks/audit"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/hooks/auth/crypt"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is who may connect, and what for: -allow-anonymous, -password-file and -acl-file, which
// mean what the settings of those names mean in mosquitto.conf and read the same files.

// access are the flags.
type access struct {
	security
	localOnly      bool // nothing is said about who may connect: only this machine may
	passwordSecret string
	aclAtDelivery  bool
	auditLog       string
}

// security says who may connect to a listener, and what for. Those of the flags hold for all
// listeners but those with settings of their own (per_listener_settings).
type security struct {
	allowAnonymous        bool
	passwordFile, aclFile string
	noEmptyID             bool   // a client must bring a Client Identifier
	idPrefix              string // of Client Identifiers that are made up; empty: the broker's own
}

func (a *access) flags(fs *flag.FlagSet) {
	fs.BoolVar(&a.allowAnonymous, "allow-anonymous", false,
		"accept clients without a User Name; without -password-file, all clients (default: only "+
			"from this machine, and only while "+
			"neither -password-file nor -tls-identity-as-username says who may connect)")
	fs.StringVar(&a.passwordFile, "password-file", "",
		"`file` of users and passwords as mosquitto_passwd makes it; bcrypt and Argon2id are "+
			"known, too")
	fs.StringVar(&a.passwordSecret, "password-secret", "",
		"`file` with a secret that hides which users exist, also over restarts; it is made if it "+
			"does not exist (default: a random secret at each start)")
	fs.StringVar(&a.aclFile, "acl-file", "",
		"`file` of topics that may be read and written, in the form of Mosquitto's acl_file")
	fs.StringVar(&a.auditLog, "audit-log", "",
		"`file` to which security events are appended, one JSON object in a line")
	fs.StringVar(&a.idPrefix, "auto-id-prefix", "", "what the Client Identifiers of clients that "+
		"bring none begin with (default dunlin-)")
	fs.BoolVar(&a.noEmptyID, "no-empty-client-id", false, "refuse clients without Client "+
		"Identifier")
	fs.BoolVar(&a.aclAtDelivery, "acl-at-delivery", false,
		"allow all subscriptions, as Mosquitto does, and leave out what may not be read, instead "+
			"of refusing those that match any of it")
}

// openTrail opens the file of -audit-log, and has cfg's Observer write there. It returns nil if
// there is none.
func (a *access) openTrail(cfg *dunlin.Config) (trail *audit.Trail, end func(), err error) {
	if a.auditLog == "" {
		return nil, func() {}, nil
	}
	f, err := os.OpenFile(a.auditLog, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, err
	}
	trail = audit.New(slog.NewJSONHandler(f, nil), 0)
	cfg.Observer = hooks.Join(cfg.Observer, trail.Observer())
	return trail, func() {
		patient, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := trail.Close(patient); err != nil {
			cfg.Logger.Error("the audit log is not complete", "err", err)
			return // it may still be written to
		}
		if err := f.Close(); err != nil {
			cfg.Logger.Error("the audit log may not be complete", "err", err)
		}
	}, nil
}

// settle decides about anonymous clients where -allow-anonymous is not given: they may connect from
// this machine, until there are credentials, or a mosquitto.conf says where to listen, as in
// Mosquitto.
func (a *access) settle(fs *flag.FlagSet, byCertificate, listeners bool) {
	given := false
	fs.Visit(func(f *flag.Flag) { given = given || f.Name == "allow-anonymous" })
	if !given && a.passwordFile == "" && !byCertificate && !listeners {
		a.allowAnonymous, a.localOnly = true, true
	}
}

// admits says in words who may connect, for the log.
func (a *access) admits(byCertificate bool) string {
	if a.localOnly {
		return "anyone on this machine (local only mode)"
	}
	var who []string
	if byCertificate {
		who = append(who, "clients with a certificate")
	}
	return a.security.admits(who...)
}

// admits says in words who may connect, besides others.
func (s *security) admits(who ...string) string {
	if s.passwordFile != "" {
		who = append(who, "users in "+s.passwordFile)
	}
	switch {
	case s.allowAnonymous && s.passwordFile == "":
		who = append(who, "anyone")
	case s.allowAnonymous:
		who = append(who, "clients without a user name")
	case len(who) == 0:
		return nobody
	}
	return strings.Join(who, ", ")
}

const nobody = "nobody"

// A gate decides for one security.
type gate struct {
	security
	users hooks.Authenticator
	scram hooks.EnhancedAuthenticator // nil: none
	rules hooks.Authorizer            // nil: everything is allowed
}

// A gatekeeper makes gates. Those that name the same file share it.
type gatekeeper struct {
	*access
	reloads   reloads
	passwords passwordFiles
	rules     ruleFiles
	failed    map[string]bool // names of files that could not be opened
	errs      []error         // one for each of them
	at        func(option, name string, err error) error
}

// fail remembers what is wrong with a file, once for all that name it.
func (k *gatekeeper) fail(option, name string, err error) {
	if !k.failed[name] {
		k.failed[name], k.errs = true, append(k.errs, k.at(option, name, err))
	}
}

type (
	passwordFiles map[string]*auth.PasswordFile // by name
	ruleFiles     map[string]*acl.File          // by name
)

// openPasswords opens a password file.
func (k *gatekeeper) openPasswords(name string) (*auth.PasswordFile, error) {
	if file := k.passwords[name]; file != nil {
		return file, nil
	}
	file, err := auth.Open(name, crypt.Bcrypt, crypt.Argon2id)
	if err != nil {
		return nil, err
	}
	if k.passwordSecret != "" {
		secret, err := auth.SecretFile(k.passwordSecret)
		if err != nil {
			return nil, err
		}
		if err := file.SetSecret(secret); err != nil {
			return nil, err
		}
	}
	k.passwords[name] = file
	k.reloads.add("password file", name, file)
	return file, nil
}

// openRules opens an ACL file.
func (k *gatekeeper) openRules(name string) (hooks.Authorizer, error) {
	file := k.rules[name]
	if file == nil {
		var err error
		if file, err = acl.Open(name, acl.ParseMosquitto); err != nil {
			return nil, err
		}
		k.rules[name] = file
		k.reloads.add("acl file", name, file)
	}
	if k.aclAtDelivery {
		return file.AtDelivery(), nil
	}
	return file, nil
}

// open makes a gate. What is wrong with its files is in errs then.
func (k *gatekeeper) open(s security) *gate {
	g := &gate{security: s, users: hooks.AuthenticatorFunc(refuseAll)}
	switch {
	case s.passwordFile != "":
		file, err := k.openPasswords(s.passwordFile)
		if err != nil {
			k.fail("password_file", s.passwordFile, err)
			break
		}
		anonymous := auth.Anonymous(s.allowAnonymous)
		g.users = hooks.AuthenticatorFunc(func(ctx context.Context, r *hooks.ConnectRequest) error {
			if r.Connect.Username == "" { // an empty name is none to Mosquitto
				return anonymous.Authenticate(ctx, &hooks.ConnectRequest{Client: new(hooks.Client),
					Connect: r.Connect, Grant: r.Grant})
			}
			return file.Authenticate(ctx, r)
		})
		g.scram = file.SCRAM()
	case s.allowAnonymous:
		g.users = hooks.AllowAll
	}
	if s.aclFile != "" {
		var err error
		if g.rules, err = k.openRules(s.aclFile); err != nil {
			k.fail("acl_file", s.aclFile, err)
		}
	}
	return g
}

// check says what does not go together.
func (a *access) check(passwords, rules bool) error {
	if a.passwordSecret != "" && !passwords {
		return errors.New("-password-secret needs -password-file")
	}
	if a.aclAtDelivery && !rules {
		return errors.New("-acl-at-delivery needs -acl-file")
	}
	return nil
}

func refuseAll(context.Context, *hooks.ConnectRequest) error {
	return packets.Errorf(packets.NotAuthorized, "neither a password file nor anonymous clients "+
		"are allowed here")
}
