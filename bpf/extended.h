/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * UDP that does not stand right behind a plain IP header: behind options or extension headers, or
 * in fragments. The relay takes none of it; this finds out whether it is the relay's to drop.
 */
#pragma once

#include "addresses.h"
#include "verdict.h"

#define SHUNT_EXTENSION_HEADERS 4

/* Where the walk along the headers has come to. */
struct shunt_chain {
	void *at;
	bool fragment;
	bool later;   /* a fragment but the first: the ports are elsewhere */
	bool endless; /* more headers than are read */
};

/* To the UDP header; false: it is not UDP, or not all there. */
static __always_inline bool shunt_walk_ipv4(const struct shunt_packet *packet,
					    struct shunt_chain *chain)
{
	const struct iphdr *ip = packet->ip;

	chain->at = packet->ip + ip->ihl * 4;
	chain->fragment = ip->frag_off & htons(0x3fff);
	chain->later = ip->frag_off & htons(0x1fff);
	return true;
}

struct shunt_extension {
	__u8 next;
	__u8 length; /* in units of 8 bytes, without the first */
	__be16 offset;
	__be32 rest;
};

static __always_inline bool shunt_is_extension(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING ||
	       protocol == IPPROTO_DSTOPTS || protocol == IPPROTO_FRAGMENT;
}

static __always_inline bool shunt_walk_ipv6(const struct shunt_packet *packet,
					    struct shunt_chain *chain)
{
	__u8 next = ((struct ipv6hdr *)packet->ip)->nexthdr;

	chain->at = packet->transport;
	for (int i = 0; i < SHUNT_EXTENSION_HEADERS; i++) {
		const struct shunt_extension *header = chain->at;

		if (!shunt_is_extension(next))
			break;
		if ((void *)(header + 1) > packet->end)
			return false;
		if (next == IPPROTO_FRAGMENT) {
			chain->fragment = true;
			chain->later = header->offset & htons(0xfff8);
			chain->at += sizeof(*header);
		} else {
			chain->at += (header->length + 1) * 8;
		}
		next = header->next;
		if (chain->later)
			break;
	}
	chain->endless = !chain->later && shunt_is_extension(next);
	return chain->endless || next == IPPROTO_UDP;
}

static __always_inline int shunt_walk_extended(struct xdp_md *ctx, struct shunt_settings *settings,
					       const struct shunt_packet *packet)
{
	struct shunt_chain chain = {};
	const struct udphdr *udp;
	__u32 number;

	if (!(packet->ipv6 ? shunt_walk_ipv6(packet, &chain) : shunt_walk_ipv4(packet, &chain)))
		return shunt_pass(ctx);
	if (chain.endless)
		return shunt_is_vip_address(settings, &packet->destination) ||
				       shunt_find_inside(settings, &packet->destination, &number)
			       ? shunt_drop(SHUNT_DROP_ip_options)
			       : shunt_pass(ctx);
	/* Nobody could put it together: its first part, if it was the relay's, was dropped. */
	if (chain.later)
		return shunt_is_vip_address(settings, &packet->destination)
			       ? shunt_drop(SHUNT_DROP_fragment)
			       : shunt_pass(ctx);
	udp = chain.at;
	if ((void *)(udp + 1) > packet->end)
		return shunt_pass(ctx);
	if (!shunt_find_vip(settings, &packet->destination, udp->dest, &number)) {
		if (!shunt_find_slot(settings, &packet->destination, udp->dest, &number))
			return shunt_pass(ctx);
		if (!shunt_is_inside(ctx, settings, packet))
			return shunt_drop(SHUNT_DROP_wrong_interface);
	}
	return shunt_drop(chain.fragment ? SHUNT_DROP_fragment : SHUNT_DROP_ip_options);
}
