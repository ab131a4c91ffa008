/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * The maps. Their names are the contract with the loader; what lies in them is
 * defined in c-abi.
 */
#ifndef ETRAN_BPF_MAPS_H
#define ETRAN_BPF_MAPS_H

#include <etran/abi.h>
#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

/* A flow's connection record: index in `conns`. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ETRAN_MAX_CONNS);
	__type(key, struct etran_flow_key);
	__type(value, __u32);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ETRAN_MAX_CONNS);
	__type(key, __u32);
	__type(value, struct etran_conn);
} conns SEC(".maps");

/*
 * Published words, one mmapable array per application: sequence numbers are
 * secrets. An array with a spin lock cannot be mapped, hence two records.
 */
struct pub_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, ETRAN_APP_SLOTS);
	/* Sizes, not types: clang emits no BTF for types used only in here. */
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct etran_pub));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, ETRAN_MAX_APPS);
	__type(key, __u32);
	__array(values, struct pub_map);
} pubs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ETRAN_MAX_APPS);
	__type(key, __u32);
	__type(value, struct etran_app);
} apps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ETRAN_MAX_TAPS);
	__type(key, __u32);
	__type(value, struct etran_tap);
} taps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ETRAN_MAX_HOPS);
	__type(key, __u32);
	__type(value, struct etran_hop);
} hops SEC(".maps");

/* Devices to send by; the value is an ifindex. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, ETRAN_MAX_DEVICES);
	__type(key, __u32);
	__type(value, __u32);
} ports SEC(".maps");

/* By application: the near end of its veth pair, for shared rings. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, ETRAN_MAX_APPS);
	__type(key, __u32);
	__type(value, __u32);
} pairs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, ETRAN_MAX_XSKS);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ETRAN_MAX_XSKS);
	__type(key, __u32);
	__type(value, struct etran_ring);
} rings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ETRAN_DROP_MAX);
	__type(key, __u32); /* enum etran_drop_reason */
	__type(value, __u64);
} drops SEC(".maps");

/* Index of the connection that egress redirected last on this CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} scratch SEC(".maps");

/* What the tracepoint needs to tell our redirects from others'. */
struct map_ids {
	__u32 xsks;
	__u32 ports;
	__u32 pairs;
};

/* Written once by the loader. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct map_ids);
} ids SEC(".maps");

/* The application's published map; NULL when the application is gone. */
static __always_inline void *app_pubs(__u32 app)
{
	return bpf_map_lookup_elem(&pubs, &app);
}

/* The published words of connection record `index`. */
static __always_inline struct etran_pub *conn_pub(__u32 index)
{
	void *app = app_pubs(index / ETRAN_APP_SLOTS);
	__u32 slot = index % ETRAN_APP_SLOTS;

	return app ? bpf_map_lookup_elem(app, &slot) : NULL;
}

#endif
