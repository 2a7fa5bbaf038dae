/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a connection redirected is counted at the connection while it lives,
 * to keep shared counters off the short path, and in the totals afterwards.
 */
#ifndef SHUNT_ACCEL_ACCOUNT_H
#define SHUNT_ACCEL_ACCOUNT_H

#include "maps.h"

/*
 * Forgets a connection and keeps its counts. Deleted first: whoever reads the
 * totals and then the connections must never see it in both, or his sum would
 * go down again. Copied before that, the entry may be another's afterwards.
 */
static __always_inline void close_account(u64 cookie, const struct conn *c)
{
	u64 messages = c->redirected_msgs, bytes = c->redirected_bytes;
	struct stats *s = stats();

	barrier();
	if (bpf_map_delete_elem(&shunt_conns, &cookie) || !s) /* somebody else did */
		return;
	count(&s->messages[ROUTE_REDIRECT], messages);
	count(&s->bytes[ROUTE_REDIRECT], bytes);
}

#endif
