/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From a client to its established flow.
 *
 * A table of buckets of our own, and not a BPF hash: a lookup is one cache line of the bucket and
 * one of the slot, of either address family, without a call. An entry is 32 bits of the hash above the
 * slot's index, and only a hint: the slot says whose it is. So entries need never be taken out,
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

static __always_inline bool shunt_is_client(const struct shunt_slot *slot,
					    const struct shunt_client *client)
{
	return shunt_same_address(&slot->to_transceiver.client, &client->address) &&
	       slot->to_transceiver.client_port == client->port &&
	       slot->to_transceiver.vip == client->vip;
}

static __always_inline bool shunt_is_established_of(const struct shunt_slot *slot,
						    const struct shunt_client *client)
{
	return *(const shunt_word *)&slot->to_transceiver.client_port ==
		       shunt_who(client->port, client->vip, SHUNT_ESTABLISHED) &&
	       shunt_same_address(&slot->to_transceiver.client, &client->address);
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
	return (hash ^ ((hash >> 40) | 1)) & (SHUNT_BUCKETS - 1);
}

/* The slot that a bucket names for the hash, if the client has its flow there. No two entries of
 * a bucket have the same 32 bits. */
static __always_inline struct shunt_slot *shunt_look(const struct shunt_bucket *bucket, __u64 hash,
						     const struct shunt_client *client,
						     __u32 *index)
{
	struct shunt_slot *slot;
	__u64 found = 0;

#pragma unroll
	for (int i = 0; i < SHUNT_BUCKET_ENTRIES; i++) {
		found = bucket->entries[i];
		if (found >> 32 == hash >> 32)
			break;
	}
	*index = found;
	slot = slots.lookup(index);
	return slot && shunt_is_established_of(slot, client) ? slot : NULL;
}

/* The client's established flow and its index, or NULL. */
static __always_inline struct shunt_slot *
shunt_find_flow(struct shunt_settings *settings, const struct shunt_client *client, __u32 *index)
{
	__u64 hash = shunt_hash(settings, &client->address, client->port, client->vip);
	__u32 place = shunt_first_bucket(hash);
	struct shunt_bucket *bucket = flows.lookup(&place);
	struct shunt_slot *slot;

	if (!bucket)
		return NULL;
	slot = shunt_look(bucket, hash, client, index);
	if (slot || !bucket->overflowed)
		return slot;
	place = shunt_second_bucket(hash);
	bucket = flows.lookup(&place);
	return bucket ? shunt_look(bucket, hash, client, index) : NULL;
}

/* Whether an entry still leads to an established flow of its hash. */
static __always_inline bool shunt_is_stale(struct shunt_settings *settings, __u64 entry)
{
	struct shunt_slot *slot;
	__u32 index = entry;

	if (!entry)
		return true;
	slot = slots.lookup(&index);
	return !slot || slot->to_transceiver.state != SHUNT_ESTABLISHED ||
	       shunt_hash(settings, &slot->to_transceiver.client, slot->to_transceiver.client_port,
			  slot->to_transceiver.vip) >>
			       32 !=
		       entry >> 32;
}

/* Puts the entry into the bucket: over one of the same 32 bits if `replaced`, the client's flow so
 * far, or nobody has that, else over one that leads nowhere. False if all are live, or another CPU was
 * faster. */
static __always_inline bool shunt_put(struct shunt_settings *settings, struct shunt_scratch *work,
				      struct shunt_bucket *bucket, __u64 entry, __u32 replaced)
{
	bool unique = true;

	work->place = SHUNT_BUCKET_ENTRIES;
#pragma nounroll
	for (int i = 0; i < SHUNT_BUCKET_ENTRIES; i++) {
		__u64 other = bucket->entries[i];
		bool free = shunt_is_stale(settings, other);
		bool same = other >> 32 == entry >> 32;

		if (same && !free && (__u32)other != replaced && other != entry)
			return false;
		if (same || (free && work->place == SHUNT_BUCKET_ENTRIES)) {
			work->place = i;
			work->expected = other;
		}
		if (same)
			break;
	}
	if (work->place == SHUNT_BUCKET_ENTRIES)
		return false;

	bpf_spin_lock(&bucket->lock);
#pragma unroll
	for (int i = 0; i < SHUNT_BUCKET_ENTRIES; i++) {
		if (i == work->place ? bucket->entries[i] != work->expected
				     : bucket->entries[i] >> 32 == entry >> 32)
			unique = false;
	}
	/* Each place by name: an index that has been on the stack has no bound for the verifiers of
	 * 6.1 and 6.12. */
#pragma unroll
	for (int i = 0; i < SHUNT_BUCKET_ENTRIES; i++) {
		if (unique && i == work->place)
			bucket->entries[i] = entry;
	}
	bpf_spin_unlock(&bucket->lock);
	return unique;
}

/* Lets lookups of the slot's client find it. Called before the slot is established. */
static __always_inline bool shunt_put_flow(struct shunt_settings *settings,
					   struct shunt_scratch *work,
					   const struct shunt_client *client, __u32 index,
					   __u32 replaced)
{
	__u64 hash = shunt_hash(settings, &client->address, client->port, client->vip);
	__u64 entry = (hash >> 32 << 32) | index;
	__u32 place = shunt_first_bucket(hash);
	struct shunt_bucket *bucket = flows.lookup(&place);

	if (!bucket)
		return false;
	if (shunt_put(settings, work, bucket, entry, replaced))
		return true;
	bucket->overflowed = 1;
	place = shunt_second_bucket(hash);
	bucket = flows.lookup(&place);
	return bucket && shunt_put(settings, work, bucket, entry, replaced);
}
