"""One point of a sweep, resolved: all that its row depends on, and the row when it cannot be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rack.machines.changes import Value
from rack.run.config import RunConfig
from rack.sweeps.grid import Run
from rack.system.provenance import code_version


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """`point` has the axes' values as written, `changes` and `counts` what they stand for."""

    run: Run
    point: Mapping[str, Any]
    config: RunConfig
    changes: tuple[tuple[str, Value | tuple[int, ...]], ...] = ()
    counts: tuple[tuple[str, int], ...] = ()

    @property
    def key(self) -> str:
        """Name what the row is of, whatever the axes were: 16 hex digits."""
        said = [str(self.run), self.config.to_dict(), list(self.changes), list(self.counts)]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def family(self) -> tuple[object, ...]:
        """Tasks of one family share most of what is compiled: all but the stages differ little."""
        layout = self.config.layout.partition("x")[2] or self.config.layout
        config = replace(self.config, layout=layout.partition("+")[0])
        return config, self.changes

    def head(self) -> dict[str, Any]:
        """Return what every row begins with."""
        point = {key: list(v) if isinstance(v, tuple) else v for key, v in self.point.items()}
        changes = {key: list(v) if isinstance(v, tuple) else v for key, v in self.changes}
        return {"key": self.key, "run": str(self.run), "point": point, "changes": changes}

    def failed(self, error: Exception) -> dict[str, Any]:
        """Return the row of a point that does not fit, or cannot be."""
        return {
            **self.head(),
            **dict(self.counts),
            "error": {"type": type(error).__name__, "message": str(error)},
            "config": self.config.to_dict(),
            "code": code_version(),
        }
