"""Links that make mistakes under whole runs: corrected without a trace or flagged, never silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import lru_cache

import pytest

from chip.ops.moves import Receive
from compiler.model.frontend import resolve_model
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.layout import parse_layout
from interconnect.bit_errors import ErrorSpec
from interconnect.topology import LinkKind
from rack.errors import LinkFlaggedError, RackClosedError, RackError
from rack.machines.hardware import Hardware
from rack.machines.profile import load_hardware
from rack.run.completion import Completion
from rack.run.config import RunConfig
from rack.run.engine import Engine
from rack.run.flagged import Flags, errors_notice, link_errors
from rack.run.local import LocalRack
from rack.run.processes import ProcessLauncher
from rack.run.remote import RemoteRack
from rack.run.sequences import MOST_FAULTS
from rack.run.session import prepare
from rack.text.sampler import SamplingParams
from rack.text.tokenizer import load_tokenizer

MODEL = resolve_model("tiny")
GROQ = load_hardware("groqrack")
SINGLE = ErrorSpec(bit_error_rate=8e-6, seed=2)
BURSTS = ErrorSpec(burst_rate=2e-6, burst_bits=30, seed=4)


def noisy(errors: ErrorSpec) -> Hardware:
    return replace(GROQ, errors=dict.fromkeys(LinkKind, errors))


@lru_cache(maxsize=1)
def made() -> CompiledModel:
    return compile_model(MODEL.config, GROQ, parse_layout("2x2+1"), Options(prefill_chunk=4))


Noisy = Callable[[ErrorSpec], LocalRack | RemoteRack]


def local(errors: ErrorSpec) -> LocalRack:
    model = made()
    return LocalRack(model, MODEL.weights_ref, errors=link_errors(model, noisy(errors)))


def processes(errors: ErrorSpec) -> RemoteRack:
    model = made()
    return RemoteRack(
        model, MODEL.weights_ref, ProcessLauncher(), step_timeout_s=60,
        errors=link_errors(model, noisy(errors)),
    )  # fmt: skip


@contextmanager
def opened(start: Noisy, errors: ErrorSpec) -> Iterator[LocalRack | RemoteRack]:
    with closing(start(errors)) as rack:
        yield rack


def run(rack: LocalRack | RemoteRack) -> Completion:
    c = MODEL.config
    tokenizer = load_tokenizer(None, c.vocab_size, c.bos_token_id, c.eos_token_ids)
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    return Engine(rack, tokenizer).generate([256, 72, 105, 33, 33, 33], params).run()


def figures(one: Completion) -> tuple[object, ...]:
    return one.token_ids, one.data_hash, one.prompt_cycles, one.decode_cycles


def undisturbed() -> tuple[object, ...]:
    with opened(local, ErrorSpec()) as rack:
        assert not any(node.noisy for node in rack.nodes)  # type: ignore[union-attr]
        out = figures(run(rack))
        assert rack.corrected_vectors() == {}
    return out


def test_single_errors_leave_no_trace_but_their_count() -> None:
    want, counts = undisturbed(), []
    for start in (local, processes):
        with opened(start, SINGLE) as rack:
            for _ in range(2):  # epochs of their own
                assert figures(run(rack)) == want
            counts.append(rack.corrected_vectors())
    assert counts[0] == counts[1]  # by link
    assert sum(counts[0].values()) > 5
    assert all(name.startswith("C2C ") for name in counts[0])


def test_bursts_are_flagged_and_replayed() -> None:
    """The same tokens in the same cycles; what was replayed is told apart, alike on transports."""
    want, seen = undisturbed(), []
    for start in (local, processes):
        with opened(start, BURSTS) as rack:
            whole = run(rack)
            assert figures(whole) == want
            assert rack.corrected_vectors() == {}
            seen.append([(one.step, one.chips, one.replayed_cycles) for one in whole.recoveries])
    assert seen[0] == seen[1]  # which step cannot end follows from the errors alone
    assert len(seen[0]) >= 2
    assert {chips for _, chips, _ in seen[0]} == {()}


def test_errors_that_leave_no_step_whole_end_the_request() -> None:
    with opened(local, ErrorSpec(burst_rate=0.01)) as rack:
        text = rf"^{MOST_FAULTS} replays in a row did not come to their end: chip \d, step prefill"
        with pytest.raises(RackError, match=text):
            run(rack)


def test_a_step_that_cannot_end_asks_for_a_reset() -> None:
    """Others under way are given up with it."""
    with opened(processes, ErrorSpec(burst_rate=0.01)) as rack:
        rack.reset()
        with pytest.raises(LinkFlaggedError, match=r"^chip \d, step prefill4/256: transfer .* C2C"):
            rack.run_step("prefill4/256", range(4), [1, 2, 3, 4])
        with pytest.raises(RackClosedError, match=r"^this rack has to be reset first: chip \d, "):
            rack.finish()
        rack.reset()
        rack.start(rack.turns.order("prefill4/256", range(4), [1, 2, 3, 4]))
        rack.corrected_vectors()  # the flag may come among the answers
        with pytest.raises(LinkFlaggedError):
            rack.finish()
        rack.check()


def test_counts_may_be_asked_for_while_a_step_is_under_way() -> None:
    """Results that come among the answers are not lost."""
    with opened(local, ErrorSpec()) as rack:
        rack.reset()
        want = rack.run_step("decode/256", [0], [9]).hash_share
    with opened(processes, SINGLE) as rack:
        rack.reset()
        rack.start(rack.turns.order("decode/256", [0], [9]))
        for _ in range(20):
            rack.corrected_vectors()
        (result,) = rack.finish()
        assert result.hash_share == want


def test_steps_before_a_flagged_frame_end_as_ever() -> None:
    links = made().network.links
    flags = Flags(links)
    told = {"chip": 1, "epoch": 4, "link": 0, "sequence": 7, "transfer": 2}
    flags.take(told)
    flags.take({**told, "chip": 2, "transfer": 1})
    flags.take({**told, "sequence": 9, "transfer": 0})
    flags.check(4, 6, "step decode/256")
    flags.check(5, 7, "step decode/256")  # of another epoch
    with pytest.raises(LinkFlaggedError) as caught:
        flags.check(4, 7, "step decode/256")
    assert (caught.value.chip, caught.value.link) == (2, links[0].name)
    flags.clear()
    flags.check(4, 7, "step decode/256")


def test_a_run_says_what_its_links_will_do() -> None:
    model = made()
    links = {link.id for link in model.network.links if not link.is_host}
    errors, said = ErrorSpec(bit_error_rate=1e-6), []
    for step in (model.step(1, 256, decode=True), model.step(4, 256, decode=False)):
        moved = sum(
            one.op.vectors
            for program in step.programs[: model.layout.chips]
            for one in program.operations
            if isinstance(one.op, Receive) and one.op.link in links
        )
        corrected, flagged = (moved * share for share in errors.shares())
        said.append(
            f"of the {moved} vectors that a step {step.kind.name} moves over them about "
            f"{corrected:.3g} are corrected and {flagged:.3g} are flagged"
        )
    notice = errors_notice(model, link_errors(model, noisy(errors)))
    assert notice == f"LINKS MAKE ERRORS: {said[0]}; {said[1]}"
    config = RunConfig(model="tiny", layout="1x2", hardware="groqrack-errors", transport="local")
    assert any(one.startswith("LINKS MAKE ERRORS: ") for one in prepare(config).notices)
    timing = prepare(replace(config, executor="timing")).notices  # it moves no data
    assert not any(one.startswith("LINKS") for one in timing)


def test_every_kind_of_link_has_its_own_errors() -> None:
    """Kinds as the topology's cables have them; the host's links make no errors."""
    kinds = (LinkKind.LOCAL, LinkKind.GLOBAL, LinkKind.OPTICAL)
    errors = {kind: ErrorSpec(bit_error_rate=1e-9, seed=at) for at, kind in enumerate(LinkKind)}
    topology, found = GROQ.topology(145, ()), set[LinkKind]()
    for link in topology.links:
        assert GROQ.link_kind(link.src, link.dst) is link.kind
        found.add(link.kind)
    assert found == set(kinds)
    model = made()
    for hardware in (GROQ, load_hardware("lesson")):
        of = link_errors(model, replace(hardware, errors=errors))
        assert set(of) == {link.id for link in model.network.links if not link.is_host}
    assert {one.seed for one in of.values()} == {3}  # FREE
    only = {**dict.fromkeys(LinkKind, ErrorSpec()), LinkKind.OPTICAL: SINGLE}
    assert link_errors(model, replace(GROQ, errors=only)) == {}  # one node
