// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What the relay is held against: programs that do the least that can be done with a packet. The
 * interfaces are PUBLIC and INSIDE, given with -D.
 */
#include <linux/if_ether.h>

/* Frames that have arrived at an end. */
BPF_PERCPU_ARRAY(arrived, __u64, 1);

int bare_drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

int bare_swap(struct xdp_md *ctx)
{
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	__u8 mac[ETH_ALEN];

	if ((void *)(ethernet + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(mac, ethernet->h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, ethernet->h_dest, ETH_ALEN);
	__builtin_memcpy(ethernet->h_dest, mac, ETH_ALEN);
	return XDP_TX;
}

int bare_redirect(struct xdp_md *ctx)
{
	return bpf_redirect(ctx->ingress_ifindex == PUBLIC ? INSIDE : PUBLIC, 0);
}

/* The other end of either cable. */
int sink(struct xdp_md *ctx)
{
	__u64 *count;
	__u32 zero = 0;

	count = arrived.lookup(&zero);
	if (count)
		(*count)++;
	return XDP_DROP;
}

/* What the change of a header's length costs by itself. */
int bare_grow(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_head(ctx, -20) ? XDP_ABORTED : XDP_DROP;
}

int bare_shrink(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_head(ctx, 20) ? XDP_ABORTED : XDP_DROP;
}
