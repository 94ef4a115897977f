"""Ways to damage a file: by bytes, and by what its format is made of."""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["mutate_file", "mutated"]

NUMBERS = [0, 1, -1, 2, 127, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, -(2**63)]
DEEP = 3000
LONG = 100_000
LARGE = 1 << 22  # bytes; beyond them it is only bytes that change

VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        "",
        [],
        {},
        [[]],
        {"": None},
        0,
        -1,
        1,
        2**31,
        2**60,
        2**63,
        2**64,
        -(2**63),
        10**400,
        0.5,
        -0.0,
        1e308,
    ),
    *(
        float("nan"),
        float("inf"),
        "x" * LONG,
        "\ud800",
        "\0",
        "a\nb",
        "../../x",
        "/dev/zero",
        "__class__",
        "é" * 10,
        "1e999",
    ),
    *(
        "Pow(10, Pow(10, 10))",
        "Symbol('s0')",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "_operator.pow",
    ),
    *(
        "os.system",
        "[" * 500,
        [0] * 1000,
        list(range(40)),
        {"as_int": 2**60},
        {"as_int": -1},
        {"as_string": "/etc/passwd"},
    ),
]
TOKENS = [
    *(
        b"",
        b"\0" * 8,
        b"\xff" * 8,
        b"NaN",
        b"Infinity",
        b"1e999",
        b"[" * 2000,
        b"{" * 2000,
        b'{"a":' * 1500,
        b"\xff\xfe",
    ),
    *(
        b"-1",
        b"9" * 5000,
        b"'",
        b'"',
        b"\n\n",
        b"../../../x",
        b"(1000000000000,)",
        b"|O",
        b"'descr': 'O'",
        b"PK\x05\x06",
    ),
    *(b"%!PS-Adobe-3.0 EPSF-3.0\n", b"cos\nsystem\n(S'true'\ntR.", b"\x80\x04\x8c\x02os\x8c\x06system\x93"),
    *(
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x0f",
        b"B\xff\xff\xff\x7f",
        b"\x93NUMPY\x01\x00",
        b"\xef\xbb\xbf",
        b"PK\x03\x04",
    ),
    *(b"II*\0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"IHDR", b"\x00\x00\x08\x03"),
]

Mutation = Callable[[random.Random, bytes], bytes]


def mutate_file(rng: random.Random, path: Path, others: list[bytes]) -> str:
    """Damage one file in place; says how, for the record.

    Args:
        rng: Decides everything.
        path: The file.
        others: Contents of other files of this kind, to splice.
    """
    if rng.random() < 0.02:
        return _replace(rng, path)
    content = path.read_bytes()
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = mutated(rng, content, others)
    path.write_bytes(content[: 2 * LARGE])
    return f"{len(content)} bytes"


def _replace(rng: random.Random, path: Path) -> str:
    """Put what is no file in its place."""
    path.unlink()
    kind = rng.choice(("nothing", "folder", "pipe", "zeros", "loop", "empty", "sparse"))
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe" and hasattr(os, "mkfifo"):
        os.mkfifo(path)
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 42)
    return kind


def mutated(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """A damaged copy: most often along the lines of its format, if it has one that is known."""
    if rng.random() < 0.7 and len(content) < LARGE:
        for fits, mutation in FORMATS:
            if fits(content):
                try:
                    return mutation(rng, content)
                except Exception:  # noqa: BLE001 - it was damaged before
                    break
    if others and rng.random() < 0.1:
        other = rng.choice(others)
        return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]
    return rng.choice(BYTES)(rng, content)


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8, 32))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, content: bytes) -> bytes:
    a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return rng.choice((content[:a], content[a:], content[:a] + content[b:], content[:b] + content[a:]))


def _token(rng: random.Random, content: bytes) -> bytes:
    at, token = rng.randrange(len(content) + 1), rng.choice(TOKENS)
    return content[:at] + token + content[at + rng.choice((0, len(token))) :]


def _number(rng: random.Random, content: bytes) -> bytes:
    size = rng.choice("bhiq")
    value = rng.choice(NUMBERS) % (1 << 8 * struct.calcsize(size))
    packed = struct.pack(rng.choice("<>") + size.upper(), value)
    at = rng.randrange(min(len(content), rng.choice((16, 64, 1 << 30))) + 1)
    return content[:at] + packed + content[at + len(packed) :]


BYTES: list[Mutation] = [_flip, _flip, _cut, _token, _number]


def _json(rng: random.Random, content: bytes) -> bytes:
    """Change one place of a JSON value, or the text around it."""
    value = json.loads(content)
    holder = {"": value}
    place: tuple[Any, Any] = (holder, "")
    places = [place]
    stack: list[Any] = [holder]
    while stack:
        item = stack.pop()
        children = list(item.items() if isinstance(item, dict) else enumerate(item))
        places += [(item, key) for key, _ in children]
        stack += [child for _, child in children if isinstance(child, dict | list)]
    parent, key = rng.choice(places)
    action = rng.randrange(7)
    if action <= 2:
        parent[key] = copy.deepcopy(rng.choice(VALUES))
    elif action == 3:
        other, name = rng.choice(places)
        parent[key] = copy.deepcopy(other[name])
    elif action == 4 and isinstance(parent, dict):
        parent[str(rng.choice(VALUES))[:LONG]] = parent.pop(key)
    elif action == 5:
        del parent[key]
    elif isinstance(parent, list):
        parent *= rng.choice((2, 3, 100)) if len(content) < LONG else 2
    else:
        parent[f"{key}{rng.choice(NUMBERS)}"] = copy.deepcopy(parent[key])
    text = json.dumps(holder.get(""), ensure_ascii=rng.random() < 0.9)
    if rng.random() < 0.03:
        text = "[" * DEEP + text + "]" * DEEP
    return text.encode("utf-8", "surrogatepass")


def _lines(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    lines[at] = _json(rng, lines[at]) + b"\n"
    return b"".join(rng.choice((lines, lines, lines + lines[:1], lines[::-1])))


def _zip(rng: random.Random, content: bytes) -> bytes:
    """Change a member by its own format, or the list of members; sizes may then be lies."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    action = rng.randrange(10)
    at = rng.randrange(len(members))
    name, inner = members[at]
    if action <= 5:
        members[at] = (name, mutated(rng, inner, [data for _, data in members]))
    elif action == 6:
        members[at] = (rng.choice((name + "x", "../" + name, "/" + name, "", "a\0b", name.upper())), inner)
    elif action == 7:
        del members[at]
    elif action == 8:
        members.append((name, rng.choice((b"", inner, b"\0" * (1 << 20)))))
    else:
        members[at] = (name, b"\0" * (1 << rng.choice((10, 20, 26))))
    buffer = io.BytesIO()
    large = sum(len(data) for _, data in members) > LARGE
    kind = zipfile.ZIP_DEFLATED if large or rng.random() < 0.3 else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", kind, compresslevel=1) as archive:
        for member, data in members:
            archive.writestr(member or "x", data)
    result = buffer.getvalue()
    if rng.random() < 0.1:  # sizes in the central directory
        start = result.rfind(b"PK\x01\x02")
        field = start + rng.choice((20, 24, 42))
        result = result[:field] + struct.pack("<I", rng.choice(NUMBERS) % 2**32) + result[field + 4 :]
    return result


def _safetensors(rng: random.Random, content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + length], content[8 + length :]
    header = _json(rng, header) if rng.random() < 0.8 else mutated(rng, header, [])
    length = len(header) if rng.random() < 0.95 else rng.choice(NUMBERS) % 2**64
    return struct.pack("<Q", length) + header + body


def _npy(rng: random.Random, content: bytes) -> bytes:
    (length,) = struct.unpack("<H", content[8:10])
    header, body = content[10 : 10 + length].decode("latin1"), content[10 + length :]
    sizes = [
        "",
        "0,",
        f"{2**60},",
        f"{2**40}, 7",
        "-1,",
        "9" * 30 + ",",
        "1," * 70,
        "2.5,",
        "(",
        "True,",
        "1" + ",1" * 40,
    ]
    kinds = [
        "|O",
        "<f8",
        "|V0",
        "<U0",
        "|b1",
        "<M8[ns]",
        "<c16",
        "x",
        "|V1000000000",
        "(1000000,)<f8",
        "<f8,<i4",
        ">u1",
        "|S0",
    ]
    header = rng.choice((
        re.sub(r"\(.*?\)", f"({rng.choice(sizes)})", header),
        re.sub(r"'[<>|]\w+'", f"'{rng.choice(kinds)}'", header),
        header.replace("False", "True"),
        header.replace("shape", "shap"),
        "{" * 200 + header,
        header + "(" * 300,
    ))  # fmt: skip
    return content[:8] + struct.pack("<H", len(header) % 2**16) + header.encode("latin1") + body


def _gzip(rng: random.Random, content: bytes) -> bytes:
    return gzip.compress(mutated(rng, gzip.decompress(content), []), 1)


def _png(rng: random.Random, content: bytes) -> bytes:
    """Change a chunk and make its checksum right again."""
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    where = rng.randrange(len(chunks))
    kind, data = chunks[where]
    if kind == b"IHDR" and rng.random() < 0.5:
        size = struct.pack(">II", rng.choice((0, 1, 12000, 2**31 - 1, 2**32 - 1)), rng.choice((1, 12000, 2**31 - 1)))
        chunks[where] = (kind, size + data[8:])
    else:
        chunks[where] = rng.choice(
            ((kind, rng.choice(BYTES)(rng, data)), (b"zTXt", b"x\0\0" + zlib.compress(b"a" * (1 << 22))))
        )
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return content[:8] + b"".join(parts)


def _is_json(content: bytes) -> bool:
    if content[:1] not in (b"{", b"["):
        return False
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


FORMATS: list[tuple[Callable[[bytes], bool], Mutation]] = [
    (lambda c: c[:2] == b"PK", _zip),
    (lambda c: c[:6] == b"\x93NUMPY", _npy),
    (lambda c: c[:2] == b"\x1f\x8b", _gzip),
    (lambda c: c[:4] == b"\x89PNG", _png),
    (lambda c: c[8:10] == b'{"' and len(c) > 8, _safetensors),
    (_is_json, _json),
    (lambda c: c[:1] == b"{" and b"}\n{" in c, _lines),
]
