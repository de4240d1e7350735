"""Axes, points and keys of a sweep: what is understood, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rack.errors import ConfigError
from rack.machines.changes import changed
from rack.machines.profile import load_hardware
from rack.sweeps.columns import parse_plot
from rack.sweeps.grid import Axis, Plan, Run, known, named, parse_axis, parts, read_sweep

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.toml"))


def plan(*axes: str, run: Run = Run.PLAN, **fixed: Any) -> Plan:
    return Plan(run=run, fixed=fixed, axes=tuple(map(parse_axis, axes)))


def test_the_last_axis_changes_fastest() -> None:
    made = plan("layout=1x1,2x1", "context=16,32")
    assert len(made) == 4
    assert list(made.points()) == [
        {"layout": "1x1", "context": 16},
        {"layout": "1x1", "context": 32},
        {"layout": "2x1", "context": 16},
        {"layout": "2x1", "context": 32},
    ]
    assert named(["layout", "context"], next(made.points())) == "layout=1x1 context=16"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("context=512,2048", (512, 2048)),
        ("link.gb_per_s=12.5,25", (12.5, 25)),
        ("layout= 8x4+4 , 16x2+4 ", ("8x4+4", "16x2+4")),
        ("delays.READ=[5,0],[6,0]", ((5, 0), (6, 0))),
        ("answer-tokens=uniform:3", ("uniform:3",)),
        ("seed=007,1e3", (7, "1e3")),
    ],
)
def test_values_are_numbers_where_they_look_so(text: str, values: tuple[Any, ...]) -> None:
    assert parse_axis(text).values == values


@pytest.mark.parametrize("text", ["", "context", "=1", " =1"])
def test_an_axis_without_key_or_values(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^grid: wanted KEY=VALUE,VALUE,…, got "):
        parse_axis(text)


@pytest.mark.parametrize("text", ["context=", "context=1,,2"])
def test_an_empty_value(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^grid: context: wanted values, got an empty one$"):
        parse_axis(text)


def test_a_value_twice() -> None:
    with pytest.raises(ConfigError, match=r"^grid: context: wanted each value once, got 16$"):
        parse_axis("context=16,32,16")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("layout", "layout"),
        ("max-model-len", "max_model_len"),
        ("max_model_len", "max_model_len"),
        ("return", "returns"),
        ("context", "context"),
        ("link.latency_ns", "link.latency_ns"),
        ("interconnect.link.gb_per_s", "link.gb_per_s"),
        ("interconnect.clock.drift_ppm", "clock.drift_ppm"),
        ("chip.clock_hz", "chip.clock_hz"),
    ],
)
def test_known_keys(key: str, name: str) -> None:
    assert known(key, Run.PLAN) == name


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("laout", "near: layout"),
        ("contxt", "near: context"),
        ("interconnect.link.gb_per_sec", "near: interconnect.link.gb_per_s"),
        ("link.latency", "near: link.latency_ns"),
        ("interconnect.chip.clock_hz", "near: "),
        ("repeats", "flags: "),  # of a measurement
        ("zzzz", "flags: model, weights, dtype, "),
    ],
)
def test_an_unknown_key_is_refused_with_near_ones(key: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        known(key, Run.PLAN)
    wanted = "a flag of rack.plan or a key of the machine's profile"
    assert str(caught.value).startswith(f"grid: {key}: wanted {wanted}, got an unknown one; {near}")


def test_no_axis_is_no_sweep() -> None:
    with pytest.raises(ConfigError, match=r"^grid: wanted at least one axis \(--grid KEY=VALUE,"):
        plan()


@pytest.mark.parametrize(
    ("axes", "fixed", "key", "other"),
    [
        (("context=1", "context=2"), {}, "context", "context"),
        (("max-model-len=64", "max_model_len=32"), {}, "max_model_len", "max-model-len"),
        (("link.lanes=1", "interconnect.link.lanes=2"), {}, r".*link\.lanes", r"link\.lanes"),
        (("layout=1x1",), {"layout": "2x1"}, "layout", "layout"),
    ],
)
def test_a_key_twice(
    axes: tuple[str, ...], fixed: dict[str, Any], key: str, other: str
) -> None:  # fmt: skip
    with pytest.raises(ConfigError, match=f"^grid: {key}: wanted each key once, got {other} too$"):
        plan(*axes, **fixed)


def test_too_many_points() -> None:
    axes = tuple(Axis(key=key, values=tuple(range(1, 1002))) for key in ("context", "seed"))
    with pytest.raises(ConfigError, match=r"^grid: wanted at most 1,000,000 points, got 1,002"):
        Plan(run=Run.PLAN, axes=axes)


def test_parts_of_a_point() -> None:
    values = {"layout": "1x1", "max-model-len": 64, "context": 16, "delays.READ": (5, 0)}
    flags = {"layout": "1x1", "max_model_len": "64"}
    assert parts(values, Run.PLAN) == (flags, {"delays.READ": [5, 0]}, {"context": 16})


@pytest.mark.parametrize("value", [0, -1, "x", 1.5, True, 1 << 21, "9" * 30])
def test_a_count_that_is_none(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^context: wanted 1 to 1048576, got "):
        parts({"context": value}, Run.PLAN)


def write(folder: Path, text: str) -> str:
    (folder / "sweep.toml").write_text(text)
    return str(folder / "sweep.toml")


def test_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'model = "tiny"\nrun = "bench"\nchip.clock_hz = 800_000_000\n[grid]\nlayout = ["1x1"]\n'
        'interconnect.link.gb_per_s = [12.5, 25]\n"delays.READ" = [[5, 0], [6, 0]]\n',
    )
    run, fixed, axes = read_sweep(path)
    assert (run, fixed) == (Run.BENCH, {"model": "tiny", "chip.clock_hz": 800_000_000})
    assert axes == (
        Axis(key="layout", values=("1x1",)),
        Axis(key="interconnect.link.gb_per_s", values=(12.5, 25)),
        Axis(key="delays.READ", values=((5, 0), (6, 0))),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grid = 3", "grid: wanted a table, got 3"),
        ("run = 'play'", "run: wanted one of plan, bench, got 'play'"),
        ("[grid]\nlayout = '1x1'", "grid.layout: wanted a list of values, got '1x1'"),
        ("[grid", "wanted a TOML file, got "),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_sweep(path)
    assert str(caught.value).startswith(f"{path}: {said}")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml: wanted a TOML file, got "):
        read_sweep(str(tmp_path / "no.toml"))


def test_there_are_experiments() -> None:
    assert len(EXPERIMENTS) == 6


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_is_a_sweep_with_a_picture(path: Path) -> None:
    run, fixed, axes = read_sweep(str(path))
    parse_plot(fixed.pop("plot"))
    made = Plan(run=run or Run.PLAN, fixed=fixed, axes=axes)
    assert 4 < len(made) < 50
    for point in made.points():
        flags, machine, own = parts({**fixed, **point}, made.run)
        load_hardware(flags.get("hardware", "lesson"), changed(machine))
        assert flags["model"] in ("llama-8b", "llama-70b")
        assert own["context"] >= 512
    told = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    line = f"python -m rack.sweep --file experiments/{path.name} -o {path.stem}.jsonl"
    assert line in told
    assert line in path.read_text(encoding="utf-8")
    assert f"](experiments/{path.stem}.png)" in told
    assert (ROOT / "docs" / "experiments" / f"{path.stem}.png").is_file()
