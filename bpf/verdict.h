/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What becomes of a packet, and the counters that tell of it.
 */
#pragma once

#include "maps.h"

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

/* XDP_TX is the shorter way back out, but a veth wakes its peer for it only if that has an XDP program
 * of its own (veth_xdp_flush() in drivers/net/veth.c); for XDP_REDIRECT, NAPI is enough. */
static __always_inline int shunt_send(struct xdp_md *ctx, const struct shunt_settings *settings,
				      __u32 ifindex)
{
	return ifindex == ctx->ingress_ifindex && !settings->no_tx ? XDP_TX
								   : bpf_redirect(ifindex, 0);
}

/* The walk goes on in another part; it comes back only if that is not there. */
static __always_inline int shunt_continue(struct xdp_md *ctx, enum shunt_part part)
{
	parts.call(ctx, part);
	return shunt_drop(SHUNT_DROP_program);
}
