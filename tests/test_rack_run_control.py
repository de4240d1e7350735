"""The states of a chip in a run: one table, which both ends follow."""

from __future__ import annotations

import re

import pytest

from interconnect.frame import Control, decode_control, encode_control
from rack.errors import ControlError
from rack.run import control
from rack.run.control import TRANSITIONS, ChipState, ControlKind, Conversation, Sender

RUN = [
    (Sender.CHIP, "hello", ChipState.LOADING),
    (Sender.CHIP, "ready", ChipState.LOADED),
    (Sender.HOST, "peers", ChipState.SERVING),
    (Sender.HOST, "epoch", ChipState.SERVING),
    (Sender.HOST, "step", ChipState.SERVING),
    (Sender.HOST, "report", ChipState.SERVING),
    (Sender.CHIP, "report", ChipState.SERVING),
    (Sender.CHIP, "flag", ChipState.SERVING),
    (Sender.HOST, "stop", ChipState.STOPPED),
]


def at(state: ChipState) -> Conversation:
    """A conversation that has come to a state the shortest way."""
    talk = Conversation(3)
    if state is ChipState.SPARE:
        talk.take(Sender.CHIP, Control("spare"))
    for sender, kind, following in RUN:
        if talk.state is state:
            return talk
        if state is ChipState.FAILED:
            talk.take(Sender.CHIP, Control("error"))
        elif following is not talk.state:
            talk.take(sender, Control(kind))
    return talk


def test_a_whole_run() -> None:
    talk = Conversation(3)
    for sender, kind, state in RUN:
        assert talk.take(sender, Control(kind)) is ControlKind(kind)
        assert talk.state is state


@pytest.mark.parametrize("state", ChipState)
def test_whatever_is_not_in_the_table_is_refused(state: ChipState) -> None:
    for sender in Sender:
        may = [kind.value for who, kind in TRANSITIONS[state] if who is sender]
        for kind in (*ControlKind, "go"):
            talk = at(state)
            assert talk.state is state
            if kind in may:
                talk.take(sender, Control(kind))
                assert talk.state is TRANSITIONS[state][sender, ControlKind(kind)]
                continue
            with pytest.raises(ControlError) as caught:
                talk.take(sender, Control(kind))
            wanted = f"wanted {' or '.join(may) or 'nothing'} from {sender.value}, got {kind}"
            assert str(caught.value) == f"chip 3, {state.value}: {wanted}"
            assert talk.state is state


def test_a_chip_may_fail_in_every_state_that_is_not_its_last() -> None:
    lasts = {state for state, following in TRANSITIONS.items() if not following}
    assert lasts == {ChipState.STOPPED, ChipState.FAILED}
    for state in set(ChipState) - lasts:
        assert TRANSITIONS[state][Sender.CHIP, ControlKind.ERROR] is ChipState.FAILED


def test_every_state_is_reached_and_every_kind_is_said() -> None:
    reached = {to for following in TRANSITIONS.values() for to in following.values()}
    assert reached | {ChipState.STARTED} == set(ChipState) == set(TRANSITIONS)
    assert {kind for following in TRANSITIONS.values() for _, kind in following} == set(ControlKind)
    drawn = set(re.findall(r"[A-Z]{4,}", str(control.__doc__)))
    assert drawn == {state.name for state in ChipState}


def test_the_words_on_the_wire_are_these() -> None:
    words = [
        "hello", "spare", "take", "ready", "peers", "epoch", "step", "flag", "report", "stop",
        "error",
    ]  # fmt: skip
    assert [kind.value for kind in ControlKind] == words
    for kind in ControlKind:
        data = encode_control(Control(kind, {"chip": 3}))
        assert data == encode_control(Control(str(kind.value), {"chip": 3}))
        again = decode_control(data)
        assert (type(again.kind), again.kind) == (str, kind)
