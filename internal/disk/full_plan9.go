package disk

import "errors"

var errFull = errors.New("file system full")

// IsFull tells whether err says that the disk is full.
func IsFull(err error) bool { return errors.Is(err, errFull) }
