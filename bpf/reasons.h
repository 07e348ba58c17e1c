/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Why a packet was dropped: the one list, for C, Python, tools and documents.
 *
 * X(number, name, meaning). Numbers are stable: they are indexes of the pinned map `drops`,
 * so that a reason is never renumbered, only retired. loader/reasons.py reads this file.
 */
#pragma once

#define SHUNT_REASONS(X)                                                                           \
	X(1, fragment, "to the VIP, but a fragment: a fragment carries no ufrag to steer by")      \
	X(2, ip_options, "to the VIP, with IP options or IPv6 extension headers")                  \
	X(3, length, "the frame, the IP header and the UDP header disagree about the length")      \
	X(4, ttl, "the TTL would reach zero at the relay")                                         \
	X(5, class, "first byte is not STUN, DTLS, RTP or RTCP (RFC 7983): scans and noise")       \
	X(6, stun_malformed, "looks like STUN but header or attributes are not (RFC 8489)")        \
	X(7, stun_username, "Binding Request without a USERNAME of the form ufrag:ufrag")          \
	X(8, no_route, "the ufrag has no route: session over, never was, or somebody guesses")     \
	X(9, no_flow, "not a Binding Request, and the client has no established flow")             \
	X(10, unexpected_response, "Binding Response to a check that no transceiver made")         \
	X(11, source, "no client can have this source address or port")                            \
	X(12, table_full, "no free slot in the flow table; established flows are kept")            \
	X(13, route_full, "all 8 slots of the route are in use")                                   \
	X(14, route_busy, "another CPU was changing the route's slots; the client will repeat")    \
	X(15, transceiver_gone, "the route's or flow's transceiver has no entry any more")         \
	X(16, neighbour, "the MAC address on the way to the transceiver is not known yet")         \
	X(17, checksum, "a partial checksum on a datagram too long to make it whole")              \
	X(18, wrong_interface, "to an inside address, but not from an inside interface")           \
	X(19, slot_free, "to an inside port that no flow uses")                                    \
	X(20, slot_closing, "to an inside port whose flow was closed")                             \
	X(21, wrong_transceiver, "to an inside port of another transceiver's flow")                \
	X(22, not_established,                                                                     \
	  "other than STUN from a transceiver before the flow is established")                     \
	X(23, amplification, "over 3 times the bytes of a client that has not answered a check")   \
	X(24, no_checksum, "UDP over IPv6 without a checksum (RFC 8200 8.1)")                      \
	X(25, mtu, "longer than the way on takes; the sender of an established flow is told")      \
	X(26, headroom, "the driver left no room to make the headers longer")                      \
	X(27, link_address, "a Binding Request from or to a multicast MAC address")                \
	X(28, icmp,                                                                                \
	  "ICMP error about a packet as the relay sends them, but of no flow, or cut short")       \
	X(29, program, "a part of the program is missing: load it again")

/* Entries of the map `drops`: room for reasons to come, or each would make it another map. */
#define SHUNT_REASON_ROOM 64

enum shunt_reason {
	SHUNT_OK = 0, /* not a reason: nothing speaks against the packet so far */
#define SHUNT_REASON_ENUM(number, name, meaning) SHUNT_DROP_##name = number,
	SHUNT_REASONS(SHUNT_REASON_ENUM)
#undef SHUNT_REASON_ENUM
		SHUNT_REASON_END
};

_Static_assert(SHUNT_REASON_END <= SHUNT_REASON_ROOM, "the map `drops` has no room");
