"""`rack.plan`: chips, memory, cycles that add up, what binds a token; it starts nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rack_kit import refused
from schedules import compiled

from compiler.analyse import PARTS, analyse
from compiler.model.presets import PRESETS
from rack.commands.bench import main as bench
from rack.commands.compile import main as compile_model
from rack.commands.generate import main as generate
from rack.commands.plan import main
from rack.commands.trace import main as trace

KEYS = {
    "model", "weights", "dtype", "hardware", "hardware_digest", "layout", "chips", "racks",
    "max_model_len", "prefill_chunk", "buckets", "sram_bytes_per_chip", "decode",
    "config", "notices", "code", "synchronisation", "cost",
}  # fmt: skip
DECODE = {
    "step", "cycles", "microseconds", "tokens_per_second", "parts", "bounds", "roofline_cycles",
    "roofline_ratio", "stream_bytes", "busiest_unit", "busiest_link",
}  # fmt: skip
PRESET = PRESETS["tiny"]
TINY_CONFIG = {
    "hidden_size": PRESET.hidden_size, "intermediate_size": PRESET.intermediate_size,
    "num_hidden_layers": PRESET.num_layers, "num_attention_heads": PRESET.num_heads,
    "num_key_value_heads": PRESET.num_kv_heads, "vocab_size": PRESET.vocab_size,
    "head_dim": PRESET.head_dim, "max_position_embeddings": PRESET.max_position_embeddings,
    "rms_norm_eps": PRESET.rms_norm_eps, "rope_theta": PRESET.rope_theta,
    "tie_word_embeddings": PRESET.tie_word_embeddings, "bos_token_id": PRESET.bos_token_id,
    "eos_token_id": list(PRESET.eos_token_ids),
}  # fmt: skip
TINY = ["tiny", "--layout", "2x2+1"]
GOLDENS = Path(__file__).parent / "goldens"


def plan(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    check_adds_up(report)
    return report


def check_adds_up(report: dict[str, Any]) -> None:
    """What must hold for every plan."""
    assert set(report) - {"int4", "estimated", "experts"} == KEYS | {"sequences"}
    assert ("int4" in report) is (report["dtype"] == "int4")
    decode, memory = report["decode"], report["sram_bytes_per_chip"]
    assert set(decode) - {"busiest_link"} == DECODE - {"busiest_link"}
    assert set(decode["parts"]) == set(PARTS)
    assert sum(part["cycles"] for part in decode["parts"].values()) == decode["cycles"] > 0
    assert all(part["cycles"] >= 0 for part in decode["parts"].values())
    assert sum(bound["cycles"] for bound in decode["bounds"].values()) == decode["cycles"]
    for row in (decode, *decode["parts"].values(), *decode["bounds"].values()):
        assert row["microseconds"] == pytest.approx(row["cycles"] / 900)  # 900 MHz
    assert decode["tokens_per_second"] == pytest.approx(9e8 / decode["cycles"])
    assert decode["roofline_ratio"] == decode["cycles"] / decode["roofline_cycles"] > 1
    for kind in ("unit", "link"):
        item = decode.get(f"busiest_{kind}")
        assert item is None or 0 < item["busy_cycles"] <= decode["cycles"]
        assert item is None or item["busy_fraction"] == item["busy_cycles"] / decode["cycles"]
    rows = [memory[name] for name in ("weights", "kv_cache", "buffers", "free")]
    assert sum(row["total"] for row in rows) == memory["capacity"] * report["chips"]
    assert all(0 <= row["min"] <= row["max"] <= memory["capacity"] for row in rows)
    assert int(decode["step"].removeprefix("decode/")) in report["buckets"]


def test_a_plan_of_a_small_model(capsys: pytest.CaptureFixture[str]) -> None:
    report = plan(capsys, *TINY)
    assert (report["model"], report["dtype"], report["hardware"]) == ("tiny", "int8", "lesson")
    assert (report["chips"], report["racks"], report["layout"]) == (5, 1, "2x2+1")
    assert report["max_model_len"] == 256
    assert report["decode"]["step"] == "decode/256"
    assert report["decode"]["busiest_unit"]["name"].startswith("chip ")
    assert "->" in report["decode"]["busiest_link"]["name"]
    assert report["config"]["layout"] == "2x2+1"
    assert report["weights"].startswith("SYNTHETIC")


def test_one_chip_has_no_link_to_wait_for(capsys: pytest.CaptureFixture[str]) -> None:
    report = plan(capsys, "tiny", "--layout", "1x1")
    assert "busiest_link" not in report["decode"]
    assert main(["tiny", "--layout", "1x1"]) == 0
    assert "busiest link: none" in capsys.readouterr().out


def test_what_binds_a_token_follows_from_links_and_loads() -> None:
    """A hop on the way of a token takes its link's latency, and a slot for each vector."""
    model = compiled("1x2", "groqrack")
    (step, *_) = model.steps.values()
    bounds = analyse(model, step).bounds
    link = next(link for link in model.network.links if not link.is_host)
    host = next(link for link in model.network.links if link.is_host)
    hops, rest = divmod(bounds["latency of links"], link.latency_cycles)
    assert hops > 4, "an all-gather for each product of two layers and the head's logits"
    assert rest == 0
    assert bounds["rate of links"] % link.slot_cycles == 0
    assert bounds["rate of links"] >= hops * link.slot_cycles
    assert bounds["latency of host port"] == 2 * host.latency_cycles, "in and out"
    alone = compiled("1x1", "groqrack")
    (step, *_) = alone.steps.values()
    assert not {"latency of links", "rate of links"} & set(analyse(alone, step).bounds)


@pytest.mark.parametrize("hardware", ["lesson", "groqrack"])
@pytest.mark.parametrize("layout", ["1x1", "1x2", "2x1", "3x1+1", "2x2+1", "1x3+2"])
@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_the_parts_of_any_step_add_up(layout: str, hardware: str, dtype: str) -> None:
    model = compiled(layout, hardware, dtype=dtype)
    for step in model.steps.values():
        found = analyse(model, step)
        assert sum(found.parts.values()) == found.cycles == step.cycles
        assert sum(found.bounds.values()) == step.cycles
        assert list(found.bounds.values()) == sorted(found.bounds.values(), reverse=True)
        assert min(found.parts.values()) >= 0
        assert found.unit.cycles <= step.cycles


def test_int4_says_what_it_rests_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer bytes; loads of half the cycles, or of as many, as the profile assumes."""
    whole, report = plan(capsys, *TINY), plan(capsys, *TINY, "--dtype", "int4")
    loads = report["int4"]
    assert (loads["group"], loads["columns_per_vector"]) == (320, 2)
    assert (loads["tile_load_cycles"], loads["int8_tile_load_cycles"]) == (10, 20)
    assert loads["source"].startswith("assumption: ")
    sizes = [each["sram_bytes_per_chip"]["weights"]["total"] for each in (report, whole)]
    assert sizes[0] < sizes[1]
    assert main([*TINY, "--dtype", "int4", "--int4-group", "64"]) == 0
    line = "int4 weights, a scale for 64 input rows: a tile of 320 x 320 loads in 10 cycles"
    text = " ".join(capsys.readouterr().out.split())
    assert line in text
    assert "no publication shows 4-bit weights on this chip" in text
    slow = tmp_path / "slow.toml"
    slow.write_text(
        'name = "slow"\ninherits = "lesson"\n[chip]\n'
        'mxm_int4_columns = { value = 1, source = "assumption: no unpacking" }\n'
    )
    same = plan(capsys, *TINY, "--dtype", "int4", "--hardware", str(slow))
    assert same["int4"]["tile_load_cycles"] == 20
    weights = [each["decode"]["parts"]["weights"]["cycles"] for each in (report, same)]
    assert weights[0] < weights[1]


def test_a_plan_says_which_cycles_are_estimates(capsys: pytest.CaptureFixture[str]) -> None:
    assert "estimated" not in plan(capsys, *TINY)
    assert plan(capsys, *TINY, "--dtype", "int4")["estimated"] == ["matmul"]
    mixture = [str(GOLDENS / "mixtral"), "--layout", "1x2"]
    assert "estimated" not in plan(capsys, *mixture)
    assert plan(capsys, *mixture, "--dtype", "int4")["estimated"] == [
        "experts_each", "experts_sum", "matmul",
    ]  # fmt: skip
    assert main([*mixture, "--dtype", "int4"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "estimates: cycles of experts_each, experts_sum, matmul, which have no" in text


def test_the_context_chooses_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["tiny-wide", "--layout", "1x2"]
    assert plan(capsys, *argv, "--context", "3")["decode"]["step"] == "decode/256"
    assert plan(capsys, *argv, "--context", "300")["decode"]["step"] == "decode/512"


def test_the_table_says_what_the_json_says(capsys: pytest.CaptureFixture[str]) -> None:
    report = plan(capsys, *TINY)
    assert main(TINY) == 0
    out, err = capsys.readouterr()
    assert err == ""  # it uses no weights and draws no token, so there is nothing to warn of
    assert report["notices"] == []
    decode = report["decode"]
    assert "tiny int8 on lesson: layout 2x2+1, 5 chips, 1 racks" in " ".join(out.split())
    for text in (
        f"{decode['cycles']:,}", f"{decode['roofline_cycles']:,} cycles", "turnaround",
        "a token is bound by latency of host port ",
        f"busiest unit: {decode['busiest_unit']['name']}, busy ", "SRAM per chip",
        f"busiest link: {decode['busiest_link']['name']}, busy ", "100.0%",
    ):  # fmt: skip
        assert text in out


def test_config_json_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without weights is planned as the preset of the same numbers is."""
    raw = {"architectures": ["LlamaForCausalLM"], **TINY_CONFIG}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    of_folder, of_preset = plan(capsys, str(tmp_path), *TINY[1:]), plan(capsys, *TINY)
    for key in ("model", "weights", "config"):
        del of_folder[key], of_preset[key]
    assert of_folder == of_preset
    for run in (main, generate, compile_model, trace, bench):
        flags = {generate: ["--prompt", "x"], compile_model: ["-o", str(tmp_path / "a")]}
        assert run([str(tmp_path), *TINY[1:], "--dry-run", *flags.get(run, [])]) == 0
        out, err = capsys.readouterr()
        assert out.startswith(f"{tmp_path.name} int8 on lesson: layout 2x2+1, 5 chips, ")
        assert err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert trace([str(tmp_path), *TINY[1:], "-o", str(tmp_path / "t.json")]) == 0
    capsys.readouterr()
    assert generate([str(tmp_path), *TINY[1:], "--prompt", "x"]) == 1
    assert capsys.readouterr().err.endswith(
        "wanted model.safetensors or model.safetensors.index.json, got neither\n"
    )


def test_what_synchronisation_costs(capsys: pytest.CaptureFixture[str]) -> None:
    exact = plan(capsys, *TINY, "--hardware", "groqrack")["synchronisation"]
    assert (exact["drift_ppm"], exact["cost_cycles"], exact["stops"]) == (0, 0, 0)
    assert exact["slack_cycles_per_hop"] == {"min": 0, "max": 0}
    argv = [*TINY, "--hardware", "groqrack-drift"]
    report = plan(capsys, *argv)
    clocks = report["synchronisation"]
    assert (exact["start_cycles"], clocks["start_cycles"]) == (0, 252)
    # Every hop waits its slack; at least the way in, four stages' worth of exchanges, and out.
    assert clocks["cost_cycles"] >= 10 * clocks["slack_cycles_per_hop"]["min"] > 0
    assert clocks["cost_fraction"] == clocks["cost_cycles"] / report["decode"]["cycles"] < 0.05
    assert (clocks["drift_ppm"], clocks["jitter_cycles"]) == (50, 11)
    assert main(argv) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"synchronisation: {clocks['cost_cycles']:,} cycles, " in text
    assert "for +-50 ppm: " in text
    assert "; a request starts in 252 cycles" in text


def test_dry_run_places_every_chip(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["llama-8b", "--layout", "8x4+4", "--max-model-len", "256", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("llama-8b int8 on lesson: layout 8x4+4, 36 chips, 2 racks, context")
    assert len(lines) == 37
    assert lines[18].startswith("chip  17: rack 0 card 8 slot 17: layers 16-19 rank 1; ")
    assert lines[36].startswith("chip  35: rack 1 card 17 slot 35: LM head columns ")


@pytest.mark.slow
def test_llama_8b_on_the_lesson_s_machine(capsys: pytest.CaptureFixture[str]) -> None:
    report = plan(capsys, "llama-8b")
    assert (report["chips"], report["racks"], report["dtype"]) == (36, 2, "int8")
    assert report["hardware"] == "lesson"
    assert report["max_model_len"] >= 1728
    assert report["prefill_chunk"] >= 16
    decode, parts = report["decode"], report["decode"]["parts"]
    assert decode["step"] == "decode/512"
    said = (
        f"{report['chips']} chips in {report['racks']} racks (layout `{report['layout']}`), "
        f"{report['max_model_len']:,} tokens of context, {decode['cycles']:,} cycles "
        f"({decode['microseconds']:.0f} us) per token at context 512, of which exchange is "
        f"{parts['exchange']['cycles'] / decode['cycles']:.0%}".replace("%", " %")
    )
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    assert said in " ".join(readme.split())


@pytest.mark.slow
def test_llama_70b_on_groqrack(capsys: pytest.CaptureFixture[str]) -> None:
    # What `--layout auto` finds, in 10 to 20 s on two cores.
    layout = ["--layout", "40x8+5", "--max-model-len", "512"]
    report = plan(capsys, "llama-70b", "--hardware", "groqrack", *layout)
    assert (report["hardware"], report["chips"], report["racks"]) == ("groqrack", 325, 5)
    assert report["max_model_len"] == 512
    assert "->" in report["decode"]["busiest_link"]["name"]


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        ([*TINY, "--context", "0"], "context: wanted 1 or more, got 0"),
        ([*TINY, "--context=-3"], "context: wanted 1 or more, got -3"),
        ([*TINY, "--context", "257"], "context: wanted at most 256, got 257"),
        (["tiny", "--layout", "9x1"], "layout 9x1: 9 stages, but tiny has 3 layers; "),
        (["gpt-5"], "model 'gpt-5': wanted a preset (llama-8b, "),
        (["llama-8b", "--layout", "2x2"], "layout 2x2, context "),
    ],
)
def test_what_cannot_be_planned_is_refused(
    capsys: pytest.CaptureFixture[str], argv: list[str], wanted: str
) -> None:
    assert refused(capsys, 1, main, *argv).startswith(wanted)


def test_bad_usage_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(capsys, 2, main, "tiny", "--context", "x")
    assert text == "argument --context: invalid int value: 'x'"
    assert refused(capsys, 2, main) == "the following arguments are required: MODEL"


def test_costs_with_their_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["llama-8b", "--layers", "2", "--layout", "2x4+4"]
    flags = ["--usd-per-kwh", "0.2", "--pue", "1.5", "--utilisation", "0.5"]
    found = plan(capsys, *words, *flags)
    cost, decode = found["cost"], found["decode"]
    watts = 12 * 185 * 1.5
    joules = watts / (decode["tokens_per_second"] * 0.5)
    assert cost["alone"]["joules_per_million_tokens"] == pytest.approx(joules * 1e6)
    given = cost["inputs"]
    assert [given[key] for key in ("chips", "usd_per_kwh", "pue", "utilisation")] == [
        12, 0.2, 1.5, 0.5,
    ]  # fmt: skip
    assert given["chip"]["unit_usd"]["source"].startswith("assumption: ")
    many = cost["in_flight_when_full"]
    assert many > 1
    ratio = (
        cost["alone"]["usd_per_million_tokens"] / cost["pipeline_full"]["usd_per_million_tokens"]
    )
    assert many <= ratio < many + 1
    assert many == found["sequences"]["full_at"]
    assert cost["groqcloud"] == {
        "usd_per_million_tokens_in": 0.05, "usd_per_million_tokens_out": 0.08
    }  # fmt: skip
    assert main([*words, *flags]) == 0
    said = capsys.readouterr().out
    for part in (
        "costs of lesson's chip: 12 of it alone, each of 185 W on average (TDP 215, most 300), "
        "20,000 USD (5,000 to 20,000, assumed) and 5 years (3 to 7, assumed), at 0.2 USD a kWh, "
        "PUE 1.5, 50% of the hours in use",
        "one sequence alone: ",
        f"pipeline full, {many} sequences or more (if they fit): ",
        "for reference, GroqCloud's published prices of llama-8b: 0.05 USD a million tokens in, "
        "0.08 out",
    ):
        assert part in said
    text = refused(capsys, 1, main, *words, "--pue", "0")
    assert text == "pue: wanted 1 to 10, got 0.0"


def test_costs_of_an_encoder_are_of_its_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny-bert", "--layout", "2x1", "--max-model-len", "32", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    encode, found = report["encode"], report["cost"]
    tokens = encode["tokens"] * encode["sequences_per_second"]
    watts = 2 * 185 * 1.2
    assert found["pipeline_full"]["joules_per_million_tokens"] == pytest.approx(
        watts / tokens * 1e6
    )
