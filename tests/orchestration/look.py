"""A job that prints, as one line of JSON, what the tables hold that a night may change; or spoils the account."""

from __future__ import annotations

import datetime as dt
import json
import sys

from pyspark.sql import functions as F

from foldin.cli import Job, parser, run_job
from foldin.reading import latest_recommendations
from foldin.registry import Registry
from foldin.schemas import EVENTS, INGEST_LOG, ITEM_FACTORS, MODELS, RECOMMENDATIONS, USER_FACTORS


def look(job: Job) -> None:
    tables = job.tables
    if job.options.miscount:
        row = ("somebody else's", 0, 7, 1, 1, 1, dt.datetime.now(dt.UTC))
        tables.append(tables.spark.createDataFrame([row], INGEST_LOG.schema), INGEST_LOG)
    promotion = Registry(tables).promotion()
    models = tables.read(MODELS).orderBy("at").select("model_version", "status", "events", "cut_version", "reason")
    lists = {}
    if promotion is not None:
        for row in latest_recommendations(tables).collect():
            lists[row["user_id"]] = [item["item_id"] for item in row["items"]]
    counted = (EVENTS, ITEM_FACTORS, USER_FACTORS, RECOMMENDATIONS)
    newest = tables.read(EVENTS).agg(F.unix_micros(F.max("ingested_at"))).first()
    found = {
        "active": promotion.model_version if promotion is not None else None,
        "models": [list(row) for row in models.collect()],
        "rows": {spec.name: tables.read(spec).count() for spec in counted},
        "lists": lists,
        "events_version": tables.version(EVENTS),
        "newest_us": newest[0] if newest is not None else None,
    }
    print("LOOK " + json.dumps(found, sort_keys=True))


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--miscount", action="store_true")
    sys.exit(run_job(look, options))
