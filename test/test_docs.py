"""What the documents name is there: files, headings, commands, arguments, parameters."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FIRST_HOUR = (ROOT / "docs" / "first-hour.md").read_text()
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    lines = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL).splitlines()
    titles = [line.lstrip("#").strip() for line in lines if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    wrong = []
    for link in LINK.findall(page.read_text()):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            wrong.append(link)
    assert wrong == []


def commands(text: str, program: str) -> list[list[str]]:
    """Commands of code blocks and code spans that begin with `program`, as words."""
    blocks = "\n".join(re.findall(r"^ *```bash\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL))
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [line.split(" #")[0].strip() for line in [*blocks.splitlines(), *spans]]
    return [shlex.split(line) for line in lines if line.split(" ")[0] == program]


def options(parser: argparse.ArgumentParser, words: list[str]) -> set[str]:
    """What the (sub-)command that `words` name knows, of names and options."""
    known = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            known |= set(action.choices)
            if words and words[0] in action.choices:
                known |= options(action.choices[words[0]], words[1:])
    return known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_those_of_rlt(page):
    pytest.importorskip("rclpy")
    from rlt_ros.cli.main import COMMANDS

    text = page.read_text()
    found = commands(text.replace("\\|", "|"), "rlt")
    assert len(found) > 5 or page.name != "first-hour.md"
    for _, name, *arguments in [words for words in found if words[1:] and words[1] not in ("--help", "<command>")]:
        assert name in COMMANDS, name
        parser = argparse.ArgumentParser(allow_abbrev=False)
        importlib.import_module(f"rlt_ros.cli.{name}").add_arguments(parser)
        known = options(parser, arguments)
        used = {option for word in arguments for option in re.findall(r"--[a-z][a-z-]*", word)}
        assert used <= known, (name, arguments)
        if any(isinstance(action, argparse._SubParsersAction) for action in parser._actions) and arguments:
            assert arguments[0] in known, (name, arguments)


def test_parameters_of_the_first_hour_are_in_the_parameter_file():
    nodes = yaml.safe_load((ROOT / "config" / "practice.yaml").read_text())
    set_while_running = [words[3:5] for words in commands(FIRST_HOUR, "ros2") if words[1:3] == ["param", "set"]]
    assert set_while_running
    for node, name in set_while_running:
        values = nodes[f"/**{node}"]["ros__parameters"]
        assert name in values or name in values.get("td3", {})
    known = {name for section in nodes.values() for name in section["ros__parameters"]}
    known |= set(nodes["/**/learner_node"]["ros__parameters"]["td3"])
    assert {"latency_ticks", "chunk_steps", "exploration_std", "warm_successes", "phase"} <= known
    for name in ("latency_ticks", "chunk_steps", "exploration_std", "warm_successes", "phase"):
        assert f"`{name}`" in FIRST_HOUR


def test_arguments_of_the_launch_file_are_its_own():
    files = (ROOT / "launch" / "practice.launch.py", ROOT / "rlt_ros" / "ros" / "launching.py")
    launch = "".join(file.read_text() for file in files)
    declared = set(re.findall(r'DeclareLaunchArgument\(\s*"(\w+)"', launch))
    used = set(re.findall(r"\b(\w+):=", FIRST_HOUR))
    assert {"robot", "session", "record", "realtime"} <= used <= declared
