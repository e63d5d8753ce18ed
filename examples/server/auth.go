package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/hooks/audit"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/hooks/auth/crypt"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is who may connect, and what for: -allow-anonymous, -password-file and -acl-file, which mean what the settings of
// those names mean in mosquitto.conf and read the same files.

// access are the flags.
type access struct {
	allowAnonymous        bool
	localOnly             bool // nothing is said about who may connect: only this machine may
	passwordFile, aclFile string
	passwordSecret        string
	aclAtDelivery         bool
	auditLog              string
}

func (a *access) flags(fs *flag.FlagSet) {
	fs.BoolVar(&a.allowAnonymous, "allow-anonymous", false,
		"accept clients without a User Name; without -password-file, all clients (default: only from this machine, and only while "+
			"neither -password-file nor -tls-identity-as-username says who may connect)")
	fs.StringVar(&a.passwordFile, "password-file", "", "`file` of users and passwords as mosquitto_passwd makes it; bcrypt and Argon2id are known, too")
	fs.StringVar(&a.passwordSecret, "password-secret", "",
		"`file` with a secret that hides which users exist, also over restarts; it is made if it "+
			"does not exist (default: a random secret at each start)")
	fs.StringVar(&a.aclFile, "acl-file", "", "`file` of topics that may be read and written, in the form of Mosquitto's acl_file")
	fs.StringVar(&a.auditLog, "audit-log", "", "`file` to which security events are appended, one JSON object in a line")
	fs.BoolVar(&a.aclAtDelivery, "acl-at-delivery", false,
		"allow all subscriptions, as Mosquitto does, and leave out what may not be read, instead of refusing those that match any of it")
}

// openTrail opens the file of -audit-log, and has cfg's Observer write there. It returns nil if there is none.
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

// settle decides about anonymous clients where -allow-anonymous is not given: they may connect from this machine, until there are
// credentials.
func (a *access) settle(fs *flag.FlagSet, byCertificate bool) {
	given := false
	fs.Visit(func(f *flag.Flag) { given = given || f.Name == "allow-anonymous" })
	if !given && a.passwordFile == "" && !byCertificate {
		a.allowAnonymous, a.localOnly = true, true
	}
}

// admits says in words who may connect, for the log.
func (a *access) admits(byCertificate bool) string {
	var who []string
	if byCertificate {
		who = append(who, "clients with a certificate")
	}
	if a.passwordFile != "" {
		who = append(who, "users in "+a.passwordFile)
	}
	switch {
	case a.localOnly:
		who = append(who, "anyone on this machine (local only mode)")
	case a.allowAnonymous && a.passwordFile == "":
		who = append(who, "anyone")
	case a.allowAnonymous:
		who = append(who, "clients without a user name")
	case len(who) == 0:
		return "nobody"
	}
	return strings.Join(who, ", ")
}

// openPasswords opens the file of -password-file.
func (a *access) openPasswords() (*auth.PasswordFile, error) {
	file, err := auth.Open(a.passwordFile, crypt.Bcrypt, crypt.Argon2id)
	if err != nil || a.passwordSecret == "" {
		return file, err
	}
	secret, err := auth.SecretFile(a.passwordSecret)
	if err != nil {
		return nil, err
	}
	return file, file.SetSecret(secret)
}

// set sets what decides in cfg, and adds what can be reloaded to r. byCertificate has clients on TLS take their name from it.
func (a *access) set(cfg *dunlin.Config, byCertificate bool, r reloads) error {
	cfg.Authenticator = hooks.AuthenticatorFunc(refuseAll)
	switch {
	case a.passwordFile != "":
		file, err := a.openPasswords()
		if err != nil {
			return err
		}
		r["password file"] = file
		anonymous := auth.Anonymous(a.allowAnonymous)
		cfg.Authenticator = hooks.AuthenticatorFunc(func(ctx context.Context, r *hooks.ConnectRequest) error {
			if r.Connect.Username == "" { // an empty name is none to Mosquitto
				return anonymous.Authenticate(ctx, &hooks.ConnectRequest{Client: new(hooks.Client), Connect: r.Connect, Grant: r.Grant})
			}
			return file.Authenticate(ctx, r)
		})
		cfg.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{auth.SCRAMSHA256: file.SCRAM()}
	case a.passwordSecret != "":
		return errors.New("-password-secret needs -password-file")
	case a.allowAnonymous:
		cfg.Authenticator = hooks.AllowAll
	}
	if byCertificate {
		certificate := auth.Certificate(auth.CommonName)
		rest := cfg.Authenticator
		cfg.Authenticator = hooks.AuthenticatorFunc(func(ctx context.Context, r *hooks.ConnectRequest) error {
			if r.Client.TLS != nil {
				return certificate.Authenticate(ctx, r) // without a certificate it abstains, which refuses
			}
			return rest.Authenticate(ctx, r)
		})
	}
	if a.aclFile != "" {
		file, err := acl.Open(a.aclFile, acl.ParseMosquitto)
		if err != nil {
			return err
		}
		r["acl file"] = file
		var rules hooks.Authorizer = file
		if a.aclAtDelivery {
			rules = file.AtDelivery()
		}
		if cfg.Authorizer != nil {
			rules = hooks.AllAuthorizers(cfg.Authorizer, rules)
		}
		cfg.Authorizer = rules
	} else if a.aclAtDelivery {
		return errors.New("-acl-at-delivery needs -acl-file")
	}
	return nil
}

func refuseAll(context.Context, *hooks.ConnectRequest) error {
	return packets.Errorf(packets.NotAuthorized, "-allow-anonymous=false without -password-file accepts nobody")
}

// A file is what is read again when it changes, and on SIGHUP.
type file interface {
	Reload() error
	Watch(ctx context.Context, interval time.Duration, report func(error))
}

// reloads are the files, by what they are.
type reloads map[string]file

// run reads the files again where they change, and all of them on hangup, until ctx ends.
func (r reloads) run(ctx context.Context, hangup <-chan os.Signal, log *slog.Logger, trail *audit.Trail) {
	var watches sync.WaitGroup
	defer watches.Wait()
	report := func(what string, err error) {
		if trail != nil {
			trail.Reload(what, err)
		}
		if err != nil {
			log.Error("not reloaded, what was in force stays", "what", what, "err", err)
			return
		}
		log.Info("reloaded", "what", what)
	}
	for what, f := range r {
		watches.Go(func() { f.Watch(ctx, 0, func(err error) { report(what, err) }) }) // waited for above
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			for what, f := range r {
				report(what, f.Reload())
			}
		}
	}
}
