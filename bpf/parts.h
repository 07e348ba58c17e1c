/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The rarer parts of the walk, each a program of its own behind a tail call: the verifier checks
 * each by itself, and the way of media stays short.
 *
 * X(index in the map `parts`, name, what it does). The program of a part is shunt_<name>.
 * loader/source.py reads this file.
 */
#pragma once

#define SHUNT_PARTS_X(X)                                                                           \
	X(0, client_stun, "a client's STUN: finds, makes and establishes slots")                   \
	X(1, transceiver_stun, "a transceiver's STUN: establishes slots, remembers checks")        \
	X(2, reshape, "sends on what changes in length, or needs its checksum made whole")         \
	X(3, icmp, "ICMP errors about relayed packets")                                            \
	X(4, too_big, "turns a packet too long for the way on into the error that says so")        \
	X(5, extended, "IP options, extension headers and fragments")

enum shunt_part {
#define SHUNT_PART_ENUM(index, name, meaning) SHUNT_PART_##name = index,
	SHUNT_PARTS_X(SHUNT_PART_ENUM)
#undef SHUNT_PART_ENUM
		SHUNT_PARTS
};
