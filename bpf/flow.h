/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The life of a slot, as packets drive it.
 *
 *   free ── Binding Request with a route ──▶ pending ── see shunt_establish() ──▶ established
 *     ▲                                        │  ▲                                   │
 *     │                                        │  └─ taken over by another client     │
 *     │                                        ▼     of the same route                ▼
 *     └────────── the agent, 10 s later ──── closing ◀── session over, idle, or replaced
 *
 * The agent closes and frees slots; the program opens, establishes and replaces them. `state` is
 * in both halves of a slot and is written last when a slot is opened.
 */
#pragma once

#include "maps.h"
#include "nat.h"
#include "stun.h"

/* Coarse time in ticks of 2^27 ns (0.134 s); 32 bits of them last 18 years. */
#define SHUNT_TICK_SHIFT 27
#define SHUNT_IDLE_TICKS 38 /* 5 s: an established flow without a client packet is idle */

static __always_inline __u32 shunt_now(void)
{
	return bpf_ktime_get_coarse_ns() >> SHUNT_TICK_SHIFT;
}

static __always_inline void shunt_set_state(struct shunt_slot *slot, __u32 state, __u32 now)
{
	slot->to_transceiver.since = now;
	/* What was written before must not sink below the state that makes it count. */
	asm volatile("" ::: "memory");
	slot->to_transceiver.state = state;
	slot->to_client.state = state;
	asm volatile("" ::: "memory");
}

/* Ticks since `then`; 0 if another CPU's clock was read a moment later than ours. */
static __always_inline __u32 shunt_age(__u32 then, __u32 now)
{
	__s32 age = now - then;

	return age < 0 ? 0 : age;
}

static __always_inline bool shunt_is_idle(const struct shunt_slot *slot, __u32 now)
{
	return shunt_age(slot->to_transceiver.seen, now) >= SHUNT_IDLE_TICKS;
}

static __always_inline bool shunt_is_live(const struct shunt_slot *slot)
{
	return slot->to_transceiver.state == SHUNT_PENDING ||
	       slot->to_transceiver.state == SHUNT_ESTABLISHED;
}

static __always_inline bool shunt_is_client(const struct shunt_slot *slot,
					    const struct shunt_client4 *client)
{
	return shunt_has_address4(&slot->to_client.client, client->address) &&
	       slot->to_client.client_port == client->port && slot->to_client.vip == client->vip;
}

/* The client's established flow, or NULL. */
static __always_inline struct shunt_slot *shunt_established(struct shunt_client4 *client,
							    __u32 *port)
{
	__u32 *found = flows4.lookup(client);
	struct shunt_slot *slot;

	if (!found)
		return NULL;
	*port = *found;
	slot = slots.lookup(port);
	if (!slot || slot->to_transceiver.state != SHUNT_ESTABLISHED)
		return NULL;
	return slot;
}

/* The same, for STUN, which changes what it finds: an entry that leads to a slot of somebody else's
 * counts as none, and the next establishing puts it right. */
static __always_inline struct shunt_slot *shunt_own_flow(struct shunt_client4 *client, __u32 *port)
{
	struct shunt_slot *slot = shunt_established(client, port);

	return slot && shunt_is_client(slot, client) ? slot : NULL;
}

static __always_inline bool shunt_same_mac(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const void *)a;
	const __u16 *y = (const void *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

/* Replies go back where the client's packets came from, also after its gateway has changed. */
static __always_inline void shunt_learn_next_hop(struct xdp_md *ctx, struct shunt_slot *slot,
						 const struct shunt_packet *packet)
{
	if (slot->to_client.ifindex == ctx->ingress_ifindex &&
	    shunt_same_mac(slot->to_client.mac, packet->ethernet->h_source) &&
	    shunt_same_mac(slot->to_client.source_mac, packet->ethernet->h_dest))
		return;
	__builtin_memcpy(slot->to_client.mac, packet->ethernet->h_source, ETH_ALEN);
	__builtin_memcpy(slot->to_client.source_mac, packet->ethernet->h_dest, ETH_ALEN);
	slot->to_client.ifindex = ctx->ingress_ifindex;
}

/* Makes the slot the client's on the way to the route's transceiver. Nobody else may be changing
 * it: it is fresh from the queue, or its route is claimed. */
static __always_inline void
shunt_open(struct xdp_md *ctx, const struct shunt_settings *settings,
	   const struct shunt_packet *packet, const struct shunt_client4 *client,
	   const struct shunt_route *route, const struct shunt_transceiver *transceiver,
	   struct shunt_slot *slot, struct shunt_handshake *handshake, __u32 port, __u32 now)
{
	const __be32 inside = settings->inside_address.word[3];
	const __be32 behind = transceiver->address.word[3];
	const __be32 vip = packet->ip->daddr;
	const __u64 outer = shunt_csum_addresses(client->address, vip);
	const __u64 inner = shunt_csum_addresses(inside, behind);
	const __u32 outer_ports = (__u32)client->port + packet->udp->dest;
	const __u32 inner_ports = (__u32)(__be16)htons(port) + transceiver->port;

	shunt_set_state(slot, SHUNT_FREE, now);

	slot->to_transceiver.transceiver = route->transceiver;
	slot->to_transceiver.route = route->id;
	slot->to_transceiver.next_route = 0;
	slot->to_transceiver.seen = now;
	shunt_deltas(outer, outer_ports, inner, inner_ports, &slot->to_transceiver.ip_delta,
		     &slot->to_transceiver.udp_delta);
	slot->to_transceiver.packets = 0;
	slot->to_transceiver.bytes = 0;

	slot->to_client.transceiver = route->transceiver;
	slot->to_client.client.word[0] = 0;
	slot->to_client.client.word[1] = 0;
	slot->to_client.client.word[2] = htonl(0xffff);
	slot->to_client.client.word[3] = client->address;
	slot->to_client.client_port = client->port;
	slot->to_client.vip = client->vip;
	slot->to_client.proven = route->flags & SHUNT_ROUTE_NO_CHECKS ? 1 : 0;
	shunt_deltas(inner, inner_ports, outer, outer_ports, &slot->to_client.ip_delta,
		     &slot->to_client.udp_delta);
	shunt_learn_next_hop(ctx, slot, packet);
	slot->to_client.packets = 0;
	slot->to_client.bytes = 0;

	for (int i = 0; i < SHUNT_CHECKS; i++) {
		if (i < handshake->next_check)
			checks.delete(&handshake->checks[i]);
	}
	__builtin_memset(handshake, 0, sizeof(*handshake));

	shunt_set_state(slot, SHUNT_PENDING, now);
}

/* One CPU at a time chooses among a route's slots. The loser drops its packet: a Binding Request,
 * which the client repeats. */
static __always_inline bool shunt_claim(struct shunt_route *route)
{
	bool won;

	bpf_spin_lock(&route->lock);
	won = !route->busy;
	route->busy = 1;
	bpf_spin_unlock(&route->lock);
	return won;
}

static __always_inline void shunt_release(struct shunt_route *route)
{
	route->busy = 0;
}

/* How ready a place among a route's slots is for a new client; 0: not at all. */
#define SHUNT_MERIT_IDLE 1
#define SHUNT_MERIT_PENDING 0x40000000 /* and more the older it is */
#define SHUNT_MERIT_ASKED 0x7fffffff   /* another route's flow, that has only asked for this one */
#define SHUNT_MERIT_UNUSED 0x80000000

static __always_inline __u32 shunt_merit(const struct shunt_slot *slot,
					 const struct shunt_route *route, __u32 now)
{
	if (slot->to_transceiver.route != route->id)
		return slot->to_transceiver.next_route == route->id && shunt_is_live(slot)
			       ? SHUNT_MERIT_ASKED
			       : SHUNT_MERIT_UNUSED;
	switch (slot->to_transceiver.state) {
	case SHUNT_PENDING:
		return SHUNT_MERIT_PENDING +
		       (shunt_age(slot->to_transceiver.since, now) & 0x3ffffffe);
	case SHUNT_ESTABLISHED:
		return shunt_is_idle(slot, now) ? SHUNT_MERIT_IDLE : 0;
	default:
		return SHUNT_MERIT_UNUSED;
	}
}

/*
 * Finds or makes the slot of (client, route), or lets the client's established flow, `restarting`
 * at `port`, have the route besides its own (an ICE restart). Called with the route claimed.
 *
 * What is new to the route goes to an unused place, else to that of a flow that has only asked for
 * the route (and keeps its own), else to that of the route's oldest pending slot, else to that of an
 * established slot idle for 5 s. A pending slot is taken over with its port, so that
 * one ufrag, hammered from many addresses, cannot use up the ports; other slots that have to go
 * are closed, and their ports rest.
 */
static __always_inline enum shunt_reason
shunt_route_slot(struct xdp_md *ctx, const struct shunt_settings *settings,
		 const struct shunt_packet *packet, struct shunt_client4 *client,
		 struct shunt_route *route, const struct shunt_transceiver *transceiver,
		 struct shunt_slot *restarting, struct shunt_scratch *work, __u32 now, __u32 *port)
{
	struct shunt_handshake *handshake;
	struct shunt_slot *slot;
	__u32 place;

	work->place = SHUNT_ROUTE_SLOTS;
	work->merit = 0;
	for (int i = 0; i < SHUNT_ROUTE_SLOTS; i++) {
		__u32 candidate = route->slots[i];
		__u32 merit;

		slot = slots.lookup(&candidate);
		if (!slot)
			continue;
		merit = shunt_merit(slot, route, now);
		if (!restarting && merit < SHUNT_MERIT_UNUSED && shunt_is_client(slot, client) &&
		    slot->to_transceiver.route == route->id) {
			/* Established, yet not the client's flow: its entry was lost. */
			if (slot->to_transceiver.state == SHUNT_ESTABLISHED)
				shunt_set_state(slot, SHUNT_PENDING, now);
			*port = candidate;
			return SHUNT_OK;
		}
		if (merit > work->merit) {
			work->merit = merit;
			work->place = i;
		}
	}

	place = work->place;
	if (place >= SHUNT_ROUTE_SLOTS)
		return SHUNT_DROP_route_full;
	slot = slots.lookup(&route->slots[place]);
	if (!slot)
		return SHUNT_DROP_table_full;
	if (!restarting && work->merit >= SHUNT_MERIT_PENDING && work->merit < SHUNT_MERIT_ASKED) {
		*port = route->slots[place]; /* taken over */
	} else {
		if (!restarting && free_slots.pop(port))
			return SHUNT_DROP_table_full;
		if (work->merit == SHUNT_MERIT_ASKED)
			slot->to_transceiver.next_route = 0;
		else if (work->merit != SHUNT_MERIT_UNUSED)
			shunt_set_state(slot, SHUNT_CLOSING, now);
	}

	handshake = handshakes.lookup(port);
	slot = slots.lookup(port);
	if (!slot || !handshake)
		return SHUNT_DROP_table_full;
	if (restarting) {
		slot->to_transceiver.next_route = route->id;
		handshake->next_request = 0; /* an answer to an earlier request decides nothing */
	} else {
		shunt_open(ctx, settings, packet, client, route, transceiver, slot, handshake,
			   *port, now);
	}
	route->slots[place] = *port;
	return SHUNT_OK;
}

/* Makes the slot its client's flow, in place of the one the client has, if any. */
static __always_inline void shunt_establish(struct shunt_client4 *client, struct shunt_slot *slot,
					    __u32 port, struct shunt_slot *replaced, __u32 now)
{
	if (flows4.update(client, &port))
		return; /* stays pending; the client's next check tries again */
	if (replaced)
		shunt_set_state(replaced, SHUNT_CLOSING, now);
	shunt_set_state(slot, SHUNT_ESTABLISHED, now);
}

/* The slot's two routes change places. The old one is kept: if the new route turns out to be a
 * stranger's, who had a request sent in the client's name, then the client's next check changes
 * them back, and so does the agent when the stranger hangs up. */
static __always_inline void shunt_take_next_route(struct shunt_slot *slot,
						  struct shunt_handshake *handshake)
{
	__u32 before = slot->to_transceiver.route;

	if (!slot->to_transceiver.next_route)
		return;
	slot->to_transceiver.route = slot->to_transceiver.next_route;
	slot->to_transceiver.next_route = before;
	handshake->next_request = 0;
}

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

/* Remembers a client's Binding Request, so that its answer can be told. */
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

/* Remembers a transceiver's check, so that the client's answer finds the slot. */
static __always_inline void shunt_remember_check(struct shunt_handshake *handshake,
						 struct shunt_transaction *transaction, __u32 port)
{
	struct shunt_transaction *place =
		&handshake->checks[handshake->next_check & (SHUNT_CHECKS - 1)];

#pragma unroll
	for (int i = 0; i < SHUNT_CHECKS; i++) {
		if (i < handshake->next_check &&
		    shunt_same_transaction(&handshake->checks[i], transaction))
			return;
	}
	/* Another slot may own an entry of this id only by a chance of 2^-96, or by the intent
	 * of a transceiver: it keeps it. */
	if (checks.insert(transaction, &port))
		return;
	if (handshake->next_check >= SHUNT_CHECKS)
		checks.delete(place);
	*place = *transaction;
	handshake->next_check++;
}
