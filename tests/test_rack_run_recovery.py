"""Chips are lost, and the run goes on: the same tokens at the same cycles, whatever was lost when.

Here is the replay (in one process, caches really wiped), and racks of processes that are killed.
Ray's part is in test_rack_ray.py and test_rack_run_cluster.py.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from threading import Timer
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.model.frontend import resolve_model
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.layout import parse_layout
from interconnect.bit_errors import ErrorSpec
from interconnect.errors import UnknownPeerError
from interconnect.frame import Control
from interconnect.topology import LinkKind
from interconnect.zmq_transport import RunKey, ZmqTransport
from rack.errors import (
    ChipFailedError,
    ConfigError,
    FaultError,
    MachineError,
    NoSpareError,
    RackError,
)
from rack.machines.profile import load_hardware
from rack.run import pulse, remote, sequences
from rack.run.completion import Completion
from rack.run.config import RunConfig
from rack.run.control import ControlKind
from rack.run.engine import Engine
from rack.run.local import LocalRack
from rack.run.members import Members
from rack.run.processes import ProcessLauncher
from rack.run.pulse import SILENT_SECONDS, Pulse, beating
from rack.run.rebinding import Rebinder, spare_slots, spares_notice
from rack.run.remote import RemoteRack
from rack.run.sequences import Sequences
from rack.run.session import prepare
from rack.run.steps import Rack, Recovery, StepResult
from rack.run.timing_rack import TimingRack
from rack.text.sampler import SamplingParams
from rack.text.tokenizer import load_tokenizer

MODEL = resolve_model("tiny")
LESSON = load_hardware("lesson")
STEP_SECONDS = 2.0
WAIT_S = 30.0


@cache
def compiled(
    layout: str = "2x2+1", sequences: int = 3, batch: int = 1, hardware: str = "lesson"
) -> CompiledModel:
    options = Options(
        prefill_chunk=4, sequences=sequences, batch=batch, max_model_len=64, buckets=(32, 64)
    )
    return compile_model(MODEL.config, load_hardware(hardware), parse_layout(layout), options)


Told = tuple[list[tuple[int, int, int]], list[tuple[Any, ...]]]


def told(completion: Completion) -> tuple[Any, ...]:
    """All that a client is told of a completion."""
    return (
        completion.token_ids, completion.prompt_cycles, completion.decode_cycles,
        completion.waited_cycles, completion.reused_tokens, completion.data_hash,
    )  # fmt: skip


class Traffic:
    """Requests that come, run and leave: always the same ones, at the same turns."""

    def __init__(self, rack: Rack, *, reuse: bool = False, count: int = 4, tokens: int = 6) -> None:
        c = MODEL.config
        tokenizer = load_tokenizer(None, c.vocab_size, c.bos_token_id, c.eos_token_ids)
        self.engine = Engine(rack, tokenizer)
        self.seen: list[Recovery] = []
        self.sequences = Sequences(rack, reuse=reuse, on_recovery=self.seen.append)
        self.tokens, self.count = tokens, count
        self.done: list[Completion] = []
        self.out: list[tuple[int, int, int]] = []

    def run(self, act: Mapping[int, Callable[[], None]] | None = None) -> Told:
        """Run all; before turn n, do `act[n]`."""
        waiting, turn = list(range(self.count)), 0
        while waiting or self.sequences.running:
            turn += 1
            if act and turn in act:
                act[turn]()
            while waiting and not self.sequences.full:
                self.admit(waiting.pop(0))
            if turn == 12:  # one leaves
                self.sequences.leave(self.sequences.running[-1])
            for one in self.sequences.advance():
                assert not isinstance(one.token, Exception)
                prompt = one.completion.prompt_token_ids
                self.out.append((len(prompt), one.token.token_id, one.cycle))
        return self.out, [told(one) for one in self.done]

    def admit(self, number: int) -> None:
        prompt = [256, *([65, 66, 67, 68] * 3)[: 5 + 3 * (number % 3)], 70 + number]
        params = SamplingParams(max_tokens=self.tokens, ignore_eos=True)
        completion = self.engine.generate(prompt, params)
        self.done.append(completion)
        self.sequences.admit(completion)


class Losing(LocalRack):
    """A rack on which, when the n-th step is to end, a chip is lost: its caches are wiped."""

    def __init__(self, model: CompiledModel, losses: Sequence[int]) -> None:
        super().__init__(model, MODEL.weights_ref)
        self.losses, self.ended, self.lost = set(losses), 0, 0

    def finish(self) -> list[StepResult]:
        self.ended += 1
        if self.ended in self.losses:
            self.lost += 1
            chip = self.ended % len(self.nodes)
            for tensor in self.compiled.memories[chip].tensors:
                if tensor.kind == "kv":
                    memory = self.nodes[chip].chip.sram.memory(tensor.address, tensor.size)
                    memory[:] = b"\x55" * tensor.size
            raise FaultError(chip=chip, step="step x", what="lost", waiting_for="nothing")
        return super().finish()


@cache
def undisturbed(batch: int, reuse: bool) -> Told:
    rack = LocalRack(compiled(batch=batch), MODEL.weights_ref)
    try:
        return Traffic(rack, reuse=reuse).run()
    finally:
        rack.close()


@settings(max_examples=20, deadline=None)
@given(
    batch=st.sampled_from([1, 2]), reuse=st.booleans(),
    losses=st.lists(st.integers(1, 24), min_size=1, max_size=4),
)  # fmt: skip
def test_whatever_is_lost_when_tokens_and_cycles_are_the_same(
    batch: int, reuse: bool, losses: list[int]
) -> None:
    """Several sequences, one that leaves, steps under way, faults in the midst of a replay."""
    rack = Losing(compiled(batch=batch), losses)
    try:
        traffic = Traffic(rack, reuse=reuse)
        assert traffic.run() == undisturbed(batch, reuse)
        assert rack.lost > 0
        assert 1 <= len(traffic.seen) <= rack.lost
        for seen in traffic.seen:
            assert seen.replayed_cycles > 0
        told_of = {id(one) for completion in traffic.done for one in completion.recoveries}
        assert told_of <= {id(seen) for seen in traffic.seen}
    finally:
        rack.close()


class Moving(Losing):
    """A rack that goes on with another schedule of the same model once a chip was lost."""

    def recover(self, error: FaultError) -> Recovery:
        other = compiled("1x3", batch=self.compiled.batch)
        if other is not self.compiled:
            self.__dict__.update(LocalRack(other, MODEL.weights_ref).__dict__)
        return super().recover(error)


@settings(max_examples=12, deadline=None)
@given(
    batch=st.sampled_from([1, 2]), reuse=st.booleans(),
    losses=st.lists(st.integers(1, 24), min_size=1, max_size=3),
)  # fmt: skip
def test_on_another_schedule_the_tokens_are_the_same(
    batch: int, reuse: bool, losses: list[int]
) -> None:
    rack = Moving(compiled(batch=batch), losses)
    try:
        traffic = Traffic(rack, reuse=reuse)
        traffic.run()
        _, wanted = undisturbed(batch, reuse)
        for got, one in zip(traffic.done, wanted, strict=True):
            if got.finish_reason is not None and len(one[0]) == len(got.token_ids):
                assert (got.token_ids, got.data_hash) == (one[0], one[5])
        whole = [one for one in traffic.done if one.finish_reason is not None]
        assert len(whole) >= 3
        assert all(len(one.token_ids) == len(one.decode_cycles) for one in traffic.done)
        assert rack.compiled is compiled("1x3", batch=batch)
    finally:
        rack.close()


def test_a_lone_sequence_s_replay_is_its_prompt_and_tokens() -> None:
    """Known: nothing under way but the step that was lost, so what is replayed is the prefill."""
    model = compiled(sequences=1)
    rack = Losing(model, [6])
    traffic = Traffic(rack, count=1)
    traffic.run()
    rack.close()
    (seen,) = traffic.seen
    # The prompt's 6 tokens before its last are two prefill steps; the fault came with the fourth
    # decode step: 6 + 3 tokens are filled again, in steps of 4, 4 and 1.
    first, last = model.step(4, 8, decode=False), model.step(1, 9, decode=False)
    again = [model.step(4, 4, decode=False), first, last]
    wanted = sum(model.interval(one.name, then.name) for one, then in pairwise(again))
    assert seen.replayed_cycles == wanted + last.cycles
    assert traffic.done[0].recoveries == [seen]
    assert (seen.chips, seen.step) == ((), "step x")


def test_replays_that_never_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "MOST_FAULTS", 3)
    rack = Losing(compiled(), range(8, 1000))
    with pytest.raises(Exception, match="3 replays in a row did not come to their end: chip "):
        Traffic(rack).run()
    rack.close()


def test_chips_lost_during_the_replay_are_told_of_too() -> None:
    rack, lost = Losing(compiled(sequences=1), [6, 7]), iter([(3,), (1,)])
    recover = rack.recover
    rack.recover = lambda error: replace(recover(error), chips=next(lost))  # type: ignore[method-assign]
    traffic = Traffic(rack, count=1)
    traffic.run()
    rack.close()
    (seen,) = traffic.seen
    assert (seen.chips, seen.step, rack.lost) == ((1, 3), "step x", 2)


def test_a_chip_of_this_process_is_nobody_s_to_replace() -> None:
    rack = LocalRack(compiled(), MODEL.weights_ref)
    error = ChipFailedError(chip=0, step="step x", what="gone", waiting_for="nothing")
    with pytest.raises(ChipFailedError) as caught:
        rack.recover(error)
    rack.close()
    assert caught.value is error


def test_a_rack_without_chips_has_nothing_to_recover() -> None:
    rack = TimingRack(compiled())
    error = FaultError(chip=0, step="step x", what="lost", waiting_for="nothing")
    with pytest.raises(FaultError) as caught:
        rack.recover(error)
    assert caught.value is error
    assert rack.condition() is None


# -- bindings


def test_cables_are_laid_to_any_spare_where_they_are_the_layout_s() -> None:
    model = compiled()
    binding = dict(enumerate(model.network.binding))
    assert spare_slots(model, LESSON, 2) == (5, 6)
    rebinder = Rebinder(model, LESSON)
    for chip in range(5):
        assert rebinder.rebind(binding, [chip], (5, 6)) == {**binding, chip: 5}
    assert rebinder.rebind(binding, [1, 3], (5, 6)) == {**binding, 1: 5, 3: 6}


def test_on_fixed_cables_a_spare_of_the_node_fits_and_one_outside_does_not() -> None:
    groqrack, model = load_hardware("groqrack"), compiled("1x5+1", 1, hardware="groqrack")
    binding = dict(enumerate(model.network.binding))
    assert len({slot // 8 for slot in binding.values()}) == 1
    rebinder = Rebinder(model, groqrack)
    inside, outside = spare_slots(model, groqrack, 2), (16, 17)
    assert {slot // 8 for slot in inside} == {0}
    for chip in range(6):
        assert rebinder.rebind(binding, [chip], inside)[chip] in inside
        with pytest.raises(
            MachineError, match=r"groqrack: C2C .* in slots .* wanted a cable of its own of 216"
        ):
            rebinder.rebind(binding, [chip], outside)
    # The order of the spares is searched for one that fits.
    assert rebinder.rebind(binding, [2], (outside[0], inside[1])) == {**binding, 2: inside[1]}


def test_a_cable_that_errs_otherwise_is_another_one() -> None:
    """Chips draw the errors of links as they were given; a cable between nodes has its own."""
    groqrack, model = load_hardware("groqrack"), compiled("1x2", 1, hardware="groqrack")
    binding = dict(enumerate(model.network.binding))
    assert Rebinder(model, groqrack).rebind(binding, [1], (12,)) == {0: 0, 1: 12}
    errors = {**groqrack.errors, LinkKind.GLOBAL: ErrorSpec(bit_error_rate=1e-9)}
    with pytest.raises(MachineError, match=r"in slots 0 and 12: wanted a cable .* of another kind"):
        Rebinder(model, replace(groqrack, errors=errors)).rebind(binding, [1], (12,))


def test_a_node_of_spares_takes_a_node_s_place() -> None:
    """Where no spare has the cables, a lost chip's node moves whole; else the chip alone."""
    groqrack, model = load_hardware("groqrack"), compiled("1x5+1", 1, hardware="groqrack")
    binding, rebinder = dict(enumerate(model.network.binding)), Rebinder(model, groqrack)
    node = spare_slots(model, groqrack, 8)
    assert node == tuple(range(8, 16))
    moved = rebinder.move(binding, [2], node)
    assert {slot // 8 for slot in moved.values()} == {1}
    assert len(set(moved.values())) == 6
    rebinder.verify(moved)  # a node is like another one
    assert rebinder.move(binding, [2, 4], (17, 30)) == {**binding, 2: 17, 4: 30}


def test_a_machine_has_only_so_many_free_chips() -> None:
    model = compiled("1x5+1", 1, hardware="groqrack")
    with pytest.raises(
        ConfigError,
        match=r"^spares: wanted at most 66, the free chips of groqrack beside the 6 of layout "
        r"1x5\+1, got 67; a --layout of fewer chips leaves more$",
    ):
        spare_slots(model, load_hardware("groqrack"), 67)


def test_a_run_says_which_chips_no_spare_fits() -> None:
    groqrack, full = load_hardware("groqrack"), compiled("1x8+1", 1, hardware="groqrack")
    assert Counter(slot // 8 for slot in full.network.binding) == {0: 8, 1: 1}
    said = (
        "SPARES: 8 of 9 chips are in nodes without a spare, and other nodes have not their cables: "
        "--spares 8 is a node, which takes another one's place as a whole"
    )
    fixed = ", though not from an artifact, whose schedule is fixed"
    for count, stored, wanted in (
        (0, False, None), (1, False, said), (7, True, said + fixed), (8, False, None),
    ):  # fmt: skip
        assert spares_notice(full, groqrack, count, stored=stored) == wanted
    assert spares_notice(full, groqrack, 8, stored=True) == (
        said.replace("8 of 9", "9 of 9") + fixed
    )
    beside = compiled("1x5+1", 1, hardware="groqrack")
    assert spares_notice(beside, groqrack, 1, stored=True) is None
    assert spares_notice(compiled(), LESSON, 1, stored=True) is None
    config = RunConfig(model="tiny", layout="1x8", hardware="groqrack", spares=1)
    notices = prepare(replace(config, transport="process")).notices
    assert said.replace("8 of 9", "8 of 8") in notices


def test_drifting_clocks_are_trained_for_their_cables() -> None:
    drift, model = load_hardware("groqrack-drift"), compiled("1x2", 1, hardware="groqrack-drift")
    binding = dict(enumerate(model.network.binding))
    with pytest.raises(MachineError, match="spares: wanted clocks that do not drift"):
        Rebinder(model, drift).rebind(binding, [0], [5])


# -- heartbeats


class Dumb:
    """A transport that counts."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Control]] = []

    def send(self, dst: int, message: Any) -> None:
        self.sent.append((dst, message))


def test_beats_are_sent_until_the_end() -> None:
    dumb: Any = Dumb()
    with beating(dumb, 9, 4):
        wait_for(lambda: len(dumb.sent) > 1, "beats")
    assert dumb.sent[0] == (9, Control("beat", {"process": 4}))
    assert "beats" not in {thread.name for thread in threading.enumerate()}  # it has ended


def test_silence_counts_for_whom_it_is_watched() -> None:
    listening = Pulse(9, "ipc://*", None)
    try:
        assert listening.silence(4) == 0.0
        listening.watch(4)
        wait_for(lambda: listening.silence(4) > 0.2, "silence")
        listening.forget(4)
        assert listening.silence(4) == 0.0
    finally:
        listening.close()


def test_time_in_which_nobody_listens_is_nobody_s_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that listens, or the whole machine, was stopped for an hour."""
    ahead = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead)
    monkeypatch.setattr(pulse, "time", clock)
    listening = Pulse(9, "ipc://*", None)
    try:
        listening.watch(4)
        wait_for(lambda: listening.silence(4) > 0.2, "silence")
        before, began = listening.now(), time.monotonic()
        ahead = 3600.0
        wait_for(lambda: listening.silence(4) > before + 0.2, "silence")
        passed = time.monotonic() - began
        assert 0.0 < listening.now() - before < passed + 1.5
        assert listening.silence(4) < before + passed + 1.5
    finally:
        listening.close()


def test_the_clock_knows_when_a_silent_process_came_back() -> None:
    key, waits = RunKey.generate(), SILENT_SECONDS + 0.1
    listening = Pulse(9, "ipc://*", key)
    speaker = ZmqTransport(4, "ipc://*", key)
    try:
        listening.watch(4)
        speaker.connect({9: listening.endpoint})
        assert listening.returned == 0.0
        wait_for(lambda: listening.silence(4) > waits, "silence")
        with beating(speaker, 9, 4):
            wait_for(lambda: listening.silence(4) < waits, "beat")
        assert waits < listening.returned <= listening.now()
    finally:
        speaker.close()
        listening.close()


def wait_for(happened: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < until, f"no {what} within {WAIT_S} s"
        time.sleep(0.02)


# -- processes


@pytest.fixture
def processes() -> Iterator[Callable[..., RemoteRack]]:
    racks: list[RemoteRack] = []

    def start(model: CompiledModel, **extra: Any) -> RemoteRack:
        extra = {"step_timeout_s": STEP_SECONDS, "hardware": LESSON, **extra}
        racks.append(RemoteRack(model, MODEL.weights_ref, ProcessLauncher(), **extra))
        return racks[-1]

    yield start
    for rack in racks:
        rack.close()


def pid(rack: RemoteRack, chip: int) -> int:
    """The process id of a chip, or of a spare by its number."""
    launcher = rack.launcher
    assert isinstance(launcher, ProcessLauncher)
    return launcher.processes[rack.members.processes.get(chip, chip)].pid


def send(rack: RemoteRack, chips: Sequence[int], how: signal.Signals) -> None:
    for chip in chips:
        os.kill(pid(rack, chip), how)


def test_killed_and_stopped_chips_are_replaced(processes: Callable[..., RemoteRack]) -> None:
    model = compiled()
    rack = processes(model, spares=7)
    random.seed(4)
    losses: list[tuple[Sequence[int], signal.Signals]] = [
        ((2,), signal.SIGKILL), ((0,), signal.SIGSTOP), ((1, 4), signal.SIGKILL),
        ((2,), signal.SIGKILL),
    ]  # fmt: skip
    left = 7
    for chips, how in losses:
        traffic, turn = Traffic(rack), random.randint(2, 40)
        assert traffic.run({turn: partial(send, rack, chips, how)}) == undisturbed(1, False), turn
        seen = traffic.seen
        assert sorted(chip for one in seen for chip in one.chips) == sorted(chips)
        left -= len(chips)
        assert rack.spares == left
        assert all(one.replayed_cycles > 0 for one in seen)
        assert all(one.detected_seconds >= 0 for one in seen)
        assert rack.condition() is None
    # A spare that dies is no more counted on; a chip that dies between two requests is replaced.
    send(rack, [min(rack.members.spares)], signal.SIGKILL)
    wait_for(lambda: bool(rack.launcher.dead()), "dead spare")
    rack.check()
    assert rack.spares == left - 1
    send(rack, [3], signal.SIGKILL)
    wait_for(lambda: bool(rack.launcher.dead()), "dead chip")
    traffic = Traffic(rack)
    traffic.sequences.check()
    assert [one.chips for one in traffic.seen] == [(3,)]
    assert traffic.run() == undisturbed(1, False)
    # Without a spare left it is as before.
    assert rack.spares == 0
    with pytest.raises(ChipFailedError, match=r"chip 1, .* its process ended") as caught:
        Traffic(rack).run({9: lambda: send(rack, [1], signal.SIGKILL)})
    assert caught.value.lost == (1,)
    condition = rack.condition()
    assert condition is not None
    assert "chip 1" in condition


def test_the_condition_of_a_rack_says_who_is_not_heard(
    processes: Callable[..., RemoteRack],
) -> None:
    rack = processes(compiled("1x2", 1), spares=1)
    assert rack.condition() is None
    send(rack, [1], signal.SIGSTOP)
    started = time.monotonic()
    wait_for(lambda: rack.condition() is not None, "condition")
    assert time.monotonic() - started >= SILENT_SECONDS - 0.5  # not on the first missing beat
    assert str(rack.condition()).startswith("chip 1 has not been heard for ")
    send(rack, [1], signal.SIGCONT)
    wait_for(lambda: rack.condition() is None, "recovery of the condition")
    send(rack, [1], signal.SIGSTOP)
    traffic = Traffic(rack, count=1)

    def replaced() -> bool:
        traffic.sequences.check()
        return bool(traffic.seen)

    wait_for(replaced, "stalled chip")
    assert [(one.chips, "not heard for" in one.what) for one in traffic.seen] == [((1,), True)]
    traffic.run()


def test_a_dead_and_a_stopped_chip_and_a_stopped_spare_at_once(
    processes: Callable[..., RemoteRack],
) -> None:
    """Nobody waits for those that are stopped until a start's deadline, which is minutes."""
    rack = processes(compiled(), spares=4)
    first, *_ = rack.members.spares
    send(rack, [first], signal.SIGSTOP)
    wait_for(lambda: rack.spares == 3, "silence of a spare")

    def lose() -> None:
        send(rack, [3], signal.SIGSTOP)
        send(rack, [1], signal.SIGKILL)

    traffic = Traffic(rack)
    assert traffic.run({9: lose}) == undisturbed(1, False)
    assert sorted(chip for one in traffic.seen for chip in one.chips) == [1, 3]
    assert first not in rack.members.spares, "it has been silent for too long by now"
    assert rack.spares == 1


def test_a_chip_that_comes_back_before_the_deadline_has_a_step_s_time(
    processes: Callable[..., RemoteRack], monkeypatch: pytest.MonkeyPatch
) -> None:
    rack = processes(compiled("1x2", 1), spares=1)
    wanted = Traffic(rack, count=1).run()
    send(rack, [1], signal.SIGSTOP)
    wait_for(lambda: rack.condition() is not None, "silence")
    send(rack, [1], signal.SIGCONT)
    wait_for(lambda: rack.condition() is None, "return")
    back = rack._pulse.returned
    rack._deadline = back + STEP_SECONDS / 2
    assert rack._has_more_time()
    assert rack._deadline == back + STEP_SECONDS
    assert not rack._has_more_time(), "it has come back once"
    # The real thing: who comes back about the deadline is waited for or replaced.
    for extra in (0.0, STEP_SECONDS - SILENT_SECONDS):
        rack.step_timeout_s = SILENT_SECONDS + extra
        send(rack, [1], signal.SIGSTOP)
        woken = Timer(SILENT_SECONDS + extra, send, (rack, [1], signal.SIGCONT))
        woken.start()
        traffic = Traffic(rack, count=1)
        assert traffic.run() == wanted
        woken.join()
        if traffic.seen:
            break  # there is no spare left


def test_deadlines_shorter_than_a_heartbeat_replace_nobody(
    processes: Callable[..., RemoteRack],
) -> None:
    rack = processes(compiled("1x2", 1), spares=1, step_timeout_s=0.05)
    wait_for(lambda: 0.3 < rack._pulse.silence(1) < SILENT_SECONDS, "pause between two beats")
    rack.check()
    assert rack.spares == 1


def test_a_start_that_waits_for_a_stopped_chip_can_be_ended() -> None:
    launcher, said = ProcessLauncher(), list[str]()

    def stop(stage: str, done: int, total: int) -> None:
        said.append(stage)
        if len(said) == 1:
            os.kill(launcher.processes[1].pid, signal.SIGSTOP)
        if len(said) == 8:  # more than there is to tell
            raise RackError("enough")

    model = compiled("1x2", 1)
    with pytest.raises(RackError, match="enough"):
        RemoteRack(model, MODEL.weights_ref, launcher, step_timeout_s=STEP_SECONDS, progress=stop)
    assert launcher.processes == {}


def test_what_has_come_is_heard_while_a_dead_chip_s_error_is_looked_for(
    processes: Callable[..., RemoteRack],
) -> None:
    rack = processes(compiled("1x2", 1), spares=1)
    rack.members.at(0).awaited = 1
    ready = Control(ControlKind.READY, {"chip": 0, "process": 0})
    with pytest.raises(UnknownPeerError):
        rack._socket.send(9, ready)
    rack._socket.connect({9: rack._socket.endpoint})
    rack._socket.send(9, ready)
    wait_for(lambda: rack._died({1: "exit code 7"}) is not None and rack.members.at(0).ready, "it")


@pytest.mark.parametrize("moment", ["told", "wait"])
def test_a_chip_that_is_lost_while_the_others_meet_a_new_one(
    processes: Callable[..., RemoteRack], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """All answer to both that are new, before a frame is sent."""
    rack = processes(compiled(), spares=3)
    place: tuple[type, str] = (Members, "_tell") if moment == "told" else (RemoteRack, "_wait_for")
    real, calls = getattr(*place), list[Any]()

    def lose(self: object, *args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            send(rack, [3], signal.SIGKILL)
        real(self, *args)

    monkeypatch.setattr(*place, lose)
    traffic = Traffic(rack)
    assert traffic.run({9: lambda: send(rack, [1], signal.SIGKILL)}) == undisturbed(1, False)
    assert sorted(chip for one in traffic.seen for chip in one.chips) == [1, 3]
    assert all(member.awaited == 0 for member in map(rack.members.at, rack.members.processes))


def test_a_chip_that_is_lost_while_another_one_loads(
    processes: Callable[..., RemoteRack], monkeypatch: pytest.MonkeyPatch
) -> None:
    rack = processes(compiled(), spares=3)
    real = RemoteRack._reconnect
    calls: list[Sequence[int]] = []

    def reconnect(self: RemoteRack, replaced: Sequence[int]) -> None:
        calls.append(list(replaced))
        if len(calls) == 1:
            send(rack, [3], signal.SIGKILL)
        real(self, replaced)

    monkeypatch.setattr(RemoteRack, "_reconnect", reconnect)
    traffic = Traffic(rack)
    assert traffic.run({9: lambda: send(rack, [1], signal.SIGKILL)}) == undisturbed(1, False)
    assert sorted(chip for one in traffic.seen for chip in one.chips) == [1, 3]
    assert rack.spares == 1


def test_a_spare_that_was_stopped_is_not_waited_for(
    processes: Callable[..., RemoteRack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has just been is replaced as a chip that stalls; an old one is not counted on."""
    rack = processes(compiled(), spares=3)
    real, taken = Members.take, list[int]()

    def take(self: Members, chip: int, job: bytes) -> None:
        taken.append(self.processes[chip])
        if len(taken) == 1:
            send(rack, [chip], signal.SIGSTOP)
        real(self, chip, job)

    monkeypatch.setattr(Members, "take", take)
    traffic = Traffic(rack)
    assert traffic.run({9: lambda: send(rack, [1], signal.SIGKILL)}) == undisturbed(1, False)
    assert sorted({chip for one in traffic.seen for chip in one.chips}) == [1]
    assert rack.spares == 1
    (last,) = rack.members.spares
    send(rack, [last], signal.SIGSTOP)
    wait_for(lambda: rack._pulse.silence(last) > STEP_SECONDS, "silence")
    with pytest.raises(ChipFailedError, match=r"chip 2, .* its process ended"):
        Traffic(rack).run({9: lambda: send(rack, [2], signal.SIGKILL)})
    assert rack.spares == 0


def test_a_spare_of_another_node_has_a_schedule_of_its_own(
    processes: Callable[..., RemoteRack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other chips get new programs, and all columns are loaded again; or there is no way."""
    groqrack = load_hardware("groqrack")
    model = compiled("1x3", 3, hardware="groqrack")
    monkeypatch.setattr(remote, "spare_slots", lambda *_: (12, 16))

    def again(binding: tuple[int, ...]) -> CompiledModel:
        options = Options(
            prefill_chunk=4, sequences=3, max_model_len=64, buckets=(32, 64), binding=binding
        )
        return compile_model(MODEL.config, groqrack, model.layout, options)

    rack = processes(model, spares=2, hardware=groqrack, compile_again=again)
    traffic = Traffic(rack)
    traffic.run({9: lambda: send(rack, [1], signal.SIGKILL)})
    (seen,) = traffic.seen
    assert rack.compiled.network.binding == (0, 12, 2)
    assert seen.schedule_hash == rack.compiled.schedule_hash != model.schedule_hash
    hashes = {tuple(one.token_ids): one.data_hash for one in traffic.done}
    for one in undisturbed(1, False)[1]:
        assert hashes.get(tuple(one[0]), one[5]) == one[5]
    local = LocalRack(rack.compiled, MODEL.weights_ref)
    assert Traffic(rack).run() == Traffic(local).run()
    local.close()
    with pytest.raises(NoSpareError, match=r"no spare can take .*\[1\].*wanted a path, got none"):
        Traffic(rack).run({9: lambda: send(rack, [1], signal.SIGKILL)})
    assert "no spare can take" in str(rack.condition())


def test_a_chip_that_is_lost_while_all_take_up_a_new_schedule(
    processes: Callable[..., RemoteRack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have just been given jobs; they finish loading, and are given others."""
    groqrack, layout = load_hardware("groqrack"), parse_layout("1x3")
    monkeypatch.setattr(remote, "spare_slots", lambda *_: (12, 13))
    made: list[CompiledModel] = []

    def again(binding: tuple[int, ...]) -> CompiledModel:
        options = Options(
            prefill_chunk=4, sequences=3, max_model_len=64, buckets=(32, 64), binding=binding
        )
        made.append(compile_model(MODEL.config, groqrack, layout, options))
        return made[-1]

    model = compiled("1x3", 3, hardware="groqrack")
    rack = processes(model, spares=2, hardware=groqrack, compile_again=again)
    real = RemoteRack._reconnect

    def reconnect(self: RemoteRack, replaced: Sequence[int]) -> None:
        if len(made) == 1:
            send(rack, [2], signal.SIGKILL)
        real(self, replaced)

    monkeypatch.setattr(RemoteRack, "_reconnect", reconnect)
    traffic = Traffic(rack)
    traffic.run({9: lambda: send(rack, [1], signal.SIGKILL)})
    assert sorted(chip for one in traffic.seen for chip in one.chips) == [1, 2]
    assert len(made) == 2
    assert rack.compiled is made[1]
    assert sorted(rack.compiled.network.binding[1:]) == [12, 13]
    assert traffic.seen[-1].schedule_hash == made[1].schedule_hash
    local = LocalRack(rack.compiled, MODEL.weights_ref)
    assert Traffic(rack).run() == Traffic(local).run()
    local.close()


def test_a_fixed_schedule_needs_its_cables(processes: Callable[..., RemoteRack]) -> None:
    drift = load_hardware("groqrack-drift")
    rack = processes(compiled("1x2", 1, hardware="groqrack-drift"), spares=1, hardware=drift)
    wanted = r"no spare can take the place of chips \[1\]: the schedule of these chips is fixed"
    with pytest.raises(NoSpareError, match=wanted):
        Traffic(rack, count=1).run({5: lambda: send(rack, [1], signal.SIGKILL)})
