"""torch.compile for what a step computes; where it fails, a message and the plain form."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Generic, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from pipeline.errors import first_line
from pipeline.model.output import NetworkOutput
from pipeline.runtime.device import Context, constant, memory_exhausted
from pipeline.runtime.progress import Progress
from pipeline.training.step import running_statistics_kept
from pipeline.training.tree import tensors_of

P = ParamSpec("P")
R = TypeVar("R")


def compile_network(
    model: nn.Module,
    example: Callable[[], Tensor],
    progress: Progress,
    precision: Context = nullcontext,
    *,
    pieces: int = 1,
) -> nn.Module:
    """`torch.compile` of the model, or the model itself with a message where compiling fails.

    Compiling happens at the first call, so all passes that steps make are tried; running statistics and gradients are
    put back.

    Args:
        model: In training mode.
        example: Makes images of the steps' size.
        progress: Where to report a failure.
        precision: Makes the context of the steps' forward passes. In another one the network would be compiled anew,
            and could fail then.
        pieces: Forwards that a batch is split into; more than one are preceded by passes without a graph, which are
            compiled for themselves.
    """
    before = {name: value.clone() for name, value in model.named_buffers()}
    made = model
    try:
        made = cast(nn.Module, _compile(model))
        with precision():
            output: NetworkOutput = made(example())
        output.global_feature.float().sum().backward()  # type: ignore[no-untyped-call]
        if pieces > 1:
            with torch.no_grad(), running_statistics_kept(made), precision():
                made(example())
    except Exception as error:
        # Any failure of the compiler, in whatever layer of it, leaves a model that works without; but a device that is
        # full for it is full for the steps.
        if memory_exhausted(error):
            raise
        _warn(error, "", progress)
        made = model
    with torch.no_grad():
        for name, value in model.named_buffers():
            value.copy_(before[name])
    model.zero_grad(set_to_none=True)
    return made


class Compiled(Generic[P, R]):
    """A function of tensors that is compiled at its first call, or goes on plain with a message where that fails.

    Args:
        plain: The function. It changes none of its arguments.
        what: Its name in the message.
        progress: Where to report a failure.
    """

    def __init__(self, plain: Callable[P, R], what: str, progress: Progress) -> None:
        self._plain, self._what, self._progress = plain, what, progress
        self._made: Callable[P, R] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function."""
        if self._made is None:
            self._made = self._tried(*args, **kwargs)
        return self._made(*args, **kwargs)

    def _tried(self, *args: P.args, **kwargs: P.kwargs) -> Callable[P, R]:
        """The compiled function, if it works forwards and backwards, else the plain one."""
        try:
            made = cast(Callable[P, R], _compile(self._plain))
            results = [each for each in tensors_of(made(*args, **kwargs)) if each.requires_grad]
            given = [each for value in (*args, *kwargs.values()) for each in tensors_of(value) if each.requires_grad]
            if results:
                # Not `backward`, which would add to the gradients that lie there.
                torch.autograd.grad(results, given, [torch.ones_like(each) for each in results], allow_unused=True)
        except Exception as error:
            if memory_exhausted(error):
                raise
            _warn(error, f" for {self._what}", self._progress)
            return self._plain
        return made


def _compile(what: Callable[..., object]) -> Callable[..., object]:
    # Made anew within compiled code, constants would be copied to the device at every call. Said here, because it
    # imports the compiler, which takes a second that only those should wait who compile.
    torch.compiler.assume_constant_result(constant)  # type: ignore[no-untyped-call]
    # All batches of a run are of one size; kernels for any size would be slower.
    return torch.compile(what, dynamic=False)


def _warn(error: Exception, where: str, progress: Progress) -> None:
    progress.warn(f"torch.compile failed{where}, going on without it: {first_line(error)}")
