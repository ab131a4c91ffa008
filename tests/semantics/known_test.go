// SPDX-License-Identifier: Apache-2.0

package semantics

// knownDifferences are cases in which programs under libetran.so see something
// else than on the kernel, and why. One that never differs in
// a run of the test is to be taken off the list.
var knownDifferences = map[string]string{
	"unmapped_memory":            "the library copies itself: memory that is not there is a fault, not EFAULT",
	"read_only_memory":           "the same for memory that cannot be written",
	"edge_of_room":               "a connection that leaves the fast path is put into the kernel's set anew, which says its edges again",
	"close_while_another_reads":  "the file is gone when the last number is closed: the call gets EBADF",
	"close_while_another_writes": "the same",
	"close_while_another_polls":  "the same: POLLNVAL",
}

// differencesByChance are such cases, too, that need not differ in every run.
var differencesByChance = map[string]string{
	"close_with_linger_times_out": "the keeper's copy of the socket may be closed after the program's, which then does not wait",
}
