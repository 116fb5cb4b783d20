#!/bin/sh
# Written by tally at every start; changes are lost.
# Shows what comes of a push to the followed branch, unless it was pushed with
# -o tally.wait=false. The branch has moved: nothing here can fail the push.
tally=@EXECUTABLE@
ours=
while read -r old new ref; do
	if [ "$ref" = @REF@ ]; then
		ours="$old $new $ref"
	fi
done
[ -n "$ours" ] && [ -x "$tally" ] || exit 0
i=0
while [ "$i" -lt "${GIT_PUSH_OPTION_COUNT:-0}" ]; do
	eval "option=\$GIT_PUSH_OPTION_$i"
	if [ "$option" = tally.wait=false ]; then
		exit 0
	fi
	i=$((i + 1))
done
exec "$tally" hook post-receive --socket @SOCKET@ <<END
$ours
END
