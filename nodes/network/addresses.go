package network

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"go.etcd.io/bbolt"

	"github.com/tallyman-dev/tallyman/nodes"
)

// addressBucket holds pod UID → address; lastKey in metaBucket the address
// that was given out last.
var (
	addressBucket = []byte("network.addresses")
	metaBucket    = []byte("network.meta")
	lastKey       = []byte("last")
)

// addresses gives out the addresses of one range, round robin. What it says is
// in the store before it is used. Safe for concurrent use.
type addresses struct {
	db   *bbolt.DB
	cidr netip.Prefix

	mu    sync.Mutex // guards the fields below
	byUID map[nodes.UID]netip.Addr
	used  map[netip.Addr]bool
	last  netip.Addr
	// next transaction: what it stores, who waits for it, and whether somebody
	// is about to begin it.
	pending map[nodes.UID]netip.Addr
	waiting []chan error
	writing bool
}

func openAddresses(db *bbolt.DB, cidr netip.Prefix) (*addresses, error) {
	s := &addresses{db: db, cidr: cidr, byUID: map[nodes.UID]netip.Addr{}, used: map[netip.Addr]bool{}, pending: map[nodes.UID]netip.Addr{}}
	err := db.Update(func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists(addressBucket)
		if err != nil {
			return err
		}
		meta, err := tx.CreateBucketIfNotExists(metaBucket)
		if err != nil {
			return err
		}
		if !cidr.IsValid() {
			return nil // what is recorded is of a range that is not known yet
		}
		if last, ok := netip.AddrFromSlice(meta.Get(lastKey)); ok && cidr.Contains(last) {
			s.last = last
		}
		return s.read(bucket)
	})
	if err != nil {
		return nil, fmt.Errorf("open the store of pod addresses: %w", err)
	}
	return s, nil
}

// read takes over what is recorded. An address of another range is of no use
// any more: its pod gets a new one.
func (s *addresses) read(bucket *bbolt.Bucket) error {
	cursor := bucket.Cursor()
	for uid, value := cursor.First(); uid != nil; uid, value = cursor.Next() {
		addr, ok := netip.AddrFromSlice(value)
		if !ok || !s.cidr.Contains(addr) || s.used[addr] {
			if err := cursor.Delete(); err != nil {
				return err
			}
			continue
		}
		s.byUID[nodes.UID(uid)] = addr
		s.used[addr] = true
	}
	return nil
}

// get returns the recorded address of a pod.
func (s *addresses) get(uid nodes.UID) (netip.Addr, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	addr, ok := s.byUID[uid]
	return addr, ok
}

// take returns the pod's address, giving out one if it has none. stored is
// called to wait until the store has it.
func (s *addresses) take(uid nodes.UID) (addr netip.Addr, stored func() error, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if addr, ok := s.byUID[uid]; ok {
		return addr, func() error { return nil }, nil
	}
	addr, err = s.next()
	if err != nil {
		return netip.Addr{}, nil, fmt.Errorf("give pod %s an address: %w", uid, err)
	}
	s.byUID[uid], s.used[addr], s.last = addr, true, addr
	done := s.enqueue(uid, addr)
	return addr, func() error { return s.settle(uid, <-done) }, nil
}

// enqueue has the next transaction store an address, or forget the pod when
// addr is invalid. Called with mu held.
func (s *addresses) enqueue(uid nodes.UID, addr netip.Addr) <-chan error {
	done := make(chan error, 1)
	s.pending[uid] = addr
	s.waiting = append(s.waiting, done)
	if !s.writing {
		s.writing = true
		go s.write()
	}
	return done
}

// settle gives an address back that could not be stored.
func (s *addresses) settle(uid nodes.UID, err error) error {
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.used, s.byUID[uid])
	delete(s.byUID, uid)
	return fmt.Errorf("store the address of pod %s: %w", uid, err)
}

// write stores what is pending until nothing is: pods that come at the same
// time share a transaction.
func (s *addresses) write() {
	for {
		s.mu.Lock()
		pending, waiting, last := s.pending, s.waiting, s.last
		s.pending, s.waiting = map[nodes.UID]netip.Addr{}, nil
		s.writing = len(waiting) > 0
		s.mu.Unlock()
		if len(waiting) == 0 {
			return
		}
		err := s.db.Update(func(tx *bbolt.Tx) error { return store(tx, pending, last) })
		for _, done := range waiting {
			done <- err
		}
	}
}

func store(tx *bbolt.Tx, pending map[nodes.UID]netip.Addr, last netip.Addr) error {
	bucket := tx.Bucket(addressBucket)
	for uid, addr := range pending {
		err := bucket.Delete([]byte(uid))
		if addr.IsValid() {
			err = bucket.Put([]byte(uid), addr.AsSlice())
		}
		if err != nil {
			return err
		}
	}
	return tx.Bucket(metaBucket).Put(lastKey, last.AsSlice())
}

// next is the first free address after the last one given out. The network's
// own address, the gateway and the broadcast address are nobody's.
func (s *addresses) next() (netip.Addr, error) {
	first := s.cidr.Addr().Next().Next()
	addr := s.last
	if !addr.IsValid() {
		addr = first.Prev()
	}
	for range 1 << (s.cidr.Addr().BitLen() - s.cidr.Bits()) {
		addr = addr.Next()
		if !s.cidr.Contains(addr) || !s.cidr.Contains(addr.Next()) {
			addr = first
		}
		if addr.Compare(first) >= 0 && !s.used[addr] {
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("all addresses of %s are in use", s.cidr)
}

// release forgets pods' addresses, in one transaction. An address is free when
// the store has forgotten it, so that two pods never have it at once after a
// crash.
func (s *addresses) release(uids ...nodes.UID) error {
	waiting := map[nodes.UID]<-chan error{}
	s.mu.Lock()
	for _, uid := range uids {
		if _, ok := s.byUID[uid]; ok {
			waiting[uid] = s.enqueue(uid, netip.Addr{})
		}
	}
	s.mu.Unlock()
	var errs []error
	for uid, done := range waiting {
		if err := <-done; err != nil {
			errs = append(errs, fmt.Errorf("forget the address of pod %s: %w", uid, err))
			continue
		}
		s.mu.Lock()
		delete(s.used, s.byUID[uid])
		delete(s.byUID, uid)
		s.mu.Unlock()
	}
	return errors.Join(errs...)
}

// all lists the pods that have an address.
func (s *addresses) all() []nodes.UID {
	s.mu.Lock()
	defer s.mu.Unlock()
	uids := make([]nodes.UID, 0, len(s.byUID))
	for uid := range s.byUID {
		uids = append(uids, uid)
	}
	return uids
}
