from __future__ import annotations

import importlib
import sys

import pytest

import sgsfa_synth
from pipeline.errors import ConfigError


def test_import__without_numba_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ConfigError, match=r"sgsfa\[synth\]"):
        importlib.reload(sgsfa_synth)
