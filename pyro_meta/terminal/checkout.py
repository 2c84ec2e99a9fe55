"""Which code figures were made by."""

import subprocess
from pathlib import Path

SECONDS = 10.0
MODIFIED = "-modified"
RESULTS = ("*.json", "*.png", "*.csv", "*.md")
"""Files that figures are written to: that they differ says nothing of the code."""


def commit(folder: Path = Path()) -> str | None:
    """The commit of the checkout that a folder lies in, all 40 digits of it.

    Behind it stands `-modified` where a tracked file differs; `RESULTS` do not count. None where
    there is no checkout, or no git.
    """
    head = git(folder, "rev-parse", "--verify", "HEAD")
    if head is None:
        return None
    besides = [f":(top,exclude){pattern}" for pattern in RESULTS]
    changes = git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":(top)", *besides)
    return head if changes == "" else head + MODIFIED


def git(folder: Path, *words: str) -> str | None:
    """What git says, without the space around it; None where it cannot."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=SECONDS,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
