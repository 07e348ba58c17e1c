/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The transactions of a slot: what was asked through it, so that its answer can be told.
 */
#pragma once

#include "slot.h"

static __always_inline bool shunt_same_transaction(const struct shunt_transaction *a,
						   const struct shunt_transaction *b)
{
	return a->id[0] == b->id[0] && a->id[1] == b->id[1] && a->id[2] == b->id[2];
}

static __always_inline bool shunt_is_requested(const struct shunt_handshake *handshake,
					       const struct shunt_transaction *transaction)
{
#pragma unroll
	for (int i = 0; i < SHUNT_REQUESTS; i++) {
		if (i < handshake->next_request &&
		    shunt_same_transaction(&handshake->requests[i], transaction))
			return true;
	}
	return false;
}

/* Remembers a client's Binding Request. */
static __always_inline void shunt_remember_request(struct shunt_handshake *handshake,
						   const struct shunt_transaction *transaction)
{
	struct shunt_transaction *place =
		&handshake->requests[handshake->next_request & (SHUNT_REQUESTS - 1)];

	if (shunt_is_requested(handshake, transaction))
		return;
	*place = *transaction;
	handshake->next_request++;
}

static __always_inline bool shunt_is_checked(const struct shunt_handshake *handshake,
					     const struct shunt_transaction *transaction)
{
#pragma unroll
	for (int i = 0; i < SHUNT_CHECKS; i++) {
		if (i < handshake->next_check &&
		    shunt_same_transaction(&handshake->checks[i], transaction))
			return true;
	}
	return false;
}

/* Remembers a transceiver's check. The client's answer finds an established slot by the client;
 * a pending one by the transaction alone. */
static __always_inline void shunt_remember_check(struct shunt_handshake *handshake,
						 struct shunt_transaction *transaction,
						 bool pending, __u32 index)
{
	struct shunt_transaction *place =
		&handshake->checks[handshake->next_check & (SHUNT_CHECKS - 1)];

	if (pending)
		checks.update(transaction, &index);
	if (shunt_is_checked(handshake, transaction))
		return;
	*place = *transaction;
	handshake->next_check++;
}

/* A request that came by another next hop than the slot's: its answer will tell whether the client
 * is there. */
static __always_inline void shunt_notice_hop(struct xdp_md *ctx, const struct shunt_slot *slot,
					     struct shunt_handshake *handshake,
					     const struct shunt_packet *packet,
					     const struct shunt_transaction *transaction)
{
	if (shunt_came_by(ctx, packet, &slot->out->hop) || shunt_is_link_multicast(packet))
		return;
	shunt_next_hop_back(ctx, packet, &handshake->hop);
	handshake->hop_request = *transaction;
}

/* The transceiver has answered the request: the client is where that came from. */
static __always_inline void shunt_take_hop(struct shunt_slot *slot,
					   struct shunt_handshake *handshake,
					   const struct shunt_transaction *transaction)
{
	if (!handshake->hop.ifindex ||
	    !shunt_same_transaction(&handshake->hop_request, transaction))
		return;
	slot->out->hop = handshake->hop;
	handshake->hop.ifindex = 0;
}
