# SPDX-License-Identifier: Apache-2.0
# Asks for all files again and again, each round on one connection, and compares.
# Arguments: file that ends it, URL, directory of the files, one for the answers,
# number of files.
mkdir -p "$4"
urls=
for round in 1 2 3 4 5 6 7 8 9 10; do
	i=0
	while [ $i -lt "$5" ]; do
		urls="$urls -o $4/$round-$i $2$i"
		i=$((i + 1))
	done
done
until [ -e "$1" ]; do
	# shellcheck disable=SC2086
	curl -sS --fail $urls || exit
	i=1 # file 0 is empty: curl does not write it
	while [ $i -lt "$5" ]; do
		for answer in "$4"/*-$i; do
			cmp "$answer" "$3/$i" || exit
		done
		i=$((i + 1))
	done
	rm -f "$4"/*
done
