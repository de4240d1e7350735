"""What the reference machine refuses, by name, and what it counts."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from machine_kit import (
    AT_VXM,
    CHIP,
    COPY,
    DELAYS,
    E0,
    LOADED,
    SLICES,
    W0,
    WORDS,
    bound,
    issue,
    memory,
    product,
    read,
    resolve,
)

from chip.errors import IssueError
from chip.floorplan import Role, alu, hops, mem, mxm, sxm
from chip.isa.instructions import (
    ABC,
    ACC,
    IW,
    LW,
    TILES,
    Alu,
    AluOp,
    Gather,
    Ifetch,
    Permute,
    Read,
    Receive,
    Send,
    Transpose,
    Write,
)  # fmt: skip
from chip.isa.operands import At, Chain, Held, Immediate, In, Stream, group
from chip.machine.crossings import Crossing
from chip.machine.machine import CrossingAction, DataAction, Machine
from chip.machine.resolve import resolve as resolve_on

LANDS = DELAYS["RECEIVE"].d_func + hops(sxm(0, 0), mem(1, 3), CHIP) + DELAYS["WRITE"].d_func
INTO_E3 = Receive(port=0, side=1, slice=3, address=5)

REFUSED = {
    "queue": (
        [read(), read(address=1)],
        "two instructions in one queue and cycle: READ of op0 on MEM_W0 at 0 and READ of op0 on "
        "MEM_W0 at 0",
    ),
    "stream": (
        [read(0), read(1)],
        "two values on stream E0 in one register: READ of op0 on MEM_W0 at 0 and READ of op0 on "
        "MEM_W1 at 0",
    ),
    "empty stream": ([issue(alu(1), 3, COPY)], "nothing on stream E0: COPY of op3 on VXM1 at 3"),
    "poison": (
        [read(address=4)],
        f"vector {4 * SLICES} was never written: READ of op0 on MEM_W0 at 0",
    ),
    "address": ([read(address=8192)], "address: wanted words 0 to 8191, got 8192 to 8192: READ of"),
    "last address": (
        [issue(mem(0, 0), 0, Read(address=8000, stream=E0, step=96), 3)],
        "address: wanted words 0 to 8191, got 8000 to 8192: READ of op0 on MEM_W0 at 0",
    ),
    "first address": (
        [issue(mem(0, 0), 0, Read(address=1, stream=E0, step=-1), 3)],
        "address: wanted words 0 to 8191, got 1 to -1: READ of op0 on MEM_W0 at 0",
    ),
    "no result": (
        [issue(alu(0), 0, Alu(op=AluOp.NEG, a=Held(3)))],
        "no result in ALU 3's register: NEG of op0 on VXM0 at 0",
    ),
    "late chain": (
        [
            issue(alu(3), 0, Alu(op=AluOp.COPY, a=Immediate(1.0))),
            issue(alu(0), 9, Alu(op=AluOp.NEG, a=Chain(3))),
        ],
        "no result in ALU 3's register: NEG of op9 on VXM0 at 9",
    ),
    "register": (
        [
            issue(alu(3), 0, Alu(op=AluOp.ADD, a=Immediate(1.0), b=Immediate(1.0))),
            issue(
                alu(3),
                DELAYS["ADD"].d_func - DELAYS["COPY"].d_func,
                Alu(op=AluOp.COPY, a=Immediate(1.0)),
            ),
        ],
        "two results in one ALU's register in one cycle: ",
    ),
    "small ALU": (
        [issue(alu(1), 0, Alu(op=AluOp.EXP, a=Immediate(1.0)))],
        "an instruction that its queue does not issue: EXP of op0 on VXM1 at 0",
    ),
    "arity": (
        [issue(alu(1), 0, Alu(op=AluOp.ADD, a=Immediate(1.0)))],
        "operands: wanted 2, got 1: ADD of op0 on VXM1 at 0",
    ),
    "taps": (
        [issue(alu(1), 0, Alu(op=AluOp.NEG, a=In(group(E0, 2))))],
        "streams: wanted 4 for 320 lanes of f32, got 2: NEG",
    ),
    "lanes": ([issue(alu(1), 0, replace(COPY, lanes=0))], "lanes: wanted 1 to 320, got 0: COPY"),
    "immediate": (
        [issue(alu(1), 0, Alu(op=AluOp.NEG, a=Immediate(1.0, "f16")))],
        "immediate: wanted f32 or i32, got f16",
    ),
    "no ALU": (
        [issue(alu(1), 0, Alu(op=AluOp.NEG, a=Held(16)))],
        "ALU: wanted 0 to 15, got 16",
    ),
    "repeat": ([replace(read(), n=0)], "repeat: wanted n, d >= 1, got 0, 1: READ"),
    "weights left": (LOADED[:2], "weights that are never installed: LW of op17 on MXM_W0 at 17"),
    "short buffer": (
        [*LOADED[:2], issue(mxm(0, Role.FEED), 18, IW(columns=2))],
        "weight buffer: wanted 2 columns, got 1: IW of op18 on MXM_W1 at 18",
    ),
    "no weights": (
        [issue(mxm(0, Role.FEED), 40, ABC(stream=None, slot=0))],
        "nothing in the activation buffer's slot: ABC of op40 on MXM_W1 at 40",
    ),
    "no operand": (
        [issue(mxm(0, Role.FEED), 40, ABC())],
        "activations: wanted a stream or a slot: ABC",
    ),
    "lost product": (
        [
            *LOADED,
            issue(mem(0, 1), 20, Read(address=0, stream=W0)),
            issue(mxm(0, Role.FEED), 37, ABC(stream=W0)),
        ],
        "a product that no ACC takes: ABC of op37 on MXM_W1 at 37",
    ),
    "no product": (
        [issue(mxm(0, Role.DRAIN), 40, ACC(slot=0, first=True))],
        "no product leaves the array: ACC of op40 on MXM_W2 at 40",
    ),
    "no sum": (
        [issue(mxm(0, Role.DRAIN), 40, ACC(slot=0, first=False, product=False))],
        "an accumulator row that was never started: ACC of op40 on MXM_W2 at 40",
    ),
    "another plane's sum": (
        [
            *LOADED,
            *product(37, slot=1),
            issue(mxm(1, Role.DRAIN), 80, ACC(slot=0, first=False, product=False)),
        ],
        "an accumulator row that was never started: ACC of op80 on MXM_W5 at 80",
    ),
    "another plane's slot": (
        [
            read(1, 20, stream=W0),
            issue(mxm(0, Role.FEED), 37, ABC(stream=W0, slot=1)),
            issue(mxm(1, Role.FEED), 50, ABC(slot=0)),
        ],
        "nothing in the activation buffer's slot: ABC of op50 on MXM_W4 at 50",
    ),
    "a lonely half": (
        [*LOADED, *product(37, fp16=True, half=1)],
        "half a tile without the other half: ACC of op61 on MXM_W2 at 61",
    ),
    "half a tile": (
        [*LOADED, *product(37, fp16=True, half=0)],
        "half a tile without the other half: ACC of op61 on MXM_W2 at 61",
    ),
    "half of what": (
        [issue(mxm(0, Role.DRAIN), 40, ACC(slot=0, first=True, half=2))],
        "half: wanted 0 or 1, got 2: ACC",
    ),
    "type of a product": (
        [*LOADED, *product(37, fp16=True, half=None)],
        "a product of one type, a sum of another: ABC of op37 on MXM_W1 at 37 and ACC of op61 on "
        "MXM_W2 at 61",
    ),
    "odd plane": (
        [issue(mxm(1, Role.FEED), 40, ABC(slot=0, fp16=True))],
        "fp16: wanted the even plane of a pair, got plane 1: ABC of op40 on MXM_W4 at 40",
    ),
    "joined plane": (
        [
            *LOADED,
            *product(37, fp16=True, half=0),
            *product(38, fp16=True, half=1),
            issue(mxm(1, Role.FEED), 40, ABC(slot=0)),
        ],
        "plane 1 is joined to plane 0 for fp16: ABC of op40 on MXM_W4 at 40 and ABC of op38 on "
        "MXM_W1 at 38",
    ),
    "column": (
        [issue(mxm(0, Role.LOAD), 0, LW(stream=W0, count=2, column=319))],
        "columns: wanted 0 to 319, got 319 + 2: LW",
    ),
    "count": (
        [issue(mxm(0, Role.LOAD), 0, LW(stream=W0, count=33, column=0))],
        "streams: wanted 1 to 32 of 32, got 33: LW",
    ),
    "install": (
        [issue(mxm(0, Role.FEED), 0, IW(columns=321))],
        "columns: wanted 0 to 320, got 321: IW",
    ),
    "slot": (
        [issue(mxm(0, Role.DRAIN), 0, ACC(slot=320, first=True))],
        "slot: wanted 0 to 319, got 320: ACC",
    ),
    "activation slot": (
        [issue(mxm(0, Role.FEED), 0, ABC(slot=64))],
        "slot: wanted 0 to 63, got 64: ABC",
    ),
    "item": (
        [issue(sxm(0, 0), 0, Permute(src=group(E0, 1), dst=group(E0, 1), item=3, map=()))],
        "item: wanted 1, 2 or 4 bytes, got 3: PERMUTE",
    ),
    "slice of a vector received": (
        [issue(sxm(0, 0), 0, Receive(port=0, side=1, slice=44, address=0))],
        "slice: wanted 0 to 43 of side 0 or 1, got 44 of side 1: RECEIVE",
    ),
    "word of a vector received": (
        [issue(sxm(0, 0), 0, Receive(port=0, side=1, slice=43, address=8192))],
        "address: wanted words 0 to 8191, got 8192: RECEIVE",
    ),
    "a vector received among words that are gathered": (
        [
            read(1),
            issue(sxm(1, 0), 0, INTO_E3),
            issue(
                mem(1, 3),
                DELAYS["READ"].d_func + hops(mem(0, 1), mem(1, 3), CHIP),
                Gather(map=E0, stream=W0),
            ),
        ],
        "a vector received in a slice whose words are gathered or scattered: RECEIVE",
    ),
    "groups": (
        [issue(sxm(0, 0), 0, Transpose(src=E0, dst=E0, groups=21))],
        "groups: wanted 1 to 20, got 21: TRANSPOSE",
    ),
    "wide groups": (
        [issue(sxm(0, 0), 0, Transpose(src=E0, dst=E0, groups=11, item=2))],
        "groups: wanted 1 to 10, got 11: TRANSPOSE",
    ),
    "items of a block": (
        [issue(sxm(0, 0), 0, Transpose(src=E0, dst=E0, item=4))],
        "item: wanted 1 or 2 bytes, got 4: TRANSPOSE",
    ),
    "block": (
        [issue(sxm(0, 0), 0, Transpose(src=E0, dst=E0), 2, 3)],
        "a block: wanted up to 20 issues, one a cycle, got 2, 3: TRANSPOSE",
    ),
    "run-time address": (
        [issue(mem(0, 0), 0, Read(address=At(3 * SLICES, 1, 1, 0, 2 * SLICES), stream=E0))],
        "a run-time address among vectors that were never written: READ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    issues, text = REFUSED[name]
    with pytest.raises(IssueError) as caught:
        resolve(*issues)
    assert str(caught.value).startswith(text), str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_one_bank_serves_one_access_a_cycle() -> None:
    """Where a write takes a cycle, a read may meet it."""
    slow = replace(
        CHIP, delays=tuple((n, 1, 0) if n == "WRITE" else (n, f, k) for n, f, k in CHIP.delays)
    )
    before = -DELAYS["READ"].d_func - hops(mem(0, 1), mem(0, 9), CHIP)
    issues = [
        read(1, before, stream=W0),
        issue(mem(0, 9), 0, Write(address=0, stream=W0)),
        issue(mem(0, 9), 1, Read(address=1, stream=E0)),
    ]
    with pytest.raises(IssueError) as caught:
        resolve_on(issues, slow, memory())
    assert str(caught.value) == (
        "a read and a write in one bank and cycle: READ of op1 on MEM_W9 at 1 and WRITE of op0 on "
        "MEM_W9 at 0"
    )


def test_types_are_checked_when_bound() -> None:
    add = Alu(op=AluOp.ADD, a=Immediate(1.0), b=Immediate(1, "i32"))
    with pytest.raises(IssueError, match="operands: wanted two of one 32-bit type, got f32, i32"):
        bound(issue(alu(0), 0, add))
    back = Alu(op=AluOp.CVT_I8, a=Immediate(1, "i32"))
    with pytest.raises(IssueError, match="operand: wanted f32, got i32"):
        bound(issue(alu(0), 0, back))


def test_weights_hold_from_the_installs_d_func_on() -> None:
    slow = replace(
        CHIP, delays=tuple((n, 5, 0) if n == "IW" else (n, f, k) for n, f, k in CHIP.delays)
    )
    installed = LOADED[-1].cycle
    resolve_on([*LOADED, *product(installed + 5)], slow, memory())
    with pytest.raises(IssueError, match=f"no weights in the plane: ABC of op{installed + 4} on"):
        resolve_on([*LOADED, *product(installed + 4)], slow, memory())


AT_C2C = DELAYS["READ"].d_func + hops(mem(0, 0), sxm(0, 0), CHIP)


def through(*crossings: Crossing, sends: int = 1, wait: int = 0) -> Machine:
    """Read a word `sends` times and send each, 24 cycles apart."""
    send = Send(port=0, stream=W0, wait=wait)
    issues = [
        issue(mem(0, 0), 0, Read(address=0, stream=W0), sends, 24),
        issue(sxm(0, 0), AT_C2C, send, sends, 24),
    ]
    data = np.arange(WORDS * SLICES * 320).astype(np.uint8).reshape(-1, 320)
    return bound(*issues, sram=data, crossings=crossings)


def test_vectors_depart_on_their_cycles() -> None:
    crossing = Crossing(0, True, (AT_C2C + 5, AT_C2C + 29), "transfer")
    made = through(crossing, sends=2, wait=5)
    (action,) = [action for action in made.actions if isinstance(action, CrossingAction)]
    assert action.crossing == crossing
    with pytest.raises(IssueError, match=f"no vector departs at port 0 in cycle {AT_C2C + 4}"):
        through(replace(crossing, cycles=(AT_C2C + 4,)), wait=5)
    with pytest.raises(IssueError, match="a vector that belongs to no transfer: SEND of"):
        through(sends=1)
    with pytest.raises(IssueError, match="more than 4 vectors wait at a port: SEND of"):
        through(crossing, sends=6, wait=24 * 5)


def test_a_port_holds_few_vectors_that_arrived() -> None:
    """Each waits 100 cycles for its Receive; the fifth arrives while four wait."""
    receive = Receive(port=0, side=0, slice=0, address=1, wait=100)
    for period, n in ((25, 9), (24, 4)):
        issues = issue(sxm(0, 0), 200, receive, n, period)
        cycles = tuple(100 + i * period for i in range(n))
        bound(issues, crossings=(Crossing(0, False, cycles, "transfer"),))
    with pytest.raises(IssueError) as caught:
        bound(issue(sxm(0, 0), 200, receive, 5, 24))
    assert str(caught.value) == (
        "more than 4 vectors wait at a port: RECEIVE of op200 on SXM_W0 at 200 and RECEIVE of "
        "op200 on SXM_W0 at 296"
    )


def test_a_vector_is_received_into_memory() -> None:
    """No stream and no other queue has a part in it: it is in its word when it has landed."""
    data = np.zeros((WORDS * SLICES, 320), np.uint8)
    copy = issue(mem(1, 3), LANDS + 1, Read(address=5, stream=Stream(True, 2)))
    there = LANDS + 1 + DELAYS["READ"].d_func + hops(mem(1, 3), mem(1, 7), CHIP)
    away = issue(mem(1, 7), there, Write(address=6, stream=Stream(True, 2)))
    made = bound(
        issue(sxm(0, 0), 0, INTO_E3), copy, away, sram=data,
        crossings=(Crossing(0, False, (0,), "transfer"),),
    )  # fmt: skip
    made.begin((0,))
    (crossing,) = [action for action in made.actions if isinstance(action, CrossingAction)]
    made.pool[crossing.rows] = 77
    for action in made.actions:
        if isinstance(action, DataAction):
            action.run()
    made.end()
    word = 5 * SLICES + SLICES // 2 + 3
    assert (data[word] == 77).all()
    assert (data[word + SLICES + 4] == 77).all()  # read from there, and written elsewhere
    with pytest.raises(IssueError, match=f"vector {word} was never written: READ"):
        resolve(issue(sxm(0, 0), 0, INTO_E3), replace(copy, cycle=LANDS - 1))


def test_a_vector_received_takes_the_port_of_its_slice() -> None:
    other = issue(mem(1, 3), LANDS, Write(address=1, stream=Stream(True, 2)))
    feed = issue(mem(0, 0), LANDS - hops(mem(0, 0), mem(1, 3), CHIP) - DELAYS["READ"].d_func,
                 Read(address=0, stream=Stream(True, 2)))  # fmt: skip
    with pytest.raises(IssueError) as caught:
        resolve(issue(sxm(0, 0), 0, INTO_E3), feed, other)
    assert "RECEIVE of op0 on SXM_W0 at 0" in str(caught.value)
    assert f"WRITE of op{LANDS} on MEM_E3 at {LANDS}" in str(caught.value)


def test_text_is_fetched_off_a_stream() -> None:
    """A pair of vectors, one after the other, that slices were made to put there."""
    there = DELAYS["READ"].d_func + hops(mem(0, 0), alu(3), CHIP)
    fetch = issue(alu(3), there, Ifetch(stream=E0))
    pair = issue(mem(0, 0), 0, Read(address=0, stream=E0, step=1), 2)
    assert bound(pair, fetch).resolved.cycles == there + 1 + TILES
    with pytest.raises(IssueError, match=f"nothing on stream E0: IFETCH of op{there} on VXM3"):
        resolve(read(), fetch)


def test_two_vectors_at_one_port() -> None:
    receive = Receive(port=0, side=0, slice=0, address=1)
    issues = [issue(sxm(0, 0), 3, receive), issue(sxm(0, 1), 4, replace(receive, wait=1))]
    with pytest.raises(IssueError, match="two vectors at one port in one cycle: RECEIVE of"):
        bound(*issues)


def test_run_time_addresses() -> None:
    """A read finds its vector in one slice, zeros elsewhere; rows out of use are left alone."""
    data = np.random.default_rng(0).integers(0, 255, (WORDS * SLICES, 320)).astype(np.uint8)
    before = data.copy()
    at = At(base=0, num=1, den=1, row=0, limit=2)  # vectors 0 and 1: slices W0 and W1
    out = Stream(True, 5)
    issues = [
        issue(mem(0, 5), 0, Read(address=2, stream=out)),
        *(
            issue(mem(0, s), DELAYS["READ"].d_func + hops(mem(0, 5), mem(0, s), CHIP),
                  Write(address=at, stream=out))
            for s in (0, 1)
        ),
    ]  # fmt: skip
    made = bound(*issues, sram=data)
    made.run((1,))
    assert np.array_equal(data[1], before[2 * SLICES + 5])
    assert np.array_equal(data[0], before[0])
    with pytest.raises(IssueError, match="row 0's address: wanted a vector below 2, got 7"):
        made.run((7,))
    made.run(())


def test_busy_cycles_leave_out_waiting() -> None:
    apart = [
        read(),
        issue(alu(1), AT_VXM, COPY),
        issue(alu(2), 5000, Alu(op=AluOp.COPY, a=Held(1))),
    ]
    resolved = resolve(*apart)
    issued = {0, AT_VXM, 5000}
    flying = set(range(DELAYS["READ"].d_func, AT_VXM + 1))  # from the stream register to the ALU
    assert resolved.busy_cycles == len(issued | flying)
    assert resolved.cycles == 5001 + TILES
