"""Write a report as one self-contained HTML file."""

from __future__ import annotations

from importlib import resources

import jinja2
import pydantic_core
from markupsafe import Markup

from pipeline.evaluation.report.model import Report

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


def _payload(report: Report) -> str:
    return pydantic_core.to_json(report, inf_nan_mode="null").decode().replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (resources.files(_ASSETS) / "assets" / name).read_text(encoding="utf-8")
