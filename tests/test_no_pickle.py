"""No data from a table, a file or a source is run: nothing is unpickled or evaluated, and no shell is asked."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "jsonpickle", "torch"}
SUBMODULES = {"pyspark.cloudpickle", "pyspark.serializers"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "read_pickle",
    "to_pickle",
    "pickleFile",
    "saveAsPickleFile",
    # These give bytes of a file to Java's deserialisation.
    "objectFile",
    "sequenceFile",
    "newAPIHadoopFile",
    # These ask a shell.
    "system",
    "popen",
    "getoutput",
    "getstatusoutput",
}


def faults(source: str) -> Iterator[str]:
    """What of a program would run data, by line."""
    tree = ast.parse(source)
    of_ml = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyspark.ml")
        for alias in node.names
    }
    for node in ast.walk(tree):
        for fault in _faults_of(node, of_ml):
            yield f"line {node.lineno}: {fault}"  # type: ignore[attr-defined]


def _faults_of(node: ast.AST, of_ml: set[str]) -> Iterator[str]:
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    yield from (name for name in names if name.partition(".")[0] in MODULES or name in SUBMODULES)
    if not isinstance(node, ast.Call):
        return
    called = node.func
    name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
    owner = called.value if isinstance(called, ast.Attribute) else None
    if name in CALLS or (owner is None and name in BUILTINS):
        yield name
    if name in {"import_module", "find_spec"} and node.args and not isinstance(node.args[0], ast.Constant):
        yield f"{name} of a name that is computed"
    if name in {"load", "read"} and isinstance(owner, ast.Name) and owner.id in of_ml:
        yield f"{owner.id}.{name}"  # a saved model names the classes that its reader makes
    for keyword in node.keywords:
        said_no = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg in {"allow_pickle", "shell"} and not said_no:
            yield f"{name}({keyword.arg}=...)"


PROGRAMS = [*sorted((ROOT / "lib" / "foldin").rglob("*.py")), *sorted((ROOT / "jobs").glob("*.py"))]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_program_runs_data(program: Path) -> None:
    assert list(faults(program.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ("import pickle", "pickle"),
        ("import pickle as json", "pickle"),
        ("def f():\n    from joblib import load", "joblib"),
        ("from pyspark import cloudpickle", "pyspark.cloudpickle"),
        ("from pyspark.serializers import CPickleSerializer", "pyspark.serializers"),
        ("import yaml", "yaml"),
        ("eval(row['history'])", "eval"),
        ("exec(open(path).read())", "exec"),
        ("__import__(name)", "__import__"),
        ("import importlib\nimportlib.import_module(row['name'])", "import_module of a name that is computed"),
        ("pd.read_pickle(path)", "read_pickle"),
        ("np.load(path, allow_pickle=True)", "load(allow_pickle=...)"),
        ("np.load(path, allow_pickle=trusted)", "load(allow_pickle=...)"),
        ("spark.sparkContext.pickleFile(path)", "pickleFile"),
        ("rows.rdd.saveAsPickleFile(path)", "saveAsPickleFile"),
        ("sc.sequenceFile(path)", "sequenceFile"),
        ("from pyspark.ml.recommendation import ALSModel\nALSModel.load(path)", "ALSModel.load"),
        ("from pyspark.ml import PipelineModel as P\nP.read().load(path)", "P.read"),
        ("os.system('ls ' + folder)", "system"),
        ("subprocess.run(f'ls {folder}', shell=True)", "run(shell=...)"),
    ],
)
def test_what_is_planted_is_found(planted: str, found: str) -> None:
    (only,) = {fault.partition(": ")[2] for fault in faults(planted)} - {"joblib.load"}
    assert only.startswith(found)


@pytest.mark.parametrize(
    "harmless",
    ["np.load(path)", "np.load(path, allow_pickle=False)", "json.loads(text)", "re.compile(x)", "run(c, shell=False)"],
)
def test_what_only_looks_like_it_is_none(harmless: str) -> None:
    assert list(faults(harmless)) == []
