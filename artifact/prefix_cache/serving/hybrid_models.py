"""Real hybrid models: tiny ones with random weights, and those a user has; what their states cost.

The tiny models are built from the configuration classes of `transformers`. Their layers are dense although the class
allows experts: a router's choice is a jump that a rounding can flip, and resuming would be blamed for it. Weights
are wider, and recurrent states longer-lived, than the classes' defaults, with which a lost state hardly shows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from artifact import hardware
from artifact.prefix_cache.spec import HybridSpec

_NAMES_ONLY = ("name_or_path", "_name_or_path", "transformers_version", "architectures")
SSM, ATTENTION, MLP, CONVOLUTION, BOTH = "linear_attention", "full_attention", "mlp", "conv", "hybrid"


@dataclass(frozen=True)
class ModelConfig:
    """A configuration class of `transformers` with its arguments."""

    config_class: str
    arguments: dict[str, Any]

    def config(self) -> Any:
        """The configuration, made anew."""
        return getattr(transformers, self.config_class)(**self.arguments)


def _mamba2(hidden_size: int, heads: int, state: int, groups: int, chunk: int) -> dict[str, Any]:
    """Names that Granite, Bamba and Falcon-H1 share."""
    widths = {"hidden_size": hidden_size, "mamba_n_heads": heads, "mamba_d_state": state}
    return {**widths, "mamba_n_groups": groups, "mamba_chunk_size": chunk}


_TINY: dict[str, Any] = {
    **{"vocab_size": 1024, "max_position_embeddings": 8192, "tie_word_embeddings": False},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    "initializer_range": 0.08,  # of width 64: states matter, and roundings do not grow from layer to layer
}
_WIDTH = {"hidden_size": 64, "intermediate_size": 128}
_DELTA_NET = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
_FIVE_LAYERS = {"num_hidden_layers": 5, "layer_types": [SSM, SSM, ATTENTION, SSM, SSM]}
_GRANITE = {"position_embedding_type": "rope", "num_local_experts": 0, "num_experts_per_tok": 0}

MODEL_CONFIGS = {
    "nemotron-h-tiny": ModelConfig(
        "NemotronHConfig",
        _TINY
        | _WIDTH
        | {"layers_block_type": [SSM, MLP, SSM, ATTENTION, MLP, SSM, MLP, SSM], "head_dim": 16, "ssm_state_size": 16}
        | {"mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "chunk_size": 32},
    ),
    "granite-tiny": ModelConfig(
        "GraniteMoeHybridConfig",
        _TINY
        | _GRANITE
        | _mamba2(64, heads=8, state=16, groups=1, chunk=32)
        | _FIVE_LAYERS
        | {"shared_intermediate_size": 128, "attention_multiplier": 0.25},
    ),
    "falcon-h1-tiny": ModelConfig(
        "FalconH1Config",
        _TINY
        | _mamba2(64, heads=8, state=16, groups=1, chunk=32)
        | {"num_hidden_layers": 4, "intermediate_size": 128, "mamba_d_ssm": 128},
    ),
    "qwen3-next-tiny": ModelConfig(
        "Qwen3NextConfig",
        _TINY
        | _WIDTH
        | _DELTA_NET
        | _FIVE_LAYERS
        | {"head_dim": 16, "linear_value_head_dim": 16, "num_experts": 0}
        | {"initializer_range": 0.05},  # the delta rule lets roundings grow with wider weights
    ),
    "olmo-hybrid-tiny": ModelConfig(
        "OlmoHybridConfig",
        _TINY | _WIDTH | _DELTA_NET | _FIVE_LAYERS | {"linear_value_head_dim": 32, "linear_num_value_heads": 2},
    ),
    "lfm2-tiny": ModelConfig(
        "Lfm2Config",
        _TINY
        | _WIDTH
        | {"layer_types": [CONVOLUTION, CONVOLUTION, ATTENTION, CONVOLUTION, CONVOLUTION, ATTENTION]}
        | {"num_hidden_layers": 6, "block_multiple_of": 32},
    ),
    "zamba2-tiny": ModelConfig(
        "Zamba2Config",
        _TINY
        | _WIDTH
        | {"num_hidden_layers": 6, "layers_block_type": [SSM, SSM, BOTH, SSM, SSM, BOTH], "num_key_value_heads": 4}
        | {"mamba_d_state": 16, "n_mamba_heads": 8, "chunk_size": 32}
        | {"use_mem_rope": True, "use_shared_attention_adapter": True, "adapter_rank": 8},
    ),
    "bamba-tiny": ModelConfig(
        "BambaConfig",
        _TINY
        | _mamba2(64, heads=8, state=16, groups=1, chunk=32)
        | {"num_hidden_layers": 5, "intermediate_size": 128, "attn_layer_indices": [2]},
    ),
    "jamba-tiny": ModelConfig(
        "JambaConfig",
        _TINY
        | _WIDTH
        | {"num_hidden_layers": 5, "attn_layer_period": 5, "attn_layer_offset": 2, "num_experts": 1}
        | {"num_experts_per_tok": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    ),
    "granite-small": ModelConfig(
        "GraniteMoeHybridConfig",
        _TINY
        | _GRANITE
        | _mamba2(512, heads=16, state=64, groups=1, chunk=64)
        | {"num_hidden_layers": 6, "layer_types": [SSM, SSM, ATTENTION, SSM, SSM, SSM], "num_attention_heads": 8}
        | {"shared_intermediate_size": 1536, "attention_multiplier": 0.125, "initializer_range": 0.03},
    ),
}
TINY = tuple(name for name in MODEL_CONFIGS if name.endswith("-tiny"))


def build_model(
    model: str, *, device: str | None = None, dtype: torch.dtype | None = None, seed: int = 0
) -> PreTrainedModel:
    """A model in evaluation mode: a preset with random weights of that seed, or a checkpoint's weights.

    model:  a name of MODEL_CONFIGS, a folder with a checkpoint, or an id of the Hugging Face hub
    device: `hardware.detect().device` if None
    dtype:  float32 on a CPU and bfloat16 on CUDA if None
    Raises: ValueError if there is no such model, or it cannot be loaded
    """
    device = hardware.detect().device if device is None else device
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device cuda must be there, got none: {hardware.detect().reason}")
    if dtype is None:
        dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    built = _random(model, seed) if model in MODEL_CONFIGS else _pretrained(model, dtype)
    return built.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _random(name: str, seed: int) -> PreTrainedModel:
    """The same weights on every device: drawn on the CPU in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(MODEL_CONFIGS[name].config(), dtype=torch.float32)
        for parameter_name, parameter in model.named_parameters():
            _redraw(parameter_name, parameter.data)
    model.config.name_or_path = name
    return model


def _redraw(name: str, parameter: torch.Tensor) -> None:
    """Recurrent states that live for 3 to 200 tokens, and inputs to them of the size of what passes beside them."""
    if name.endswith((".dt_bias", ".dt_proj.bias")):  # softplus of it: log-uniform in [0.05, 0.3]
        step = torch.exp(torch.empty_like(parameter).uniform_(math.log(0.05), math.log(0.3)))
        parameter.copy_(step + torch.log(-torch.expm1(-step)))
    elif name.endswith(".A_log"):
        parameter.copy_(torch.empty_like(parameter).uniform_(0.1, 1.0).log())
    elif name.endswith((".conv1d.weight", ".conv.conv.weight")):
        nn.init.normal_(parameter, std=0.6)
    elif name == "lm_head.weight":  # logits of the size that the classes' default widths give
        parameter.mul_(0.25)


def _pretrained(model: str, dtype: torch.dtype) -> PreTrainedModel:
    is_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if not model or not (is_id or os.path.isdir(model)):
        names = ", ".join(MODEL_CONFIGS)
        raise ValueError(f"model must be one of {names}, a checkpoint's folder or an id of the hub, got {model!r}")
    try:
        loaded, report = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, output_loading_info=True)
    except Exception as error:  # whatever transformers raises for a checkpoint that is not right
        reason = " ".join(f"{error}".split()).split(". ")[0] or type(error).__name__
        raise ValueError(f"model {model!r} cannot be loaded: {reason}") from error
    if missing := sorted(report["missing_keys"]):  # transformers would fill in random ones
        raise ValueError(f"model {model!r} cannot be loaded: it must hold every weight, lacks {missing[0]}")
    return loaded


def fingerprint(model: PreTrainedModel) -> str:
    """Tells models apart whose states must not be mixed: configuration, and some values of every weight."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NAMES_ONLY}
    seen = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        sample = values[:: max(1, len(values) // 256)].cpu()
        seen.update(f"{name} {list(parameter.shape)} {parameter.dtype}".encode())
        seen.update(sample.to(torch.float64).numpy().tobytes())
    return seen.hexdigest()


# Costs, from a configuration ------------------------------------------------------------------------------------------
# Each function gives the fields of a HybridSpec for one configuration class. Where a layer has weights that the
# formulas for attention and SSM layers do not know, `mlp_parameters` takes them: weights a token meets are FLOPs alike.


def spec_of(model_or_config: Any, dtype: torch.dtype | None = None) -> HybridSpec:
    """Bytes and FLOPs of a model from its configuration, logits of a checkpoint's last token among the bytes.

    dtype:  of weights, KV, convolution states and logits; the model's if None. Recurrent states are in float32:
            scans return them so, whatever the model computes in
    Raises: ValueError if the class of the configuration is not known
    """
    config = getattr(model_or_config, "config", model_or_config)
    config = config.get_text_config(decoder=True)
    if dtype is None:
        dtype = getattr(model_or_config, "dtype", None) or torch.float32
    if config.model_type not in _FIELDS:
        raise ValueError(f"the model's type must be one of {', '.join(_FIELDS)}, got {config.model_type!r}")
    types = list(config.layer_types)
    spec = HybridSpec(
        config.name_or_path or config.model_type,
        num_ssm_layers=sum(kind in (SSM, CONVOLUTION, BOTH) for kind in types),
        num_attention_layers=sum(kind in (ATTENTION, BOTH) for kind in types),
        num_mlp_layers=len(types),
        d_model=config.hidden_size,
        d_state=1,
        bytes_per_element=dtype.itemsize,
        state_bytes_per_element=torch.float32.itemsize,
        logits_bytes=config.vocab_size * dtype.itemsize,
    )
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return replace(spec, query_dim=heads * head_dim, kv_dim=kv_heads * head_dim, **_FIELDS[config.model_type](config))


def _mamba2_fields(d_inner: int, groups: int, d_state: int, conv_kernel: int) -> dict[str, Any]:
    conv_dim = d_inner + 2 * groups * d_state
    return {"d_inner": d_inner, "conv_dim": conv_dim, "d_state": d_state, "conv_kernel": conv_kernel}


def _nemotron_h(config: Any) -> dict[str, Any]:
    """MLP and expert layers stand on their own: those alone are counted."""
    latent = config.moe_latent_size or config.hidden_size
    experts = config.num_experts_per_tok * 2 * latent * config.moe_intermediate_size
    shared = 2 * config.hidden_size * config.moe_shared_expert_intermediate_size
    projections = 2 * config.hidden_size * latent if config.moe_latent_size else 0
    dense, sparse = config.layer_types.count(MLP), config.layer_types.count("moe")
    parameters = dense * 2 * config.hidden_size * config.intermediate_size + sparse * (experts + shared + projections)
    d_inner = config.mamba_num_heads * config.mamba_head_dim
    return _mamba2_fields(d_inner, config.n_groups, config.ssm_state_size, config.conv_kernel) | {
        "num_mlp_layers": dense + sparse,
        "mlp_parameters": parameters // max(1, dense + sparse),
    }


def _bamba(config: Any) -> dict[str, Any]:
    d_inner = getattr(config, "mamba_d_ssm", None) or config.mamba_expand * config.hidden_size
    fields = _mamba2_fields(d_inner, config.mamba_n_groups, config.mamba_d_state, config.mamba_d_conv)
    return fields | {"mlp_parameters": 3 * config.hidden_size * config.intermediate_size}


def _granite(config: Any) -> dict[str, Any]:
    active = config.num_experts_per_tok * config.intermediate_size if config.num_local_experts else 0
    return _bamba(config) | {"mlp_parameters": 3 * config.hidden_size * (active + config.shared_intermediate_size)}


def _falcon_h1(config: Any) -> dict[str, Any]:
    layers = config.num_hidden_layers
    return _bamba(config) | {"num_ssm_layers": layers, "num_attention_layers": layers}


def _delta_net(config: Any) -> dict[str, Any]:
    key_dim = config.linear_num_key_heads * config.linear_key_head_dim
    value_dim = config.linear_num_value_heads * config.linear_value_head_dim
    return {
        "d_state": config.linear_key_head_dim,
        "d_inner": value_dim,
        "conv_dim": 2 * key_dim + value_dim,
        "conv_kernel": config.linear_conv_kernel_dim,
        "mlp_parameters": 3 * config.hidden_size * config.intermediate_size,
    }


def _qwen3_next(config: Any) -> dict[str, Any]:
    active = config.num_experts_per_tok * config.moe_intermediate_size + config.shared_expert_intermediate_size
    sparse = [
        config.num_experts > 0 and (i + 1) % config.decoder_sparse_step == 0 and i not in config.mlp_only_layers
        for i in range(config.num_hidden_layers)
    ]
    width = sum(active if experts else config.intermediate_size for experts in sparse)
    return _delta_net(config) | {"mlp_parameters": 3 * config.hidden_size * width // config.num_hidden_layers}


def _lfm2(config: Any) -> dict[str, Any]:
    """No recurrent state, a convolution's window alone; its layers' weights are 4 D^2, so d_inner is 4/3 D."""
    width = config.intermediate_size
    if config.block_auto_adjust_ff_dim:
        width = int((config.block_ffn_dim_multiplier or 1) * int(2 * width / 3))
        width = config.block_multiple_of * math.ceil(width / config.block_multiple_of)
    return {
        "state_width": 0,
        "d_inner": 4 * config.hidden_size // 3,
        "conv_dim": config.hidden_size,
        "conv_kernel": config.conv_L_cache,
        "mlp_parameters": 3 * config.hidden_size * width,
    }


def _zamba2(config: Any) -> dict[str, Any]:
    """Attention of twice the width with an MLP before some SSM layers, then a projection; adapters of low rank."""
    width, query_dim = config.hidden_size, config.num_attention_heads * config.head_dim
    kv_dim = config.num_key_value_heads * config.head_dim
    wider_input = width * (query_dim + 2 * kv_dim)
    adapter = config.adapter_rank * (width + 2 * config.intermediate_size)
    if config.use_shared_attention_adapter:
        adapter += 3 * config.adapter_rank * 2 * config.attention_hidden_size
    fields = _mamba2_fields(
        config.mamba_expand * width, config.mamba_ngroups, config.mamba_d_state, config.mamba_d_conv
    )
    return fields | {
        "num_mlp_layers": config.layer_types.count(BOTH),
        "mlp_parameters": 3 * width * config.intermediate_size + wider_input + width**2 + adapter,
    }


def _jamba(config: Any) -> dict[str, Any]:
    """Mamba-1: the convolution sees the inner width alone."""
    d_inner = config.mamba_expand * config.hidden_size
    experts = sum(min(config.num_experts_per_tok, count) for count in config.layers_num_experts)
    return {
        "d_state": config.mamba_d_state,
        "d_inner": d_inner,
        "conv_dim": d_inner,
        "conv_kernel": config.mamba_d_conv,
        "mlp_parameters": 3 * config.hidden_size * config.intermediate_size * experts // config.num_hidden_layers,
    }


_FIELDS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "nemotron_h": _nemotron_h,
    "granitemoehybrid": _granite,
    "falcon_h1": _falcon_h1,
    "qwen3_next": _qwen3_next,
    "olmo_hybrid": _delta_net,
    "lfm2": _lfm2,
    "zamba2": _zamba2,
    "bamba": _bamba,
    "jamba": _jamba,
}
