/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Transceiver → inside address:port: whether a packet may go back through its slot, and what a
 * transceiver's STUN does to the slot.
 */
#pragma once

#include "forward.h"
#include "handshake.h"

/* Nobody is to be flooded by a request in their name (RFC 8445 19.5.1): 3 times what came from the
 * client, until the client has proven that it is there. */
static __always_inline bool shunt_is_amplification(const struct shunt_to_client *slot, __u32 index,
						   __u32 length)
{
	struct shunt_to_transceiver *in;

	if (slot->proven)
		return false;
	in = slots_in.lookup(&index);
	return !in || slot->bytes + length > 3 * in->bytes;
}

/* Whether the packet may go through the slot that it is for. */
static __always_inline enum shunt_reason shunt_check_return(const struct shunt_packet *packet,
							    const struct shunt_to_client *slot)
{
	__u32 number = slot->transceiver;
	struct shunt_transceiver *transceiver;

	if (slot->state == SHUNT_FREE)
		return SHUNT_DROP_slot_free;
	if (slot->state == SHUNT_CLOSING)
		return SHUNT_DROP_slot_closing;
	transceiver = transceivers.lookup(&number);
	if (!transceiver || !transceiver->port)
		return SHUNT_DROP_transceiver_gone;
	if (!shunt_same_address(&transceiver->address, &packet->source) ||
	    transceiver->port != packet->udp->source ||
	    (packet->ipv6 && shunt_is_ipv4(&packet->source)))
		return SHUNT_DROP_wrong_transceiver;
	if (slot->state != SHUNT_ESTABLISHED && shunt_classify(packet) != SHUNT_CLASS_STUN)
		return SHUNT_DROP_not_established;
	return SHUNT_OK;
}

/* A transceiver's STUN moves its slot on: its answer to the client, or its own check. */
static __always_inline void
shunt_follow_transceiver(struct shunt_settings *settings, const struct shunt_packet *packet,
			 struct shunt_slot *slot, struct shunt_handshake *handshake,
			 struct shunt_scratch *work, __u32 generation, __u32 index)
{
	struct shunt_stun *stun = shunt_parse_stun(packet);
	struct shunt_client client = {};
	struct shunt_to_transceiver *flow;
	__u32 flow_index = 0;
	bool requested;

	if (!stun)
		return;
	if (stun->type == htons(SHUNT_STUN_REQUEST)) {
		shunt_remember_check(handshake, &stun->transaction,
				     slot->in->state == SHUNT_PENDING, index);
		return;
	}
	if (stun->type != htons(SHUNT_STUN_SUCCESS))
		return;
	requested = shunt_is_requested(handshake, &stun->transaction);
	shunt_take_hop(slot, handshake, &stun->transaction);
	if (!requested)
		return;
	if (slot->in->state == SHUNT_ESTABLISHED) {
		shunt_take_next_route(slot, handshake);
		return;
	}
	client.address = slot->out->client;
	client.port = slot->out->client_port;
	client.vip = slot->out->vip;
	flow = shunt_own_flow(settings, &client, &flow_index);
	/* A flow in use gives way only when the client itself has answered the transceiver:
	 * anybody with a session of their own can have a request sent in a stranger's name. */
	if (!flow || shunt_is_idle(flow, shunt_now(settings)))
		shunt_establish(settings, work, &client, slot, handshake, generation, index, flow,
				flow_index);
}
