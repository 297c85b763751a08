"""Who may import whom: the table below, and nothing else. A new module needs a line in it."""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "actwam"

# module or package: what it may import of ours. "train.config" allows that file of `train` only.
LOWER = "types tokens flow draws objective model sampler data checkpoint policy policy_memory memory"
MIDDLE = f"{LOWER} heldout train serve sim world bench deploy recipes"
ALLOWED = {
    "types": "",
    "tokens": "types",
    "flow": "types",
    "draws": "",
    "objective": "types tokens flow draws",
    "model": "types tokens flow",
    "realtime": "types model",
    "sampler": "types tokens flow model realtime",
    "data": "types",
    "checkpoint": "types tokens model sampler data",
    "graphs": "",
    "recall": "types",
    "prepared": "types model",
    "instructions": "model",
    "policy_memory": "model checkpoint memory instructions",
    "policy": "types tokens flow graphs recall prepared instructions model realtime sampler data checkpoint memory",
    "memory": "types tokens model sampler",
    "fleet": "types prepared policy",
    "inverse": "types sampler data policy",
    "labels": "data policy inverse provenance",
    "heldout": "types data policy inverse world",
    "train": LOWER,
    "serve": "types data policy inverse",
    "sim": "types data",
    "world": "types tokens flow data policy",
    "remote": "types",
    "bench": "types tokens model sampler data checkpoint memory policy recipes train.config",
    "deploy": "types tokens model sampler data checkpoint policy",
    "recipes": f"{LOWER} train.config train.grow sim.robot",
    "provenance": "",
    "console": "",
    "doctor": "sim",
    "convert": f"{LOWER} recipes.gwp",
    "parity": f"{LOWER} recipes.gwp",
    "study": f"{MIDDLE} provenance labels",
    "sweep": f"{MIDDLE} provenance study.statistics",
    "report": f"{MIDDLE} provenance study",
    "demo": f"{MIDDLE} provenance report",
    "commands": f"{MIDDLE} remote provenance convert parity doctor report demo console inverse labels study sweep",
    "cli": "commands console",
}

# The core may be read, moved and compiled anywhere: beside the standard library it needs these only.
PURE = ("types", "tokens", "flow", "objective")
PURE_MAY_IMPORT = {"actwam", "einops", "jaxtyping", "numpy", "torch", *sys.stdlib_module_names}


def module_name(path: Path) -> str:
    """`.../src/actwam/sim/env.py` -> `actwam.sim.env`; a package's `__init__.py` has the package's name."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in MODULES.items()}


def imports_of(tree: ast.AST, module: str, is_package: bool = False) -> set[str]:
    """Full names of all modules that `tree` imports, inside functions too. `from a import b` gives `a.b`."""
    package = module if is_package else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def violations(module: str, imported: set[str]) -> list[str]:
    """What of ours `module` imports and may not."""
    unit = module.split(".")[1]
    allowed = (unit, *ALLOWED[unit].split())
    ours = {name.removeprefix("actwam.") for name in imported if name.startswith("actwam.")}
    return sorted(name for name in ours if not any(f"{name}.".startswith(f"{line}.") for line in allowed))


def executed_at_import(tree: ast.Module) -> ast.Module:
    """The statements that run when the module is imported: no function bodies, no `if TYPE_CHECKING`."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Strip().visit(ast.parse(ast.unparse(tree)))


def find_cycle(trees: dict[str, ast.Module]) -> list[str]:
    """One import cycle among these modules, [] when there is none."""
    graph = {}
    for module, tree in trees.items():
        is_package = any(name.startswith(f"{module}.") for name in trees)
        imported = imports_of(executed_at_import(tree), module, is_package)
        graph[module] = {
            known
            for known in trees
            if any(f"{name}.".startswith(f"{known}.") for name in imported) and not f"{module}.".startswith(f"{known}.")
        }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_has_a_place() -> None:
    units = {name.split(".")[1] for name in MODULES if "." in name}
    assert units <= set(ALLOWED), "give the new module a line in ALLOWED"


def test_the_table_itself_has_no_cycle() -> None:
    graph = {unit: {name.split(".")[0] for name in line.split()} for unit, line in ALLOWED.items()}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", [name for name in MODULES if "." in name])
def test_imports_point_down(module: str) -> None:
    is_package = MODULES[module].name == "__init__.py"
    assert violations(module, imports_of(TREES[module], module, is_package)) == []


def test_no_import_cycles() -> None:
    assert find_cycle(TREES) == []


@pytest.mark.parametrize("unit", [unit for unit in PURE if f"actwam.{unit}" in TREES])
def test_the_core_is_pure_torch(unit: str) -> None:
    roots = {name.split(".")[0] for name in imports_of(TREES[f"actwam.{unit}"], f"actwam.{unit}")}
    assert roots <= PURE_MAY_IMPORT


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_init_files_are_empty(path: Path) -> None:
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("module", "line", "expected"),
    [
        ("actwam.model.layers", "from actwam.data.episode import Episode", ["data.episode.Episode"]),
        ("actwam.model.layers", "from actwam import data", ["data"]),
        ("actwam.model.layers", "from ..data import episode", ["data.episode"]),
        ("actwam.model.layers", "def f():\n    import actwam.sim.env", ["sim.env"]),
        ("actwam.model.layers", "from .attention import attend", []),
        ("actwam.recipes.metaworld", "from actwam.train.config import StageConfig", []),
        ("actwam.recipes.metaworld", "from actwam.train.loop import fit", ["train.loop.fit"]),
        ("actwam.world.imagine", "from actwam.sim.env import Env", ["sim.env.Env"]),
        ("actwam.data.reader", "import numpy, actwam.types", []),
        ("actwam.flow", "from actwam.types import Batch", []),
    ],
)
def test_the_checker_sees(module: str, line: str, expected: list[str]) -> None:
    assert violations(module, imports_of(ast.parse(line), module)) == expected


def test_the_checker_finds_a_cycle() -> None:
    sources = {
        "actwam.a": "from actwam.b import f",
        "actwam.b": "from actwam.c import g",
        "actwam.c": "if TYPE_CHECKING:\n    import actwam.a\ndef late():\n    import actwam.a",
    }
    trees = {name: ast.parse(source) for name, source in sources.items()}
    assert find_cycle(trees) == []
    trees["actwam.c"] = ast.parse("import actwam.a")
    assert set(find_cycle(trees)) == set(sources)


CLIENT = Path(__file__).parents[1] / "packages" / "actwam-client" / "src" / "actwam_client"
CLIENT_MAY_IMPORT = {"actwam_client", "msgpack", "numpy", "websockets", *sys.stdlib_module_names}


def test_the_robots_side_needs_numpy_msgpack_and_websockets_alone() -> None:
    files = list(CLIENT.glob("*.py"))
    assert len(files) > 5
    for path in files:
        found = {name.split(".")[0] for name in imports_of(ast.parse(path.read_text()), "actwam_client.x")}
        assert found <= CLIENT_MAY_IMPORT, path.name
