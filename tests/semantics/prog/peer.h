/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control connection, and how a case's connection comes to be.
 */
#ifndef ETRAN_SEMANTICS_PEER_H
#define ETRAN_SEMANTICS_PEER_H

#include <stdbool.h>

struct ends {
	bool active;  /* this end makes the cases' calls */
	bool client;  /* this end connects */
	bool fast; /* its connections can become fast */
	const char *own, *peer; /* addresses of the connections under test */
};
extern struct ends ends;

/* The control connection between the two programs. */
void control_listen(const char *address, int port);
void control_connect(const char *address, int port);
/* Active: a new connection for a case; -1 at the end of the program (peer). */
int case_begin(bool cold, bool *was_fast, bool *peer_was_fast);
void case_end(void);
void peer_end(void);
/* Peer: do what the other end says until it ends. */
void peer_serve(void);

#endif
