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

#include "addresses.h"
#include "checksum.h"
#include "clock.h"
#include "flows.h"
#include "stun.h"

/* All of a slot. */
struct shunt_slot {
	struct shunt_to_transceiver *in;
	struct shunt_to_client *out;
	struct shunt_book *book;
};

/* False: there is no such slot. */
static __always_inline bool shunt_get_slot(__u32 *index, struct shunt_slot *slot)
{
	slot->in = slots_in.lookup(index);
	slot->out = slots_out.lookup(index);
	slot->book = books.lookup(index);
	return slot->in && slot->out && slot->book;
}

#define SHUNT_IDLE_TICKS 38 /* 5 s: an established flow without a client packet is idle */

static __always_inline void shunt_set_state(struct shunt_slot *slot, __u8 state, __u32 now)
{
	slot->book->since = now;
	/* What was written before must not sink below the state that makes it count. */
	asm volatile("" ::: "memory");
	slot->in->state = state;
	slot->out->state = state;
	asm volatile("" ::: "memory");
}

static __always_inline bool shunt_is_idle(const struct shunt_to_transceiver *slot, __u32 now)
{
	return shunt_age(slot->seen, now) >= SHUNT_IDLE_TICKS;
}

static __always_inline bool shunt_is_live(const struct shunt_to_transceiver *slot)
{
	return slot->state == SHUNT_PENDING || slot->state == SHUNT_ESTABLISHED;
}

/* The next hop back to where the packet came from. */
static __always_inline void shunt_next_hop_back(struct xdp_md *ctx,
						const struct shunt_packet *packet,
						struct shunt_next_hop *hop)
{
	struct shunt_interface *interface;

	__builtin_memcpy(hop->mac, packet->ethernet->h_source, ETH_ALEN);
	__builtin_memcpy(hop->source_mac, packet->ethernet->h_dest, ETH_ALEN);
	hop->ifindex = ctx->ingress_ifindex;
	hop->vlan = packet->vlan;
	hop->mtu = 0;
#pragma nounroll
	for (__u32 i = 0; i < SHUNT_INTERFACES; i++) {
		__u32 key = i;

		interface = interfaces.lookup(&key);
		if (!interface || interface->ifindex != ctx->ingress_ifindex)
			continue;
		/* That VLAN's, else that of any on the interface. */
		if (!hop->mtu || interface->vlan == packet->vlan)
			hop->mtu = interface->mtu;
		if (interface->vlan == packet->vlan)
			break;
	}
}

static __always_inline bool shunt_is_link_multicast(const struct shunt_packet *packet)
{
	return (packet->ethernet->h_source[0] | packet->ethernet->h_dest[0]) & 1;
}

static __always_inline bool shunt_came_by(struct xdp_md *ctx, const struct shunt_packet *packet,
					  const struct shunt_next_hop *hop)
{
	const __u16 *mac = (const void *)hop->mac, *source_mac = (const void *)hop->source_mac;
	const __u16 *from = (const void *)packet->ethernet->h_source;
	const __u16 *to = (const void *)packet->ethernet->h_dest;

	return hop->ifindex == ctx->ingress_ifindex && hop->vlan == packet->vlan &&
	       mac[0] == from[0] && mac[1] == from[1] && mac[2] == from[2] &&
	       source_mac[0] == to[0] && source_mac[1] == to[1] && source_mac[2] == to[2];
}

/* Takes the index of a slot that may be opened; false if there is none. */
static __always_inline bool shunt_take_free(__u32 *index)
{
	struct shunt_to_transceiver *slot;
	struct shunt_free_head *free;
	bool taken = false;
	__u32 zero = 0;
	__u32 *tail;
	__u32 *entry;
	__u32 place;
	__u32 end;

	tail = free_tail.lookup(&zero);
	free = free_head.lookup(&zero);
	if (!tail || !free)
		return false;
	end = *(volatile __u32 *)tail;
	bpf_spin_lock(&free->lock);
	place = free->head;
	if ((__s32)(end - place) > 0) {
		free->head = place + 1;
		taken = true;
	}
	bpf_spin_unlock(&free->lock);
	if (!taken)
		return false;
	place &= SHUNT_RING - 1;
	entry = free_ring.lookup(&place);
	if (!entry)
		return false;
	*index = *entry;
	slot = slots_in.lookup(index);
	/* Whatever may have broken the ring: a slot in use stays. */
	return slot && slot->state == SHUNT_FREE;
}

/* What changes in the UDP checksum, and in the IPv4 header's, of the slot's packets: the client's
 * side against the inside. */
static __always_inline void shunt_set_deltas(struct shunt_slot *slot,
					     const struct shunt_packet *packet,
					     struct shunt_settings *settings,
					     const struct shunt_transceiver *transceiver,
					     __u32 index)
{
	const struct shunt_inside *inside =
		&settings->inside[(index >> SHUNT_PORT_BITS) & (SHUNT_INSIDE_ADDRESSES - 1)];
	const bool ipv4 = shunt_is_ipv4(&transceiver->address);
	const __u64 outer =
		shunt_csum_address(&packet->source) + shunt_csum_address(&packet->destination);
	const __u64 inner =
		shunt_csum_address(&transceiver->address) +
		(ipv4 ? shunt_csum_address(&inside->ipv4) : shunt_csum_address(&inside->ipv6));
	const __u64 outer_ports = (__u64)packet->udp->source + packet->udp->dest;
	const __u64 inner_ports = (__u64)(__be16)htons(index) + transceiver->port;
	/* The TTL is the upper byte of its word and goes down by one. */
	const __u64 ttl = htons(0x0100);

	slot->in->udp_delta = shunt_csum_delta(outer + outer_ports, inner + inner_ports);
	slot->in->ip_delta = shunt_csum_delta(outer + ttl, inner);
	slot->out->udp_delta = shunt_csum_delta(inner + inner_ports, outer + outer_ports);
	slot->out->ip_delta = shunt_csum_delta(inner + ttl, outer);
}

/* Makes the slot, which was found in the state `before`, the client's on the way to the route's
 * transceiver. The route is claimed, so that nobody else opens it; who would establish it for the
 * client before, finds it of another generation. False: somebody has established or closed it
 * meanwhile. */
static __always_inline bool
shunt_open(struct xdp_md *ctx, struct shunt_settings *settings, const struct shunt_packet *packet,
	   const struct shunt_client *client, const struct shunt_route *route,
	   const struct shunt_transceiver *transceiver, struct shunt_slot *slot,
	   struct shunt_handshake *handshake, __u8 before, __u32 index, __u32 now)
{
	bool ours;

	bpf_spin_lock(&handshake->lock);
	ours = slot->in->state == before;
	if (ours) {
		handshake->generation++;
		shunt_set_state(slot, SHUNT_FREE, now);
	}
	bpf_spin_unlock(&handshake->lock);
	if (!ours)
		return false;

	slot->book->route = route->id;
	slot->book->next_route = 0;

	slot->in->check = shunt_hash(settings, &client->address, client->port, client->vip) >> 32;
	slot->in->transceiver = route->transceiver;
	slot->in->seen = now;
	slot->in->packets = 0;
	slot->in->bytes = 0;

	slot->out->client = client->address;
	slot->out->client_port = client->port;
	slot->out->vip = client->vip;
	slot->out->transceiver = route->transceiver;
	slot->out->proven = route->flags & SHUNT_ROUTE_NO_CHECKS ? 1 : 0;
	shunt_next_hop_back(ctx, packet, &slot->out->hop);
	slot->out->packets = 0;
	slot->out->bytes = 0;

	shunt_set_deltas(slot, packet, settings, transceiver, index);

	__builtin_memset(handshake->requests, 0, sizeof(handshake->requests));
	__builtin_memset(handshake->checks, 0, sizeof(handshake->checks));
	handshake->next_request = 0;
	handshake->next_check = 0;
	handshake->hop.ifindex = 0;

	shunt_set_state(slot, SHUNT_PENDING, now);
	return true;
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
#define SHUNT_MERIT_OLDEST 0x3ffffffe  /* and no more, in ticks */
#define SHUNT_MERIT_ASKED 0x7fffffff   /* another route's flow, that has only asked for this one */
#define SHUNT_MERIT_UNUSED 0x80000000

static __always_inline __u32 shunt_merit(const struct shunt_slot *slot,
					 const struct shunt_route *route, __u32 now)
{
	__u32 age;

	if (slot->book->route != route->id)
		return slot->book->next_route == route->id && shunt_is_live(slot->in)
			       ? SHUNT_MERIT_ASKED
			       : SHUNT_MERIT_UNUSED;
	switch (slot->in->state) {
	case SHUNT_PENDING:
		age = shunt_age(slot->book->since, now);
		return SHUNT_MERIT_PENDING + (age < SHUNT_MERIT_OLDEST ? age : SHUNT_MERIT_OLDEST);
	case SHUNT_ESTABLISHED:
		return shunt_is_idle(slot->in, now) ? SHUNT_MERIT_IDLE : 0;
	default:
		return SHUNT_MERIT_UNUSED;
	}
}

/*
 * Finds or makes the slot of (client, route), or lets the client's established flow, `restarting`
 * at `index`, have the route besides its own (an ICE restart). Called with the route claimed.
 *
 * What is new to the route goes to an unused place, else to that of a flow that has only asked for
 * the route (and keeps its own), else to that of the route's oldest pending slot, else to that of an
 * established slot idle for 5 s. A pending slot is taken over with its port, so that
 * one ufrag, hammered from many addresses, cannot use up the ports; other slots that have to go
 * are closed, and their ports rest.
 */
static __always_inline enum shunt_reason
shunt_route_slot(struct xdp_md *ctx, struct shunt_settings *settings,
		 const struct shunt_packet *packet, const struct shunt_client *client,
		 struct shunt_route *route, const struct shunt_transceiver *transceiver,
		 const struct shunt_to_transceiver *restarting, struct shunt_scratch *work,
		 __u32 now, __u32 *index)
{
	struct shunt_handshake *handshake;
	__u8 before = SHUNT_FREE;
	struct shunt_slot slot;
	__u32 place;

	work->place = SHUNT_ROUTE_SLOTS;
	work->merit = 0;
#pragma nounroll
	for (int i = 0; i < SHUNT_ROUTE_SLOTS; i++) {
		__u32 candidate = route->slots[i];
		__u32 merit;

		if (!shunt_get_slot(&candidate, &slot))
			continue;
		merit = shunt_merit(&slot, route, now);
		if (!restarting && merit < SHUNT_MERIT_UNUSED &&
		    shunt_is_client(slot.out, client) && slot.book->route == route->id) {
			/* Established, yet not the client's flow: its entry was lost. */
			if (slot.in->state == SHUNT_ESTABLISHED)
				shunt_set_state(&slot, SHUNT_PENDING, now);
			*index = candidate;
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
	if (!shunt_get_slot(&route->slots[place], &slot))
		return SHUNT_DROP_table_full;
	if (!restarting && work->merit >= SHUNT_MERIT_PENDING && work->merit < SHUNT_MERIT_ASKED) {
		*index = route->slots[place]; /* taken over */
		before = SHUNT_PENDING;
	} else {
		if (!restarting && !shunt_take_free(index))
			return SHUNT_DROP_table_full;
		if (work->merit == SHUNT_MERIT_ASKED)
			slot.book->next_route = 0;
		else if (work->merit != SHUNT_MERIT_UNUSED)
			shunt_set_state(&slot, SHUNT_CLOSING, now);
	}

	handshake = handshakes.lookup(index);
	if (!shunt_get_slot(index, &slot) || !handshake)
		return SHUNT_DROP_table_full;
	if (restarting) {
		slot.book->next_route = route->id;
		handshake->next_request = 0; /* an answer to an earlier request decides nothing */
	} else if (!shunt_open(ctx, settings, packet, client, route, transceiver, &slot, handshake,
			       before, *index, now)) {
		return SHUNT_DROP_route_busy;
	}
	route->slots[place] = *index;
	return SHUNT_OK;
}

/* Makes the slot its client's flow, in place of the one that the client has, if any; unless the slot
 * has been opened anew since `generation`. */
static __always_inline void
shunt_establish(struct shunt_settings *settings, struct shunt_scratch *work,
		const struct shunt_client *client, struct shunt_slot *slot,
		struct shunt_handshake *handshake, __u32 generation, __u32 index,
		const struct shunt_to_transceiver *flow, __u32 flow_index)
{
	const __u32 now = shunt_now(settings);
	struct shunt_slot replaced;
	bool done = false;

	/* Somebody else's flow has the same hash: media could not tell the two apart. */
	if (!flow && shunt_find_flow(settings, client, &flow_index))
		return;
	/* The entry first: until the slot says established, it counts for nothing. */
	if (!shunt_put_flow(settings, work, client, index))
		return; /* stays pending; the client's next check tries again */
	bpf_spin_lock(&handshake->lock);
	if (handshake->generation == generation && slot->in->state == SHUNT_PENDING) {
		shunt_set_state(slot, SHUNT_ESTABLISHED, now);
		done = true;
	}
	bpf_spin_unlock(&handshake->lock);
	if (done && flow && shunt_get_slot(&flow_index, &replaced))
		shunt_set_state(&replaced, SHUNT_CLOSING, now);
}

/* The slot's two routes change places. The old one is kept: if the new route turns out to be a
 * stranger's, who had a request sent in the client's name, then the client's next check changes
 * them back, and so does the agent when the stranger hangs up. */
static __always_inline void shunt_take_next_route(struct shunt_slot *slot,
						  struct shunt_handshake *handshake)
{
	__u32 before = slot->book->route;

	if (!slot->book->next_route)
		return;
	slot->book->route = slot->book->next_route;
	slot->book->next_route = before;
	handshake->next_request = 0;
}
