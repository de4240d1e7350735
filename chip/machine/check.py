"""Checks an instruction by itself: its queue, its operands' shapes, ranges and types."""

from __future__ import annotations

from chip.errors import IssueError
from chip.floorplan import Queue, plane_of
from chip.isa.instructions import (
    ABC,
    ACC,
    ARITY,
    IW,
    LW,
    TILES,
    Alu,
    AluOp,
    Config,
    Deskew,
    Index,
    Instruction,
    Lanes,
    Notify,
    Read,
    Receive,
    RuntimeDeskew,
    Select,
    Sync,
    Transpose,
    Write,
    issues,
)
from chip.isa.issue import Issue, culprit
from chip.isa.operands import (
    ITEM_BYTES,
    STREAMS,
    Chain,
    Chosen,
    Group,
    Held,
    Immediate,
    In,
    streams_of,
)
from chip.spec import VECTOR_BYTES, ChipSpec

INDICES = VECTOR_BYTES // 4  # values of a vector from which a slice may take its index
PLANE_STREAMS = 16  # that a plane takes weights from; a pair of planes takes twice as many


class Checker:
    """Refuses instructions that no queue could issue; each is checked once a queue."""

    def __init__(self, spec: ChipSpec) -> None:
        self.spec = spec
        self._seen: set[tuple[Queue, Instruction]] = set()

    def check(self, issue: Issue) -> None:
        """Raise IssueError for an instruction that is wrong in itself."""
        key = (issue.queue, issue.instruction)
        if issue.n < 1 or issue.d < 1:
            raise IssueError(f"repeat: wanted n, d >= 1, got {issue.n}, {issue.d}", culprit(issue))
        if isinstance(issue.instruction, (Read, Write)):
            self._words(issue)
        if isinstance(issue.instruction, RuntimeDeskew) and issue.n > 1:
            raise IssueError(f"repeat: wanted one stop, got {issue.n}", culprit(issue))
        if key in self._seen:
            return
        self._seen.add(key)
        if what := self._wrong(issue.queue, issue.instruction):
            raise IssueError(what, culprit(issue))

    def _words(self, issue: Issue) -> None:
        instruction = issue.instruction
        assert isinstance(instruction, (Read, Write))
        if isinstance(instruction.address, Chosen):
            if issue.n > 1:
                what = f"repeat: wanted one read of the chosen block, got {issue.n}"
                raise IssueError(what, culprit(issue))
        elif isinstance(instruction.address, int):
            words = self.spec.banks * self.spec.words_per_bank
            last = instruction.address + (issue.n - 1) * instruction.step
            if not (0 <= instruction.address < words and 0 <= last < words):
                what = (
                    f"address: wanted words 0 to {words - 1}, got {instruction.address} to {last}"
                )
                raise IssueError(what, culprit(issue))

    def _wrong(self, queue: Queue, instruction: Instruction) -> str | None:
        if not issues(queue, instruction):
            return "an instruction that its queue does not issue"
        if isinstance(instruction, Alu):
            return self._alu(instruction)
        if isinstance(instruction, Lanes):
            return self._lanes(instruction)
        if isinstance(instruction, (LW, IW, ABC, ACC)):
            return self._mxm(instruction, plane_of(queue)[0])
        if isinstance(instruction, RuntimeDeskew) and instruction.cycles < 1:
            return f"cycles: wanted 1 or more, got {instruction.cycles}"
        if isinstance(instruction, (Deskew, Sync, Notify, Config)):
            return "an instruction that a program may have only before its queues are released"
        if isinstance(instruction, Receive):
            return self._receive(instruction)
        if isinstance(instruction, Index) and not 0 <= instruction.lane < INDICES:
            return f"lane: wanted 0 to {INDICES - 1}, got {instruction.lane}"
        if isinstance(instruction, Read) and isinstance(instruction.address, Chosen):
            return _chosen(instruction.address, instruction)
        if isinstance(instruction, Transpose):
            return _transpose(instruction)
        return None

    def _alu(self, alu: Alu) -> str | None:
        if len(alu.sources) != ARITY[alu.op]:
            return f"operands: wanted {ARITY[alu.op]}, got {len(alu.sources)}"
        for source in alu.sources:
            if isinstance(source, In) and (wrong := _taps(source.taps, alu.lanes, source.dtype)):
                return wrong
            if isinstance(source, (Chain, Held)) and not 0 <= source.alu < self.spec.vxm_alus:
                return f"ALU: wanted 0 to {self.spec.vxm_alus - 1}, got {source.alu}"
            if isinstance(source, Immediate) and source.dtype not in ("f32", "i32"):
                return f"immediate: wanted f32 or i32, got {source.dtype}"
        if alu.op is AluOp.COPY and isinstance(alu.a, In):
            return _taps(alu.out, alu.lanes, alu.a.dtype) if alu.out else None
        out = {AluOp.CVT_I8: "i8", AluOp.CVT_F16: "f16"}.get(alu.op)
        if alu.op is not AluOp.COPY and alu.out:
            return _taps(alu.out, alu.lanes, out or "f32")
        return None

    def _receive(self, receive: Receive) -> str | None:
        slices, words = self.spec.slices // 2, self.spec.banks * self.spec.words_per_bank
        if receive.side not in (0, 1) or not 0 <= receive.slice < slices:
            got = f"{receive.slice} of side {receive.side}"
            return f"slice: wanted 0 to {slices - 1} of side 0 or 1, got {got}"
        if not 0 <= receive.address < words:
            return f"address: wanted words 0 to {words - 1}, got {receive.address}"
        return None

    @staticmethod
    def _lanes(sxm: Lanes) -> str | None:
        if sxm.item not in (1, 2, 4):
            return f"item: wanted 1, 2 or 4 bytes, got {sxm.item}"
        dtype = {1: "i8", 2: "f16", 4: "f32"}[sxm.item]
        wrong = _taps(sxm.src, sxm.lanes, dtype) or _taps(sxm.dst, sxm.out_lanes, dtype)
        if not wrong and isinstance(sxm, Select):
            wrong = _taps(sxm.other, sxm.lanes, dtype)
        return wrong

    def _mxm(self, mxm: LW | IW | ABC | ACC, plane: int) -> str | None:
        columns, slots = self.spec.mxm_columns, self.spec.mxm_activation_slots
        if isinstance(mxm, ACC) and mxm.half not in (None, 0, 1):
            return f"half: wanted 0 or 1, got {mxm.half}"
        if plane % 2 and _joined(mxm):
            return f"fp16: wanted the even plane of a pair, got plane {plane}"
        if isinstance(mxm, LW):
            if not 1 <= mxm.count <= 2 * PLANE_STREAMS or mxm.stream.number + mxm.count > STREAMS:
                return f"streams: wanted 1 to {2 * PLANE_STREAMS} of {STREAMS}, got {mxm.count}"
            if not 0 <= mxm.column <= columns - mxm.count:
                return f"columns: wanted 0 to {columns - 1}, got {mxm.column} + {mxm.count}"
        elif isinstance(mxm, IW):
            if not 0 <= mxm.columns <= columns:
                return f"columns: wanted 0 to {columns}, got {mxm.columns}"
        elif isinstance(mxm, ABC):
            if mxm.stream is None and mxm.slot is None:
                return "activations: wanted a stream or a slot"
            if mxm.slot is not None and not 0 <= mxm.slot < slots:
                return f"slot: wanted 0 to {slots - 1}, got {mxm.slot}"
        elif not 0 <= mxm.slot < self.spec.mxm_accumulator_rows:
            return f"slot: wanted 0 to {self.spec.mxm_accumulator_rows - 1}, got {mxm.slot}"
        elif mxm.out:
            return _taps(mxm.out, mxm.lanes, "f32")
        return None


def _chosen(block: Chosen, read: Read) -> str | None:
    if min(block.choices, block.apart, block.count, block.spread) < 1 or block.base < 0:
        return f"the chosen block: wanted vectors of one block at least, got {block}"
    if read.stream.number + block.count > STREAMS:
        return f"streams: wanted 1 to {STREAMS - read.stream.number}, got {block.count}"
    return None


def _joined(mxm: LW | IW | ABC | ACC) -> bool:
    """Tell whether an instruction is for a pair of planes, as fp16 wants them."""
    if isinstance(mxm, ABC):
        return mxm.fp16
    if isinstance(mxm, ACC):
        return mxm.half is not None
    return isinstance(mxm, LW) and mxm.count > PLANE_STREAMS


def _taps(taps: Group, lanes: int, dtype: str) -> str | None:
    if dtype not in ITEM_BYTES:
        return f"type: wanted {', '.join(ITEM_BYTES)}, got {dtype}"
    if not 1 <= lanes <= VECTOR_BYTES:
        return f"lanes: wanted 1 to {VECTOR_BYTES}, got {lanes}"
    wanted = streams_of(lanes, ITEM_BYTES[dtype])
    if len(taps) != wanted:
        return f"streams: wanted {wanted} for {lanes} lanes of {dtype}, got {len(taps)}"
    if any(not 0 <= tap.stream.number < STREAMS or tap.beat < 0 for tap in taps):
        return f"streams: wanted 0 to {STREAMS - 1}, got {', '.join(map(str, taps))}"
    return None


def _transpose(transpose: Transpose) -> str | None:
    if transpose.item not in (1, 2):
        return f"item: wanted 1 or 2 bytes, got {transpose.item}"
    most = TILES // transpose.item
    if not 1 <= transpose.groups <= most:
        return f"groups: wanted 1 to {most}, got {transpose.groups}"
    return None
