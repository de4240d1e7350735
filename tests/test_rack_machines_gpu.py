"""GPUs from TOML: the shipped ones, each value's source, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rack.errors import ProfileError
from rack.machines.gpu import GPU_KEYS, GpuDtype, gpu_names, load_gpu
from rack.machines.sourced import GRADES

WHOLE = """
name = "mine"
inherits = "h100-sxm"
"""


def test_the_data_sheets() -> None:
    assert gpu_names() == ("a100-80", "h100-lesson", "h100-sxm", "h200")
    a100, h100, h200 = (load_gpu(name) for name in ("a100-80", "h100-sxm", "h200"))
    assert (a100.peak(GpuDtype.FP16), a100.peak(GpuDtype.INT8)) == (312e12, 624e12)
    assert (h100.peak(GpuDtype.FP16), h100.peak(GpuDtype.FP8)) == (989e12, 1979e12)
    assert h200.peaks == h100.peaks
    assert [one.memory_bytes for one in (a100, h100, h200)] == [80e9, 80e9, 141e9]
    assert [one.memory_bytes_per_s for one in (a100, h100, h200)] == [2039e9, 3350e9, 4800e9]
    assert [one.economics.watts("tdp_w") for one in (a100, h100, h200)] == [400, 700, 700]


def test_the_ridge_of_the_course_text() -> None:
    assert load_gpu("h100-lesson").ridge(GpuDtype.FP16) == pytest.approx(148.57, abs=0.01)
    assert load_gpu("h100-sxm").ridge(GpuDtype.FP16) == pytest.approx(295.22, abs=0.01)


def test_products_without_a_unit_are_made_in_fp16() -> None:
    a100 = load_gpu("a100-80")
    assert a100.products_in(GpuDtype.FP8) is GpuDtype.FP16
    assert a100.products_in(GpuDtype.INT8) is GpuDtype.INT8
    assert a100.peak(GpuDtype.FP8) == a100.peak(GpuDtype.FP16)


@pytest.mark.parametrize("name", gpu_names())
def test_every_value_says_where_it_comes_from(name: str) -> None:
    gpu = load_gpu(name)
    assert gpu.name == name
    for key, value in gpu.sources.items():
        assert key in GPU_KEYS
        assert value.grade in (*GRADES, "assumption"), key
        assert value.source.startswith("assumption:") is (value.grade == "assumption"), key
    assert gpu.to_dict()["memory.bytes"] == {
        "value": gpu.memory_bytes, "grade": "A", "source": gpu.sources["memory.bytes"].source
    }  # fmt: skip
    prices = gpu.sources["economics.unit_usd"]
    assert prices.grade == "assumption", "nobody publishes a price"


def test_a_gpu_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        WHOLE + '[memory]\nbytes = { value = 96, source = "assumption: another" }\n'
        '[peak]\nfp8 = { value = 7, grade = "C", source = "a talk" }\n'
    )
    mine, parent = load_gpu(path), load_gpu("h100-sxm")
    assert (mine.name, mine.memory_bytes, mine.peak(GpuDtype.FP8)) == ("mine", 96, 7)
    assert mine.peak(GpuDtype.FP16) == parent.peak(GpuDtype.FP16)
    assert mine.efficiency == parent.efficiency


def test_what_a_parent_inherits_is_inherited_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ninherits = "h200"\n')
    mine, parent = load_gpu(path), load_gpu("h200")
    assert mine.to_dict() == parent.to_dict()
    assert mine.peaks == load_gpu("h100-sxm").peaks


ENTRY = '{{ value = {}, source = "assumption: x" }}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "name: wanted a text, got nothing"),
        ('name = "x"', "peak.fp16: wanted a value, got nothing"),
        (
            'name = "x"\ninherits = "groqrack"',
            "inherits: wanted another one of a100-80, h100-lesson, h100-sxm, h200, got 'groqrack'",
        ),
        (
            WHOLE + "[cores]\n",
            "cores: wanted one of name, inherits, [peak], [memory], [link], [efficiency], "
            "[economics], got an unknown key",
        ),
        (
            WHOLE + f"[peak]\nfp4 = {ENTRY.format(1)}",
            "peak.fp4: wanted one of fp16, fp8, int8, got an unknown key",
        ),
        (
            WHOLE + f"[memory]\nbytes = {ENTRY.format(0)}",
            f"memory.bytes: wanted an integer of 1 to {10**15}, got 0",
        ),
        (
            WHOLE + f"[efficiency]\nmemory_permille = {ENTRY.format(1001)}",
            "efficiency.memory_permille: wanted an integer of 1 to 1000, got 1001",
        ),
        (
            WHOLE + "[memory]\nbytes = 3",
            'memory.bytes: wanted { value, grade, source } or { value, source = "assumption: ..." '
            "}, got 3",
        ),
        (
            WHOLE + f"[economics]\ntdp_w = {ENTRY.format(0)}",
            "economics.tdp_w: wanted watts, 1 to 100000, got 0",
        ),
        (
            WHOLE + f"[economics]\naverage_w = {ENTRY.format(900)}",
            "economics: wanted average_w <= tdp_w <= max_w, got 900, 700, 700",
        ),
        (
            WHOLE + f"[economics]\nunit_usd = {ENTRY.format('[1, 2]')}",
            "economics.unit_usd: wanted [low, usual, high], integers of 1 to 1000000000, got "
            "[1, 2]",
        ),
        (
            WHOLE + f"[economics]\nlife_years = {ENTRY.format('[1, 200, 300]')}",
            "economics.life_years: wanted [low, usual, high], integers of 1 to 100, got "
            "[1, 200, 300]",
        ),
        (
            WHOLE + f"[economics]\nlife_years = {ENTRY.format('[3, 2, 4]')}",
            "economics.life_years: wanted [low, usual, high], rising, got [3, 2, 4]",
        ),
    ],
)
def test_what_a_file_may_not_have(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "gpu.toml"
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        load_gpu(path)
    assert str(caught.value) == f"{path}: {said}"


def test_no_such_gpu(tmp_path: Path) -> None:
    wanted = "gpu: wanted a100-80, h100-lesson, h100-sxm, h200 or the path of a .toml file"
    for name in ("h300", str(tmp_path / "gone.toml")):
        with pytest.raises(ProfileError, match=re.escape(f"{wanted}, got no such GPU")):
            load_gpu(name)
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(ProfileError, match="file: wanted TOML, got"):
        load_gpu(broken)
