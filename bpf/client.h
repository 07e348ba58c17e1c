/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Client → VIP, steps 3 and 4 of the walk: which slot a client's STUN goes through, and what it does to
 * that slot.
 */
#pragma once

#include "handshake.h"

/* The relay's own addresses: what was sent to such a client would come back in. */
static __always_inline bool shunt_is_own(struct shunt_settings *settings,
					 const struct shunt_address *address)
{
	__u32 slot;

	return shunt_is_vip_address(settings, address) ||
	       shunt_find_inside(settings, address, &slot);
}

/* Whether a slot may be made for where the packet says that it comes from. */
static __always_inline enum shunt_reason shunt_check_source(struct shunt_settings *settings,
							    const struct shunt_packet *packet)
{
	if (shunt_is_link_multicast(packet))
		return SHUNT_DROP_link_address;
	if (!packet->udp->source || shunt_is_martian(packet) ||
	    shunt_is_own(settings, &packet->source))
		return SHUNT_DROP_source;
	return SHUNT_OK;
}

static __always_inline enum shunt_reason
binding_request(struct xdp_md *ctx, struct shunt_settings *settings, struct shunt_packet *packet,
		struct shunt_stun *stun, const struct shunt_client *client,
		struct shunt_scratch *work, __u32 *index)
{
	struct shunt_transceiver *transceiver;
	struct shunt_handshake *handshake;
	struct shunt_route *route;
	struct shunt_to_transceiver *flow;
	enum shunt_reason reason;
	struct shunt_slot slot;

	reason = shunt_parse_ufrag(ctx, packet, work);
	if (reason)
		return reason;
	route = routes.lookup(&work->ufrag);
	if (!route)
		return SHUNT_DROP_no_route;

	flow = shunt_own_flow(settings, client, index);
	handshake = handshakes.lookup(index);
	if (flow && (!handshake || !shunt_get_slot(index, &slot)))
		return SHUNT_DROP_no_flow;
	if (flow && slot.book->route == route->id) {
		shunt_notice_hop(ctx, &slot, handshake, packet, &stun->transaction);
		return SHUNT_OK;
	}
	/* With the same transceiver it is an ICE restart: through the same flow, which takes the
	 * route once the transceiver has answered. */
	if (flow && flow->transceiver != route->transceiver)
		flow = NULL;
	if (!flow || slot.book->next_route != route->id) {
		transceiver = transceivers.lookup(&route->transceiver);
		if (!transceiver || !transceiver->port)
			return SHUNT_DROP_transceiver_gone;
		reason = shunt_check_source(settings, packet);
		if (reason)
			return reason;
		if (!shunt_claim(route))
			return SHUNT_DROP_route_busy;
		reason = shunt_route_slot(ctx, settings, packet, client, route, transceiver, flow,
					  work, shunt_now(settings), index);
		shunt_release(route);
		if (reason)
			return reason;
	}

	handshake = handshakes.lookup(index);
	if (!shunt_get_slot(index, &slot) || !handshake)
		return SHUNT_DROP_table_full;
	/* Not for a restart: who asks may be somebody else with a session on this transceiver. */
	if (!flow)
		shunt_notice_hop(ctx, &slot, handshake, packet, &stun->transaction);
	shunt_remember_request(handshake, &stun->transaction);
	return SHUNT_OK;
}

/* The client's slot through which the transceiver asked what this answers: its flow, or a pending
 * one. */
static __always_inline enum shunt_reason shunt_answered_slot(struct shunt_settings *settings,
							     struct shunt_stun *stun,
							     const struct shunt_client *client,
							     __u32 *index)
{
	struct shunt_handshake *handshake;
	struct shunt_slot slot;
	__u32 *found;

	if (shunt_own_flow(settings, client, index)) {
		handshake = handshakes.lookup(index);
		if (handshake && shunt_is_checked(handshake, &stun->transaction))
			return SHUNT_OK;
	}
	found = checks.lookup(&stun->transaction);
	if (!found)
		return SHUNT_DROP_unexpected_response;
	*index = *found;
	handshake = handshakes.lookup(index);
	if (!shunt_get_slot(index, &slot) || !handshake || !shunt_is_live(slot.in) ||
	    !shunt_is_client(slot.out, client) || !shunt_is_checked(handshake, &stun->transaction))
		return SHUNT_DROP_unexpected_response;
	return SHUNT_OK;
}

static __always_inline enum shunt_reason
binding_response(struct xdp_md *ctx, struct shunt_settings *settings, struct shunt_packet *packet,
		 struct shunt_stun *stun, const struct shunt_client *client,
		 struct shunt_scratch *work, __u32 *index)
{
	struct shunt_handshake *handshake;
	struct shunt_to_transceiver *flow;
	enum shunt_reason reason;
	struct shunt_slot slot;
	__u32 flow_index = 0;
	__u32 generation;

	reason = shunt_answered_slot(settings, stun, client, index);
	if (reason)
		return reason;
	/* Only a success proves anything: a client also answers, with an error, the checks of a
	 * stranger's session that somebody aimed at it. */
	if (stun->type != htons(SHUNT_STUN_SUCCESS))
		return SHUNT_OK;
	handshake = handshakes.lookup(index);
	if (!shunt_get_slot(index, &slot) || !handshake)
		return SHUNT_DROP_unexpected_response;
	generation = *(volatile __u32 *)&handshake->generation;
	if (!shunt_is_live(slot.in) || !shunt_is_client(slot.out, client))
		return SHUNT_DROP_unexpected_response;
	slot.out->proven = 1;
	if (!shunt_came_by(ctx, packet, &slot.out->hop) && !shunt_is_link_multicast(packet))
		shunt_next_hop_back(ctx, packet, &slot.out->hop);
	if (slot.in->state == SHUNT_PENDING) {
		flow = shunt_own_flow(settings, client, &flow_index);
		shunt_establish(settings, work, client, &slot, handshake, generation, *index, flow,
				flow_index);
	}
	return SHUNT_OK;
}

/* The slot that the client's STUN goes through. */
static __always_inline enum shunt_reason
shunt_client_slot(struct xdp_md *ctx, struct shunt_settings *settings, struct shunt_packet *packet,
		  const struct shunt_client *client, struct shunt_scratch *work, __u32 *index)
{
	struct shunt_stun *stun = shunt_parse_stun(packet);

	if (!stun)
		return SHUNT_DROP_stun_malformed;
	if (stun->type == htons(SHUNT_STUN_REQUEST))
		return binding_request(ctx, settings, packet, stun, client, work, index);
	if (stun->type == htons(SHUNT_STUN_SUCCESS) || stun->type == htons(SHUNT_STUN_ERROR))
		return binding_response(ctx, settings, packet, stun, client, work, index);
	return shunt_own_flow(settings, client, index) ? SHUNT_OK : SHUNT_DROP_no_flow;
}
