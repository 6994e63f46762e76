"""Signals during a training; `test_resume` tests what they save."""

import os
import signal

from pipeline.training.interrupts import Interrupts


def test_interrupts__ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupts.requested
            os.kill(os.getpid(), signal.SIGUSR1)
            assert interrupts.requested
    finally:
        signal.signal(signal.SIGHUP, before)
