/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Whose an address is: a VIP's, the inside's, a client's, or nobody's.
 */
#pragma once

#include "maps.h"
#include "packet.h"

/* Whether it is a VIP, and which: an index into settings.vips. */
static __always_inline bool shunt_find_vip(struct shunt_settings *settings,
					   const struct shunt_address *address, __be16 port,
					   __u32 *number)
{
#pragma unroll
	for (int i = 0; i < SHUNT_VIPS; i++) {
		const struct shunt_vip *vip = &settings->vips[i];

		if (!vip->port)
			return false;
		if (vip->port == port && shunt_same_address(&vip->address, address)) {
			*number = vip->number;
			return true;
		}
	}
	return false;
}

/* Whether it is an inside address, and its first slot. */
static __always_inline bool shunt_find_inside(struct shunt_settings *settings,
					      const struct shunt_address *address,
					      __u32 *first_slot)
{
#pragma unroll
	for (int i = 0; i < SHUNT_INSIDE_ADDRESSES; i++) {
		const struct shunt_inside *inside = &settings->inside[i];

		if (!inside->used)
			return false;
		if (shunt_same_address(&inside->ipv4, address) ||
		    shunt_same_address(&inside->ipv6, address)) {
			*first_slot = inside->first_slot;
			return true;
		}
	}
	return false;
}

/* Whether an inside address and port are a slot, and which. */
static __always_inline bool shunt_find_slot(struct shunt_settings *settings,
					    const struct shunt_address *address, __be16 port,
					    __u32 *slot)
{
	__u32 first;

	if (ntohs(port) < settings->first_port || ntohs(port) > settings->last_port)
		return false;
	if (!shunt_find_inside(settings, address, &first))
		return false;
	*slot = first + ntohs(port);
	return true;
}

static __always_inline bool shunt_is_vip_address(struct shunt_settings *settings,
						 const struct shunt_address *address)
{
#pragma unroll
	for (int i = 0; i < SHUNT_VIPS; i++) {
		if (!settings->vips[i].port)
			return false;
		if (shunt_same_address(&settings->vips[i].address, address))
			return true;
	}
	return false;
}

/* A source that no client can have: an answer to it would go astray, or come back in (RFC 1122
 * 3.2.1.3, RFC 4291 2.5 and 2.7). */
static __always_inline bool shunt_is_martian(const struct shunt_packet *packet)
{
	const struct shunt_address *source = &packet->source;
	__u32 first;

	if (!packet->ipv6) {
		first = ntohl(shunt_ipv4(source)) >> 24;
		return first == 0 || first == 127 || first >= 224;
	}
	first = ntohl(source->half[0]) >> 16;
	if (first >= 0xff00 || (first & 0xffc0) == 0xfe80)
		return true;
	return shunt_is_ipv4(source) ||
	       (!source->half[0] && !(__u32)source->half[1] && ntohl(source->half[1] >> 32) <= 1);
}

static __always_inline bool shunt_is_inside(struct xdp_md *ctx, struct shunt_settings *settings,
					    const struct shunt_packet *packet)
{
#pragma unroll
	for (int i = 0; i < SHUNT_INTERFACES; i++) {
		const struct shunt_link *link = &settings->inside_links[i];

		if (!link->ifindex)
			return false;
		if (link->ifindex == ctx->ingress_ifindex && link->vlan == packet->vlan)
			return true;
	}
	return false;
}
