"""Errors of the rack: their texts, and that they keep their fields over pickle."""

from __future__ import annotations

import pickle

import pytest

from rack import errors
from rack.text.chat_template import PromptError

CASES = [
    (
        errors.ProfileError(file="a.toml", key="chip.lanes", wanted="320", got="'x'"),
        "a.toml: chip.lanes: wanted 320, got 'x'",
    ),
    (
        errors.MachineError(machine="groqrack", what="chips", wanted="1 to 9", got=10),
        "groqrack: chips: wanted 1 to 9, got 10",
    ),
    (
        errors.RequestError(param="top_p", wanted="a number", got="'x'"),
        "top_p: wanted a number, got 'x'",
    ),
    (
        errors.ChipFailedError(chip=3, step="step decode/256", what="died", waiting_for="x"),
        "chip 3, step decode/256: died; waiting for x",
    ),
    (
        errors.LinkFlaggedError(
            chip=3, link="C2C 1.0->3.2", step="step decode/256", sequence=7, transfer=4
        ),
        "chip 3, step decode/256: transfer 4 of step number 7 came over C2C 1.0->3.2 with errors "
        "that cannot be corrected; waiting for its replay",
    ),
    (
        errors.FaultError(chip=3, step="step decode/256", what="flagged", waiting_for="x"),
        "chip 3, step decode/256: flagged; waiting for x",
    ),
    (
        errors.NoSpareError(chip=3, why="no cable", cause="chip 3 died"),
        "chip 3 died; no cable",
    ),
    (
        errors.OtherCodeError(chip=3, where="/x on h", what="kernels", wanted="a", got="numpy"),
        "chip 3 (/x on h) runs other code than the driver: kernels: wanted a, got numpy; "
        "if it was changed since, start the driver again",
    ),
    (
        errors.ControlError(
            chip=3, state="loaded", sender="the host", wanted="peers or stop", got="st\nep"
        ),
        "chip 3, loaded: wanted peers or stop from the host, got st\\nep",
    ),
    (
        errors.TraceError(file="a\nb", line=7, key="timestamp", wanted="a number", got="'x'"),
        "a\\nb: line 7: timestamp: wanted a number, got 'x'",
    ),
    (errors.ConfigError("seed: wanted int"), "seed: wanted int"),
    (errors.RackClosedError("closed"), "closed"),
    (errors.RackError("no room"), "no room"),
    (PromptError("token id 9: wanted 0 to 8"), "token id 9: wanted 0 to 8"),
]


@pytest.mark.parametrize(("error", "text"), CASES, ids=lambda case: type(case).__name__)
def test_texts_and_pickle(error: errors.RackError, text: str) -> None:
    assert str(error) == text
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == text
    assert again.__dict__ == error.__dict__


def test_one_tree_whose_docstring_names_every_error() -> None:
    own = {name for name, item in vars(errors).items() if isinstance(item, type)} - {"Any"}
    for name in own:
        assert issubclass(getattr(errors, name), errors.RackError)
        assert name in (errors.__doc__ or "")
    for name in ("ProfileError", "MachineError", "RequestError", "TraceError", "ConfigError"):
        assert issubclass(getattr(errors, name), ValueError)
    assert {type(error).__name__ for error, _ in CASES} == {*own, "PromptError"}
