"""The report of a session."""

import json

import pytest

from rlt_ros.cli.main import main
from rlt_ros.data.episodes import EpisodeRecord, append_episode, read_episodes
from rlt_ros.report import EVALUATIONS, comparison_rows, write_report


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
    assert "<svg" in page and "http" not in page.split("<svg")[0]
    assert "<td>success rate</td><td>40%</td><td>90%</td>" in page
    assert "<td>median steps to success</td><td>–</td><td>51</td>" in page
    assert "rate_hz: 50.0 # &lt;Hz&gt;" in page
    assert "30 episodes (20 success, 0 failure, 5 timeout, 5 aborted), 6 interventions" in page


def test_minutes_are_counted_at_the_sessions_own_rate(session):
    steps = sum(100 + index for index in range(1, 31))
    assert f"{steps / 50 / 60:.1f} minutes of critical phase at 50 Hz" in write_report(session).read_text()
    (session / "config.yaml").write_text("/**: {ros__parameters: {rate_hz: 20.0}}")
    assert f"{steps / 20 / 60:.1f} minutes of critical phase at 20 Hz" in write_report(session).read_text()


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
