"""Files on a local disk without a process each: Hadoop's own file system, but for how it sets permissions.

Without its native library, which pyspark does not bring, Hadoop starts `chmod` three times for each file that it makes:
10 ms a file, 25 to 35 on a busy machine, and a micro-batch of ingest and fold-in makes some twenty. Java has had a call
for it since version 7. Hadoop takes a subclass by its name alone, so this one is compiled when the session starts, by
the compiler that Spark compiles its queries with.
"""

from __future__ import annotations

from typing import Any

from pyspark.sql import SparkSession

__all__ = ["set_permissions_by_java"]

_NAME = "FoldinLocalFileSystem"
_JAVA = f"""
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.attribute.PosixFilePermissions;
import org.apache.hadoop.fs.LocalFileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.RawLocalFileSystem;
import org.apache.hadoop.fs.permission.FsPermission;

public class {_NAME} extends LocalFileSystem {{
    public {_NAME}() {{
        super(new Raw());
    }}

    public static class Raw extends RawLocalFileSystem {{
        public void setPermission(Path path, FsPermission permission) throws IOException {{
            if (!permission.getStickyBit()) {{
                try {{
                    Files.setPosixFilePermissions(
                        pathToFile(path).toPath(), PosixFilePermissions.fromString(permission.toString()));
                    return;
                }} catch (RuntimeException error) {{
                    // A disk without such permissions, or a name that Java cannot encode: as it was.
                }}
            }}
            super.setPermission(path, permission);
        }}
    }}
}}
"""


def set_permissions_by_java(spark: SparkSession) -> None:
    """Let this session's JVM write to "file:" without processes, unless `fs.file.impl` says what it should do.

    Hadoop keeps one file system a scheme and user, whatever the settings of those who ask for it later. So the session
    has no setting that names a class which another class loader would not find.
    """
    jvm: Any = spark.sparkContext._jvm
    hadoop = jvm.org.apache.hadoop
    conf = hadoop.conf.Configuration(spark.sparkContext._jsc.hadoopConfiguration())
    root = jvm.java.net.URI("file:///")
    kept = hadoop.fs.FileSystem.get(root, conf)
    if conf.get("fs.file.impl") is not None or kept.getClass().getName() == _NAME:
        return
    compiler = jvm.org.codehaus.janino.SimpleCompiler()
    compiler.setParentClassLoader(conf.getClassLoader())
    compiler.cook(_JAVA)
    conf.setClassLoader(compiler.getClassLoader())
    conf.set("fs.file.impl", _NAME)
    kept.close()  # it is kept no longer; who has it goes on with it
    hadoop.fs.FileSystem.get(root, conf)
