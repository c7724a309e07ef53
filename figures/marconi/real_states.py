"""Hybrid models of `transformers` that resume from cached states: exactness and time, measured (notebook 40)."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import prefix_cache
from artifact.prefix_cache.simulation import SGLANG
from figures.marconi.replays import Options, panels
from figures.style import BLUE, GREY, PAPER_COLOR, RED, YELLOW, Picture, subplots

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from artifact.prefix_cache.serving.trace_server import System

MB = 10**6
PREFILLS = {"cold_ms": "cold", "resumed_ms": "resumed", "restore_ms": "of it lookup\nand restore"}


@cache
def model_of(name: str, device: str | None = None, seed: int = 0) -> PreTrainedModel:
    """The model with random weights of `seed`, built once; one thread on a CPU, as sums depend on their number."""
    import torch

    torch.set_num_threads(1)
    return prefix_cache.build_model(name, device=device, seed=seed)


def system_of(label: str, capacity_mb: float, host_mb: float = 0, **options: Any) -> System:
    """The system as it is served, with a second tier of `host_mb` (0: none)."""
    from artifact.prefix_cache.serving.trace_server import System

    return System(label, round(capacity_mb * MB), round(host_mb * MB) or None, **options)


def conformance(*, models: list[str], device: str | None = None) -> pd.DataFrame:
    """The conformance suite's verdict. One row per model."""
    from artifact.prefix_cache.serving.resume_cases import summary

    rows = []
    for model in (model_of(name, device) for name in models):
        states = prefix_cache.ModelStates(model)
        rows.append(summary(prefix_cache.conformance(model, states=states), model, states))
    return pd.DataFrame(rows).assign(model=models)


def exactness(
    *, models: list[str], cases: int, longest: int = 120, seed: int = 0, device: str | None = None
) -> pd.DataFrame:
    """Resumed prefills against cold ones, at random prefixes, suffixes and boundaries of segments.

    One row per (model, case): the largest difference of logits from a cold prefill, and with the recurrent states put
    back as zeros; whether the logits are bit for bit those of the same split computed cold.
    """
    import torch

    rows = []
    for name in models:
        states, rng = prefix_cache.ModelStates(model_of(name, device)), np.random.default_rng(seed)
        tolerance = states.tolerance
        for case in range(cases):
            tokens = rng.integers(states.config.vocab_size, size=rng.integers(8, longest + 1))
            prefix = int(rng.integers(1, len(tokens)))
            cold = states.run(states.start(), tokens, all_logits=True)[prefix:]
            split = states.start()
            states.run(split, tokens[:prefix])
            edges = sorted({0, prefix, *rng.integers(1, prefix + 1, size=2).tolist()})
            segments = [states.kv(split, start, stop) for start, stop in pairwise(edges)]
            checkpoint = states.checkpoint(split)
            lost = [torch.zeros_like(state) for state in checkpoint[:-1]] + checkpoint[-1:]
            found, control = (
                states.run(states.restore(segments, held, prefix), tokens[prefix:], all_logits=True)
                for held in (checkpoint, lost)
            )
            same_split = states.run(split, tokens[prefix:], all_logits=True)
            row = {"model": name, "case": case, "prefix_tokens": prefix, "suffix_tokens": len(tokens) - prefix}
            row |= {"segments": len(segments), "bit_equal": torch.equal(found, same_split)}
            row |= {"difference": tolerance.difference(found, cold), "tolerance": tolerance.limit}
            row |= {"difference_of_control": tolerance.difference(control, cold), "resumed": states.resume}
            rows.append(row)
    return pd.DataFrame(rows)


def resume(*, models: list[str], prefix_tokens: int, suffix_tokens: int, repeats: int, seed: int = 0) -> pd.DataFrame:
    """A prefill of prefix and suffix, cold and from the prefix's states, in turn. One row per (model, repeat)."""
    rows = []
    for name in models:
        model, rng = model_of(name), np.random.default_rng(seed)
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        engine = system_of(SGLANG, capacity_mb=10_000).engine(model)
        prefix = rng.integers(vocabulary, size=prefix_tokens, dtype=np.int32)
        engine.finish(engine.prefill(prefix))
        for repeat in range(-1, repeats):  # the first is not counted
            tokens = np.concatenate((prefix, rng.integers(vocabulary, size=suffix_tokens, dtype=np.int32)))
            cold_s, logits = engine.cold(tokens)
            request = engine.prefill(tokens)
            engine.abort(request)
            row = {"model": name, "repeat": repeat, "hit_tokens": request.hit_tokens, "cold_ms": 1e3 * cold_s}
            row |= {"resumed_ms": 1e3 * request.ttft_s, "restore_ms": 1e3 * request.restore_s}
            row |= {"logit_difference": engine.states.tolerance.difference(request.logits, logits)}
            rows += [row] if repeat >= 0 else []
    return pd.DataFrame(rows)


def plot_exactness(table: pd.DataFrame) -> Figure:
    """Largest difference of a resumed prefill's logits from a cold one's, a dot for each random case."""
    names = {"difference": "resumed (at the bottom: no difference at all)"}
    names |= {"difference_of_control": "control: recurrent states lost"}
    cases = table.rename(columns=names).melt("model", list(names.values()), var_name="which", value_name="logits")
    models, labels = pd.factorize(cases["model"])
    cases["position"] = models + np.random.default_rng(0).uniform(-0.25, 0.25, len(cases))  # seaborn's is not seeded
    cases["logits"] = cases["logits"].clip(lower=1e-9)  # where a difference of exactly 0 is drawn
    figure, ax = subplots(height_in=2.7)
    look: Options = {"hue": "which", "palette": [BLUE, RED], "s": 6, "alpha": 0.6, "linewidth": 0}
    sns.scatterplot(cases, x="position", y="logits", **look, ax=ax)
    ax.axhline(float(table["tolerance"].iloc[0]), color=PAPER_COLOR, linestyle="--", label="tolerance")
    ax.set(yscale="log", xlabel="", ylabel="Largest difference of logits\nfrom a cold prefill")
    ax.set_xticks(range(len(labels)), labels.str.removesuffix("-tiny"), rotation=20)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    ax.get_legend().remove()
    return figure


def plot_resume(table: pd.DataFrame) -> Figure:
    """A prefill of a long prefix and a short suffix, cold and from the prefix's states; bars are medians."""
    times = table.rename(columns=PREFILLS).melt("model", list(PREFILLS.values()), var_name="prefill", value_name="ms")
    options: Options = {"x": "prefill", "y": "ms", "hue": "prefill", "palette": [GREY, BLUE, YELLOW], "saturation": 1}
    options |= {"estimator": "median", "errorbar": ("pi", 100), "err_kws": {"linewidth": 1, "color": "black"}}
    options |= {"col": "model", "sharey": False, "width_in": 2.6 * table["model"].nunique(), "height_in": 2.2}
    return panels(sns.catplot, times, "{col_name}", "", "Prefill (ms)", kind="bar", **options).figure


FIGURES = {
    "marconi-exactness": Picture("40_exactness", plot_exactness),
    "marconi-resume": Picture("40_resume", plot_resume, interval="full range of the repeats"),
}
