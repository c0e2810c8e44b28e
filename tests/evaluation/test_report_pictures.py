"""Pictures say what the data says, in words, with axes that have names."""

from __future__ import annotations

from dataclasses import replace

import pytest
from results_world import FULL, LAGS, made_up, replayed_of

from foldin.evaluation.measures import Measures
from foldin.evaluation.pictures import (
    PICTURES,
    age_picture,
    cost_picture,
    freshness_picture,
    gain_picture,
    headline_picture,
    human,
    overview,
)


@pytest.fixture(scope="module")
def measures() -> Measures:
    return Measures(made_up())


def title(figure) -> str:
    return " ".join((figure.axes[0].get_title("left")).split())


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_has_named_axes_and_a_finding(measures, name, tmp_path):
    figure = PICTURES[name](measures)
    for axes in figure.axes:
        assert axes.get_xlabel()
        assert axes.get_title("left")
    assert figure.axes[0].get_ylabel()
    figure.savefig(tmp_path / "it.png")
    assert (tmp_path / "it.png").stat().st_size > 5_000
    assert name == "overview" or figure.get_figwidth() * figure.dpi == 1_000


def test_the_headline_has_a_bar_for_each_contender_as_long_as_its_hit_rate(measures):
    axes = headline_picture(measures).axes[0]
    complete = [name for name in FULL if name != "oracle"]
    bars = axes.containers[0].patches
    assert len(bars) == len(complete)
    lengths = [bar.get_width() for bar in reversed(bars)]  # the first contender stands on top
    assert lengths == pytest.approx([100 * measures.every.hit(name).value for name in complete])
    assert f"{measures.every.hit('foldin').value:.1%}" in title(axes.figure)


def test_the_freshness_curve_runs_from_now_to_never(measures):
    axes = freshness_picture(measures).axes[0]
    (line,) = [line for line in axes.lines if len(line.get_xdata()) == len(LAGS) + 2]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "0", "1 min", "10 min", "1 h", "6 h", "1 day", "1 week", "never",
    ]  # fmt: skip
    assert line.get_ydata()[0] == pytest.approx(100 * measures.every.hit("foldin").value)
    assert line.get_ydata()[-1] == pytest.approx(100 * measures.every.hit("stale").value)
    assert "1 h late" in title(axes.figure)


def test_a_lead_that_is_not_there_is_not_claimed():
    rows = [{"user": f"u{n}", "stale": n % 2, "foldin": n % 2, "late": n % 2} for n in range(40)]
    figure = freshness_picture(Measures(replayed_of(rows, lags={"late": 60.0})))
    assert "no lead" in title(figure)


def test_quality_against_age_has_a_point_for_each_bin(measures):
    axes = age_picture(measures).axes[0]
    assert {line.get_label(): len(line.get_xdata()) for line in axes.lines} == dict.fromkeys(
        ("foldin, retrained every night", "retrained every night", "stale model", "foldin"), len(measures.ages)
    )
    assert "days" in axes.get_xlabel()


def test_gains_stand_on_one_scale_with_whiskers(measures):
    left, right = gain_picture(measures).axes
    assert left.get_ylim() == right.get_ylim()
    assert [len(axes.containers[0].patches) for axes in (left, right)] == [5, 3]
    assert left.containers[1].has_yerr


def test_costs_are_on_a_logarithmic_axis(measures):
    axes = cost_picture(measures).axes[0]
    assert axes.get_xscale() == "log"
    assert len(axes.patches) == 4
    assert "4.00% of a retraining" in title(axes.figure)


def test_what_was_not_replayed_has_no_picture():
    few = made_up(users=12, events=120, contenders=("stale", "foldin"), lags={})
    few = replace(few, cost=replace(few.cost, train_seconds=(), fold_seconds=0.0, spark_seconds=()))
    measures = Measures(few)
    assert (freshness_picture(measures), age_picture(measures), cost_picture(measures)) == (None, None, None)
    assert len(overview(measures).axes) == 1
    assert len(headline_picture(measures).axes[0].containers[0].patches) == 2


def test_without_intervals_there_are_no_whiskers():
    rows = [{"user": f"u{n}", "stale": 0, "foldin": 1} for n in range(3)]
    axes = headline_picture(Measures(replayed_of(rows))).axes[0]
    assert len(axes.containers) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0"),
        (60, "1 min"),
        (5400, "1.5 h"),
        (86_400, "1 day"),
        (172_800, "2 days"),
        (0.012, "12 ms"),
        (8e-5, "80 µs"),
    ],
)
def test_spans_are_said_as_people_say_them(seconds, text):
    assert human(seconds) == text
