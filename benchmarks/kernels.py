"""Measure the kernels beside this machine's memory: ratios carry over, absolute figures do not.

`python benchmarks/kernels.py [--kernels NAME] [--json]`. One run measures the read bandwidth of one
thread and of two, matrix products against it, integer multiply rates, attention, the cost of a
call, and start-up work. The cases take turns in every round, so that a busy machine disturbs all
alike. Figures are the median of the rounds and the best one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from chip.kernels import BEST, INSTRUCTION_SETS, NAMES, Kernels, load, synthetic
from chip.kernels.quant import quantize_weight
from chip.spec import INT4_GROUPS

COLUMNS, KP = 14336, 4160  # an up projection of llama-8b, K padded
COPIES = 4  # 240 MB of weights: more than any cache
THREADS = 2
ROUNDS = 9

Work = Callable[[int], object]  # called with the thread's number


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: units of `unit` per second, or microseconds."""

    name: str
    unit: str
    median: float
    best: float


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: `amount` of `unit` by each of `threads` threads; 0 for microseconds."""

    name: str
    unit: str
    amount: float
    work: Work
    threads: int = 1
    calls: int = 1  # how often `work` does it


def _seconds(case: Case, pool: ThreadPoolExecutor) -> float:
    start = time.perf_counter()
    if case.threads == 1:
        case.work(0)
    else:
        list(pool.map(case.work, range(case.threads)))
    return (time.perf_counter() - start) / case.calls


def measure(cases: list[Case], rounds: int) -> list[Figure]:
    """Run the cases in turn, `rounds` times each after one to warm up."""
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    with ThreadPoolExecutor(THREADS) as pool:
        for turn in range(rounds + 1):
            for case in cases:
                taken = _seconds(case, pool)
                if turn:
                    times[case.name].append(taken)
    figures = []
    for case in cases:
        middle, least = statistics.median(times[case.name]), min(times[case.name])
        total = case.amount * case.threads
        values = (total / middle, total / least) if total else (middle * 1e6, least * 1e6)
        figures.append(Figure(case.name, case.unit, *values))
    return figures


def _weights() -> list[NDArray[np.int8]]:
    parts = [synthetic.int8_rows(0, f"w{i}", 0, COLUMNS, KP).reshape(-1) for i in range(COPIES)]
    return [np.ascontiguousarray(part) for part in parts]


def _reader(weights: list[NDArray[np.int8]]) -> Work:
    if BEST is None:
        return lambda i: [np.add.reduce(w.view(np.uint64)) for w in weights[i::THREADS]]
    from chip.kernels._native import read_words

    isa = INSTRUCTION_SETS[BEST]
    return lambda i: [read_words(isa, w) for w in weights[i::THREADS]]


def memory_and_products(kernels: Kernels) -> list[Case]:
    """Measure read bandwidth, and products bound by it (1 row) or by the multipliers (more)."""
    rng = np.random.default_rng(0)
    weights = _weights()
    half = len(weights) // THREADS * weights[0].nbytes / 1e9
    cases = [
        Case(f"read, {n} thread{'s' * (n > 1)}", "GB/s", half, _reader(weights), n)
        for n in (1, THREADS)
    ]
    sw = np.full(COLUMNS, 1e-3, np.float32)

    def product(rows: int, columns: int) -> Work:
        x = rng.integers(-127, 128, (rows, KP)).astype(np.int8)
        sx = np.full(rows, 1e-3, np.float32)
        ys = [np.empty((rows, columns), np.float32) for _ in range(THREADS)]
        size = columns * KP

        def work(thread: int) -> None:
            for w in weights[thread::THREADS] if rows == 1 else weights[thread : thread + 1]:
                kernels.matmul_i8(x, sx, w[:size], sw[:columns], ys[thread])

        return work

    for n in (1, THREADS):
        plural = f"{n} thread{'s' * (n > 1)}"
        name = f"matmul_i8 1 row, {plural}"
        cases.append(Case(name, "GB/s", half, product(1, COLUMNS), n))
        for rows in (2, 4, 16, 128):
            columns = 3200 if rows < 128 else 960
            macs = rows * columns * KP / 1e9
            name = f"matmul_i8 {rows} rows, {plural}"
            cases.append(Case(name, "GMAC/s", macs, product(rows, columns), n))
    return cases + [case for n in (1, THREADS) for case in packed_products(kernels, weights, n)]


def packed_products(
    kernels: Kernels, weights: list[NDArray[np.int8]], threads: int
) -> list[Case]:  # fmt: skip
    """Measure the same with int4 weights, two columns a byte: scales are bytes that are read."""
    rng, group = np.random.default_rng(0), INT4_GROUPS[0]
    scales = [np.full((KP // group, 2 * COLUMNS), 1e-3, np.float32) for _ in weights]

    def product(rows: int, columns: int) -> Work:
        x = rng.integers(-127, 128, (rows, KP)).astype(np.int8)
        sx = np.full(rows, 1e-3, np.float32)
        ys = [np.empty((rows, columns), np.float32) for _ in range(THREADS)]
        size = columns // 2 * KP

        def work(thread: int) -> None:
            pairs = list(zip(weights, scales, strict=True))
            for w, sw in pairs[thread::THREADS] if rows == 1 else pairs[thread : thread + 1]:
                kernels.matmul_i4(x, sx, w[:size], sw[:, :columns], ys[thread])

        return work

    plural = f"{threads} thread{'s' * (threads > 1)}"
    half = len(weights) // THREADS * (weights[0].nbytes + scales[0].nbytes) / 1e9
    cases = [Case(f"matmul_i4 1 row, {plural}", "GB/s", half, product(1, 2 * COLUMNS), threads)]
    for rows in (2, 4, 16, 128):
        columns = 6400 if rows < 128 else 1920
        macs = rows * columns * KP / 1e9
        name = f"matmul_i4 {rows} rows, {plural}"
        cases.append(Case(name, "GMAC/s", macs, product(rows, columns), threads))
    return cases


def attention(kernels: Kernels) -> list[Case]:
    """Measure one KV head of llama-8b with its four query heads over a full bucket."""
    rng = np.random.default_rng(0)
    cases = []
    for tokens, rows in ((512, 1), (4096, 1), (512, 16)):
        k = [rng.integers(-127, 128, (tokens, 128)).astype(np.int8)]
        s = [np.full(tokens, 1e-2, np.float32)]
        q = rng.integers(-127, 128, (rows, 4, 128)).astype(np.int8)
        sq, out = np.full((rows, 4), 1e-3, np.float32), np.empty((rows, 512), np.float16)
        at = np.full(rows, tokens - 1)

        def work(_: int, a: tuple = (q, sq, k, s, k, s, [0] * 4, at, out)) -> None:
            kernels.attention_i8(*a)

        macs = 2 * rows * 4 * 128 * tokens / 1e9
        cases.append(Case(f"attention_i8 {rows} x {tokens} tokens", "GMAC/s", macs, work))
    return cases


def vectors(kernels: Kernels) -> list[Case]:
    """Measure row-by-row kernels at llama-8b's sizes, and the smallest calls."""
    rng = np.random.default_rng(0)
    x, gate = (rng.standard_normal((1, n)).astype(np.float32) for n in (4096, 28672))
    q, s = np.empty((1, 4160), np.int8), np.empty(1, np.float32)
    out, part = np.empty((1, 14336), np.float16), [np.ones((1, 2048), np.float16)] * 2
    tiny = (np.ones((1, 320), np.int8), s, np.ones(320, np.int8), s.copy(), np.empty((1, 1), "f4"))
    gamma, lane = x[0].copy(), (x[:, :2], out[:, :1])

    def calls(kernel: Callable[..., object], *arguments: object) -> Work:
        def work(_: int) -> None:
            for _ in range(100):
                kernel(*arguments)

        return work

    return [
        Case("norm_i8 4096", "us", 0, lambda _: kernels.norm_i8(x, gamma, 1e-5, q, s)),
        Case("gather_i8 2 x 2048", "us", 0, lambda _: kernels.gather_i8(part, q, s)),
        Case("add 2 x 2048", "us", 0, lambda _: kernels.add(x, part)),
        Case("silu 14336", "us", 0, lambda _: kernels.silu(gate, out)),
        Case("call: matmul_i8 of one column", "us", 0, calls(kernels.matmul_i8, *tiny), 1, 100),
        Case("call: silu of one lane", "us", 0, calls(kernels.silu, *lane), 1, 100),
    ]


def start_up() -> list[Case]:
    """Measure filling and quantising weights, always with the best instruction set."""
    block = np.empty((13, 320, 320), np.int8)
    w = np.random.default_rng(0).standard_normal((320, 4096)).astype(np.float32)
    size = 320 * 4096 / 1e9
    fill = lambda _: synthetic.fill_tiled(0, "w", 0, 320, 4096, block, 0)  # noqa: E731
    return [
        Case("synthetic weights, tiled", "GB/s", size, fill),
        Case("quantize_weight", "Gweights/s", size, lambda _: quantize_weight(w)),
    ]


def ratios(figures: list[Figure]) -> dict[str, float]:
    """Return products of one row over read bandwidth, of the medians and of the best rounds."""
    by_name = {figure.name: figure for figure in figures}
    found = {}
    for threads in ("1 thread", f"{THREADS} threads"):
        read = by_name[f"read, {threads}"]
        for kernel in ("matmul_i8", "matmul_i4"):
            product = by_name[f"{kernel} 1 row, {threads}"]
            found[f"{kernel} 1 row / read, {threads}"] = product.median / read.median
            found[f"{kernel} 1 row / read, {threads}, best"] = product.best / read.best
    return found


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", choices=("native", *NAMES), help="default: the best there are")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    options = parser.parse_args()
    kernels = load(options.kernels)
    figures = measure(memory_and_products(kernels), options.rounds)
    figures += measure([*attention(kernels), *vectors(kernels), *start_up()], 20 * options.rounds)
    found = ratios(figures)
    if options.json:
        rows = [asdict(figure) for figure in figures]
        print(json.dumps({"kernels": kernels.name, "figures": rows, "ratios": found}, indent=1))
        return
    print(f"kernels: {kernels.name}; {options.rounds} rounds")
    for figure in figures:
        print(f"{figure.name:34} {figure.median:9.2f} {figure.best:9.2f}  {figure.unit}")
    for name, ratio in found.items():
        print(f"{name:40} {ratio:5.2f}")


if __name__ == "__main__":
    main()
