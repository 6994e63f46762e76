"""Write a report as one self-contained HTML file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import jinja2
import pydantic_core
from markupsafe import Markup

from pipeline.evaluation.report.model import Report
from pipeline.runtime.files import atomic_write

_ASSETS = "pipeline.evaluation.report"


def render(report: Report) -> str:
    """Render the page.

    Text comes into the markup through Jinja's escaping only, and into the script as JSON without a `<`, so no name of
    a file can inject markup. A content security policy keeps the page from sending any request.
    """
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        _asset("report.html.jinja")
    )
    return template.render(
        report=report,
        css=Markup(_asset("report.css")),
        js=Markup(_asset("report.js")),
        chart_js=Markup(_asset("chart.umd.min.js")),
        payload=Markup(_payload(report)),
    )


def save(report: Report, path: Path) -> None:
    """Write the page, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(render(report), encoding="utf-8")


def _payload(report: Report) -> str:
    return pydantic_core.to_json(report, inf_nan_mode="null").decode().replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (resources.files(_ASSETS) / "assets" / name).read_text(encoding="utf-8")
