"""One frozen, validated configuration.

The embedded default (`conf/local.toml`) holds every value; a data set's mapping, a file and `--set`
overlay it, in this order. An error names the key, the value, the rule and the nearest known key.
"""

from __future__ import annotations

import copy
import difflib
import importlib.resources
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from foldin.errors import ConfigError
from foldin.kafka_options import check_options
from foldin.redaction import looks_secret, names_a_secret, shown
from foldin.secrets import check_place, check_spark_conf

__all__ = [
    "AlarmConfig",
    "Config",
    "EventsConfig",
    "FoldInConfig",
    "HistoryConfig",
    "IngestConfig",
    "KafkaConfig",
    "MaintainConfig",
    "MetricsConfig",
    "RecommendConfig",
    "Section",
    "SparkConfig",
    "TablesConfig",
    "TrainConfig",
    "byte_count",
    "conf_dir",
    "load_config",
    "read_toml",
    "shipped_mappings",
    "validate",
]

M = TypeVar("M", bound=BaseModel)
Place = Annotated[str, AfterValidator(check_place)]


class Section(BaseModel):
    """A table of the TOML file: frozen, an unknown key is an error, and nothing is guessed (true is not 1)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )


class TablesConfig(Section):
    root: Place = Field(min_length=1)
    """Folder or URI under which tables and checkpoints lie."""
    catalog: str = Field(pattern=r"^$|^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?$")
    """"catalog.schema" or "schema" for tables by name; empty for tables by path."""
    compact_every: int = Field(ge=0)
    """Micro-batches of a stream after which it merges the small files of the tables that it appends to; 0: never."""
    log_minutes: int = Field(ge=1, le=2 * 24 * 60)
    """Minutes of commits that the log of a table has at least, for streams of your own over foldin's tables."""


class EventsConfig(Section):
    weights: dict[str, float] = Field(min_length=1, max_length=127)
    """Weight of one event of each type in strength(user, item)."""
    value_required: tuple[str, ...] = Field(strict=False)
    """Event types that are quarantined without a value."""
    max_future_minutes: float = Field(ge=0, le=60 * 24 * 366 * 100, allow_inf_nan=False)
    """How far an event_time may lie ahead of the clock of ingest, in minutes."""

    @field_validator("weights")
    @classmethod
    def _finite(cls, weights: dict[str, float]) -> dict[str, float]:
        for event_type, weight in weights.items():
            if not -1e6 <= weight <= 1e6:
                raise ValueError(f"the weight of {event_type!r} must lie in [-1e6, 1e6]")
            if not event_type.strip():
                raise ValueError("an event type must not be blank")
        return weights

    @model_validator(mode="after")
    def _known(self) -> EventsConfig:
        unknown = [t for t in self.value_required if t not in self.weights]
        if unknown:
            raise ValueError(f"value_required names {unknown[0]!r}, which has no weight")
        return self


_BYTES = r"^[1-9][0-9]*[kmg]$"
_OTHERS_CHECKPOINTS = ("als", "fold_in", "push", "replay_quarantine")


def byte_count(text: str) -> int:
    """The number of bytes that a setting such as "256m" says."""
    return int(text[:-1]) << {"k": 10, "m": 20, "g": 30}[text[-1]]


class IngestConfig(Section):
    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    """Names the query and its checkpoint: several ingest jobs at once need one each."""
    source: Literal["files", "delta", "kafka"]
    landing: Place = Field(min_length=1)
    """Folder of files, for source = "files"."""
    table: Place
    """Path or name of a Delta table, for source = "delta"."""
    format: Literal["json", "csv", "parquet"]
    files: Place = Field(min_length=1)
    max_files_per_trigger: int = Field(ge=0)
    """Most files of one micro-batch; 0: as many as max_bytes_per_trigger allows."""
    max_bytes_per_trigger: str = Field(pattern=_BYTES)
    """Size of a micro-batch's files after which no further one is added."""
    trigger_seconds: float = Field(gt=0, allow_inf_nan=False)
    state_partitions: int = Field(ge=1, le=10_000)

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name in _OTHERS_CHECKPOINTS:
            raise ValueError("names a checkpoint of another job")
        return name


class KafkaConfig(Section):
    bootstrap_servers: str = Field(pattern=r"^([^\s,@]+:[0-9]+(,[^\s,@]+:[0-9]+)*)?$")
    topics: str = Field(pattern=r"^([A-Za-z0-9._-]+(,[A-Za-z0-9._-]+)*)?$")
    """Names of topics, with commas between them."""
    max_offsets_per_trigger: int = Field(ge=1)
    options: Annotated[dict[str, str], AfterValidator(check_options)]
    """Further settings of Kafka's consumer; "${env:NAME}" and "${file:/path}" are looked up when they are used."""

    @property
    def topic_names(self) -> tuple[str, ...]:
        """The topics one by one."""
        return tuple(self.topics.split(","))


class HistoryConfig(Section):
    max_events_per_user: int = Field(ge=1, le=100_000)
    """Bound of a history: the most recent events by (event_time, xxhash64(event_id))."""
    half_life_days: float = Field(gt=0)
    """Half-life of an event's weight in days, counted from the user's own latest event; inf: no decay."""
    retention_days: float = Field(gt=0)
    """Age in days, counted from the model's as_of, past which an event does not count; inf: none."""
    transform: Literal["identity", "log1p"]

    @field_validator("half_life_days", "retention_days")
    @classmethod
    def _not_nan(cls, days: float) -> float:
        if days != days:
            raise ValueError("must be a number of days or inf")
        return days


class TrainConfig(Section):
    mode: Literal["implicit", "explicit"]
    rank: int = Field(ge=1, le=1024)
    iterations: int = Field(ge=1, le=1000)
    reg_param: float = Field(ge=0, allow_inf_nan=False)
    alpha: float = Field(gt=0, allow_inf_nan=False)
    nonnegative: bool
    seed: int
    blocks: int = Field(ge=1, le=1000)
    adoption_minutes: float = Field(ge=0, allow_inf_nan=False)
    """For how long a training waits for the running stream to adopt its model; the stream goes on beyond it."""


class FoldInConfig(Section):
    trigger_seconds: float = Field(gt=0, allow_inf_nan=False)
    max_files_per_trigger: int = Field(ge=1)
    max_bytes_per_trigger: str = Field(pattern=_BYTES)
    state_partitions: int = Field(ge=1, le=10_000)
    lists: bool
    """Write lists beside the factors."""
    lease_seconds: float = Field(ge=3, le=3600)
    """Term of the lease on a checkpoint, of ingest and fold-in alike."""


class RecommendConfig(Section):
    top_n: int = Field(ge=1, le=10_000)


class MetricsConfig(Section):
    flush_seconds: float = Field(gt=0, allow_inf_nan=False)
    """A micro-batch's row reaches the table after this long at most; a commit a batch would slow the stream."""


class AlarmConfig(Section):
    lag_seconds: float = Field(gt=0)
    """How far the stream may be behind its source; inf: no alarm."""
    freshness_seconds: float = Field(gt=0)
    """What the p95 of freshness may be; inf: no alarm."""
    action: Literal["log", "exit"]

    @field_validator("lag_seconds", "freshness_seconds")
    @classmethod
    def _not_nan(cls, seconds: float) -> float:
        if seconds != seconds:
            raise ValueError("must be a number of seconds or inf")
        return seconds


class JudgeConfig(Section):
    holdout: float = Field(ge=0, lt=1)
    """Share of the events, the last by event_time, on which a candidate is judged before it serves; 0: it is not."""
    k: int = Field(ge=1, le=1000)
    """Length of the lists that are judged."""
    margin: float = Field(ge=0, le=1)
    """Share of NDCG by which a candidate may be worse than the active model, or than popularity."""
    least_users: int = Field(ge=1)
    """With fewer users who took something new nothing is said against a candidate."""


class SearchConfig(Section):
    trials: int = Field(ge=1, le=10_000)
    minutes: float = Field(gt=0)
    """A run begins no trial after so many minutes; what is left of the trials, the next run does."""
    parallel: int = Field(ge=1, le=64)
    rank: tuple[int, int] = Field(strict=False)
    reg_param: tuple[float, float] = Field(strict=False)
    alpha: tuple[float, float] = Field(strict=False)
    half_life_days: tuple[float, float] = Field(strict=False)
    weights: tuple[float, float] = Field(strict=False)
    """Share of the heaviest type's weight."""

    @field_validator("rank", "reg_param", "alpha", "half_life_days", "weights")
    @classmethod
    def _from_to(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if not 0 < ends[0] <= ends[1] < float("inf"):
            raise ValueError("must be [from, to] with 0 < from <= to < inf")
        return ends

    @field_validator("rank")
    @classmethod
    def _trainable(cls, ends: tuple[int, int]) -> tuple[int, int]:
        if ends[1] > 1024:
            raise ValueError("must be at most 1024, as train.rank")
        return ends


class MaintainConfig(Section):
    keep_models: int = Field(ge=1)
    """Versions that served last and are kept, the active one among them: what one can go back to."""
    metrics_days: int = Field(ge=1, le=36_500)
    """Days for which a row of `metrics` is kept."""


class SparkConfig(Section):
    app_name: str = Field(min_length=1)
    master: str = Field(min_length=1)
    conf: Annotated[dict[str, str], AfterValidator(check_spark_conf)]
    """Further settings of Spark; "${env:NAME}" and "${file:/path}" are looked up when the session is made."""

    @field_validator("conf", mode="before")
    @classmethod
    def _as_text(cls, conf: Any) -> Any:
        """Spark's settings are text; TOML's numbers and booleans become what Spark writes for them."""
        if not isinstance(conf, Mapping):
            return conf
        return {key: _spark_text(value) for key, value in conf.items()}


class Config(Section):
    """Everything that foldin can be told."""

    tables: TablesConfig
    events: EventsConfig
    ingest: IngestConfig
    kafka: KafkaConfig
    history: HistoryConfig
    train: TrainConfig
    fold_in: FoldInConfig
    recommend: RecommendConfig
    metrics: MetricsConfig
    alarm: AlarmConfig
    judge: JudgeConfig
    search: SearchConfig
    maintain: MaintainConfig
    spark: SparkConfig

    @model_validator(mode="after")
    def _source_is_said(self) -> Config:
        needed = {
            "delta": {"ingest.table": self.ingest.table.strip()},
            "kafka": {"kafka.bootstrap_servers": self.kafka.bootstrap_servers, "kafka.topics": self.kafka.topics},
        }
        missing = [key for key, value in needed.get(self.ingest.source, {}).items() if not value]
        if missing:
            raise ValueError(f"ingest.source = {self.ingest.source!r} needs {' and '.join(missing)}")
        return self


def conf_dir() -> Traversable:
    """The folder of the embedded configuration: inside the package (maybe a zipped wheel), or of the checkout."""
    packaged = importlib.resources.files("foldin") / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def shipped_mappings() -> dict[str, Traversable]:
    """The mapping files that come with foldin, by name."""
    files = sorted((conf_dir() / "datasets").iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".toml"): file for file in files if file.name.endswith(".toml")}


def load_config(
    file: str | Path | None = None,
    sets: Iterable[str] = (),
    *,
    settings: Mapping[str, Any] | None = None,
    settings_source: str = "settings",
) -> Config:
    """The embedded default, overlaid by `settings` (of a mapping file), `file` and `sets`.

    Args:
        file: a TOML file with the keys that differ.
        sets: "section.key=value" strings; the value is TOML, or else taken as a string.
        settings: an already parsed overlay, such as a mapping file's `[settings]`.
        settings_source: what an error in `settings` is said to come from.

    Raises:
        ConfigError: names the source, the key, the value, the rule and the nearest known key.
    """
    default = conf_dir() / "local.toml"
    layers: list[tuple[str, Mapping[str, Any]]] = [(str(default), read_toml(default))]
    if settings:
        layers.append((settings_source, settings))
    if file is not None:
        layers.append((str(file), read_toml(file)))
    data: dict[str, Any] = {}
    for _, layer in layers:
        _overlay(data, layer)
    for text in sets:
        layers.append(("--set", _apply_set(data, text)))
    return validate(Config, data, source="configuration", layers=layers)


def read_toml(file: str | Path | Traversable) -> dict[str, Any]:
    """The parsed file.

    Raises:
        ConfigError: there is no such file, or it is not TOML (with the line).
    """
    try:
        opened = Path(file) if isinstance(file, str) else file
        return tomllib.loads(opened.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error


def validate(
    model: type[M],
    data: Mapping[str, Any],
    *,
    source: str,
    layers: Sequence[tuple[str, Mapping[str, Any]]] = (),
) -> M:
    """`data` as `model`, or one ConfigError that lists every broken rule.

    Args:
        source: what an error is said to come from ...
        layers: ... unless one of these (name, overlay), of which `data` is made, holds the key; the last one counts.

    Raises:
        ConfigError: names the key, the value, the rule and, for an unknown key, the nearest known one.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines: dict[str, list[str]] = {}
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            value = shown(item["loc"], item["input"])
            if item["type"] == "extra_forbidden":
                line = f"unknown key {key} = {value}{_nearest(model, item['loc'])}"
            elif item["type"] == "missing":
                line = f"missing key {key}"
            else:
                rule = item["msg"].removeprefix("Value error, ")
                # A rule over a whole section names its keys itself.
                beside = "" if isinstance(item["input"], Mapping) else f" = {value}"
                line = f"{key}{beside}: {rule[0].lower()}{rule[1:]}"
            found = [name for name, layer in layers if _holds(layer, item["loc"])]
            lines.setdefault(found[-1] if found else source, []).append(line)
        raise ConfigError("; ".join(f"{name}: {'; '.join(said)}" for name, said in lines.items())) from error


def _holds(layer: Mapping[str, Any], loc: tuple[int | str, ...]) -> bool:
    target: Any = layer
    for part in loc:
        if not isinstance(target, Mapping) or part not in target:
            return not isinstance(target, Mapping)  # a plain value where the model has a table
        target = target[part]
    return True


def _spark_text(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _overlay(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Sections merge; a value within a section, be it a table such as `weights`, is replaced whole."""
    for section, values in over.items():
        values = copy.deepcopy(values)  # `base` is changed in place by --set, `over` is somebody else's
        if isinstance(values, Mapping) and isinstance(base.get(section), dict):
            base[section] = {**base[section], **values}
        else:
            base[section] = values


def _apply_set(data: dict[str, Any], text: str) -> dict[str, Any]:
    """Change `data` by one "section.key=value"; the change alone, as an overlay."""
    path, equals, value = text.partition("=")
    keys = [key.strip() for key in path.split(".", 2)]
    may_be_secret = names_a_secret(path) or path.startswith(("kafka", "spark")) or looks_secret(text)
    name = path if equals else re.split(r"[^\w.]", path)[0]
    repeated = f"{name}=..." if may_be_secret else text
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(f"--set {repeated!r}: expected section.key=value, such as train.rank=64")
    try:
        (parsed,) = tomllib.loads(f"value = {value}").values()
    except ValueError:  # not TOML, or TOML of several lines
        parsed = value.strip()
    target: Any = data
    for key in keys[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {repeated!r}: {key} is a value, not a section")
    target[keys[-1]] = parsed
    change: Any = parsed
    for key in reversed(keys):
        change = {key: change}
    return dict(change)


def _nearest(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """The nearest key of the section that `loc` points into, or else of any section, as the end of a sentence."""
    fields: dict[str, Any] = dict(model.model_fields)
    elsewhere: dict[str, str] = {}
    for section, field in fields.items():
        for key in _keys(field.annotation):
            elsewhere.setdefault(key, f"{section}.{key}")  # [search] has the names of what it varies
    for part in loc[:-1]:
        field = fields.get(str(part))
        fields = _keys(field.annotation) if field is not None else {}
    key = str(loc[-1])
    if near := difflib.get_close_matches(key, fields, n=1, cutoff=0.5):
        return f", did you mean {'.'.join([*map(str, loc[:-1]), near[0]])}?"
    if near := difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.7):
        return f", did you mean {elsewhere[near[0]]}?"
    return f"; known keys here: {', '.join(fields)}"


def _keys(annotation: Any) -> dict[str, Any]:
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return dict(annotation.model_fields) if is_model else {}
