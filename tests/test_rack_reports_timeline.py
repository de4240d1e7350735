"""`rack.trace --png`: every cycle of every stage is computing, exchanging or idle."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rack_kit import refused
from schedules import compiled

from rack.commands.trace import main
from rack.reports.pictures import PICTURES
from rack.reports.timeline import METADATA, Span, activity, length, union, without

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


def cycles_of(spans: list[Span]) -> set[int]:
    return {cycle for start, end in spans for cycle in range(start, end)}


@given(SPANS, SPANS)
def test_spans_are_sets_of_cycles(one: list[Span], two: list[Span]) -> None:
    a, b = union(one), union(two)
    assert cycles_of(a) == cycles_of(one)
    assert length(a) == len(cycles_of(one))
    assert all(x[1] < y[0] for x, y in itertools.pairwise(a))
    left = without(a, b)
    assert cycles_of(left) == cycles_of(a) - cycles_of(b)
    assert length(left) == len(cycles_of(left))


@pytest.mark.parametrize("layout", ["1x1", "3x1+1", "2x2+1"])
def test_the_states_of_a_stage_add_up(layout: str) -> None:
    model = compiled(layout)
    for schedule in model.steps.values():
        rows = activity(model, schedule)
        for label, states in rows:
            assert sum(map(length, states.values())) == schedule.cycles, label
            assert list(states) == ["compute", "exchange", "idle"]
        turnaround = model.steps[schedule.name].cycles - max(
            op.end for program in schedule.programs for op in program.operations
        )
        assert (rows[-1][0], length(rows[-1][1]["compute"])) == ("host", turnaround)
    labels = {"1x1": "0-2 + head", "3x1+1": "0 1 2 head", "2x2+1": "0 1-2 head"}
    assert " ".join(label for label, _ in rows) == f"{labels[layout]} host"


def test_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["tiny", "--layout", "2x2+1", "--max-model-len", "64", "--png"]
    out = tmp_path / "step.png"
    assert main([*argv, str(out)]) == 0
    data = out.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(data[16:20]) == 1650  # pixels across
    assert f"{out}: decode/64" in capsys.readouterr().err
    for bad, why in (
        (tmp_path / "none" / "x.png", f"no folder {tmp_path / 'none'}"),
        (tmp_path / "x.picture", "a name that ends in .picture; known: png, svg, pdf"),
    ):
        text = refused(capsys, 1, main, *argv, str(bad))
        assert text == f"{bad}: wanted a picture to write, got {why}"


def test_every_kind_of_picture_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    assert set(METADATA) == set(PICTURES)
    argv = ["tiny", "--layout", "1x1", "--max-model-len", "64", "--png"]
    begins = {"svg": b"<?xml", "pdf": b"%PDF", "PNG": b"\x89PNG", "": b"\x89PNG"}
    for kind, begin in begins.items():
        out = tmp_path / f"step.{kind}".rstrip(".")
        assert main([*argv, str(out)]) == 0
        once = out.read_bytes()
        assert once.startswith(begin)
        assert main([*argv, str(out)]) == 0
        assert out.read_bytes() == once, kind
    assert len(list(tmp_path.iterdir())) == len(begins)
