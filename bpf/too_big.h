/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A packet too long for the way on becomes the ICMP error that tells its sender (RFC 1191, RFC 8201).
 * Only within an established flow, where the sender is who it says, and never longer than what it sent.
 */
#pragma once

#include "icmp.h"

/* How much of the packet is quoted: an error of 576 bytes (RFC 1812 4.3.2.3), of 1280 (RFC 4443 2.4). */
#define SHUNT_QUOTE4 548
#define SHUNT_QUOTE6 1232
#define SHUNT_ERROR_TTL 64
#define SHUNT_ERROR_TOS 0xc0 /* internetwork control, RFC 1812 4.3.2.5 */

struct shunt_link_header {
	struct ethhdr ethernet;
	struct shunt_vlan tag;
};

/* The sum of what is quoted; the packet is known to be that long. */
static __always_inline __u64 shunt_sum_quote(void *quote, bool ipv6)
{
	__u64 sum = (__u32)bpf_csum_diff(NULL, 0, quote, 512, 0);

	if (!ipv6)
		return sum + (__u32)bpf_csum_diff(NULL, 0, quote + 512, SHUNT_QUOTE4 - 512, 0);
	sum += (__u32)bpf_csum_diff(NULL, 0, quote + 512, 512, 0);
	return sum + (__u32)bpf_csum_diff(NULL, 0, quote + 1024, SHUNT_QUOTE6 - 1024, 0);
}

static __always_inline void shunt_fill_too_big(struct shunt_icmp_header *icmp, __u32 mtu, bool ipv6,
					       const struct shunt_way *back, __u64 sum)
{
	icmp->type = ipv6 ? SHUNT_ICMP6_TOO_BIG : SHUNT_ICMP4_UNREACHABLE;
	icmp->code = ipv6 ? 0 : SHUNT_ICMP4_TOO_BIG;
	icmp->rest = 0;
	icmp->mtu = htons(mtu);
	sum += *(__be16 *)icmp + icmp->mtu;
	if (ipv6)
		sum += shunt_icmp_pseudo_header(&back->source, &back->destination,
						sizeof(*icmp) + SHUNT_QUOTE6);
	icmp->checksum = ~shunt_csum_fold(sum);
}

/* `ipv6` is known where this is inlined. */
static __always_inline int shunt_turn_back(struct xdp_md *ctx, struct shunt_settings *settings,
					   struct shunt_packet *packet, __u32 mtu,
					   const struct shunt_way *back, bool ipv6)
{
	const int quote = ipv6 ? SHUNT_QUOTE6 : SHUNT_QUOTE4;
	const int header = (ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) +
			   sizeof(struct shunt_icmp_header);
	const bool tagged = packet->tagged;
	const int link = sizeof(struct ethhdr) + (tagged ? sizeof(struct shunt_vlan) : 0);
	const int frame = packet->end - (void *)packet->ethernet;
	struct shunt_link_header old = {};
	struct shunt_icmp_header *icmp;
	void *data;
	void *ip;
	__u64 sum;

	if (packet->ip + quote > packet->end)
		return shunt_drop(SHUNT_DROP_mtu);
	sum = shunt_sum_quote(packet->ip, ipv6);
	__builtin_memcpy(&old.ethernet, packet->ethernet, sizeof(old.ethernet));
	if (tagged)
		__builtin_memcpy(&old.tag, packet->ethernet + 1, sizeof(old.tag));
	if (bpf_xdp_adjust_head(ctx, -header))
		return shunt_drop(SHUNT_DROP_mtu);
	if (bpf_xdp_adjust_tail(ctx, link + quote - frame))
		return shunt_drop(SHUNT_DROP_mtu);
	data = (void *)(long)ctx->data;
	ip = data + link;
	icmp = ipv6 ? ip + sizeof(struct ipv6hdr) : ip + sizeof(struct iphdr);
	if (data + sizeof(old) > (void *)(long)ctx->data_end ||
	    (void *)(icmp + 1) > (void *)(long)ctx->data_end)
		return shunt_drop(SHUNT_DROP_mtu);
	__builtin_memcpy(data, old.ethernet.h_source, ETH_ALEN);
	__builtin_memcpy(data + ETH_ALEN, old.ethernet.h_dest, ETH_ALEN);
	((struct ethhdr *)data)->h_proto = old.ethernet.h_proto;
	if (tagged)
		__builtin_memcpy(data + sizeof(old.ethernet), &old.tag, sizeof(old.tag));
	if (ipv6)
		shunt_fill_ipv6(ip, 0, header + quote - sizeof(struct ipv6hdr), SHUNT_ERROR_TTL,
				IPPROTO_ICMPV6, back);
	else
		shunt_fill_ipv4(ip, SHUNT_ERROR_TOS, header + quote, SHUNT_ERROR_TTL, IPPROTO_ICMP,
				back);
	shunt_fill_too_big(icmp, mtu, ipv6, back, sum);
	shunt_drop(SHUNT_DROP_mtu); /* it is counted; what goes back is the relay's own */
	return shunt_send(ctx, settings, ctx->ingress_ifindex);
}

static __always_inline int shunt_tell_too_big(struct xdp_md *ctx, struct shunt_settings *settings,
					      struct shunt_packet *packet,
					      const struct shunt_way *way,
					      const struct shunt_slot *slot)
{
	/* The MTU as seen from the sender's side, where the same packet is longer or shorter. */
	__u32 mtu = way->hop->mtu + packet->length - shunt_length_as(packet, way->ipv6);
	const struct shunt_way back = {
		.source = packet->destination,
		.destination = packet->source,
	};

	if (slot->out->state != SHUNT_ESTABLISHED)
		return shunt_drop(SHUNT_DROP_mtu);
	if (packet->ipv6)
		return shunt_turn_back(ctx, settings, packet,
				       mtu < SHUNT_LEAST_MTU ? SHUNT_LEAST_MTU : mtu, &back, true);
	/* Who lets it be fragmented does not ask for the path's MTU (RFC 1191 3). */
	if (!(((struct iphdr *)packet->ip)->frag_off & htons(0x4000)))
		return shunt_drop(SHUNT_DROP_mtu);
	return shunt_turn_back(ctx, settings, packet, mtu, &back, false);
}
