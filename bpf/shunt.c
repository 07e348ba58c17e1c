// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The relay: the walk of one packet.
 *
 *   client ──▶ VIP ──▶ [slot] ──▶ inside address:slot ──▶ transceiver, and back
 *
 * A first packet, a STUN Binding Request, is steered by the ufrag that its USERNAME names; all
 * else follows the flow that such requests have established. Both directions and every interface
 * run this one program; what it does not recognise as the relay's it leaves to the kernel.
 *
 * Each step answers with a reason to drop, or SHUNT_OK. Everything that can fail comes before the
 * first byte of the packet is changed.
 */
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>

#include "reasons.h"
#include "types.h"
#include "maps.h"
#include "packet.h"
#include "stun.h"
#include "nat.h"
#include "flow.h"

static __always_inline void shunt_count(__u32 direction, __u64 bytes)
{
	struct shunt_traffic *count = traffic.lookup(&direction);

	if (count) {
		count->packets++;
		count->bytes += bytes;
	}
}

static __always_inline int shunt_pass(struct xdp_md *ctx)
{
	shunt_count(SHUNT_PASSED, ctx->data_end - ctx->data);
	return XDP_PASS;
}

static __always_inline int shunt_drop(__u32 reason)
{
	u64 *count = drops.lookup(&reason);

	if (count)
		(*count)++;
	return XDP_DROP;
}

static __always_inline int shunt_send(struct xdp_md *ctx, __u32 ifindex)
{
	return ifindex == ctx->ingress_ifindex ? XDP_TX : bpf_redirect(ifindex, 0);
}

/* Client → VIP, steps 3 to 5: which slot a packet goes through, by what it is. */

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

	slot = shunt_established(client, port);
	if (slot && slot->to_transceiver.route == route->id) {
		shunt_learn_next_hop(ctx, slot, packet);
		return SHUNT_OK;
	}
	if (slot && slot->to_transceiver.transceiver == route->transceiver) {
		/* An ICE restart: the same flow, and the route once the transceiver agrees. */
		slot->to_transceiver.next_route = route->id;
	} else {
		transceiver = transceivers.lookup(&route->transceiver);
		if (!transceiver || !transceiver->port)
			return SHUNT_DROP_transceiver_gone;
		if (shunt_is_martian4(client->address) || !client->port ||
		    client->address == packet->ip->daddr ||
		    shunt_has_address4(&settings->inside_address, client->address))
			return SHUNT_DROP_source;
		if (!shunt_claim(route))
			return SHUNT_DROP_route_busy;
		reason = shunt_route_slot(ctx, settings, packet, client, route, transceiver, work,
					  now, port);
		shunt_release(route);
		if (reason)
			return reason;
	}

	handshake = handshakes.lookup(port);
	if (handshake)
		shunt_remember_request(handshake, &stun->transaction);
	return SHUNT_OK;
}

static __always_inline enum shunt_reason binding_response(struct shunt_stun *stun,
							  struct shunt_client4 *client, __u32 now,
							  __u32 *port)
{
	struct shunt_slot *slot, *flow;
	__u32 flow_port = 0;
	__u32 *found;

	found = checks.lookup(&stun->transaction);
	if (!found)
		return SHUNT_DROP_unexpected_response;
	*port = *found;
	slot = slots.lookup(port);
	if (!slot || !shunt_is_client(slot, client))
		return SHUNT_DROP_unexpected_response;

	/* Only a success proves anything: a client also answers, with an error, the checks of a
	 * stranger's session that somebody aimed at it. */
	if (stun->type != htons(SHUNT_STUN_SUCCESS))
		return SHUNT_OK;
	slot->to_client.proven = 1;
	if (slot->to_transceiver.state == SHUNT_PENDING) {
		flow = shunt_established(client, &flow_port);
		shunt_establish(client, slot, *port, flow, now);
	}
	return SHUNT_OK;
}

static __always_inline enum shunt_reason established_flow(struct shunt_client4 *client, __u32 *port)
{
	return shunt_established(client, port) ? SHUNT_OK : SHUNT_DROP_no_flow;
}

static __always_inline enum shunt_reason client_slot(struct xdp_md *ctx,
						     const struct shunt_settings *settings,
						     struct shunt_packet *packet,
						     struct shunt_client4 *client, __u32 now,
						     __u32 *port)
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

static __always_inline int from_client(struct xdp_md *ctx, const struct shunt_settings *settings,
				       struct shunt_packet *packet, __u32 vip)
{
	struct shunt_client4 client = {};
	struct shunt_transceiver *transceiver;
	struct shunt_rewrite rewrite = {};
	enum shunt_reason reason;
	struct shunt_slot *slot;
	__be16 checksum = 0;
	__u32 port = 0;
	__u32 now;
	__u32 bytes;

	reason = shunt_check_headers(packet);
	if (reason)
		return shunt_drop(reason);
	client.address = packet->ip->saddr;
	client.port = packet->udp->source;
	client.vip = vip;
	now = shunt_now();
	reason = client_slot(ctx, settings, packet, &client, now, &port);
	if (reason)
		return shunt_drop(reason);

	slot = slots.lookup(&port);
	if (!slot)
		return shunt_drop(SHUNT_DROP_no_flow);
	transceiver = transceivers.lookup(&slot->to_transceiver.transceiver);
	if (!transceiver || !transceiver->port)
		return shunt_drop(SHUNT_DROP_transceiver_gone);
	if (!transceiver->resolved)
		return shunt_drop(SHUNT_DROP_neighbour);
	reason = shunt_whole_checksum(packet, &checksum);
	if (reason)
		return shunt_drop(reason);

	bytes = ntohs(packet->ip->tot_len);
	slot->to_transceiver.packets++;
	slot->to_transceiver.bytes += bytes;
	if (slot->to_transceiver.seen != now)
		slot->to_transceiver.seen = now;
	shunt_count(SHUNT_TO_TRANSCEIVER, bytes);

	rewrite.source = settings->inside_address.word[3];
	rewrite.source_port = htons(port);
	rewrite.destination = transceiver->address.word[3];
	rewrite.destination_port = transceiver->port;
	rewrite.ip_delta = slot->to_transceiver.ip_delta;
	rewrite.udp_delta = slot->to_transceiver.udp_delta;
	rewrite.mac = transceiver->mac;
	rewrite.source_mac = transceiver->source_mac;
	shunt_rewrite(packet, checksum, &rewrite);
	return shunt_send(ctx, transceiver->ifindex);
}

/* Transceiver → inside address:port. */

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
		if (slot->to_transceiver.next_route) {
			slot->to_transceiver.route = slot->to_transceiver.next_route;
			slot->to_transceiver.next_route = 0;
		}
		return;
	}
	client.address = slot->to_client.client.word[3];
	client.port = slot->to_client.client_port;
	client.vip = slot->to_client.vip;
	now = shunt_now();
	flow = shunt_established(&client, &flow_port);
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

static __always_inline enum shunt_reason
transceiver_slot(struct xdp_md *ctx, const struct shunt_settings *settings,
		 struct shunt_packet *packet, struct shunt_slot *slot, __u32 port)
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

static __always_inline int from_transceiver(struct xdp_md *ctx,
					    const struct shunt_settings *settings,
					    struct shunt_packet *packet)
{
	__u32 port = ntohs(packet->udp->dest);
	struct shunt_rewrite rewrite = {};
	const struct shunt_vip *vip;
	enum shunt_reason reason;
	struct shunt_slot *slot;
	__be16 checksum = 0;
	__u32 bytes;

	slot = slots.lookup(&port);
	if (!slot)
		return shunt_drop(SHUNT_DROP_slot_free);
	reason = transceiver_slot(ctx, settings, packet, slot, port);
	if (reason)
		return shunt_drop(reason);
	reason = shunt_whole_checksum(packet, &checksum);
	if (reason)
		return shunt_drop(reason);
	if (shunt_classify(packet) == SHUNT_CLASS_STUN)
		transceiver_stun(packet, slot, port);

	bytes = ntohs(packet->ip->tot_len);
	slot->to_client.packets++;
	slot->to_client.bytes += bytes;
	shunt_count(SHUNT_TO_CLIENT, bytes);

	vip = &settings->vips[slot->to_client.vip & (SHUNT_VIPS - 1)];
	rewrite.source = vip->address.word[3];
	rewrite.source_port = vip->port;
	rewrite.destination = slot->to_client.client.word[3];
	rewrite.destination_port = slot->to_client.client_port;
	rewrite.ip_delta = slot->to_client.ip_delta;
	rewrite.udp_delta = slot->to_client.udp_delta;
	rewrite.mac = slot->to_client.mac;
	rewrite.source_mac = slot->to_client.source_mac;
	shunt_rewrite(packet, checksum, &rewrite);
	return shunt_send(ctx, slot->to_client.ifindex);
}

/* The VIP's index that the packet is for, or SHUNT_VIPS. Of a fragment without ports the address
 * decides: it can be nobody's to reassemble if its first part is dropped here. */
static __always_inline __u32 find_vip(const struct shunt_settings *settings,
				      const struct shunt_packet *packet)
{
#pragma unroll
	for (int i = 0; i < SHUNT_VIPS; i++) {
		const struct shunt_vip *vip = &settings->vips[i];

		if (vip->port && shunt_has_address4(&vip->address, packet->ip->daddr) &&
		    (!packet->has_ports || vip->port == packet->udp->dest))
			return i;
	}
	return SHUNT_VIPS;
}

static __always_inline bool is_for_slot(const struct shunt_settings *settings,
					const struct shunt_packet *packet)
{
	__u32 port;

	if (!packet->has_ports || !shunt_has_address4(&settings->inside_address, packet->ip->daddr))
		return false;
	port = ntohs(packet->udp->dest);
	return port >= settings->first_port && port <= settings->last_port;
}

int shunt(struct xdp_md *ctx)
{
	struct shunt_packet packet = {};
	struct shunt_settings *current;
	__u32 zero = 0;
	__u32 vip;

	if (!shunt_parse_udp4(ctx, &packet))
		return shunt_pass(ctx);
	current = settings.lookup(&zero);
	if (!current)
		return shunt_pass(ctx);

	vip = find_vip(current, &packet);
	if (vip < SHUNT_VIPS)
		return from_client(ctx, current, &packet, vip);
	if (is_for_slot(current, &packet))
		return from_transceiver(ctx, current, &packet);
	return shunt_pass(ctx);
}
