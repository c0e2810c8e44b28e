"""What makes a session of a test cheap: tables here have some dozen rows, and plans are run once or twice.

Spark itself is the same. What users run, with its defaults, is run by the jobs that tests start as processes: in
test_jobs.py, chaos, kafka and the demo; on real logs, projections are compiled too (fixture `compiled`).
"""

from __future__ import annotations

JVM = "-XX:+UseSerialGC"
"""G1's own threads take a twelfth of the CPU time on two cores, for pauses that no test asks about."""

SETTINGS = {
    # Every task that reads the state of a Delta table writes the code of a projection to its hundreds of fields, only
    # to find it compiled already; such projections are interpreted. Whole stages are still compiled.
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.databricks.delta.snapshotPartitions": "1",
}
