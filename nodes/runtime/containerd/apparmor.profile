# What Kubernetes calls RuntimeDefault. The rules are those of containerd's default
# profile (contrib/apparmor, Apache License 2.0), which a test holds them to.
@HEAD@
profile @NAME@ flags=(attach_disconnected,mediate_deleted) {
@BASE@
  network,
  capability,
  file,
  umount,

  # Signals come from the machine, from what starts containers, and from the same container.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (receive) peer=@MANAGER@,
  signal (send,receive) peer=@NAME@,

  # Of /proc, a container may write what is its processes' and kernel.shm* only.
  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9/],[^1-9/][^0-9/],[^1-9s/][^0-9y/][^0-9s/],[^1-9/][^0-9/][^0-9/][^0-9/]*}/** w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,

  deny mount,

  # Of /sys, it may write its control group only.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,

  ptrace (trace,tracedby,read,readby) peer=@NAME@,
}
