/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Client → VIP, steps 3 to 5 of the walk: which slot a packet goes through, by what it is.
 */
#pragma once

#include "flow.h"

static __always_inline enum shunt_reason
binding_request(struct xdp_md *ctx, const struct shunt_settings *settings,
		struct shunt_packet *packet, struct shunt_stun *stun, struct shunt_client4 *client,
		__u32 now, __u32 *port)
{
	struct shunt_transceiver *transceiver;
	struct shunt_handshake *handshake;
	struct shunt_scratch *work;
	struct shunt_route *route;
	enum shunt_reason reason;
	struct shunt_slot *slot;
	__u32 zero = 0;

	work = scratch.lookup(&zero);
	if (!work)
		return SHUNT_DROP_stun_malformed;
	reason = shunt_parse_ufrag(ctx, packet, work);
	if (reason)
		return reason;
	route = routes.lookup(&work->ufrag);
	if (!route)
		return SHUNT_DROP_no_route;

	slot = shunt_own_flow(client, port);
	if (slot && slot->to_transceiver.route == route->id) {
		shunt_learn_next_hop(ctx, slot, packet);
		return SHUNT_OK;
	}
	/* With the same transceiver it is an ICE restart: through the same flow, which takes the
	 * route once the transceiver has answered. */
	if (slot && slot->to_transceiver.transceiver != route->transceiver)
		slot = NULL;
	if (!slot || slot->to_transceiver.next_route != route->id) {
		transceiver = transceivers.lookup(&route->transceiver);
		if (!transceiver || !transceiver->port)
			return SHUNT_DROP_transceiver_gone;
		if (!client->port || shunt_is_martian4(client->address) ||
		    shunt_is_own4(settings, client->address))
			return SHUNT_DROP_source;
		if (!shunt_claim(route))
			return SHUNT_DROP_route_busy;
		reason = shunt_route_slot(ctx, settings, packet, client, route, transceiver, slot,
					  work, now, port);
		shunt_release(route);
		if (reason)
			return reason;
	}

	slot = slots.lookup(port);
	handshake = handshakes.lookup(port);
	if (!slot || !handshake)
		return SHUNT_DROP_table_full;
	shunt_learn_next_hop(ctx, slot, packet);
	shunt_remember_request(handshake, &stun->transaction);
	return SHUNT_OK;
}

static __always_inline enum shunt_reason
binding_response(struct shunt_stun *stun, struct shunt_client4 *client, __u32 now, __u32 *port)
{
	struct shunt_slot *slot, *flow;
	__u32 flow_port = 0;
	__u32 *found;

	found = checks.lookup(&stun->transaction);
	if (!found)
		return SHUNT_DROP_unexpected_response;
	*port = *found;
	slot = slots.lookup(port);
	if (!slot || !shunt_is_live(slot) || !shunt_is_client(slot, client))
		return SHUNT_DROP_unexpected_response;

	/* Only a success proves anything: a client also answers, with an error, the checks of a
	 * stranger's session that somebody aimed at it. */
	if (stun->type != htons(SHUNT_STUN_SUCCESS))
		return SHUNT_OK;
	slot->to_client.proven = 1;
	if (slot->to_transceiver.state == SHUNT_PENDING) {
		flow = shunt_own_flow(client, &flow_port);
		shunt_establish(client, slot, *port, flow, now);
	}
	return SHUNT_OK;
}

static __always_inline enum shunt_reason established_flow(struct shunt_client4 *client, __u32 *port)
{
	return shunt_established(client, port) ? SHUNT_OK : SHUNT_DROP_no_flow;
}

static __always_inline enum shunt_reason
client_slot(struct xdp_md *ctx, const struct shunt_settings *settings, struct shunt_packet *packet,
	    struct shunt_client4 *client, __u32 now, __u32 *port)
{
	struct shunt_stun *stun;

	switch (shunt_classify(packet)) {
	case SHUNT_CLASS_MEDIA:
		return established_flow(client, port);
	case SHUNT_CLASS_STUN:
		break;
	default:
		return SHUNT_DROP_class;
	}
	stun = shunt_parse_stun(packet);
	if (!stun)
		return SHUNT_DROP_stun_malformed;
	if (stun->type == htons(SHUNT_STUN_REQUEST))
		return binding_request(ctx, settings, packet, stun, client, now, port);
	if (stun->type == htons(SHUNT_STUN_SUCCESS) || stun->type == htons(SHUNT_STUN_ERROR))
		return binding_response(stun, client, now, port);
	return established_flow(client, port);
}
