#!/usr/bin/env bash
# Runs a test command. When it fails, the end of its output names each failed
# test with its errors, which are otherwise far above, before the logs.
set -uo pipefail
output=$(mktemp)
trap 'rm -f "$output"' EXIT
"$@" 2>&1 | tee "$output"
code=${PIPESTATUS[0]}
if [ "$code" != 0 ]; then
	echo "what failed:"
	grep -E '^ *--- FAIL|^ +[a-z_0-9]+\.go:[0-9]+: |^(panic|fatal error|FAIL|SIG[A-Z]+)\b|^[^ ]+\.go:[0-9]+:[0-9]+: ' "$output" |
		grep -vE 'level=(DEBUG|INFO)' | cut -c1-1000 | tail -n 100
fi
exit "$code"
