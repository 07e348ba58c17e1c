/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the maps hold. loader/types.py mirrors each structure; a test holds the two together.
 *
 * No structure has implicit padding. An address is 16 bytes; an IPv4 address is held IPv4-mapped
 * (::ffff:a.b.c.d), so that its four bytes are word[3].
 */
#pragma once

#define SHUNT_PORTS 65536 /* a slot's index is its inside UDP port */
#define SHUNT_ROUTES 65536
#define SHUNT_TRANSCEIVERS 4096
#define SHUNT_VIPS 4
#define SHUNT_INTERFACES 8
#define SHUNT_UFRAG_LENGTH 32 /* the longest ufrag that can be routed, in characters */
#define SHUNT_ROUTE_SLOTS 8
#define SHUNT_REQUESTS 4 /* a client's Binding Requests remembered per slot */
#define SHUNT_CHECKS 2   /* a transceiver's checks remembered per slot */

struct shunt_address {
	__be32 word[4];
};

struct shunt_vip {
	struct shunt_address address;
	__be16 port; /* 0: this entry is not in use */
	__u16 unused;
};

/* What the agent is configured with; one element. */
struct shunt_settings {
	struct shunt_vip vips[SHUNT_VIPS];
	struct shunt_address inside_address;
	__u16 first_port; /* the inside ports that are slots; others are the kernel's */
	__u16 last_port;
	__u32 inside_interfaces[SHUNT_INTERFACES]; /* ifindex, 0: none */
};

/* An interface that the program is attached to, for those who look; packets do not. */
struct shunt_interface {
	__u32 ifindex; /* 0: this entry is not in use */
	__u32 inside;  /* whether transceivers' packets may come in here */
	__u32 mode;    /* XDP_ATTACHED_… of linux/if_link.h */
	__u8 name[16]; /* zero beyond the end */
};

struct shunt_ufrag {
	__u32 length;
	__u8 text[SHUNT_UFRAG_LENGTH + 4]; /* zero beyond length; holds the colon while parsing */
};

/* Where one packet's walk keeps what the stack has no room for, or what the verifier should not
 * track value by value. */
struct shunt_scratch {
	struct shunt_ufrag ufrag;
	__u32 offset; /* of USERNAME's value in the STUN message */
	__u32 place;  /* among the route's slots: the best so far, and how good it is */
	__u32 merit;
};

struct shunt_route {
	struct bpf_spin_lock lock;      /* guards busy, and nothing else */
	__u32 busy;                     /* a CPU is choosing or filling one of the slots */
	__u32 id;                       /* never used twice */
	__u32 transceiver;              /* index into transceivers */
	__u32 flags;                    /* SHUNT_ROUTE_… */
	__u32 slots[SHUNT_ROUTE_SLOTS]; /* a slot is the route's only if its own `route` says so */
};

#define SHUNT_ROUTE_NO_CHECKS 1 /* the transceiver makes no checks of its own */

/* A transceiver, and the next hop towards it, which the agent keeps fresh. */
struct shunt_transceiver {
	struct shunt_address address;
	__be16 port; /* 0: this entry is not in use */
	__u8 mac[ETH_ALEN];
	__u8 source_mac[ETH_ALEN];
	__u16 resolved; /* whether mac, source_mac and ifindex are known */
	__u32 ifindex;
	__u32 unused;
	__u64 instance; /* tells one process with this id from the next */
	__u8 id[64];    /* zero beyond the end */
	__u64 unused_tail[2];
};

/* A client's address as its packets show it; the key of an established IPv4 flow. */
struct shunt_client4 {
	__be32 address;
	__be16 port;
	__u16 vip; /* index into settings.vips */
};

enum shunt_state {
	SHUNT_FREE = 0,
	SHUNT_PENDING = 1,     /* Binding Requests have come; nothing is proven */
	SHUNT_ESTABLISHED = 2, /* the client's flow */
	SHUNT_CLOSING = 3,     /* over; rests before the port is used again */
};

/* One cache line for each direction, so that the two may be handled by two CPUs. */
struct shunt_slot {
	struct {
		__u32 state;
		__u32 transceiver;
		__u32 route;      /* id */
		__u32 next_route; /* id; asked for, or held before; see shunt_take_next_route() */
		__u32 seen;       /* tick of the client's last packet */
		__u32 since;      /* tick of the last change of state */
		__u16 ip_delta;
		__u16 udp_delta;
		__u32 unused;
		__u64 packets;
		__u64 bytes; /* of IP packets */
		__u64 unused_tail[2];
	} to_transceiver;
	struct {
		__u32 state; /* the same as above */
		__u32 transceiver;
		struct shunt_address client;
		__be16 client_port;
		__u8 vip;    /* index into settings.vips */
		__u8 proven; /* the client has answered a check, or the transceiver makes none */
		__u16 ip_delta;
		__u16 udp_delta;
		__u8 mac[ETH_ALEN]; /* the next hop, as the client's packets showed it */
		__u8 source_mac[ETH_ALEN];
		__u32 ifindex;
		__u64 packets;
		__u64 bytes; /* of IP packets */
	} to_client;
};

/* The rest of a slot: what only STUN touches. */
struct shunt_transaction {
	__be32 id[3];
};

struct shunt_handshake {
	/* Of the client, and of the transceiver; the latest overwrites the oldest. */
	struct shunt_transaction requests[SHUNT_REQUESTS];
	struct shunt_transaction checks[SHUNT_CHECKS];
	__u32 next_request;
	__u32 next_check;
};

struct shunt_traffic {
	__u64 packets;
	__u64 bytes; /* of IP packets; of frames for `passed` */
};

enum shunt_direction {
	SHUNT_TO_TRANSCEIVER = 0,
	SHUNT_TO_CLIENT = 1,
	SHUNT_PASSED = 2, /* not the relay's: the kernel's */
	SHUNT_DIRECTIONS = 3,
};
