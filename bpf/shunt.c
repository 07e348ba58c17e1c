// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The relay: the walk of one packet.
 *
 *   client ──▶ VIP ──▶ [slot] ──▶ inside address:port ──▶ transceiver, and back
 *
 * A first packet, a STUN Binding Request, is steered by the ufrag that its USERNAME names; all
 * else follows the flow that such requests have established. Both directions and every interface
 * run this one program; what it does not recognise as the relay's it leaves to the kernel.
 *
 * Each step answers with a reason to drop, or SHUNT_OK. Everything that can fail comes before the
 * first byte of the packet is changed. Media goes the whole way in shunt(); what is rarer goes on
 * in one of the parts below it.
 */
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include "packet.h"
#include "addresses.h"
#include "flows.h"
#include "client.h"
#include "transceiver.h"
#include "forward.h"
#include "reshape.h"
#include "icmp.h"
#include "too_big.h"
#include "extended.h"
#include "verdict.h"

static __always_inline int from_client(struct xdp_md *ctx, struct shunt_settings *settings,
				       struct shunt_packet *packet, __u32 vip)
{
	struct shunt_client client = {};
	enum shunt_reason reason;
	struct shunt_slot slot;
	struct shunt_way way;
	__u32 index = 0;

	reason = shunt_check_headers(packet);
	if (reason)
		return shunt_drop(reason);
	switch (shunt_classify(packet)) {
	case SHUNT_CLASS_MEDIA:
		break;
	case SHUNT_CLASS_STUN:
		return shunt_continue(ctx, SHUNT_PART_client_stun);
	default:
		return shunt_drop(SHUNT_DROP_class);
	}
	client.address = packet->source;
	client.port = packet->udp->source;
	client.vip = vip;
	slot.in = shunt_find_flow(settings, &client, &index);
	if (!slot.in)
		return shunt_drop(SHUNT_DROP_no_flow);
	reason = shunt_way_in(settings, slot.in, index, &way);
	if (reason)
		return shunt_drop(reason);
	return shunt_forward(ctx, settings, packet, &way, &slot, index, 0, SHUNT_TO_TRANSCEIVER);
}

static __always_inline int from_transceiver(struct xdp_md *ctx, struct shunt_settings *settings,
					    struct shunt_packet *packet, __u32 index)
{
	enum shunt_reason reason;
	struct shunt_slot slot;
	struct shunt_way way;

	if (!shunt_is_inside(ctx, settings, packet))
		return shunt_drop(SHUNT_DROP_wrong_interface);
	reason = shunt_check_headers(packet);
	if (reason)
		return shunt_drop(reason);
	slot.out = slots_out.lookup(&index);
	if (!slot.out)
		return shunt_drop(SHUNT_DROP_slot_free);
	reason = shunt_check_return(packet, slot.out);
	if (reason)
		return shunt_drop(reason);
	shunt_way_out(settings, slot.out, &way);
	if (shunt_is_amplification(slot.out, index, shunt_length_as(packet, way.ipv6)))
		return shunt_drop(SHUNT_DROP_amplification);
	if (shunt_classify(packet) == SHUNT_CLASS_STUN)
		return shunt_continue(ctx, SHUNT_PART_transceiver_stun);
	return shunt_forward(ctx, settings, packet, &way, &slot, index, 0, SHUNT_TO_CLIENT);
}

/* Inlined once for either family, which is then known all the way. */
static __always_inline int udp(struct xdp_md *ctx, struct shunt_packet *packet, bool ipv6)
{
	struct shunt_settings *current;
	__u32 number = 0;

	packet->ipv6 = ipv6;
	current = settings.lookup(&number);
	if (!current)
		return shunt_pass(ctx);
	if (shunt_find_vip(current, &packet->destination, packet->udp->dest, &number))
		return from_client(ctx, current, packet, number);
	if (shunt_find_slot(current, &packet->destination, packet->udp->dest, &number))
		return from_transceiver(ctx, current, packet, number);
	return shunt_pass(ctx);
}

int shunt(struct xdp_md *ctx)
{
	struct shunt_packet packet = {};

	switch (shunt_parse(ctx, &packet)) {
	case SHUNT_UDP:
		return packet.ipv6 ? udp(ctx, &packet, true) : udp(ctx, &packet, false);
	case SHUNT_ICMP:
		return shunt_continue(ctx, SHUNT_PART_icmp);
	case SHUNT_EXTENDED:
		return shunt_continue(ctx, SHUNT_PART_extended);
	default:
		return shunt_pass(ctx);
	}
}

/* What every part begins with: the packet and the settings, again. Nothing of the walk so far is
 * lost but the verifier's knowledge of it. */
static __always_inline struct shunt_settings *
parse_again(struct xdp_md *ctx, struct shunt_packet *packet, enum shunt_kind kind)
{
	__u32 zero = 0;

	if (shunt_parse(ctx, packet) != kind)
		return NULL;
	return settings.lookup(&zero);
}

int shunt_client_stun(struct xdp_md *ctx)
{
	struct shunt_packet packet = {};
	struct shunt_client client = {};
	struct shunt_handshake *handshake;
	struct shunt_settings *current;
	struct shunt_scratch *work;
	enum shunt_reason reason;
	struct shunt_slot slot;
	struct shunt_way way;
	__u32 generation;
	__u32 index = 0;
	__u32 vip = 0;

	current = parse_again(ctx, &packet, SHUNT_UDP);
	work = scratch.lookup(&index);
	if (!current || !work || shunt_check_headers(&packet) ||
	    !shunt_find_vip(current, &packet.destination, packet.udp->dest, &vip))
		return shunt_pass(ctx);
	client.address = packet.source;
	client.port = packet.udp->source;
	client.vip = vip;
	reason = shunt_client_slot(ctx, current, &packet, &client, work, &index);
	if (reason)
		return shunt_drop(reason);

	handshake = handshakes.lookup(&index);
	if (!shunt_get_slot(&index, &slot) || !handshake)
		return shunt_drop(SHUNT_DROP_no_flow);
	/* Another CPU may be taking a pending slot over: what is read must all be of one client. */
	generation = *(volatile __u32 *)&handshake->generation;
	if (!shunt_is_live(slot.in) || !shunt_is_client(slot.out, &client))
		return shunt_drop(SHUNT_DROP_route_busy);
	reason = shunt_way_in(current, slot.in, index, &way);
	if (reason)
		return shunt_drop(reason);
	if (generation != *(volatile __u32 *)&handshake->generation)
		return shunt_drop(SHUNT_DROP_route_busy);
	return shunt_forward(ctx, current, &packet, &way, &slot, index, generation,
			     SHUNT_TO_TRANSCEIVER);
}

int shunt_transceiver_stun(struct xdp_md *ctx)
{
	struct shunt_packet packet = {};
	struct shunt_handshake *handshake;
	struct shunt_settings *current;
	struct shunt_scratch *work;
	struct shunt_slot slot;
	struct shunt_way way;
	__u32 generation;
	__u32 index = 0;

	current = parse_again(ctx, &packet, SHUNT_UDP);
	work = scratch.lookup(&index);
	if (!current || !work || shunt_check_headers(&packet) ||
	    !shunt_find_slot(current, &packet.destination, packet.udp->dest, &index))
		return shunt_pass(ctx);
	handshake = handshakes.lookup(&index);
	if (!shunt_get_slot(&index, &slot) || !handshake)
		return shunt_drop(SHUNT_DROP_slot_free);
	generation = *(volatile __u32 *)&handshake->generation;
	if (!shunt_is_live(slot.in))
		return shunt_drop(SHUNT_DROP_slot_closing);
	shunt_follow_transceiver(current, &packet, &slot, handshake, work, generation, index);

	shunt_way_out(current, slot.out, &way);
	work->hop = slot.out->hop;
	way.hop = &work->hop;
	if (generation != *(volatile __u32 *)&handshake->generation)
		return shunt_drop(SHUNT_DROP_slot_closing);
	return shunt_forward(ctx, current, &packet, &way, &slot, index, generation,
			     SHUNT_TO_CLIENT);
}

/* The packet again, with the slot and the way that an earlier part has chosen. NULL: they are no longer
 * there, or of another client. */
static __always_inline struct shunt_settings *resume(struct xdp_md *ctx,
						     struct shunt_packet *packet,
						     struct shunt_slot *slot, struct shunt_way *way,
						     __u32 *direction)
{
	struct shunt_handshake *handshake;
	struct shunt_settings *current;
	struct shunt_scratch *work;
	__u32 index = 0;

	current = parse_again(ctx, packet, SHUNT_UDP);
	work = scratch.lookup(&index);
	if (!current || !work || shunt_check_headers(packet))
		return NULL;
	index = work->slot;
	handshake = handshakes.lookup(&index);
	if (!shunt_get_slot(&index, slot) || !handshake)
		return NULL;
	*direction = work->direction;
	if (*direction == SHUNT_TO_CLIENT) {
		shunt_way_out(current, slot->out, way);
		work->hop = slot->out->hop;
		way->hop = &work->hop;
	} else if (shunt_way_in(current, slot->in, index, way)) {
		return NULL;
	}
	if (work->generation && work->generation != *(volatile __u32 *)&handshake->generation)
		return NULL;
	return current;
}

int shunt_reshape(struct xdp_md *ctx)
{
	struct shunt_packet packet = {};
	struct shunt_settings *current;
	struct shunt_slot slot;
	struct shunt_way way;
	__u32 direction;

	current = resume(ctx, &packet, &slot, &way, &direction);
	if (!current)
		return shunt_drop(SHUNT_DROP_route_busy);
	return shunt_reshape_packet(ctx, current, &packet, &way, &slot, direction);
}

int shunt_too_big(struct xdp_md *ctx)
{
	struct shunt_packet packet = {};
	struct shunt_settings *current;
	struct shunt_slot slot;
	struct shunt_way way;
	__u32 direction;

	current = resume(ctx, &packet, &slot, &way, &direction);
	if (!current)
		return shunt_drop(SHUNT_DROP_route_busy);
	return shunt_tell_too_big(ctx, current, &packet, &way, &slot);
}

int shunt_icmp(struct xdp_md *ctx)
{
	struct shunt_packet packet = {};
	struct shunt_settings *current;
	struct shunt_error error = {};
	struct shunt_scratch *work;
	enum shunt_reason reason;
	__u32 number = 0;
	bool to_vip;

	current = parse_again(ctx, &packet, SHUNT_ICMP);
	work = scratch.lookup(&number);
	if (!current || !work || !shunt_parse_error(&packet, &error) ||
	    !shunt_same_address(&error.quoted_source, &packet.destination))
		return shunt_pass(ctx);
	to_vip = shunt_find_vip(current, &error.quoted_source, error.quoted_udp->source, &number);
	if (!to_vip &&
	    !shunt_find_slot(current, &error.quoted_source, error.quoted_udp->source, &number))
		return shunt_pass(ctx);

	reason = shunt_check_ip(&packet);
	if (reason)
		return shunt_drop(reason);
	if (packet.length < (packet.ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) +
				    shunt_message_size(packet.ipv6))
		return shunt_drop(SHUNT_DROP_length);
	if (to_vip)
		return shunt_error_in(ctx, current, &packet, &error, number, work);
	if (!shunt_is_inside(ctx, current, &packet))
		return shunt_drop(SHUNT_DROP_wrong_interface);
	return shunt_error_out(ctx, current, &packet, &error, number, work);
}

int shunt_extended(struct xdp_md *ctx)
{
	struct shunt_packet packet = {};
	struct shunt_settings *current;

	current = parse_again(ctx, &packet, SHUNT_EXTENDED);
	if (!current)
		return shunt_pass(ctx);
	return shunt_walk_extended(ctx, current, &packet);
}
