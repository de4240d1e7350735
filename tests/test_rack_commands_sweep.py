"""`rack.sweep`: every point a plan or a measurement, in order, and going on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rack_kit import refused

from rack.commands.plan import main as plan
from rack.commands.sweep import build_parser, main
from rack.sweeps.rows import read_rows

ROOT = Path(__file__).resolve().parent.parent
TINY = ["tiny", "--max-model-len", "64", "--prefill-chunk", "4", "--jobs", "1"]
GRID = ["--grid", "layout=1x1,2x2+1", "--grid", "interconnect.link.gb_per_s=12.5,25"]


def usage(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The line of a command line that cannot be."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1].partition("error: ")[2]


def rows(path: Path, *argv: str) -> list[dict[str, Any]]:
    assert main([*TINY, *argv, "-o", str(path)]) == 0
    return read_rows(str(path))


def test_a_point_is_a_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (found,) = rows(tmp_path / "rows", "--grid", "layout=2x2+1", "--context", "16")
    capsys.readouterr()
    assert plan([*TINY[:-2], "--layout", "2x2+1", "--context", "16", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said.items() <= found.items()
    more = {"key", "run", "point", "changes", "context", "schedule_hash", "stages", "group", "head"}
    assert set(found) - set(said) == more
    assert (found["stages"], found["group"], found["head"]) == (2, 2, 1)
    assert len(found["schedule_hash"]) == 64


def test_rows_are_in_the_grids_order_and_know_the_machine(tmp_path: Path) -> None:
    found = rows(tmp_path / "rows", *GRID)
    points = [(row["layout"], row["point"]["interconnect.link.gb_per_s"]) for row in found]
    assert points == [("1x1", 12.5), ("1x1", 25), ("2x2+1", 12.5), ("2x2+1", 25)]
    cycles = [row["decode"]["cycles"] for row in found]
    assert cycles[0] == cycles[1]  # no links
    assert cycles[2] > cycles[3]
    assert len({row["hardware_digest"] for row in found}) == 2
    assert found[1]["changes"]["link.line_rate_bps"] == 200_000_000_000
    assert len({row["schedule_hash"] for row in found}) == 3  # 1x1 has no links


def test_contexts_of_a_bucket_share_a_schedule(tmp_path: Path) -> None:
    found = rows(tmp_path / "rows", "--grid", "context=1,16,64", "--layout", "1x1")
    assert [row["context"] for row in found] == [1, 16, 64]
    assert len({row["schedule_hash"] for row in found}) == 1


def test_what_does_not_fit_is_a_row_that_says_why(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "rows"
    found = rows(path, "--grid", "layout=1x1,9x9", "--grid", "context=16,65")
    assert [row.get("error", {}).get("type") for row in found] == [
        None, "CompilerError", "LayoutError", "LayoutError",
    ]  # fmt: skip
    said = "context: wanted at most 64, which is what fits, got 65"
    assert found[1]["error"]["message"] == said
    assert found[2]["error"]["message"].startswith("layout 9x9: 9 stages, but tiny has 3 layers")
    assert found[1]["config"]["layout"] == "1x1"
    assert set(found[1]["code"]) == {"version", "commit"}
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"{path}: 4 points, 4 new, 3 of them do not fit"


def test_too_little_memory_names_the_layout_that_fits(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    assert main(["llama-8b", "--jobs", "1", "--grid", "layout=2x1", "-o", str(path)]) == 0
    (found,) = read_rows(str(path))
    assert found["error"]["type"] == "CapacityError"
    assert found["error"]["message"].endswith(
        "bytes missing; the smallest layout that fits is 8x4+3"
    )


def test_it_goes_on_where_it_was(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    rows(whole, *GRID)
    lines = whole.read_bytes().splitlines(keepends=True)
    for left in (0, 1, 3, 4):
        torn.write_bytes(b"".join(lines[:left]) + (lines[left][:-5] if left < 4 else b""))
        capsys.readouterr()
        rows(torn, *GRID)
        assert torn.read_bytes() == whole.read_bytes()
        assert f"{torn}: 4 points, {4 - left} new" in capsys.readouterr().err


def test_killed_half_way_and_started_again(tmp_path: Path) -> None:
    """With processes: it is killed after its second row, then goes on; the file is the same."""
    grid = ["--grid", "layout=1x1,2x1,3x1,1x2,2x2,3x2", "--grid", "seed=0,1"]
    argv = [sys.executable, "-m", "rack.sweep", *TINY[:-1], "2", *grid, "-o"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    rows(whole, *grid)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with (
        subprocess.Popen([*argv, str(fifo)], cwd=ROOT, stderr=subprocess.DEVNULL) as process,
        open(fifo, "rb") as reader,
    ):
        cut.write_bytes(reader.readline() + reader.readline() + reader.read(40))
        process.send_signal(signal.SIGKILL)
    assert 2 <= len(read_rows(str(cut))) < 12
    rows(cut, *grid)
    assert cut.read_bytes() == whole.read_bytes()
    assert [row["config"]["seed"] for row in read_rows(str(cut))] == [0, 1] * 6


def test_a_larger_grid_keeps_the_rows_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    rows(path, "--grid", "layout=1x1,2x1")
    before = path.read_bytes()
    found = rows(path, "--grid", "layout=1x1,3x1,2x1")
    assert path.read_bytes().startswith(before)
    assert [row["layout"] for row in found] == ["1x1", "2x1", "3x1"]


def test_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main([*TINY, "--grid", "layout=1x1", "--context", "16"]) == 0
    (line,) = capfdbinary.readouterr().out.splitlines()
    assert json.loads(line)["decode"]["cycles"] > 0


def test_a_file_of_axes(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(
        'model = "tiny"\nlayout = "2x1"\nmax-model-len = 64\nprefill-chunk = 4\n'
        'plot = "context,decode.cycles"\nlink.gb_per_s = 25\n[grid]\ncontext = [16, 32]\n'
    )
    out = tmp_path / "rows.jsonl"
    assert main(["--file", str(file), "-o", str(out), "--jobs", "1"]) == 0
    found = read_rows(str(out))
    assert [(row["layout"], row["context"]) for row in found] == [("2x1", 16), ("2x1", 32)]
    assert found[0]["changes"]["link.line_rate_bps"] == 200_000_000_000
    assert found[0]["config"]["max_model_len"] == 64
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "rows.svg").read_bytes()
    assert main(["--file", str(file), "-o", str(out), "--layout", "1x1", "--jobs", "1"]) == 0
    assert [row["layout"] for row in read_rows(str(out))] == ["2x1", "2x1", "1x1", "1x1"]


def test_measurements(tmp_path: Path) -> None:
    found = rows(
        tmp_path / "rows", "--run", "bench", "--executor", "timing", "--decode-tokens", "2",
        "--repeats", "1", "--prompt-tokens", "4", "--grid", "layout=1x1,2x1",
        "--grid", "link.gb_per_s=12.5",
    )  # fmt: skip
    assert [row["layout"] for row in found] == ["1x1", "2x1"]
    assert all(row["emulated"]["decode_cycles"] > 0 for row in found)
    assert all(row["wall"]["decode"]["tokens_per_s"] > 0 for row in found)
    assert (found[0]["decode_tokens"], found[0]["repeats"], found[0]["run"]) == (2, 1, "bench")
    assert "decode" not in found[0]


def test_a_dry_run_lists_places(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--grid", "layout=1x1,9x9", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "layout=1x1:"
    assert lines[1].startswith("tiny int8 on lesson: layout 1x1, 1 chips")
    assert lines[2].startswith("chip   0: ")
    assert lines[3:] == ["layout=9x9:", f"does not fit: {lines[4].partition(': ')[2]}"]
    assert refused(capsys, 1, main, *TINY, "--grid", "layout=9x9", "--dry-run").startswith("layout")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["tiny"], "grid: wanted at least one axis (--grid KEY=VALUE,…), got none"),
        (
            ["tiny", "--grid", "laout=1x1"],
            "grid: laout: wanted a flag of rack.plan or a key of the machine's profile, got an "
            "unknown one; near: layout",
        ),
        (["tiny", "--grid", "dtype=int3,int8"], "dtype: wanted one of int8, int4, fp16, got"),
        (["tiny", "--grid", "layout=1x"], "layout"),
        (["tiny", "--grid", "chip.clock_hz=0"], "lesson.toml: chip.clock_hz: wanted an integer"),
        (["--grid", "layout=1x1"], "model: wanted MODEL, or model in the file, got nothing"),
        (
            ["tiny", "--layout", "1x1", "--grid", "layout=2x1"],
            "--layout: wanted no flag beside an axis of it",
        ),
        (["tiny", "--grid", "context=1", "--repeats", "3"], "--repeats: wanted --run bench, got"),
        (["tiny", "--grid", "context=1", "--context", "3"], "--context: wanted no flag beside"),
        (["tiny", "--grid", "context=1", "--jobs", "0"], "--jobs: wanted at least 1, got 0"),
        (
            ["tiny", "--grid", "repeats=1", "--run", "bench", "--jobs", "2"],
            "--jobs: wanted 1 with --run bench, which measures, got 2",
        ),
        (
            ["tiny", "--grid", "context=1", "--plot", "context,decode.cycles"],
            "--plot: wanted --out FILE, beside which pictures are written, got -",
        ),
        (["tiny", "--grid", "context=1", "--plot", "x"], "plot: wanted X,Y or X,Y,COLOUR, got"),
        (["tiny", "--grid", "max-model-len=64,064"], "grid: max-model-len: wanted each value"),
    ],
)
def test_command_lines_that_cannot_be(
    capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    assert said in usage(capsys, *argv)


def test_points_that_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    said = usage(capsys, "tiny", "--grid", "link.gb_per_s=25,25.0,12.5")
    assert said == "grid: link.gb_per_s: wanted each value once, got 25"
    said = usage(capsys, "tiny", "--grid", "link.latency_ns=240,2.4e2")
    wanted = "grid: wanted points that differ, got {'link.latency_ns': 240} and "
    assert said == f"{wanted}{{'link.latency_ns': '2.4e2'}}"


def test_an_artifact_has_no_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rack.commands.compile import main as compile_model

    folder = str(tmp_path / "artifact")
    assert compile_model([*TINY[:-2], "--layout", "1x1", "-o", folder]) == 0
    assert main([folder, "--grid", "context=16", "-o", str(tmp_path / "rows")]) == 0
    (found,) = read_rows(str(tmp_path / "rows"))
    wanted = f"model: wanted a model to compile, got the artifact {folder}"
    assert found["error"] == {"type": "ConfigError", "message": wanted}


def test_help_says_what_a_key_is() -> None:
    said = " ".join(build_parser().format_help().split())
    for word in ("link.gb_per_s", "interconnect.", "--grid KEY=V,V,…", "RAY_ADDRESS", "plan,bench"):
        assert word in said


@pytest.mark.ray
def test_tasks_of_a_cluster_give_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(tmp_path / "here", *GRID)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    rows(tmp_path / "there", *GRID)
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
