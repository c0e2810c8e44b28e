from __future__ import annotations

import datetime as dt
import re

import pytest

from foldin.errors import ConfigError
from foldin.evaluation.plan import Plan


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"days": 0.0}, "--days 0.0: must be above 0"),
        ({"days": float("nan")}, "--days nan: must be above 0"),
        ({"k": 0}, "-k 0: must lie between 1 and 1000"),
        ({"batch_events": -1}, "--batch-events -1: must be at least 1"),
        ({"batch_events": 0}, "--batch-events 0: and --batch-seconds: one of them"),
        ({"batch_seconds": 60.0}, "--batch-events 20: and --batch-seconds: one of them"),
        ({"batch_events": 0, "batch_seconds": 0.5}, "--batch-seconds 0.5: must be at least 1"),
        ({"batch_events": 0, "batch_seconds": 86_401.0}, "--batch-seconds 86401.0: must lie between 1 and 86400"),
        ({"retrain_days": 0.01}, "--retrain-days 0.01: must be 0, for none, or at least an hour"),
        ({"model_age_days": -1.0}, "--model-age -1.0: must be at least 0 days"),
        ({"model_age_days": float("nan")}, "--model-age nan: must be at least 0 days"),
        ({"oracle": -1}, "--oracle -1: must be at least 0"),
        ({"tune_days": 0.0}, "--tune-days 0.0: must be above 0"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_its_rule(options, said):
    with pytest.raises(ConfigError, match="^" + re.escape(said)):
        Plan(**options)


def test_a_start_without_a_zone_is_in_utc():
    assert Plan(start=dt.datetime(1970, 1, 2)).start_us == 86_400_000_000
    east = dt.timezone(dt.timedelta(hours=2))
    assert Plan(start=dt.datetime(1970, 1, 2, 2, tzinfo=east)).start_us == 86_400_000_000
