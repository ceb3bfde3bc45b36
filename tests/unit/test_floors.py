"""The floors of the house: a module imports only from its own floor or lower ones, and dangerous imports are nowhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "genworker"

# Floor -> modules; ``name.*`` means the package with all that is in it, a plain name that module alone.
FLOORS: dict[int, tuple[str, ...]] = {
    0: ("errors", "printable", "windows"),
    1: ("schema", "config", "yaml_text", "registry", "placement", "device"),
    2: ("sources.*", "families.*", "codecs.*", "formats.*", "stores.*", "metrics.*"),
    3: (
        "bundle",
        "sampling.*",
        "bulk.plan",
        "bulk.layout",
        "bulk.records",
        "bulk.manifest",
        "bulk.shard_table",
        "bulk.receipt_table",
        "bulk.stages",
        "bulk.removal",
        "bulk.commit",
        "bulk.failures",
        "bulk.ledger",
        "bulk.vacancy",
        "bulk.protocol",
        "bulk.gc",
        "reading.*",
        "report",
        "report.sheet",
    ),
    4: (
        *(
            f"training.{name}"
            for name in (
                "loop",
                "step",
                "state",
                "rollback",
                "meter",
                "numbered",
                "record",
                "loader",
                "reader",
                "order",
                "block_order",
                "ema",
                "checkpoint",
                "collectives",
                "gradients",
                "spec",
                "watchdog",
                "watchdog_spec",
                "examine",
                "upload",
                "recorder",
                "hooks",
                "bill",
                "resume",
                "packing",
                "preflight",
                "room",
                "board",
            )
        ),
        "training.callbacks.*",
        "training.pictures",
        "training.evaluation",
        "training.best",
        "training.extractors",
        "training.log_likelihood",
        "training.reference",
        "report.names",
        "report.run",
        "report.lines",
        "report.reader",
        "report.panels",
        "report.plotting",
        "report.curves",
        "report.page",
        "doctor",
        "doctor.base",
        "doctor.machine",
        "doctor.storage",
        "submit",
        "submit.request",
        "works.*",
        "bulk.beside",
        "bulk.encoding",
        "bulk.shard",
        "bulk.attempts",
        "bulk.capacity",
        "bulk.members",
        "bulk.speculation",
        "bulk.tally",
        "bulk.progress",
        "bulk.summary",
        "bulk.request",
        "bulk.trials",
        "bulk.virtual",
        "bulk.schedule",
        "bulk.catalog",
        "bulk.retention",
        "lineage.*",
    ),
    5: (
        "training.trainer",
        "training.fit",
        "training.controller",
        "training.worker",
        "training.network",
        "training.evaluator",
        "bulk.actor",
        "bulk.losses",
        "bulk.pool",
        "bulk.metrics",
        "bulk.job",
        "cluster",
        "head",
        "doctor.cluster",
        "doctor.nodes",
        "submit.jobs",
    ),
    6: ("cli.*", "__main__"),
}
# The packages of floor 2 each know one big library; these are the only doors between them.
DOORS = {("formats", "codecs"), ("sources", "stores")}
# Packages whose __init__ holds a docstring and nothing else, because they span several floors.
HALLS = {"bulk", "training"}
RAY_FLOOR = 5
# Adapters to Ray's own libraries, which import them when they are called.
RAY_ADAPTERS = {"reading.ray_data"}
# Modules that make objects, and so run code, from bytes; the same as a part of another library, such as ray.cloudpickle.
UNSAFE_MODULES = {
    *("pickle", "cPickle", "_pickle", "pickle5", "cloudpickle", "dill", "jsonpickle", "marshal", "shelve", "joblib"),
    "runpy",
}
# What does so elsewhere, by its full name.
UNSAFE_NAMES = {
    *(
        f"torch.{name}"
        for name in ("load", "jit.load", "hub", "package", "serialization", "export.load", "compiler.load")
    ),
    *(f"yaml.{name}" for name in ("load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all")),
    *(f"yaml.{name}" for name in ("Loader", "FullLoader", "UnsafeLoader", "CLoader", "CFullLoader", "CUnsafeLoader")),
    *("eval", "exec", "compile", "__import__", "builtins", "numpy.load", "importlib.util", "importlib.machinery"),
}
# Names that mean this whatever they are taken from: pandas.read_pickle, a Series' to_pickle.
UNSAFE_METHODS = {"read_pickle", "to_pickle", "load_source", "exec_module"}
# They import by name, from tables of genworker's own modules alone.
IMPORTERS = {"registry", "stores"}
HEAVY = (
    "torch",
    "ray",
    "pyarrow",
    "boto3",
    "botocore",
    "numpy",
    "pydantic",
    "PIL",
    "imagecodecs",
    "yaml",
    "rich",
    "jinja2",
    "matplotlib",
    "openlineage",
)


class Import(NamedTuple):
    """One imported name, and where."""

    module: str  # the importing module below genworker, "" for genworker itself
    target: str  # dotted name
    line: int
    lazy: bool  # inside a function
    typing_only: bool  # under TYPE_CHECKING

    def __str__(self) -> str:
        return f"genworker/{self.module.replace('.', '/')}:{self.line} imports {self.target}"


def name_of(path: Path) -> str:
    """The dotted name below genworker of a file."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def floor_of(module: str) -> int | None:
    """The floor of a module below genworker, or None."""
    for floor, names in FLOORS.items():
        for name in names:
            package = name.removesuffix(".*")
            if module == package or (name.endswith(".*") and module.startswith(f"{package}.")):
                return floor
    return None


def imports_in(module: str, tree: ast.Module) -> list[Import]:
    """Every import of a module, wherever it stands, as the names that are bound."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool, typing_only: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(module, alias.name, node.lineno, lazy, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"genworker.{module}:{node.lineno}: relative import; write the whole name"
            found.extend(
                Import(module, f"{node.module}.{alias.name}", node.lineno, lazy, typing_only) for alias in node.names
            )
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, lazy, True)
            for child in node.orelse:
                visit(child, lazy, typing_only)
            return
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside, typing_only)

    visit(tree, False, False)
    return found


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(entry for module in MODULES for entry in imports_in(module, tree_of(module)))


def own_module(target: str) -> str | None:
    """The module below genworker that a dotted name leads to ("" for the package itself), or None for another package."""
    root, _, rest = target.partition(".")
    if root != "genworker":
        return None
    while rest and rest not in MODULES:
        rest = rest.rpartition(".")[0]  # the last part is a name inside a module
    return rest


def inner_imports() -> list[tuple[Import, str]]:
    """Imports of genworker by genworker, with the module that they lead to."""
    pairs = [(entry, own_module(entry.target)) for entry in all_imports()]
    return [(entry, target) for entry, target in pairs if target is not None]


def is_assigned(module: str) -> bool:
    return module == "" or module in HALLS or floor_of(module) is not None


def test_every_module_has_a_floor() -> None:
    """A new module has to be given a floor, in FLOORS above, before it can be imported by anybody."""
    homeless = [f"genworker.{module}" for module in MODULES if not is_assigned(module)]
    assert not homeless, f"no floor for {', '.join(homeless)}: add each to FLOORS in tests/unit/test_floors.py"


def test_every_name_in_the_table_is_a_module() -> None:
    """The table names no module that is gone."""
    named = {name.removesuffix(".*") for names in FLOORS.values() for name in names} | HALLS
    assert named <= MODULES.keys()


def test_imports_only_go_down() -> None:
    """A module imports from its own floor or lower ones, in functions and for type checkers too."""
    wrong = []
    for entry, target in inner_imports():
        upper, lower = floor_of(entry.module), floor_of(target)
        # The root is a facade for users: it may reach down lazily, and everyone may read its version.
        if upper is not None and lower is not None and lower > upper:
            wrong.append(f"{entry}: floor {upper} reaches up to floor {lower}")
    assert not wrong, "\n".join(wrong)


def test_nobody_uses_the_facade_but_for_its_version() -> None:
    """Inside the package, ``genworker`` itself is imported for ``__version__`` only, never for what it re-exports."""
    for entry, target in inner_imports():
        if target == "" and entry.module != "":
            if entry.target == "genworker":
                uses = [
                    node.attr
                    for node in ast.walk(tree_of(entry.module))
                    if isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "genworker"
                ]
                assert set(uses) <= {"__version__"}, str(entry)
            else:
                assert entry.target == "genworker.__version__", str(entry)


def test_the_facade_loads_only_the_ground_floor() -> None:
    """``import genworker`` runs whenever any module is imported, so at once it imports nothing but the errors."""
    eager = {
        target for entry, target in inner_imports() if entry.module == "" and not (entry.lazy or entry.typing_only)
    }
    assert eager == {"errors"}


@pytest.mark.parametrize("hall", sorted(HALLS))
def test_packages_that_span_floors_are_empty(hall: str) -> None:
    """The __init__ of a package whose modules stand on several floors imports nothing."""
    (only,) = tree_of(hall).body
    assert isinstance(only, ast.Expr), f"genworker/{hall}/__init__.py holds more than a docstring"


def test_packages_of_floor_two_keep_to_themselves() -> None:
    """Sources, families, codecs, formats, stores and metrics import each other only through the known doors."""
    wrong = []
    for entry, target in inner_imports():
        if floor_of(entry.module) == 2 == floor_of(target):
            pair = entry.module.split(".")[0], target.split(".")[0]
            if pair[0] != pair[1] and pair not in DOORS:
                wrong.append(f"{entry}: {pair[0]} may not know {pair[1]}")
    assert not wrong, "\n".join(wrong)


def test_only_floor_five_imports_ray() -> None:
    """Ray is known to the trainer, the pool, the job and the cluster, and to adapters in their functions."""
    wrong = [
        str(entry)
        for entry in all_imports()
        if entry.target.split(".")[0] == "ray"
        and floor_of(entry.module) != RAY_FLOOR
        and not (entry.module in RAY_ADAPTERS and entry.lazy)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_of_floor_five_imports_ray() -> None:
    """A module that does without Ray belongs on a lower floor, where more can be tested without it."""
    users = {entry.module for entry in all_imports() if entry.target.split(".")[0] == "ray"}
    assert {module for module in MODULES if floor_of(module) == RAY_FLOOR} <= users


def unsafe_uses(tree: ast.AST, *, may_import: bool = False) -> list[str]:
    """What a module imports or names that makes objects or code out of bytes or text, with the line."""
    full: dict[str, str] = {}  # what a name in the module stands for
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full |= {
                alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else "" for alias in node.names
            }
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            full |= names
            found += [(node.lineno, name) for name in names.values()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, dot, rest = ast.unparse(node).partition(".")
            found.append((node.lineno, (full.get(first) or first) + dot + rest))
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append((node.value.lineno, "allow_pickle"))
    unsafe = UNSAFE_NAMES | ({"allow_pickle"} if may_import else {"allow_pickle", "importlib.import_module"})
    return [
        f"{line}: {name}"
        for line, name in found
        if UNSAFE_MODULES.intersection(name.split(".")[:-1] if name.startswith("genworker.") else name.split("."))
        or name.rpartition(".")[2] in UNSAFE_METHODS
        or any(name == entry or name.startswith(entry + ".") for entry in unsafe)
    ]


def test_nothing_can_run_code_from_a_file() -> None:
    """No module imports pickle or its relatives, loads what they made, runs text, or imports by names from elsewhere."""
    wrong = [
        f"genworker.{module}:{use}"
        for module in MODULES
        for use in unsafe_uses(tree_of(module), may_import=module in IMPORTERS)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "from ray import cloudpickle",
        "import ray.cloudpickle",
        "import ray\nray.cloudpickle.loads(data)",
        "import joblib",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path)",
        "from torch import load",
        "import torch\ntorch.jit.load(path)",
        "from torch import jit\njit.load(path)",
        "from torch.jit import load as read",
        "import torch\ntorch.hub.load(name)",
        "import pandas as pd\npd.read_pickle(path)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import yaml\nyaml.full_load(text)",
        "import yaml\nyaml.load_all(text)",
        "from yaml import unsafe_load_all",
        "import yaml\nclass L(yaml.Loader): ...",
        "import numpy as np\nnp.load(path)",
        "read(path, allow_pickle=True)",
        "eval(text)",
        "run = exec",
        "import builtins\nbuiltins.exec(text)",
        "__import__(name)",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module",
        "import importlib.util",
        "import runpy",
    ],
)
def test_what_can_run_code_is_seen(code: str) -> None:
    """The check above finds each of these, under any name."""
    assert unsafe_uses(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "import safetensors.torch\nsafetensors.torch.load(data)",
        "import yaml\nyaml.safe_load(text)\nyaml.SafeLoader(text)",
        "import json\njson.load(file)",
        "import re\nre.compile(text)",
        "import torch\ntorch.compile(network)",
        "from importlib import metadata",
        "network.eval()",
        "read(path, allow_pickle=False)",
    ],
)
def test_what_cannot_run_code_is_let_be(code: str) -> None:
    """Nor does it cry wolf."""
    assert not unsafe_uses(ast.parse(code))


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after running ``code``."""
    script = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["generate", "-h"],
        ["evaluate", "--help"],
        ["demo", "--help"],
        ["runs", "-h"],
        ["report", "-h"],
    ],
)
def test_help_imports_no_heavy_library(args: list[str]) -> None:
    """Help and version come at once: none of the libraries that take long to load is loaded."""
    loaded = modules_after(f"from genworker.cli import cli\ncli({args!r}, standalone_mode=False)")
    assert loaded.isdisjoint(HEAVY), f"{args} loads {', '.join(loaded.intersection(HEAVY))}"


def test_importing_genworker_imports_no_heavy_library() -> None:
    """``import genworker`` is free; the libraries come with what is used."""
    assert modules_after("import genworker").isdisjoint(HEAVY)


def test_floors_below_five_load_without_ray() -> None:
    """What works without Ray does not load it, not even through somebody else."""
    below = [module for module in MODULES if (floor_of(module) or 0) < RAY_FLOOR] + ["cli.look"]
    imports = "; ".join(f"import genworker.{module}".rstrip(".") for module in below)
    assert "ray" not in modules_after(imports)


def test_the_board_of_a_run_is_a_small_process() -> None:
    """A run starts an actor for it, which would load what the networks need for nothing."""
    assert modules_after("import genworker.training.board").isdisjoint(HEAVY)
