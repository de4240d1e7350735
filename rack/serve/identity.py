"""The server's identity: model names, fingerprint, and the marks of every answer."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from compiler.model.presets import GROQ_NAMES
from compiler.model.weights import WeightsKind, WeightsRef
from rack.run.session import Prepared
from rack.serve.errors import ApiError
from rack.serve.retired import RETIRED

RANDOM_TOKENS = "00000"
"""How the digits of a fingerprint start where no model chooses the tokens (timing executor)."""

_SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What is served; the first name is the model's own."""

    prepared: Prepared
    names: tuple[str, ...]
    notices: tuple[str, ...]
    fingerprint: str
    pace: str = "none"
    replicas: int = 1
    prefix_cache: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, name: str) -> None:
        """Raise ApiError (404) for a model that is not served."""
        if name not in self.names:
            served = ", ".join(f"`{one}`" for one in self.names)
            retired = RETIRED.get(name)
            what = "does not exist" if retired is None else f"was retired by GroqCloud on {retired}"
            raise ApiError(
                404, f"The model `{name}` {what}; this server has {served}",
                code="model_not_found", param="model",
            )  # fmt: skip

    def model(self, name: str) -> dict[str, Any]:
        """Return the model object of GET /models/{id}. Raises ApiError."""
        self.check_model(name)
        context = self.prepared.compiled.max_model_len
        return {
            "id": name, "object": "model", "created": self.created, "owned_by": "lpu-rack",
            "active": True, "context_window": context, "max_completion_tokens": context,
            "public_apps": None,
        }  # fmt: skip

    def models(self) -> dict[str, Any]:
        """Return the answer of GET /models."""
        return {"object": "list", "data": [self.model(name) for name in self.names]}

    def version(self) -> dict[str, Any]:
        """Return the answer of GET /version."""
        return {"version": _version(), "system_fingerprint": self.fingerprint, **self.marks()}

    @property
    def random_tokens(self) -> bool:
        """Whether tokens are drawn at random, because the executor has no data."""
        return self.prepared.config.executor == "timing"

    def marks(self) -> dict[str, Any]:
        """Return what every answer carries: whose numbers these are, and whether text is noise."""
        config, compiled = self.prepared.config, self.prepared.compiled
        weights = self.prepared.model.weights_ref
        return {
            "executor": config.executor,
            "transport": "none" if self.random_tokens else config.transport,
            "pace": self.pace,
            "replicas": self.replicas,
            "sequences": compiled.sequences,
            "batch": compiled.batch,
            "prefix_cache": self.prefix_cache,
            "tokens": "random" if self.random_tokens else "model",
            "weights": _kind(weights),
            "layers": f"{compiled.config.num_layers} of {weights.of_layers}"
            if weights.of_layers
            else "all",
            "dtype": compiled.dtype,
            "hardware": compiled.target_name,
            "layout": str(compiled.layout),
            "schedule_hash": compiled.schedule_hash,
            "notices": list(self.notices),
        }


def identify(
    prepared: Prepared, names: Sequence[str] = (), notices: Sequence[str] = (), *,
    pace: str = "none", replicas: int = 1, prefix_cache: bool = False,
) -> Identity:  # fmt: skip
    """Return the identity of a prepared model; `names` and `notices` come on top of its own."""
    own = prepared.compiled.config.name
    return Identity(
        prepared=prepared,
        names=tuple(dict.fromkeys((own, *names, *GROQ_NAMES.get(own, ())))),
        notices=(*notices, *prepared.notices),
        fingerprint=_fingerprint(prepared),
        pace=pace,
        replicas=replicas,
        prefix_cache=prefix_cache,
    )


def _fingerprint(prepared: Prepared) -> str:
    """Hash what decides the answers: `fp_` and 10 hex digits, equal on every machine."""
    digest = hashlib.sha256()
    compiled = prepared.compiled
    for part in (compiled.schedule_hash, compiled.dtype, prepared.config.executor):
        digest.update(part.encode() + b"\0")
    _update_with_weights(digest, prepared.model.weights_ref)
    for asked in (prepared.config.tokenizer, prepared.config.answer_tokens):
        if asked is not None:
            digest.update(asked.encode("utf-8", "surrogateescape") + b"\0")
    start = RANDOM_TOKENS if prepared.config.executor == "timing" else ""
    return f"fp_{(start + digest.hexdigest())[:10]}"


def _kind(weights: WeightsRef) -> str:
    if weights.kind is WeightsKind.SAFETENSORS:
        return "real"
    return "synthetic, repeated" if weights.repeat else "synthetic"


def _update_with_weights(digest: hashlib._Hash, weights: WeightsRef) -> None:
    """Add the seed, or of each file its name, size, start and end: enough to tell models apart."""
    if weights.folder is None:
        digest.update(f"{_kind(weights)} {weights.seed}".encode())
        return
    for path in sorted(weights.folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))


def _version() -> str:
    try:
        return version("lpu-rack")
    except PackageNotFoundError:
        return "not installed"
