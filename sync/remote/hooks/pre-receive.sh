#!/bin/sh
# Written by tally at every start; changes are lost.
# Asks the running server about a push to the followed branch.
tally=@EXECUTABLE@
ours=
while read -r old new ref; do
	if [ "$ref" = @REF@ ]; then
		ours="$old $new $ref"
	fi
done
[ -n "$ours" ] || exit 0
if ! [ -x "$tally" ]; then
	echo "The push cannot be checked: $tally is not there. Start tally again from its new place, then push again." >&2
	exit 1
fi
exec "$tally" hook pre-receive --socket @SOCKET@ <<END
$ours
END
