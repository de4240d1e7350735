"""The same request takes the same cycles and gives the same bits: again, for long, elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from schedules import WEIGHTS, compiled, machine
from test_tiny import PROMPT, TOKENIZER, complete

from compiler.model.presets import PRESETS
from compiler.pipeline import Options, compile_model
from compiler.place.layout import parse_layout
from rack.run.engine import Engine
from rack.run.local import LocalRack
from rack.run.timing_rack import TimingRack
from rack.text.sampler import SamplingParams

ROOT = Path(__file__).resolve().parent.parent
CHILD = """
import json, sys
sys.path.insert(0, "tests")
from schedules import WEIGHTS, compiled
from test_tiny import complete
from rack.run.local import LocalRack
out = {}
for layout in sys.argv[1:]:
    model = compiled(layout)
    rack = LocalRack(model, WEIGHTS)
    done = complete(rack)
    rack.close()
    out[layout] = [model.schedule_hash, done.data_hash, done.token_ids, done.decode_cycles]
print(json.dumps(out))
"""


def test_a_second_process_gives_the_same_hashes() -> None:
    layouts = ("1x1", "1x3+2")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *layouts], cwd=ROOT, capture_output=True, text=True,
        check=True, timeout=120, env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "12345"},
    )  # fmt: skip
    theirs = json.loads(child.stdout)
    for layout in layouts:
        rack = LocalRack(compiled(layout), WEIGHTS)
        done = complete(rack)
        rack.close()
        ours = [compiled(layout).schedule_hash, done.data_hash, done.token_ids, done.decode_cycles]
        assert theirs[layout] == ours


def test_a_thousand_decode_steps_on_the_timing_rack() -> None:
    config = replace(PRESETS["tiny"], max_position_embeddings=2048)
    model = compile_model(
        config, machine("groqrack"), parse_layout("2x2+1"), Options(max_model_len=1100)
    )
    params = SamplingParams(max_tokens=1000, ignore_eos=True)
    done = Engine(TimingRack(model), TOKENIZER).generate(PROMPT, params).run()
    assert len(done.decode_cycles) == 1000
    assert done.data_hash is None
    buckets: dict[int, set[int]] = {}
    for number, cycles in enumerate(done.decode_cycles):
        context = len(PROMPT) + number
        bucket = next(b for b in model.buckets if b >= context)
        buckets.setdefault(bucket, set()).add(cycles)
    assert {bucket: {model.steps[f"decode/{bucket}"].cycles} for bucket in buckets} == buckets
    assert set(buckets) == {256, 512, 1024}


@pytest.mark.slow
def test_a_thousand_decode_steps_on_chips() -> None:
    model = compiled("1x1", kinds="decode")
    rack = LocalRack(model, WEIGHTS)
    rack.reset()
    cycles: dict[str, set[int]] = {"decode/32": set(), "decode/64": set()}
    shares: dict[int, set[int]] = {}
    for number in range(1000):
        position = number % 64
        if not position:
            rack.reset()  # the next of sixteen equal sequences
        name = model.step(1, position + 1, decode=True).name
        result = rack.run_step(name, [position], [position * 5])
        cycles[name].add(result.cycles)
        shares.setdefault(position, set()).add(result.hash_share)
    rack.close()
    assert cycles == {name: {model.steps[name].cycles} for name in cycles}
    assert len(shares) == 64
    assert all(len(seen) == 1 for seen in shares.values())
    assert len({share for seen in shares.values() for share in seen}) == 64


def test_requests_do_not_see_each_other() -> None:
    """A longer request in between leaves its cache behind; nothing of it may show."""
    rack = LocalRack(compiled("2x2+1"), WEIGHTS)
    first = complete(rack)
    other = complete(rack, [7] * 30, 10)
    again = complete(rack)
    rack.close()
    assert first.data_hash == again.data_hash != other.data_hash
    assert first.token_ids == again.token_ids
    assert first.decode_cycles == again.decode_cycles


def test_equal_lengths_take_equal_cycles_whatever_the_text() -> None:
    rack = LocalRack(compiled("1x3+2"), WEIGHTS)
    one, two = complete(rack, [256, *b"abcdefgh"]), complete(rack, [9, *b"\0\0\xff\xff\1\2\3\4"])
    rack.close()
    assert one.data_hash != two.data_hash
    assert (one.prompt_cycles, one.decode_cycles) == (two.prompt_cycles, two.decode_cycles)
