"""What lands: lines by the event contract, files in the landing folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foldin.config import Config


def event(event_id: str | None, user: str = "u", item: str = "i", **change: Any) -> str:
    """One line of JSON."""
    row = {"user_id": user, "item_id": item, "event_type": "view", "event_time": "2024-05-01 10:00:00"}
    return json.dumps(({"event_id": event_id} if event_id is not None else {}) | row | change)


def land(config: Config, name: str, *lines: str) -> Path:
    """A file of these lines in the landing folder."""
    file = Path(config.ingest.landing, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file
