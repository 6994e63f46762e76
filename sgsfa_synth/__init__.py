"""Rendered, occluded identities with true masks, generated from a seed. Needs the extra `synth` (numba)."""

from importlib.util import find_spec

from pipeline.errors import ConfigError

if find_spec("numba") is None:
    raise ConfigError("rendering needs numba", hint="pip install 'sgsfa[synth]'")
