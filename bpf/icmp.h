/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * ICMP errors about relayed packets: sent on as if the relay itself had met the trouble, with the
 * quoted packet turned into the one that the receiver had sent (RFC 5508 4.2, RFC 7915 4.2 and 5.2).
 */
#pragma once

#include "reshape.h"
#include "transceiver.h"

struct shunt_icmp_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 rest;
	__be16 mtu; /* IPv4's; IPv6's is both halves */
};

#define SHUNT_ICMP4_UNREACHABLE 3
#define SHUNT_ICMP4_TIME_EXCEEDED 11
#define SHUNT_ICMP4_PARAMETER 12
#define SHUNT_ICMP4_TOO_BIG 4 /* a code */
#define SHUNT_ICMP6_UNREACHABLE 1
#define SHUNT_ICMP6_TOO_BIG 2
#define SHUNT_ICMP6_TIME_EXCEEDED 3
#define SHUNT_ICMP6_PARAMETER 4

/* No path narrower than this is believed in: a transceiver's kernel keeps one path MTU for an inside
 * address, and all its clients would share it. */
#define SHUNT_LEAST_MTU 1280
/* The longest ICMPv6 error, RFC 4443 2.4. */
#define SHUNT_LONGEST_ERROR6 1280

/* An error, and the packet that it is about. */
struct shunt_error {
	struct shunt_icmp_header *icmp;
	void *quoted;
	struct udphdr *quoted_udp;
	struct shunt_address quoted_source;
	struct shunt_address quoted_destination;
};

static __always_inline bool shunt_parse_error(const struct shunt_packet *packet,
					      struct shunt_error *error)
{
	struct shunt_icmp_header *icmp = packet->transport;

	error->icmp = icmp;
	error->quoted = icmp + 1;
	if (packet->ipv6) {
		const struct ipv6hdr *quoted = error->quoted;

		error->quoted_udp = (void *)(quoted + 1);
		if ((void *)(error->quoted_udp + 1) > packet->end)
			return false;
		error->quoted_source = shunt_address6(&quoted->saddr);
		error->quoted_destination = shunt_address6(&quoted->daddr);
		return icmp->type >= SHUNT_ICMP6_UNREACHABLE &&
		       icmp->type <= SHUNT_ICMP6_PARAMETER && quoted->version == 6 &&
		       quoted->nexthdr == IPPROTO_UDP;
	} else {
		const struct iphdr *quoted = error->quoted;

		error->quoted_udp = (void *)(quoted + 1);
		if ((void *)(error->quoted_udp + 1) > packet->end)
			return false;
		error->quoted_source = shunt_address4(quoted->saddr);
		error->quoted_destination = shunt_address4(quoted->daddr);
		return (icmp->type == SHUNT_ICMP4_UNREACHABLE ||
			icmp->type == SHUNT_ICMP4_TIME_EXCEEDED ||
			icmp->type == SHUNT_ICMP4_PARAMETER) &&
		       *(__u8 *)quoted == 0x45 && quoted->protocol == IPPROTO_UDP &&
		       !(quoted->frag_off & htons(0x1fff));
	}
}

/* What of a message changes: its own header, and the quoted IP and UDP headers. */
#define SHUNT_MESSAGE4                                                                             \
	(sizeof(struct shunt_icmp_header) + sizeof(struct iphdr) + sizeof(struct udphdr))
#define SHUNT_MESSAGE6                                                                             \
	(sizeof(struct shunt_icmp_header) + sizeof(struct ipv6hdr) + sizeof(struct udphdr))

static __always_inline __u32 shunt_message_size(bool ipv6)
{
	return ipv6 ? SHUNT_MESSAGE6 : SHUNT_MESSAGE4;
}

static __always_inline bool shunt_is_too_big(const struct shunt_icmp_header *icmp, bool ipv6)
{
	if (ipv6)
		return icmp->type == SHUNT_ICMP6_TOO_BIG;
	return icmp->type == SHUNT_ICMP4_UNREACHABLE && icmp->code == SHUNT_ICMP4_TOO_BIG;
}

/* Type and code in the other family; false: they have no counterpart there. */
static __always_inline bool shunt_icmp_to_ipv6(const struct shunt_icmp_header *icmp,
					       struct shunt_icmp_header *to)
{
	to->code = icmp->code;
	if (icmp->type == SHUNT_ICMP4_TIME_EXCEEDED) {
		to->type = SHUNT_ICMP6_TIME_EXCEEDED;
		return true;
	}
	if (icmp->type != SHUNT_ICMP4_UNREACHABLE)
		return false;
	to->type = SHUNT_ICMP6_UNREACHABLE;
	switch (icmp->code) {
	case 3: /* port */
		to->code = 4;
		return true;
	case SHUNT_ICMP4_TOO_BIG:
		to->type = SHUNT_ICMP6_TOO_BIG;
		to->code = 0;
		return true;
	case 9: /* prohibited: the network, the host, by a filter, by precedence */
	case 10:
	case 13:
	case 15:
		to->code = 1;
		return true;
	case 0: /* network, host, source route failed, unknown, isolated, for this service */
	case 1:
	case 5:
	case 6:
	case 7:
	case 8:
	case 11:
	case 12:
		to->code = 0;
		return true;
	default:
		return false;
	}
}

static __always_inline bool shunt_icmp_to_ipv4(const struct shunt_icmp_header *icmp,
					       struct shunt_icmp_header *to)
{
	switch (icmp->type) {
	case SHUNT_ICMP6_TIME_EXCEEDED:
		to->type = SHUNT_ICMP4_TIME_EXCEEDED;
		to->code = icmp->code;
		return true;
	case SHUNT_ICMP6_TOO_BIG:
		to->type = SHUNT_ICMP4_UNREACHABLE;
		to->code = SHUNT_ICMP4_TOO_BIG;
		return true;
	case SHUNT_ICMP6_UNREACHABLE:
		to->type = SHUNT_ICMP4_UNREACHABLE;
		to->code = icmp->code == 4 ? 3 : icmp->code == 1 ? 10 : 1;
		return icmp->code <= 4;
	default:
		return false;
	}
}

/* The MTU that the receiver is told. */
static __always_inline __u32 shunt_told_mtu(const struct shunt_icmp_header *icmp, bool from_ipv6,
					    bool to_ipv6)
{
	__u32 mtu = ntohs(icmp->mtu);

	if (from_ipv6)
		mtu += (__u32)ntohs(icmp->rest) << 16;
	if (mtu < SHUNT_LEAST_MTU)
		mtu = SHUNT_LEAST_MTU;
	if (mtu > 65535)
		mtu = 65535;
	if (from_ipv6 == to_ipv6)
		return mtu;
	return to_ipv6 ? mtu + SHUNT_FAMILIES_DIFFER : mtu - SHUNT_FAMILIES_DIFFER;
}

static __always_inline bool shunt_fill_icmp(const struct shunt_icmp_header *icmp, bool from_ipv6,
					    bool to_ipv6, struct shunt_icmp_header *to)
{
	bool same = from_ipv6 == to_ipv6;
	__u32 mtu;

	if (same) {
		to->type = icmp->type;
		to->code = icmp->code;
	} else if (!(to_ipv6 ? shunt_icmp_to_ipv6(icmp, to) : shunt_icmp_to_ipv4(icmp, to))) {
		return false;
	}
	to->checksum = 0;
	to->rest = same ? icmp->rest : 0;
	to->mtu = same ? icmp->mtu : 0;
	if (shunt_is_too_big(icmp, from_ipv6)) {
		mtu = shunt_told_mtu(icmp, from_ipv6, to_ipv6);
		to->mtu = htons(mtu);
		if (to_ipv6)
			to->rest = htons(mtu >> 16);
	}
	return true;
}

/* The quoted IP header as the receiver had sent it: from `way`'s destination to its source. */
static __always_inline void shunt_fill_quoted_ip(const struct shunt_error *error, bool from_ipv6,
						 const struct shunt_way *way, void *to)
{
	const struct ipv6hdr *quoted6 = error->quoted;
	const struct iphdr *quoted4 = error->quoted;
	struct ipv6hdr *to6 = to;
	struct iphdr *to4 = to;

	if (way->ipv6) {
		if (from_ipv6) {
			__builtin_memcpy(to6, quoted6, 8);
		} else {
			*(__be32 *)to6 = htonl(0x60000000 | (__u32)quoted4->tos << 20);
			to6->payload_len = htons(ntohs(quoted4->tot_len) - sizeof(*quoted4));
			to6->nexthdr = IPPROTO_UDP;
			to6->hop_limit = quoted4->ttl;
		}
		shunt_write_address6(&to6->saddr, &way->destination);
		shunt_write_address6(&to6->daddr, &way->source);
		return;
	}
	if (from_ipv6) {
		*(__u8 *)to4 = 0x45;
		to4->tos = ntohl(*(__be32 *)quoted6) >> 20;
		to4->tot_len = htons(ntohs(quoted6->payload_len) + sizeof(*to4));
		to4->id = 0;
		to4->frag_off = htons(0x4000);
		to4->ttl = quoted6->hop_limit;
		to4->protocol = IPPROTO_UDP;
		to4->check = 0;
	} else {
		__builtin_memcpy(to4, quoted4, 12);
	}
	to4->saddr = shunt_ipv4(&way->destination);
	to4->daddr = shunt_ipv4(&way->source);
	if (from_ipv6)
		to4->check = shunt_csum_ipv4(to4);
	else
		to4->check = shunt_csum_add(quoted4->check,
					    shunt_csum_delta((__u64)quoted4->saddr + quoted4->daddr,
							     (__u64)to4->saddr + to4->daddr));
}

/* `back` is what the relay added to the checksum when it sent on the packet that is quoted. */
static __always_inline void shunt_fill_quoted_udp(const struct shunt_error *error,
						  const struct shunt_way *way, __u16 back,
						  struct udphdr *to)
{
	to->source = way->destination_port;
	to->dest = way->source_port;
	to->len = error->quoted_udp->len;
	to->check = shunt_csum_udp(error->quoted_udp->check, ~back);
}

static __always_inline __u64 shunt_sum_message(void *message, bool ipv6)
{
	__u64 sum;

	if (ipv6)
		sum = (__u32)bpf_csum_diff(NULL, 0, message, SHUNT_MESSAGE6, 0);
	else
		sum = (__u32)bpf_csum_diff(NULL, 0, message, SHUNT_MESSAGE4, 0);
	return sum;
}

/* What ICMPv6 sums besides the message (RFC 4443 2.3). */
static __always_inline __u64 shunt_icmp_pseudo_header(const struct shunt_address *source,
						      const struct shunt_address *destination,
						      __u32 length)
{
	return shunt_csum_address(source) + shunt_csum_address(destination) + htonl(length) +
	       htonl(IPPROTO_ICMPV6);
}

/* Writes the new head of the message into the scratch. False: it cannot be said in that family. */
static __always_inline bool shunt_fill_message(const struct shunt_packet *packet,
					       const struct shunt_error *error,
					       const struct shunt_way *way, __u16 back,
					       __u32 out_length, struct shunt_scratch *work)
{
	struct shunt_icmp_header *icmp = (void *)work->message;
	void *ip = icmp + 1;
	struct udphdr *udp = way->ipv6 ? ip + sizeof(struct ipv6hdr) : ip + sizeof(struct iphdr);
	__u64 before, after;

	if (!shunt_fill_icmp(error->icmp, packet->ipv6, way->ipv6, icmp))
		return false;
	shunt_fill_quoted_ip(error, packet->ipv6, way, ip);
	shunt_fill_quoted_udp(error, way, back, udp);

	before = shunt_sum_message(error->icmp, packet->ipv6) + (__u16)~error->icmp->checksum;
	if (packet->ipv6)
		before += shunt_icmp_pseudo_header(&packet->source, &packet->destination,
						   packet->length - sizeof(struct ipv6hdr));
	after = shunt_sum_message(work->message, way->ipv6);
	if (way->ipv6)
		after += shunt_icmp_pseudo_header(&way->source, &way->destination,
						  out_length - sizeof(struct ipv6hdr));
	icmp->checksum = shunt_csum_add(error->icmp->checksum, shunt_csum_delta(before, after));
	return true;
}

/* Sends the error on. */
static __always_inline int shunt_forward_error(struct xdp_md *ctx, struct shunt_settings *settings,
					       struct shunt_packet *packet,
					       const struct shunt_error *error,
					       struct shunt_way *way, struct shunt_slot *slot,
					       __u32 index, __u16 back, __u32 direction,
					       struct shunt_scratch *work)
{
	const bool translate = way->ipv6 != packet->ipv6;
	const __u8 tos = shunt_tos(packet);
	const __u8 ttl = shunt_ttl(packet);
	__u32 length = packet->length;
	int grow = shunt_grow(packet, way);
	__u64 *to;
	void *ip;

	if (translate) {
		/* The header of the error, and that of the packet it quotes. */
		length += way->ipv6 ? 2 * SHUNT_FAMILIES_DIFFER : -2 * SHUNT_FAMILIES_DIFFER;
		grow += way->ipv6 ? SHUNT_FAMILIES_DIFFER : -SHUNT_FAMILIES_DIFFER;
	}
	if ((way->hop->mtu && length > way->hop->mtu) ||
	    (way->ipv6 && length > SHUNT_LONGEST_ERROR6))
		return shunt_drop(SHUNT_DROP_mtu);
	if (direction == SHUNT_TO_CLIENT && shunt_is_amplification(slot->out, index, length))
		return shunt_drop(SHUNT_DROP_amplification);
	if (!shunt_fill_message(packet, error, way, back, length, work))
		return shunt_drop(SHUNT_DROP_icmp);
	/* The error need not come from the flow's other end, so this delta is its own. */
	way->ip_delta =
		shunt_csum_delta((__u64)shunt_ipv4(&packet->source) +
					 shunt_ipv4(&packet->destination) + htons(0x0100),
				 (__u64)shunt_ipv4(&way->source) + shunt_ipv4(&way->destination));

	ip = shunt_new_head(ctx, way->hop, grow, way->ipv6);
	if (!ip)
		return shunt_drop(SHUNT_DROP_headroom);
	to = way->ipv6 ? ip + sizeof(struct ipv6hdr) : ip + sizeof(struct iphdr);
	if ((void *)to + shunt_message_size(way->ipv6) > (void *)(long)ctx->data_end)
		return shunt_drop(SHUNT_DROP_headroom);
	if (direction == SHUNT_TO_CLIENT)
		shunt_account_out(slot->out, length);
	else
		shunt_count(SHUNT_TO_TRANSCEIVER, packet->length);
	if (!translate)
		shunt_rewrite_ip(ip, way);
	else if (way->ipv6)
		shunt_fill_ipv6(ip, tos, length - sizeof(struct ipv6hdr), ttl - 1, IPPROTO_ICMPV6,
				way);
	else
		shunt_fill_ipv4(ip, tos, length, ttl - 1, IPPROTO_ICMP, way);
	if (way->ipv6)
		__builtin_memcpy(to, work->message, SHUNT_MESSAGE6);
	else
		__builtin_memcpy(to, work->message, SHUNT_MESSAGE4);
	return shunt_send(ctx, settings, way->hop->ifindex);
}

/* The error comes from the client's side: for the transceiver. */
static __always_inline int shunt_error_in(struct xdp_md *ctx, struct shunt_settings *settings,
					  struct shunt_packet *packet,
					  const struct shunt_error *error, __u32 vip,
					  struct shunt_scratch *work)
{
	struct shunt_client client = {
		.address = error->quoted_destination,
		.port = error->quoted_udp->dest,
		.vip = vip,
	};
	struct shunt_way way = {};
	enum shunt_reason reason;
	struct shunt_slot slot;
	__u32 index = 0;

	if (!shunt_own_flow(settings, &client, &index) || !shunt_get_slot(&index, &slot))
		return shunt_drop(SHUNT_DROP_icmp);
	reason = shunt_way_in(settings, slot.in, index, &way);
	if (reason)
		return shunt_drop(reason);
	return shunt_forward_error(ctx, settings, packet, error, &way, &slot, index,
				   slot.out->udp_delta, SHUNT_TO_TRANSCEIVER, work);
}

/* The error comes from the inside: for the client. */
static __always_inline int shunt_error_out(struct xdp_md *ctx, struct shunt_settings *settings,
					   struct shunt_packet *packet,
					   const struct shunt_error *error, __u32 index,
					   struct shunt_scratch *work)
{
	struct shunt_transceiver *transceiver;
	struct shunt_way way = {};
	struct shunt_slot slot;
	__u32 number;

	if (!shunt_get_slot(&index, &slot) || slot.out->state != SHUNT_ESTABLISHED)
		return shunt_drop(SHUNT_DROP_icmp);
	number = slot.out->transceiver;
	transceiver = transceivers.lookup(&number);
	if (!transceiver || transceiver->port != error->quoted_udp->dest ||
	    !shunt_same_address(&transceiver->address, &error->quoted_destination) ||
	    packet->ipv6 == shunt_is_ipv4(&transceiver->address))
		return shunt_drop(SHUNT_DROP_icmp);
	shunt_way_out(settings, slot.out, &way);
	return shunt_forward_error(ctx, settings, packet, error, &way, &slot, index,
				   slot.in->udp_delta, SHUNT_TO_CLIENT, work);
}
