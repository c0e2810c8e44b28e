"""Pictures: what they draw can be read off the figure, and nothing is kept of it."""

from __future__ import annotations

import io
import sys

import numpy as np
import pandas as pd
import pytest

from foldin import pictures
from foldin.errors import PrerequisiteError


def png_of(figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def heights(axes) -> list[float]:
    return [bar.get_height() for bar in axes.patches]


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_bars_have_a_name_a_value_and_a_line_to_be_held_against():
    figure = pictures.bars({"a": 1200.0, "b": 3.0}, "title", "rows", line=("limit", 7.0))
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [1200.0, 3.0]
    assert texts(axes) == ["1,200", "3"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_xlabel() == "rows"
    assert axes.get_title(loc="left") == "title"
    assert axes.lines[0].get_label() == "limit (7)"
    assert png_of(figure)


def test_stacked_bars_stand_on_each_other_and_a_gap_counts_nothing():
    frame = pd.DataFrame({"view": [2.0, 1.0], "like": [np.nan, 3.0]}, index=["mon", "tue"])
    figure = pictures.stacked_bars(frame, "t", "day", "events")
    axes = figure.axes[0]
    assert heights(axes) == [2.0, 1.0, 0.0, 3.0]
    assert [bar.get_y() for bar in axes.patches] == [0.0, 0.0, 2.0, 1.0]
    assert png_of(figure)


def test_grouped_bars_stand_side_by_side():
    frame = pd.DataFrame({"before": [1.0, -1.0], "after": [2.0, np.nan]})
    figure = pictures.grouped_bars(frame, "t", "factor", "value", form="{:.1f}")
    axes = figure.axes[0]
    assert heights(axes)[:3] == [1.0, -1.0, 2.0]
    assert len({bar.get_x() for bar in axes.patches}) == 4
    assert texts(axes) == ["1.0", "-1.0", "2.0", ""]
    assert png_of(figure)


@pytest.mark.parametrize("signed", [True, False])
def test_a_heat_map_writes_its_values_and_leaves_gaps_empty(signed):
    frame = pd.DataFrame([[1.0, np.nan], [-2.0, 0.5]], index=["x", "y"], columns=["short", "a longer name"])
    figure = pictures.heat_map(frame, "t", "columns", "rows", "unit", form="{:.1f}", signed=signed)
    axes = figure.axes[0]
    assert texts(axes) == ["1.0", "-2.0", "0.5"]
    assert axes.images[0].get_clim() == (-2.0, 2.0)
    assert png_of(figure)


def test_a_heat_map_of_zeros_is_drawn():
    assert png_of(pictures.heat_map(pd.DataFrame([[0.0]], columns=["a"]), "t", "x", "y", "unit"))


def test_ranked_values_fall():
    figure = pictures.ranked({"items": [1, 5, 3]}, "t", "rank", "events")
    x, y = figure.axes[0].lines[0].get_data()
    assert list(x) == [1, 2, 3]
    assert list(y) == [5, 3, 1]
    assert png_of(figure)


def test_a_scatter_names_each_group_that_has_points():
    colours = pictures.palette(["a", "b", "none"])
    figure = pictures.scatter(
        [[0, 0], [1, 1], [3, 3]], ["a", "b", "b"], "t", "x", "y", sizes=[1, 2, 3], colours=colours
    )
    assert texts(figure.axes[0]) == ["a", "b"]
    assert png_of(figure)


def test_places_join_an_item_with_itself_and_end_where_it_leaves_the_list():
    lists = {"before": ["a", "b"], "after": ["b", "c"]}
    colours = dict.fromkeys("abc", "#000000")
    figure = pictures.places(lists, colours, "t", "event", legend={"all": "#000000"})
    axes = figure.axes[0]
    assert texts(axes) == ["a", "b", "b", "c"]
    (line,) = axes.lines
    assert list(line.get_ydata()) == [2, 1]
    assert png_of(figure)


def test_micro_batches_show_rows_and_freshness():
    metrics = pd.DataFrame(
        {
            "batch_id": [3, 4],
            "rows": [10, 20],
            "seconds": [1.0, 2.0],
            "freshness_p50": [1.5, 2.5],
            "freshness_p95": [2, 3],
        }
    )
    figure = pictures.micro_batches(metrics, "t")
    upper, lower = figure.axes
    assert heights(upper) == [10, 20]
    assert heights(lower) == [1.0, 2.0]
    assert [label.get_text() for label in lower.get_xticklabels()] == ["3", "4"]
    assert png_of(figure)


def test_a_timeline_has_a_line_for_each_version_in_the_order_of_their_first_answers():
    reads = [(0.0, "old", 10), (1.0, "old", 10), (2.0, "new", 9)]
    figure = pictures.timeline(reads, "t", moments={"swap": 2.0})
    upper, lower = figure.axes
    assert [label.get_text() for label in upper.get_yticklabels()] == ["old", "new"]
    assert upper.collections[0].get_offsets()[:, 1].tolist() == [0, 0, 1]
    assert lower.collections[0].get_offsets()[:, 1].tolist() == [10, 10, 9]
    assert texts(upper) == [" swap"]
    assert png_of(figure)


def test_no_picture_is_kept_and_no_window_system_chosen(monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    pictures.bars({"a": 1.0}, "t", "x")
    assert "matplotlib.pyplot" not in sys.modules


def test_without_matplotlib_the_way_to_get_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PrerequisiteError, match=r"pip install 'matplotlib>=3\.8'"):
        pictures.bars({"a": 1.0}, "t", "x")
