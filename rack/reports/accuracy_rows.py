"""The rows of the accuracy table: each published figure of docs, and where ours comes from.

Ours is computed by the parts that schedules are made with (specs, allocator, scheduler), never
typed in. Grades: A first party, B a third party that read the primary source, D arithmetic from
those, M recalled, C weak. Nothing is fitted to the token rates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from chip.floorplan import Role, hops, mem, queues
from chip.floorplan import mxm as mxm_queue
from chip.isa.issue import delays
from chip.ops.rows import item_bytes, row_bytes
from chip.spec import VECTOR_BYTES
from compiler.codegen.lstm_cell import cell_cycles
from compiler.model.config import ModelConfig
from compiler.model.graph import build_graph
from compiler.model.presets import PRESETS
from compiler.pipeline import Options, compile_model
from compiler.place.allocate import constants
from compiler.place.auto import smallest_layout
from compiler.place.layout import Layout, parse_layout
from compiler.place.partition import partition
from interconnect.spec import LinkSpec
from rack.errors import MachineError
from rack.machines.hardware import Cabling, Hardware
from rack.reports.accuracy import Published, Row
from rack.reports.accuracy_system import bandwidth_rows, clock_rows, machine_rows, path_rows
from rack.reports.convolutions import convolution_rows
from rack.reports.encoders import encoder_rows, scaling_rows
from rack.reports.exchange import all_to_all, exchange_cycles
from rack.reports.products import product_cycles, utilisation

LARGE_VECTORS = 4096  # a tensor of 1.3 MB a chip: large enough that latency does not count
CONTEXT = 512  # of the token rates
FETCH_BYTES = 16  # a queue and cycle: ISCA 2020, III.A.3, 2.25 TiB/s at 1 GHz over 144 queues
LSTM_CYCLES = {1: 670, 3: 718, 6: 790, 8: 838, 32: 1413}  # batch -> published cycles
_CELL = "NOTIFY SYNC READ WRITE LW IW ABC ACC PERMUTE ADD MUL TANH CVT_F32 CVT_I8 COPY"
CELL_KEYS = ("chip.slices_per_hop", *(f"delays.{name}" for name in _CELL.split()))
_LLAMA_2 = replace(
    PRESETS["llama-8b"], name="llama-2-7b", intermediate_size=11008, num_kv_heads=32,
    vocab_size=32000, max_position_embeddings=4096, rope_theta=10000.0, rope_scaling=None,
    bos_token_id=1, eos_token_ids=(2,),
)  # fmt: skip
LLAMA_2 = {  # meta-llama/Llama-2-7b-hf and -70b-hf, config.json
    "llama-2-7b": _LLAMA_2,
    "llama-2-70b": replace(
        _LLAMA_2, name="llama-2-70b", hidden_size=8192, intermediate_size=28672, num_layers=80,
        num_heads=64, num_kv_heads=8,
    ),
}  # fmt: skip


def chip_rows(hardware: Hardware) -> list[Row]:
    """Peak rates and capacities of one chip, and how long its weights take to load."""
    chip = hardware.chip
    macs = chip.mxm_planes * chip.mxm_rows * chip.mxm_columns
    tops = macs * 2 * chip.clock_hz / 1e12
    sram_rate = chip.slices * chip.banks * VECTOR_BYTES
    planes = chip.mxm_planes * chip.mxm_columns / chip.streams
    fetch = len(queues(chip)) * FETCH_BYTES
    mxm = ("chip.clock_hz", "chip.mxm_planes", "chip.mxm_rows", "chip.mxm_columns")
    load = ("chip.mxm_columns", "chip.mxm_weight_streams")
    table, way = delays(chip), hops(mem(0, 1), mxm_queue(0, Role.LOAD), chip)
    figures: list[tuple[str, str, Published, str, str, float, tuple[str, ...]]]
    figures = [
        ("peak, int8", "TOPS", 750, "A", "as sold", tops, mxm),
        (
            "peak, fp16", "TFLOPS", 188, "A", "as sold", tops / chip.mxm_fp16_slowdown,
            (*mxm, "chip.mxm_fp16_slowdown"),
        ),
        ("peak, int8, at 1 GHz", "TOPS", 820, "A", "ISCA 2020, VII", macs * 2e-3, mxm[1:]),
        ("SRAM", "B", 230_686_720, "A", "ISCA 2020", chip.sram_bytes, ("chip.sram_bytes",)),
        (
            "SRAM bandwidth", "B/cycle", 56_320, "A", "ISCA 2020: 55 TiB/s at 1 GHz", sram_rate,
            ("chip.slices", "chip.banks"),
        ),
        (
            "SRAM bandwidth as sold", "TB/s", 80, "A", "cannot be derived from the ports",
            sram_rate * chip.clock_hz / 1e12, ("chip.slices", "chip.banks", "chip.clock_hz"),
        ),
        (
            "stream bandwidth", "B/cycle", 20_480, "A", "ISCA 2020: 64 streams",
            chip.stream_bytes_per_cycle, ("chip.streams",),
        ),
        (
            "instruction fetch, at most", "KiB/cycle", 2.25, "A", "ISCA 2020, II.B: 2.25 TiB/s",
            fetch / 1024, (),
        ),
        (
            "SRAM reads that fetch leaves for streams", "KiB/cycle", 25, "A",
            "ISCA 2020, II.B: 25 of 27.5 TiB/s", (chip.slices * VECTOR_BYTES - fetch) / 1024,
            ("chip.slices",),
        ),
        (
            "weight load, one plane", "cycles", 20, "A", "ISCA 2020, III.D",
            chip.weight_load_cycles, load,
        ),
        ("weight load, all planes", "cycles", 20, "A", "ISCA 2020, II: all 64 streams", planes,
         load),
        (
            "weight load with SRAM read and transit", "cycles", (0, 40), "A", "ISCA 2020, V.b",
            table["READ"].d_func + way + chip.weight_load_cycles + table["LW"].d_func,
            (*load, "chip.slices_per_hop", "delays.READ", "delays.LW"),
        ),
        (
            "chip-wide barrier, a Notify to the retirement of every Sync", "cycles", 35, "A",
            "ISCA 2020, III.A.2", table["NOTIFY"].d_func + table["SYNC"].d_func,
            ("delays.NOTIFY", "delays.SYNC"),
        ),
    ]  # fmt: skip
    return [_row("chip", *figure) for figure in figures]


def _row(
    part: str, figure: str, unit: str, published: Published, grade: str,
    source: str, ours: float, keys: tuple[str, ...],
) -> Row:  # fmt: skip
    return Row(
        part=part, figure=figure, unit=unit, published=published, grade=grade, source=source,
        ours=ours, constants=keys,
    )  # fmt: skip


def link_rows(hardware: Hardware) -> list[Row]:
    """One link, a chip's links together, and exchanges as the scheduler places them."""
    link, clock = _link(hardware), hardware.chip.clock_hz
    rate = float(link.payload_bps / 8) / 1e9
    hop_ns = 1e9 / clock
    near = (
        exchange_cycles(hardware, all_to_all(hardware.chips_per_node), LARGE_VECTORS),
        LARGE_VECTORS * VECTOR_BYTES * (hardware.chips_per_node - 1) * clock / 1e9,
    )
    one, two, three, five = (
        exchange_cycles(hardware, [tuple(range(hops + 1))], 1) for hops in (1, 2, 3, 5)
    )
    eight = exchange_cycles(hardware, all_to_all(hardware.chips_per_node), 1)
    wire = ("link.lanes", "link.line_rate_bps", "link.encoding_*")
    timed = (*wire, "link.overhead_bytes", "link.latency_ns", "chip.clock_hz")
    through = (*timed, "chip.forward_cycles")
    return [
        _row("link", *figure)
        for figure in (
            ("payload, each way", "GB/s", 12.5, "A", "64b/66b of 4 x 25.78125 Gb/s", rate, wire),
            ("slot of one vector", "cycles", 24, "D", "23.6 cycles, whole ones",
             link.slot_cycles(clock), (*wire, "link.overhead_bytes", "chip.clock_hz")),
            ("latency inside a node", "cycles", (216.27, 217.35), "A",
             "ISCA 2022, Table 2: means of seven links", link.latency_cycles,
             ("link.latency_ns",)),
            ("bandwidth of a chip in a node", "GB/s", 87.5, "D", "7 links",
             rate * hardware.local_ports, (*wire, "system.local_ports")),
            ("the same, reached by an all-gather of 1.3 MB a chip", "GB/s", 87.5, "D",
             "7 links", near[1] / near[0], timed),
            ("bandwidth of a chip beyond the node", "GB/s", 50, "D", "4 links",
             rate * hardware.global_ports, (*wire, "system.global_ports")),
            ("end to end in a rack, three hops", "us", 1.6, "A", "GroqRack data sheet",
             three * hop_ns / 1e3, through),
            ("end to end in 10,440 chips, five hops", "us", (0, 3), "A",
             "ISCA 2022, abstract and 2.2", five * hop_ns / 1e3, through),
            ("a hop of an all-reduce, ours without the reduction", "ns", 722, "A",
             "ISCA 2022, 5.6", (two - one) * hop_ns, through),
            ("an all-reduce over 256 chips, ours its three hops alone", "ns", 2166, "A",
             "ISCA 2022, 5.6: 3 hops x 722 ns", three * hop_ns, through),
            ("an all-reduce, ours one vector from each of eight chips to all", "ns", 2166, "C",
             "the same figure: smaller groups are not published", eight * hop_ns, timed),
        )
    ]  # fmt: skip


def _link(hardware: Hardware) -> LinkSpec:
    if hardware.cabling is not Cabling.DRAGONFLY:
        raise MachineError(
            machine=hardware.name, what="cabling to hold against published figures",
            wanted="dragonfly", got=str(hardware.cabling),
        )  # fmt: skip
    return hardware.link_spec(hardware.ports_per_chip)


def weight_chips(config: ModelConfig, dtype: str, sram_bytes: int, *, table: bool) -> int:
    """Chips that the weights alone fill, scales and padding to 320 included."""
    one = partition(build_graph(config), Layout(stages=1, group=1))
    size = sum(bytes_ for _, _, bytes_ in constants(one, 0, dtype))
    if table:
        size += config.vocab_size * row_bytes(config.hidden_size, item_bytes(dtype))
    return -(-size // sram_bytes)


def capacity_rows(hardware: Hardware) -> list[Row]:
    """Chips per model: weights alone, and the fewest that a layout needs with its KV cache."""
    keys, sram = ("chip.sram_bytes",), hardware.chip.sram_bytes
    out = []
    for model, dtype, table, wanted in (
        ("llama-8b", "fp16", True, 70), ("llama-8b", "int8", True, 35),
        ("llama-8b", "int8", False, 33), ("llama-70b", "fp16", True, 612),
        ("llama-70b", "int8", True, 306), ("llama-70b", "int8", False, 302),
        ("mixtral-8x7b", "fp16", True, 405), ("mixtral-8x7b", "int8", True, 203),
    ):  # fmt: skip
        ours = weight_chips(PRESETS[model], dtype, sram, table=table)
        with_table = "with" if table else "without"
        figure = f"weights of {model}, {dtype}, {with_table} the embedding table"
        source = "parameters x bytes / 230.69 MB"
        out.append(_row("capacity", figure, "chips", wanted, "D", source, ours, keys))
    for model, dtype, grade, wanted in (
        ("llama-2-7b", "fp16", "A", 72), ("llama-2-7b", "int8", "A", 72),
        ("llama-2-70b", "int8", "B", 576),
    ):  # fmt: skip
        config = LLAMA_2[model]
        options = Options(dtype=dtype, max_model_len=config.max_position_embeddings)
        layout = smallest_layout(config, hardware, options)
        assert layout is not None  # the largest machine holds far more
        figure = f"{model}, {dtype}, context 4,096: the fewest that hold it ({layout})"
        source = "deployed; dtype, batch and context unknown"
        out.append(_row("capacity", figure, "chips", wanted, grade, source, layout.chips, keys))
    return out


def rate_rows(hardware: Hardware) -> list[Row]:
    """Tokens per second of one sequence, against the band of measured API responses."""
    out = []
    for model, layout, band in (
        ("llama-8b", "8x4+4", (319, 1200)), ("llama-8b", "8x8+8", (319, 1200)),
        ("llama-70b", "40x8+5", (250, 677)), ("llama-70b", "70x8+16", (250, 677)),
        ("gemma2-9b", "6x8+24", (500, 550)), ("mixtral-8x7b", "32x8", (480, 646)),
        ("mixtral-8x7b", "32x16+64", (480, 646)),  # as many chips as were deployed: 576
    ):  # fmt: skip
        options = Options(max_model_len=2 * CONTEXT)
        compiled = compile_model(
            PRESETS[model], hardware, parse_layout(layout), options, kinds="decode",
            contexts=(CONTEXT,),
        )  # fmt: skip
        cycles = compiled.step(1, CONTEXT, decode=True).cycles
        figure = f"{model}, int8, context {CONTEXT}, {compiled.layout.chips} chips ({layout})"
        keys = ("chip.*", "delays.*", "link.*", "clock.*", "host.*", "system.*")
        source = "API responses 2024-2025; chips, batch and configured rates unknown"
        out.append(
            _row("rate", figure, "tok/s", band, "A", source, hardware.chip.clock_hz / cycles, keys)
        )
    return out


def product_rows(hardware: Hardware) -> list[Row]:
    """Products of many rows: how much of the planes' rate they use."""
    m, k, chip = 2304, 4096, hardware.chip
    return [
        Row(
            part="chip", figure=f"planes' use, [{m:,} x {k:,}] x [{k:,} x {n:,}], {dtype}",
            unit="%", published=(80, 100), grade="A", source="ISCA 2022, 5.2 and Fig. 13",
            ours=100 * utilisation(m, k, n, dtype, product_cycles(m, k, n, dtype, chip), chip),
            constants=("chip.*", "delays.*"),
        )
        for dtype in ("fp16", "int8")
        for n in (1376, 2400, 3500)
    ]  # fmt: skip


def lstm_rows(hardware: Hardware) -> list[Row]:
    """Cycles of the LSTM-512 cell at the published batch sizes."""
    return [
        Row(
            part="chip", figure=f"LSTM cell, hidden 512, batch {batch}", unit="cycles",
            published=wanted, grade="A", source="docs/hardware.md, single-chip results",
            ours=cell_cycles(512, batch, hardware.chip), constants=CELL_KEYS,
        )
        for batch, wanted in LSTM_CYCLES.items()
    ]  # fmt: skip


RowSource = Callable[[Hardware], list[Row]]
ROW_SOURCES: tuple[RowSource, ...] = (
    chip_rows, lstm_rows, product_rows, link_rows, path_rows, bandwidth_rows, clock_rows,
    machine_rows, capacity_rows, rate_rows, convolution_rows,
    encoder_rows, scaling_rows,
)  # fmt: skip


def all_rows(hardware: Hardware) -> list[Row]:
    """Every row of the table. Raises MachineError for a machine without published cabling."""
    return [row for source in ROW_SOURCES for row in source(hardware)]
