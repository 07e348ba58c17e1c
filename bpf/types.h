/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the maps hold. loader/types.py mirrors each structure; a test holds the two together.
 *
 * No structure has implicit padding. An address is 16 bytes; an IPv4 address is held IPv4-mapped
 * (::ffff:a.b.c.d), so that its four bytes are word[3] and most of the walk is one for both
 * families. No IPv6 packet to a mapped address is taken for the
 * relay's, and none from one makes a slot.
 */
#pragma once

/* Sizes that the loader works out from the configuration, and passes with -D. */
#ifndef SHUNT_SLOTS
#define SHUNT_SLOTS 65536 /* 65536 for each inside address */
#endif
#ifndef SHUNT_BUCKETS
#define SHUNT_BUCKETS 8192 /* a power of two, at least SHUNT_SLOTS / 8 */
#endif
#ifndef SHUNT_RING
#define SHUNT_RING 65536 /* a power of two, at least SHUNT_SLOTS */
#endif
#ifndef SHUNT_ROUTES
#define SHUNT_ROUTES 65536
#endif
#ifndef SHUNT_CHECKS_UNDER_WAY
#define SHUNT_CHECKS_UNDER_WAY 65536
#endif

#define SHUNT_PORT_BITS 16 /* a slot's index: the inside address's index, then the UDP port */
#define SHUNT_TRANSCEIVERS 4096
#define SHUNT_VIPS 16
#define SHUNT_INSIDE_ADDRESSES 16
#define SHUNT_INTERFACES 16
#define SHUNT_UFRAG_LENGTH 32 /* the longest ufrag that can be routed, in characters */
#define SHUNT_ROUTE_SLOTS 8
#define SHUNT_REQUESTS 4        /* a client's Binding Requests remembered per slot */
#define SHUNT_CHECKS 2          /* a transceiver's checks remembered per slot */
#define SHUNT_BUCKET_ENTRIES 14 /* a bucket is one cache line */
#define SHUNT_SLOT_BITS 20      /* a million slots */

struct shunt_address {
	union {
		__be32 word[4];
		__u64 half[2]; /* as they stand in memory: to compare and to hash */
	};
};

struct shunt_vip {
	struct shunt_address address;
	__be16 port;  /* 0: neither this entry nor any after it is in use */
	__u16 number; /* its own index: read from here, the verifier does not follow it by value */
	__u32 unused;
};

/* One inside address, or one of each family: they share their slots. */
struct shunt_inside {
	struct shunt_address ipv4; /* all zero: none */
	struct shunt_address ipv6; /* all zero: none */
	__u32 first_slot;          /* the entry's index << SHUNT_PORT_BITS */
	__u32 used;                /* 0: neither this entry nor any after it is in use */
};

/* An interface, and the 802.1Q VLAN on it; 0: untagged. */
struct shunt_link {
	__u32 ifindex;
	__u16 vlan;
	__u16 unused;
};

/* What the agent is configured with; one element. */
struct shunt_settings {
	__u64 seed[2]; /* of the hash of flows; drawn once, when the maps are made */
	struct shunt_vip vips[SHUNT_VIPS];
	struct shunt_inside inside[SHUNT_INSIDE_ADDRESSES];
	struct shunt_link inside_links[SHUNT_INTERFACES]; /* ifindex 0: no more */
	__u16 first_port; /* the inside ports that are slots; others are the kernel's */
	__u16 last_port;
	__u32 no_tx; /* send back by XDP_REDIRECT; see shunt_send() */
	__u32 unused;
	/* Not configuration, but the program's own: the coarse time, and the jiffies of its reading. */
	__u32 tick;
	__u64 jiffies;
};

/* An interface of the configuration. The program reads MTUs here; the rest is for those who
 * look. */
struct shunt_interface {
	__u32 ifindex; /* that carries the program: of a VLAN interface, its parent's; 0: no more */
	__u16 vlan;    /* 0: untagged */
	__u16 mtu;     /* of IP packets; 0: not known */
	__u32 inside;  /* whether transceivers' packets may come in here */
	__u32 mode;    /* XDP_ATTACHED_… of linux/if_link.h */
	__u8 name[16]; /* zero beyond the end */
};

struct shunt_ufrag {
	__u32 length;
	__u8 text[SHUNT_UFRAG_LENGTH + 4]; /* zero beyond length; holds the colon while parsing */
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

/* Where a packet goes next on the link layer. */
struct shunt_next_hop {
	__u8 mac[ETH_ALEN];
	__u8 source_mac[ETH_ALEN];
	__u32 ifindex;
	__u16 vlan; /* 0: untagged */
	__u16 mtu;  /* of IP packets; 0: not known */
};

#define SHUNT_HTTP_LENGTH 112

/* A transceiver, and the next hop towards it, which the agent keeps fresh. The packet path needs
 * the first cache line only; the rest is for the agent that comes after this one. */
struct shunt_transceiver {
	struct shunt_address address;
	__be16 port;    /* 0: this entry is not in use */
	__u16 resolved; /* whether the next hop is known */
	struct shunt_next_hop hop;
	__u64 instance;               /* tells one process with this id from the next */
	__u8 id[64];                  /* zero beyond the end */
	__u64 expires;                /* of the monotonic clock, in ns: the lease's end */
	__u64 drain_until;            /* likewise: the drain's deadline; 0: none */
	__u32 capacity;               /* sessions */
	__u32 flags;                  /* SHUNT_TRANSCEIVER_… */
	__u8 http[SHUNT_HTTP_LENGTH]; /* where its signaling is; zero beyond the end */
	__u64 drain_since;            /* of the monotonic clock, in ns: the drain's begin */
};

#define SHUNT_TRANSCEIVER_DRAINING 1 /* gets no new routes */

#define SHUNT_LAYOUT_LENGTH 32704

/* The agent's notebook, for the agent that comes after this one. The program does not read it. */
struct shunt_about {
	__u64 drain_until; /* of the relay; of the monotonic clock, in ns; 0: no deadline */
	__u32 draining;    /* the relay takes no new routes */
	__u32 adoptions;   /* how often an agent has taken over these maps */
	__u32 upgrades;    /* how often another program has */
	__u32 migrations;  /* how often maps of another layout were brought over into these */
	__u64 drain_since; /* of the relay; of the monotonic clock, in ns */
	__u8 source[24];   /* a digest of what the program was compiled of */
	/* How the maps are laid out, in JSON (loader/layout.py), for other versions: stays where it is. */
	__u32 length;
	__u32 filled; /* maps of another layout are being brought over into these */
	__u8 layout[SHUNT_LAYOUT_LENGTH];
};

enum shunt_state {
	SHUNT_FREE = 0,
	SHUNT_PENDING = 1,     /* Binding Requests have come; nothing is proven */
	SHUNT_ESTABLISHED = 2, /* the client's flow */
	SHUNT_CLOSING = 3,     /* over; rests before the port is used again */
};

/*
 * A slot is three entries at one index, each in an array of its own. The packet path touches one of
 * them for each direction, so that two CPUs may handle the two, and that a cache holds as many
 * flows as can be.
 */

/* From the client to the transceiver; two to a cache line. Who the client is stands in the other
 * direction's: media is told by 32 bits of the hash here, besides those that led here. */
struct shunt_to_transceiver {
	__u32 check; /* the upper half of the hash of (client, VIP) */
	__u8 state;
	__u8 unused;
	__u16 transceiver; /* index into transceivers */
	__u16 udp_delta;
	__u16 ip_delta; /* of IPv4 on both sides; else not used */
	__u32 seen;     /* tick of the client's last packet */
	__u64 packets;
	__u64 bytes; /* of IP packets, as the client sent them */
};

/* From the transceiver to the client; a cache line. */
struct shunt_to_client {
	struct shunt_address client;
	__be16 client_port;
	__u8 vip;   /* index into settings.vips */
	__u8 state; /* the same as in the other direction */
	__u16 transceiver;
	__u16 udp_delta;
	__u16 ip_delta;
	__u8 proven; /* the client has answered a check, or the transceiver makes none */
	__u8 unused;
	struct shunt_next_hop hop; /* as the client's packets showed it */
	__u64 packets;
	__u64 bytes; /* of IP packets, as the client gets them */
};

/* What only STUN and the agent ask of a slot. */
struct shunt_book {
	__u32 route;      /* id */
	__u32 next_route; /* id; asked for, or held before; see shunt_take_next_route() */
	__u32 since;      /* tick of the last change of state */
	__u32 unused;
};

struct shunt_transaction {
	__be32 id[3];
};

/* The transactions of a slot. */
struct shunt_handshake {
	struct bpf_spin_lock
		lock;     /* guards a change of state against the slot's being opened anew */
	__u32 generation; /* one more each time that the slot is opened */
	/* Of the client, and of the transceiver; the latest overwrites the oldest. */
	struct shunt_transaction requests[SHUNT_REQUESTS];
	struct shunt_transaction checks[SHUNT_CHECKS];
	__u32 next_request;
	__u32 next_check;
	/* A request of the client's came by another next hop than the slot has: the slot takes it
	 * when the transceiver answers that request. */
	struct shunt_transaction hop_request;
	struct shunt_next_hop hop;
};

/* Established flows by the hash of (client, VIP): 12 bits of it above the slot's index. An entry is a
 * hint: it counts only if the slot says the same of itself, so that none need ever be taken out. */
struct shunt_bucket {
	struct bpf_spin_lock lock; /* of those who put in; nobody waits for it to look */
	__u32 overflowed;          /* more entries are in the next bucket */
	__u32 entries[SHUNT_BUCKET_ENTRIES];
};

/* The slots that may be opened: a ring, which the program takes from at the head, and the agent
 * adds to at the tail. Both count up, and wrap with 32 bits. */
struct shunt_free_head {
	struct bpf_spin_lock lock;
	__u32 head;
};

struct shunt_traffic {
	__u64 packets;
	__u64 bytes; /* of IP packets, on the client's side; of frames for `passed` */
};

enum shunt_direction {
	SHUNT_TO_TRANSCEIVER = 0,
	SHUNT_TO_CLIENT = 1,
	SHUNT_PASSED = 2, /* not the relay's: the kernel's */
	SHUNT_DIRECTIONS = 3,
};

/* What one part of the program leaves for the next, and what the stack has no room for; one for
 * each CPU; it means nothing between packets. */
struct shunt_scratch {
	__u32 slot;       /* that the packet goes through, */
	__u32 generation; /* which it had when it was chosen, or 0 if it cannot be opened anew */
	__u32 direction;  /* enum shunt_direction */
	__u32 offset;     /* of USERNAME's value in the STUN message */
	__u32 place;      /* among a route's slots, or a bucket's entries: the best so far, */
	__u32 merit;      /* how good it is, */
	__u32 expected;   /* and what is there */
	struct shunt_ufrag ufrag;
	struct shunt_next_hop hop;
	__u8 message[64]; /* the head of an ICMP message: ICMP, quoted IP, quoted UDP */
};
