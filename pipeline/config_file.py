"""Reading and writing configurations: TOML files, presets and overrides, with all their errors reported at once."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import tomlkit
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.config import RunConfig, Section, known_keys, section_of, suggestion
from pipeline.errors import ConfigError, combine

PRESETS = ("demo", "paper", "strong", "baseline", "finetune")

_Tables = list[tuple[str, dict[str, Any]]]
"""Where each table comes from, and the table."""


def load_config(path: Path | None = None, *, preset: str | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Resolve a configuration: defaults, then the preset, then the file, then the overrides.

    Args:
        path: A TOML file. It may name its own `preset` at the top; the argument `preset` wins over it.
        preset: One of `PRESETS`.
        overrides: `section.key=value` strings; the value is TOML, or else taken as a bare string.

    Raises:
        ConfigError: A file cannot be read, or keys are unknown or their values not valid; all of them are reported.
    """
    tables: _Tables = []
    if path is not None:
        table = read_toml(path, "configuration file")
        named = table.pop("preset", None)
        if named is not None and not isinstance(named, str):
            raise ConfigError(f"preset is not a name: {named!r}", where=path)
        preset = preset or named
        tables.append((str(path), table))
    if preset is not None:
        tables.insert(0, (f"preset {preset}", preset_table(preset)))
    errors: list[ConfigError] = []
    for text in overrides:
        try:
            tables.append((f"--set {text}", parse_override(text)))
        except ConfigError as error:
            errors.append(error)
    merged: dict[str, Any] = {}
    for origin, table in tables:
        errors += _remove_unknown(RunConfig, table, origin, "")
        _merge(merged, table)
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        errors += _invalid(error, tables)
    if errors:
        raise combine(errors, "errors in the configuration")
    return config


def read_toml(path: Path, what: str, *, hint: str | None = None) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.
        what: Its description for messages, as in `configuration file`.
        hint: What to do if it does not exist.

    Raises:
        ConfigError: The file is missing or is not TOML; the message names the line.
    """
    try:
        # Some editors on Windows write a byte order mark.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{what} not found", where=path, hint=hint) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{what} cannot be read: {error}", where=path) from error


def preset_table(name: str) -> dict[str, Any]:
    """Return the TOML table of a preset.

    Raises:
        ConfigError: There is no preset of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}", expected=" | ".join(PRESETS), hint=suggestion(name, PRESETS))
    text = (resources.files("pipeline") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def parse_override(text: str) -> dict[str, Any]:
    """Turn `a.b=value` into nested tables.

    Raises:
        ConfigError: There is no `=`, or a key is empty.
    """
    key, equals, raw = text.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not equals or not all(names):
        raise ConfigError(f"not an override: {text!r}", expected="section.key=value, as in train.epochs=60")
    try:
        value: Any = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    # What looks like a number or a date is text where text is expected, as in name=2024.
    if not isinstance(value, str | list | dict) and _expects_text(known_keys().get(".".join(names))):
        value = raw.strip()
    for name in reversed(names):
        value = {name: value}
    table: dict[str, Any] = value
    return table


def to_toml(config: RunConfig, *, comments: bool = False) -> str:
    """Return a configuration as TOML; with `comments`, each key below its meaning."""
    document = tomlkit.document()
    _write(document, config, comments)
    return tomlkit.dumps(document)


# Errors


def _remove_unknown(model: type[Section], table: dict[str, Any], origin: str, prefix: str) -> Iterator[ConfigError]:
    """Remove keys that are unknown, and values in the place of sections, so that all other keys can be validated."""
    for name in list(table):
        info = model.model_fields.get(name)
        if info is None:
            for key in _leaves(prefix + name, table.pop(name)):
                yield ConfigError(f"unknown key {key!r}", where=origin, hint=_nearest_key(key))
            continue
        section = section_of(info)
        if section is None:
            continue
        if isinstance(table[name], Mapping):
            yield from _remove_unknown(section, table[name], origin, f"{prefix}{name}.")
        else:
            value = table.pop(name)
            yield ConfigError(
                f"{name} = {value!r}: this is a section", where=origin, expected=f"a key of it, as in {name}.KEY"
            )


def _leaves(key: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping) or not value:
        yield key
        return
    for name, each in value.items():
        yield from _leaves(f"{key}.{name}", each)


def _nearest_key(key: str) -> str | None:
    """Return a suggestion: the same name in another section, a similar one in the same, or a similar key elsewhere."""
    known = list(known_keys())
    prefix, _, name = key.rpartition(".")
    elsewhere = {other.rpartition(".")[2]: other for other in known}
    if name in elsewhere:
        return f"did you mean {elsewhere[name]!r}?"
    same_section = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == prefix]
    if near := suggestion(name, same_section, f"{prefix}." if prefix else ""):
        return near
    if not same_section and (similar := difflib.get_close_matches(key, known, n=1, cutoff=0.7)):
        return f"did you mean {similar[0]!r}?"
    found = difflib.get_close_matches(name, elsewhere, n=1)
    return f"did you mean {elsewhere[found[0]]!r}?" if found else None


def _invalid(error: ValidationError, tables: _Tables) -> list[ConfigError]:
    found: dict[str, ConfigError] = {}
    for each in error.errors():
        # pydantic appends the branch of a union to the location; keys are at most two deep.
        names = [str(part) for part in each["loc"][:2]]
        key = ".".join(names)
        # Each branch of a union reports an error of its own.
        if key not in found:
            found[key] = _invalid_value(names, dict(each), tables)
    return list(found.values())


def _invalid_value(names: list[str], error: dict[str, Any], tables: _Tables) -> ConfigError:
    key, value = ".".join(names), error.get("input")
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    info = known_keys().get(key)
    if info is None:
        # Keys of a section that cannot be combined; the message names them.
        section = section_of(RunConfig.model_fields[names[0]])
        involved = [name for name in (section.model_fields if section else ()) if name in message.split()]
        origins = [_origin(tables, [*names, name]) for name in involved]
        return ConfigError(f"[{key}]: {message}", where=", ".join(dict.fromkeys(filter(None, origins))) or None)
    choices = [str(choice) for choice in get_args(info.annotation) if isinstance(choice, str)]
    # The messages of pydantic include what is expected; those of the schema may not.
    expected = None if message.startswith("should") else info.description
    if error["type"] == "tuple_type":
        expected = '["...", "..."]' if get_args(info.annotation)[0] is str else "[..., ...]"
    near = suggestion(value, choices) if choices and isinstance(value, str) else None
    return ConfigError(f"{key} = {value!r}: {message}", where=_origin(tables, names), expected=expected, hint=near)


def _origin(tables: _Tables, names: Sequence[str]) -> str | None:
    """Return which table has the last word on a key; None for a default."""
    return next((origin for origin, table in reversed(tables) if _has(table, names)), None)


def _has(table: Any, names: Sequence[str]) -> bool:
    for name in names:
        if not isinstance(table, Mapping) or name not in table:
            return False
        table = table[name]
    return True


# Tables


def _merge(into: dict[str, Any], table: Mapping[str, Any]) -> None:
    for name, value in table.items():
        if isinstance(value, Mapping) and isinstance(into.get(name, {}), dict):
            _merge(into.setdefault(name, {}), value)
        else:
            into[name] = value


def _expects_text(info: FieldInfo | None) -> bool:
    """Return whether a field takes text or a path, perhaps besides other types."""
    if info is None:
        return False
    union = get_origin(info.annotation) in (UnionType, Union)
    kinds = get_args(info.annotation) if union else (info.annotation,)
    plain = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds]
    return any(kind in (str, Path) for kind in plain)


def _write(table: Any, config: Section, comments: bool) -> None:
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Section):
            section = tomlkit.table()
            if comments and type(value).__doc__:
                section.comment(str(type(value).__doc__).splitlines()[0])
            _write(section, value, comments)
            table.add(name, section)
            continue
        if comments and info.description:
            table.add(tomlkit.comment(info.description))
        if value is not None:
            table.add(name, _toml_value(value))
        elif comments:
            table.add(tomlkit.comment(f"{name} = ..."))


def _toml_value(value: Any) -> Any:
    if isinstance(value, Path):
        return value.as_posix()
    return list(value) if isinstance(value, tuple) else value
