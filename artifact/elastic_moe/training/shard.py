"""The part of a model that one process holds in training: the dense weights, some experts, and optimizer states.

A weight is sent together with its optimizer state, as one flat fp32 tensor: the weight and both moments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from artifact.elastic_moe.placement.migration import ExpertKey
from artifact.elastic_moe.presets import Preset
from artifact.elastic_moe.training.model import MoeGpt, new_expert

MOMENTS = ("exp_avg", "exp_avg_sq")


class ModelShard:
    """The dense weights, the experts in `held`, and their optimizer.

    applied: number of steps applied to the weights
    """

    def __init__(self, preset: Preset, seed: int, held: Iterable[ExpertKey], device: torch.device) -> None:
        self.preset, self.device, self.applied = preset, device, 0
        self.model = MoeGpt(preset, seed).to(device)
        self.experts = {key: nn.Parameter(new_expert(preset, seed, *key).to(device)) for key in sorted(held)}
        self._optimizer = self._new_optimizer()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All weights held: first the dense ones, in the same order in every process."""
        return [*self.model.parameters(), *self.experts.values()]

    @property
    def layers(self) -> list[dict[int, nn.Parameter]]:
        """[L], the experts held in each layer, by number."""
        layers: list[dict[int, nn.Parameter]] = [{} for _ in range(self.preset.num_layers)]
        for (layer, expert), parameter in self.experts.items():
            layers[layer][expert] = parameter
        return layers

    def apply(self) -> None:
        """Apply one optimizer step; every weight has its gradient."""
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.applied += 1

    def clear_gradients(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def keep(self, wanted: Collection[ExpertKey]) -> None:
        """Drop all other experts. Raises: KeyError if one is not held"""
        self.experts = {key: self.experts[key] for key in sorted(wanted)}
        self._optimizer = self._new_optimizer(self._optimizer)

    def pack_dense(self) -> Tensor:
        """The dense weights and their optimizer states, as one tensor."""
        return torch.cat([self._pack(parameter) for parameter in self.model.parameters()])

    def pack_expert(self, key: ExpertKey) -> Tensor:
        return self._pack(self.experts[key])

    def unpack_dense(self, packed: Tensor) -> None:
        parameters = list(self.model.parameters())
        sizes = [3 * parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, packed.split(sizes), strict=True):
            self._unpack(parameter, part)

    def unpack_expert(self, key: ExpertKey, packed: Tensor) -> None:
        """Add an expert."""
        self.experts[key] = nn.Parameter(torch.empty(self.preset.expert_parameters, device=self.device))
        self._unpack(self.experts[key], packed)

    def named(self, keys: Collection[ExpertKey], *, dense: bool) -> dict[str, Tensor]:
        """Packed tensors of these experts, and of the dense weights if `dense`, by their names in a checkpoint."""
        named = {_name(key): self._pack(self.experts[key]).cpu() for key in keys}
        for name, parameter in self.model.named_parameters() if dense else ():
            named[name] = self._pack(parameter).cpu()
        return named

    def restore(self, named: Mapping[str, Tensor], applied: int) -> None:
        """Set all that is held from the named tensors of a checkpoint after `applied` steps."""
        self.applied = applied
        for key in self.experts:
            self._unpack(self.experts[key], named[_name(key)])
        for name, parameter in self.model.named_parameters():
            self._unpack(parameter, named[name])

    @property
    def dense_numbers(self) -> int:
        """Size of `pack_dense`."""
        return 3 * sum(parameter.numel() for parameter in self.model.parameters())

    def bytes_held(self) -> dict[str, int]:
        """Allocated bytes of weights and optimizer states, of the experts and of the dense part."""
        return {
            "expert_bytes": self._bytes(self.experts.values()),
            "dense_bytes": self._bytes(self.model.parameters()),
        }

    def _bytes(self, parameters: Iterable[nn.Parameter]) -> int:
        tensors = chain.from_iterable(
            (parameter.data, *(self._optimizer.state[parameter][name] for name in MOMENTS))
            if parameter in self._optimizer.state
            else (parameter.data,)
            for parameter in parameters
        )
        return sum(tensor.numel() * tensor.itemsize for tensor in tensors)

    def _pack(self, parameter: nn.Parameter) -> Tensor:
        state: Mapping[str, Tensor] = self._optimizer.state.get(parameter, {})
        moments = [state[name] if state else torch.zeros_like(parameter.data) for name in MOMENTS]
        return torch.cat([tensor.detach().reshape(-1) for tensor in (parameter, *moments)])

    def _unpack(self, parameter: nn.Parameter, packed: Tensor) -> None:
        value, *moments = packed.to(self.device).split(parameter.numel())
        parameter.data.copy_(value.view_as(parameter))
        self._optimizer.state[parameter] = {
            "step": torch.tensor(float(self.applied)),
            **{name: moment.view_as(parameter).clone() for name, moment in zip(MOMENTS, moments, strict=True)},
        }

    def _new_optimizer(self, old: torch.optim.AdamW | None = None) -> torch.optim.AdamW:
        new = torch.optim.AdamW(self.parameters, lr=self.preset.learning_rate, foreach=True)
        for parameter in self.parameters:
            if old is not None and parameter in old.state:
                new.state[parameter] = old.state[parameter]
        return new


def _name(key: ExpertKey) -> str:
    return f"layers.{key[0]}.experts.{key[1]}"
