/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From a client to its established flow.
 *
 * A table of buckets of our own, and not a BPF hash: a lookup is one cache line of the bucket and
 * one of the slot, of either address family, without a call. An entry is a few bits of the hash above
 * the slot's index, and only a hint: the slot says whose it is. So entries need never be taken out,
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

typedef __u32 __attribute__((may_alias)) shunt_word;

/* The three small fields that stand behind the client's address in either half of a slot. */
static __always_inline __u32 shunt_who(__be16 port, __u8 vip, __u8 state)
{
	return port | (__u32)vip << 16 | (__u32)state << 24;
}

static __always_inline bool shunt_is_client(const struct shunt_to_transceiver *slot,
					    const struct shunt_client *client)
{
	return shunt_same_address(&slot->client, &client->address) &&
	       slot->client_port == client->port && slot->vip == client->vip;
}

static __always_inline bool shunt_is_established_of(const struct shunt_to_transceiver *slot,
						    const struct shunt_client *client)
{
	return *(const shunt_word *)&slot->client_port ==
		       shunt_who(client->port, client->vip, SHUNT_ESTABLISHED) &&
	       shunt_same_address(&slot->client, &client->address);
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

/* The buckets of a hash: the one, and the other for when the one is full. */
static __always_inline __u32 shunt_first_bucket(__u64 hash)
{
	return hash & (SHUNT_BUCKETS - 1);
}

static __always_inline __u32 shunt_second_bucket(__u64 hash)
{
	return (hash ^ ((hash >> 32) | 1)) & (SHUNT_BUCKETS - 1);
}

#define SHUNT_SLOT_MASK ((1U << SHUNT_SLOT_BITS) - 1)

static __always_inline __u32 shunt_entry(__u64 hash, __u32 index)
{
	return (hash >> 32 & ~SHUNT_SLOT_MASK) | index;
}

/* The slot that a bucket names for the hash, if the client has its flow there. */
static __always_inline struct shunt_to_transceiver *shunt_look(const struct shunt_bucket *bucket,
							       __u64 hash,
							       const struct shunt_client *client,
							       __u32 *index)
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
		if (slot && shunt_is_established_of(slot, client))
			return slot;
	}
	return NULL;
}

/* The client's established flow and its index, or NULL. */
static __always_inline struct shunt_to_transceiver *
shunt_find_flow(struct shunt_settings *settings, const struct shunt_client *client, __u32 *index)
{
	__u64 hash = shunt_hash(settings, &client->address, client->port, client->vip);
	__u32 place = shunt_first_bucket(hash);
	struct shunt_bucket *bucket = flows.lookup(&place);
	struct shunt_to_transceiver *slot;

	if (!bucket)
		return NULL;
	slot = shunt_look(bucket, hash, client, index);
	if (slot || !bucket->overflowed)
		return slot;
	place = shunt_second_bucket(hash);
	bucket = flows.lookup(&place);
	return bucket ? shunt_look(bucket, hash, client, index) : NULL;
}

/* Whether an entry leads to no established flow that could have put it there. */
static __always_inline bool shunt_is_stale(struct shunt_settings *settings, __u32 entry)
{
	__u32 index = entry & SHUNT_SLOT_MASK;
	struct shunt_to_transceiver *slot;

	if (!entry)
		return true;
	slot = slots_in.lookup(&index);
	return !slot || slot->state != SHUNT_ESTABLISHED ||
	       shunt_entry(shunt_hash(settings, &slot->client, slot->client_port, slot->vip),
			   index) != entry;
}

/* Puts the entry where one leads nowhere. False if all are live, or another CPU was faster. */
static __always_inline bool shunt_put(struct shunt_settings *settings, struct shunt_scratch *work,
				      struct shunt_bucket *bucket, __u32 entry)
{
	bool done = false;

	work->place = SHUNT_BUCKET_ENTRIES;
#pragma nounroll
	for (int i = 0; i < SHUNT_BUCKET_ENTRIES; i++) {
		__u32 other = bucket->entries[i];

		if (other != entry && !shunt_is_stale(settings, other))
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
	__u32 place = shunt_first_bucket(hash);
	struct shunt_bucket *bucket = flows.lookup(&place);

	if (!bucket)
		return false;
	if (shunt_put(settings, work, bucket, shunt_entry(hash, index)))
		return true;
	bucket->overflowed = 1;
	place = shunt_second_bucket(hash);
	bucket = flows.lookup(&place);
	return bucket && shunt_put(settings, work, bucket, shunt_entry(hash, index));
}
