"""The time of a step of a model on GPUs: a roofline with three efficiencies.

    step = max(memory, products) + prompts + exchange + layers * layer_s

- memory: the weights that a step reads, and the KV cache of all sequences, over the bandwidth;
- products: operations of the sequences' own tokens over the peak;
- prompts: operations of prompts that are worked on meanwhile, over the peak. Each sequence brings
  one for every so many tokens that it gets, so a step bears `prompt_tokens` of them on average;
- exchange: two ring all-reduces of fp16 rows a layer over the links, and
- layer_s for launches and waits: once for a layer on several GPUs, half of it on one, where nobody
  is waited for, and twice that for a layer of experts, which are routed and gathered.

Tensor parallelism: weights, KV cache and operations are split evenly. A mixture reads the experts
that `batch` tokens choose, drawn evenly. What a data sheet does not have is in `Efficiency`
(rack/machines/gpu); `rack.validate gpus` holds all of it against measured GPUs (docs/gpus.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from compiler.model.config import ModelConfig
from rack.machines.gpu import Efficiency, Gpu, GpuDtype

WEIGHT_BITS = {GpuDtype.FP16: 16.0, GpuDtype.FP8: 8.0, GpuDtype.INT8: 8.0, GpuDtype.MXFP4: 4.25}
ROW_BYTES = 2  # an element of what goes between layers, and of embedding and head: fp16
ONE_GPU = 0.5  # of layer_s, where nobody is waited for
EXPERTS = 2  # times layer_s, for routing and gathering
USABLE = 0.9
"""Of a GPU's memory; the rest is the engine's and its buffers' (assumption: vLLM's default)."""
EXACT = Efficiency(memory=1.0, compute=1.0, layer_s=0.0)  # all of the data sheet
SIZES = (1, 2, 4, 8)  # GPUs of a host that a model is split over


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a GPU host works on: a model, how it is stored and split, and its sequences.

    `context`: tokens that a token sees, on average. `prompt_tokens`: of prompts, for each step;
    each sees `prompt_context` tokens, on average. `kv_bytes`: of an element of the KV cache.
    """

    config: ModelConfig
    dtype: GpuDtype
    gpus: int
    batch: int
    context: float
    kv_bytes: int
    prompt_tokens: float = 0.0
    prompt_context: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """A step at the rates of the data sheet, in seconds, and the layers that take `layer_s`."""

    memory: float
    products: float
    prompts: float
    exchange: float
    layers: float

    def seconds(self, reached: Efficiency) -> float:
        """Return the step's time where so much of the data sheet is reached."""
        return (
            max(self.memory / reached.memory, self.products / reached.compute)
            + self.prompts / reached.compute
            + self.exchange / reached.memory
            + self.layers * reached.layer_s
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Elements of a model: of a layer's attention, of one MLP or expert, of the head."""

    attention: int
    mlp: int
    head: int

    @classmethod
    @lru_cache(maxsize=16)
    def of(cls, config: ModelConfig) -> Sizes:
        """Count them; norms and biases are left out."""
        return cls(
            attention=config.hidden_size * 2 * (config.q_size + config.kv_size),
            mlp=3 * config.hidden_size * config.intermediate_size,
            head=config.hidden_size * config.vocab_size,
        )


def operations(config: ModelConfig) -> float:
    """Return operations on weights for a token, the head's included: two for each that is used."""
    return 2.0 * (_layers_operations(config) + Sizes.of(config).head)


def _layers_operations(config: ModelConfig) -> float:
    sizes = Sizes.of(config)
    used = 1 if config.experts is None else config.experts.chosen
    return config.num_layers * (sizes.attention + used * sizes.mlp)


def weight_bytes(config: ModelConfig, dtype: GpuDtype, tokens: float | None = None) -> float:
    """Return bytes of weights: all that are stored, or those that a step of `tokens` reads."""
    sizes, experts = Sizes.of(config), config.experts
    wide = ROW_BYTES if dtype is GpuDtype.MXFP4 else WEIGHT_BITS[dtype] / 8
    mlp_wide = WEIGHT_BITS[dtype] / 8
    mlps = 1.0
    if experts is not None:
        missed = 0.0 if tokens is None else (1 - experts.chosen / experts.count) ** tokens
        mlps = experts.count * (1 - missed)
    tables = 1 if tokens is not None or config.tie_word_embeddings else 2
    layers = config.num_layers * (sizes.attention * wide + mlps * sizes.mlp * mlp_wide)
    return layers + tables * sizes.head * ROW_BYTES


def seen(config: ModelConfig, context: float) -> float:
    """Return tokens that a token sees, added over the layers; a window cuts them."""
    if not config.windows:
        return config.num_layers * context
    windows = config.windows[: config.num_layers]
    return sum(context if window is None else min(context, window) for window in windows)


def cache_bytes(config: ModelConfig, context: float, kv_bytes: int) -> float:
    """Return bytes of a sequence's keys and values."""
    return seen(config, context) * 2 * config.kv_size * kv_bytes


def terms(gpu: Gpu, load: Load) -> Terms:
    """Return a step's terms at the rates of the data sheet."""
    config, batch, gpus = load.config, load.batch, load.gpus
    read = weight_bytes(config, load.dtype, batch)
    read += batch * cache_bytes(config, load.context, load.kv_bytes)
    peak = gpu.peak(load.dtype) * gpus
    attention = 4 * config.q_size * seen(config, load.prompt_context) / gpu.peak(GpuDtype.FP16)
    rows = (batch + load.prompt_tokens) * config.hidden_size * ROW_BYTES
    sent = 2 * config.num_layers * 2 * (gpus - 1) / gpus * rows
    waits = (ONE_GPU if gpus == 1 else 1.0) * (1 if config.experts is None else EXPERTS)
    return Terms(
        memory=read / gpus / gpu.memory_bytes_per_s,
        products=batch * operations(config) / peak,
        prompts=load.prompt_tokens * (2 * _layers_operations(config) / peak + attention / gpus),
        exchange=sent / gpu.link_bytes_per_s,
        layers=config.num_layers * waits,
    )


def places(gpu: Gpu, load: Load) -> int:
    """Return how many sequences of the context fit beside the weights; 0 if not even these do."""
    room = gpu.memory_bytes * USABLE * load.gpus - weight_bytes(load.config, load.dtype)
    return max(0, int(room // cache_bytes(load.config, load.context, load.kv_bytes)))


def fewest_gpus(gpu: Gpu, load: Load) -> int | None:
    """Return the fewest GPUs of SIZES that hold the weights and a sequence; None if none do."""
    for gpus in SIZES:
        if places(gpu, replace(load, gpus=gpus)) >= 1:
            return gpus
    return None


def intensity(load: Load) -> float:
    """Return operations on weights for a byte that a step reads."""
    read = weight_bytes(load.config, load.dtype, load.batch)
    read += load.batch * cache_bytes(load.config, load.context, load.kv_bytes)
    return load.batch * operations(load.config) / read


def balance(gpu: Gpu, load: Load, reached: Efficiency, most: int) -> int | None:
    """Return the least batch whose products take as long as its memory; None up to `most`."""
    low, high = 1, most
    if not _bound_by_products(gpu, replace(load, batch=high), reached):
        return None
    while low < high:
        middle = (low + high) // 2
        if _bound_by_products(gpu, replace(load, batch=middle), reached):
            high = middle
        else:
            low = middle + 1
    return low


def _bound_by_products(gpu: Gpu, load: Load, reached: Efficiency) -> bool:
    found = terms(gpu, load)
    return found.products / reached.compute >= found.memory / reached.memory
