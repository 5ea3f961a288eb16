"""What is wrong with an argument is said with its name and value, before anything is done."""

import pytest

from rlt_ros.cli.main import main


@pytest.mark.parametrize(("arguments", "says"), [
    (["teleop", "--namespace", "bad ns!"], "--namespace: got 'bad ns!', expected letters, digits and _, such as left"),
    (["panel", "--namespace", "left//x"], "--namespace: got 'left//x', expected letters"),
    (["eval", "--episodes", "0"], "--episodes: got '0', expected a whole number, at least 1"),
    (["eval", "--threads", "0"], "--threads: got '0', expected a whole number, at least 1"),
    (["eval", "--policy", "nosuch"], "--policy nosuch: expected base, demonstrator or a session folder"),
    (["practice", "--speed", "nan", "--model", "nosuch"], "--speed is nan, expected 0 or more"),
    (["practice", "--minutes", "nan", "--model", "nosuch"], "--episodes, --minutes and --eval-episodes must be positive"),
    (["deploy", "--speed", "inf", "--session", "nosuch"], "--speed is inf, expected 0 or more"),
    (["train", "vla", "--threads", "0"], "--threads: got '0', expected a whole number, at least 1"),
    (["train", "rl", "--updates", "-3"], "--updates: got '-3', expected a whole number, at least 1"),
    (["demos", "prior", "--episodes", "-2"], "--episodes: got '-2', expected a whole number, at least 1"),
    (["demos", "record", "--episodes", "x"], "--episodes: got 'x', expected a whole number, at least 1"),
    (["demos", "import", "--from", "mcap", "x", "--skip", "-1"], "--skip: got '-1', expected a whole number"),
])  # fmt: skip
def test_a_wrong_value_is_wrong_usage(capsys, arguments, says) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "left", "/left", "/cell_1/Left"])
def test_namespaces_as_ros_has_them_pass(name) -> None:
    from rclpy.validate_namespace import validate_namespace

    from rlt_ros.cli.arguments import namespace

    assert namespace(name) == name
    validate_namespace("/" + name.removeprefix("/"))


def test_the_vla_is_trained_where_there_are_demonstrations_only(tmp_path, capsys) -> None:
    assert main(["train", "vla", "--demos", str(tmp_path)]) == 1
    assert f"{tmp_path}: no demonstrations" in capsys.readouterr().err and not list(tmp_path.iterdir())
