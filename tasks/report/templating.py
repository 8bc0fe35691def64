"""The Jinja2 environment of every page that Nightpress writes: templates/ with autoescape.

Keys and messages come from strangers, so nothing has to be remembered where they are shown: every text that a template
puts out has its control and bidirectional characters made visible (`words.readable`) and is then escaped. What is
markup already (charts, the page's own style and script) says so by being Markup.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks.report import words

TEMPLATES = Path(__file__).parent / "templates"


def _harmless(value):
    return words.readable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=_harmless,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {
        "size": words.size,
        "money": words.money,
        "clip": words.readable,
        "count": lambda n: f"{n:,}",
        "moment": words.moment,
        "days": words.days,
    }
    made.globals |= {"share": words.share, "number": words.number, "plural": words.plural}
    return made


def render(template: str, **values) -> str:
    """A page: the template with `style` and `script` of its looks inlined and a `policy` that lets nothing else run."""
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    return (
        environment()
        .get_template(template)
        .render(style=Markup(style), script=Markup(script), policy=Markup(policy), **values)
    )
