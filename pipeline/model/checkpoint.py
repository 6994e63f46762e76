"""Networks to and from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from pipeline.errors import WeightsError
from pipeline.formats.checkpoint import CheckpointMeta, read_checkpoint, require_same_network, write_checkpoint
from pipeline.model.network import Network, build_model
from pipeline.model.sgsfa import CENTRES

_CLASSIFIER = ".classify.weight"


def save_checkpoint(path: Path, network: nn.Module, meta: CheckpointMeta) -> None:
    """Write a network as a checkpoint, atomically."""
    write_checkpoint(path, network.state_dict(), meta)


def load_checkpoint(path: Path) -> tuple[Network, CheckpointMeta]:
    """Read the network of a checkpoint, in evaluation mode, on the CPU.

    Raises:
        WeightsError: The file is not a checkpoint (`read_meta`), or its weights do not fit its header.
    """
    state, meta = read_checkpoint(path)
    network = build_model(meta.model, meta.num_classes)
    _check_tensors(path, network.state_dict(), state)
    network.load_state_dict(state)
    return network.eval(), meta


def start_from(path: Path, network: Network, meta: CheckpointMeta) -> CheckpointMeta:
    """Fill a network that is about to be trained with the weights of a checkpoint.

    Identity classifiers are copied only if the checkpoint was trained on the same identities. Which parts have masks
    (`SGSFA.trained_parts`) depends on the new data and is kept; centres are measured at the end of a training.

    Args:
        path: The checkpoint.
        network: What to fill.
        meta: Of the training to come: model, identities, data.

    Returns:
        The header of the checkpoint.

    Raises:
        WeightsError: As `load_checkpoint`, or the checkpoint is of another network.
    """
    state, started_from = read_checkpoint(path)
    require_same_network(path, started_from, meta.model)
    own = network.state_dict()
    kept = {"trained_parts", *CENTRES} & own.keys()
    if not started_from.same_identities(meta):
        kept |= {name for name in own if name.endswith(_CLASSIFIER)}
    _check_tensors(
        path,
        {name: value for name, value in own.items() if name not in kept},
        {name: value for name, value in state.items() if name not in {*kept, *CENTRES}},
    )
    network.load_state_dict({name: own[name] if name in kept else state[name] for name in own})
    return started_from


def _check_tensors(path: Path, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    different = sorted(own.keys() ^ state.keys()) or sorted(k for k in own if own[k].shape != state[k].shape)
    if different:
        raise WeightsError(
            f"the weights do not fit the checkpoint's header: {different[0]!r} differs",
            where=path,
            hint="the file was changed after it was written; train or fetch it again",
        )
