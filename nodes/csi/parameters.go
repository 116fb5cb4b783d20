package csi

import (
	"maps"
	"strings"
)

// reserved begins the names of parameters that are for whoever calls a driver,
// not for the driver.
const reserved = "csi.storage.k8s.io/"

// ForDriver are the parameters of a class that are passed to its driver.
func ForDriver(parameters map[string]string) map[string]string {
	own := maps.Clone(parameters)
	maps.DeleteFunc(own, func(name, _ string) bool { return strings.HasPrefix(name, reserved) })
	return own
}
