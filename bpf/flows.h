/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From a client to its established flow.
 *
 * A table of buckets of our own, and not a BPF hash: a lookup is one cache line of the bucket and
 * one of the slot, of either address family, without a call. An entry is a few bits of the hash above
 * the slot's index, and only a hint: the slot has more of the hash. So entries need never be taken out,
 * and one that leads to a slot with a new life leads nowhere.
 */
#pragma once

#include "maps.h"
#include "packet.h"

/* A client as its packets show it. */
struct shunt_client {
	struct shunt_address address;
	__be16 port;
	__u8 vip;
};

static __always_inline bool shunt_is_client(const struct shunt_to_client *slot,
					    const struct shunt_client *client)
{
	return shunt_same_address(&slot->client, &client->address) &&
	       slot->client_port == client->port && slot->vip == client->vip;
}

/* Seeded, so that nobody can choose addresses and ports that fall into one bucket. */
static __always_inline __u64 shunt_hash(struct shunt_settings *settings,
					const struct shunt_address *address, __be16 port, __u8 vip)
{
	__u64 hash = (address->half[1] ^ settings->seed[0]) * 0x9e3779b97f4a7c15ULL;
	__u64 other = (address->half[0] ^ settings->seed[1]) * 0xbf58476d1ce4e5b9ULL;

	/* Crosswise, or changes of both halves' highest bits would cancel out for any seed. */
	hash ^= hash >> 32;
	hash += other << 32 | other >> 32;
	hash ^= port | (__u32)vip << 16;
	hash *= 0x94d049bb133111ebULL;
	return hash ^ hash >> 32;
}

/* The buckets of a hash: the one, and others for when that is full (double hashing). With half of the
 * entries in use one bucket in a hundred is. */
#define SHUNT_BUCKET_CHOICES 4

static __always_inline __u32 shunt_bucket_place(__u64 hash, __u32 choice)
{
	return (hash + choice * (hash >> 32 | 1)) & (SHUNT_BUCKETS - 1);
}

#define SHUNT_SLOT_MASK ((1U << SHUNT_SLOT_BITS) - 1)

static __always_inline __u32 shunt_entry(__u64 hash, __u32 index)
{
	return (hash >> 32 & ~SHUNT_SLOT_MASK) | index;
}

/* The slot that a bucket names for the hash, if an established flow is there. */
static __always_inline struct shunt_to_transceiver *shunt_look(const struct shunt_bucket *bucket,
							       __u64 hash, __u32 *index)
{
	const __u32 wanted = shunt_entry(hash, 0);
	struct shunt_to_transceiver *slot;

#pragma nounroll
	for (int i = 0; i < SHUNT_BUCKET_ENTRIES; i++) {
		__u32 entry = bucket->entries[i];

		if (!entry)
			return NULL;
		if ((entry & ~SHUNT_SLOT_MASK) != wanted)
			continue;
		*index = entry & SHUNT_SLOT_MASK;
		slot = slots_in.lookup(index);
		if (slot && slot->check == hash >> 32 && slot->state == SHUNT_ESTABLISHED)
			return slot;
	}
	return NULL;
}

/* The client's established flow and its index, or NULL. Of the hash some 50 bits are compared, and not
 * the client: a stranger whose packets they let through could as well have forged the client's
 * address. Who changes a slot asks shunt_own_flow(). */
static __always_inline struct shunt_to_transceiver *
shunt_find_flow(struct shunt_settings *settings, const struct shunt_client *client, __u32 *index)
{
	__u64 hash = shunt_hash(settings, &client->address, client->port, client->vip);
	struct shunt_to_transceiver *slot;
	struct shunt_bucket *bucket;
	__u32 place;

#pragma nounroll
	for (__u32 choice = 0; choice < SHUNT_BUCKET_CHOICES; choice++) {
		place = shunt_bucket_place(hash, choice);
		bucket = flows.lookup(&place);
		if (!bucket)
			return NULL;
		slot = shunt_look(bucket, hash, index);
		if (slot || !bucket->overflowed)
			return slot;
	}
	return NULL;
}

/* The same, if it is the client's own indeed. */
static __always_inline struct shunt_to_transceiver *
shunt_own_flow(struct shunt_settings *settings, const struct shunt_client *client, __u32 *index)
{
	struct shunt_to_transceiver *slot = shunt_find_flow(settings, client, index);
	struct shunt_to_client *back;

	if (!slot)
		return NULL;
	back = slots_out.lookup(index);
	return back && shunt_is_client(back, client) ? slot : NULL;
}

/* Whether an entry leads to no established flow that could have put it there. */
static __always_inline bool shunt_is_stale(__u32 entry)
{
	__u32 index = entry & SHUNT_SLOT_MASK;
	struct shunt_to_transceiver *slot;

	if (!entry)
		return true;
	slot = slots_in.lookup(&index);
	return !slot || slot->state != SHUNT_ESTABLISHED ||
	       ((slot->check ^ entry) & ~SHUNT_SLOT_MASK);
}

/* Puts the entry where one leads nowhere. False if all are live, or another CPU was faster. */
static __always_inline bool shunt_put(struct shunt_scratch *work, struct shunt_bucket *bucket,
				      __u32 entry)
{
	bool done = false;

	work->place = SHUNT_BUCKET_ENTRIES;
#pragma nounroll
	for (int i = 0; i < SHUNT_BUCKET_ENTRIES; i++) {
		__u32 other = bucket->entries[i];

		if (other != entry && !shunt_is_stale(other))
			continue;
		work->place = i;
		work->expected = other;
		break;
	}

	bpf_spin_lock(&bucket->lock);
	/* Each place by name: an index that has been on the stack has no bound for the verifiers of
	 * 6.1 and 6.12. */
#pragma unroll
	for (int i = 0; i < SHUNT_BUCKET_ENTRIES; i++) {
		if (i == work->place && bucket->entries[i] == work->expected) {
			bucket->entries[i] = entry;
			done = true;
		}
	}
	bpf_spin_unlock(&bucket->lock);
	return done;
}

/* Lets lookups of the slot's client find it. Called before the slot is established. */
static __always_inline bool shunt_put_flow(struct shunt_settings *settings,
					   struct shunt_scratch *work,
					   const struct shunt_client *client, __u32 index)
{
	__u64 hash = shunt_hash(settings, &client->address, client->port, client->vip);
	struct shunt_bucket *bucket;
	__u32 place;

#pragma nounroll
	for (__u32 choice = 0; choice < SHUNT_BUCKET_CHOICES; choice++) {
		place = shunt_bucket_place(hash, choice);
		bucket = flows.lookup(&place);
		if (!bucket)
			return false;
		if (shunt_put(work, bucket, shunt_entry(hash, index)))
			return true;
		bucket->overflowed = 1;
	}
	return false;
}
