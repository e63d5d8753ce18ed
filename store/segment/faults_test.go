package segment

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

// A simDisk is a simulated directory below a store.
type simDisk struct {
	sim  *disk.Sim
	opts Options
	wrap func(d disk.Dir) disk.Dir // what the store sees; nil: sim
}

func (d *simDisk) Open() (store.Store, error) {
	var dir disk.Dir = d.sim
	if d.wrap != nil {
		dir = d.wrap(dir)
	}
	s, err := open(dir, d.opts)
	if err != nil {
		return nil, err
	}
	return patient{s}, nil
}

func (d *simDisk) Cut() error  { return disk.ErrCut }
func (d *simDisk) Full() error { return disk.ErrFull }

func (d *simDisk) Fail(fault func(a storetest.Access) error) {
	var f func(c disk.Call) error
	if fault != nil {
		before := d.sim.Calls()
		f = func(c disk.Call) error {
			write := c.Kind != "open" && c.Kind != "read" && c.Kind != "names" &&
				c.Kind != "lock" && c.Kind != "remove" && c.Kind != "truncate" &&
				c.Kind != "sync" && c.Kind != "syncdir"
			return fault(storetest.Access{N: c.N - before, Write: write,
				Sync: c.Kind == "sync" || c.Kind == "syncdir"})
		}
	}
	d.sim.SetFault(f)
}

func (d *simDisk) Crash(seed uint64, power bool) storetest.Disk {
	loss := disk.Nothing
	if power {
		loss = []disk.Loss{disk.Everything, disk.Tail, disk.Sectors}[seed%3]
	}
	c := *d
	c.sim = d.sim.Crash(seed, loss)
	return &c
}

func onSim(opts Options, wrap func(d disk.Dir) disk.Dir) func(seed uint64) storetest.Disk {
	return func(seed uint64) storetest.Disk {
		return &simDisk{sim: disk.NewSim(seed), opts: opts, wrap: wrap}
	}
}

func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name string
		opts Options
	}{
		{"synced, long segments", Options{}},
		{"synced, short segments", Options{SegmentSize: 3000}},
		{"buffered", Options{Durability: store.DurabilityBuffered, SegmentSize: 20_000}},
		{"nothing promised", Options{Durability: store.DurabilityNone, SegmentSize: 5000}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.opts.SegmentSize == 0 {
				c.opts.SegmentSize = 100_000 // a simulated disk keeps it in memory
			}
			storetest.RunFaults(t, c.opts.Durability, onSim(c.opts, nil))
		})
	}
}

// A liar is a directory that leaves out what a store must not leave out. It stands for a store that
// does.
type liar struct {
	disk.Dir
	noSync, noDirSync, syncTwice bool
}

type liarFile struct {
	disk.File
	l *liar
}

func (l *liar) Create(name string) (disk.File, error) {
	f, err := l.Dir.Create(name)
	if err != nil {
		return nil, err
	}
	return &liarFile{f, l}, nil
}

func (l *liar) Sync() error {
	if l.noDirSync {
		return nil
	}
	return l.Dir.Sync()
}

func (f *liarFile) Sync() error {
	if f.l.noSync {
		return nil
	}
	err := f.File.Sync()
	if err != nil && f.l.syncTwice {
		return f.File.Sync()
	}
	return err
}

func TestLeavingOutASyncIsCaught(t *testing.T) {
	for name, l := range map[string]liar{
		"files are not synced":                  {noSync: true},
		"names are not synced":                  {noDirSync: true},
		"a sync that fails is tried once again": {syncTwice: true},
	} {
		t.Run(name, func(t *testing.T) {
			err := storetest.CheckFaults(1, 12, store.DurabilitySynced,
				onSim(Options{SegmentSize: 3000}, func(d disk.Dir) disk.Dir {
					l := l
					l.Dir = d
					return &l
				}))
			require.Error(t, err)
			t.Log(err)
		})
	}
}

// A store that promises less is caught when it is checked as one that syncs: what Commit returns
// for is not there after a crash.
func TestASyncThatComesLaterIsCaught(t *testing.T) {
	for _, d := range []store.Durability{store.DurabilityBuffered, store.DurabilityNone} {
		t.Run(d.String(), func(t *testing.T) {
			opts := Options{Durability: d, SegmentSize: 3000}
			err := storetest.CheckFaults(1, 12, store.DurabilitySynced, onSim(opts, nil))
			require.Error(t, err)
			t.Log(err)
		})
	}
}
