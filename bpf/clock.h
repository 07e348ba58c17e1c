/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Coarse time.
 */
#pragma once

#include "maps.h"

/* Ticks of 2^27 ns (0.134 s) of the monotonic clock; 32 bits of them last 18 years. */
#define SHUNT_TICK_SHIFT 27

/* Reading jiffies is one load, reading the clock a call: that is done once for each jiffy, by whoever
 * is first to see it. If two are, they write the same. */
static __always_inline __u32 shunt_now(struct shunt_settings *settings)
{
	__u64 jiffies = bpf_jiffies64();

	if (settings->jiffies != jiffies) {
		settings->tick = bpf_ktime_get_coarse_ns() >> SHUNT_TICK_SHIFT;
		settings->jiffies = jiffies;
	}
	return settings->tick;
}

/* Ticks since `then`; 0 if another CPU's clock was read a moment later than ours. */
static __always_inline __u32 shunt_age(__u32 then, __u32 now)
{
	__s32 age = now - then;

	return age < 0 ? 0 : age;
}
