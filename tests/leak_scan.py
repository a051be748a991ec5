"""Looks in the bytes that left a node for what must not: personal numbers, texts, metrics.

Two kinds of search.  In the *bytes*: every way of writing a secret down that is listed here, also
inside of compressed streams; and everything that the messages hold beside the update.  In the
*numbers*: what was sent, less the update that an independent computation says is due, must look
like noise to every personal tensor.  Subtracting first is what makes the second search sound: a
gradient at a user's own adapter is rightly correlated with that adapter.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, Message
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from scipy.stats import beta

Floats = npt.NDArray[np.float32]

SHORTEST = 8
"""Bytes below which a needle would be found by chance."""
ALPHA = 1e-6
"""Chance of a false alarm in all searches of one residual together."""
ROUNDING = 1e-4
"""Residual, relative to the update, that two float32 computations of it may differ by."""


@dataclass(frozen=True)
class Secrets:
    """What must not leave: ``tensors`` of personal numbers, ``texts``, and ``metrics`` by name."""

    tensors: Mapping[str, Floats]
    texts: Sequence[str]
    metrics: Mapping[str, float] = field(default_factory=dict)


# --- Bytes -------------------------------------------------------------------------------------


def encodings(values: Floats) -> Iterator[tuple[str, bytes]]:
    """Numbers as bytes: float32, 64, 16, bfloat16, eight bits with the usual scales."""
    flat = np.ascontiguousarray(values, dtype=np.float32).ravel()
    yield "float32", flat.astype("<f4").tobytes()
    yield "float32 big-endian", flat.astype(">f4").tobytes()
    yield "float64", flat.astype("<f8").tobytes()
    with np.errstate(over="ignore"):
        yield "float16", flat.astype("<f2").tobytes()
    yield "bfloat16", torch.from_numpy(flat.copy()).bfloat16().view(torch.int16).numpy().tobytes()
    yield "bfloat16 truncated", (flat.view(np.uint32) >> 16).astype("<u2").tobytes()
    most, low, high = np.abs(flat).max(), flat.min(), flat.max()
    if most > 0:
        yield "int8", np.round(flat / most * 127).astype(np.int8).tobytes()
    if high > low:
        yield "uint8", np.round((flat - low) / (high - low) * 255).astype(np.uint8).tobytes()
    yield "text", ",".join(repr(float(value)) for value in flat).encode()
    yield "short text", ",".join(f"{value:.6g}" for value in flat).encode()


def spellings(text: str) -> Iterator[tuple[str, bytes]]:
    """A text as bytes."""
    for name in ("utf-8", "utf-16-le", "utf-16-be"):
        yield name, text.encode(name)
    yield "escaped", text.encode("unicode-escape")


def wrapped(name: str, needle: bytes) -> Iterator[tuple[str, bytes]]:
    """A needle, and what is common to its base64 whatever comes before it, and its hex."""
    yield name, needle
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + needle)
        yield f"{name} in base64", coded[4 if shift else 0 : len(coded) - 4]
    yield f"{name} in hex", needle.hex().encode()


def needles(secrets: Secrets) -> Iterator[tuple[str, bytes]]:
    """Every byte string that must not be found, with its name."""
    for name, tensor in secrets.tensors.items():
        for form, data in encodings(tensor):
            yield from wrapped(f"{name} as {form}", data)
        for start in range(0, tensor.size - 3, 4):  # a part of it, four numbers at a time
            yield f"{name}[{start}:{start + 4}]", tensor.ravel()[start : start + 4].astype("<f4").tobytes()
    for text in secrets.texts:
        for form, data in spellings(text):
            yield from wrapped(f"text {text[:24]!r} as {form}", data)
    for name, value in secrets.metrics.items():
        for form, data in encodings(np.array([value], dtype=np.float32)):
            yield f"metric {name} as {form}", data
        yield f"metric {name} as float64", np.float64(value).tobytes()


def unpacked(data: bytes) -> Iterator[bytes]:
    """``data``, and what deflate, zlib and gzip streams in it hold."""
    yield data
    for magic, bits in ((b"\x78", 15), (gzip.compress(b"")[:2], 31)):
        start = data.find(magic)
        while start >= 0:
            with contextlib.suppress(zlib.error):
                yield zlib.decompressobj(bits).decompress(data[start:], 1 << 24)
            start = data.find(magic, start + 1)


def found_in(bodies: Sequence[bytes], secrets: Secrets) -> set[str]:
    """The names of all needles that the bytes hold."""
    hay = b"\xff\xfe\xfd".join(part for body in bodies for part in unpacked(body))
    return {
        name
        for name, needle in needles(secrets)
        if len(needle) >= SHORTEST and len(set(needle)) > 3 and needle in hay
    }


# --- Messages ----------------------------------------------------------------------------------


def replies_in(objects: Sequence[PushObjectRequest]) -> list[Message]:
    """The messages that pushed objects make up."""
    contents = {item.object_id: item.object_content for item in objects}
    heads = [key for key, data in contents.items() if data.startswith(b"Message ")]
    return [
        inflate_object_from_contents(head, contents, keep_object_contents=True)  # type: ignore[misc]
        for head in heads
    ]


def beside_the_update(
    reply: Message, names: Sequence[str], users: int, errors: Collection[tuple[int, str]]
) -> set[str]:
    """What a message says beside arrays of these ``names``, a number of users, and fixed ``errors``."""
    if reply.has_error():
        told = (reply.error.code, str(reply.error.reason))
        return set() if told in errors else {f"error text {told[1]!r}"}
    content, found = reply.content, set()
    found |= {f"record {key}" for key in content if key not in ("arrays", "metrics")}
    metrics: dict[str, Any] = dict(content.metric_records.get("metrics", {}))
    if metrics.pop("count", None) not in (0, users):
        found.add("another number of users")
    found |= {f"metric {key}" for key in metrics}
    for key, array in content.array_records.get("arrays", {}).items():
        found |= {f"array {key}"} - {f"array {name}" for name in names}
        if array.dtype != "float32" or array.data != Array(array.numpy()).data:
            found.add(f"form of array {key}")  # a header has room for more than a header
    return found


def sent_update(reply: Message, names: Sequence[str]) -> Floats:
    """[D] the numbers of a message's arrays, in the order of ``names``."""
    arrays = reply.content.array_records["arrays"]
    return np.concatenate([arrays[name].numpy().ravel() for name in names]).astype(np.float32)


def differs_in_any_bit(sent: Floats, due: Floats) -> bool:
    """Whether what was sent is not the very numbers that were due."""
    return sent.tobytes() != np.asarray(due, dtype=np.float32).tobytes()


# --- Numbers -----------------------------------------------------------------------------------


def span_p(residual: npt.NDArray[np.floating], tensors: npt.NDArray[np.floating]) -> float:
    """How often noise [D] would lie as near to the span of ``tensors`` [N, D] as ``residual`` does.

    For an isotropic Gaussian the share of the squared length in a fixed k-dimensional subspace is
    Beta(k/2, (D-k)/2).  Finds any linear combination of the tensors, their sum for one.
    """
    _, sizes, rows = np.linalg.svd(tensors.astype(np.float64), full_matrices=False)
    rows = rows[sizes > 1e-6 * max(sizes[0], 1e-30)] if len(sizes) else rows[:0]
    if not len(rows) or len(rows) >= len(residual):
        return 1.0
    share = float(np.sum((rows @ residual) ** 2) / np.sum(residual.astype(np.float64) ** 2))
    return float(beta.sf(share, len(rows) / 2, (len(residual) - len(rows)) / 2))


def window_p(residual: npt.NDArray[np.floating], tensor: npt.NDArray[np.floating]) -> float:
    """How often noise would hold any window that is as parallel to ``tensor`` [m], m <= D.

    cos^2 of a Gaussian window with a fixed direction is Beta(1/2, (m-1)/2); Bonferroni over all.
    """
    windows = np.lib.stride_tricks.sliding_window_view(residual.astype(np.float64), tensor.size)
    lengths = np.linalg.norm(windows, axis=1) * np.linalg.norm(tensor.astype(np.float64))
    cosine = np.abs(windows @ tensor.astype(np.float64)) / np.maximum(lengths, 1e-300)
    best = float(np.clip(cosine.max(), 0.0, 1.0))
    return min(1.0, len(windows) * float(beta.sf(best**2, 0.5, (tensor.size - 1) / 2)))


def projected(
    sent: Floats,
    due: npt.NDArray[np.floating],
    personal: Mapping[str, npt.NDArray[np.floating]],
    smallest: int = 16,
) -> dict[str, float]:
    """Which personal numbers the residual ``sent - due`` [D] carries, with the chance of each.

    ``personal``: [N, D_p] by name, a row a user.  Tried are the span of the rows where D_p = D, and
    each row, and each half of it, at every place of the residual.  A residual that is rounding alone
    carries nothing.
    """
    residual = sent.astype(np.float64) - due
    if np.linalg.norm(residual) <= ROUNDING * np.linalg.norm(due):
        return {}
    tried: dict[str, float] = {}
    for name, rows in personal.items():
        if rows.shape[1] == len(residual):
            tried[f"span of {name}"] = span_p(residual, rows)
        pieces = {f"all of {name}": rows.ravel()}
        for user, row in enumerate(rows):
            pieces |= {f"{name}[{user}]": row}
            pieces |= {f"{name}[{user}] part {i}": part for i, part in enumerate(np.array_split(row, 2))}
        for piece, values in pieces.items():
            if smallest <= values.size <= len(residual) and np.any(values):
                tried[piece] = window_p(residual, values)
    return {name: p for name, p in tried.items() if p * len(tried) < ALPHA}
