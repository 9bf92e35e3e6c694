"""The house: which room may import which, held by import-linter against what the modules really import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_TOP_MODULES = 14


def lint(root: Path) -> subprocess.CompletedProcess:
    program = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    return subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module", autouse=True)
def _linter():
    pytest.importorskip("importlinter", reason="the layer rule is held by import-linter")


def test_rooms_import_downwards_only():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept" in done.stdout


def test_an_import_upwards_is_found(tmp_path):
    """The contract can fail: the same rule on a house with one module out of order."""
    (tmp_path / "setup.cfg").write_text((ROOT / "setup.cfg").read_text())
    package = tmp_path / "audiotag"
    for path in (ROOT / "audiotag").rglob("*.py"):
        copy = package / path.relative_to(ROOT / "audiotag")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    with open(package / "errors.py", "a") as file:
        file.write("\nfrom .config import CheckpointConfig\n")
    done = lint(tmp_path)
    assert done.returncode == 1 and "audiotag.errors -> audiotag.config" in done.stdout


def test_no_circle_inside_a_room():
    """Modules of one room may import each other, never in a circle; imports inside functions count too."""
    graph = {}
    for path in (ROOT / "audiotag").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = parts[:-1]
        name = ".".join(package if parts[-1] == "__init__" else parts)
        found = set()
        tree = ast.parse(path.read_text())
        skipped = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
            for node in ast.walk(block)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level and id(node) not in skipped:
                base = package[: len(package) - node.level + 1]
                module = ".".join((*base, node.module) if node.module else base)
                found |= {f"{module}.{alias.name}" for alias in node.names} | ({module} if node.module else set())
        graph[name] = found
    graph = {name: sorted((found & graph.keys()) - {name}) for name, found in graph.items()}
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, " -> ".join([*open_[open_.index(name) :], name])
        if name not in done:
            open_.append(name)
            for other in graph[name]:
                visit(other)
            open_.pop()
            done.add(name)

    for name in graph:
        visit(name)


def test_the_top_level_stays_small():
    modules = [path for path in (ROOT / "audiotag").glob("*.py") if not path.name.startswith("__")]
    assert len(modules) <= MOST_TOP_MODULES, sorted(path.name for path in modules)


# What Python itself documents: named tuples, and leaving a process at once.
DOCUMENTED = {"_asdict", "_exit", "_fields", "_make", "_replace"}


def foreign_private_names(text):
    """Private names that a module imports, or reads of something that is neither `self` nor made here."""
    lines, tree = text.splitlines(), ast.parse(text)
    made = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    made |= {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and node.attr not in made:
            # argparse has no other names for the types of its parts
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "argparse")
            names = [] if own or "noqa: SLF001" in lines[node.lineno - 1] else [node.attr]
        else:
            continue
        found += [n for n in names if n.startswith("_") and not n.endswith("__") and n not in DOCUMENTED]
    return found


def test_no_module_reaches_into_anothers_private_names():
    assert foreign_private_names("from .tagger import _raised\nself._own = other._own + thing._theirs") == [
        "_raised",
        "_theirs",
    ]
    for path in (ROOT / "audiotag").rglob("*.py"):
        assert foreign_private_names(path.read_text()) == [], path
