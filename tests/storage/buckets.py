"""A bucket on the local S3 server, and the settings by which foldin's jobs find it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[2] / "conf" / "storage" / "s3.toml"
"""What README tells a user to begin with."""

KEYS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "s3cret-7d1f"}


@dataclass(frozen=True)
class Bucket:
    """A bucket of the local server."""

    name: str
    endpoint: str
    client: Any

    @property
    def uri(self) -> str:
        """As Hadoop names it."""
        return f"s3a://{self.name}"

    def put(self, key: str, text: str) -> None:
        """Write an object."""
        self.client.put_object(Bucket=self.name, Key=key, Body=text.encode())

    def objects(self, prefix: str = "") -> list[str]:
        """The names of all objects that begin so."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def settings(self) -> tuple[str, ...]:
        """What differs from the shipped configuration: where the bucket is."""
        return (f"tables.root={self.uri}/foldin", f"ingest.landing={self.uri}/landing", *of_endpoint(self.endpoint))


def of_endpoint(endpoint: str) -> tuple[str, ...]:
    """Settings by which a session finds the local server."""
    return (
        f"spark.conf.spark.hadoop.fs.s3a.endpoint='{endpoint}'",
        "spark.conf.spark.hadoop.fs.s3a.path.style.access=true",
    )
