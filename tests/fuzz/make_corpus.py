#!/usr/bin/env python3
"""Writes the seeds of the fuzzers: make_corpus.py FOLDER makes FOLDER/TARGET/NAME, some hundred small files.

Each is a whole input of its reader or one that was refused for a reason of its own; libFuzzer makes the
rest of them. Formats are written here a second time, by hand, from their descriptions (trace.proto,
plan.proto, NumPy's format 1.0, pickle protocol 2, the recorders' own code). Only the standard library.
"""

import io
import json
import struct
import sys
import zipfile
import zlib
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent.parent
seeds: dict[str, list[bytes]] = {}


def add(target: str, *contents):
    for content in contents:
        seeds.setdefault(target, []).append(content.encode() if isinstance(content, str) else content)


# ------------------------------------------------------------ Protobuf records


def varint(value: int) -> bytes:
    out = b""
    while True:
        more = value > 0x7F
        out += bytes([(value & 0x7F) | (0x80 if more else 0)])
        value >>= 7
        if not more:
            return out


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def blob(field: int, value) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


def packed(field: int, values) -> bytes:
    return blob(field, b"".join(varint(value) for value in values))


def record(kind: int, body: bytes) -> bytes:
    message = blob(kind, body)
    return varint(len(message)) + message + struct.pack("<I", zlib.crc32(message))


def moet(layers=(1, 3), tokens=4, experts=8, topk=2, weights=False, announce=True, id_bytes=1, footer=True):
    header = number(3, experts) + number(4, topk) + packed(5, layers) + number(6, id_bytes)
    header += number(7, int(weights)) + (number(8, tokens) if announce else b"")
    ids = [(t + i * 3) % experts for _ in layers for t in range(tokens) for i in range(topk)]
    chunk = number(1, 0) + number(2, tokens) + packed(3, [0, tokens // 2])
    chunk += blob(4, struct.pack("<%d%s" % (len(ids), "BH"[id_bytes - 1]), *ids))
    if weights:
        chunk += blob(5, struct.pack("<%df" % len(ids), *[0.5] * len(ids)))
    out = b"MOETRC\x00\x01" + record(1, header) + record(2, chunk)
    return out + (record(4, number(1, tokens) + number(2, 2) + number(3, 1)) if footer else b"")


def moet_counts():
    header = number(3, 4) + number(4, 2) + packed(5, [0, 2]) + number(9, 1)
    counts = [record(3, number(1, layer) + packed(2, [1, 2, 3, 4])) for layer in (0, 2)]
    return b"MOETRC\x00\x01" + record(1, header) + b"".join(counts) + record(4, number(3, 2))


def plan():
    header = blob(1, "m") + number(2, 64) + blob(3, "bf16") + blob(4, "bf16") + number(5, 1)
    layer = blob(1, "dedup") + number(2, 1) + number(3, 2) + number(4, 2) + number(5, 2) + number(6, 1)
    layer += number(7, 1) + packed(10, [0, 1, 2]) + packed(11, [0, 1, 2]) + blob(12, struct.pack("<2H", 0, 1))
    layer += packed(13, [1, 1]) + packed(14, [2]) + packed(15, [0]) + number(16, 1)
    layer += blob(17, "group") + blob(18, "dispatch") + blob(19, "combine")

    def column(*values):
        return struct.pack("<%dI" % len(values), *values)

    moves = blob(2, column(0, 1)) + blob(3, column(1, 0)) + blob(4, column(1, 1)) + blob(5, column(1, 1))
    moves += blob(8, column(0, 0)) + blob(9, column(0, 1))
    return (b"MOEPLN\x00\x02" + record(1, header) + record(2, layer) + record(4, moves)
            + record(6, number(1, 1) + number(2, 3)))


for options in ({}, {"weights": True}, {"announce": False}, {"id_bytes": 2}, {"layers": (5,)}, {"tokens": 1},
                {"topk": 1}, {"footer": False}, {"experts": 300, "id_bytes": 2}):
    add("moet", moet(**options))
add("moet", moet_counts(), b"MOETRC\x00\x01", b"MOETRC\x00\x02", moet()[:-3], b"")
# Sizes whose product leaves 64 bits.
add("moet", b"MOETRC\x00\x01" + record(1, number(3, 65535) + number(4, 32) + packed(5, range(300)) + number(6, 2)
                                     + number(8, 2**63)) + record(2, number(2, 2**32 - 1)))
add("plan", plan(), plan()[:-5], b"MOEPLN\x00\x02", b"MOEPLN\x00\x01")

# ------------------------------------------------------------ arrays and archives


def npy(descr: str, shape, data: bytes, fortran=False) -> bytes:
    header = "{'descr': '%s', 'fortran_order': %s, 'shape': (%s), }" % (
        descr, fortran, "".join("%d, " % extent for extent in shape))
    header += " " * (-(10 + len(header) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def archive(members, method=zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return out.getvalue()


ids = [0, 1, 2, 3, 4, 5, 6, 7, 1, 0, 3, 2]  # [3 tokens, 2 layers, 2]
arrays = [npy("<i4", (3, 2, 2), struct.pack("<12i", *ids)), npy("|u1", (3, 2, 2), bytes(ids)),
          npy("<i8", (3, 2, 2), struct.pack("<12q", *ids)), npy("<i2", (3, 2, 2), struct.pack("<12h", *ids)),
          npy("<f4", (2,), struct.pack("<2f", 1, 2)), npy("<f2", (2,), b"\x00<\x00@"), npy("<f8", (), b"\0" * 8),
          npy("|O", (1,), b"x"), npy("<i4", (2**40, 2**40, 0), b""), npy("<i4", (2**63, 2**63), b""),
          npy("<i4", (1,), b"\0" * 4, True), npy("<i4", (3, 2, 3), struct.pack("<18i", *(ids + [-1] * 6)))]
add("npy", *arrays, b"\x93NUMPY", b"\x93NUMPY\x03\x00\xff\xff\xff\xff")
add("import-npy", *arrays)
weights = npy("<f4", (3, 2, 2), struct.pack("<12f", *[0.5] * 12))
companions = [("topk_weights.npy", weights), ("seq_len.npy", npy("<i8", (2,), struct.pack("<2q", 1, 2))),
              ("layers.npy", npy("<i8", (2,), struct.pack("<2q", 1, 3))),
              ("num_experts.npy", npy("<i8", (1,), struct.pack("<q", 8)))]
for array in arrays[:4]:
    add("import-npz", archive([("routed_experts.npy", array)]))
add("import-npz", archive([("routed_experts.npy", arrays[0])] + companions),
    archive([("routed_experts.npy", arrays[0])] + companions, zipfile.ZIP_STORED),
    archive([("routed_experts.npy", arrays[0]), ("prompt_token_ids.npy", npy("<i4", (2,), b"\1\0\0\0\2\0\0\0")),
             ("output_token_ids.npy", npy("<i4", (2,), b"\3\0\0\0\4\0\0\0"))]),
    archive([]), archive([("x", b"y")]), archive([("routed_experts.npy", b"\0" * 100000)])[:-10])


# ------------------------------------------------------------ pickles


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def integers(values) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(storage: str, key: str, size: int, shape, strides) -> bytes:
    return (b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\n" + storage.encode() + b"\n"
            + text(key) + text("cpu") + integer(size) + b"tQ" + integer(0) + integers(shape) + integers(strides)
            + b"\x89ccollections\nOrderedDict\n)RtR")


def mapping(**items) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def listing(*items) -> bytes:
    return b"](" + b"".join(items) + b"e"


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def torch_file(value: bytes, *storages: bytes) -> bytes:
    members = [("dump/data.pkl", pickled(value)), ("dump/byteorder", b"little")]
    members += [("dump/data/%d" % i, storage) for i, storage in enumerate(storages)]
    return archive(members, zipfile.ZIP_STORED)


choices = struct.pack("<32i", *[0, 1, -1, -1, -1, -1, -1, -1, 2, 3, -1, -1, -1, -1, -1, -1] * 2)
layer_map = tensor("LongStorage", "1", 16, (2, 8), (8, 1))
maps = struct.pack("<16q", *(list(range(8)) * 2))
one_pass = mapping(forward_pass_id=integer(7), rank=integer(0), gatherer_key=text("primary"),
                   input_ids=listing(integer(5), integer(6)), positions=listing(integer(0), integer(1)),
                   extend_seq_lens=listing(integer(2)), forward_mode=integer(1),
                   topk_ids_of_layer=tensor("IntStorage", "0", 32, (2, 2, 8), (16, 8, 1)), misc_objects=listing(),
                   global_physical_count=tensor("IntStorage", "0", 32, (2, 8), (8, 1)))
counts = mapping(logical_count=tensor("LongStorage", "0", 16, (2, 8), (8, 1)), rank=integer(0))
steps = mapping(logical_count=tensor("LongStorage", "0", 16, (1, 2, 8), (16, 8, 1)), rank=integer(0))
add("import-sglang", torch_file(mapping(records=listing(one_pass), last_physical_to_logical_map=layer_map), choices, maps),
    torch_file(counts, maps), torch_file(steps, maps), torch_file(mapping(records=listing()), choices),
    torch_file(listing(one_pass), choices))
add("pickle", *map(pickled, (one_pass, counts, listing(), b"]\x94h\x00a", b"(((((", b"}q\x00h\x00h\x00s", b"K\x01M\x02\x00t",
                             b"\x8a\x08" + b"\xff" * 8, b"G" + b"\x7f" * 8, b"cos\nsystem\n", b"\x95" + b"\xff" * 8 + b"N")))

# ------------------------------------------------------------ text recordings

deep = "[" * 100000
numbers = ("1e999", "-1e999", "1e-999", "18446744073709551616", "-0.0", "1" * 400, "0.3448E892958014696")
add("import-json", '[{"0": null, "1": [[0, 1], [2, 3]]}, {"1": [4, 5]}]', '[{"0": [[0,1]], "2": [[1,0]]}, {"0": [[6,7]], "2": [0,1]}]',
    "[]", "{}", deep, '[{"0":' + deep + "}]")
add("import-hf-json", '{"router_logits": [[[1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1]]], "top_k": 2}',
    '{"router_logits": [null, [[1, 2, 3, 4, 5, 6, 7, 9.5]]], "top_k": 2, "seq_len": [1], "layers": [0, 1], '
    '"e_score_correction_bias": [null, [0, 0, 0, 0, 0, 0, 0, 1]]}', '{"router_logits": []}', '{"router_logits": [[[[1]]]]}', deep)
meta = '{"type": "meta", "model_id": "m", "top_k": 2, "num_experts": 8, "layers_logged": [0]}\n'
route = '{"type": "route", "req_id": "%s", "token_idx": %d, "layer": %d, "topk_ids": [%d, 3], "topk_weights": [0.5, 0.5]}\n'
add("import-vllm-jsonl", meta + route % ("a", 0, 0, 1) + route % ("a", 1, 0, 2), route % ("b", 0, 0, 1), meta,
    meta + "".join(route % ("w", t, 0, 1) for t in range(20)) + route % ("a", 0, 0, 2), '{"type": ' + deep)
megatron = ('{"step": %d, "stage": "pre_dispatch", "block": "%s", "layer": %d, "rank": 0, "num_tokens": 2, "topk": 2, '
            '"top_indices": [[0, 1], [2, 3]]}\n')
add("import-megatron-jsonl", megatron % (0, "decoder", 1), megatron % (0, "decoder", 1) + megatron % (0, "decoder", 2),
    megatron % (0, "mtp", 1), megatron % (0, "decoder", 1) * 2, deep)
fingerprint = ('{"full_text": ["a"], "finished_successfully": true, "router_data": [{"token_9": {"layer_0": '
               '{"selected_experts": [3, 1], "selected_probs": [0.75, 0.25]}}}]}')
add("import-gpt-oss-json", fingerprint, "[" + fingerprint + "]", '{"router_data": []}', '{"router_data": [{"token_1": {}}]}', deep)
add("import-csv", "layer,token,expert\n0,0,1\n0,0,2\n0,1,3\n0,1,4\n", "layer,expert,count\n0,0,5\n0,1,7\n", '0,"1 2"\n0,"3 4"\n',
    "layer_id,expert_id,tokens\n1,2,3\n", "\xef\xbb\xbflayer,token,expert\r\n0,0,1\r\n", "layer,token,rank,expert,weight\n0,0,0,1,0.5\n")
add("import-esft", "1\t2\t3\t4\t\t0.5\t0.5\t0.25\t0.75\n", "0\t1\t\t1e-3\t1\n5\t6\t\t0\t0\n", "1\t2\t\tnan\tinf\n", "\t\t\n")


def safetensors(header: str, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


tensor_text = '{"50_3": {"dtype": "I64", "shape": [8], "data_offsets": [0, 64]}}'
add("import-trtllm", safetensors(tensor_text, struct.pack("<8q", *range(8))), safetensors(tensor_text, b""),
    struct.pack("<Q", 2**64 - 1), safetensors("{}", b""), safetensors(deep[:5000], b""))
for target in ("import-json", "import-hf-json", "import-vllm-jsonl", "import-megatron-jsonl", "results", "placement", "timeline"):
    add(target, *numbers)

# ------------------------------------------------------------ plans' traffic, placements, results

add("matrix", "0 1\n2 0\n", "0,100,200\n100,0,300\n1,2,3\n", "# nothing\n5\n", "0 1\n", "0 1125899906842625\n0 0\n", "1e3 2\n3 4\n")
add("htsim", "Nodes 2\nConnections 1\n0->1 id 1 start 0 size 100\n",
    "Nodes 4\nConnections 2\nTriggers 0\nFailures 0\n0->1 id 1 start 5 size 1\n3->2 id 2 start 1e300 size 7 prio 1\n",
    "Nodes 1048577\n", "Nodes 2\nConnections 1\n0->1 id 1 start 9e18 size 1\n")
own = {"schema_version": 1, "strategy": "s", "trained_on": "", "num_experts": 4, "num_ranks": 2, "ranks_per_node": 2,
       "layers": [{"layer": 1, "rank_experts": [[0, 2], [1, 3]]}]}
ascend = {"moe_layer_count": 1, "layer_list": [{"layer_id": 0, "device_count": 2, "device_list": [
    {"device_id": 0, "device_expert": [0, 1]}, {"device_id": 1, "device_expert": [2, 3]}]}]}
add("placement", json.dumps(own), json.dumps(own | {"replica_choice": "static"}), json.dumps(ascend),
    '{"physical_to_logical_map": [[0, 2, 1, 3]]}', "[[0, 1, 2, 3], [3, 2, 1, 0]]", "[0, 1, 2, 3]",
    '{"model_maps": {"m": {"physical_to_logical_map": [[0, 1]]}}}', '{"0": [0, 1, 2, 3]}',
    '{"initial_global_assignments": {"0": [0, 1, 2, 3]}, "num_slots": 4}', '{"a": 1, "a": 2}', deep)
layer = {"layer": 1, "time_s": 1e-3, "bound_s": 1e-3, "copies": 2, "fanout_ranks": 1.5, "phases": [
    {"phase": "dispatch", "begin_s": [0, 0], "end_s": [1e-3, 5e-4]}], "groups": [
    {"phase": "dispatch", "tier": "network", "num_transfers": 1, "num_rows": 1, "bytes": 10, "max_rank_send_bytes": 10,
     "max_rank_receive_bytes": 10}], "busiest_link": {"name": "l", "tier": "network", "bytes": 1, "utilization": 0.5}}
run = {"schema_version": 1, "kind": "predicted", "engine": "flow", "name": "a", "policy": "dedup", "placement": "contiguous",
       "exact": True, "topology": "t", "model": "m", "num_ranks": 2, "payload": {"dispatch": "bf16", "combine": "bf16"},
       "layers": [layer, layer]}
add("results", json.dumps({"schema_version": 1, "experiment": "e", "runs": [run]}),
    json.dumps({"schema_version": 1, "experiment": "e", "runs": [run | {"failure": "x", "layers": []}]}),
    json.dumps({"schema_version": 1, "experiment": "e", "runs": [run, run | {"name": "b", "policy": "standard"}]}),
    json.dumps({"schema_version": 2}), deep)
event = {"ph": "C", "name": "l", "pid": 1, "ts": 0, "args": {"GB/s": 1.0}}
add("timeline", json.dumps({"traceEvents": [event, event | {"ts": 1000, "args": {"GB/s": 0.0}}]}),
    json.dumps({"traceEvents": [{"ph": "X", "name": "x"}, event, event | {"ts": 2000, "args": {"GB/s": 0.0}}]}),
    '{"traceEvents": [[], {"ph": 1}]}', deep)
first = '{"coterie":"0.1.0","schema_version":1,"sweep":"0123456789abcdef"}\n'
add("journal", first, first + '{"id":"a","status":"ok","rows":"[{\\"run\\":\\"a\\",\\"layer_time_s\\":1.0}]"}\n',
    first + '{"id":"b","status":"failed","error":"x","exit_code":2}\n{"id":', first + "{}\n[]\n1\n", '{"schema_version":"1"}\n', '{"coterie":1}\n', deep + "\n")
add("csv", "a,b\n1,2\n", 'a,b\n"x, ""y""",\'=1\n', "a\n\n\"\"\n", "a,a\n", 'a\n"open', "a,b\r\n=1+1,@x\r\n")
add("row-exchanges", (SOURCE / "tests/sim/calibrate/kernel_fit_test.cpp").read_text()[:2000],
    "machine,device,library,rows_src_dst\nm,d,l,\"[[0,1],[2,0]]\"\n")

# ------------------------------------------------------------ measurements

add("alltoall", "machine,device,version,num_gpus,bytes_per_rank,latency_us\nm,d,v,2,512,3\n",
    '{"schema_version": 2, "num_ranks": 2, "device": "d", "curves": [{"kind": "alltoall", "bytes_per_pair": 8, "median_us": 2}]}',
    '{"nccl_version": 22703, "args": ["alltoall_perf"], "config": {"devices": [{"rank": 0, "group": 0, "device_info": "H"}]}, '
    '"results": [{"size": 8, "count": 1, "type": "float", "redop": "none", "root": "-1", "in_place": null, '
    '"out_of_place": {"time": 1.0, "alg_bw": 1, "bus_bw": 1, "nwrong": 0}}]}', deep)
log = """# nccl-tests version 2.17.6
# Collective test starting: alltoall_perf
# nThread 1 nGpus 2 minBytes 8 maxBytes 8 step: 2(factor) warmup iters: 1 iters: 20 agg iters: 1 validation: 1 graph: 0
#
# Using devices
#  Rank  0 Group  0 Pid   4000 on     hostA device  0 [0x41] NVIDIA H20
#  Rank  1 Group  0 Pid   4001 on     hostA device  1 [0x42] NVIDIA H20
#
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
     1048576        131072     float    none      -1    20.00   52.43   26.21      0    20.00   52.43   26.21    N/A
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 26.2
"""
add("alltoall", log, log.replace("20.00", "1e999"), log.replace("Rank  1", "Rank 99999999999"), log.replace("-1 ", "   "))

# ------------------------------------------------------------ YAML

for folder, target in (("topologies/presets", "topology"), ("topologies/calibrated", "topology"),
                       ("tests/topologies/malformed", "topology"), ("workloads/models", "model"),
                       ("workloads/examples", "workload"), ("workloads/examples", "experiment")):
    for path in sorted((SOURCE / folder).glob("*.yaml")):
        if path.stat().st_size < 6000:
            add(target, path.read_bytes())
base = "schema_version: 1\nbase: base.yaml\n"
axis = "  - {key: %s, values: %s}\n"
axes = base + "axes:\n" + axis % ("ranks", "[1, 2]")
add("sweep", axes, axes + axis % ("model", "[a, b]") + "skip: [{ranks: 1, model: a}]\n",
    base + "axes:\n  - zip:\n    - {key: a, values: [1, 2]}\n    - {key: b, values: [3, 4]}\n",
    axes + "runs: [a]\nbaseline: {ranks: 1}\n", base + "axes: []\n", base + "axes: &a [*a]\n",
    axes.replace("[1, 2]", "[" + "1, " * 300 + "1]"))
add("experiment", """schema_version: 1
name: e
topology: star
model: mixtral_8x7b
trace: {file: t.moet, train: even, eval: odd}
ranks: 4
tokens_per_rank: 64
payload: {dispatch: fp8, combine: bf16}
runs:
  - {name: a, placement: contiguous, dispatch: dedup}
  - {name: b, placement: collaboration, dispatch: standard, prune: {method: router_score, devices: 2}}
""", "schema_version: 1\ntopology: &t {extends: star, nic: *t}\nranks: 2\n", "model: &m {extends: mixtral_8x7b, x: *m}\n",
    "topology: e.yaml\nschema_version: 1\nranks: 1\nmodel: e.yaml\n")
aliases = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    "%s: &%s [%s]\n" % (b, b, ", ".join(["*" + a] * 9)) for a, b in zip("abcdefgh", "bcdefghi"))
for target in ("topology", "model", "workload", "experiment", "sweep"):
    add(target, aliases, "[" * 3000, "{" * 3000, "a: &a {b: *a}\n", "&a [*a]", "? {a: 1}\n: 2\n", "a: 1e999\nb: .inf\n", "--- a\n--- b\n")
for unit in ("1e-308 B/s", "1e308 TB/s", "1e12 s", "-1 us", "1e999 s", "nan B/s", "0x10 B/s", "1 kB"):
    add("topology", "schema_version: 1\nextends: star\nnic: {bandwidth: %s, latency: %s}\n" % (unit, unit))
add("override", "a.b=2", "a.c.1.d=[1]", "a.c.9=1", "a={x: &x [*x]}", "a.b.c=1", "=1", "x", "a.b=*x", "a.b=" + "[" * 1000, "q.r.s=&a {}")

# ------------------------------------------------------------ topologies of other programs

smi = "\t\x1b[4mGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
smi += "GPU0\t X \tNV18\tPIX\t0-55\t0\t\tN/A\nGPU1\tNV18\t X \tSYS\t0-55\t0\t\tN/A\nNIC0\tPIX\tSYS\t X \n\nLegend:\n\n  X    = Self\n"
gpu = '<pci busid="0000:%02x:00.0" class="0x030200" link_speed="32.0 GT/s PCIe" link_width="16"><gpu dev="%d" sm="90" rank="%d" gdr="1">' \
      '<nvlink target="0000:%02x:00.0" count="18" tclass="0x030200"/></gpu></pci>'
xml = '<system version="1"><cpu host_hash="0x1" numaid="0" affinity="ff" arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="143">'
xml += gpu % (1, 0, 0, 2) + gpu % (2, 1, 1, 1) + "</cpu></system>"
platform = ('<?xml version="1.0"?>\n<!DOCTYPE platform SYSTEM "https://simgrid.org/simgrid.dtd">\n<platform version="4.1">\n'
            '<cluster id="c" prefix="n" suffix="" radical="0-3" speed="1Gf" bw="10GBps" lat="1us"/>\n</platform>\n')
add("topology-import", smi, smi.replace("NV18", "NV4"), xml, xml.replace("18", "99999999999"), platform,
    platform.replace("0-3", "0-99999999999"), platform.replace("10GBps", "1e999GBps"), "<a>" * 3000, "<system>", "\tGPU0\n")


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: make_corpus.py FOLDER")
    num_files = 0
    for target, contents in sorted(seeds.items()):
        folder = Path(sys.argv[1]) / target
        folder.mkdir(parents=True, exist_ok=True)
        for i, content in enumerate(contents):
            (folder / ("seed-%03d" % i)).write_bytes(content)
            num_files += 1
    print("%d seeds for %d targets in %s" % (num_files, len(seeds), sys.argv[1]))


if __name__ == "__main__":
    main()
