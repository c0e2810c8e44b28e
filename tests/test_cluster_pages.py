"""The pages of conf/cluster: what they name exists, what they quote is what is printed now."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import zipfile
from functools import cache
from pathlib import Path

import pyspark
import pytest

from foldin.__main__ import main
from foldin.config import load_config, read_toml
from foldin.session import _REQUIRED

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "conf" / "cluster").glob("*.md"))
PROPERTIES = ROOT / "conf" / "cluster" / "foldin.properties"
JOBS = ("evaluate", "fold_in", "ingest", "maintain", "recommend", "train")

# Families of settings that are completed by a name of one's own.
FAMILIES = (
    "spark.executorEnv.",
    "spark.yarn.appMasterEnv.",
    "spark.kubernetes.executor.secretKeyRef.",
    "spark.kubernetes.executor.volumes.persistentVolumeClaim.",
)
# Delta's JARs and Databricks' are not among pyspark's; these two are assembled at run time.
UNCHECKED = ("spark.databricks.", "spark.kubernetes.authenticate.")
NOT_SETTINGS = {"spark.readStream", "spark.app_name", "spark.yarn.app.container.log.dir"}


@pytest.fixture(params=PAGES, ids=lambda page: page.stem)
def page(request: pytest.FixtureRequest) -> str:
    return str(request.param.read_text(encoding="utf-8"))


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


@cache
def _options(job: str) -> frozenset[str]:
    """The options that `jobs/JOB.py --help` shows."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(printed):
        patched.setattr("sys.argv", [f"{job}.py", "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    assert ended.value.code == 0
    return frozenset(re.findall(r"(?<!\w)--[a-z][a-z-]*", printed.getvalue()))


def _commands(page: str) -> list[tuple[str, list[str]]]:
    """(job, words after it) of every command that runs one, in a table or in a block."""
    text = page.replace("\\\n", " ")
    found = re.findall(r"(?:\bfoldin(?:_in_cluster)?|\brun) (\w+) \"?\d+\"?([^`\n|]*)", text)
    found += re.findall(r"jobs/(\w+)\.py`?,?(?: parameters `)?([^`\n|]*)", text)
    return [(job, rest.split()) for job, rest in found]


def test_there_is_a_page_for_each_kind_of_cluster() -> None:
    assert [page.stem for page in PAGES] == ["databricks", "kubernetes", "standalone", "yarn"]


def test_every_job_has_its_command_and_every_command_its_job(page: str) -> None:
    commands = _commands(page)
    named = {job for job, _ in commands}
    assert named <= set(JOBS)
    for job in JOBS:
        assert re.search(rf"^\|[^\n]*\b{job}\b", page, re.MULTILINE), f"{job} stands in no table"


def test_every_option_of_a_command_is_one_of_its_job(page: str) -> None:
    for job, words in _commands(page):
        for word in words:
            if word.startswith("--"):
                option = word.strip("()`,;\"'").partition("=")[0]
                assert option in _options(job), f"{job} has no {option}"


def test_every_setting_that_is_set_exists(page: str) -> None:
    for text in re.findall(r"--set [\"']?(\w+\.\w+=[^\s\"'`]+)", page):
        load_config(sets=[text])


def test_every_setting_that_is_named_exists(page: str) -> None:
    known = read_toml(ROOT / "conf" / "local.toml")
    sections = "|".join(known)
    for section, key in re.findall(rf"`({sections})\.(\w+)\b(?: = [^`]*)?`", page):
        if section != "spark" and not key.endswith("py"):
            assert key in known[section], f"{section}.{key}"


def test_every_toml_block_is_a_configuration(page: str, tmp_path: Path) -> None:
    blocks = _blocks(page, "toml")
    assert blocks
    for block in blocks:
        file = tmp_path / "foldin.toml"
        file.write_text(block, encoding="utf-8")
        assert "://" in load_config(file).tables.root, "a cluster's tables lie where every host sees them"


def test_what_the_sizing_command_is_quoted_with_is_what_it_prints(
    page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    quoted = _blocks(page, "console")
    assert quoted
    for block in quoted:
        command, _, output = block.partition("\n")
        words = shlex.split(command.removeprefix("$ "))
        assert words[:3] == [".venv/bin/python", "-m", "foldin"]
        assert main(words[3:]) == 0
        assert output == capsys.readouterr().out


def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page):
        assert (ROOT / "conf" / "cluster" / target).exists(), target


@cache
def _constants() -> bytes:
    """The text of the classes of Spark that define settings."""
    texts = []
    jars = Path(pyspark.__file__).parent / "jars"
    for name in ("core", "catalyst", "sql", "sql-api", "yarn", "kubernetes", "common-utils"):
        (jar,) = jars.glob(f"spark-{name}_*.jar")
        with zipfile.ZipFile(jar) as opened:
            for entry in opened.namelist():
                if re.search(r"(config|Conf|Config|Options|Worker|Logger|Appender)[\w$./]*\.class$", entry):
                    texts.append(opened.read(entry))
    return b"\0".join(texts)


def _keys(text: str) -> set[str]:
    found = {key.rstrip(".") for key in re.findall(r"(?<![\w./])spark(?:\.[A-Za-z][\w-]*)+", text)}
    return found - NOT_SETTINGS


def _assert_known(keys: set[str]) -> None:
    assert keys
    for key in sorted(keys):
        if not key.startswith((*UNCHECKED, *FAMILIES)):
            # Whole: a constant of a class ends with a byte that is no letter.
            whole = re.escape(key.encode()) + rb"(?![\w.-])"
            assert re.search(whole, _constants()), f"{key} is no setting of Spark {pyspark.__version__}"


def test_every_setting_of_spark_that_a_page_names_is_in_sparks_own_classes(page: str) -> None:
    _assert_known(_keys(page))


def _properties(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    pairs = [(key, value.strip()) for key, _, value in (line.partition(" ") for line in lines)]
    assert all(value for _, value in pairs)
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)


def test_the_properties_are_settings_of_spark_and_none_that_foldin_sets_itself() -> None:
    text = PROPERTIES.read_text(encoding="utf-8")
    found = _properties(text)
    _assert_known(set(found))
    assert not set(found) & set(_REQUIRED)
    blocks = re.split(r"\n\n", text)
    for block in blocks:
        if _properties(block):
            assert block.startswith("# "), f"no reason beside {block!r}"


def test_the_sized_properties_are_settings_of_spark_and_go_well_below_those_of_the_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    load = ["--events-per-second", "5000", "--users", "3000000", "--items", "400000", "--rank", "96"]
    assert main(["size", *load, "--conf", "properties"]) == 0
    sized = _properties(capsys.readouterr().out)
    _assert_known(set(sized))
    assert not set(sized) & set(_properties(PROPERTIES.read_text(encoding="utf-8")))
    assert all(re.fullmatch(r"[1-9]\d*[gm]?", value) for value in sized.values())
