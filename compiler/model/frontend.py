"""Resolve the name of a model (a preset, a folder, a Hub id) to a checked model description.

This is the one place that reads `config.json` and `generation_config.json`. A setting that the
emulator does not implement is refused by its key, never ignored: a model that runs, runs as
published. An absent key has transformers' default, and the user is told so.
Non-goals: reading weights (compiler/model/weights.py), tokenizers (rack/text), the network.
"""

from __future__ import annotations

import math
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
    Windows,
)
from compiler.model.checks import as_number, is_int
from compiler.model.config import MOST_LAYERS, Encoder, Experts, ModelConfig
from compiler.model.presets import PRESET_OF, PRESETS
from compiler.model.rope import RopeScaling
from compiler.model.rope_keys import read_rope
from compiler.model.weights import WeightsRef

__all__ = ["PRESETS", "Model", "ModelConfig", "load_config", "resolve_model"]

# Keys that turn on a feature, with the values that leave it off; errors show the first.
_FEATURES: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None), "mlp_bias": (False, None), "sliding_window": (None,),
    "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,), "num_local_experts": (None,),
}  # fmt: skip
_DECODER = "ForCausalLM"  # as decoders' names end
# Keys whose null is a value, other than that of a key which is absent.
_CAPS = {"attention_cap": "attn_logit_softcapping", "logit_cap": "final_logit_softcapping"}
_NULLABLE = ("num_key_value_heads", "sliding_window", *_CAPS.values())
LATER_FROM = 28  # `max_window_layers` where it is absent
_FULL, _SLIDING = "full_attention", "sliding_attention"  # of `layer_types`
# The defaults of transformers' BertConfig for a key that is absent or null. Sizes that every
# checkpoint states (hidden_size, …) are required.
_ENCODER_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
REPEAT = "repeat"  # in the place of a folder of weights
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


def resolve_model(
    name_or_path: str, weights: str | Path | None = None, seed: int = 0, layers: int | None = None
) -> Model:
    """Find a model by preset name, folder or cached Hub id; opens no weights, no network.

    A preset without `weights` gets synthetic ones from `seed`. With `weights`, it gets that
    folder's tensors and special token ids. REPEAT for `weights` makes synthetic ones that are the
    same in all layers of a kind. `layers` leaves out all but the first ones. Raises ModelError if
    the folder is of another model, or the model has fewer layers.
    """
    repeat = weights == REPEAT
    model = _whole_model(name_or_path, None if repeat else weights, seed)
    if repeat:
        ref = WeightsRef.synthetic(model.config, seed, repeat=True)
        model = replace(model, weights_ref=ref)
    return model if layers is None else _cut(model, layers)


def _whole_model(name_or_path: str, weights: str | Path | None, seed: int) -> Model:
    preset = _preset(name_or_path)
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


def _preset(name: str) -> ModelConfig | None:
    """Return the preset of a name or of GroqCloud's id; a model under that id wins over the id."""
    if name in PRESETS:
        return PRESETS[name]
    known = name in PRESET_OF and not is_folder(Path(name)) and _cached(name) is None
    return PRESETS[PRESET_OF[name]] if known else None


def _cut(model: Model, layers: int) -> Model:
    """Return the first layers of a model, with its embedding and its head."""
    config, ref = model.config, model.weights_ref
    if not 1 <= layers <= config.num_layers:
        raise ModelError(f"{config.name}: layers", f"1 to {config.num_layers}", shown(layers))
    if layers == config.num_layers:
        return model
    windows = config.windows[:layers]
    cut = replace(config, num_layers=layers, windows=windows if any(windows) else ())
    ref = replace(ref, config=cut, of_layers=config.num_layers)
    notices = (*model.notices, *cut_notice(ref))
    return replace(model, config=cut, weights_ref=ref, notices=notices)


def cut_notice(weights: WeightsRef) -> tuple[str, ...]:
    """Return the notice of a model that has lost layers."""
    if weights.of_layers is None:
        return ()
    return (f"{weights.title}: neither tokens nor cycles are those of the whole model",)


def load_config(folder: str | Path) -> ModelConfig:
    """Read a Hugging Face folder's configuration; raises ModelError naming file, key, value."""
    return _read_config(Path(folder))[0]


def _read_config(folder: Path) -> tuple[ModelConfig, tuple[str, ...]]:
    """Return a folder's configuration, and the notices about it."""
    path, name = folder / "config.json", _folder_name(folder)
    raw = dict(require_json(path))
    architecture = _architecture(path, raw)
    if isinstance(architecture, EncoderArchitecture):
        _check_supported(path, raw, _SUPPORTED_ENCODER)
        taken = _take_defaults(raw, _ENCODER_DEFAULTS)
        decoder: dict[str, Any] = {}
    else:
        _check_supported(path, _unpacked(raw, architecture), _supported(architecture))
        taken = _take_rope(raw, architecture)
        raw["rope_theta"], rope = read_rope(path, raw)
        taken |= _take_defaults(raw, architecture.defaults)
        decoder = _decoder(path, raw, architecture, rope)
    values: dict[str, Any] = {**_sizes(path, raw), **decoder}
    (bos, bos_file), (eos, eos_file) = _special_tokens(folder, raw)
    try:
        config = ModelConfig(
            name=name,
            architecture=architecture.name,
            **values,
            **({} if decoder else _encoder(raw)),
            bos_token_id=whole(bos),
            eos_token_ids=tuple(map(whole, eos)),
        )
    except ModelError as error:
        field = error.what.removeprefix(f"{name}: ").removeprefix("encoder: ")
        if isinstance(architecture, EncoderArchitecture) and field == "rms_norm_eps":
            field = "layer_norm_eps"
        file = {"bos_token_id": bos_file, "eos_token_ids": eos_file}.get(field, path)
        raise ModelError(f"{file}: {field}", error.wanted, error.got) from None
    return config, _notice(path, taken)


def _take_defaults(raw: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Give keys that are absent their defaults, and return those."""
    taken = {
        key: value
        for key, value in defaults.items()
        if (key not in raw if key in _NULLABLE else raw.get(key) is None)
    }
    raw |= taken
    return taken


def _take_rope(raw: dict[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Give the architecture's RoPE to keys that say nothing of it, and return it."""
    says = any(raw.get(key) is not None for key in ("rope_parameters", "rope_scaling"))
    if says or architecture.rope is None:
        return {}
    raw["rope_parameters"] = {**architecture.rope}
    return {"rope_parameters": raw["rope_parameters"]}


def _decoder(
    path: Path, raw: Mapping[str, Any], architecture: Architecture, rope: RopeScaling | None
) -> dict[str, Any]:
    """Return what a decoder has beside its sizes."""
    layers = min(_required(path, raw, "num_hidden_layers"), MOST_LAYERS)  # ModelConfig refuses more
    flags: dict[str, Any] = {
        key: _or(raw.get(key), False)
        for key in ("attention_bias", "mlp_bias")
        if key in architecture.options
    }
    return {
        **{key: raw[key] for key in ("rms_norm_eps", "rope_theta", "tie_word_embeddings")}, **flags,
        "rope_scaling": rope, "windows": _windows(path, raw, architecture, layers),
        "attention_scale": _attention_scale(path, raw),
        **{cap: raw.get(key) for cap, key in _CAPS.items()},
        "experts": None if architecture.mixture is None else _experts(path, raw),
    }  # fmt: skip


def _unpacked(raw: Mapping[str, Any], architecture: Architecture) -> Mapping[str, Any]:
    """Return the keys without one that says MXFP4, where weights can be read that are."""
    found, mixture = raw.get("quantization_config"), architecture.mixture
    mxfp4 = isinstance(found, dict) and found.get("quant_method") == "mxfp4"
    if not mxfp4 or mixture is None or not mixture.turns:
        return raw
    return {key: value for key, value in raw.items() if key != "quantization_config"}


def _experts(path: Path, raw: Mapping[str, Any]) -> Experts:
    keys = {"count": "num_local_experts", "chosen": "num_experts_per_tok"}
    try:
        return Experts(**{field: _required(path, raw, key) for field, key in keys.items()})
    except ModelError as error:
        key = keys.get(error.what.removeprefix("experts: "))
        what = error.what if key is None else f"{path}: {key}"
        raise ModelError(what, error.wanted, error.got) from None


def _attention_scale(path: Path, raw: Mapping[str, Any]) -> float | None:
    """Return the scale of scores where config.json has one that is not 1 / sqrt(head_dim)."""
    scalar, key = raw.get("query_pre_attn_scalar"), "query_pre_attn_scalar"
    if scalar is None:
        return None
    number, sizes = as_number(f"{path}: {key}", scalar), _sizes(path, raw)
    return None if number == sizes["head_dim"] else 1.0 / math.sqrt(number)


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
            raise ModelError(f"{path}: architectures", _known_names(), shown(named))
    found = next((one for one in known if kind in (None, one.model_type)), None)
    if found is None:
        wanted = " or ".join(dict.fromkeys(repr(one.model_type) for one in known))
        raise ModelError(f"{path}: model_type", wanted, shown(kind))
    return found


def _known_names() -> str:
    """Return the names of all architectures; what decoders' end with is said once."""
    *first, last = (name.removesuffix(_DECODER) for name in ARCHITECTURES)
    return f"one of {', '.join(first)} or {last} + {_DECODER!r}, or {' or '.join(ENCODERS)}"


def _supported(architecture: Architecture) -> dict[str, tuple[Any, ...]]:
    """Return keys that change the arithmetic, with their harmless values; errors show the first."""
    has = architecture.options | (
        set() if architecture.windows is Windows.NONE else {"sliding_window"}
    )
    return {
        **{key: values for key, values in _FEATURES.items() if key not in has},
        architecture.act_key: HIDDEN_ACT[architecture.activation],
        "quantization_config": (None,),
        "pretraining_tp": (1, None),
        "partial_rotary_factor": (1, None),
        "use_bidirectional_attention": (None, False),
        "swiglu_alpha": (1.702, None),
        "swiglu_limit": (7.0, None),
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
            wanted = repr(allowed[0])
            if key == "quantization_config":
                wanted = f"{wanted}{_unquantised(value)}"
            raise ModelError(f"{path}: {key}", wanted, shown(value))


def _unquantised(found: object) -> str:
    """Return for an error what to do with a checkpoint that is quantised."""
    method = found.get("quant_method") if isinstance(found, dict) else None
    named = f"{method:.20} " if isinstance(method, str) and method.isprintable() else ""
    made = f"the checkpoint that this {named}one was made of"
    return f" (give {made}: --dtype int8 or int4 rounds it)"


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
            f"a head_dim, as hidden_size {shown(hidden)} is not a multiple of {shown(heads)} heads",
            "nothing",
        )
    return hidden // heads


def _windows(
    path: Path, raw: Mapping[str, Any], architecture: Architecture, layers: int
) -> tuple[int | None, ...]:
    """Return each layer's window in tokens; none where no layer has one.

    A window of `max_position_embeddings` or more is none: all tokens are in it.
    """
    window, where = whole(raw.get("sliding_window")), architecture.windows
    if where is Windows.LATER and not _flag(path, raw, "use_sliding_window"):
        window = None
    named = raw.get("layer_types")
    _check_layer_types(path, named, _kinds(where, window), layers if where.vary else None)
    if window is None or where is Windows.NONE:
        return ()
    window = _required(path, raw, "sliding_window")
    has = _default_windows(path, raw, where, layers)
    if where.vary and named is not None:
        has = [kind == _SLIDING for kind in named]
    if window >= _required(path, raw, "max_position_embeddings") or not any(has):
        return ()
    return tuple(window if one else None for one in has)


def _kinds(where: Windows, window: Any) -> tuple[str, ...]:
    """Return the kinds that a layer may be of."""
    if window is None or where is Windows.NONE:
        return (_FULL,)
    return (_FULL, _SLIDING) if where.vary else (_SLIDING,)


def _check_layer_types(path: Path, named: Any, kinds: tuple[str, ...], layers: int | None) -> None:
    """Refuse another kind, and where `layers` is given another number of them."""
    listed = named if isinstance(named, list) else [] if named is None else [named]
    for kind in listed:
        if kind not in kinds:
            wanted = " or ".join(map(repr, kinds)) + (" only" if len(kinds) == 1 else "")
            raise ModelError(f"{path}: layer_types", wanted, shown(kind))
    if layers is not None and named is not None and len(listed) != layers:
        wanted = f"one for each of {layers} layers"
        raise ModelError(f"{path}: layer_types", wanted, str(len(listed)))


def _default_windows(
    path: Path, raw: Mapping[str, Any], where: Windows, layers: int
) -> list[bool]:  # fmt: skip
    """Return which layers have a window where `layer_types` does not say it."""
    if where is Windows.ALTERNATE:
        return [index % 2 == 0 for index in range(layers)]
    if where is Windows.LATER:
        first = _or(whole(raw.get("max_window_layers")), LATER_FROM)
        if not is_int(first) or first < 0:
            raise ModelError(f"{path}: max_window_layers", "an integer from 0 on", shown(first))
        return [index >= first for index in range(layers)]
    return [True] * layers


def _flag(path: Path, raw: Mapping[str, Any], key: str) -> bool:
    value = _or(raw.get(key), False)
    if not isinstance(value, bool):
        raise ModelError(f"{path}: {key}", "a bool", shown(value))
    return value


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
    for key in (field.name for field in fields(ModelConfig)):
        ours, theirs = (
            one.to_dict().get(key, getattr(one, key))  # a default is in no dict
            for one in (wanted, got)
        )
        if key not in _MAY_DIFFER and ours != theirs:
            what = f"{folder / 'config.json'}: {key}"
            raise ModelError(what, f"{ours!r} as in {wanted.name}", repr(theirs))


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
