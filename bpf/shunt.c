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

#include "packet.h"
#include "nat.h"
#include "flow.h"
#include "client.h"
#include "transceiver.h"
#include "verdict.h"

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
	reason = transceiver_slot(ctx, settings, packet, slot);
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
