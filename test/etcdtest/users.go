package etcdtest

import (
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// User and Password are those of Confine.
const (
	User     = "tally"
	Password = "secret"
)

// Confine turns authentication on. The user may read and write what is below
// the prefix, and nothing else.
func Confine(t *testing.T, admin *clientv3.Client, prefix string) {
	t.Helper()
	prefix += "/"
	for _, err := range []error{
		second(admin.UserAdd(t.Context(), "root", "root's")), second(admin.UserGrantRole(t.Context(), "root", "root")),
		second(admin.RoleAdd(t.Context(), User)), second(admin.UserAdd(t.Context(), User, Password)),
		second(admin.RoleGrantPermission(t.Context(), User, prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite))),
		second(admin.UserGrantRole(t.Context(), User, User)), second(admin.AuthEnable(t.Context())),
	} {
		if err != nil {
			t.Fatalf("confine etcd's user: %v", err)
		}
	}
}

func second[T any](_ T, err error) error { return err }
