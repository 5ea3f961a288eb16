"""The report of a session."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from rlt_ros.cli.main import main
from rlt_ros.core.handover import Report, report_text
from rlt_ros.data.episodes import EpisodeRecord, append_episode, read_episodes
from rlt_ros.report import EVALUATIONS, comparison_rows, hand_over_rows, write_report


@pytest.fixture
def session(tmp_path):
    for index in range(1, 31):
        outcome = "success" if index % 3 else ("timeout" if index % 2 else "aborted")
        append_episode(tmp_path, EpisodeRecord(index, outcome, 100 + index, 200 + index, index % 5 == 0, index))
    return tmp_path


def test_report_is_one_page_with_plots_and_settings(session):
    (session / "config.yaml").write_text("rate_hz: 50.0 # <Hz>")
    (session / EVALUATIONS).write_text(
        json.dumps(
            {
                "before": {"success_rate": 0.4, "episodes": 20, "median_steps_success": None},
                "after": {"success_rate": 0.9, "episodes": 20, "median_steps_success": 51.0},
            }
        )
    )
    page = write_report(session).read_text()
    assert "<svg" in page and "http" not in page and "<script" not in page  # nothing is fetched
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    assert "<td>success rate</td><td>40%</td><td>90%</td>" in page
    assert "<td>median steps to success</td><td>–</td><td>51</td>" in page
    assert "rate_hz: 50.0 # &lt;Hz&gt;" in page
    assert "30 episodes (20 success, 0 failure, 5 timeout, 5 aborted), 6 interventions" in page


def test_the_command_writes_it_and_says_it_in_a_sentence(session, capsys):
    (session / "config.yaml").write_text("/**: {ros__parameters: {rate_hz: 20.0}}")
    assert main(["report", str(session)]) == 0
    out = capsys.readouterr().out
    assert "30 episodes (20 success, 0 failure, 5 timeout, 5 aborted)" in out and "at 20 Hz" in out
    assert (session / "report.html").is_file()


def test_a_folder_that_is_no_session_and_evaluations_that_are_damaged_are_named(session, tmp_path_factory, capsys):
    empty = tmp_path_factory.mktemp("empty")
    assert main(["report", str(empty)]) == 1
    assert "is no session: it has none of episodes.jsonl" in capsys.readouterr().err
    assert not list(empty.iterdir())
    (session / EVALUATIONS).write_text('{"before": ')
    assert main(["report", str(session)]) == 1
    assert f"{session / EVALUATIONS} is damaged" in capsys.readouterr().err


def test_minutes_are_counted_at_the_sessions_own_rate(session):
    steps = sum(100 + index for index in range(1, 31))
    assert f"{steps / 50 / 60:.1f} minutes of critical phase at 50 Hz" in write_report(session).read_text()
    (session / "config.yaml").write_text("/**: {ros__parameters: {rate_hz: 20.0}}")
    assert f"{steps / 20 / 60:.1f} minutes of critical phase at 20 Hz" in write_report(session).read_text()


def charts_of(page: str) -> dict[str, ET.Element]:
    """Label -> SVG element; each is well-formed."""
    found = re.findall(r'<svg class="chart".*?</svg>', page, re.DOTALL)
    return {element.get("aria-label"): element for element in map(ET.fromstring, found)}


def test_curves_are_drawn_against_episodes_and_against_minutes(session):
    drawn = charts_of(write_report(session).read_text())
    for what in ("success rate", "control ticks to success"):
        by_episode, by_minutes = (drawn[f"{what} against {x}"] for x in ("episode", "minutes of running episodes"))
        dots = [[circle.get("cy") for circle in chart.iter("circle")] for chart in (by_episode, by_minutes)]
        assert dots[0] == dots[1] and len(dots[0]) == (25 if what == "success rate" else 20)
        assert all(len(list(chart.iter("polygon"))) == 1 for chart in (by_episode, by_minutes))  # the interval
    assert {"successes in 10 minutes", "interventions"} <= set(drawn)


def test_share_of_steps_by_a_person_and_the_gate_are_shown_where_they_were_noted(tmp_path):
    for index in range(1, 11):
        noted = {"human_steps": 10 * (index % 2), "end_s": 1000.0 + 60 * index}
        noted |= {"gate": {"force": 3} if index > 5 else {}}
        record = EpisodeRecord(index, "success", 100, 150, 1, 1, **noted)
        append_episode(tmp_path, record)
    page = write_report(tmp_path).read_text()
    assert "share of steps by a person" in charts_of(page)
    assert re.search(r"<td>force</td><td>15</td><td[^>]*><svg class=\"bars\"", page)
    assert "<b>0</b><span>such successes in 10 minutes, resets and pauses included" in page  # all with help


def test_old_session_says_that_the_gate_was_not_noted(session):
    assert "did not note what the gate did" in write_report(session).read_text()


def test_changes_of_settings_are_listed_with_the_episode_before_them(tmp_path):
    for index in range(1, 4):
        append_episode(tmp_path, EpisodeRecord(index, "success", 100, 150, 0, 1, end_s=1000.0 * index))
    change = {"time": 2500.0, "node": "learner_node", "name": "beta", "value": 0.5}
    (tmp_path / "changes.jsonl").write_text(json.dumps(change) + "\n")
    page = write_report(tmp_path).read_text()
    assert re.search(r"after episode 2</td><td>learner_node beta</td><td>0.5</td>", page)
    chart = charts_of(page)["success rate against episode"]
    assert len([line for line in chart.iter("line") if line.get("class") == "mark"]) == 2  # and the first of the actor


def test_names_that_are_html_are_shown_as_they_are(tmp_path):
    folder = tmp_path / "<b>session"
    folder.mkdir()
    append_episode(folder, EpisodeRecord(1, "success", 10, 20, 0, 0, gate={"<i>": 1}))
    page = write_report(folder).read_text()
    assert "<b>session" not in page and "&lt;b&gt;session" in page and "<i>" not in page


def test_intervals_of_an_evaluation_stand_beside_it():
    found = {"success_rate": 0.5, "wilson_low": 0.24, "wilson_high": 0.76, "median_steps_success": 50.0}
    found |= {"outcomes": ["SUCCESS"] * 9 + ["TIMEOUT"], "critical_steps": [*range(10, 100, 10), 500]}
    rows = dict((what, after) for what, _, after in comparison_rows({"after": found}))
    assert rows["success rate"] == "50% (24 to 76)" and rows["median steps to success"] == "50 (20 to 80)"


def test_empty_session_has_a_report_too(tmp_path):
    page = write_report(tmp_path).read_text()
    assert "No episode has ended yet" in page and "Not evaluated" in page


def test_folder_that_is_no_session_is_an_error(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nothing")]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_torn_last_line_of_the_episodes_is_skipped(session):
    path = session / "episodes.jsonl"
    path.write_text(path.read_text()[:-10])
    assert [e.index for e in read_episodes(session)] == list(range(1, 30))


def test_unknown_values_are_dashes():
    assert comparison_rows({"before": {"success_rate": 0.5}})[0] == ("success rate", "50%", "–")


def test_hand_over_quality_is_shown_with_its_presses(session):
    assert "No hand-over was learned" in write_report(session).read_text()
    found = Report(30, 24, 22, 1, 22 / 23, 22 / 24, 1 / 30, -0.04, float("nan"), 0.031)
    (session / "handover").mkdir()
    (session / "handover" / "report.json").write_text(report_text(found, 0.5))
    page = write_report(session).read_text()
    for words in ("<td>24 in 30</td>", '<td>92%<span class="interval">74 to 98</span></td>', "<td>0.03 (1)</td>",
                  "<td>-0.04 s</td>", "<td>–</td>", "<td>0.031</td>", '>96%<span class="interval">79 to 99</span>'):
        assert words in page, words


def test_successes_with_an_intervention_are_not_the_policys(tmp_path):
    for index in range(1, 11):
        append_episode(tmp_path, EpisodeRecord(index, "success", 100, 150, int(index > 4), 1))
    page = write_report(tmp_path).read_text()
    assert "<b>40%</b><span>success of the last 10 without help: 17 to 69 %</span>" in page
    assert "<b>80</b><span>such successes in 10 minutes, whole session" in page  # 4 in 1500 ticks


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"presses": "<many>"}'])
def test_a_damaged_hand_over_report_is_named_and_the_rest_is_shown(session, text):
    (session / "handover").mkdir()
    (session / "handover" / "report.json").write_text(text)
    page = write_report(session).read_text()
    assert "Its report cannot be read" in page and "report.json" in page and "<many>" not in page
    assert "success of the last" in page


def test_what_is_not_known_of_a_hand_over_is_a_dash():
    nothing = float("nan")
    rows = dict(hand_over_rows(Report(3, 0, 0, 0, nothing, nothing, 0.0, nothing, nothing, nothing)))
    assert rows["recall: presses with a hand-over beside them"] == rows["precision: hand-overs beside a press"] == "–"
