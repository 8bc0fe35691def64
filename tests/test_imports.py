"""The house's walls: flows -> tasks -> codec, no circle between modules or rooms, and planning that loads no torch."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("codec", "tasks", "flows")  # each may import itself and those before it


def module_files() -> dict[str, Path]:
    found = {}
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = module_files()


def imports(tree: ast.AST, module: str) -> Iterator[str]:
    """Modules of ours that a file imports, within functions too; what only type checkers read is left out."""
    checking = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name in FILES and name != module and id(node) not in checking)


GRAPH = {module: set(imports(ast.parse(path.read_text(encoding="utf-8")), module)) for module, path in FILES.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Nodes of a circle in the order of its edges, [] where there is none."""
    done, path = set(), []

    def visit(node: str) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        for following in sorted(edges.get(node, ())):
            if found := visit(following):
                return found
        done.add(path.pop())
        return []

    return next((found for node in sorted(edges) if (found := visit(node))), [])


def test_layers_import_downwards_only():
    for module, imported in GRAPH.items():
        allowed = LAYERS[: LAYERS.index(module.split(".")[0]) + 1]
        upwards = {name for name in imported if name.split(".")[0] not in allowed}
        assert not upwards, f"{module} imports {sorted(upwards)}, which stands above it"


def test_no_module_imports_itself_by_way_of_others():
    packages = {module for module, path in FILES.items() if path.name == "__init__.py"}
    edges = {module: imported - packages for module, imported in GRAPH.items()}
    assert not (found := circle(edges)), " -> ".join(found)


@pytest.mark.parametrize("layer", ["tasks", "codec"])
def test_rooms_form_no_circle(layer):
    def room(module: str) -> str | None:
        parts = module.split(".")
        return parts[1] if parts[0] == layer and len(parts) > 2 else None

    edges: dict[str, set[str]] = {}
    for module, imported in GRAPH.items():
        rooms = {room(name) for name in imported} - {None, room(module)}
        if room(module):
            edges.setdefault(room(module), set()).update(rooms)
    assert not (found := circle(edges)), " -> ".join(found)


def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


PLANNING = [
    "flows.cli", "flows.settings", "flows.commands.run", "flows.cluster", "flows.nightly", "flows.stages",
    "tasks.stores.open", "tasks.stores.inventory", "tasks.stores.lease", "tasks.night.budget",
    "tasks.night.catalog", "tasks.night.dry_run", "tasks.night.listing", "tasks.night.model_files",
    "tasks.night.plan", "tasks.night.keepers", "tasks.night.publish", "tasks.night.runs", "tasks.night.shards",
    "tasks.report.gallery", "tasks.report.page", "tasks.report.savings", "tasks.report.summary",
    "tasks.duplicates", "tasks.restoration", "codec",
]  # fmt: skip


def test_planning_loads_no_torch():
    """Listing, plan, catalog, budget, report: a night with nothing to do must not pay for networks."""
    code = (
        "import importlib, json, sys\n"
        "heavy = {}\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(name)\n"
        "    heavy[name] = 'torch' in sys.modules\n"
        "print(json.dumps(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(PLANNING)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loads = [name for name, torch in json.loads(done.stdout).items() if torch]
    assert not loads, f"torch is loaded by {loads[0]}"


def test_the_library_s_names_are_there_without_loading_more_than_they_need():
    code = (
        "import sys, tasks.duplicates, tasks.restoration\n"
        "assert 'numpy' not in sys.modules\n"
        "from tasks.duplicates import fingerprints, pairs_within\n"
        "from tasks.restoration import denoise, noise_sigma, upscale\n"
        "assert 'torch' not in sys.modules\n"
        "print(fingerprints([b'no picture'])[0]['error'][:1] != '')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout == "True\n", done.stderr
