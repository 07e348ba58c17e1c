/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The maps, and who writes them. All are preallocated and pinned below SHUNT_PINS, which names
 * the version of types.h, so that a change of shape never opens an old map. Those of the packet path
 * are mmapable also where nobody maps them: the kernel puts their values on a page's start,
 * and so each element on cache lines of its own.
 */
#pragma once

#include "parts.h"
#include "reasons.h"
#include "types.h"

/* One element. The agent writes it before it attaches the program. */
BPF_TABLE_PINNED("array", u32, struct shunt_settings, settings, 1, SHUNT_PINS "/settings");

/* One element. The agent's notebook. */
BPF_TABLE_PINNED("array", u32, struct shunt_about, about, 1, SHUNT_PINS "/about");

/* Where the program is attached. The agent writes it. */
BPF_TABLE_PINNED("array", u32, struct shunt_interface, interfaces, SHUNT_INTERFACES,
		 SHUNT_PINS "/interfaces");

/* Ufrag to transceiver. The agent adds and removes; the program fills in the slots. */
BPF_TABLE_PINNED("hash", struct shunt_ufrag, struct shunt_route, routes, SHUNT_ROUTES,
		 SHUNT_PINS "/routes");

/* By index. The agent writes them: at registration, and when a next hop changes. */
BPF_TABLE_PINNED("array", u32, struct shunt_transceiver, transceivers, SHUNT_TRANSCEIVERS,
		 SHUNT_PINS "/transceivers", BPF_F_MMAPABLE);

/* Established flows by client; see shunt_bucket. Only the program touches them. */
BPF_TABLE_PINNED("array", u32, struct shunt_bucket, flows, SHUNT_BUCKETS, SHUNT_PINS "/flows",
		 BPF_F_MMAPABLE);

/* The flow table; see types.h. The program opens slots, the agent closes and frees them. */
BPF_TABLE_PINNED("array", u32, struct shunt_to_transceiver, slots_in, SHUNT_SLOTS,
		 SHUNT_PINS "/slots_in", BPF_F_MMAPABLE);
BPF_TABLE_PINNED("array", u32, struct shunt_to_client, slots_out, SHUNT_SLOTS,
		 SHUNT_PINS "/slots_out", BPF_F_MMAPABLE);
BPF_TABLE_PINNED("array", u32, struct shunt_book, books, SHUNT_SLOTS, SHUNT_PINS "/books",
		 BPF_F_MMAPABLE);

/* The part of a slot that only STUN touches, kept out of the media's cache lines. */
BPF_TABLE_PINNED("array", u32, struct shunt_handshake, handshakes, SHUNT_SLOTS,
		 SHUNT_PINS "/handshakes", BPF_F_MMAPABLE);

/* Checks that transceivers make through pending slots: transaction to slot. One that is pushed out
 * is a check that its transceiver has to repeat. */
BPF_TABLE_PINNED("lru_hash", struct shunt_transaction, u32, checks, SHUNT_CHECKS_UNDER_WAY,
		 SHUNT_PINS "/checks");

/* The slots that may be opened; see shunt_free_head. The agent writes ring and tail. */
BPF_TABLE_PINNED("array", u32, u32, free_ring, SHUNT_RING, SHUNT_PINS "/free_ring", BPF_F_MMAPABLE);
BPF_TABLE_PINNED("array", u32, u32, free_tail, 1, SHUNT_PINS "/free_tail", BPF_F_MMAPABLE);
BPF_TABLE_PINNED("array", u32, struct shunt_free_head, free_head, 1, SHUNT_PINS "/free_head");

/* Packets by reason, a counter for each CPU. */
BPF_TABLE_PINNED("percpu_array", u32, u64, drops, SHUNT_REASON_ROOM, SHUNT_PINS "/drops");

/* Packets and bytes by enum shunt_direction, a counter for each CPU. */
BPF_TABLE_PINNED("percpu_array", u32, struct shunt_traffic, traffic, SHUNT_DIRECTIONS,
		 SHUNT_PINS "/traffic");

/* One element for each CPU. */
BPF_F_TABLE("percpu_array", u32, struct shunt_scratch, scratch, 1, 0);

/* The rarer parts of the walk, by enum shunt_part; the loader fills it and pins it beside the
 * program that it belongs to. */
BPF_PROG_ARRAY(parts, SHUNT_PARTS);
