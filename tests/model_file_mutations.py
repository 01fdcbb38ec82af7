"""Damage to model files: of bytes, and of descriptions that are signed again, as somebody with bad intentions would."""

import copy
import json
import math
import random

import safetensors.torch
import torch

from sklearn_hyper.modules.model_file import checksum


# ---------------------------------------------------------------------- bytes
def flip_bits(content, rng):
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8, 64])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def truncate(content, rng):
    return content[: rng.randrange(len(content))]


def extend(content, rng):
    return content + rng.randbytes(rng.choice([1, 8, 1000]))


def overwrite(content, rng):
    start = rng.randrange(len(content))
    piece = rng.choice([bytes, rng.randbytes])(rng.choice([1, 4, 100]))
    return content[:start] + piece + content[start + len(piece) :]


def cut_out(content, rng):
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.randrange(1, 100) :]


def move(content, rng):
    a, b, c = sorted(rng.randrange(len(content)) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def lengthen_header(content, rng):
    size = rng.choice([0, 1, 2**20, 2**31, 2**40, 2**63 - 1, 2**64 - 1])
    return size.to_bytes(8, "little") + content[8:]


BYTES = (flip_bits, truncate, extend, overwrite, cut_out, move, lengthen_header)

# ---------------------------------------------------------------------- the header of a safetensors file
HUGE = (2**31, 2**40, 2**62, 2**63, 10**30)


def change_header(content, rng):
    """Other shapes, offsets, dtypes and names of tensors, in a header that parses."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    one, other = header[rng.choice(names)], header[rng.choice(names)]
    kind = rng.randrange(7)
    if kind == 0:
        one["shape"] = [rng.choice(HUGE)] * rng.randrange(1, 4)
    elif kind == 1:
        one["shape"] = [0, rng.choice(HUGE)]
    elif kind == 2:
        one["data_offsets"] = [rng.choice([0, -1, *HUGE]), rng.choice([0, 1, *HUGE])]
    elif kind == 3:
        one["dtype"] = rng.choice(["F64", "F32", "I64", "U8", "F8_E4M3", "C64", "X", 3])
    elif kind == 4:
        one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]
    elif kind == 5:
        one["shape"], other["shape"] = other["shape"], one["shape"]
    else:
        header["__metadata__"] = rng.choice([None, [], {}, {"sklearn_hyper": 3}, {"sklearn_hyper": "["}])
    return pack_header(header, content[8 + size :])


def pack_header(header, data):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


# ---------------------------------------------------------------------- descriptions, signed again
WRONG = (
    None, True, False, 0, -1, 1, 2.5, math.nan, math.inf, -math.inf, "", "x", "pickle", "os.system", [], {}, [1], {"a": 1},
    10**6, 2**31, 2**63, 10**400, 1e308, -1e308, "x" * 10_000, [[]] * 100, {"tuple": [1, 2]}, {"class": "Popen"},
    {"class": "RungeKutta", "fields": {}}, {"template": "vector_field"}, {"template": "memory"}, {"type": "Adam"},
    {"array": "t0", "dtype": "O", "shape": [1]}, {"array": "t0", "dtype": "<f8", "shape": [10**12]}, {"dtype": "float16"},
    {"array": ["a"], "dtype": "<U900000000"}, {"module": "Linear", "values": {"in_features": 10**9}, "parts": {}},
)  # fmt: skip


def _places(node, found):
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        found.append((node, key))
        if isinstance(value, (dict, list)):
            _places(value, found)
    return found


def change_description(model, rng):
    """Change values of a description: to other types, huge numbers, other values of it; drop and rename keys."""
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        places = _places(model, [])
        holder, key = rng.choice(places)
        other, other_key = rng.choice(places)
        kind = rng.randrange(6)
        if kind <= 1:
            holder[key] = copy.deepcopy(rng.choice(WRONG))
        elif kind == 2:
            value = holder[key]
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                holder[key] = rng.choice([value + 1, -value, value * 10**6, float(value), str(value), 2**40])
            else:
                holder[key] = copy.deepcopy(rng.choice(WRONG))
        elif kind == 3:
            holder[key], other[other_key] = (
                json.loads(json.dumps(other[other_key])),
                json.loads(json.dumps(holder[key])),
            )
        elif kind == 4:
            del holder[key]
        elif isinstance(holder, dict):
            holder[rng.choice(["class", "template", "state", "fields", "x"])] = holder.pop(key)
    return model


def change_tensors(tensors, rng):
    one, other = rng.choice(sorted(tensors)), rng.choice(sorted(tensors))
    kind = rng.randrange(6)
    if kind == 0:
        tensors[one], tensors[other] = tensors[other], tensors[one]
    elif kind == 1:
        tensors[one] = tensors[one].reshape(-1)[: rng.randrange(4)].clone()
    elif kind == 2:
        tensors[one] = tensors[one].to(rng.choice([torch.float32, torch.float64, torch.int64, torch.bfloat16]))
    elif kind == 3:
        tensors[one] = torch.full_like(tensors[one], rng.choice([0, 1])).unsqueeze(0)
    elif kind == 4:
        del tensors[one]
    elif tensors[one].is_floating_point():
        tensors[one] = torch.full_like(tensors[one], rng.choice([math.nan, math.inf, 1e30]))
    return tensors


def sign(description, tensors):
    """Write what somebody has made of a file, with a checksum that fits."""
    if not isinstance(description, str):
        description = json.dumps(description | {"sha256": checksum(description, tensors)})
    return safetensors.torch.save(tensors, metadata={"sklearn_hyper": description})


def change_and_sign(content, rng):
    size = int.from_bytes(content[:8], "little")
    text = json.loads(content[8 : 8 + size])["__metadata__"]["sklearn_hyper"]
    tensors = safetensors.torch.load(content)
    description = json.loads(text)
    del description["sha256"]
    kind = rng.randrange(10)
    if kind == 0:
        return sign(rng.choice(["[" * 100_000, "", "{}", "[]", "3", '{"format_version": 2}', text[:-1]]), tensors)
    if kind == 1:
        description[rng.choice(sorted(description))] = copy.deepcopy(rng.choice(WRONG))
    elif kind <= 3:
        tensors = change_tensors(tensors, rng)
    else:
        description["model"] = change_description(description["model"], rng)
    return sign(description, tensors)


DAMAGES = (*BYTES, change_header)


def mutations(content, n, seed):
    """Damaged copies of a file's content, half of them signed again: pairs (is it signed, content)."""
    rng = random.Random(seed)
    for i in range(n):
        if i % 2:
            yield True, change_and_sign(content, rng)
        else:
            yield False, rng.choice(DAMAGES)(content, rng)
