"""A mapping file: how the rows of a foreign log become events, and which of them do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from foldin.config import Config, Section, conf_dir, load_config, read_toml, validate
from foldin.errors import ConfigError

__all__ = ["EventFields", "Mapping", "QuarantineRule", "contract", "load_mapping", "load_settings"]


class EventFields(Section):
    """One SQL expression for each field of the event contract, over the file's own columns (strings)."""

    event_id: str | None = None
    """Absent: the id is the hash of the raw record."""
    user_id: str
    item_id: str
    event_type: str
    value: str | None = None
    event_time: str
    """Gives a timestamp, or null where the text is none."""


class QuarantineRule(Section):
    """Rows that are well-formed and yet not events."""

    reason: str = Field(min_length=1)
    where: str = Field(min_length=1)
    why: str = Field(min_length=1)


class Mapping(Section):
    """What `conf/datasets/*.toml` holds."""

    name: str
    format: Literal["json", "csv", "parquet"]
    files: str = "*"
    columns: tuple[str, ...] = Field(min_length=1)
    """The file's columns: all of them in order for CSV, those that the expressions use for JSON."""
    event: EventFields
    quarantine: tuple[QuarantineRule, ...] = ()
    settings: dict[str, Any] = {}
    """Overlay of the configuration that suits this log: event weights, mode, history."""


def contract(config: Config) -> Mapping:
    """The mapping of files that follow the event contract already."""
    return Mapping(
        name="event contract",
        format=config.ingest.format,
        files=config.ingest.files,
        columns=("event_id", "user_id", "item_id", "event_type", "value", "event_time"),
        event=EventFields(
            event_id="event_id",
            user_id="user_id",
            item_id="item_id",
            event_type="event_type",
            value="value",
            event_time="try_cast(event_time as timestamp)",
        ),
    )


def load_mapping(name_or_file: str | Path) -> Mapping:
    """A mapping by the name of a shipped one (`online_retail`) or by file.

    Raises:
        ConfigError: no such file, or it breaks a rule, which is named with the key and the value.
    """
    file = Path(name_or_file)
    shipped = conf_dir() / "datasets"
    if file.suffix != ".toml":
        file = shipped / f"{file.name}.toml"
        if not file.is_file():
            known = ", ".join(sorted(path.stem for path in shipped.glob("*.toml")))
            raise ConfigError(f"no mapping {str(name_or_file)!r}; known: {known}, or a path to a .toml file")
    return validate(Mapping, read_toml(file), source=str(file))


def load_settings(
    file: str | Path | None = None,
    sets: tuple[str, ...] | list[str] = (),
    mapping: str | Path | None = None,
) -> tuple[Config, Mapping]:
    """The configuration and the mapping that a job was asked for; the mapping's settings lie under `file` and `sets`."""
    if mapping is None:
        config = load_config(file, sets)
        return config, contract(config)
    chosen = load_mapping(mapping)
    return load_config(file, sets, settings=chosen.settings), chosen
