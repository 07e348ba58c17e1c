/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From bytes to headers. Nothing here changes a packet.
 */
#pragma once

#include "reasons.h"
#include "types.h"

#define SHUNT_PADDING 46 /* what Ethernet may need to fill its shortest frame */

struct shunt_vlan {
	__be16 tci;
	__be16 protocol;
};

/* A packet as far as its ports. Pointers are valid for the headers only; `payload` needs its own
 * check against `end`. */
struct shunt_packet {
	struct ethhdr *ethernet;
	void *ip; /* struct iphdr or struct ipv6hdr */
	union {
		struct udphdr *udp;
		void *transport;
	};
	void *payload; /* of UDP */
	void *end;     /* of the frame */
	struct shunt_address source;
	struct shunt_address destination;
	__u32 length;         /* of the IP packet; valid after shunt_check_headers() */
	__u32 payload_length; /* by the UDP header; likewise */
	bool ipv6;
	bool tagged;
	__u16 vlan; /* 0: untagged, or only a priority */
};

/* What the IP header says about what follows it. */
enum shunt_kind {
	SHUNT_OTHER,    /* the kernel's */
	SHUNT_UDP,      /* right behind a plain IP header */
	SHUNT_ICMP,     /* likewise */
	SHUNT_EXTENDED, /* options, extension headers or a fragment; maybe UDP */
};

/* Addresses are put together and taken apart in registers, by halves: what is written to the stack in
 * one width and read in another waits for the store. The BPF machines that have XDP are
 * little-endian here; bpf/types.h says where the words are. */
static __always_inline struct shunt_address shunt_address4(__be32 ipv4)
{
	struct shunt_address address;

	address.half[0] = 0;
	address.half[1] = (__u64)ipv4 << 32 | htonl(0xffff);
	return address;
}

static __always_inline __be32 shunt_ipv4(const struct shunt_address *address)
{
	return address->half[1] >> 32;
}

static __always_inline bool shunt_is_ipv4(const struct shunt_address *address)
{
	return !address->half[0] && (__u32)address->half[1] == htonl(0xffff);
}

/* An IPv6 header's address; IP headers stand where 8 bytes are not aligned, and need not be. */
static __always_inline struct shunt_address shunt_address6(const void *ipv6)
{
	struct shunt_address address;

	address.half[0] = ((const __u64 *)ipv6)[0];
	address.half[1] = ((const __u64 *)ipv6)[1];
	return address;
}

static __always_inline bool shunt_same_address(const struct shunt_address *a,
					       const struct shunt_address *b)
{
	return a->half[1] == b->half[1] && a->half[0] == b->half[0];
}

static __always_inline enum shunt_kind shunt_parse_ipv4(struct shunt_packet *packet)
{
	const struct iphdr *ip = packet->ip;

	if ((void *)(ip + 1) > packet->end || ip->version != 4 || ip->ihl < 5)
		return SHUNT_OTHER;
	packet->ipv6 = false;
	packet->transport = (void *)(ip + 1);
	packet->source = shunt_address4(ip->saddr);
	packet->destination = shunt_address4(ip->daddr);
	if (ip->protocol != IPPROTO_UDP && ip->protocol != IPPROTO_ICMP)
		return SHUNT_OTHER;
	if (ip->ihl != 5 || (ip->frag_off & htons(0x3fff)))
		return ip->protocol == IPPROTO_UDP ? SHUNT_EXTENDED : SHUNT_OTHER;
	return ip->protocol == IPPROTO_UDP ? SHUNT_UDP : SHUNT_ICMP;
}

static __always_inline enum shunt_kind shunt_parse_ipv6(struct shunt_packet *packet)
{
	const struct ipv6hdr *ip = packet->ip;

	if ((void *)(ip + 1) > packet->end || ip->version != 6)
		return SHUNT_OTHER;
	packet->ipv6 = true;
	packet->transport = (void *)(ip + 1);
	packet->source = shunt_address6(&ip->saddr);
	packet->destination = shunt_address6(&ip->daddr);
	/* Of ::/64: an IPv4-mapped one would pass for IPv4 from here on, :: for one that is not set. */
	if (!packet->destination.half[0])
		return SHUNT_OTHER;
	switch (ip->nexthdr) {
	case IPPROTO_UDP:
		return SHUNT_UDP;
	case IPPROTO_ICMPV6:
		return SHUNT_ICMP;
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_DSTOPTS:
	case IPPROTO_FRAGMENT:
		return SHUNT_EXTENDED;
	default:
		return SHUNT_OTHER;
	}
}

/* struct ethhdr is packed, and read byte by byte: this is one load. */
static __always_inline __be16 shunt_protocol(const struct ethhdr *ethernet)
{
	return ((const __be16 *)ethernet)[ETH_ALEN];
}

static __always_inline enum shunt_kind shunt_parse(struct xdp_md *ctx, struct shunt_packet *packet)
{
	void *data = (void *)(long)ctx->data;
	enum shunt_kind kind;
	__be16 protocol;

	packet->end = (void *)(long)ctx->data_end;
	packet->ethernet = data;
	packet->ip = data + sizeof(struct ethhdr);
	packet->tagged = false;
	packet->vlan = 0;
	if (packet->ip > packet->end)
		return SHUNT_OTHER;
	protocol = shunt_protocol(packet->ethernet);
	if (protocol == htons(ETH_P_8021Q)) {
		const struct shunt_vlan *tag = packet->ip;

		packet->ip += sizeof(*tag);
		if (packet->ip > packet->end)
			return SHUNT_OTHER;
		packet->tagged = true;
		packet->vlan = ntohs(tag->tci) & 0xfff;
		protocol = tag->protocol;
	}
	if (protocol == htons(ETH_P_IP))
		kind = shunt_parse_ipv4(packet);
	else if (protocol == htons(ETH_P_IPV6))
		kind = shunt_parse_ipv6(packet);
	else
		return SHUNT_OTHER;
	packet->payload = packet->transport + sizeof(struct udphdr);
	if (kind == SHUNT_UDP && packet->payload > packet->end)
		return SHUNT_OTHER;
	return kind;
}

/* The IP packet's length by its header, and whether frame and TTL agree with it. */
static __always_inline enum shunt_reason shunt_check_ip(struct shunt_packet *packet)
{
	__u64 room = packet->end - packet->ip;
	__u8 ttl;

	if (packet->ipv6) {
		const struct ipv6hdr *ip = packet->ip;

		packet->length = sizeof(*ip) + ntohs(ip->payload_len);
		ttl = ip->hop_limit;
	} else {
		const struct iphdr *ip = packet->ip;

		packet->length = ntohs(ip->tot_len);
		ttl = ip->ttl;
	}
	/* By the difference: to the verifiers of 6.1 and 6.12 what ntohs() gives has no bound, and is
	 * not to be added to a pointer. */
	if (packet->length > room || room > packet->length + SHUNT_PADDING)
		return SHUNT_DROP_length;
	return ttl <= 1 ? SHUNT_DROP_ttl : SHUNT_OK;
}

/* Everything that both directions ask of the headers of a UDP packet that is the relay's. */
static __always_inline enum shunt_reason shunt_check_headers(struct shunt_packet *packet)
{
	__u32 header = packet->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	__u32 udp_length = ntohs(packet->udp->len);
	enum shunt_reason reason;

	reason = shunt_check_ip(packet);
	if (reason == SHUNT_DROP_length || udp_length < sizeof(struct udphdr) ||
	    packet->length != header + udp_length)
		return SHUNT_DROP_length;
	if (reason)
		return reason;
	if (packet->ipv6 && !packet->udp->check)
		return SHUNT_DROP_no_checksum;
	packet->payload_length = udp_length - sizeof(struct udphdr);
	return SHUNT_OK;
}

enum shunt_class {
	SHUNT_CLASS_STUN,
	SHUNT_CLASS_MEDIA, /* DTLS, RTP, RTCP: all that follows the established flow */
	SHUNT_CLASS_NOISE,
};

/* RFC 7983, by the first byte of the payload. ZRTP, TURN channels and QUIC are noise here. */
static __always_inline enum shunt_class shunt_classify(const struct shunt_packet *packet)
{
	__u8 first;

	if (!packet->payload_length || packet->payload + 1 > packet->end)
		return SHUNT_CLASS_NOISE;
	first = *(__u8 *)packet->payload;
	if (first <= 3)
		return SHUNT_CLASS_STUN;
	if ((first >= 20 && first <= 63) || (first >= 128 && first <= 191))
		return SHUNT_CLASS_MEDIA;
	return SHUNT_CLASS_NOISE;
}
