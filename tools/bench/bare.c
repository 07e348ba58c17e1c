// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What the relay is held against: programs that do the least that can be done with a packet. What
 * is in capitals is given with -D.
 */
#include <linux/if_ether.h>
#include <linux/ip.h>

struct line {
	__u64 words[8];
};

/* State of flows, of one cache line each. */
BPF_F_TABLE("array", __u32, struct line, lines, LINES, BPF_F_MMAPABLE);

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

static __always_inline int redirect(struct xdp_md *ctx)
{
	return bpf_redirect(ctx->ingress_ifindex == PUBLIC ? INSIDE : PUBLIC, 0);
}

int bare_redirect(struct xdp_md *ctx)
{
	return redirect(ctx);
}

/* Looks at, and writes, one line of so many; which, follows from the client's address. */
static __always_inline int touch(struct xdp_md *ctx, __u32 lines_in_use)
{
	struct iphdr *ip = (void *)(long)ctx->data + sizeof(struct ethhdr);
	struct line *line;
	__u32 index;

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	index = (__u64)(ip->saddr * 0x85ebca6b) * lines_in_use >> 32;
	line = lines.lookup(&index);
	if (!line)
		return XDP_ABORTED;
	line->words[0]++;
	return redirect(ctx);
}

int touch_few(struct xdp_md *ctx)
{
	return touch(ctx, FEW);
}

int touch_many(struct xdp_md *ctx)
{
	return touch(ctx, LINES);
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
