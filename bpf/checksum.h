/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Internet checksums: what a change of headers does to one, and one worked out afresh.
 *
 * All that a flow changes in its packets is constant for the flow, so that the change of its UDP
 * checksum is one number, worked out when the slot is opened (RFC 1624, equation 3). The number is
 * the same from one address family to the other: both pseudo-headers sum the same length and
 * protocol, and what makes an IPv4 address IPv4-mapped (0xffff) counts as zero.
 */
#pragma once

#include "maps.h"
#include "packet.h"

static __always_inline __u16 shunt_csum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline __u64 shunt_csum_half(__u64 half)
{
	return (half & 0xffffffff) + (half >> 32);
}

static __always_inline __u64 shunt_csum_address(const struct shunt_address *address)
{
	return shunt_csum_half(address->half[0]) + shunt_csum_half(address->half[1]);
}

/* What is added to the complement of a checksum when `before` turns into `after`. */
static __always_inline __u16 shunt_csum_delta(__u64 before, __u64 after)
{
	return shunt_csum_fold((__u64)(__u16)~shunt_csum_fold(before) + shunt_csum_fold(after));
}

static __always_inline __be16 shunt_csum_add(__be16 checksum, __u16 delta)
{
	__u32 sum = (__u32)(__u16)~checksum + delta;

	/* Of two 16-bit numbers one carry is all there can be. */
	return ~((sum & 0xffff) + (sum >> 16));
}

/* A UDP checksum after a change. 0 says that the sender made none, and none it stays (RFC 768). */
static __always_inline __be16 shunt_csum_udp(__be16 checksum, __u16 delta)
{
	if (!checksum)
		return 0;
	checksum = shunt_csum_add(checksum, delta);
	return checksum ? checksum : 0xffff;
}

static __always_inline __u16 shunt_pseudo_header(const struct shunt_packet *packet)
{
	__u64 sum = htons(IPPROTO_UDP) + packet->udp->len;

	if (packet->ipv6)
		sum += shunt_csum_address(&packet->source) +
		       shunt_csum_address(&packet->destination);
	else
		sum += (__u64)shunt_ipv4(&packet->source) + shunt_ipv4(&packet->destination);
	return shunt_csum_fold(sum);
}

/*
 * An ordinary socket behind a veth leaves the checksum to a NIC that is not there: the field holds
 * the sum of the pseudo-header alone. XDP is not told, but the value tells. For a packet that had it
 * whole, and by chance (1 in 65536) looks the same, working it out afresh gives what it had.
 */
static __always_inline bool shunt_is_partial(const struct shunt_packet *packet)
{
	return packet->udp->check && packet->udp->check == shunt_pseudo_header(packet);
}

#define SHUNT_LONGEST_SUM 16384

/* The UDP checksum, worked out from the datagram whatever its field says. */
static __always_inline enum shunt_reason shunt_whole_checksum(const struct shunt_packet *packet,
							      __be16 *whole)
{
	__u32 length = packet->payload_length + sizeof(struct udphdr);
	__u64 sum;

	if (length >= SHUNT_LONGEST_SUM)
		return SHUNT_DROP_checksum;
	/* The field itself, which counts as zero, is in what is summed. */
	sum = (__u64)shunt_pseudo_header(packet) + (__u16)~packet->udp->check;
	/* One piece for each bit of the length, largest first. Where a piece starts is worked out
	 * from the length and not from the piece before, or the verifier would follow each of the
	 * 2^14 ways through here. */
#define SHUNT_PIECE(size) ((void *)packet->udp + (length & (SHUNT_LONGEST_SUM - 2 * (size))))
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
	SHUNT_SUM_PIECE(8192);
	SHUNT_SUM_PIECE(4096);
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
