# SPDX-License-Identifier: Apache-2.0
# Sends lines and compares what comes back. Arguments: ADDRESS PORT ROUNDS
exec 3<>"/dev/tcp/$1/$2"
for ((i = 0; i < $3; i++)); do
	line="$i $RANDOM$RANDOM$RANDOM$RANDOM$RANDOM$RANDOM"
	printf '%s\n' "$line" >&3
	read -r -u 3 -t 60 answer
	if [ "$answer" != "$line" ]; then
		echo "sent: $line, received: $answer" >&2
		exit 1
	fi
done
