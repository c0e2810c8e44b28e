"""What makes a session of a test cheap: tables here have some dozen rows, and plans are run once or twice.

Spark itself is the same. What users run, with its defaults, is run by the jobs that tests start as processes: in
test_jobs.py, chaos, kafka and the demo; on real logs, projections are compiled too (fixture `compiled`).
"""

from __future__ import annotations

import os
from pathlib import Path

JVM = "-XX:+UseSerialGC"
"""G1's own threads take a twelfth of the CPU time on two cores, for pauses that no test asks about."""

SHORT_JVM = f"{JVM} -XX:TieredStopAtLevel=1"
"""A JVM that lives for a minute or two: quick to start rather than quick later."""

SETTINGS = {
    # Every task that reads the state of a Delta table writes the code of a projection to its hundreds of fields, only
    # to find it compiled already; such projections are interpreted. Whole stages are still compiled.
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.databricks.delta.snapshotPartitions": "1",
}


def environment(**more: str) -> dict[str, str]:
    """As after a plain login that knows where foldin is: neither this process's Spark nor its threads, nor settings."""
    ours = ("PYSPARK_", "SPARK_", "AIRFLOW", "FOLDIN_", "PYTEST_", "JDK_JAVA_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours) and "_NUM_THREADS" not in k}
    return kept | {"PYTHONPATH": str(Path(__file__).parents[1] / "lib")} | more
