package fake_test

import (
	"testing"

	"github.com/tallyman-dev/tallyman/nodes/volume/fake"
	"github.com/tallyman-dev/tallyman/nodes/volume/volumetest"
)

func TestFake(t *testing.T) {
	volumetest.Run(t, func(*testing.T) volumetest.Subject { return fake.New() })
}
