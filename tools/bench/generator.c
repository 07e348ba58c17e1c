// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Writes the frames that `shunt bench` measures with, one for each run: all headers afresh, since
 * a test run hands over the frame that the run before has left.
 *
 * A frame is a template, of which the first SHUNT_HEAD bytes are written, and what varies from one
 * frame to the next: addresses, ports, ufrags, transactions, with both checksums to match. Which
 * it is follows from a number, counted up or drawn at random. tools/bench/generator.py makes the
 * templates and knows the same numbers.
 */
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#define SHUNT_HEAD 112 /* of either family as far as the end of a STUN message's USERNAME */
#define SHUNT_TEMPLATES 10
#define SHUNT_DRAWS 10
#define SHUNT_STUN_TRANSACTION 16 /* its last four bytes, in a STUN message */
#define SHUNT_STUN_UFRAG 24 /* its first eight characters, behind the first attribute's header */

#define SHUNT_VARY_CLIENT 1       /* source address and port: those of the number */
#define SHUNT_VARY_PORT 2         /* source port only */
#define SHUNT_VARY_STRANGER 4     /* source address and port: of nobody */
#define SHUNT_VARY_SLOT 8         /* to the number's slot, from its transceiver */
#define SHUNT_VARY_UFRAG 16       /* of the number's route */
#define SHUNT_VARY_GUESS 32       /* a ufrag drawn at random */
#define SHUNT_VARY_TRANSACTION 64 /* the number */
#define SHUNT_IPV6 128

struct shunt_template {
	__u8 head[SHUNT_HEAD];
	__u32 length;  /* of the whole frame */
	__u32 vary;    /* SHUNT_VARY_…, SHUNT_IPV6 */
	__u32 ip_sum;  /* of the words of the IPv4 header, */
	__u32 udp_sum; /* and of what the UDP checksum covers, both without what varies */
};

struct shunt_plan {
	__u32 numbers;      /* are drawn below this; 0: counted up instead, */
	__u32 next;         /* from here */
	__u32 ifindex;      /* where generated frames go */
	__u32 routed;       /* numbers that share a route */
	__u32 routes;       /* there are so many, and they repeat */
	__u32 transceivers; /* a power of two; routes take them in turn */
	__u32 transceiver;  /* the first one's address; the next ones follow */
	__u32 inside;       /* likewise the first inside address, */
	__u32 first_port;   /* its first slot, */
	__u32 ports;        /* and how many slots each has */
};

BPF_ARRAY(templates, struct shunt_template, SHUNT_TEMPLATES);
BPF_ARRAY(draws, __u32, SHUNT_DRAWS); /* templates, each as likely */
BPF_ARRAY(plan, struct shunt_plan, 1);
BPF_PROG_ARRAY(after, 1);

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Eight letters, a to p, for the eight half bytes. */
static __always_inline __u64 letters(__u64 number)
{
	number = (number | number << 16) & 0x0000ffff0000ffffULL;
	number = (number | number << 8) & 0x00ff00ff00ff00ffULL;
	number = (number | number << 4) & 0x0f0f0f0f0f0f0f0fULL;
	return number + 0x6161616161616161ULL;
}

static __always_inline __u32 at_random(__u32 below)
{
	return (__u64)bpf_get_prandom_u32() * below >> 32;
}

/* Addresses and ports as different from each other as those of real clients. */
static __always_inline __u32 client_address(__u32 number)
{
	return htonl(0x10000000 + (number * 0x9e3779b1 & 0x3fffffff));
}

static __always_inline __u32 stranger_address(__u32 number)
{
	return htonl(0x50000000 + (number * 0x9e3779b1 & 0x0fffffff));
}

static __always_inline __u16 client_port(__u32 number)
{
	return htons(1024 + ((number * 0x85ebca6b >> 16) * 64512 >> 16));
}

static __always_inline void write_letters(void *place, __u64 text, __u64 *sum)
{
	*(__u64 *)place = text;
	*sum += (text & 0xffffffff) + (text >> 32);
}

/* The frame's length may have changed in the run before; this moves its start. False: no room. */
static __always_inline bool restore_length(struct xdp_md *ctx,
					   const struct shunt_template *template)
{
	__s32 excess = (__s32)(ctx->data_end - ctx->data) - (__s32)template->length;

	return !excess || !bpf_xdp_adjust_head(ctx, excess);
}

static __always_inline bool write_frame(struct xdp_md *ctx, struct shunt_plan *plan)
{
	const struct shunt_template *template;
	__u32 number, guess, vary, route;
	__u32 *kind;
	__u64 ip_sum, udp_sum;
	struct udphdr *udp;
	struct iphdr *ip;
	void *payload;
	void *data;

	number = at_random(SHUNT_DRAWS);
	kind = draws.lookup(&number);
	template = kind ? templates.lookup(kind) : NULL;
	if (!template || !restore_length(ctx, template))
		return false;
	number = plan->numbers ? at_random(plan->numbers) : plan->next++;
	guess = bpf_get_prandom_u32();
	data = (void *)(long)ctx->data;
	if (data + SHUNT_HEAD > (void *)(long)ctx->data_end)
		return false;
	__builtin_memcpy(data, template->head, SHUNT_HEAD);

	vary = template->vary;
	if (!vary)
		return true;
	ip_sum = template->ip_sum;
	udp_sum = template->udp_sum;
	ip = data + sizeof(struct ethhdr);
	udp = (void *)(ip + 1);
	if (vary & SHUNT_IPV6)
		udp = (void *)ip + sizeof(struct ipv6hdr);
	payload = udp + 1;
	route = number / plan->routed % plan->routes;

	if (vary & (SHUNT_VARY_CLIENT | SHUNT_VARY_STRANGER)) {
		ip->saddr =
			vary & SHUNT_VARY_CLIENT ? client_address(number) : stranger_address(guess);
		udp->source = client_port(vary & SHUNT_VARY_CLIENT ? number : guess);
		ip_sum += ip->saddr;
		udp_sum += (__u64)ip->saddr + udp->source;
	}
	if (vary & SHUNT_VARY_PORT) {
		udp->source = htons(1024 + number % 64512);
		udp_sum += udp->source;
	}
	if (vary & SHUNT_VARY_SLOT) {
		ip->saddr = htonl(plan->transceiver + (route & (plan->transceivers - 1)));
		ip->daddr = htonl(plan->inside + number / plan->ports);
		udp->dest = htons(plan->first_port + number % plan->ports);
		ip_sum += (__u64)ip->saddr + ip->daddr;
		udp_sum += (__u64)ip->saddr + ip->daddr + udp->dest;
	}
	if (vary & (SHUNT_VARY_UFRAG | SHUNT_VARY_GUESS))
		write_letters(payload + SHUNT_STUN_UFRAG,
			      letters(vary & SHUNT_VARY_UFRAG ? route : guess), &udp_sum);
	if (vary & SHUNT_VARY_TRANSACTION) {
		*(__u32 *)(payload + SHUNT_STUN_TRANSACTION) = number;
		udp_sum += number;
	}
	if (!(vary & SHUNT_IPV6))
		ip->check = ~fold(ip_sum);
	udp->check = (__u16)~fold(udp_sum) ?: 0xffff;
	return true;
}

/* A frame to an interface: in live mode, a packet. */
int generate(struct xdp_md *ctx)
{
	struct shunt_plan *current;
	__u32 zero = 0;

	current = plan.lookup(&zero);
	if (!current || !write_frame(ctx, current))
		return XDP_ABORTED;
	return bpf_redirect(current->ifindex, 0);
}

/* A frame to the program that is looked at. */
int restore(struct xdp_md *ctx)
{
	struct shunt_plan *current;
	__u32 zero = 0;

	current = plan.lookup(&zero);
	if (!current || !write_frame(ctx, current))
		return XDP_ABORTED;
	after.call(ctx, 0);
	return XDP_ABORTED;
}
