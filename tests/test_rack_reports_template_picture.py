"""`rack.disasm --draw`: every issue is in the lane of its unit; equal issues give equal bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from one_operation import CHIP, placed
from operation_grid import attention, one_row
from plain_ops import cycles, scheduled

from chip.isa.issue import Issue
from chip.ops.opcodes import Opcode
from compiler.codegen.lower import lower_operation
from rack.commands.compile import main as compile_main
from rack.commands.disasm import main
from rack.reports.template_picture import COLOURS, KEPT, bars, draw, lanes_of


@pytest.fixture(scope="module")
def issues() -> list[Issue]:
    opcode, shape = one_row(640, 1280, "f16", prologue="norm", epilogue="silu")
    return lowered(opcode, shape)


def lowered(opcode: Opcode, shape: dict[str, object]) -> list[Issue]:
    a = placed(opcode, shape)
    return lower_operation(scheduled(opcode, "x", a, 0, cycles(opcode, a, CHIP)), CHIP)


def test_lanes_lie_as_the_units_do() -> None:
    lanes = [f"{lane.unit}: {lane.label}" for lane in lanes_of(CHIP)]
    assert lanes[:9] == [
        "MXM west: plane 0 weights", "MXM west: plane 0 array", "MXM west: plane 0 sums",
        "MXM west: plane 1 weights", "MXM west: plane 1 array", "MXM west: plane 1 sums",
        "SXM west: 14 queues", "MEM west: 43 bulk slices", "MEM west: work slice",
    ]  # fmt: skip
    assert lanes[9:25] == [f"VXM: ALU {number}" for number in range(16)]
    assert lanes[25:28] == [
        "MEM east: work slice", "MEM east: 43 bulk slices", "SXM east: 14 queues",
    ]  # fmt: skip
    assert lanes[28] == "MXM east: plane 2 weights"


def test_every_issue_is_drawn_where_and_when_it_is(issues: list[Issue]) -> None:
    found = {f"{lane.unit} {lane.label}": own for lane, own in bars(issues, CHIP).items()}
    every = [(str(i.queue), i.cycle + n * i.d) for i in issues for n in range(i.n)]
    wanted = {
        "VXM ALU 9": {at for queue, at in every if queue == "VXM9"},
        "SXM east 14 queues": {at for queue, at in every if queue.startswith("SXM_E")},
        "MEM west work slice": {at for queue, at in every if queue == "MEM_W0"},
        "MXM east plane 3 weights": {at for queue, at in every if queue == "MXM_E3"},
    }
    for lane, expected in wanted.items():
        drawn = {bar.start for bar in found[lane] if bar.meaning != KEPT}
        assert drawn == expected, lane
    reads = [i.cycle for i in issues if str(i.queue).startswith("MEM_E") and i.queue.number]
    busiest = max(set(reads), key=reads.count)
    (bar,) = [bar for bar in found["MEM east 43 bulk slices"] if bar.start == busiest]
    assert (bar.share, bar.meaning) == (reads.count(busiest) / 43, "MEM: read")


def test_a_register_is_pale_from_a_result_to_its_last_use(issues: list[Issue]) -> None:
    """ALU 9 keeps the row's scale, from the quantisation to the last drain."""
    (lane,) = [lane for lane in bars(issues, CHIP) if lane.label == "ALU 9"]
    (kept,) = [bar for bar in bars(issues, CHIP)[lane] if bar.meaning == KEPT]
    (copy,) = [i.cycle for i in issues if str(i.queue) == "VXM9"]
    uses = [i.cycle for i in issues if "Held(alu=9)" in str(i.instruction)]
    assert (kept.start - 1, kept.end - 1) == (copy, max(uses))


def test_all_meanings_have_a_colour_and_none_twice(issues: list[Issue]) -> None:
    every = [*issues, *lowered(*attention(8, 2, 128, 256, 1))]
    used = {bar.meaning for own in bars(every[len(issues) :], CHIP).values() for bar in own}
    used |= {bar.meaning for own in bars(issues, CHIP).values() for bar in own}
    assert used == set(COLOURS) - {"SXM: C2C send, receive"}
    assert len(set(COLOURS.values())) == len(COLOURS)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_equal_issues_give_equal_bytes(issues: list[Issue], kind: str) -> None:
    one, other = (draw(issues, CHIP, "a product", kind) for _ in range(2))
    assert one == other
    assert one != draw(issues[:-1], CHIP, "a product", kind)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = str(tmp_path / "a"), tmp_path / "template.svg"
    argv = ["tiny", "--layout", "1x1", "--max-model-len", "16", "--prefill-chunk", "4"]
    assert compile_main([*argv, "-o", folder]) == 0
    capsys.readouterr()
    name = "layers.0.self_attn.qkv_proj"
    assert main([folder, "--op", name, "--draw", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"{out}: {name}, matmul on chip 0, decode/16: ")
    text = out.read_text()
    for word in (name, "MXM west", "plane 3 sums", "ALU 15", "MEM: read", "cycle of the operation"):
        assert f"<!-- {word}" in text, word
    for bad, why in (
        (["--op", name, "--draw", str(tmp_path / "x.gif")], "a name that ends in .gif"),
        (["--op", "nothing", "--draw", str(out)], "op: chip 0 has no 'nothing'"),
    ):
        assert main([folder, *bad]) == 1
        assert why in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([folder, "--draw", str(out)])
    assert caught.value.code == 2
    assert "--draw: wanted an operation to draw (--op NAME), got none" in capsys.readouterr().err
    assert main([folder, "--op", "host.rope", "--draw", str(tmp_path / "transfer.png")]) == 0


def test_a_title_has_all_that_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = str(tmp_path / "a"), tmp_path / "template.svg"
    argv = ["tiny", "--layout", "1x2", "--max-model-len", "16", "--prefill-chunk", "4"]
    assert compile_main([*argv, "--dtype", "fp16", "-o", folder]) == 0
    name = "layers.0.mlp.down_proj"
    capsys.readouterr()
    assert main([folder, "--op", name, "--draw", str(out)]) == 0
    wanted = f"{out}: {name}, gather, matmul, send, receive on chip 0, decode/16: "
    assert capsys.readouterr().err.startswith(wanted)
