/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The maps, and who writes them. All are preallocated and pinned below SHUNT_PINS, which names
 * the version of types.h, so that a change of shape never opens an old map.
 */
#pragma once

#include "types.h"

/* One element. The agent writes it before it attaches the program. */
BPF_TABLE_PINNED("array", u32, struct shunt_settings, settings, 1, SHUNT_PINS "/settings");

/* Where the program is attached. The agent writes it, for the inspector. */
BPF_TABLE_PINNED("array", u32, struct shunt_interface, interfaces, SHUNT_INTERFACES,
		 SHUNT_PINS "/interfaces");

/* Ufrag to transceiver. The agent adds and removes; the program fills in the slots. */
BPF_TABLE_PINNED("hash", struct shunt_ufrag, struct shunt_route, routes, SHUNT_ROUTES,
		 SHUNT_PINS "/routes");

/* By index. The agent writes them: at registration, and when a next hop changes. */
BPF_TABLE_PINNED("array", u32, struct shunt_transceiver, transceivers, SHUNT_TRANSCEIVERS,
		 SHUNT_PINS "/transceivers");

/* A client's established flow: its slot. The program adds; program and agent remove. */
BPF_TABLE_PINNED("hash", struct shunt_client4, u32, flows4, SHUNT_PORTS, SHUNT_PINS "/flows4");

/* The flow table, by inside port. The program opens slots, the agent closes and frees them. */
BPF_TABLE_PINNED("array", u32, struct shunt_slot, slots, SHUNT_PORTS, SHUNT_PINS "/slots",
		 BPF_F_MMAPABLE);

/* The part of a slot that only STUN touches, kept out of the media's cache lines. */
BPF_TABLE_PINNED("array", u32, struct shunt_handshake, handshakes, SHUNT_PORTS,
		 SHUNT_PINS "/handshakes");

/* A transceiver's check under way: its slot. Every slot owns at most SHUNT_CHECKS entries. */
BPF_TABLE_PINNED("hash", struct shunt_transaction, u32, checks, SHUNT_PORTS *SHUNT_CHECKS,
		 SHUNT_PINS "/checks");

/* Slots that may be opened, oldest first. The agent pushes, the program pops. */
BPF_QUEUESTACK_PINNED("queue", free_slots, u32, SHUNT_PORTS, 0, SHUNT_PINS "/free_slots");

/* Packets by reason, a counter for each CPU. */
BPF_TABLE_PINNED("percpu_array", u32, u64, drops, SHUNT_REASON_END, SHUNT_PINS "/drops");

/* Packets and bytes by enum shunt_direction, a counter for each CPU. */
BPF_TABLE_PINNED("percpu_array", u32, struct shunt_traffic, traffic, SHUNT_DIRECTIONS,
		 SHUNT_PINS "/traffic");

/* One element for each CPU; means nothing between packets. */
BPF_F_TABLE("percpu_array", u32, struct shunt_scratch, scratch, 1, 0);
