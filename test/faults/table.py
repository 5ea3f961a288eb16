"""Write the table of docs/safety.md from the faults that the tests inject:  python3 test/faults/table.py"""

from pathlib import Path

from entries import faults
from wrong_files import wrong_files

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "safety.md"
HOW_TO = "write it with: python3 test/faults/table.py"
HEAD = "| fault | the robot | the operator is told | it goes on |"
BEGIN, END = "<!-- faults: written by test/faults/table.py -->\n", "<!-- end of faults -->\n"


def table() -> str:
    """The rows, as Markdown."""
    lines: list[str] = []
    group = None
    for fault in (*faults(), *wrong_files()):
        if fault.group != group:
            group = fault.group
            lines += ["", f"**{group}**", "", HEAD, "|---|---|---|---|"]
        told = "; ".join(told.text for told in fault.told) or "–"
        lines.append(f"| {fault.name} | {fault.robot.text} | {told} | {fault.recovery.text} |")
    return "\n".join([*lines, "", ""])


def documented(text: str) -> str:
    """The table that stands in a document; ValueError when its marks are missing."""
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)]


if __name__ == "__main__":
    old = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(old.replace(BEGIN + documented(old) + END, BEGIN + table() + END), encoding="utf-8")
    print(f"{DOCUMENT}: {table().count(chr(10))} lines")
