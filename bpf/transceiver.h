/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Transceiver → inside address:port: whether a packet may go back through its slot, and what a
 * transceiver's STUN does to the slot.
 */
#pragma once

#include "flow.h"

/* A transceiver's STUN moves its slot on: its answer to the client, or its own check. */
static __always_inline void transceiver_stun(struct shunt_packet *packet, struct shunt_slot *slot,
					     __u32 port)
{
	struct shunt_stun *stun = shunt_parse_stun(packet);
	struct shunt_client4 client = {};
	struct shunt_handshake *handshake;
	struct shunt_slot *flow;
	__u32 flow_port = 0;
	__u32 now;

	handshake = handshakes.lookup(&port);
	if (!stun || !handshake)
		return;
	if (stun->type == htons(SHUNT_STUN_REQUEST)) {
		shunt_remember_check(handshake, &stun->transaction, port);
		return;
	}
	if (stun->type != htons(SHUNT_STUN_SUCCESS) ||
	    !shunt_is_requested(handshake, &stun->transaction))
		return;

	if (slot->to_transceiver.state == SHUNT_ESTABLISHED) {
		shunt_take_next_route(slot, handshake);
		return;
	}
	client.address = slot->to_client.client.word[3];
	client.port = slot->to_client.client_port;
	client.vip = slot->to_client.vip;
	now = shunt_now();
	flow = shunt_own_flow(&client, &flow_port);
	/* A flow in use gives way only when the client itself has answered the transceiver:
	 * anybody with a session of their own can have a request sent in a stranger's name. */
	if (!flow || shunt_is_idle(flow, now))
		shunt_establish(&client, slot, port, flow, now);
}

static __always_inline bool is_inside(struct xdp_md *ctx, const struct shunt_settings *settings)
{
	for (int i = 0; i < SHUNT_INTERFACES; i++) {
		if (settings->inside_interfaces[i] == ctx->ingress_ifindex)
			return true;
	}
	return false;
}

static __always_inline enum shunt_reason transceiver_slot(struct xdp_md *ctx,
							  const struct shunt_settings *settings,
							  struct shunt_packet *packet,
							  struct shunt_slot *slot)
{
	struct shunt_transceiver *transceiver;
	enum shunt_reason reason;
	enum shunt_class class;

	if (!is_inside(ctx, settings))
		return SHUNT_DROP_wrong_interface;
	reason = shunt_check_headers(packet);
	if (reason)
		return reason;
	if (slot->to_client.state == SHUNT_FREE)
		return SHUNT_DROP_slot_free;
	if (slot->to_client.state == SHUNT_CLOSING)
		return SHUNT_DROP_slot_closing;
	transceiver = transceivers.lookup(&slot->to_client.transceiver);
	if (!transceiver || !transceiver->port)
		return SHUNT_DROP_transceiver_gone;
	if (!shunt_has_address4(&transceiver->address, packet->ip->saddr) ||
	    transceiver->port != packet->udp->source)
		return SHUNT_DROP_wrong_transceiver;
	class = shunt_classify(packet);
	if (slot->to_client.state != SHUNT_ESTABLISHED && class != SHUNT_CLASS_STUN)
		return SHUNT_DROP_not_established;
	/* Nobody is to be flooded by a request in their name (RFC 8445 19.5.1). */
	if (!slot->to_client.proven &&
	    slot->to_client.bytes + ntohs(packet->ip->tot_len) > 3 * slot->to_transceiver.bytes)
		return SHUNT_DROP_amplification;
	return SHUNT_OK;
}
