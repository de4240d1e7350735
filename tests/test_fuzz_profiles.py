"""Spoiled profiles: each is refused in one line, or a machine that a model can be compiled for.

A case changes values, keys or bytes of a shipped profile, or what stands in its file's place.
`--fuzz-examples N` asks for more.
"""

from __future__ import annotations

import json
import math
import os
import random
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fuzz_kit import Raw, examples, judge, places, put, spoil_bytes, spoil_file, spoil_value

from compiler.model.presets import PRESETS
from compiler.pipeline import Options, compile_model
from compiler.place.layout import parse_layout
from rack.machines.profile import load_hardware, profile_names

PROFILES = Path(__file__).parent.parent / "rack" / "machines" / "profiles"
OPTIONS = Options(max_model_len=32, prefill_chunk=2)
NUMBERS = (
    0, 1, 2, 3, 5, 16, 63, 64, 100, 320, 1000, 4096, 10**6, 10**9, 10**12, 10**18, 10**30, 10**400,
    -1, -(10**30), 1.5, math.nan, math.inf, -math.inf, True, "4", [], [4], [1, 0], {},
    Raw("0x" + "f" * 9000), Raw("1979-05-27"), Raw("1979-05-27T07:32:00Z"), Raw("1_000"),
)  # fmt: skip


def toml(value: Any) -> str:
    """Write a value of TOML; Raw stands as it is."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    if isinstance(value, int) and abs(value) > 10**300:
        return hex(value)
    return json.dumps(value)


def document(value: Any) -> str:
    """Write a document of TOML: whatever it holds, one key a line."""
    if not isinstance(value, dict):
        return toml(value)
    lines = []
    for key, inner in value.items():
        if isinstance(inner, dict) and all(isinstance(v, dict) for v in inner.values()):
            lines.append(f"[{json.dumps(str(key))}]")
            lines += [f"{json.dumps(str(k))} = {toml(v)}" for k, v in inner.items()]
        else:
            lines.insert(0, f"{json.dumps(str(key))} = {toml(inner)}")
    return "\n".join(lines) + "\n"


def a_number(rng: random.Random, value: Any) -> tuple[Any, str]:
    """Change the value of one or two keys, and nothing else."""
    done = []
    for _ in range(rng.choice((1, 1, 2))):
        path = rng.choice([p for p in places(value) if p[-1:] == ("value",)])
        new = rng.choice(NUMBERS)
        if path[0] == "delays" and rng.random() < 0.7:
            new = [rng.choice((0, 1, 3, 8, 20, 64, 65, 10**9, -1)), rng.choice((0, 0, 0, 1))]
        value = put(value, path, new)
        done.append(f"{'.'.join(map(str, path[:-1]))} = {toml(new)[:40]}")
    return value, ", ".join(done)


def chain(rng: random.Random, folder: Path) -> str:
    """Files that inherit from each other, in a line or a ring."""
    length, ring = rng.choice((2, 7, 8, 9, 50)), rng.random() < 0.5
    for n in range(length):
        last = n == length - 1
        parent = "m.toml" if last and ring else "groqrack" if last else f"m{n + 1}.toml"
        name = "m.toml" if n == 0 else f"m{n}.toml"
        (folder / name).write_text(f'name = "m"\ninherits = {json.dumps(parent)}\n')
    return f"{length} files that inherit, {'a ring' if ring else 'a line'}"


def spoil(rng: random.Random, folder: Path) -> str:
    """Write `m.toml`, spoiled, and say how."""
    base, path = rng.choice(profile_names()), folder / "m.toml"
    text = (PROFILES / f"{base}.toml").read_text().replace(f'"{base}"', '"m"', 1)
    value, what = tomllib.loads(text), "as it is"
    how = rng.choice(("number", "number", "number", "value", "value", "bytes", "file", "chain"))
    if how == "chain":
        return chain(rng, folder)
    if how == "number":
        value, what = a_number(rng, value)
    elif how == "value":
        value, what = spoil_value(rng, value)
    if how in ("number", "value"):
        path.write_bytes(document(value).encode("utf-8", "surrogatepass"))
    elif how == "bytes":
        data, what = spoil_bytes(rng, text.encode())
        path.write_bytes(data)
    else:
        path.write_text(text)
        what = spoil_file(rng, path)
    return f"{base}: {what}"


def build(path: Path) -> int:
    """Read a machine and compile for it."""
    machine = load_hardware(path)
    model = compile_model(
        PRESETS["tiny"], machine, parse_layout("1x2"), OPTIONS, kinds="decode", contexts=(32,)
    )
    assert machine.digest()
    return model.step(1, 32, decode=True).cycles


def test_spoiled_profiles(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    came = Counter[str]()
    for number in range(examples(pytestconfig, 0.2)):
        rng = random.Random(number)
        folder = tmp_path / f"case{number}"
        folder.mkdir()
        what = spoil(rng, folder)
        outcome = judge(f"case {number}: {what}", lambda folder=folder: build(folder / "m.toml"))  # type: ignore[misc]
        came["refused" if outcome.result is None else "compiled"] += 1
    print(dict(came))
    assert came["refused"]
    assert came["compiled"]


ODD_NAMES = ("", "x" * 5000, "a\0b.toml", "\udcff.toml", "/", "..", "/dev/zero")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_of_no_profile(name: str) -> None:
    outcome = judge(ascii(name), lambda: load_hardware(name))
    assert outcome.refusal is not None
    assert "no such profile" in outcome.refusal


def test_a_file_that_never_ends(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    for make, got in (
        (lambda: os.mkfifo(path), "it is no regular file"),
        (lambda: path.symlink_to("/dev/zero"), "it is no regular file"),
        (lambda: path.write_bytes(b"#" * (1 << 21)), "it has 2,097,152 bytes, more than 1,048,576"),
    ):
        make()
        outcome = judge("m.toml", lambda: load_hardware(path))
        assert outcome.refusal == f"{path}: file: wanted TOML, got {got}"
        path.unlink()
