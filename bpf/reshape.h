/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Packets that change in length on the way: from one address family to the other (RFC 7915), with a
 * 802.1Q tag more or less. And those whose checksum has to be worked out.
 */
#pragma once

#include "forward.h"

/* Where packets up to this length may be fragmented further on, RFC 7915 5.1. */
#define SHUNT_MAY_FRAGMENT 1260

/* Makes the frame's head `grow` bytes longer (or shorter) and writes the Ethernet header and tag; what
 * follows them, or NULL if the driver has no room: then nothing has changed. */
static __always_inline void *shunt_new_head(struct xdp_md *ctx, const struct shunt_next_hop *hop,
					    int grow, bool ipv6)
{
	struct ethhdr *ethernet;
	__be16 protocol = ipv6 ? htons(ETH_P_IPV6) : htons(ETH_P_IP);

	if (bpf_xdp_adjust_head(ctx, -grow))
		return NULL;
	ethernet = (void *)(long)ctx->data;
	if ((void *)(ethernet + 1) + sizeof(struct shunt_vlan) > (void *)(long)ctx->data_end)
		return NULL;
	shunt_write_ethernet(ethernet, hop);
	if (hop->vlan) {
		struct shunt_vlan *tag = (void *)(ethernet + 1);

		ethernet->h_proto = htons(ETH_P_8021Q);
		tag->tci = htons(hop->vlan);
		tag->protocol = protocol;
		return tag + 1;
	}
	ethernet->h_proto = protocol;
	return ethernet + 1;
}

/* How much longer the headers before UDP get. */
static __always_inline int shunt_grow(const struct shunt_packet *packet,
				      const struct shunt_way *way)
{
	int grow = 0;

	if (way->ipv6 != packet->ipv6)
		grow = way->ipv6 ? SHUNT_FAMILIES_DIFFER : -(int)SHUNT_FAMILIES_DIFFER;
	if (packet->tagged)
		grow -= sizeof(struct shunt_vlan);
	if (way->hop->vlan)
		grow += sizeof(struct shunt_vlan);
	return grow;
}

static __always_inline __u16 shunt_csum_ipv4(const struct iphdr *ip)
{
	const __u16 *word = (const void *)ip;
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < (int)sizeof(*ip) / 2; i++)
		sum += word[i];
	return ~shunt_csum_fold(sum);
}

static __always_inline void shunt_fill_ipv4(struct iphdr *ip, __u8 tos, __u16 length, __u8 ttl,
					    __u8 protocol, const struct shunt_way *way)
{
	*(__u8 *)ip = 0x45;
	ip->tos = tos;
	ip->tot_len = htons(length);
	/* Short ones may be fragmented, and then need an ID; an atomic datagram needs none. */
	ip->id = length <= SHUNT_MAY_FRAGMENT ? bpf_get_prandom_u32() : 0;
	ip->frag_off = length <= SHUNT_MAY_FRAGMENT ? 0 : htons(0x4000);
	ip->ttl = ttl;
	ip->protocol = protocol;
	ip->check = 0;
	ip->saddr = shunt_ipv4(&way->source);
	ip->daddr = shunt_ipv4(&way->destination);
	ip->check = shunt_csum_ipv4(ip);
}

static __always_inline void shunt_fill_ipv6(struct ipv6hdr *ip, __u8 tos, __u16 payload_length,
					    __u8 hop_limit, __u8 protocol,
					    const struct shunt_way *way)
{
	*(__be32 *)ip = htonl(0x60000000 | (__u32)tos << 20);
	ip->payload_len = htons(payload_length);
	ip->nexthdr = protocol;
	ip->hop_limit = hop_limit;
	shunt_write_address6(&ip->saddr, &way->source);
	shunt_write_address6(&ip->daddr, &way->destination);
}

/* The field that IPv4 calls type of service and IPv6 traffic class: DSCP and ECN. */
static __always_inline __u8 shunt_tos(const struct shunt_packet *packet)
{
	if (!packet->ipv6)
		return ((struct iphdr *)packet->ip)->tos;
	return ntohl(*(__be32 *)packet->ip) >> 20;
}

static __always_inline __u8 shunt_ttl(const struct shunt_packet *packet)
{
	return packet->ipv6 ? ((struct ipv6hdr *)packet->ip)->hop_limit
			    : ((struct iphdr *)packet->ip)->ttl;
}

static __always_inline enum shunt_reason
shunt_checksum_on(const struct shunt_packet *packet, const struct shunt_way *way, __be16 *checksum)
{
	enum shunt_reason reason;

	*checksum = packet->udp->check;
	/* IPv6 has no UDP without a checksum (RFC 8200 8.1, RFC 7915 4.5). */
	if (shunt_is_partial(packet) || (!*checksum && way->ipv6)) {
		reason = shunt_whole_checksum(packet, checksum);
		if (reason)
			return reason;
	}
	*checksum = shunt_csum_udp(*checksum, way->udp_delta);
	return SHUNT_OK;
}

static __always_inline int shunt_reshape_packet(struct xdp_md *ctx, struct shunt_settings *settings,
						struct shunt_packet *packet,
						const struct shunt_way *way,
						struct shunt_slot *slot, __u32 direction)
{
	__u8 tos = shunt_tos(packet);
	__u8 ttl = shunt_ttl(packet);
	bool translate = way->ipv6 != packet->ipv6;
	__u32 udp_length = packet->payload_length + sizeof(struct udphdr);
	enum shunt_reason reason;
	struct udphdr *udp;
	__be16 checksum;
	void *ip;

	reason = shunt_checksum_on(packet, way, &checksum);
	if (reason)
		return shunt_drop(reason);
	ip = shunt_new_head(ctx, way->hop, shunt_grow(packet, way), way->ipv6);
	if (!ip)
		return shunt_drop(SHUNT_DROP_headroom);
	udp = way->ipv6 ? ip + sizeof(struct ipv6hdr) : ip + sizeof(struct iphdr);
	if ((void *)(udp + 1) > (void *)(long)ctx->data_end)
		return shunt_drop(SHUNT_DROP_headroom);

	shunt_account(settings, packet, way, slot, direction);
	if (!translate)
		shunt_rewrite_ip(ip, way);
	else if (way->ipv6)
		shunt_fill_ipv6(ip, tos, udp_length, ttl - 1, IPPROTO_UDP, way);
	else
		shunt_fill_ipv4(ip, tos, sizeof(struct iphdr) + udp_length, ttl - 1, IPPROTO_UDP,
				way);
	udp->source = way->source_port;
	udp->dest = way->destination_port;
	udp->check = checksum;
	return shunt_send(ctx, settings, way->hop->ifindex);
}
