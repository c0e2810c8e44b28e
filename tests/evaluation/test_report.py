"""The report: written, complete, honest about what is missing, and never over another's page."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from results_world import START, made_up, replayed_of

from foldin.errors import FoldinError
from foldin.evaluation import report
from foldin.evaluation.example import Example, choose
from foldin.evaluation.measures import measures_of
from foldin.evaluation.pictures import PICTURES
from foldin.evaluation.report import check_folder, headline_table, summary, write_report
from foldin.evaluation.verdicts import verdicts

EXAMPLE = Example(
    user_id="u|1",
    event_time=START + timedelta(days=2),
    taken="mug",
    stale=("lamp", "clock"),
    foldin=("bowl", "mug", "plate"),
    why="The bowl of an hour ago speaks for it.",
    recent=((START - timedelta(days=3), "lamp"), (START + timedelta(days=2, hours=-1), "bowl")),
    trained=START,
    names={"mug": "RED *MUG*"},
)


@pytest.fixture(scope="module")
def replayed():
    return made_up()


@pytest.fixture(scope="module")
def page(replayed, tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("report") / "new" / "folder", replayed, EXAMPLE)


@pytest.fixture
def two_pictures(monkeypatch):
    """Drawing takes most of the time, and these tests are about words."""
    monkeypatch.setattr(report, "PICTURES", {name: PICTURES[name] for name in ("headline", "freshness")})


def tables(text: str) -> list[str]:
    return re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)


def test_a_page_with_all_of_its_pictures_is_written(page):
    text = page.read_text()
    assert page.name == "README.md"
    linked = re.findall(r"!\[[^\]]+\]\((\w+)\.png\)", text)
    assert set(linked) == set(PICTURES) - {"overview"}
    assert {path.stem for path in page.parent.glob("*.png")} == set(PICTURES)


def test_every_table_and_picture_states_whether_repeated_items_are_allowed(page):
    text = page.read_text()
    assert len(tables(text)) >= 8
    measured = text.replace(EXAMPLE.markdown(), "")
    assert measured.count("Repeated items excluded.") == len(tables(measured)) + len(PICTURES) - 1


@pytest.mark.usefixtures("two_pictures")
def test_repeats_are_stated_as_they_were(tmp_path):
    rows = [{"user": f"u{n}", "stale": 0, "foldin": 1} for n in range(20)]
    replayed = replayed_of(rows, repeats=True)
    text = write_report(tmp_path, replayed).read_text()
    assert "Repeated items allowed." in text
    assert "xcluded" not in text + summary(replayed) + headline_table(replayed)


def test_each_aim_is_stated_with_its_outcome(page, replayed):
    text = page.read_text()
    found = verdicts(measures_of(replayed))
    assert len(found) == 6
    for verdict in found:
        assert f"| {verdict.aim} | **{verdict.outcome}** |" in text
        assert verdict.aim in summary(replayed)


def test_the_finding_stands_at_the_top_with_its_figures(page, replayed):
    measures = measures_of(replayed)
    first = page.read_text().split("\n\n")[1]
    assert f"{measures.every.hit('foldin').value:.1%} of 4,000 events" in first
    assert measures.every.gain("stale").points in first
    assert measures.apart.gain("stale").points in first  # what is left without orders that are begun
    assert "Better than foldin: foldin, retrained every night" in first


@pytest.mark.usefixtures("two_pictures")
def test_where_foldin_loses_the_page_says_so(tmp_path):
    rows = [{"user": f"u{n}", "recent": 1, "stale": 1, "foldin": 0} for n in range(40)]
    text = write_report(tmp_path, replayed_of(rows, ("recent", "stale", "foldin"))).read_text()
    assert "Better than foldin: popularity, recent (100.0%), stale model (100.0%)" in text
    assert "| foldin beats the stale model | **does not hold** | -100.00 points" in text
    assert "In no event foldin lists what the stale model does not" in text


@pytest.mark.usefixtures("two_pictures")
def test_with_few_users_and_few_contenders_nothing_is_made_up(tmp_path):
    rows = [{"user": f"u{n}", "stale": 0, "foldin": 1} for n in range(3)]
    replayed = replayed_of(rows)
    text = write_report(tmp_path, replayed).read_text()
    assert "With 3 users there is no saying whether that is chance" in text
    assert "was not replayed" in text
    for written in (text, summary(replayed), headline_table(replayed)):
        assert not re.search(r"\b(nan|inf|None)\b", written, re.IGNORECASE)
    assert "freshness.png" not in text


def test_the_raw_results_and_the_setting_are_named(page):
    text = page.read_text()
    assert "[`results/`](results)" in text
    assert "2011-09-01 to 2011-09-29; lists of 10; 40 micro-batches of 100 events; repeated items excluded" in text


def test_a_page_of_somebody_else_is_left_alone(tmp_path, replayed):
    (tmp_path / "README.md").write_text("# My own notes\n")
    for refused in (lambda: check_folder(tmp_path), lambda: write_report(tmp_path, replayed)):
        with pytest.raises(FoldinError, match=re.escape(str(tmp_path / "README.md"))):
            refused()
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "# My own notes\n"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "report").write_text("")
    with pytest.raises(FoldinError, match="not a folder"):
        check_folder(tmp_path / "report")


@pytest.mark.usefixtures("two_pictures")
def test_a_report_replaces_the_one_before_with_its_pictures(tmp_path, replayed):
    write_report(tmp_path, replayed)
    assert (tmp_path / "freshness.png").exists()
    rows = [{"user": f"u{n}", "stale": 0, "foldin": 1} for n in range(3)]
    assert "of 3 users" in write_report(tmp_path, replayed_of(rows)).read_text()
    assert not (tmp_path / "freshness.png").exists()


@pytest.mark.usefixtures("two_pictures")
def test_the_same_results_give_the_same_page(tmp_path):
    pages = []
    for name in ("one", "two"):
        write_report(tmp_path / name, made_up(users=50, events=500))
        pages.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert pages[0] == pages[1]


def test_the_example_shows_both_lists_and_who_knew_what():
    text = EXAMPLE.markdown()
    assert "User u\\|1 took **RED \\*MUG\\* (mug)** on 2011-09-03 00:00 UTC." in text
    assert "Foldin had it in place 2; the stale model did not list it." in text
    assert "| 2011-08-29 00:00 | lamp | both |" in text
    assert "| 2011-09-02 23:00 | bowl | foldin only |" in text
    assert "| 2 | clock | **RED \\*MUG\\* (mug)** |" in text
    assert "| 3 | – | plate |" in text


def test_a_telling_user_is_chosen():
    plain = {"user": "a", "stale": 0, "foldin": 1, "history": 8}
    rows = [
        plain | {"foldin": 0},
        plain | {"stale": 2},
        plain | {"same_moment": True},
        plain | {"history": 300},
        plain | {"kind": "new", "history": 0},
        plain | {"foldin": 4},
        plain | {"foldin": 2},
        plain | {"foldin": 2},
    ]
    assert choose(replayed_of(rows)) == 6
    assert choose(replayed_of(rows[:5])) == 4  # nearer to what can be explained than 300 events
    assert choose(replayed_of(rows[:3])) == 2  # an order that is begun, where there is nothing else
    assert choose(replayed_of(rows[:2])) is None


@pytest.mark.parametrize("there", ["cost.png", "results"])
def test_somebody_elses_files_of_these_names_are_not_overwritten(tmp_path, there):
    (tmp_path / there).mkdir()
    with pytest.raises(FoldinError, match=rf"{there} would be overwritten: name another folder"):
        check_folder(tmp_path)
