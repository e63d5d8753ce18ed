package segment

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/internal/codec"
)

// A Report is the result of [Verify].
type Report struct {
	Segments   int
	Records    int   // that are whole
	Operations int   // in these
	Bytes      int64 // of the segments, as far as they were written
	LastCommit uint64
	// Torn is the number of bytes at the end of the log that are not a record, as after a crash.
	// They are not damage.
	Torn int64
}

// Verify reads everything in the store in the directory dir. It changes nothing, except that it
// creates the lock file if there is none. The error is nil if everything is as it was written.
// Otherwise errors.As finds a [*CorruptError] for the first damage, and the text has a line for
// each damage. The store must not be open elsewhere; otherwise the error wraps [ErrLocked]. To
// verify a store in use, verify a Backup.
func Verify(dir string) (Report, error) { return inspect(dir, nil) }

// Dump writes the store in the directory dir to w as text: the manifest, then each record and,
// indented, its operations. It continues after damage. Errors are those of [Verify], or that of w.
func Dump(w io.Writer, dir string) error {
	b := bufio.NewWriterSize(w, 64<<10)
	_, err := inspect(dir, b)
	return errors.Join(err, b.Flush())
}

func inspect(dir string, w *bufio.Writer) (Report, error) {
	d, err := disk.Existing(dir)
	if err != nil {
		return Report{}, fmt.Errorf("store/segment: %w", err)
	}
	r, err := inspectDir(d, w)
	if err != nil {
		return r, fmt.Errorf("store/segment: %s: %w", dir, err)
	}
	return r, nil
}

func inspectDir(d disk.Dir, w *bufio.Writer) (Report, error) {
	lock, err := d.Lock(lockName)
	if err != nil {
		return Report{}, err
	}
	defer lock.Close()
	i := inspector{dir: d, w: w}
	err = i.all()
	return i.report, err
}

// An inspector reads a store and continues after errors.
type inspector struct {
	dir    disk.Dir
	man    manifest
	w      *bufio.Writer // nil: nothing is written
	dec    codec.Decoder
	report Report
	errs   []error
}

func (i *inspector) all() (err error) {
	if i.man, err = readManifest(i.dir); err != nil {
		return err
	}
	i.print("%s", i.man.text())
	for _, s := range i.man.segments() {
		i.segment(s, false)
	}
	i.report.LastCommit = i.man.last()
	if i.man.active != 0 {
		i.segment(sealed{number: i.man.active, size: -1, first: i.man.last() + 1}, true)
	}
	if len(i.errs) == 0 {
		_, err := survey(i.dir, &i.man) // what only an opening store looks for
		i.wrong(err)
	}
	return errors.Join(i.errs...)
}

func (i *inspector) print(format string, args ...any) {
	if i.w != nil {
		fmt.Fprintf(i.w, format, args...) // Flush tells of errors
	}
}

func (i *inspector) wrong(err error) {
	if err != nil {
		i.errs = append(i.errs, err)
		i.print("DAMAGED %v\n", err)
	}
}

func (i *inspector) segment(s sealed, active bool) {
	i.report.Segments++
	f, r, err := openSegment(i.dir, &i.man, s)
	if err != nil {
		i.wrong(err)
		return
	}
	defer f.Close()
	kind := "log"
	if r.kind == kindFolded {
		kind = "folded"
	}
	i.print("segment %s kind %s first %d\n", r.name, kind, r.first)
	for {
		rec, err := r.next()
		if err == nil {
			i.record(r, rec)
			continue
		}
		if err != io.EOF && i.damaged(r, err, active) {
			continue
		}
		break
	}
	i.report.Bytes += r.off
	if active {
		i.report.LastCommit = r.last
	} else if r.last != s.last && len(i.errs) == 0 {
		i.wrong(r.damaged(r.off, "it ends with record %d, the manifest says %d", r.last, s.last))
	}
}

// damaged reports a record that cannot be read, unless it is the end of the log. It says whether
// another record follows.
func (i *inspector) damaged(r *reader, err error, active bool) (goOn bool) {
	off, last := r.off, r.last
	flags := uint32(0)
	if active {
		flags = flagSynced
	}
	found, serr := r.skip(flags)
	if found || !active || serr != nil {
		i.wrong(errors.Join(err, serr))
		return found
	}
	r.off, r.last = off, last
	if blank, err := r.blank(); err != nil {
		i.wrong(err)
	} else if !blank {
		i.report.Torn = r.end - off
		i.print("the log ends at offset %d; what follows is no record\n", off)
	}
	return false
}

func (i *inspector) record(r *reader, rec record) {
	i.report.Records++
	synced := ""
	if rec.flags&flagSynced != 0 {
		synced = " synced before"
	}
	i.print("record %d offset %d bytes %d%s\n", rec.number, rec.offset, len(rec.body), synced)
	i.dec.Borrow = true
	for i.dec.Reset(rec.body); i.dec.More(); {
		at := rec.offset + recordSize + int64(i.dec.Offset())
		op, err := i.dec.Next()
		if err != nil {
			i.wrong(r.damaged(at, "record %d holds what is %v", rec.number, err))
			return
		}
		i.report.Operations++
		if i.w != nil {
			i.op(op)
		}
	}
}

// op writes an operation on a line, and its parts on further lines.
func (i *inspector) op(op store.Op) {
	switch op := op.(type) {
	case *store.Publish:
		i.print("  Publish %s", describe(&op.Message.Message))
		i.print(" from %q expires %d retain %t", op.Message.From, op.Message.Expires, op.Retain)
		if op.FromSession != 0 {
			i.print(" received from session %d as %d", op.FromSession, op.FromID)
		}
		i.print("\n")
		for _, d := range op.To {
			i.print("    to session %d seq %d qos %d retain %t ids %v group %q\n", d.Session, d.Seq,
				d.QoS, d.Retain, d.IDs, d.Group)
		}
	case *store.PutRetained:
		i.print("  PutRetained %s from %q expires %d\n", describe(&op.Message.Message),
			op.Message.From, op.Message.Expires)
	case *store.PutSession:
		i.print("  PutSession session %d client %q principal %q user %q named %t mount %q expiry "+
			"%d expires %d",
			op.Session, op.ClientID, op.Principal, op.Username, op.Named, op.Mount, op.Expiry,
			op.ExpiresAt)
		if w := op.Will; w != nil {
			i.print(" will %s delay %d at %d", describe(&w.Message), w.Delay, w.At)
		}
		i.print("\n")
	case *store.PutSubscription:
		i.print("  PutSubscription session %d filter %q qos %d no local %t retain as published "+
			"%t retain handling %d id %d\n",
			op.Session, op.Filter, op.QoS, op.NoLocal, op.RetainAsPublished, op.RetainHandling,
			op.ID)
	default: // the others have nothing but numbers and strings
		i.print("  %s\n", fmt.Sprintf("%T %+v", op, op)[len("*store."):])
	}
}

// describe describes a message on one line, with the beginning of its payload.
func describe(m *packets.Message) string {
	const shown = 32
	more := ""
	if len(m.Payload) > shown {
		more = "..."
	}
	return fmt.Sprintf("topic %q qos %d retain %t properties %x payload of %d bytes %q%s",
		m.Topic, m.QoS, m.Retain, m.Properties, len(m.Payload),
		m.Payload[:min(len(m.Payload), shown)], more)
}
