package main

import (
	"sync"
	"time"
	_ "time/tzdata" // where the machine has no zone data of its own
)

// zones finds time zones by name and keeps each as it was first found, for the
// planner must get the same answer every time.
func zones() func(name string) (*time.Location, error) {
	var mu sync.Mutex
	known := map[string]*time.Location{}
	return func(name string) (*time.Location, error) {
		mu.Lock()
		defer mu.Unlock()
		if l := known[name]; l != nil {
			return l, nil
		}
		l, err := time.LoadLocation(name)
		if err == nil {
			known[name] = l
		}
		return l, err
	}
}
