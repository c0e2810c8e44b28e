"""A mapping file: how the rows of a foreign log become events, and which of them do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from foldin.config import Config, Section, load_config, read_toml, shipped_mappings, validate
from foldin.errors import ConfigError

__all__ = ["RESERVED", "EventFields", "Mapping", "QuarantineRule", "contract", "load_mapping", "load_settings"]

RESERVED = ("raw", "source_file", "record", "framed", "verdict", "_corrupt", "_hash", "_nested", "_event")
"""Columns that stand beside the file's own while its rows are judged."""


class EventFields(Section):
    """One SQL expression for each field of the event contract, over the file's own columns (strings).

    Each must give the same for the same row, whenever it is asked: an event_id that is drawn by lot would make
    a replayed row another event.
    """

    event_id: str | None = None
    """Absent: the id is the hash of the raw record."""
    user_id: str
    item_id: str
    event_type: str
    value: str | None = None
    event_time: str
    """Gives a timestamp, or text that reads as one, or null where there is none."""


class QuarantineRule(Section):
    """Rows that are well-formed and yet not events."""

    reason: str = Field(min_length=1)
    where: str = Field(min_length=1)
    why: str = Field(min_length=1)


class Mapping(Section):
    """What `conf/datasets/*.toml` holds."""

    name: str
    format: Literal["json", "csv", "parquet"]
    files: str = Field("*", min_length=1)
    columns: tuple[str, ...] = Field(min_length=1, strict=False)
    """The file's columns: all of them in order for CSV, those that the expressions use for JSON and Parquet."""
    event: EventFields
    quarantine: tuple[QuarantineRule, ...] = Field((), strict=False)
    settings: dict[str, Any] = Field(default_factory=dict)
    """Overlay of the configuration that suits this log: event weights, mode, history."""

    @field_validator("columns")
    @classmethod
    def _distinct(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        taken = set(RESERVED)
        for column in columns:
            if column.lower() in RESERVED:
                raise ValueError(
                    f"{column!r} is a name that foldin needs itself; not to be used: {', '.join(RESERVED)}"
                )
            if column.lower() in taken:
                raise ValueError(f"{column!r} occurs twice (case does not count)")
            taken.add(column.lower())
        return columns

    def expressions(self) -> dict[str, str]:
        """Every SQL expression of the file by its key."""
        fields = {f"event.{name}": text for name, text in self.event.model_dump(exclude_none=True).items()}
        return fields | {f"quarantine.{n}.where": rule.where for n, rule in enumerate(self.quarantine)}


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
            event_time="event_time",
        ),
    )


def load_mapping(name_or_file: str | Path) -> Mapping:
    """A mapping by the name of a shipped one (`online_retail`) or by file.

    Raises:
        ConfigError: no such file, or it breaks a rule, which is named with the key and the value.
    """
    name, shipped = str(name_or_file), shipped_mappings()
    if not name.endswith(".toml") and name not in shipped:
        raise ConfigError(f"no mapping {name!r}; known: {', '.join(shipped)}, or a path to a .toml file")
    return validate(Mapping, read_toml(shipped.get(name, Path(name))), source=str(shipped.get(name, name)))


def load_settings(
    file: str | Path | None = None,
    sets: tuple[str, ...] | list[str] = (),
    mapping: str | Path | None = None,
) -> tuple[Config, Mapping]:
    """The configuration and the mapping that a job was asked for: `file` and `sets` overlay the mapping's settings."""
    if mapping is None:
        config = load_config(file, sets)
        return config, contract(config)
    chosen = load_mapping(mapping)
    source = f"[settings] of the mapping {mapping}"
    return load_config(file, sets, settings=chosen.settings, settings_source=source), chosen
