package segment

import (
	"context"
	"errors"
	"fmt"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
)

// Backup copies the store, in its state at the time of the call, to the directory dir, which must
// be empty or missing. Commits continue meanwhile. When Backup has returned nil, the copy is a
// store of its own. Before that, Open refuses it. To restore the copy, stop the broker and let it
// open a copy of that directory.
func (s *Store) Backup(ctx context.Context, dir string) error {
	d, err := disk.Make(dir)
	if err == nil {
		err = s.backup(ctx, d)
	}
	if err != nil {
		return fmt.Errorf("store/segment: backup to %s: %w", dir, err)
	}
	return nil
}

func (s *Store) backup(ctx context.Context, to disk.Dir) error {
	lock, err := to.Lock(lockName)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := readManifest(to); err == nil {
		return errors.New("the directory holds a store: choose an empty one")
	}
	if err := checkEmpty(to); err != nil {
		return err
	}
	m, err := s.pin()
	if err != nil {
		return err
	}
	defer s.unpin()
	for _, seg := range m.segments() {
		if err := copySegment(ctx, s.dir, to, seg); err != nil {
			return err
		}
	}
	if err := to.Sync(); err != nil {
		return err
	}
	_, err = writeManifest(to, &m)
	return err
}

// copySegment copies a segment up to the size in the manifest.
func copySegment(ctx context.Context, from, to disk.Dir, s sealed) error {
	src, err := from.Open(segmentName(s.number))
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := to.Create(segmentName(s.number))
	if err != nil {
		return err
	}
	buf := make([]byte, min(windowSize, s.size))
	for off := int64(0); err == nil && off < s.size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), s.size-off)]
		if err = ctx.Err(); err != nil {
			break
		}
		if n, rerr := src.ReadAt(buf, off); n < len(buf) {
			err = fmt.Errorf("%s: %w", segmentName(s.number), rerr)
			break
		}
		_, err = dst.WriteAt(buf, off)
	}
	if err == nil {
		err = dst.Sync()
	}
	return errors.Join(err, dst.Close())
}
