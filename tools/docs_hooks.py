"""MkDocs hooks: generate the command and the configuration reference from the program itself."""

from __future__ import annotations

import re
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from pipeline.config import RunConfig, Section, is_execution
from sgsfa_cli.main import app


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "reference/commands.md", content=command_reference()))
    files.append(File.generated(config, "reference/configuration.md", content=configuration_reference()))
    return files


def command_reference() -> str:
    """Return the Markdown of every command: usage, description, options, examples."""
    parts = [
        "# Commands",
        "Generated from `sgsfa --help`. Every command has `--help`; `--json`, which prints one JSON "
        "object on standard output; and `--quiet`.",
    ]
    parts += [_describe(path, context) for path, context in command_contexts()]
    return "\n\n".join(parts) + "\n"


def command_contexts() -> list[tuple[str, Any]]:
    """Return the full name and the context of every command that is not a group."""
    return _contexts(typer.Context(typer.main.get_command(app), info_name="sgsfa"))


def _contexts(context: Any) -> list[tuple[str, Any]]:
    found = []
    for name in context.command.list_commands(context):
        _, command, _ = context.command.resolve_command(context, [name])
        inner = typer.Context(command, info_name=name, parent=context)
        found += _contexts(inner) if hasattr(command, "list_commands") else [(inner.command_path, inner)]
    return found


def _describe(path: str, context: Any) -> str:
    command = context.command
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"## `{path}`", "", _paragraphs(command.help or ""), "", "```text", f"{path} {usage}", "```", ""]
    rows = [_row(parameter) for parameter in command.get_params(context)]
    lines += ["| option | meaning |", "| --- | --- |", *rows]
    examples = [line.strip().replace("\\[", "[") for line in (command.epilog or "").splitlines()[1:]]
    if examples:
        lines += ["", "```sh", *examples, "```"]
    return "\n".join(lines)


def _row(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        names = [parameter.metavar or parameter.human_readable_name]
    elif parameter.metavar:
        names[-1] += f" {parameter.metavar}"
    text = _cell(getattr(parameter, "help", None) or "")
    if getattr(parameter, "required", False) and parameter.param_type_name == "option":
        text += " Required."
    return f"| {', '.join(f'`{_cell(name)}`' for name in names)} | {text} |"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def configuration_reference() -> str:
    """Return the Markdown of every configuration section: key, default, meaning."""
    parts = [
        "# Configuration",
        "One TOML file, `sgsfa.toml` by default, holds the configuration of a run; `sgsfa init` writes one with "
        "all keys. Values resolve in this order: defaults, preset, file, `--set section.key=value`. Keys marked "
        "*execution* decide where and how fast work is done, not its result; changing them invalidates no artifact.",
    ]
    top = {name: info for name, info in RunConfig.model_fields.items() if not _section(info)}
    parts.append(_fields("Top level", top))
    for name, info in RunConfig.model_fields.items():
        section = _section(info)
        if section is not None:
            parts.append(_fields(f"`[{name}]`", section.model_fields, (section.__doc__ or "").splitlines()[0]))
    return "\n\n".join(parts) + "\n"


def _section(info: Any) -> type[Section] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _fields(title: str, fields: Any, text: str = "") -> str:
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for name, info in fields.items():
        mark = " *Execution.*" if is_execution(info) else ""
        default = info.get_default(call_default_factory=True)
        shown = "" if default is None else f"`{_cell(_toml(default))}`"
        rows.append(f"| `{name}` | {shown} | {_cell(info.description or '')}{mark} |")
    return "\n".join(filter(None, [f"## {title}", "", text, "" if text else None])) + "\n\n" + "\n".join(rows)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) or hasattr(value, "as_posix") else str(value)
