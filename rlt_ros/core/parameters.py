"""A session's parameters, as ROS reads them."""

from pathlib import Path

import yaml


def read_parameters(path: Path) -> dict[str, dict]:
    """Node -> its section, of a session's config.yaml. ValueError names a damaged file and says what to do about it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise damaged(path, f"not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise damaged(path, f"got {content!r:.80}, expected sections of nodes")
    for name, section in content.items():
        if not isinstance(section, dict) or not isinstance(section.get("ros__parameters"), dict):
            raise damaged(path, f"{name!r} is {section!r:.80}, expected a section with ros__parameters")
    return content


def damaged(path: Path, text: str) -> ValueError:
    """What to raise for such a file, and what is wrong with it."""
    return ValueError(f"{path}: {text}; mend it or delete it: `rlt practice` then writes a new one and keeps the rest")
