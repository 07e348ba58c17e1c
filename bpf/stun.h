/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * As much of STUN (RFC 8489) as steering needs: the header, and the ufrag in USERNAME. Integrity
 * is the transceiver's to check: the relay knows no passwords.
 */
#pragma once

#include "maps.h"
#include "packet.h"

#define SHUNT_STUN_COOKIE 0x2112a442
#define SHUNT_STUN_REQUEST 0x0001 /* Binding, by class */
#define SHUNT_STUN_SUCCESS 0x0101
#define SHUNT_STUN_ERROR 0x0111
#define SHUNT_STUN_USERNAME 0x0006

/* USERNAME stands first in the requests of browsers, pion and aioice, fifth in libnice's. A walk
 * that is bounded keeps hostile attribute lists cheap. */
#define SHUNT_STUN_ATTRIBUTES 12

struct shunt_stun {
	__be16 type;
	__be16 length;
	__be32 cookie;
	struct shunt_transaction transaction;
};

struct shunt_stun_attribute {
	__be16 type;
	__be16 length;
};

/* The message's header, or NULL if it is not one that fills its datagram. */
static __always_inline struct shunt_stun *shunt_parse_stun(const struct shunt_packet *packet)
{
	struct shunt_stun *stun = packet->payload;

	if ((void *)(stun + 1) > packet->end || packet->payload_length < sizeof(*stun))
		return NULL;
	if (stun->cookie != htonl(SHUNT_STUN_COOKIE) || (stun->length & htons(3)) ||
	    packet->payload_length != sizeof(*stun) + ntohs(stun->length))
		return NULL;
	return stun;
}

/* Reads the server's ufrag, the part of USERNAME before the colon (RFC 8445 7.2.2), into the
 * scratch. */
static __always_inline enum shunt_reason
shunt_parse_ufrag(struct xdp_md *ctx, const struct shunt_packet *packet, struct shunt_scratch *work)
{
	const __u32 start = packet->payload - (void *)(long)ctx->data;
	struct shunt_stun_attribute *attribute;
	/* 64 bits, or it is a copy that is compared, and the verifier loses the bound. */
	__u64 offset = sizeof(struct shunt_stun);
	__u64 length = 0;

	work->offset = 0;
	for (int i = 0; i < SHUNT_STUN_ATTRIBUTES; i++) {
		if (offset > 1500 || offset + sizeof(*attribute) > packet->payload_length)
			return SHUNT_DROP_stun_username;
		attribute = packet->payload + offset;
		if ((void *)(attribute + 1) > packet->end)
			return SHUNT_DROP_stun_malformed;
		length = ntohs(attribute->length);
		offset += sizeof(*attribute);
		if (offset + length > packet->payload_length)
			return SHUNT_DROP_stun_malformed;
		if (attribute->type == htons(SHUNT_STUN_USERNAME)) {
			work->offset = offset;
			break;
		}
		offset += (length + 3) & ~3;
	}
	if (!work->offset || length < 2)
		return SHUNT_DROP_stun_username;
	/* Or LLVM makes one test of both bounds, of a number that the verifier cannot place. */
	asm volatile("" : "+r"(length));
	if (length > SHUNT_UFRAG_LENGTH + 1)
		length = SHUNT_UFRAG_LENGTH + 1;
	__builtin_memset(&work->ufrag, 0, sizeof(work->ufrag));
	if (bpf_xdp_load_bytes(ctx, start + work->offset, work->ufrag.text, length))
		return SHUNT_DROP_stun_malformed;

	work->ufrag.length = SHUNT_UFRAG_LENGTH + 1;
#pragma unroll
	for (int i = 0; i <= SHUNT_UFRAG_LENGTH; i++) {
		if (work->ufrag.length > SHUNT_UFRAG_LENGTH && work->ufrag.text[i] == ':')
			work->ufrag.length = i;
		if (work->ufrag.length <= SHUNT_UFRAG_LENGTH)
			work->ufrag.text[i] = 0;
	}
	if (work->ufrag.length > SHUNT_UFRAG_LENGTH) /* no colon, or longer than any route's */
		return SHUNT_DROP_stun_username;
	return SHUNT_OK;
}
