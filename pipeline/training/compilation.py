"""torch.compile for the work of a step; where it fails, a warning and the eager form."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Generic, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from pipeline.errors import library_message
from pipeline.model.output import NetworkOutput
from pipeline.runtime.device import Context, constant
from pipeline.runtime.memory import out_of_memory
from pipeline.training.gradient import running_statistics_kept
from pipeline.training.tree import tensors_of

_log = logging.getLogger("sgsfa.training")

P = ParamSpec("P")
R = TypeVar("R")


def compile_network(
    network: nn.Module, example: Tensor, precision: Context = nullcontext, *, pieces: int = 1
) -> nn.Module:
    """Return the compiled network, or the network itself, with a warning, where compiling fails.

    Compilation happens at the first call, so every kind of pass that steps make is tried; running statistics and
    gradients are restored.

    Args:
        network: In training mode.
        example: Images of the steps' size.
        precision: Context of the steps' forward passes. In another one the network would be compiled again.
        pieces: Forward passes per batch; more than one are preceded by passes without gradients, which are compiled
            separately.
    """
    before = {name: value.clone() for name, value in network.named_buffers()}
    chosen = network
    with _failure_only_warns("the network"):
        compiled = cast(nn.Module, _compile(network))
        with precision():
            output: NetworkOutput = compiled(example)
        output.global_feature.float().sum().backward()  # type: ignore[no-untyped-call]
        if pieces > 1:
            with torch.no_grad(), running_statistics_kept(compiled), precision():
                compiled(example)
        chosen = compiled
    with torch.no_grad():
        for name, value in network.named_buffers():
            value.copy_(before[name])
    network.zero_grad(set_to_none=True)
    return chosen


class Compiled(Generic[P, R]):
    """A function of tensors that is compiled at its first call; where that fails it stays eager, with a warning.

    Args:
        eager: The function. It changes none of its arguments.
        what: Its name in the warning.
    """

    def __init__(self, eager: Callable[P, R], what: str) -> None:
        self._eager, self._what = eager, what
        self._function: Callable[P, R] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function."""
        if self._function is None:
            self._function = self._eager
            with _failure_only_warns(self._what):
                self._function = self._compiled(*args, **kwargs)
        return self._function(*args, **kwargs)

    def _compiled(self, *args: P.args, **kwargs: P.kwargs) -> Callable[P, R]:
        """Return the compiled function after one forward and one backward pass."""
        compiled = cast(Callable[P, R], _compile(self._eager))
        results = [each for each in tensors_of(compiled(*args, **kwargs)) if each.requires_grad]
        inputs = [each for value in (*args, *kwargs.values()) for each in tensors_of(value) if each.requires_grad]
        if results:
            # Unlike `backward`, this leaves the gradients of the parameters alone.
            torch.autograd.grad(results, inputs, [torch.ones_like(each) for each in results], allow_unused=True)
        return compiled


def _compile(what: Callable[..., object]) -> Callable[..., object]:
    # Constants made within compiled code would be copied to the device at every call. Here rather than where they are
    # made, because this imports the compiler, which takes a second.
    torch.compiler.assume_constant_result(constant)  # type: ignore[no-untyped-call]
    # All batches of a run have one size; kernels for any size would be slower.
    return torch.compile(what, dynamic=False)


@contextmanager
def _failure_only_warns(what: str) -> Iterator[None]:
    """Continue without the compiler, whatever failed in it; without memory the steps would fail, too."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise
        _log.warning("torch.compile failed for %s, continuing without it: %s", what, library_message(error))
