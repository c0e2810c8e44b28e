"""Files on a local disk: permissions as Hadoop sets them, without a process for each."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from py4j.java_gateway import is_instance_of
from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from foldin.local_files import set_permissions_by_java
from quick import environment


@pytest.fixture
def hadoop(spark: SparkSession) -> Any:
    return spark.sparkContext._jvm.org.apache.hadoop


def of_session(spark: SparkSession, hadoop: Any) -> Any:
    """The file system that a query of this session gets."""
    conf = spark._jsparkSession.sessionState().newHadoopConf()
    return hadoop.fs.FileSystem.get(spark.sparkContext._jvm.java.net.URI("file:///"), conf)


def plain(spark: SparkSession, hadoop: Any) -> Any:
    """Hadoop's own."""
    system = hadoop.fs.LocalFileSystem()
    system.initialize(spark.sparkContext._jvm.java.net.URI("file:///"), hadoop.conf.Configuration())
    return system


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_and_folders_have_the_permissions_that_hadoop_gives_them(
    spark: SparkSession, hadoop: Any, tmp_path: Path
) -> None:
    modes = {}
    for name, system in (("ours", of_session(spark, hadoop)), ("plain", plain(spark, hadoop))):
        folder, file = tmp_path / name / "a folder é", tmp_path / name / "a folder é" / "a file日"
        system.mkdirs(hadoop.fs.Path(str(folder)))
        system.create(hadoop.fs.Path(str(file))).close()
        crc = file.with_name(f".{file.name}.crc")
        modes[name] = [mode(folder), mode(file), mode(crc)]
        for octal in ("600", "640", "444", "755", "1777", "000"):  # the sticky bit: Java has no name for it
            system.setPermission(hadoop.fs.Path(str(file)), hadoop.fs.permission.FsPermission(octal))
            modes[name].append(mode(file))
    assert modes["ours"] == modes["plain"]
    assert modes["ours"][3:] == [0o600, 0o640, 0o444, 0o755, 0o1777, 0o000]


def test_what_is_not_there_has_no_permissions_to_set(spark: SparkSession, hadoop: Any, tmp_path: Path) -> None:
    path = hadoop.fs.Path(str(tmp_path / "nothing"))
    with pytest.raises(Py4JJavaError) as caught:
        of_session(spark, hadoop).setPermission(path, hadoop.fs.permission.FsPermission("644"))
    assert is_instance_of(spark.sparkContext._gateway, caught.value.java_exception, "java.io.IOException")


def test_a_linked_folder_is_listed_as_what_it_leads_to(spark: SparkSession, hadoop: Any, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.json").touch()
    (tmp_path / "link").symlink_to("there")
    listed = of_session(spark, hadoop).listStatus(hadoop.fs.Path(str(tmp_path / "link")))
    assert [status.getPath().getName() for status in listed] == ["a.json"]


def test_a_second_session_of_the_same_jvm_keeps_the_file_system(spark: SparkSession, hadoop: Any) -> None:
    before = of_session(spark, hadoop)
    assert before.getClass().getName() == "FoldinLocalFileSystem"
    set_permissions_by_java(spark.newSession())
    assert of_session(spark, hadoop).equals(before)


def test_a_write_starts_no_process(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.touch()
    (tmp_path / "bin").mkdir()
    chmod = tmp_path / "bin" / "chmod"
    chmod.write_text(f'#!/bin/sh\necho "$@" >>{seen}\nexec /bin/chmod "$@"\n')
    chmod.chmod(0o755)
    script = tmp_path / "write.py"
    script.write_text(
        "from pathlib import Path\n"
        "from foldin.config import load_config\n"
        "from foldin.session import build_session\n"
        "spark = build_session(load_config(sets=[\"spark.master='local[1]'\"]))\n"
        f"seen = Path({str(seen)!r})\n"
        "seen.write_text('')\n"
        f"spark.range(3).write.format('delta').save({str(tmp_path / 'table')!r})\n"
        "print(repr(seen.read_text()))\n"
    )
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=environment(PATH=path),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "table" / "_delta_log" / f"{0:020d}.json").is_file()
    assert done.stdout.splitlines()[-1] == "''"
