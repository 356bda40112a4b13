"""Seeded mutations of files: of bytes, of JSON and YAML trees, of rows of text, of images, of checkpoints."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bevkd2.runtime import seal
from bevkd2.runtime.graph import METADATA_KEY

NESTED = "<nested>"  # stands for lists within lists, which no encoder writes
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 0.0, 0.5, 3.7, 2**31, 2**63, -(2**63), 10**30, 1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "1", "nan", "None", "x" * 100_000),
    *("\ud800", "\u00e9\u202e\0", "\u0661", "../../etc/passwd", "/dev/zero", "~", "%s{0}"),
    *([], [[]], {}, {"a": 1}, [0] * 1000, [None], NESTED),
)
NUMBERS = (b"nan", b"inf", b"-1", b"1e308", b"1e999", b"9223372036854775808", b"0", b"-0.0", b"1_0", b"0x10")
WORDS = (
    *NUMBERS,
    b"",
    b"Car",
    b"#",
    b"\xd9\xa1",
    b"\xff",
    b"\0",
    b"1,5",
    b"1e-320",
    b"A" * 100_000,
    b"99" * 300,
)


@dataclass(frozen=True)
class Mutation:
    """A mutated file.

    Attributes:
        name: what was done, for reports.
        data: the content.
        field: the field of a record that was changed; an error must name it.
    """

    name: str
    data: bytes
    field: str = ""


def mutate_bytes(rng: random.Random, data: bytes) -> Mutation:
    """Changes bytes without looking at what they mean."""
    size = max(len(data), 1)
    a, b = sorted(rng.randrange(size) for _ in range(2))
    b = min(b, a + rng.choice((1, 4, 64, size)))
    place = rng.randrange(size)
    ways: dict[str, Callable[[], bytes]] = {
        "flip": lambda: _flipped(rng, data),
        "truncate": lambda: data[:place],
        "empty": lambda: b"",
        "zero": lambda: data[:a] + bytes(b - a) + data[b:],
        "splice": lambda: data[:a] + data[place : place + b - a] + data[b:],
        "remove": lambda: data[:a] + data[b:],
        "duplicate": lambda: data[:b] + data[a:b] + data[b:],
        "insert": lambda: data[:a] + rng.randbytes(rng.choice((1, 8, 300))) + data[a:],
        "append": lambda: data + rng.choice((b"\0", b"\n", data, rng.randbytes(64))),
        "other file": lambda: rng.choice(
            (b"<!DOCTYPE html>", b"\x1f\x8b\x08", b"PK\x03\x04", b"%PDF", b"null")
        ),
    }
    name = rng.choice([*ways, "flip", "truncate"])
    return Mutation(name, ways[name]())


def mutate_text(rng: random.Random, data: bytes) -> Mutation:
    """Changes the encoding or the ends of lines of a text."""
    text = data.decode(errors="replace")
    ways: dict[str, Callable[[], bytes]] = {
        "byte-order mark": lambda: b"\xef\xbb\xbf" + data,
        "UTF-16": lambda: text.encode("utf-16"),
        "CRLF": lambda: data.replace(b"\n", b"\r\n"),
        "CR": lambda: data.replace(b"\n", b"\r"),
        "separators": lambda: data.replace(b"\n", b"\x0c").replace(b" ", b"\xc2\xa0"),
        "blank lines": lambda: b"\n \n" + data.replace(b"\n", b"\n\n") + b"\t\n",
    }
    name = rng.choice(list(ways))
    return Mutation(name, ways[name]())


def _flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def mutate_tree(rng: random.Random, tree: Any) -> tuple[str, str, Any]:
    """Changes one place of a tree of dicts and lists; returns what was done, the field, and the tree."""
    tree = copy.deepcopy(tree)
    parent, key, field = _place(rng, tree)
    if parent is None:
        return "odd root", "", rng.choice(ODD)
    old = parent[key]
    ways: dict[str, Callable[[], Any]] = {
        "odd": lambda: rng.choice(ODD),
        "wrap": lambda: [old],
        "as text": lambda: str(old),
        "of a sibling": lambda: _sibling(rng, tree, key, old),
    }
    if type(old) in (int, float):
        ways["number"] = lambda: rng.choice((-old, old * 1000, old + 1, old / 3, int(old), float(old)))
    name = rng.choice([*ways, "odd", "drop", "duplicate"])
    if name == "drop":
        del parent[key]
    elif name == "duplicate" and isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(old))
    elif name == "duplicate":
        parent[f"{key} "] = parent.pop(key)  # a key that nobody knows
    else:
        parent[key] = ways[name]()
    shown = repr(parent[key])[:40] if name in ways else ""
    return f"{name} {'.'.join(map(str, (field, key)))} {shown}", field, tree


def _place(rng: random.Random, tree: Any) -> tuple[Any, Any, str]:
    """Returns a container in the tree, a key in it, and the innermost key of a dict on the way there."""
    parent, key, field, node = None, None, "", tree
    while isinstance(node, (dict, list)) and node and (parent is None or rng.random() < 0.8):
        parent, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        field = str(key) if isinstance(node, dict) else field
        node = node[key]
    return (None, None, "") if rng.random() < 0.02 else (parent, key, field)


def _sibling(rng: random.Random, tree: Any, key: Any, old: Any) -> Any:
    """Returns what another record has under the same key."""
    records = list(tree.values()) if isinstance(tree, dict) else tree
    found = [row[key] for row in records if isinstance(row, dict) and key in row and row[key] != old]
    return copy.deepcopy(rng.choice(found)) if found else old


def mutate_json(rng: random.Random, data: bytes) -> Mutation:
    """Changes a value, the encoding or the bytes of a JSON file."""
    if rng.random() < 0.3:
        return rng.choice((mutate_bytes, mutate_text))(rng, data)
    name, field, tree = mutate_tree(rng, json.loads(data))
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.9)
    if rng.random() < 0.05 and field:
        name, text = f"{name}; key twice", text.replace(f'"{field}":', f'"{field}": 7, "{field}":', 1)
    return Mutation(name, _nested(text).encode(errors="surrogatepass"), field)


def _nested(text: str) -> str:
    return text.replace(json.dumps(NESTED), "[" * 20_000 + "]" * 20_000)


def mutate_yaml(rng: random.Random, data: bytes) -> Mutation:
    """Changes a value, a line, the encoding or the bytes of a YAML file."""
    import yaml

    draw = rng.random()
    if draw < 0.3:
        return rng.choice((mutate_bytes, mutate_text))(rng, data)
    if draw < 0.5:
        lines = data.decode().splitlines()
        at = rng.randrange(len(lines))
        key = lines[at].partition(":")[0]
        odd = (
            *(
                f"{key}:",
                f"\t{lines[at]}",
                f" {lines[at]}",
                lines[at].lstrip(),
                f"{key}: !!python/name:os.system",
            ),
            *(
                f"{key}: &a [*a, *a]",
                f"{key}: *nowhere",
                f"{key}: @",
                f"{key}: {{",
                f"{key}: 'x",
                "? [a]\n: 1",
            ),
            *(
                f"{key}: 1e-4",
                f"{key}: 1:30",
                f"{key}: 0o17",
                f"{key}: 2020-01-01",
                f"{key}: yes",
                f"{key}: (1,)",
            ),
            *(f"{key}: {text}" for text in ("010", "0x10", "1_000", "1e3", "off", "[010, 1:30]", "'010'")),
            *("---", "<<: {A: 1}", "%YAML 9.9", f"{key}: !!binary aGk=", f"{key}: !!set {{a}}", lines[at]),
        )
        lines[at : at + rng.choice((0, 1))] = [rng.choice(odd)]
        return Mutation("line", "\n".join(lines).encode())
    name, _, tree = mutate_tree(rng, yaml.safe_load(data))
    return Mutation(name, _nested(json.dumps(tree)).encode())  # JSON is YAML


def mutate_rows(rng: random.Random, data: bytes) -> Mutation:
    """Changes a word, a row, the encoding or the bytes of a file of rows."""
    draw = rng.random()
    if draw < 0.35:
        return rng.choice((mutate_bytes, mutate_text))(rng, data)
    rows = [line.split(b" ") for line in data.splitlines()] or [[b""]]
    at = rng.randrange(len(rows))
    column = rng.randrange(len(rows[at]))
    name = rng.choice(
        ("word", "word", "word", "row gone", "row twice", "rows swapped", "column gone", "column more")
    )
    if name == "word":
        rows[at][column] = rng.choice(WORDS)
    elif name == "row gone":
        del rows[at]
    elif name == "row twice":
        rows.insert(rng.randrange(len(rows)), rows[at])
    elif name == "rows swapped":
        rows[at], rows[-1] = rows[-1], rows[at]
    elif name == "column gone":
        del rows[at][column]
    else:
        rows[at].insert(column, rng.choice(WORDS))
    return Mutation(f"{name} {at}.{column}", b"\n".join(map(b" ".join, rows)) + b"\n" * rng.choice((0, 1)))


def mutate_image(rng: random.Random, data: bytes) -> Mutation:
    """Changes the header, the bytes, or the kind of a JPEG or PNG."""
    draw = rng.random()
    if draw < 0.45:
        return mutate_bytes(rng, data)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if draw < 0.7:  # the declared size: height and width in the frame header, or in IHDR
        size = [rng.choice((0, 1, 65_535, 2**31 - 1, 2**32 - 1, image.width, 30_000)) for _ in range(2)]
        if data[:1] == b"\x89":
            header = b"IHDR" + struct.pack(">II", *size) + data[24:29]
            return Mutation(
                f"declares {size}", data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
            )
        at = next(i for i in range(len(data)) if data[i : i + 2] in (b"\xff\xc0", b"\xff\xc2"))
        size = [side % 65_536 for side in size]
        return Mutation(f"declares {size}", data[: at + 5] + struct.pack(">HH", *size) + data[at + 9 :])
    file, name = io.BytesIO(), rng.choice(("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"))
    mode = rng.choice(("RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16"))
    resized = image.resize(rng.choice((image.size, (1, 1), (image.height, image.width), (4000, 1))))
    try:
        changed = resized.convert(mode if mode != "I;16" else "I").convert(mode)
        changed.save(file, name, **({"progressive": True} if name == "JPEG" and rng.random() < 0.5 else {}))
    except (OSError, ValueError):  # not every format has every mode
        resized.save(file, name)
        mode = "RGB"
    return Mutation(f"{name} {mode} {resized.size}", file.getvalue())


def mutate_checkpoint(rng: random.Random, data: bytes) -> Mutation:
    """Changes an entry, a tensor, a member of the archive, or the bytes of what ``torch.save`` wrote."""
    draw = rng.random()
    if draw < 0.3:
        return mutate_bytes(rng, data)
    if draw < 0.5:
        return _mutate_archive(rng, data)
    file = io.BytesIO()
    try:
        name, content = mutate_tensors(rng, torch.load(io.BytesIO(data), weights_only=True))
        torch.save(content, file)
    except (RuntimeError, TypeError):  # not every tensor can become everything
        return mutate_bytes(rng, data)
    return Mutation(name, file.getvalue())


def mutate_tensors(rng: random.Random, content: Any) -> tuple[str, Any]:
    """Changes one place of a content: a tensor, or what is not one."""
    parent, key, _ = _place(rng, content)
    if parent is None or not isinstance(parent[key], torch.Tensor):
        name, _, changed = mutate_tree(rng, content)
        return name, changed
    value = parent[key]
    ways: dict[str, Callable[[], Any]] = {
        "NaN": lambda: value * float("nan"),
        "half": value.half,
        "bytes": value.byte,
        "complex": lambda: value.to(torch.complex64),
        "bool": value.bool,
        "integers": value.long,
        "longer": lambda: torch.cat([value.reshape(-1), value.reshape(-1)]),
        "scalar": lambda: value.sum(),
        "one more axis": lambda: value[None],
        "transposed": lambda: value.T if value.ndim == 2 else value,
        "empty": lambda: value.reshape(-1)[:0],
        "sparse": value.to_sparse,
        "meta": lambda: value.to("meta"),
        "expanded": lambda: torch.zeros(1).expand(2**40),
        "list": value.tolist,
        "array": value.numpy,
        "other": lambda: rng.choice(ODD),
    }
    name = rng.choice([*ways, "renamed", "drop", "more"])
    if name == "drop":
        del parent[key]
    elif name in ("renamed", "more"):
        parent[f"module.{key}" if rng.random() < 0.5 else f"{key}."] = (
            value if name == "more" else parent.pop(key)
        )
    else:
        parent[key] = ways[name]()
    return f"{name} {key}", content


def _mutate_archive(rng: random.Random, data: bytes) -> Mutation:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chosen, file = rng.choice(list(members)), io.BytesIO()
    name = rng.choice(("gone", "cut off", "flip", "renamed", "twice", "compressed", "bomb"))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if name in ("compressed", "bomb") else 0) as archive:
        for member, content in members.items():
            if member != chosen:
                archive.writestr(member, content)
            elif name == "twice":
                archive.writestr(member, content)
                archive.writestr(f"{member} ", content)
            elif name != "gone":
                changed = {"cut off": content[:-3], "flip": _flipped(rng, content), "bomb": bytes(10**7)}
                archive.writestr(f"../{member}" if name == "renamed" else member, changed.get(name, content))
    return Mutation(f"member {chosen} {name}", file.getvalue())


def mutate_safetensors(rng: random.Random, data: bytes) -> Mutation:
    """Changes the header, the length of it, or the bytes of a safetensors file."""
    draw = rng.random()
    if draw < 0.35:
        return mutate_bytes(rng, data)
    (length,) = struct.unpack("<Q", data[:8])
    header, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    if draw < 0.45:
        odd = rng.choice((0, 1, length - 1, length + 1, 2**40, 2**63, 2**64 - 1))
        return Mutation(f"header of {odd} bytes", struct.pack("<Q", odd) + data[8:])
    if draw < 0.65:
        key = rng.choice([key for key in header if key != "__metadata__"])
        dtype = rng.choice(("F16", "F64", "I8", "BOOL", "U8", "F8_E4M3", "X", "I32", "C64"))
        shape = rng.choice((header[key]["shape"], [2**62, 4], [-1], [2**40, 0], [1] * 200))
        header[key] = {**header[key], "dtype": dtype, "shape": shape}
        name = f"{key} is {dtype} {str(shape)[:40]}"
    else:
        name, _, header = mutate_tree(rng, header)
    text = _nested(json.dumps(header)).encode()
    return Mutation(name, struct.pack("<Q", len(text)) + text + numbers)


def mutate_cache(rng: random.Random, data: bytes) -> Mutation:
    """Changes a file of a teacher's cache, or the safetensors file that is compressed in it."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, data)
    if rng.random() < 0.1:
        return Mutation("4 GiB of zeros", _zeros(256))
    mutation = mutate_safetensors(rng, zlib.decompress(data))
    return Mutation(f"compressed: {mutation.name}", zlib.compress(mutation.data, 1))


def _zeros(blocks: int) -> bytes:
    """So many times 16 MiB of zeros, compressed by zlib."""
    length = 2**24
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(length)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS).flush()
    adler = blocks * length % 65_521 << 16 | 1
    return b"\x78\xda" + block * blocks + end + struct.pack(">I", adler)


def mutate_exported(rng: random.Random, data: bytes) -> Mutation:
    """Changes the bytes of an exported ONNX file; of two in three, the checksum then matches again."""
    draw = rng.random()
    if draw < 0.33:
        return mutate_bytes(rng, data)
    if draw < 0.6:
        mutation = mutate_bytes(rng, data)
        return Mutation(f"{mutation.name}, sealed", _sealed(mutation.data), mutation.field)
    import onnx

    model = onnx.load_model_from_string(data)
    texts = {entry.key: entry.value for entry in model.metadata_props}
    name, _, tree = mutate_tree(rng, json.loads(texts[METADATA_KEY]))
    texts[METADATA_KEY] = _nested(json.dumps(tree))
    onnx.helper.set_model_props(model, texts)
    return Mutation(f"description: {name}", _sealed(model.SerializeToString()))


def _sealed(data: bytes) -> bytes:
    """The content with a checksum of it at the end."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        seal(file.name)
        return Path(file.name).read_bytes()


def random_image(seed: int, height: int, width: int) -> np.ndarray[Any, Any]:
    """Returns (height, width, 3) uint8 that compresses as a photograph does."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
