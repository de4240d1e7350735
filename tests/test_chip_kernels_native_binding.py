"""Native start-up code against NumPy, what the extension refuses, and which kernels are loaded."""

from __future__ import annotations

import inspect
import platform
import re
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_reference import same, up
from native_kit import f16, f32, i8, seeds, thorough, widths, wild, wild_half

from chip import kernels as kernels_package
from chip.kernels import BEST, INSTRUCTION_SETS, Kernels, load, quant, synthetic
from chip.kernels.quant import tile_weights
from chip.kernels.synthetic import fill_tiled


@pytest.fixture(params=INSTRUCTION_SETS)
def native(request) -> Kernels:
    return load(f"native {request.param}")


@thorough
@given(
    first=st.integers(0, 1 << 31), rows=st.integers(0, 4), k=widths, at=st.integers(0, 3),
    seed=seeds,
)  # fmt: skip
def test_synthetic_weights(monkeypatch, first, rows, k, at, seed):
    blocks = []
    for best in (BEST, None):
        monkeypatch.setattr(synthetic, "BEST", best)
        block = np.full((up(k) // 320, rows + at + 1, 320), 99, i8)
        fill_tiled(seed, "name", first, rows, k, block, at)
        blocks.append(
            (block.tobytes(), synthetic.int8_rows(seed, "name", first, rows, k).tobytes())
        )
    assert blocks[0] == blocks[1]
    if not at:
        flat = tile_weights(synthetic.int8_rows(seed, "name", first, rows, k)).reshape(-1)
        assert (block[:, :rows].reshape(-1) == flat).all()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS.values(), ids=INSTRUCTION_SETS)
def test_reading_words(isa):
    from chip.kernels import _native

    data = np.random.default_rng(0).integers(-128, 128, 1000).astype(i8)
    want = int(np.add.reduce(data[:512].view(np.uint64)))
    assert _native.read_words(isa, data) == want
    assert _native.read_words(isa, data[:511]) == 0


@pytest.mark.parametrize("best", [BEST, None])
@pytest.mark.parametrize(("shape", "at"), [((2, 4, 320), 2), ((1, 9, 320), 0), ((2, 9), 0)])
def test_fill_tiled_refuses_a_block_without_room(monkeypatch, best, shape, at):
    monkeypatch.setattr(synthetic, "BEST", best)
    with pytest.raises(ValueError, match="tiled block: wanted shape"):
        fill_tiled(0, "name", 0, 3, 321, np.empty(shape, i8), at)


@thorough
@given(rows=st.integers(0, 4), k=st.integers(1, 400), half=st.booleans(), seed=seeds)
def test_quantize_weight(monkeypatch, rows, k, half, seed):
    rng = np.random.default_rng(seed)
    w = wild_half(rng, rows, k) if half else wild(rng, rows, k, largest=3e38)
    w[rows // 2 : rows // 2 + 1] *= w.dtype.type(0)
    got = []
    for best in (BEST, None):
        monkeypatch.setattr(quant, "BEST", best)
        q, scales = quant.quantize_weight(w[:, ::-1])
        got.append((q.tobytes(), scales.tobytes()))
    assert got[0] == got[1]


@pytest.mark.parametrize("best", [BEST, None])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantize_weight_names_the_column(monkeypatch, best, bad):
    monkeypatch.setattr(quant, "BEST", best)
    w = np.ones((9, 5), f32)
    w[7, 2] = bad
    with pytest.raises(ValueError, match="weights: output column 7 is not finite"):
        quant.quantize_weight(w)


def test_the_extension_takes_the_arguments_of_the_definition():
    """One order of arguments for Python and C; only `top_k` has no native code."""
    from chip.kernels import _native
    from chip.kernels.native import NOT_NATIVE

    for name, method in vars(Kernels).items():
        if name[0] != "_" and name != "name" and name not in NOT_NATIVE:
            mine = list(inspect.signature(method).parameters)[1:]
            assert list(inspect.signature(getattr(_native, name)).parameters) == ["isa", *mine]


def test_everything_on_the_path_of_a_token_is_native(native):
    from chip.kernels.native import NOT_NATIVE

    methods = {name for name in vars(Kernels) if name[0] != "_"}
    assert set(vars(native)) == methods - NOT_NATIVE
    assert methods > {"top_k", "rope_cache_i8", "attention_i8", "attention_f16"} == NOT_NATIVE


def many_heads(heads: int, rows: int = 2) -> tuple[str, list]:
    """An attention step that holds four arrays a KV head, and a query head each."""
    rng = np.random.default_rng(heads)
    caches = [[rng.integers(-127, 128, (5, 8)).astype(i8) for _ in range(heads)] for _ in "kv"]
    scales = [[rng.uniform(0, 0.1, 5).astype(f32) for _ in range(heads)] for _ in "kv"]
    q, sq = rng.integers(-127, 128, (rows, heads, 8)).astype(i8), np.full((rows, heads), 0.1, f32)
    at = np.arange(rows)
    call = [q, sq, caches[0], scales[0], caches[1], scales[1], list(range(heads)), at]
    return "masked_attention_i8", [*call, *NO_MASK, np.empty((rows, 8 * heads), f16)]


NO_MASK = None, False, None, None
LISTS = (2, 3, 4, 5)  # arguments of `many_heads` that are lists of arrays; 6 is a list of numbers


@pytest.mark.parametrize("heads", [2, 3, 30])
def test_a_call_may_hold_any_number_of_arrays(native, heads):
    name, call = many_heads(heads)
    twin = [*call[:-1], call[-1].copy()]
    assert getattr(native, name)(*call) == getattr(load("numpy"), name)(*twin)
    assert same(call[-1], twin[-1])
    segments = [np.full((2, 1), i, f16) for i in range(20 * heads)]
    y = np.empty((2, 640), f16)
    native.gather_f16(segments, y)
    assert y[:, : 20 * heads].tolist() == [list(range(20 * heads))] * 2
    assert not y[:, 20 * heads :].any()


@pytest.mark.parametrize("spoil", [None, 0, 2, 3, 5, 6, 7, 12])
def test_a_call_keeps_nothing(native, spoil):
    """After an answer as after a refusal: every array is free again, and no memory is kept."""
    name, call = many_heads(9)
    if spoil is not None:
        call[spoil] = call[spoil][:1] if spoil != 7 else np.array([0, 99])
    arrays = [a for i in LISTS for a in call[i]]
    arrays += [part for part in call if isinstance(part, np.ndarray)]

    def attempt() -> None:
        try:
            getattr(native, name)(*call)
            assert spoil is None
        except ValueError:
            assert spoil is not None

    attempt()
    before = [sys.getrefcount(a) for a in arrays]
    tracemalloc.start()
    try:
        attempt()
        used = tracemalloc.get_traced_memory()[0]
        for _ in range(50):
            attempt()
        grown = tracemalloc.get_traced_memory()[0] - used
    finally:
        tracemalloc.stop()
    assert grown < 1000  # a call holds more than 3000 bytes
    assert [sys.getrefcount(a) for a in arrays] == before


@pytest.mark.parametrize(
    ("rows", "k", "at"),
    [(-1, 8, 0), (1, 8, -1), (1, 8, 3), (1, 321, 0), (1, -5, 0), (2**63 - 1, 8, 2),
     (1, 2**63 - 1, 0)],
)  # fmt: skip
def test_a_block_without_room_is_refused_by_the_extension(rows, k, at):
    from chip.kernels import _native

    block, text = np.empty((1, 3, 320), i8), "tiled block of shape (1, 3, 320): no room for columns"
    with pytest.raises(ValueError, match=re.escape(text)):
        _native.synthetic_tiled(INSTRUCTION_SETS[BEST], 0, 0, rows, k, block, at)


def silu(gu: object, out: object = None) -> tuple:
    return "silu", (gu, np.empty((1, 2), f16) if out is None else out)


def read_only() -> np.ndarray:
    out = np.empty((1, 2), f16)
    out.flags.writeable = False
    return out


ONE = np.ones((1, 4), f32)
CACHE = [np.zeros((4, 8), f16)]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (silu(ONE.astype(np.float64)), "silu: wanted float32, got float64"),
        (silu(ONE.astype(">f4")), "silu: wanted float32, got >f"),
        (silu(ONE[0]), "silu: wanted 2 dimensions, got 1"),
        (silu(np.ones((1, 8), f32)[:, ::2]), "silu: wanted contiguous, aligned lanes"),
        (silu(np.zeros(17, np.uint8)[1:].view(f32)[None]), "silu: wanted contiguous, aligned"),
        (silu([1.0]), "silu: wanted an array, got <class 'list'>"),
        (silu(ONE, read_only()), "read-only"),
        (silu(ONE, np.empty((2, 2), f16)), "output: wanted shape (1, 2), got (2, 2)"),
        (("norm_i8", (ONE, ONE[0], 0.0, np.empty((1, 320), i8), np.empty(2, f32))),
         "scales: wanted 1, got 2"),
        (("norm_f16", (ONE[:, :0], ONE[0, :0], 0.0, np.empty((1, 320), f16))),
         "norm: wanted 0 weights, got shape (0,)"),
        (("matmul_i8", (np.ones((1, 320), i8), np.ones(2, f32), np.ones(320, i8), np.ones(1, f32),
                        np.empty((1, 1), f32))), "matmul input scales: wanted 1, got 2"),
        (("rope_cache_f16", (np.ones((1, 32), f32), np.ones((1, 2, 4), f32), np.array([0]),
                             np.empty((1, 2, 9), f16), CACHE, CACHE)),
         "rope: wanted queries (1, 2, 8), got (1, 2, 9)"),
        (("rope_cache_f16", (np.ones((1, 32), f32), np.ones((1, 2, 4), f32), np.array([0]),
                             np.empty((1, 2, 8), f16), CACHE, CACHE * 2)),
         "cache: wanted the same number of heads, 1, everywhere"),
        (("masked_attention_f16", (np.ones((1, 1, 9), f16), CACHE, CACHE, [0], np.array([0]), 1.0,
                                   *NO_MASK, np.empty((1, 9), f16))),
         "cache: wanted 9 lanes, got shape (4, 8)"),
    ],
)  # fmt: skip
def test_the_extension_checks_what_it_is_given(native, call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        getattr(native, call[0])(*call[1])


def test_an_instruction_set_that_does_not_run_here_is_refused():
    from chip.kernels import _native
    from chip.kernels.native import NativeKernels

    with pytest.raises(ValueError, match="kernels: instruction set 'abacus' does not run here"):
        NativeKernels("abacus")
    with pytest.raises(ValueError, match="instruction set 99: not one that runs here"):
        _native.silu(99, ONE, np.empty((1, 2), f16))
    with pytest.raises(TypeError, match="silu: wanted 3 arguments, got 1"):
        _native.silu(0)


def test_load_prefers_native_and_says_which(monkeypatch):
    monkeypatch.delenv(kernels_package.ENVIRONMENT, raising=False)
    assert load().name == load("native").name == f"native {BEST}"
    monkeypatch.setenv(kernels_package.ENVIRONMENT, "numpy")
    assert load().name == "numpy"
    assert load("native portable").name == "native portable"


def test_the_best_instruction_set_is_the_widest():
    """Plain C only where there is nothing else; the emulation, which is slow, never."""
    widest = [name for name in INSTRUCTION_SETS if name not in ("portable", "avx512-emulated")]
    assert BEST in (widest or ["portable"])
    assert BEST == "avx512-vnni" or "avx512-vnni" not in widest


def test_load_without_the_extension(monkeypatch):
    monkeypatch.delenv(kernels_package.ENVIRONMENT, raising=False)
    monkeypatch.setattr(kernels_package, "BEST", None)
    monkeypatch.setattr(kernels_package, "WHY_NOT_NATIVE", "no compiler")
    assert load().name == "numpy"
    with pytest.raises(ValueError, match="kernels: no native implementation here: no compiler"):
        load("native")


def instructions() -> list[tuple[str, str]]:
    """Return (function, mnemonic) of everything in the extension."""
    from chip.kernels import _native

    objdump = shutil.which("objdump")
    if objdump is None or platform.machine() != "x86_64":
        pytest.skip("wanted objdump and x86-64")
    command = [objdump, "-d", "--no-show-raw-insn", _native.__file__]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found, function = [], ""
    for line in text.splitlines():
        if label := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            function = label[1]
        elif code := re.match(r" +[0-9a-f]+:\t(\w+)", line):
            found.append((function, code[1]))
    if not any("matmul" in name for name, _ in found):
        pytest.skip("the extension was stripped of its names")
    return found


def test_only_dispatched_functions_exceed_the_baseline():
    """Every AVX instruction's name begins with v; nothing of the baseline's does."""
    dispatched = re.compile(r"_(avx2|avx512)(\.\w+)*$")
    found = instructions()
    assert not {f for f, code in found if code[0] == "v" and not dispatched.search(f)}
    assert {f for f, code in found if code[0] == "v"}


def test_nothing_is_fused_where_it_would_round_once_too_few():
    """Fused multiply-add is for products that are exact: fp64 products of fp16."""
    fused = {(f, code) for f, code in instructions() if re.match(r"vfn?m(add|sub)", code)}
    assert all(code.endswith("pd") and "f16" in f for f, code in fused)
