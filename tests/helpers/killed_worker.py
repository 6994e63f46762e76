"""Trains in children of its own that are killed without warning; it stands apart so that they fork before any work.

    python killed_worker.py FOLDER KILLS

Leaves in FOLDER: `straight` (never disturbed), `killed` (SIGKILL so many times), `halves` (stopped after 5 of 10
epochs, then resumed), and `kills.json`: the step that each kill was aimed at.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.config import LossConfig, TrainConfig
from pipeline.datasets.records import Dataset
from pipeline.training import run as run_module
from pipeline.training import step as step_module
from pipeline.training.run import train
from pipeline.training.state import read_state
from pipeline.training.trainer import STATE_FILE
from tests.helpers.training import make_masks, make_people, small_model, small_training

EPOCHS = 10
STOP_AFTER = 10
"""Steps of five epochs: six identities, three a batch."""

INTERRUPTED = 9


def main() -> None:
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dataset = make_people(folder / "people")
    masks = make_masks(folder / "masks.h5", dataset)
    stream = random.Random(0)
    train_in_child = functools.partial(child, dataset=dataset, masks=masks)
    assert train_in_child(folder / "straight") == 0
    aimed: list[int] = []
    while len(aimed) < kills:
        # From the step that it resumes with: at once, a step or two later, or while it saves what it did.
        step = min(saved_step(folder / "killed") + stream.randint(0, 2), 2 * EPOCHS - 1)
        kill = Kill(step, signal.SIGKILL, after=stream.choice([0.0, stream.uniform(0, 0.05)]))
        status = train_in_child(folder / "killed", kill=kill, minutes=stream.choice([0, 0, 60]))
        assert os.WIFSIGNALED(status), "it ended before it was killed"
        aimed.append(step)
    assert train_in_child(folder / "killed") == 0
    assert train_in_child(folder / "halves", kill=Kill(STOP_AFTER - 1, signal.SIGTERM)) == INTERRUPTED << 8
    assert saved_step(folder / "halves") == STOP_AFTER
    assert train_in_child(folder / "halves") == 0
    (folder / "kills.json").write_text(json.dumps(aimed))


@dataclass(frozen=True)
class Kill:
    """A signal, so many seconds after a step has begun; nothing that the process does can put it off."""

    step: int
    number: signal.Signals
    after: float = 0.0


def child(out: Path, dataset: Dataset, masks: Path, kill: Kill | None = None, minutes: float = 60) -> int:
    """Train in a child; returns its status, as os.waitpid gives it."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        run_module.draw_curves = lambda metrics, out: None
        if kill is not None:
            arm(kill)
        config = small_training(epochs=EPOCHS, checkpoint_minutes=minutes)
        train(out, dataset=dataset, masks=masks, model=small_model(), loss=LossConfig(), config=config)
        os._exit(0)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def arm(kill: Kill) -> None:
    before = step_module.learning_rate
    waiting = [kill]

    def rate(step: int, per_epoch: int, config: TrainConfig) -> float:
        # Once: a second signal would end the run without saving, as a second Ctrl-C does.
        if step == kill.step and waiting:
            waiting.pop()
            if kill.after:
                threading.Timer(kill.after, os.kill, (os.getpid(), kill.number)).start()
            else:
                os.kill(os.getpid(), kill.number)
        return before(step, per_epoch, config)

    step_module.learning_rate = rate


def saved_step(out: Path) -> int:
    """The step at which a run would resume."""
    state = out / "state" / STATE_FILE
    return read_state(state).step if state.is_file() else 0


if __name__ == "__main__":
    main()
