/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Checksums, and the rewriting of headers.
 *
 * All that a flow changes in its packets is constant for the flow, so that the change of either
 * checksum is one number, worked out when the slot is opened (RFC 1624, equation 3).
 */
#pragma once

#include "packet.h"

static __always_inline __u16 shunt_csum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Sum of two addresses and two ports, in network order, as both checksums see them. */
static __always_inline __u64 shunt_csum_addresses(__be32 source, __be32 destination)
{
	return (__u64)source + destination;
}

/* What is added to the complement of a checksum when `before` turns into `after`. */
static __always_inline __u16 shunt_csum_delta(__u64 before, __u64 after)
{
	return shunt_csum_fold((__u64)(__u16)~shunt_csum_fold(before) + shunt_csum_fold(after));
}

static __always_inline __be16 shunt_csum_add(__be16 checksum, __u16 delta)
{
	return ~shunt_csum_fold((__u64)(__u16)~checksum + delta);
}

/*
 * An ordinary socket behind a veth leaves the checksum to a NIC that is not there: the field holds
 * the sum of the pseudo-header alone. XDP is not told, but the value tells: if the field equals
 * that sum, the checksum is worked out afresh. For a packet that had it whole, and by chance (1 in
 * 65536) looks the same, this gives what it had.
 */
static __always_inline enum shunt_reason shunt_whole_checksum(const struct shunt_packet *packet,
							      __be16 *whole)
{
	__u32 length = packet->payload_length + sizeof(struct udphdr);
	__u64 sum = shunt_csum_addresses(packet->ip->saddr, packet->ip->daddr) +
		    htons(IPPROTO_UDP) + packet->udp->len;

	*whole = packet->udp->check;
	if (!*whole || *whole != shunt_csum_fold(sum))
		return SHUNT_OK;
	if (length >= 4096)
		return SHUNT_DROP_checksum;

	/* The field itself, which counts as zero, is in what is summed. */
	sum += (__u16)~packet->udp->check;
	/* One piece for each bit of the length, largest first. Where a piece starts is worked out
	 * from the length and not from the piece before, or the verifier would follow each of the
	 * 2^12 ways through here. */
#define SHUNT_PIECE(size) ((void *)packet->udp + (length & (4096 - 2 * (size))))
#define SHUNT_SUM_PIECE(size)                                                                      \
	do {                                                                                       \
		if (!(length & (size)))                                                            \
			break;                                                                     \
		if (SHUNT_PIECE(size) + (size) > packet->end)                                      \
			return SHUNT_DROP_length;                                                  \
		for (int at = 0; at < (size); at += 512)                                           \
			sum += (__u32)bpf_csum_diff(NULL, 0, SHUNT_PIECE(size) + at,               \
						    (size) < 512 ? (size) : 512, 0);               \
	} while (0)
	SHUNT_SUM_PIECE(2048);
	SHUNT_SUM_PIECE(1024);
	SHUNT_SUM_PIECE(512);
	SHUNT_SUM_PIECE(256);
	SHUNT_SUM_PIECE(128);
	SHUNT_SUM_PIECE(64);
	SHUNT_SUM_PIECE(32);
	SHUNT_SUM_PIECE(16);
	SHUNT_SUM_PIECE(8);
	SHUNT_SUM_PIECE(4);
	if (length & 2) {
		if (SHUNT_PIECE(2) + 2 > packet->end)
			return SHUNT_DROP_length;
		sum += *(__be16 *)SHUNT_PIECE(2);
	}
	if (length & 1) {
		if (SHUNT_PIECE(1) + 1 > packet->end)
			return SHUNT_DROP_length;
		sum += htons(*(__u8 *)SHUNT_PIECE(1) << 8);
	}
#undef SHUNT_SUM_PIECE
#undef SHUNT_PIECE
	*whole = ~shunt_csum_fold(sum);
	if (!*whole)
		*whole = 0xffff;
	return SHUNT_OK;
}

/* The headers of a packet on its way out. Addresses and ports in network order. */
struct shunt_rewrite {
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
	__u16 ip_delta;
	__u16 udp_delta;
	const __u8 *mac;
	const __u8 *source_mac;
};

/* The two deltas of one direction: `before` is as the packet comes, `after` as it goes. */
static __always_inline void shunt_deltas(__u64 before_addresses, __u32 before_ports,
					 __u64 after_addresses, __u32 after_ports, __u16 *ip_delta,
					 __u16 *udp_delta)
{
	/* The TTL is the upper byte of its word and goes down by one. */
	*ip_delta = shunt_csum_delta(before_addresses + htons(0x0100), after_addresses);
	*udp_delta =
		shunt_csum_delta(before_addresses + before_ports, after_addresses + after_ports);
}

/* Cannot fail: everything that can was checked before. `checksum` is the whole UDP checksum. */
static __always_inline void shunt_rewrite(struct shunt_packet *packet, __be16 checksum,
					  const struct shunt_rewrite *rewrite)
{
	__builtin_memcpy(packet->ethernet->h_dest, rewrite->mac, ETH_ALEN);
	__builtin_memcpy(packet->ethernet->h_source, rewrite->source_mac, ETH_ALEN);

	packet->ip->saddr = rewrite->source;
	packet->ip->daddr = rewrite->destination;
	packet->ip->ttl--;
	packet->ip->check = shunt_csum_add(packet->ip->check, rewrite->ip_delta);

	packet->udp->source = rewrite->source_port;
	packet->udp->dest = rewrite->destination_port;
	if (checksum) { /* 0: the sender made none, and none it stays (RFC 768) */
		checksum = shunt_csum_add(checksum, rewrite->udp_delta);
		packet->udp->check = checksum ? checksum : 0xffff;
	}
}
