"""Elastic MoE: ratios within one run; times are to be read on an idle machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from artifact.elastic_moe import Placement, allocate, assign_nodes, holdings_of, place, recovery
from artifact.elastic_moe.placement import probability as exactly
from artifact.elastic_moe.training.dispatch import plan_dispatch

REPEATS = 15
TOKENS, RANKS = 4096, 4


def seconds(*functions: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Median wall time of one call of each, in turn, after a warm one."""
    taken: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, times in zip(functions, taken, strict=True):
            start = time.perf_counter()
            function()
            if repeat:
                times.append(time.perf_counter() - start)
    return [float(np.median(times)) for times in taken]


def zipf(experts: int) -> list[float]:
    return [1 / rank for rank in range(1, experts + 1)]


def placement() -> pd.DataFrame:
    """Allocation and placement of a layer over spread's; the contract: MRO in 100 ms at 10 nodes, and all in 1 s.

    Even loads of 16, 60 or 252 experts cut a group of MRO short, so that `best` has to search.
    """
    rows = []
    for nodes, slots, experts in ((10, 6, 16), (128, 8, 60), (128, 8, 64), (128, 8, 252), (128, 8, 256)):
        for name, loads in (("Zipf", zipf(experts)), ("even", [1.0] * experts)):
            size = {"nodes": nodes, "slots": slots, "experts": experts, "loads": name}

            def placed(method: str, size=size, loads=loads) -> Placement:
                replicas = allocate(loads, size["nodes"] * size["slots"], 2)
                return place(method, replicas, [size["slots"]] * size["nodes"])

            spread, mro = seconds(lambda placed=placed: placed("spread"), lambda placed=placed: placed("mro"))
            [best] = seconds(lambda placed=placed: placed("best"), repeats=3)
            for method, taken in (("mro", mro), ("best", best)):
                rows.append({**size, "method": method, "ms": 1e3 * taken, "times spread": taken / spread})
    return pd.DataFrame(rows)


def recovered() -> pd.DataFrame:
    """Exact recovery against 20,000 sampled orders of failure of the same placement."""
    rows = []
    for nodes, slots, experts in ((10, 6, 16), (20, 6, 16), (128, 8, 64), (128, 8, 256)):
        for method in ("mro", "spread"):
            placement = place(method, allocate(zipf(experts), nodes * slots, 2), [slots] * nodes)
            found = recovery(placement)
            with mock.patch.object(exactly, "_count", lambda *_: None):
                sampled = recovery(placement)
                [drawing] = seconds(lambda placement=placement: recovery(placement), repeats=3)
            [counting] = seconds(lambda placement=placement: recovery(placement), repeats=3)
            error = np.abs(np.subtract(found.probability, sampled.probability)).max()
            row = {"nodes": nodes, "slots": slots, "experts": experts, "method": method, "exact": found.exact}
            rows.append({**row, "exact_ms": 1e3 * counting, "sampled over exact": drawing / counting, "error": error})
    return pd.DataFrame(rows)


class Rank(nn.Module):
    """What one rank of RANKS computes of a layer, 4,096 tokens in and as many to run; the exchange is left out."""

    def __init__(self, dim: int, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, experts, bias=False)
        self.up, self.down = (
            nn.ModuleList(nn.Linear(*size) for _ in range(experts)) for size in ((dim, 4 * dim), (4 * dim, dim))
        )
        self.replicas_RE = torch.ones(RANKS, experts, dtype=torch.int64)

    def forward(self, x_TD: Tensor) -> Tensor:
        chance_TE = self.gate(x_TD).softmax(1)
        weight_T, expert_T = chance_TE.max(1)
        way = plan_dispatch(expert_T, self.replicas_RE, self.routed(expert_T), 0)
        received_ND = x_TD.index_select(0, way.order_T)
        by_expert_ND = torch.empty_like(received_ND).index_copy(0, way.place_N, received_ND)
        parts = by_expert_ND.split(way.expert_counts)
        outputs = [down(functional.gelu(up(part))) for part, up, down in zip(parts, self.up, self.down, strict=True)]
        returned_TD = torch.cat(outputs).index_select(0, way.place_N)
        return weight_T[:, None] * torch.empty_like(returned_TD).index_copy(0, way.order_T, returned_TD)

    def routed(self, expert_T: Tensor) -> Tensor:
        """All ranks route alike."""
        return torch.bincount(expert_T, minlength=self.replicas_RE.shape[1]).expand(RANKS, -1)


def dispatched() -> pd.DataFrame:
    """The dispatcher's time as a share of one rank's forward and backward pass; the contract: under 2 %."""
    rows = []
    for dim, experts in ((64, 8), (128, 8), (256, 8), (512, 8), (768, 8), (768, 64)):
        torch.manual_seed(0)
        layer, x_TD = Rank(dim, experts), torch.randn(TOKENS, dim, requires_grad=True)
        expert_T = layer.gate(x_TD).argmax(1)
        tokens_SE = layer.routed(expert_T)
        few = {"repeats": 5} if dim >= 512 else {}
        own, whole = seconds(
            lambda layer=layer, expert_T=expert_T, tokens_SE=tokens_SE: plan_dispatch(
                expert_T, layer.replicas_RE, tokens_SE, 0
            ),
            lambda layer=layer, x_TD=x_TD: layer(x_TD).sum().backward(),
            **few,
        )
        rows.append({"dim": dim, "experts": experts, "plan_ms": 1e3 * own, "layer_ms": 1e3 * whole})
    table = pd.DataFrame(rows)
    return table.assign(share_pct=100 * table["plan_ms"] / table["layer_ms"])


def assigned() -> pd.DataFrame:
    """Greedy and optimal mapping after the loss of a tenth of the nodes, 12 layers: time, and states sent."""
    rows = []
    for nodes, slots, experts in ((10, 6, 16), (128, 8, 64)):
        rng, left = np.random.default_rng(0), nodes - nodes // 10
        loads = [rng.permutation(zipf(experts)).tolist() for _ in range(12)]
        before, after = (
            [place("mro", allocate(load, count * slots, 2), [slots] * count) for load in loads]
            for count in (nodes, left)
        )
        holdings = holdings_of(before, sorted(rng.permutation(nodes)[:left].tolist()))
        greedy, optimal = seconds(
            lambda holdings=holdings, after=after: assign_nodes(holdings, after, "greedy"),
            lambda holdings=holdings, after=after: assign_nodes(holdings, after, "optimal"),
            repeats=3,
        )
        sent = [_sent(holdings, after, assign_nodes(holdings, after, method)) for method in ("greedy", "optimal")]
        row = {"nodes": nodes, "slots": slots, "experts": experts, "greedy_ms": 1e3 * greedy}
        rows.append({**row, "optimal over greedy, time": optimal / greedy, "and states sent": sent[1] / sent[0]})
    return pd.DataFrame(rows)


def _sent(holdings: list, placements: list[Placement], chosen: list[int]) -> int:
    return sum(len(asked - held) for held, asked in zip(holdings, holdings_of(placements, chosen), strict=True))


def main() -> None:
    torch.set_num_threads(1)
    for title, measured in {
        "Allocation and placement of a layer": placement,
        "Recovery probability": recovered,
        "Dispatcher against a layer's forward and backward pass, 4,096 tokens": dispatched,
        "Who becomes which node of the plan": assigned,
    }.items():
        print(f"\n{title}\n{measured().round(3).to_string(index=False)}")


if __name__ == "__main__":
    main()
