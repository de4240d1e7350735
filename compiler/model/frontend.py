"""Resolve the name of a model (a preset, a folder, a Hub id) to a checked model description.

This is the one place that reads `config.json` and `generation_config.json`. A setting that the
emulator does not implement is refused by its key, never ignored: a model that runs, runs as
published. An absent key has transformers' default, and the user is told so.
Non-goals: reading weights (compiler/model/weights.py), tokenizers (rack/text), the network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from compiler.errors import ModelError
from compiler.files import (
    is_file,
    is_folder,
    printable,
    read_json,
    read_text,
    require_json,
    shown,
    whole,
)
from compiler.model.architecture import (
    ARCHITECTURES,
    ENCODER_ACT,
    ENCODERS,
    HIDDEN_ACT,
    Architecture,
    EncoderArchitecture,
)
from compiler.model.config import Encoder, Llama3RopeScaling, ModelConfig
from compiler.model.presets import PRESETS
from compiler.model.weights import WeightsRef

__all__ = [
    "PRESETS",
    "Llama3RopeScaling",
    "Model",
    "ModelConfig",
    "load_config",
    "resolve_model",
]

# The defaults of transformers' LlamaConfig for a key that is absent or null. The sizes that every
# checkpoint states (hidden_size, …) are required; num_key_value_heads and head_dim follow from
# them.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
# The same of its BertConfig.
_ENCODER_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
_ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_LLAMA3_KEYS = tuple(field.name for field in fields(Llama3RopeScaling))
# Keys that differ between checkpoints of one preset (base, instruct, fine-tuned).
_MAY_DIFFER = {"name", "bos_token_id", "eos_token_ids"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model ready to compile: its configuration, where its weights come from, its files.

    `folder` holds the tokenizer files; None for a preset without weights. `notices` name the keys
    that the files left out.
    """

    config: ModelConfig
    weights_ref: WeightsRef
    folder: Path | None
    notices: tuple[str, ...] = ()


def resolve_model(name_or_path: str, weights: str | Path | None = None, seed: int = 0) -> Model:
    """Find a model by preset name, folder or cached Hub id; opens no weights, no network.

    A preset without `weights` gets synthetic ones from `seed`. With `weights`, it gets that
    folder's tensors and special token ids. Raises ModelError if the folder is of another model.
    """
    preset = PRESETS.get(name_or_path)
    if preset is not None and weights is None:
        return Model(config=preset, weights_ref=WeightsRef.synthetic(preset, seed), folder=None)
    if preset is None:
        home, name = _model_folder(name_or_path)
        config, notices = _read_config(home)
        config = replace(config, name=name)
        if weights is not None:
            _check_agree(config, load_config(weights), Path(weights))
    else:
        home = Path(weights or "")
        config, notices = _read_config(home)
        config = replace(config, name=preset.name)
        _check_agree(preset, config, home)
    ref = WeightsRef.from_folder(config, home if weights is None else weights)
    return Model(config=config, weights_ref=ref, folder=home, notices=notices)


def load_config(folder: str | Path) -> ModelConfig:
    """Read a Hugging Face folder's configuration; raises ModelError naming file, key, value."""
    return _read_config(Path(folder))[0]


def _read_config(folder: Path) -> tuple[ModelConfig, tuple[str, ...]]:
    """Return a folder's configuration, and the notices about it."""
    path, name = folder / "config.json", _folder_name(folder)
    raw = dict(require_json(path))
    architecture = _architecture(path, raw)
    defaults, read = _DEFAULTS, _decoder
    if isinstance(architecture, EncoderArchitecture):
        _check_supported(path, raw, _SUPPORTED_ENCODER)
        defaults, read = _ENCODER_DEFAULTS, _encoder
    else:
        _check_supported(path, raw, _supported(architecture))
        _refuse_layer_types(path, raw)
        raw["rope_theta"], raw["rope_scaling"] = _rope(path, raw)
    taken = [key for key in defaults if raw.get(key) is None]
    raw |= {key: defaults[key] for key in taken}
    values: dict[str, Any] = {**_sizes(path, raw)}
    (bos, bos_file), (eos, eos_file) = _special_tokens(folder, raw)
    try:
        config = ModelConfig(
            name=name,
            architecture=architecture.name,
            **values,
            **read(raw),
            bos_token_id=whole(bos),
            eos_token_ids=tuple(map(whole, eos)),
        )
    except ModelError as error:
        field = error.what.removeprefix(f"{name}: ").removeprefix("encoder: ")
        if read is _encoder and field == "rms_norm_eps":
            field = "layer_norm_eps"
        file = {"bos_token_id": bos_file, "eos_token_ids": eos_file}.get(field, path)
        raise ModelError(f"{file}: {field}", error.wanted, error.got) from None
    return config, _notice(path, {key: defaults[key] for key in taken})


def _decoder(raw: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("rms_norm_eps", "rope_theta", "rope_scaling", "tie_word_embeddings")
    return {key: raw[key] for key in keys}


def _encoder(raw: Mapping[str, Any]) -> dict[str, Any]:
    act = raw["hidden_act"]
    function = next((one for one, names in ENCODER_ACT.items() if act in names), None)
    if function is None:
        wanted = " or ".join(repr(name) for names in ENCODER_ACT.values() for name in names)
        raise ModelError("hidden_act", wanted, shown(act))
    types = whole(raw["type_vocab_size"])
    return {
        "rms_norm_eps": raw["layer_norm_eps"], "rope_theta": None, "rope_scaling": None,
        "tie_word_embeddings": False,
        "encoder": Encoder(type_vocab_size=types, activation=function),
    }  # fmt: skip


def _notice(path: Path, taken: Mapping[str, Any]) -> tuple[str, ...]:
    if not taken:
        return ()
    values = ", ".join(f"{key} {value}" for key, value in taken.items())
    return (f"{printable(path)} leaves keys out; transformers' defaults are used: {values}",)


def _architecture(path: Path, raw: Mapping[str, Any]) -> Architecture | EncoderArchitecture:
    """Return the architecture by `architectures`, else by `model_type`."""
    named, kind = raw.get("architectures"), raw.get("model_type")
    every: dict[str, Architecture | EncoderArchitecture] = {**ARCHITECTURES, **ENCODERS}
    known = list(every.values())
    if named not in (None, []) or kind is None:
        known = [one for one in known if named == [one.name]]
        if not known:
            wanted = " or ".join(repr([name]) for name in every)
            raise ModelError(f"{path}: architectures", wanted, shown(named))
    found = next((one for one in known if kind in (None, one.model_type)), None)
    if found is None:
        wanted = " or ".join(dict.fromkeys(repr(one.model_type) for one in known))
        raise ModelError(f"{path}: model_type", wanted, shown(kind))
    return found


def _supported(architecture: Architecture) -> dict[str, tuple[Any, ...]]:
    """Return keys that change the arithmetic, with their harmless values; errors show the first."""
    return {
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "hidden_act": HIDDEN_ACT[architecture.activation],
        "sliding_window": (None,),
        "quantization_config": (None,),
        "pretraining_tp": (1, None),
        "partial_rotary_factor": (1, None),
    }


# The same of encoders.
_SUPPORTED_ENCODER: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "quantization_config": (None,),
}


def _check_supported(
    path: Path, raw: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]]
) -> None:
    for key, allowed in supported.items():
        value = raw.get(key, allowed[0])
        if not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed):
            raise ModelError(f"{path}: {key}", repr(allowed[0]), shown(value))


def _sizes(path: Path, raw: Mapping[str, Any]) -> dict[str, int]:
    heads = _required(path, raw, "num_attention_heads")
    hidden = _required(path, raw, "hidden_size")
    return {
        "hidden_size": hidden,
        "intermediate_size": _required(path, raw, "intermediate_size"),
        "num_layers": _required(path, raw, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": _or(whole(raw.get("num_key_value_heads")), heads),
        "head_dim": _head_dim(path, raw, hidden, heads),
        "vocab_size": _required(path, raw, "vocab_size"),
        "max_position_embeddings": _required(path, raw, "max_position_embeddings"),
    }


def _required(path: Path, raw: Mapping[str, Any], key: str) -> int:
    value = whole(raw.get(key))
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        got = shown(value) if key in raw else "nothing"
        raise ModelError(f"{path}: {key}", "a positive integer", got)
    return value


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _head_dim(path: Path, raw: Mapping[str, Any], hidden: int, heads: int) -> int:
    explicit = raw.get("head_dim")
    if explicit is not None:
        return _required(path, raw, "head_dim")
    if hidden % heads:
        raise ModelError(
            f"{path}: head_dim",
            f"a head_dim, as hidden_size {hidden} is not a multiple of {heads} heads",
            "nothing",
        )
    return hidden // heads


def _refuse_layer_types(path: Path, raw: Mapping[str, Any]) -> None:
    kinds = _or(raw.get("layer_types"), [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind != "full_attention":
            raise ModelError(f"{path}: layer_types", "'full_attention' only", shown(kind))


def _rope(path: Path, raw: Mapping[str, Any]) -> tuple[Any, Llama3RopeScaling | None]:
    """Read transformers 5's `rope_parameters`, or `rope_theta` and `rope_scaling` before it.

    The first is None where neither gives a theta.
    """
    new, old = raw.get("rope_parameters"), raw.get("rope_scaling")
    if new is not None and old is not None and new != old:
        raise ModelError(f"{path}: rope_scaling", "none beside other rope_parameters", shown(old))
    key = "rope_scaling" if new is None else "rope_parameters"
    rope = _or(_or(new, old), {})
    if not isinstance(rope, dict):
        raise ModelError(f"{path}: {key}", "an object", shown(rope))
    kind = _or(rope.get("rope_type"), _or(rope.get("type"), "default"))
    if kind not in ("default", "llama3"):
        raise ModelError(f"{path}: {key}.rope_type", "'default' or 'llama3'", shown(kind))
    known = _ROPE_KEYS | (set(_LLAMA3_KEYS) if kind == "llama3" else set())
    if unknown := sorted(set(rope) - known):
        raise ModelError(f"{path}: {key}", f"only {sorted(known)}", f"unknown {shown(unknown)}")
    if (factor := rope.get("partial_rotary_factor", 1)) != 1 or factor is True:
        raise ModelError(f"{path}: {key}.partial_rotary_factor", "1", shown(factor))
    inner, outer = rope.get("rope_theta"), raw.get("rope_theta")
    if inner is not None and outer is not None and inner != outer:
        raise ModelError(f"{path}: rope_theta", f"{key}.rope_theta {shown(inner)}", shown(outer))
    return _or(inner, outer), _scaling(path, key, rope) if kind == "llama3" else None


def _scaling(path: Path, key: str, rope: Mapping[str, Any]) -> Llama3RopeScaling:
    if missing := [name for name in _LLAMA3_KEYS if name not in rope]:
        raise ModelError(f"{path}: {key}", f"all of {list(_LLAMA3_KEYS)}", f"no {missing}")
    length = "original_max_position_embeddings"
    numbers = {**{name: rope[name] for name in _LLAMA3_KEYS}, length: whole(rope[length])}
    try:
        return Llama3RopeScaling(**numbers)
    except ModelError as error:
        raise ModelError(f"{path}: {error.what}", error.wanted, error.got) from None


def _special_tokens(
    folder: Path, raw: Mapping[str, Any]
) -> tuple[tuple[Any, Path], tuple[list[Any], Path]]:
    """Return BOS and every EOS, each with the file that states it.

    The EOS of generation_config.json wins, as in transformers.
    """
    path, other = folder / "config.json", folder / "generation_config.json"
    generation = _or(read_json(other), {})
    bos, bos_file = raw.get("bos_token_id"), path
    if bos is None:
        bos, bos_file = generation.get("bos_token_id"), other
    eos, eos_file = generation.get("eos_token_id"), other
    if eos is None:
        eos, eos_file = raw.get("eos_token_id"), path
    listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return (bos, bos_file), (listed, eos_file)


def _check_agree(wanted: ModelConfig, got: ModelConfig, folder: Path) -> None:
    """Refuse weights of another model: all keys that change the arithmetic must be equal."""
    theirs = got.to_dict()
    for key, value in wanted.to_dict().items():
        if key not in _MAY_DIFFER and theirs[key] != value:
            raise ModelError(
                f"{folder / 'config.json'}: {key}",
                f"{value!r} as in {wanted.name}",
                repr(theirs[key]),
            )


def _folder_name(folder: Path) -> str:
    return printable(Path(os.path.abspath(folder)).name)  # of ".." too, and of a link its own


def _model_folder(name_or_path: str) -> tuple[Path, str]:
    """Find a model's folder and name: by path, else as a Hub id in the local cache."""
    path = Path(name_or_path)
    if is_folder(path):
        return path, _folder_name(path)
    known = f"a preset ({', '.join(PRESETS)}) or a folder with config.json"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path):
        raise ModelError(f"model {name_or_path!r}", known, "neither")
    cached = _cached(name_or_path)
    if cached is None:
        raise ModelError(
            f"model {name_or_path!r}",
            f"{known}, or a Hub id in the cache {_hub_cache()}",
            "none of them; nothing is downloaded (fetch it with `hf download`)",
        )
    return cached, name_or_path


def _hub_cache() -> Path:
    """Return huggingface_hub's cache folder, by its own environment variables."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def _cached(hub_id: str) -> Path | None:
    """Return the snapshot that `main` points to in huggingface_hub's cache, or None."""
    repo = _hub_cache() / f"models--{hub_id.replace('/', '--')}"
    main = read_text(repo / "refs" / "main")
    if main is None:
        return None
    snapshot = repo / "snapshots" / main.strip()
    return snapshot if is_file(snapshot / "config.json") else None
