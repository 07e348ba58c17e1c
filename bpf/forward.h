/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A packet's way on: the last checks, the accounts, and the rewriting of headers in place.
 */
#pragma once

#include "slot.h"
#include "verdict.h"

/* The headers of a packet on its way out, and where it goes. */
struct shunt_way {
	struct shunt_address source;
	struct shunt_address destination;
	__be16 source_port;
	__be16 destination_port;
	__u16 udp_delta;
	__u16 ip_delta;
	bool ipv6;
	const struct shunt_next_hop *hop;
};

/* Through the slot to its transceiver. */
static __always_inline enum shunt_reason shunt_way_in(struct shunt_settings *settings,
						      const struct shunt_to_transceiver *slot,
						      __u32 index, struct shunt_way *way)
{
	const struct shunt_inside *inside =
		&settings->inside[(index >> SHUNT_PORT_BITS) & (SHUNT_INSIDE_ADDRESSES - 1)];
	__u32 number = slot->transceiver;
	struct shunt_transceiver *transceiver;

	transceiver = transceivers.lookup(&number);
	if (!transceiver || !transceiver->port)
		return SHUNT_DROP_transceiver_gone;
	if (!transceiver->resolved)
		return SHUNT_DROP_neighbour;
	way->ipv6 = !shunt_is_ipv4(&transceiver->address);
	way->source = way->ipv6 ? inside->ipv6 : inside->ipv4;
	way->source_port = htons(index);
	way->destination = transceiver->address;
	way->destination_port = transceiver->port;
	way->udp_delta = slot->udp_delta;
	way->ip_delta = slot->ip_delta;
	way->hop = &transceiver->hop;
	return SHUNT_OK;
}

/* Through the slot to its client. */
static __always_inline void shunt_way_out(struct shunt_settings *settings,
					  const struct shunt_to_client *slot, struct shunt_way *way)
{
	const struct shunt_vip *vip = &settings->vips[slot->vip & (SHUNT_VIPS - 1)];

	way->ipv6 = !shunt_is_ipv4(&slot->client);
	way->source = vip->address;
	way->source_port = vip->port;
	way->destination = slot->client;
	way->destination_port = slot->client_port;
	way->udp_delta = slot->udp_delta;
	way->ip_delta = slot->ip_delta;
	way->hop = &slot->hop;
}

#define SHUNT_FAMILIES_DIFFER (sizeof(struct ipv6hdr) - sizeof(struct iphdr))

/* The packet's length after a change of address family. */
static __always_inline __u32 shunt_length_as(const struct shunt_packet *packet, bool ipv6)
{
	if (packet->ipv6 == ipv6)
		return packet->length;
	return ipv6 ? packet->length + SHUNT_FAMILIES_DIFFER
		    : packet->length - SHUNT_FAMILIES_DIFFER;
}

/* What the next part of the program has to know. */
static __always_inline void shunt_leave(__u32 direction, __u32 index, __u32 generation)
{
	struct shunt_scratch *work;
	__u32 zero = 0;

	work = scratch.lookup(&zero);
	if (!work)
		return;
	work->direction = direction;
	work->slot = index;
	work->generation = generation;
}

static __always_inline void shunt_account_out(struct shunt_to_client *slot, __u32 bytes)
{
	slot->packets++;
	slot->bytes += bytes;
	shunt_count(SHUNT_TO_CLIENT, bytes);
}

static __always_inline void shunt_account_in(struct shunt_settings *settings,
					     struct shunt_to_transceiver *slot, __u32 bytes)
{
	__u32 now = shunt_now(settings);

	slot->packets++;
	slot->bytes += bytes;
	if (slot->seen != now)
		slot->seen = now;
	shunt_count(SHUNT_TO_TRANSCEIVER, bytes);
}

/* Everything that could fail has been checked. One half of the slot is enough. */
static __always_inline void shunt_account(struct shunt_settings *settings,
					  const struct shunt_packet *packet,
					  const struct shunt_way *way, struct shunt_slot *slot,
					  __u32 direction)
{
	if (direction == SHUNT_TO_CLIENT)
		shunt_account_out(slot->out, shunt_length_as(packet, way->ipv6));
	else
		shunt_account_in(settings, slot->in, packet->length);
}

static __always_inline void shunt_write_ethernet(struct ethhdr *ethernet,
						 const struct shunt_next_hop *hop)
{
	/* Both addresses, as they stand in either: 12 bytes in two loads. */
	const __u32 *from = (const void *)hop->mac;
	__u32 *to = (void *)ethernet;

	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
}

/* An IPv6 header's address, see shunt_address6(). */
static __always_inline void shunt_write_address6(void *ipv6, const struct shunt_address *address)
{
	((__u64 *)ipv6)[0] = address->half[0];
	((__u64 *)ipv6)[1] = address->half[1];
}

/* The IP header of a packet that stays in its family. */
static __always_inline void shunt_rewrite_ip(void *header, const struct shunt_way *way)
{
	if (way->ipv6) {
		struct ipv6hdr *ip = header;

		shunt_write_address6(&ip->saddr, &way->source);
		shunt_write_address6(&ip->daddr, &way->destination);
		ip->hop_limit--;
	} else {
		struct iphdr *ip = header;

		ip->saddr = shunt_ipv4(&way->source);
		ip->daddr = shunt_ipv4(&way->destination);
		ip->ttl--;
		ip->check = shunt_csum_add(ip->check, way->ip_delta);
	}
}

/* Sends the packet through the slot: here if its headers keep their length and its checksum is whole,
 * else by way of another part. */
static __always_inline int shunt_forward(struct xdp_md *ctx, struct shunt_settings *settings,
					 struct shunt_packet *packet, const struct shunt_way *way,
					 struct shunt_slot *slot, __u32 index, __u32 generation,
					 __u32 direction)
{
	const struct shunt_next_hop *hop = way->hop;

	if (hop->mtu && shunt_length_as(packet, way->ipv6) > hop->mtu) {
		shunt_leave(direction, index, generation);
		return shunt_continue(ctx, SHUNT_PART_too_big);
	}
	if (way->ipv6 != packet->ipv6 || packet->tagged != !!hop->vlan ||
	    shunt_is_partial(packet)) {
		shunt_leave(direction, index, generation);
		return shunt_continue(ctx, SHUNT_PART_reshape);
	}
	shunt_account(settings, packet, way, slot, direction);
	shunt_write_ethernet(packet->ethernet, hop);
	if (packet->tagged)
		((struct shunt_vlan *)(packet->ethernet + 1))->tci = htons(hop->vlan);
	shunt_rewrite_ip(packet->ip, way);
	packet->udp->source = way->source_port;
	packet->udp->dest = way->destination_port;
	packet->udp->check = shunt_csum_udp(packet->udp->check, way->udp_delta);
	return shunt_send(ctx, settings, hop->ifindex);
}
