"""The code blocks of the documentation."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

BUDGET = "total_env_steps=128"
ELSEWHERE = {"tensorboard", "cd", "git"}
"""Programs of others that a block may name; they are not run."""


class Block(NamedTuple):
    """A fenced code block."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def file_name(self) -> str | None:
        """The name in a first line such as `# maze.py`."""
        match = re.match(r"# ([\w/]+\.(?:py|yaml))\n", self.text)
        return match.group(1) if match else None


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page that are to be run."""
    text = page.read_text()
    found = []
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        before = text[: match.start()].rstrip().splitlines()
        comment = before[-1] if before else ""
        # the README's commands for training and testing make virtual environments; .ci/run runs them as they stand
        if re.fullmatch(r"<!-- (not run: .+|train command|test command) -->", comment):
            continue
        found.append(Block(page, text[: match.start()].count("\n") + 1, match.group(1), match.group(2)))
    return found


def commands_of(block: Block) -> list[list[str]]:
    """Return the commands of a shell block as words, comments left out."""
    return [words for line in block.text.splitlines() if (words := shlex.split(line, comments=True))]
