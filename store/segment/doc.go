// Package segment is a store.Store in a directory of files: an append-only log in segments, for a
// disk or flash.
//
// A commit is one write and one sync (fdatasync on Linux), however many operations it has.
// Superseded operations are removed from the log now and then: a goroutine reads sealed segments,
// and writes their live content into a new segment, while commits continue. The store keeps no
// state in memory. Opening reads the segment that was written last, and Load streams the log.
//
// # Guarantees
//
// With [store.DurabilitySynced], a commit that returned nil survives a loss of power, if the disk
// keeps what it has reported as synced. With [store.DurabilityBuffered] it survives the end of the
// process. A loss of power then takes the commits since the last segment was sealed: all of them,
// or all from some commit on. With [store.DurabilityNone] up to 256 KiB of commits wait in memory,
// and the end of the process takes them too. Close writes and syncs with each of these.
//
// After a crash the log may end in the middle of a record. This is normal, and the store ignores
// such an end. Open or Load refuses any other difference from what was written, with a
// [*CorruptError] that names file and offset, and leaves the files as they are. The store takes a
// damaged record for the torn end of the log only if no later record says that all records before
// it were synced. It cannot tell a torn end from damage to the last records of a store that was not
// closed.
//
// # Format
//
// Version 1. Numbers are little-endian, checksums are CRC-32C. A store is a directory with these
// files:
//
//	lock           is locked while the store is open; empty
//	manifest       says which segments make up the store
//	manifest.new   the next manifest, until it is renamed
//	00000001.log   segments; those that the manifest does not name are left over and removed with the first commit,
//	               and so are zeros behind the end of a sealed one
//
// The manifest is text, each line ended by a line feed, numbers in decimal unless said otherwise:
//
//	dunlin segment store 1                       the version of the format
//	store 0123456789abcdef                       which store it is, 64 bits by chance, hexadecimal
//	folded 7 bytes 4711 records 3 commits 900    at most one: the segment that holds what is left of commits 1 to 900
//	sealed 8 bytes 815 commits 901 950           any number, in order: number, size, first and last commit
//	active 9                                     at most one: the segment that is written to
//	crc32c 01234567                              checksum of all before this line, hexadecimal
//
// A segment begins with a header of 64 bytes, and records follow each other behind it. A sealed
// segment ends where the manifest says, the active one, whose room is reserved ahead and zero,
// where there is no whole record:
//
//	 0  8  "DunlinSG"
//	 8  4  version of the format, 1
//	12  4  kind: 0 log, 1 folded
//	16  8  number of the segment
//	24  8  store
//	32  4  marker, by chance
//	36  4  seed of the checksums of records, by chance
//	40  8  number of the first record
//	48 12  zero
//	60  4  checksum of the bytes before
//
// A record is a commit, its number that of the commit; in a folded segment it is a part of what is
// left, and numbers count from 1:
//
//	 0  4  marker of the segment
//	 4  4  length of the body
//	 8  8  number, one more than that of the record before
//	16  4  flags; bit 0: every record before this one was synced when this one was written
//	20  4  checksum of the body, which starts with the seed of the segment
//	24  4  checksum of the 24 bytes before, likewise
//	28     body: operations, in the form that store/internal/codec describes
//
// Marker and seed keep a payload that looks like a record from being taken for one.
package segment
