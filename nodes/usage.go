package nodes

import "time"

// Usage is what the containers of one pod used, as its control groups tell.
type Usage struct {
	Pod UID `json:"pod"`
	// At is the end of the interval that CPU was measured over, Window its length.
	At         time.Time        `json:"at"`
	Window     time.Duration    `json:"window"`
	Containers []ContainerUsage `json:"containers"`
}

// ContainerUsage of one running container.
type ContainerUsage struct {
	Name string `json:"name"`
	// CPU in billionths of a core, on average over the window.
	CPU int64 `json:"cpu"`
	// Memory is the working set in bytes: what cannot be reclaimed easily.
	Memory int64 `json:"memory"`
}

// DiskUsage is what something holds of a file system.
type DiskUsage struct {
	// Bytes on the disk, and files of any kind, directories included.
	Bytes, Files int64
}

// Add adds what something else holds.
func (d *DiskUsage) Add(o DiskUsage) {
	d.Bytes += o.Bytes
	d.Files += o.Files
}
