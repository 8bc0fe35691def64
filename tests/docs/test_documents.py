"""README, docs/ and the cards say what is there: commands parse, files and modules exist, links lead somewhere.

The SQL of docs/queries.md is run by test_queries.py. What figures are true no test can know.
"""

import contextlib
import importlib.util
import io
import re
import shlex
from pathlib import Path

import pytest

from flows.cli import parser

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md"), *ROOT.glob("[ct]*/**/weights/*.md")]
)
TEXTS = {str(page.relative_to(ROOT)): page.read_text("utf-8") for page in PAGES}
# A page of history names options and files that are gone, and says so.
CURRENT = {name: text for name, text in TEXTS.items() if name != "docs/experiments.md"}
each_page = pytest.mark.parametrize("name", CURRENT)


def code_of(text: str) -> list[str]:
    """Lines of indented or fenced blocks and the contents of code spans, without comments."""
    fenced = re.findall(r"^```(?!sql|python)\w*\n(.*?)^```", text, re.S | re.M)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    indented = [line[4:] for line in prose.splitlines() if line.startswith("    ")]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    lines = [line for block in fenced for line in block.splitlines()] + indented + spans
    return [line.split("  #")[0].strip() for line in lines]


def commands(text: str, start: str) -> list[str]:
    """Code lines that begin with `start` and are whole: no ellipsis, no placeholder for the subcommand."""
    return [line for line in code_of(text) if line.startswith(start) and "…" not in line and "COMMAND" not in line]


def test_there_is_something_to_check():
    assert {"README.md", "CONTRIBUTING.md", "docs/operations.md", "docs/measurements.md"} <= set(CURRENT)
    assert len(commands(TEXTS["README.md"], "nightpress ")) >= 6
    assert len(commands(TEXTS["docs/measurements.md"], "python tests/bench/")) >= 6


@each_page
def test_nightpress_commands_parse(name):
    for line in commands(CURRENT[name], "nightpress "):
        words = shlex.split(re.sub(r"\[(.*?)\]", r"\1", line).replace(" N", " 1"))[1:]
        if words[0].startswith("-") or len(words) == 1 and words[0] != "demo":
            continue  # a command's name alone
        messages = io.StringIO()
        with contextlib.redirect_stderr(messages):
            try:
                parser().parse_args(words)
            except SystemExit:
                pytest.fail(f"{name}: `{line}`: {messages.getvalue().splitlines()[-1]}")


@each_page
def test_scripts_and_modules_are_there(name):
    text = CURRENT[name]
    for line in commands(text, "python tests/"):
        script, options = ROOT / line.split()[1], re.findall(r"(?<!\w)--[a-z-]+", line)
        assert script.exists(), f"{name}: `{line}`"
        missing = [option for option in options if f'"{option}"' not in script.read_text("utf-8")]
        assert not missing, f"{name}: `{line}`: {script.name} has no {', '.join(missing)}"
    for line in commands(text, "python -m "):
        assert importlib.util.find_spec(line.split()[2]), f"{name}: `{line}`"
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for line in commands(text, "make "):
        assert re.search(rf"^{line.split()[1]}:", makefile, re.M), f"{name}: `{line}`"


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXTS[name]):
        if "://" not in target:
            assert (folder / target).exists(), f"{name} links to {target}"


@each_page
def test_extras_exist(name):
    declared = (ROOT / "pyproject.toml").read_text("utf-8")
    for extra in re.findall(r"nightpress\[([a-z,]+)\]", CURRENT[name]):
        assert all(re.search(rf"^{part} = \[", declared, re.M) for part in extra.split(",")), f"{name}: {extra}"


def test_the_readme_s_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", TEXTS["README.md"], re.S)
    assert len(blocks) >= 2
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile("\n".join(blocks), "README.md", "exec"), {})  # the blocks build on each other
    first, second = said.getvalue().splitlines()
    assert first.startswith("320 ")
    assert second.endswith("(640, 480)")


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 130


def modules_named(text: str) -> set[str]:
    """Paths that the tables of docs/architecture.md name; a bold row `**folder/**` says where its rows' files lie."""
    found, room, folder = set(), None, ""
    for line in text.splitlines():
        if heading := re.match(r"## (flows|tasks|codec)/", line):
            room, folder = heading[1], ""
        elif line.startswith("## "):
            room = None
        elif room and (inner := re.match(r"\| \*\*([\w/]+)/\*\*", line)):
            folder = inner[1] + "/"
        elif room and line.startswith("| `"):
            cell = line.split("|")[1]
            found |= {f"{room}/{folder}{file}" for file in re.findall(r"`(\w+\.py)`", cell)}
            found |= {f"{room}/{inner}" for inner in re.findall(r"`(\w+/)`", cell)}
    return found


def test_the_map_names_every_module():
    named = modules_named(TEXTS["docs/architecture.md"])
    folders = {name for name in named if name.endswith("/")}
    there = {
        str(path.relative_to(ROOT))
        for room in ("flows", "tasks", "codec")
        for path in (ROOT / room).rglob("*.py")
        if path.name != "__init__.py"
    }
    there = {name for name in there if not any(name.startswith(folder) for folder in folders)} | folders
    assert not named - there, f"named in docs/architecture.md and not there: {sorted(named - there)}"
    assert not there - named, f"not in docs/architecture.md: {sorted(there - named)}"
