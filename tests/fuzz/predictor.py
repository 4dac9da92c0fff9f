"""Send malformed requests to a real predictor, and see that it stays well.

    python tests/fuzz/predictor.py --requests 100000 --seed 0 --out summary.json

Requests go over a few keep-alive connections and one gRPC channel. Each is made from the seed and its number alone, so
`--first 4711 --requests 1` repeats request 4711. A run fails on

- an answer that is 5xx (INTERNAL or UNKNOWN in gRPC), except a 503 with the header `retry-after`, which is a limit,
- an answer that is not what the protocol says: no JSON, no `error`, another request's id, a length that is wrong,
- a connection that is reset, or closed without the answer that is due; after an answer the server may close,
- no answer within 5 seconds,
- a `defect` in the server's log, or a line that is not one of its own,
- a health check or a good request that is answered differently than before the first malformed one,
- memory: more than 128 MiB over what the server held after the first tenth of the requests, or a peak of more than
  512 MiB over what it held before them. The first tenth has every kind of request, so buffers have their size then.

On the gRPC port, bytes that are no HTTP/2 may be answered by closing or resetting: that is gRPC's own library.
Exit code 0 when nothing failed, 1 otherwise. The summary has counts by kind and status.
"""

import argparse
import json
import os
import platform
import random
import socket
import struct
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 5.0
MEBIBYTE = 1024 * 1024
GROWTH_LIMIT_BYTES = 128 * MEBIBYTE
PEAK_LIMIT_BYTES = 512 * MEBIBYTE
LONGEST_ERROR_BYTES = 4096
MODEL = "campaigns"
MAX_ROWS = 200
MAX_REQUEST_BYTES = MEBIBYTE
SERVER_OPTIONS = (f"--max_rows={MAX_ROWS}", "--max_request_bytes=1MiB", "--model_version=7")

V1 = f"/v1/models/{MODEL}:predict"
V2 = f"/v2/models/{MODEL}/infer"
GRPC_SERVICE = "/inference.GRPCInferenceService/"
GOOD = {"campaign_id": "good", "terms": ["emergency plumber", "drain cleaning"], "weights": [1.0, 0.5]}


class Raw(bytes):
    """JSON text that is written as it is, valid or not."""


class Pairs(list[tuple[Any, Any]]):
    """An object that may have a key twice."""


def write(value: Any) -> bytes:
    """Write JSON, with `Raw` and `Pairs` among the values."""
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, Pairs):
        return b"{" + b",".join(write(key) + b":" + write(item) for key, item in value) + b"}"
    if isinstance(value, dict):
        return write(Pairs(value.items()))
    if isinstance(value, list):
        return b"[" + b",".join(map(write, value)) + b"]"
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


@dataclass
class Attempt:
    """What is sent, and what may come back.

    Args:
        parts: Bytes to send, with a short pause between two of them.
        answers: How many answers are due; 0 leaves without waiting for one.
        breaks: Whether the connection cannot be used after it.
        half_closes: Whether the client says that it will send nothing more.
        head: Whether answers have no body.
        request_id: Which id the answer has, None if the request may not get that far.
        refused: Whether 200 would be wrong.
        grpc: Method and message, if it goes through the gRPC channel.
        grpc_bytes: Bytes for the gRPC port.
    """

    parts: Sequence[bytes] = ()
    answers: int = 1
    breaks: bool = False
    half_closes: bool = False
    head: bool = False
    request_id: str | None = None
    refused: bool = False
    grpc: tuple[str, bytes] | None = None
    grpc_bytes: bytes | None = None


Make = Callable[[random.Random, str], Attempt]
KINDS: dict[str, tuple[int, Make]] = {}


def kind(weight: int) -> Callable[[Make], Make]:
    """Register what makes requests of one kind; of all requests, the weight's share is of it."""

    def register(make: Make) -> Make:
        KINDS[make.__name__] = (weight, make)
        return make

    return register


def http(
    path: str | bytes,
    body: bytes,
    request_id: str,
    *headers: bytes,
    method: str = "POST",
    length: bytes | None = b"",
    anonymous: bool = False,
    **options: Any,
) -> Attempt:
    """Return one HTTP request, well-framed unless another length (None leaves it out) or broken headers are given.

    The answer to an anonymous one may have another id: the server does not get to read ours.
    """
    target = path.encode() if isinstance(path, str) else path
    lines = [method.encode() + b" " + target + b" HTTP/1.1", b"host: fuzz", b"x-request-id: " + request_id.encode()]
    if length is not None:
        lines.append(b"content-length: " + (length or str(len(body)).encode()))
    text = b"\r\n".join([*lines, *headers, b"", b""])
    return Attempt((text + body,), head=method == "HEAD", request_id=None if anonymous else request_id, **options)


# Values ------------------------------------------------------------------------------------------------------------

NUMBERS = [
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e-999", b"-0", b"-0.0", b"0e0", b"1E+2", b"01", b"1."),
    *(b".5", b"+1", b"0x10", b"1_000", b"9223372036854775808", b"-9223372036854775809", b"18446744073709551616"),
    *(b"1" * 400, b"0." + b"3" * 4000, b"-" + b"9" * 20000, b"2147483648", b"1e308", b"5e-324", b"-1", b"1e9", b"1.5"),
]
STRINGS = [
    *(b'""', b'" "', b'"\\u0000"', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff"', b'"\xc3"', b'"\xed\xa0\x80"'),
    *(b'"\xf4\x90\x80\x80"', b'"\\u202e\\u200b\\ufeff"', b'"\n"', b'"\x00"', b'"unterminated', b"'single'", b'"\\u1"'),
    *('"е́\u0301\U0001f9d1\u200d\U0001f680\uffff"'.encode(), b'"%s%n%x"', b'"../../etc/passwd"', b'"{{7*7}}"'),
    *(b'"<script>"', b'"' + b"a" * 5000 + b'"', '"ß㎏İﬁ"'.encode(), b'"__proto__"', b'"[\\"plumber\\"]"', b'"null"'),
]
OTHERS = [b"null", b"true", b"false", b"[]", b"{}", b"[[]]", b"[{}]", b"[null]", b'{"a":1}', b"", b"undefined", b"/**/"]
FIELDS = ["instances", "inputs", "outputs", "terms", "weights", "name", "datatype", "shape", "data", "id", "parameters"]
DATATYPES = ["BOOL", "INT8", "INT64", "UINT8", "UINT64", "FP16", "FP32", "FP64", "BYTES", "STRING", "", "X" * 999]
SIZES = [b"0", b"1", b"2", b"3", b"-1", b"200", b"201", b"1e3", b"1.0", b"true", b'"1"', b"4294967296", b"1" * 30]


def bad_value(rng: random.Random) -> Any:
    """Return a value that is probably wrong where it is put."""
    choice = rng.randrange(12)
    if choice < 4:
        return Raw(rng.choice(NUMBERS))
    if choice < 7:
        return Raw(rng.choice(STRINGS))
    if choice < 9:
        return Raw(rng.choice(OTHERS))
    if choice == 9:
        depth = rng.choice([2, 10, 100, 254, 255, 1000, 1023, 1024, 1025, 3000])
        opened, closed = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
        return Raw(opened * depth + b"1" + closed * depth)
    if choice == 10:
        return Raw(json.dumps("".join(map(chr, rng.choices(range(1, 0x2FFF), k=rng.randrange(60))))).encode())
    return [bad_value(rng) for _ in range(rng.randrange(4))]


def mutate_tree(value: Any, rng: random.Random) -> Any:
    """Return JSON with one place replaced, removed, added, doubled, renamed or wrapped."""
    if isinstance(value, list) and not isinstance(value, Pairs) and value and rng.random() < 0.75:
        place = rng.randrange(len(value))
        return [*value[:place], mutate_tree(value[place], rng), *value[place + 1 :]]
    if isinstance(value, dict | Pairs) and value and rng.random() < 0.85:
        pairs = Pairs(value.items() if isinstance(value, dict) else value)
        place = rng.randrange(len(pairs))
        key, item = pairs[place]
        action = rng.randrange(9)
        if action == 0:
            del pairs[place]
        elif action == 1:
            pairs.append((key, bad_value(rng)))
        elif action == 2:
            pairs[place] = (rng.choice([*FIELDS, f"{key}s", str(key).upper(), ""]), item)
        elif action == 3:
            pairs.append((rng.choice(["parameters", "binary_data_size", "extra", "__class__", ""]), bad_value(rng)))
        elif action == 4:
            pairs.append((Raw(rng.choice(STRINGS + NUMBERS + OTHERS)), item))
        else:
            pairs[place] = (key, mutate_tree(item, rng))
        return pairs
    action = rng.randrange(5)
    if action == 0:
        return [value] * rng.choice([0, 1, 2, MAX_ROWS, MAX_ROWS + 1])
    return {"value": value} if action == 1 else bad_value(rng)


def mutate_bytes(body: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few of them flipped, inserted, removed, repeated or cut off."""
    found = bytearray(body)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        place = rng.randrange(len(found) + 1)
        action = rng.randrange(6)
        if action == 0 and place < len(found):
            found[place] ^= 1 << rng.randrange(8)
        elif action == 1:
            found[place:place] = rng.choice(STRINGS + NUMBERS + OTHERS)
        elif action == 2:
            found[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif action == 3:
            del found[place : place + rng.randrange(1, 20)]
        elif action == 4:
            found[place:place] = found[place : place + rng.randrange(1, 60)]
        elif rng.random() < 0.3:
            del found[place:]
    return bytes(found)


def good_v1(rng: random.Random) -> dict[str, Any]:
    rows = rng.choice([1, 1, 1, 2, 3])
    return {"instances": [{**GOOD, "campaign_id": f"c{row}"} for row in range(rows)]}


def good_v2(rng: random.Random) -> dict[str, Any]:
    rows = rng.choice([1, 1, 1, 2, 3])
    columns = {"campaign_id": "c", "terms": '["plumber", "drain"]', "weights": "[1, 0.5]"}
    tensors = [
        {"name": name, "datatype": "BYTES", "shape": [rows], "data": [value] * rows} for name, value in columns.items()
    ]
    chosen = rng.sample(tensors, rng.choice([1, 2, 3]))
    request: dict[str, Any] = {"id": "1", "inputs": chosen}
    if rng.random() < 0.3:
        request["outputs"] = [{"name": "fingerprint", "parameters": {"binary_data": rng.random() < 0.5}}]
    if rng.random() < 0.2:
        request["parameters"] = {"binary_data_output": True}
    return request


def pack(texts: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def binary_v2(rng: random.Random) -> tuple[dict[str, Any], bytes]:
    """Return a good binary request: its JSON and the data behind it."""
    rows = rng.choice([1, 2, 3])
    inputs, binary = [], b""
    for name, text in (("terms", b'["plumber"]'), ("campaign_id", "né".encode())):
        raw = pack([text] * rows)
        inputs.append(
            {"name": name, "datatype": "BYTES", "shape": [rows], "parameters": {"binary_data_size": len(raw)}}
        )
        binary += raw
    return {"inputs": inputs, "parameters": {"binary_data_output": True}}, binary


def binary_http(head: bytes, binary: bytes, request_id: str, length: bytes | None = None, **options: Any) -> Attempt:
    announced = str(len(head)).encode() if length is None else length
    return http(V2, head + binary, request_id, b"inference-header-content-length: " + announced, **options)


# JSON ----------------------------------------------------------------------------------------------------------------


@kind(14)
def v1_wrong_values(rng: random.Random, request_id: str) -> Attempt:
    tree = good_v1(rng)
    for _ in range(rng.choice([1, 1, 2, 3])):
        tree = mutate_tree(tree, rng) if isinstance(tree, dict | list) else tree
    return http(V1, write(tree), request_id)


@kind(8)
def v1_wrong_bytes(rng: random.Random, request_id: str) -> Attempt:
    return http(V1, mutate_bytes(write(good_v1(rng)), rng), request_id)


@kind(4)
def v1_wrong_encoding(rng: random.Random, request_id: str) -> Attempt:
    text = json.dumps(good_v1(rng))
    action = rng.randrange(4)
    if action == 0:
        body = text.encode(rng.choice(["utf-16", "utf-16-be", "utf-32", "utf-8-sig", "utf-7"]))
        refused = not body.startswith(b"{")
    elif action == 1:
        bad = rng.choice([b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\x80", b"\xf0\x9f\x92"])
        body, refused = text.replace("plumber", "plum@ber").encode().replace(b"@", bad), True
    elif action == 2:
        half = rng.choice(["\\ud83d", "\\udca9", "\\ud800\\ud800", "\\udfff"])
        body, refused = text.replace("plumber", half).encode(), True
    else:
        body, refused = text.replace("plumber", chr(rng.randrange(0xE000, 0x10FFFF))).encode(), False
    return http(V1, body, request_id, refused=refused)


@kind(3)
def v1_duplicate_keys(rng: random.Random, request_id: str) -> Attempt:
    instance = Pairs(GOOD.items())
    instance.insert(rng.randrange(4), (rng.choice(list(GOOD)), bad_value(rng)))
    body = Pairs([("instances", [instance])])
    if rng.random() < 0.5:
        body.insert(rng.randrange(2), ("instances", bad_value(rng)))
    return http(V1, write(body), request_id)


@kind(4)
def v1_weights(rng: random.Random, request_id: str) -> Attempt:
    count = rng.randrange(4)
    weights = [Raw(rng.choice(NUMBERS)) for _ in range(count)]
    body = {"instances": [{"terms": ["plumber"] * rng.choice([count, count, 1]), "weights": weights}]}
    return http(V1, write(body), request_id)


@kind(1)
def json_deep(rng: random.Random, request_id: str) -> Attempt:
    depth = rng.choice([500, 1023, 1024, 1025, 5000, 100_000])
    opened, closed = rng.choice([(b"[", b"]"), (b'{"instances":', b"}"), (b'{"a":[', b"]}")])
    body = opened * depth + rng.choice([b"", b"1", closed * depth])
    if len(body) > MAX_REQUEST_BYTES:
        body = body[:MAX_REQUEST_BYTES]
    if rng.random() < 0.5:
        body = b'{"instances":[{"terms":' + body[: MAX_REQUEST_BYTES - 40] + b"}]}"
    return http(rng.choice([V1, V2]), body, request_id, refused=True)


def _fill(item: bytes) -> bytes:
    """Return as many items as a body may have."""
    return b",".join([item] * ((MAX_REQUEST_BYTES - 200) // (len(item) + 1)))


@kind(1)
def json_large(rng: random.Random, request_id: str) -> Attempt:
    """Bodies near the limit of size that cost much more than their size, if anything does."""
    action = rng.randrange(10)
    if action == 0:
        item = rng.choice([b"1", b"[]", b"{}", b"null", b'""', b'"a"', b'"plumber drain"', b'"\\u0000"'])
        return http(V1, b'{"instances":[{"terms":[' + _fill(item) + b"]}]}", request_id)
    if action == 1:
        item = rng.choice([b"1", b"[]", b"{}", b'{"terms":[]}', b'{"terms":["a"]}'])
        return http(V1, b'{"instances":[' + _fill(item) + b"]}", request_id, refused=True)
    if action == 2:
        text = b"a" * (MAX_REQUEST_BYTES - 100)
        field = rng.choice([b'"terms":["%s"]', b'"terms":[],"campaign_id":"%s"', b'"terms":[],"%s":1', b'"%s":[]'])
        return http(V1, b'{"instances":[{' + field % text + b"}]}", request_id)
    if action == 3:
        text = rng.choice(["é", "靴", "👟", "a b ", "\u0301", "ﷺ"]).encode()
        # One of these letters becomes 18 when it is normalized, so a quarter of the limit is already much work.
        text *= (MAX_REQUEST_BYTES // (4 if text == "ﷺ".encode() else 1) - 100) // len(text)
        return http(V1, b'{"instances":[{"terms":["' + text + b'"]}]}', request_id)
    if action == 4:
        keys = b",".join(b'"k%d":%d' % (number, number) for number in range(60_000))
        return http(rng.choice([V1, V2]), b'{"instances":[{' + keys + b"}]}", request_id, refused=True)
    if action == 5:
        inputs = _fill(rng.choice([b"{}", b"1", b'{"name":"terms","datatype":"BYTES","shape":[0],"data":[]}']))
        return http(V2, b'{"inputs":[' + inputs + b"]}", request_id, refused=True)
    if action == 6:
        data = _fill(rng.choice([b"[]", b"1", b'""', b"[[]]"]))
        shape = rng.choice([b"1", b"1,1", b"349000", b"0,0,0,0,0,0,0,0,0,0", _fill(b"1")[: MAX_REQUEST_BYTES // 2]])
        data = data[: MAX_REQUEST_BYTES - 200 - len(shape)]
        head = b'{"inputs":[{"name":"terms","datatype":"BYTES","shape":[%s],"data":[' % shape
        return http(V2, head + data.rstrip(b",") + b"]}]}", request_id, refused=True)
    if action == 7:
        name = b"t" * 500_000
        head = b'{"inputs":[{"name":"%s","datatype":"BYTES","shape":[1],"data":["[]"]}]}' % name
        return http(V2, head, request_id, refused=True)
    if action == 8:
        terms = b'{"inputs":[{"name":"terms","datatype":"BYTES","shape":[1],"data":["[]"]}],"outputs":['
        return http(V2, terms + _fill(b'{"name":"notes"}')[: MAX_REQUEST_BYTES - 200], request_id, refused=True)
    element = b"[" + _fill(rng.choice([b"1", b"[]", b'""']))[: MAX_REQUEST_BYTES - 300].rstrip(b",") + b"]"
    head = {"inputs": [{"name": "terms", "datatype": "BYTES", "shape": [1], "parameters": {}}]}
    raw = pack([element])
    head["inputs"][0]["parameters"] = {"binary_data_size": len(raw)}
    return binary_http(write(head), raw, request_id)


@kind(12)
def v2_wrong_values(rng: random.Random, request_id: str) -> Attempt:
    tree = good_v2(rng)
    for _ in range(rng.choice([1, 1, 2, 3])):
        tree = mutate_tree(tree, rng) if isinstance(tree, dict | list) else tree
    return http(V2, write(tree), request_id)


@kind(6)
def v2_wrong_bytes(rng: random.Random, request_id: str) -> Attempt:
    return http(V2, mutate_bytes(write(good_v2(rng)), rng), request_id)


@kind(6)
def v2_wrong_tensors(rng: random.Random, request_id: str) -> Attempt:
    """Datatype, shape and data that do not agree with each other or with the model."""
    inputs = []
    for name in rng.choices(["terms", "weights", "campaign_id", "term", ""], k=rng.choice([1, 1, 2, 3])):
        shape = [Raw(rng.choice(SIZES)) for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 9]))]
        good = [Raw(rng.choice([b'"[]"', b'"[\\"a\\"]"', b'"a"', b"1", b"null", b'["[]"]']))]
        data: Any = good * rng.randrange(4) if rng.random() < 0.8 else bad_value(rng)
        datatype: Any = rng.choice([*DATATYPES, *["BYTES"] * 12])
        inputs.append({"name": name, "datatype": datatype, "shape": shape, "data": data})
    return http(V2, write({"inputs": inputs}), request_id)


# Binary V2 -----------------------------------------------------------------------------------------------------------


@kind(5)
def binary_wrong_header_length(rng: random.Random, request_id: str) -> Attempt:
    tree, binary = binary_v2(rng)
    head = write(tree)
    near = len(head) + rng.choice([-2, -1, 1, 2, len(binary)])
    texts = [str(near), "0", "-1", "", " ", "abc", "1e3", "1.5", "+5", "٣", "9" * 12, "9" * 5000, f"{len(head)},"]
    length = rng.choice([*texts, *[str(near)] * 8]).encode()
    return binary_http(head, binary, request_id, length, refused=True)


@kind(4)
def binary_truncated(rng: random.Random, request_id: str) -> Attempt:
    tree, binary = binary_v2(rng)
    head = write(tree)
    whole = head + binary
    if rng.random() < 0.7:
        return binary_http(head, binary[: rng.randrange(len(binary))], request_id, refused=True)
    end = rng.randrange(len(whole))
    return http(V2, whole[:end], request_id, b"inference-header-content-length: %d" % min(end, len(head)), refused=True)


@kind(4)
def binary_wrong_sizes(rng: random.Random, request_id: str) -> Attempt:
    tree, binary = binary_v2(rng)
    for item in tree["inputs"]:
        if rng.random() < 0.7:
            item["parameters"] = {"binary_data_size": Raw(rng.choice([*SIZES, b"5", b"15", b"30", b"{}", b"[1]"]))}
        if rng.random() < 0.3:
            item["shape"] = [Raw(rng.choice(SIZES))]
        if rng.random() < 0.3:
            item["datatype"] = rng.choice(DATATYPES)
        if rng.random() < 0.1:
            item["data"] = bad_value(rng)
    return binary_http(write(tree), binary, request_id)


@kind(5)
def binary_wrong_bytes(rng: random.Random, request_id: str) -> Attempt:
    tree, binary = binary_v2(rng)
    head = write(tree)
    if rng.random() < 0.6:
        return binary_http(head, mutate_bytes(binary, rng), request_id)
    changed = mutate_bytes(head + binary, rng)
    return http(V2, changed, request_id, b"inference-header-content-length: %d" % len(head))


@kind(3)
def binary_wrong_elements(rng: random.Random, request_id: str) -> Attempt:
    """Lengths of elements that are wrong, and elements that are no text or no JSON."""
    raw = b""
    rows = rng.choice([1, 2, 5])
    for _ in range(rows):
        text = rng.choice([b"[]", b"\xff\xfe", b"", b"[" * 2000, b'["a"]', rng.randbytes(9), rng.choice(STRINGS)])
        length = rng.choice([len(text)] * 6 + [0, len(text) + 1, 2**31, 2**32 - 1])
        raw += struct.pack(rng.choice(["<I"] * 9 + [">I"]), length) + text
    name = rng.choice(["terms", "campaign_id", "weights"])
    item = {"name": name, "datatype": "BYTES", "shape": [rows], "parameters": {"binary_data_size": len(raw)}}
    return binary_http(write({"inputs": [item]}), raw, request_id)


# HTTP ----------------------------------------------------------------------------------------------------------------

PATHS = [
    *("/", "/v1", "/v2/", "/v2//models", f"/v1/models/{MODEL}", "/v1/models/:predict", f"/v1/models/{MODEL}:explain"),
    *(f"/v1/models/{MODEL}:predict/", "/v1/models/other:predict", "/v2/models/other/infer", f"{V2}/"),
    *(f"/v2/models/{MODEL}/versions/8/infer", f"/v2/models/{MODEL}/versions//infer", "/v2/repository/index", "/%00"),
    *(f"/v2/models/{MODEL}%2finfer", "/v2/models/%ff/infer", "/%", "/%zz", "/../../etc/passwd", "/" + "a" * 8000, "//"),
    *("/v2/models/%F0%9F%92%A9/ready", f"/v1/models/{MODEL}%0d%0aX:predict", "/?a=b", f"{V1}?x=1", f"{V2}#f"),
    *("/metrics", "/docs", "/try", "/openapi.json", "http://other/v2", "*", "v2", "/v2/models/%ED%A0%80/ready"),
]
METHODS = ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "POST", "PROPFIND", "LINK", "PURGE", "M-SEARCH"]


@kind(5)
def http_paths_and_methods(rng: random.Random, request_id: str) -> Attempt:
    body = rng.choice([b"", b"{}", write(good_v1(rng))])
    path = rng.choice([*PATHS, V1, V2, f"/{rng.randbytes(6).hex()}"])
    # What is no path at all is refused before the id is read.
    return http(path, body, request_id, method=rng.choice(METHODS), anonymous=not path.startswith("/"))


@kind(4)
def http_headers(rng: random.Random, request_id: str) -> Attempt:
    """Headers that are odd, and well-framed."""
    body = write(good_v1(rng))
    odd = [
        *(b"content-type: text/plain", b"content-type: \xff\xfe", b"accept: image/png", b"content-encoding: gzip"),
        *(b"content-encoding: \xff", b"accept-encoding: br;q=x", b"inference-header-content-length: 5", b"expect: x"),
        *(b"x-request-id: second", b"authorization: Basic !!!", b"cookie: " + b"a=b;" * 2000, b"x-\x7f: 1", b"x: \x01"),
        *(b"forwarded: for=;;;", b"transfer-encoding: identity", b"te: trailers", b"connection: keep-alive, x", b"x:"),
        *(b"range: bytes=9-1", b"if-match: *", b"origin: null", b"host: second", b"connection: close"),
        *(b"upgrade: websocket", b"connection: upgrade", b"upgrade: h2c", b"keep-alive: timeout=99999999999999"),
    ]
    chosen = rng.sample(odd, rng.choice([1, 1, 2, 3]))
    if rng.random() < 0.05:
        chosen = [b"x-%d: %d" % (number, number) for number in range(300)]
    return http(rng.choice([V1, V2]), body, request_id, *chosen, anonymous=True)


@kind(3)
def http_upgrade(rng: random.Random, request_id: str) -> Attempt:
    """Clients that offer another protocol: the answer comes in this one."""
    offer = rng.choice([b"h2c", b"websocket", b"TLS/1.0", b"\xff"])
    settings = b"http2-settings: AAMAAABkAARAAAAAAAIAAAAA"
    body = write(good_v1(rng))
    connection = b"connection: Upgrade, HTTP2-Settings"
    return http(rng.choice([V1, V2]), body, request_id, connection, b"upgrade: " + offer, settings)


@kind(3)
def http_wrong_length(rng: random.Random, request_id: str) -> Attempt:
    body = write(good_v1(rng))
    action = rng.randrange(4)
    if action == 0:
        text = rng.choice([b"-1", b"-0", b"+5", b"abc", b"5, 6", b"1e3", b"0x5", b"9" * 30, b"9" * 5000, b"5\x00"])
        return http(V1, body, request_id, length=text, breaks=True, anonymous=True, refused=True)
    if action == 1:
        return http(V1, body, request_id, length=None, breaks=True, anonymous=True, refused=True)
    if action == 2:
        short = b"%d" % rng.randrange(len(body))
        return http(V1, body, request_id, length=short, breaks=True, anonymous=True, refused=True)
    second = b"content-length: %d" % rng.choice([len(body) + 1, len(body) - 1, 0])
    return http(V1, body, request_id, second, breaks=True, anonymous=True, refused=True)


@kind(3)
def http_leaves_early(rng: random.Random, request_id: str) -> Attempt:
    """Clients that announce more than they send, and leave."""
    body = write(good_v1(rng))
    whole = http(V1, body, request_id, length=b"%d" % (len(body) + rng.choice([1, 100, 1_000_000]))).parts[0]
    end = rng.choice([len(whole), rng.randrange(len(whole)), rng.randrange(len(whole))])
    return Attempt((whole[:end],), answers=0, breaks=True)


@kind(4)
def http_chunked(rng: random.Random, request_id: str) -> Attempt:
    body = write(good_v1(rng))
    size = rng.randrange(1, 50)
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    chunks = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
    action = rng.randrange(6)
    codings = b"transfer-encoding: chunked"
    if action == 0:
        sent = b"".join(chunks) + b"0\r\nx-trailer: 1\r\n\r\n"
        return http(V1, sent, request_id, codings, length=None)
    if action == 1:
        extended = [chunk.replace(b"\r\n", b";ext=1\r\n", 1) for chunk in chunks]
        return http(V1, b"".join(extended) + b"0\r\n\r\n", request_id, codings, length=None)
    if action == 2:
        bad = rng.choice([b"zz\r\n", b"-1\r\n", b"f" * 18 + b"\r\n", b"5\r\nab\r\n", b"\r\n\r\n", b"1\n{\n0\n\n"])
        return http(V1, bad + b"abcdefghijkl\r\n" * 4, request_id, codings, length=None, breaks=True, anonymous=True)
    if action == 3:
        return http(V1, b"".join(chunks), request_id, codings, length=None, breaks=True, answers=0)
    if action == 4:
        return http(V1, b"".join(chunks) + b"0\r\n\r\n", request_id, codings, breaks=True, anonymous=True, refused=True)
    codings = b"transfer-encoding: " + rng.choice([b"gzip", b"chunked, gzip", b"xchunked", b"identity, gzip"])
    return http(V1, b"".join(chunks) + b"0\r\n\r\n", request_id, codings, length=None, breaks=True, anonymous=True)


@kind(4)
def http_garbage(rng: random.Random, request_id: str) -> Attempt:
    """What is no HTTP/1.1; the end of the head is there, so that an answer is due."""
    whole = http(V1, write(good_v1(rng)), request_id).parts[0]
    end = b"\r\n\r\n"
    head = whole.partition(end)[0]
    action = rng.randrange(8)
    if action == 0:
        text = b"\x00" + rng.randbytes(rng.randrange(4, 300))
    elif action == 1:
        text = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(30)
    elif action == 2:
        text = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200)
    elif action == 3:
        versions = [b"HTTP/3.7", b"HTTP/9", b"HTTP", b"FTP/1.1", b"", b"HTTP/1.11"]
        text = head.replace(b"HTTP/1.1", rng.choice(versions)) + end
    elif action == 4:
        lines = [b"ho st: x", b"host", b": x", b"h\x00: x", b"a\xff: 1", b"x: \x00"]
        text = head.replace(b"host: fuzz", rng.choice(lines)) + end
    elif action == 5:
        text = head.replace(b"POST", rng.choice([b"GE T", b"G\x00T", b"FOO", b"", b"\xff", b"post"])) + end
    elif action == 6:
        targets = [b"/\xff\xfe", b"/ /", b"http://[", b"/\x00", b"//:99999999/", b"?"]
        text = head.replace(V1.encode(), rng.choice(targets)) + end
    else:
        text = b"G" * rng.choice([10, 70_000, 900_000])
    return Attempt((text,), breaks=True)


@kind(2)
def http_endless_head(rng: random.Random, request_id: str) -> Attempt:
    """A head that does not end, which must not be kept in memory for ever."""
    size = rng.choice([100_000, 1_000_000, 3_000_000])
    start = b"POST " + V1.encode()
    if rng.random() < 0.3:
        return Attempt((start + b"a" * size,), breaks=True)
    line = rng.choice([b"x: 1\r\n", b"x-" + b"n" * 900 + b": " + b"v" * 900 + b"\r\n"])
    lines = b"y: " + b"v" * size if rng.random() < 0.3 else line * (size // len(line))
    return Attempt((start + b" HTTP/1.1\r\nhost: fuzz\r\n" + lines,), breaks=True)


@kind(3)
def http_pipelined(rng: random.Random, request_id: str) -> Attempt:
    """Several requests at once: as many answers, in order."""
    count = rng.choice([2, 3, 8])
    parts = []
    for _ in range(count):
        body = rng.choice([write(good_v1(rng)), b"{", b"[]", mutate_bytes(write(good_v1(rng)), rng)])
        parts.append(http(rng.choice([V1, V2, "/nothing"]), body, request_id).parts[0])
    return Attempt((b"".join(parts),), answers=count, request_id=request_id)


@kind(2)
def http_slow(rng: random.Random, request_id: str) -> Attempt:
    """A request that comes in pieces is answered when it is whole."""
    whole = http(V1, write(rng.choice([good_v1(rng), {"instances": [1]}])), request_id).parts[0]
    cuts = sorted(rng.choices(range(1, len(whole)), k=rng.choice([1, 2, 5])))
    parts = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    return Attempt([part for part in parts if part], request_id=request_id)


@kind(1)
def http_half_close(rng: random.Random, request_id: str) -> Attempt:
    return http(V1, write(good_v1(rng)), request_id, half_closes=True)


@kind(1)
def http_too_large(rng: random.Random, request_id: str) -> Attempt:
    body = b"x" * (MAX_REQUEST_BYTES + rng.choice([1, 1000, 2_000_000]))
    return http(rng.choice([V1, V2]), body, request_id, breaks=True, refused=True)


# gRPC ----------------------------------------------------------------------------------------------------------------


def _messages() -> Any:
    """Return kserve's messages; importing kserve reads `sys.argv`, which is ours."""
    values, sys.argv = sys.argv, sys.argv[:1]
    try:
        from kserve.protocol.grpc import grpc_predict_v2_pb2
    finally:
        sys.argv = values
    return grpc_predict_v2_pb2


def good_message(rng: random.Random) -> Any:
    message = _messages().ModelInferRequest(model_name=MODEL, id="1")
    rows = rng.choice([1, 2, 3])
    raw = rng.random() < 0.5
    for name, text in (("terms", b'["plumber"]'), ("campaign_id", "né".encode())):
        item = message.inputs.add(name=name, datatype="BYTES", shape=[rows])
        if raw:
            message.raw_input_contents.append(pack([text] * rows))
        else:
            item.contents.bytes_contents.extend([text] * rows)
    return message


@kind(6)
def grpc_wrong_values(rng: random.Random, request_id: str) -> Attempt:
    message = good_message(rng)
    for _ in range(rng.choice([1, 1, 2, 3])):
        item = rng.choice(message.inputs)
        action = rng.randrange(12)
        if action == 0:
            item.datatype = rng.choice(DATATYPES)
        elif action == 1:
            item.shape[:] = [rng.choice([0, 1, 2, 200, 201, -1, 2**62, -(2**63)]) for _ in range(rng.randrange(4))]
        elif action == 2:
            item.name = rng.choice(["terms", "weights", "", "x" * 9999, "\u0000", "terms\n"])
        elif action == 3:
            item.contents.bytes_contents.append(rng.choice([b"\xff", b"", b"[" * 3000, rng.randbytes(20)]))
        elif action == 4:
            item.contents.fp64_contents.append(rng.choice([0.0, float("nan"), float("inf")]))
        elif action == 5:
            item.contents.int64_contents.extend([2**63 - 1] * rng.randrange(5))
        elif action == 6:
            message.raw_input_contents.append(rng.choice([b"", b"\xff\xff\xff\xff", rng.randbytes(30)]))
        elif action == 7 and message.raw_input_contents:
            place = rng.randrange(len(message.raw_input_contents))
            message.raw_input_contents[place] = mutate_bytes(message.raw_input_contents[place], rng)
        elif action == 8:
            message.outputs.add(name=rng.choice(["note", "notes", "", "fingerprint"]))
        elif action == 9:
            message.model_name = rng.choice(["", "other", "é\n", "x" * 9999])
        elif action == 10:
            message.model_version = rng.choice(["7", "8", "\u0000"])
        else:
            message.inputs.add().CopyFrom(item)
    return Attempt(grpc=("ModelInfer", message.SerializeToString()))


@kind(4)
def grpc_wrong_bytes(rng: random.Random, request_id: str) -> Attempt:
    """Bytes that are another message, or none at all."""
    whole = good_message(rng).SerializeToString()
    action = rng.randrange(6)
    if action == 0:
        whole = rng.randbytes(rng.randrange(200))
    elif action == 1:
        whole = whole[: rng.randrange(len(whole))]
    elif action == 2:
        # A group that is opened in a group that is opened in a group.
        whole = b"\x0b" * rng.choice([10, 200, 100_000])
    elif action == 3:
        # Field 1, the model's name, is text; this is not UTF-8.
        whole = b"\x0a\x02\xff\xfe" + whole
    else:
        whole = mutate_bytes(whole, rng)
    method = rng.choice(["ModelInfer"] * 5 + ["ModelReady", "ModelMetadata", "ServerLive", "ServerMetadata"])
    return Attempt(grpc=(method, whole))


@kind(1)
def grpc_wrong_methods(rng: random.Random, request_id: str) -> Attempt:
    method = rng.choice(["RepositoryModelUnload", "RepositoryIndex", "Nothing", "ModelInfer/x", "", "modelinfer"])
    return Attempt(grpc=(method, rng.choice([b"", b"\x0a\x01m", rng.randbytes(9)])))


@kind(1)
def grpc_large(rng: random.Random, request_id: str) -> Attempt:
    message = _messages().ModelInferRequest(model_name=MODEL)
    action = rng.randrange(4)
    if action == 0:
        message.raw_input_contents.append(b"x" * (MAX_REQUEST_BYTES + 1))
    elif action == 1:
        for _ in range(50_000):
            message.inputs.add(name="terms")
    elif action == 2:
        message.inputs.add(name="terms", datatype="FP64", shape=[1]).contents.fp64_contents.extend([0.0] * 120_000)
    else:
        message.inputs.add(name="terms", datatype="BYTES", shape=[1])
        message.raw_input_contents.append(bytes(1_000_000))
    return Attempt(grpc=("ModelInfer", message.SerializeToString()))


def _frame(kind_number: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind_number, flags]) + struct.pack(">I", stream) + payload


@kind(2)
def grpc_port_garbage(rng: random.Random, request_id: str) -> Attempt:
    """Bytes on the gRPC port: no HTTP/2, broken frames, and good frames around broken messages."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b"")
    action = rng.randrange(5)
    if action == 0:
        return Attempt(grpc_bytes=rng.randbytes(rng.randrange(1, 300)))
    if action == 1:
        return Attempt(grpc_bytes=http(V1, write(GOOD), request_id).parts[0])
    if action == 2:
        frames = [_frame(rng.randrange(12), rng.randrange(256), rng.randrange(4), rng.randbytes(9)) for _ in range(5)]
        return Attempt(grpc_bytes=preface + b"".join(frames))
    if action == 3:
        return Attempt(grpc_bytes=preface[: rng.randrange(len(preface))])
    fields = {b":method": b"POST", b":scheme": b"http", b":path": GRPC_SERVICE.encode() + b"ModelInfer"}
    fields |= {b":authority": b"fuzz", b"te": b"trailers", b"content-type": b"application/grpc"}
    block = b"".join(b"\0" + bytes([len(key)]) + key + bytes([len(value)]) + value for key, value in fields.items())
    length = rng.choice([0, 3, 9, 2**31, 2**32 - 1])
    data = bytes([rng.choice([0, 1, 255])]) + struct.pack(">I", length) + rng.randbytes(9)
    ending = rng.choice([0, 1])
    return Attempt(grpc_bytes=preface + _frame(1, 4, 1, block) + _frame(0, ending, 1, data))


# Sending -------------------------------------------------------------------------------------------------------------


class BrokenAnswerError(Exception):
    """The server did something that it must not do."""


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.headers.get(b"connection", b"").lower() == b"close"


class Connection:
    """A keep-alive connection that is opened again when the server closed it after an answer."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self._received = b""

    def exchange(self, attempt: Attempt) -> list[Answer]:
        """Send an attempt, and return the answers that are due."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=ANSWER_SECONDS)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._received = b""
        try:
            for position, part in enumerate(attempt.parts):
                if position:
                    time.sleep(0.003)
                self._socket.sendall(part)
            if attempt.half_closes:
                self._socket.shutdown(socket.SHUT_WR)
            answers = []
            for _ in range(attempt.answers):
                answers.append(self._read(attempt.head))
                if answers[-1].closes:
                    break
        except TimeoutError:
            self.close()
            raise BrokenAnswerError(f"no answer within {ANSWER_SECONDS:.0f} s") from None
        except OSError as error:
            self.close()
            raise BrokenAnswerError(f"{type(error).__name__} before the answer") from None
        except BrokenAnswerError:
            self.close()
            raise
        if attempt.breaks or attempt.half_closes or (answers and answers[-1].closes):
            self.close()
        elif self._received:
            self.close()
            raise BrokenAnswerError("more bytes than the answers due")
        return answers

    def _read(self, head_only: bool) -> Answer:
        while b"\r\n\r\n" not in self._received:
            self._receive()
        head, _, rest = self._received.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        version, _, status = first.partition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not status[:3].isdigit():
            raise BrokenAnswerError(f"no HTTP answer: {first[:80]!r}")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
        length = 0 if head_only else int(headers[b"content-length"])
        while len(rest) < length:
            self._received = rest
            self._receive()
            rest = self._received
        self._received = rest[length:]
        return Answer(int(status[:3]), headers, rest[:length])

    def _receive(self) -> None:
        assert self._socket is not None
        found = self._socket.recv(262_144)
        if not found:
            raise BrokenAnswerError("closed without the answer that is due")
        self._received += found

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def check_answer(answer: Answer, attempt: Attempt) -> None:
    """See that an answer is what the interface promises.

    Raises:
        BrokenAnswerError: It is not.
    """
    if answer.status >= 500 and not (answer.status == 503 and b"retry-after" in answer.headers):
        raise BrokenAnswerError(f"{answer.status}: {answer.body[:300]!r}")
    if attempt.refused and answer.status == 200:
        raise BrokenAnswerError(f"answered: {answer.body[:300]!r}")
    if attempt.request_id is not None and answer.headers.get(b"x-request-id") != attempt.request_id.encode():
        raise BrokenAnswerError(f"another request's answer: {answer.headers.get(b'x-request-id')!r}")
    if attempt.head:
        return
    kind_of_content = answer.headers.get(b"content-type", b"")
    text = answer.body
    if kind_of_content == b"application/octet-stream":
        text = text[: int(answer.headers[b"inference-header-content-length"])]
    elif kind_of_content != b"application/json":
        if answer.status >= 400:
            raise BrokenAnswerError(f"{answer.status} as {kind_of_content!r}")
        return
    try:
        parsed = json.loads(text.decode(), parse_constant=_refuse_constant)
    except ValueError as error:
        raise BrokenAnswerError(f"not JSON: {error}") from None
    if answer.status >= 400:
        error = parsed.get("error")
        if not isinstance(error, str) or ". Fix: " not in error or not error.endswith("."):
            raise BrokenAnswerError(f"{answer.status} without what to do: {text[:300]!r}")
        if len(text) > LONGEST_ERROR_BYTES:
            raise BrokenAnswerError(f"an error of {len(text)} bytes: {text[:300]!r}")


def exchange_grpc_bytes(address: tuple[str, int], sent: bytes) -> str:
    """Send bytes to the gRPC port, listen for a moment, and leave."""
    with socket.create_connection(address, timeout=ANSWER_SECONDS) as connection:
        try:
            connection.sendall(sent)
            connection.settimeout(0.02)
            return "closed" if not connection.recv(65536) else "bytes"
        except TimeoutError:
            return "nothing"
        except ConnectionError:
            return "reset"


# The run -------------------------------------------------------------------------------------------------------------


@dataclass
class Target:
    """A running predictor.

    Args:
        http: Host and port.
        grpc: Host and port.
        process_id: Whose memory is measured.
        count_defects: Returns how many defects are in its log.
    """

    http: tuple[str, int]
    grpc: tuple[str, int]
    process_id: int
    count_defects: Callable[[], int] = lambda: 0


@dataclass
class Summary:
    """What came out."""

    requests: int = 0
    seconds: float = 0.0
    checks: int = 0
    slowest_seconds: float = 0.0
    slowest_request: int | None = None
    kinds: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    rss_bytes: dict[str, int] = field(default_factory=dict)
    rss_tenths_bytes: list[int] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        statuses: Counter[str] = Counter()
        for found in self.kinds.values():
            statuses.update(found)
        return {
            "requests": self.requests,
            "seconds": round(self.seconds, 1),
            "checks": self.checks,
            "slowest_seconds": round(self.slowest_seconds, 3),
            "slowest_request": self.slowest_request,
            "rss_bytes": self.rss_bytes,
            "rss_after_each_tenth_bytes": self.rss_tenths_bytes,
            "rss_growth_limit_bytes": GROWTH_LIMIT_BYTES,
            "rss_peak_limit_bytes": PEAK_LIMIT_BYTES,
            "statuses": dict(sorted(statuses.items())),
            "kinds": {name: dict(sorted(found.items())) for name, found in sorted(self.kinds.items())},
            "failed": len(self.failures),
            "failures": self.failures[:50],
        }


def make_attempt(seed: int, number: int) -> tuple[str, Attempt]:
    """Return the kind and the content of one request; nothing but the two numbers decides them."""
    rng = random.Random(f"{seed}/{number}")
    names = list(KINDS)
    name = rng.choices(names, [KINDS[known][0] for known in names])[0]
    return name, KINDS[name][1](rng, f"fuzz-{number}")


def read_memory(process_id: int) -> dict[str, int]:
    """Return resident bytes now and at most, nothing where the system does not tell."""
    try:
        text = Path(f"/proc/{process_id}/status").read_text(encoding="utf-8")
    except OSError:
        return {}
    found = dict(line.split(":", 1) for line in text.splitlines() if line.startswith(("VmRSS", "VmHWM")))
    return {"now": int(found["VmRSS"].split()[0]) * 1024, "peak": int(found["VmHWM"].split()[0]) * 1024}


class Fuzzer:
    """Sends requests to one target.

    Args:
        target: The predictor.
        seed: Decides the requests, together with their numbers.
        connections: Keep-alive connections, each used by one thread.
    """

    def __init__(self, target: Target, seed: int, connections: int) -> None:
        import grpc

        self._target = target
        self._seed = seed
        self._connections = [Connection(target.http) for _ in range(connections)]
        self._checking = Connection(target.http)
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(f"{target.grpc[0]}:{target.grpc[1]}", options)
        self.summary = Summary()

    def run(self, first: int, requests: int, check_every: int) -> Summary:
        """Send requests, with checks between them; return what came out."""
        started = time.perf_counter()
        memory = read_memory(self._target.process_id)
        self.summary.rss_bytes = {"before": memory["now"]} if memory else {}
        expected = self._ask_well()
        end = first + requests
        settled = first + max(check_every, requests // 10)
        with ThreadPoolExecutor(len(self._connections)) as threads:
            for start in range(first, end, check_every):
                numbers = range(start, min(start + check_every, end))
                list(threads.map(self._send_share, [numbers] * len(self._connections), range(len(self._connections))))
                self._check(numbers, expected)
                if memory and (numbers.stop - first) * 10 // requests > len(self.summary.rss_tenths_bytes):
                    self.summary.rss_tenths_bytes.append(read_memory(self._target.process_id)["now"])
                if "settled" not in self.summary.rss_bytes and numbers.stop >= settled and memory:
                    self.summary.rss_bytes["settled"] = read_memory(self._target.process_id)["now"]
        self._check_memory()
        self.summary.requests = requests
        self.summary.seconds = time.perf_counter() - started
        for connection in [*self._connections, self._checking]:
            connection.close()
        self._channel.close()
        return self.summary

    def _send_share(self, numbers: range, share: int) -> None:
        for number in numbers[share :: len(self._connections)]:
            name, attempt = make_attempt(self._seed, number)
            began = time.perf_counter()
            try:
                statuses = self._send(attempt, self._connections[share])
            except BrokenAnswerError as error:
                statuses = ["failed"]
                self._fail(number, name, str(error), attempt)
            seconds = time.perf_counter() - began
            if seconds > self.summary.slowest_seconds:
                self.summary.slowest_seconds, self.summary.slowest_request = seconds, number
            self.summary.kinds[name].update(statuses)

    def _send(self, attempt: Attempt, connection: Connection) -> list[str]:
        if attempt.grpc is not None:
            return [self._send_grpc(*attempt.grpc)]
        if attempt.grpc_bytes is not None:
            return [exchange_grpc_bytes(self._target.grpc, attempt.grpc_bytes)]
        answers = connection.exchange(attempt)
        for answer in answers:
            check_answer(answer, attempt)
        return [str(answer.status) for answer in answers] or ["left"]

    def _send_grpc(self, method: str, message: bytes) -> str:
        import grpc

        try:
            self._call(method, message)
        except grpc.RpcError as error:
            code = error.code()
            if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise BrokenAnswerError(f"{code.name}: {str(error.details())[:300]}") from None
            if code == grpc.StatusCode.UNAVAILABLE and "at a time" not in str(error.details()):
                raise BrokenAnswerError(f"{code.name}: {str(error.details())[:300]}") from None
            return str(code.name)
        return "OK"

    def _call(self, method: str, message: bytes) -> bytes:
        answer: bytes = self._channel.unary_unary(GRPC_SERVICE + method)(message, timeout=ANSWER_SECONDS)
        return answer

    def _ask_well(self) -> list[Any]:
        """Return the answers to health checks and good requests in each protocol."""
        found: list[Any] = []
        v2 = {"inputs": [{"name": "terms", "datatype": "BYTES", "shape": [1], "data": ['["plumber"]']}], "id": "1"}
        tree, binary = binary_v2(random.Random(0))
        for attempt in (
            http(f"/v2/models/{MODEL}/ready", b"", "check", method="GET"),
            http("/v2/health/live", b"", "check", method="GET"),
            http(V1, write({"instances": [GOOD]}), "check"),
            http(V2, write(v2), "check"),
            binary_http(write({**tree, "id": "1"}), binary, "check"),
        ):
            answer = self._checking.exchange(attempt)[0]
            check_answer(answer, attempt)
            found.append((answer.status, answer.body))
        found.append(self._call("ModelInfer", good_message(random.Random(1)).SerializeToString()))
        return found

    def _check(self, numbers: range, expected: list[Any]) -> None:
        import grpc

        self.summary.checks += 1
        try:
            found = self._ask_well()
        except (BrokenAnswerError, grpc.RpcError) as error:
            self._fail(numbers.stop, "check", f"{type(error).__name__}: {error}"[:300])
        else:
            if found != expected or [status for status, _ in found[:-1]] != [200] * 5:
                self._fail(numbers.stop, "check", f"other answers than at the start: {found!r}"[:600])
        if defects := self._target.count_defects():
            self._fail(numbers.stop, "check", f"{defects} defects in the log since the check before")

    def _check_memory(self) -> None:
        memory = read_memory(self._target.process_id)
        if not memory:
            return
        found = self.summary.rss_bytes
        found |= {"after": memory["now"], "peak": memory["peak"]}
        if found["after"] - found.get("settled", found["before"]) > GROWTH_LIMIT_BYTES:
            self._fail(0, "memory", f"grows: {found}")
        if found["peak"] - found["before"] > PEAK_LIMIT_BYTES:
            self._fail(0, "memory", f"peak: {found}")

    def _fail(self, number: int, name: str, text: str, attempt: Attempt | None = None) -> None:
        failure: dict[str, Any] = {"request": number, "kind": name, "seen": text}
        if attempt is not None:
            sent = attempt.grpc[1] if attempt.grpc else attempt.grpc_bytes or b"".join(attempt.parts)
            failure["sent"] = repr(sent[:300])
        self.summary.failures.append(failure)


def fuzz(
    target: Target, requests: int, seed: int = 0, first: int = 0, check_every: int = 500, connections: int = 4
) -> Summary:
    """Send malformed requests to a running predictor that serves the model of `serve_samples`.

    Args:
        target: The predictor; it must take 200 rows and 1 MiB a request.
        requests: How many.
        seed: Decides them.
        first: Number of the first.
        check_every: Requests between two checks of health and good answers.
        connections: Keep-alive connections.
    """
    return Fuzzer(target, seed, connections).run(first, requests, check_every)


def save_model(folder: Path) -> None:
    """Fit a small model of made-up campaigns."""
    from mlflywheel.models.topic_fingerprints import TopicFingerprints
    from mlflywheel.models.topic_fingerprints.model import FitParams
    from mlflywheel.models.topic_fingerprints.preparation import COLUMNS, PrepareConfig
    from mlflywheel.samples.ad_campaigns import generate_ad_campaigns

    raw = generate_ad_campaigns(campaigns=120)
    named = raw.select([column.name for column in COLUMNS if column.name in raw.column_names])
    table = TopicFingerprints.prepare(named, PrepareConfig())
    TopicFingerprints.fit(table, FitParams.parse({"num_topics": 8}, "params")).save(folder)


def main(values: Sequence[str]) -> int:
    """Start a predictor, fuzz it, stop it; return the exit code."""
    parser = argparse.ArgumentParser(description="Send malformed requests to a real predictor.")
    parser.add_argument("--requests", type=int, default=100_000, help="how many (100000)")
    parser.add_argument("--seed", type=int, default=0, help="decides the requests (0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first request (0)")
    parser.add_argument("--check_every", type=int, default=500, help="requests between two checks (500)")
    parser.add_argument("--connections", type=int, default=4, help="keep-alive connections (4)")
    parser.add_argument("--out", type=Path, help="file for the summary, JSON (printed if left out)")
    arguments = parser.parse_args(values)

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serving"))
    from running_server import RunningServer

    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model")
        server = RunningServer(Path(folder) / "model", *SERVER_OPTIONS)
        try:
            server.wait_until_ready()

            def count_defects() -> int:
                # A line a request is too much to keep.
                taken = server.log[:]
                del server.log[: len(taken)]
                return sum(line["event"] == "defect" for line in taken)

            host, http_port = server.url.removeprefix("http://").split(":")
            grpc_port = server.grpc_address.rpartition(":")[2]
            target = Target((host, int(http_port)), (host, int(grpc_port)), server.process.pid, count_defects)
            summary = fuzz(
                target,
                arguments.requests,
                arguments.seed,
                arguments.first,
                arguments.check_every,
                arguments.connections,
            )
            died = server.process.poll()
        finally:
            code = server.stop()
    if died is not None or code:
        summary.failures.append({"kind": "process", "seen": f"ended with {code}", "lines": server.other_lines[-5:]})
    if server.other_lines:
        # Every line is one of ours, in JSON: whatever else is there may have been written by a client.
        summary.failures.append({"kind": "log", "seen": f"{len(server.other_lines)} lines: {server.other_lines[:3]}"})
    options = " ".join(values) or "(defaults)"
    result = {
        "schema": 1,
        "command": f"python tests/fuzz/predictor.py {options}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()} {platform.system()}, "
        f"Python {platform.python_version()}; client and server on the same machine",
        "seed": arguments.seed,
        "connections": arguments.connections,
        **summary.to_json(),
    }
    text = json.dumps(result, indent=1, ensure_ascii=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    print(f"{summary.requests} requests in {summary.seconds:.0f} s, {len(summary.failures)} failures", file=sys.stderr)
    return 1 if summary.failures else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
