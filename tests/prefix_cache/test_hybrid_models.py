"""Tiny models of nine classes, and their costs against the real tensors and weights."""

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from artifact.prefix_cache.presets import PUBLISHED_HYBRIDS
from artifact.prefix_cache.serving.hybrid_models import MODEL_CONFIGS, TINY, build_model, spec_of
from artifact.prefix_cache.serving.model_states import ModelStates

torch.set_num_threads(1)

NEMOTRON_H_8B = transformers.NemotronHConfig(
    layers_block_type=(["linear_attention", "mlp"] * 24 + ["full_attention"] * 4), intermediate_size=21504
)
JAMBA_1_5_MINI = transformers.JambaConfig()
GRANITE_4_H_SMALL = transformers.GraniteMoeHybridConfig(
    num_hidden_layers=40,
    layer_types=(["linear_attention"] * 9 + ["full_attention"]) * 4,
    num_key_value_heads=8,
    mamba_d_state=128,
    num_local_experts=72,
    num_experts_per_tok=10,
    intermediate_size=768,
    shared_intermediate_size=1536,
)
FALCON_H1_7B = transformers.FalconH1Config(
    hidden_size=3072,
    num_hidden_layers=44,
    num_attention_heads=12,
    num_key_value_heads=2,
    head_dim=128,
    intermediate_size=12288,
    mamba_d_ssm=3072,
    mamba_n_heads=24,
    mamba_d_head=128,
)
PUBLISHED_CONFIGS = {
    "nemotron-h-8b": NEMOTRON_H_8B,
    "jamba-1.5-mini": JAMBA_1_5_MINI,
    "granite-4.0-h-small": GRANITE_4_H_SMALL,
    "qwen3-next-80b-a3b": transformers.Qwen3NextConfig(),
    "falcon-h1-7b": FALCON_H1_7B,
}


def states_of(model, num_tokens):
    """Bytes of all that a cache of `transformers` holds after as many tokens, by name of the attribute."""
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        logits = model(torch.arange(num_tokens)[None], past_key_values=cache, use_cache=True).logits
    held = {"logits": logits[0, -1].to(model.dtype).nbytes, "kv": 0, "states": 0}
    for layer in cache.layers:
        kv = [getattr(layer, name, None) for name in ("keys", "values")]
        held["kv"] += sum(tensor.nbytes for tensor in kv if tensor is not None)
        for name in ("conv_states", "recurrent_states"):
            states = getattr(layer, name, {}).values()
            held["states"] += sum(state.nbytes for state in states if state is not None)
    return held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TINY)
def test_bytes_from_the_configuration_are_those_of_the_real_tensors(name, dtype):
    model = build_model(name, device="cpu", dtype=dtype)
    held, spec = states_of(model, 5), spec_of(model)
    assert spec.kv_bytes(5) == held["kv"] > 0
    assert spec.logits_bytes == held["logits"]
    assert spec.checkpoint_bytes == held["states"] + held["logits"]
    assert spec.name == name


@pytest.mark.parametrize("name", TINY)
def test_the_states_that_are_taken_out_have_the_bytes_of_the_configuration(name):
    states = ModelStates(build_model(name, device="cpu"))
    spec = spec_of(states.model)
    running = states.start()
    states.run(running, range(9))
    assert states.kv_bytes_per_token == spec.kv_bytes_per_token
    assert states.checkpoint_bytes == spec.checkpoint_bytes
    assert sum(tensor.nbytes for tensor in states.kv(running, 2, 9)) == spec.kv_bytes(7)
    assert sum(tensor.nbytes for tensor in states.checkpoint(running)) == spec.checkpoint_bytes


def test_the_nine_presets_are_nine_classes():
    assert len(TINY) == 9
    assert len({MODEL_CONFIGS[name].config_class for name in TINY}) == 9


@pytest.mark.parametrize("published", PUBLISHED_HYBRIDS, ids=lambda spec: spec.name)
def test_a_published_configuration_costs_what_its_preset_says(published):
    """The presets were typed from the configurations by hand; here their formulas read them."""
    spec = spec_of(PUBLISHED_CONFIGS[published.name], torch.bfloat16)
    config = PUBLISHED_CONFIGS[published.name]
    assert spec.logits_bytes == 2 * config.vocab_size
    assert spec.checkpoint_bytes - spec.logits_bytes == published.checkpoint_bytes
    assert spec.kv_bytes_per_token == published.kv_bytes_per_token
    assert spec.prefill_flops(1000) == published.prefill_flops(1000)


MLP_MODULES = {
    "nemotron-h-tiny": (".mixer.up_proj.", ".mixer.down_proj."),
    "granite-tiny": (".shared_mlp.",),
    "falcon-h1-tiny": (".feed_forward.",),
    "qwen3-next-tiny": (".mlp.",),
    "olmo-hybrid-tiny": (".mlp.",),
    "lfm2-tiny": (".feed_forward.",),
    "bamba-tiny": (".feed_forward.",),
    "jamba-tiny": (".feed_forward.",),
}


@pytest.mark.parametrize("name", MLP_MODULES)
def test_weights_of_the_mlps_are_those_of_the_modules(name):
    model = build_model(name, device="cpu")
    spec = spec_of(model)
    weights = [
        tensor.numel()
        for parameter, tensor in model.named_parameters()
        if any(part in parameter for part in MLP_MODULES[name])
    ]
    assert sum(weights) == spec.num_mlp_layers * spec.mlp_parameters


def test_a_shared_transformer_counts_every_weight_that_a_token_meets():
    """Zamba2's attention of twice the width, its MLP, the projection after them, and one of two sets of adapters."""
    model = build_model("zamba2-tiny", device="cpu")
    spec, hybrid = spec_of(model), model.model.layers[2]
    modules = (hybrid.shared_transformer.self_attn, hybrid.shared_transformer.feed_forward, hybrid.linear)
    weights = sum(
        tensor.numel() // (2 if "adapter" in name else 1)
        for module in modules
        for name, tensor in module.named_parameters()
        if tensor.ndim == 2
    )
    attention = spec.attention_layer_flops(1) - 4 * spec.query_dim
    assert attention + spec.mlp_layer_flops(1) == 2 * weights


def test_experts_count_the_weights_that_one_token_meets():
    sparse = spec_of(transformers.JambaConfig(num_experts=16, num_experts_per_tok=2))
    dense = spec_of(transformers.JambaConfig(num_experts=1, num_experts_per_tok=1))
    assert 2 * sparse.mlp_parameters == 3 * dense.mlp_parameters  # every second layer takes two
    config = transformers.NemotronHConfig(layers_block_type=["linear_attention", "moe"], moe_latent_size=512)
    spec = spec_of(config)
    experts = config.num_experts_per_tok * 2 * 512 * config.moe_intermediate_size
    shared = 2 * config.hidden_size * (config.moe_shared_expert_intermediate_size + 512)
    assert (spec.num_mlp_layers, spec.num_attention_layers) == (1, 0)
    assert spec.mlp_parameters == experts + shared


def test_a_seed_gives_the_same_weights_and_leaves_torch_as_it_was():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same, other = (build_model("granite-tiny", device="cpu", seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_a_checkpoints_folder_is_loaded(tmp_path):
    model = build_model("lfm2-tiny", device="cpu", seed=3)
    model.save_pretrained(tmp_path)
    loaded = build_model(str(tmp_path), device="cpu")
    assert not loaded.training and loaded.dtype == torch.float32
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert spec_of(loaded).checkpoint_bytes == spec_of(model).checkpoint_bytes


@pytest.mark.parametrize("name", ["granite", "", "a/b/c", "./nowhere", "/nowhere/model"])
def test_an_unknown_name_is_refused_with_the_names_there_are(name):
    with pytest.raises(
        ValueError, match=r"model must be one of nemotron-h-tiny, .*granite-small, .*hub, got "
    ) as error:
        build_model(name)
    assert repr(name) in f"{error.value}"


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be loaded: ") as error:
        build_model(str(tmp_path))
    assert "\n" not in f"{error.value}"


def test_a_checkpoint_that_lacks_a_weight_is_refused_and_a_tied_one_lacks_none(tmp_path):
    model = build_model("granite-tiny", device="cpu")
    model.save_pretrained(tmp_path / "whole")
    tied = json.loads((tmp_path / "whole" / "config.json").read_text()) | {"tie_word_embeddings": True}
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    for name, lost, config in (("tied", "lm_head.weight", tied), ("lacking", "model.norm.weight", tied)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        kept = {key: tensor for key, tensor in weights.items() if key not in ("lm_head.weight", lost)}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert build_model(str(tmp_path / "tied"), device="cpu").dtype == torch.float32
    with pytest.raises(ValueError, match=r"cannot be loaded: it must hold every weight, lacks model\.norm\.weight"):
        build_model(str(tmp_path / "lacking"), device="cpu")


@pytest.mark.parametrize("broken", ["weights", "width", "type", "heads"])
def test_a_checkpoint_that_is_not_right_is_refused_in_one_line(tmp_path, broken):
    """Each raises a class of its own in transformers."""
    build_model("granite-tiny", device="cpu").save_pretrained(tmp_path)
    if broken == "weights":
        file = tmp_path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    else:
        change = {"width": {"hidden_size": 32}, "type": {"hidden_size": "x"}, "heads": {"num_attention_heads": 0}}[
            broken
        ]
        config = tmp_path / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ValueError, match=r"^model '.*' cannot be loaded: \w") as error:
        build_model(str(tmp_path), device="cpu")
    assert "\n" not in f"{error.value}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="device cuda must be there, got none: "):
        build_model("lfm2-tiny", device="cuda")


def test_a_class_without_formulas_is_refused():
    with pytest.raises(ValueError, match=r"type must be one of nemotron_h, .*got 'llama'"):
        spec_of(transformers.LlamaConfig())


def test_the_simulators_start_without_torch():
    code = "import sys, artifact.prefix_cache.simulation, artifact.prefix_cache.commands; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", TINY)
def test_bytes_on_cuda_are_those_of_the_configuration(name):
    model = build_model(name)
    assert model.device.type == "cuda" and model.dtype == torch.bfloat16
    states = ModelStates(model)
    spec = spec_of(model)
    assert (states.kv_bytes_per_token, states.checkpoint_bytes) == (spec.kv_bytes_per_token, spec.checkpoint_bytes)
