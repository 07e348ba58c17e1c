/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From bytes to headers. Nothing here changes a packet.
 */
#pragma once

#include "reasons.h"
#include "types.h"

/* A UDP packet over IPv4. Pointers are valid for the headers only; `payload` needs its own check
 * against `end`. */
struct shunt_packet {
	struct ethhdr *ethernet;
	struct iphdr *ip;
	struct udphdr *udp;
	void *payload;
	void *end;            /* of the frame */
	__u32 payload_length; /* by the UDP header; valid after shunt_check_headers() */
	bool fragment;
	bool has_ports; /* false for a fragment but the first: then udp and payload are not there */
};

static __always_inline bool shunt_parse_udp4(struct xdp_md *ctx, struct shunt_packet *packet)
{
	void *data = (void *)(long)ctx->data;

	packet->end = (void *)(long)ctx->data_end;
	packet->ethernet = data;
	packet->ip = data + sizeof(struct ethhdr);
	if ((void *)(packet->ip + 1) > packet->end)
		return false;
	if (packet->ethernet->h_proto != htons(ETH_P_IP) || packet->ip->version != 4 ||
	    packet->ip->ihl < 5 || packet->ip->protocol != IPPROTO_UDP)
		return false;

	packet->udp = (void *)packet->ip + packet->ip->ihl * 4;
	packet->payload = packet->udp + 1;
	if (packet->ip->frag_off & htons(0x1fff)) {
		__u64 none = 0;

		/* Or LLVM has frag_off tested again further on, where the verifier of Linux 6.1 has
		 * forgotten the answer. */
		asm volatile("" : "+r"(none));
		packet->fragment = true;
		packet->has_ports = none;
		return true;
	}
	packet->fragment = packet->ip->frag_off & htons(0x2000); /* more to come */
	packet->has_ports = true;
	return packet->payload <= packet->end;
}

/* Everything that both directions ask of the headers of a packet that is the relay's. */
static __always_inline enum shunt_reason shunt_check_headers(struct shunt_packet *packet)
{
	struct iphdr *ip = packet->ip;
	__u32 total = ntohs(ip->tot_len);
	__u32 udp_length;

	if (packet->fragment)
		return SHUNT_DROP_fragment;
	if (ip->ihl != 5)
		return SHUNT_DROP_ip_options;
	udp_length = ntohs(packet->udp->len);
	/* By the difference: to the verifiers of 6.1 and 6.12 what ntohs() gives has no bound, and is
	 * not to be added to a pointer. */
	if (total > packet->end - (void *)ip || udp_length < sizeof(struct udphdr) ||
	    total != sizeof(struct iphdr) + udp_length)
		return SHUNT_DROP_length;
	if (ip->ttl <= 1)
		return SHUNT_DROP_ttl;
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

/* A source that no client can have; an answer to it would go astray or loop (RFC 1122 3.2.1.3). */
static __always_inline bool shunt_is_martian4(__be32 address)
{
	__u32 first = ntohl(address) >> 24;

	return first == 0 || first == 127 || first >= 224;
}

static __always_inline bool shunt_has_address4(const struct shunt_address *address, __be32 ipv4)
{
	return address->word[3] == ipv4 && address->word[2] == htonl(0xffff);
}

/* The relay's own addresses: what was sent to such a client would come back in. */
static __always_inline bool shunt_is_own4(const struct shunt_settings *settings, __be32 address)
{
#pragma unroll
	for (int i = 0; i < SHUNT_VIPS; i++) {
		if (settings->vips[i].port &&
		    shunt_has_address4(&settings->vips[i].address, address))
			return true;
	}
	return shunt_has_address4(&settings->inside_address, address);
}
