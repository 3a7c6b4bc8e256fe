"""Hold the shape of the tree: the size of the whole, private APIs in their one place."""

from __future__ import annotations

import re
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "torchgraft"
MOST_LINES = 42_200
"""Of all files together. It is to come down; a file may be as long as its one idea."""
ONLY_IN = {r"_lazy_clone": "graph/cow.py", r"_wrapped_fns_to_patch": "graph/recording.py"}
IGNORE = re.compile(r"#\s*(type: ignore(\[[\w, -]+\])?|noqa: [\w, ]+)(?P<reason>.*)$")


def problems() -> list[str]:
    """List what is out of shape."""
    found = []
    files = (*SOURCE.rglob("*.py"), *SOURCE.rglob("*.pyi"))
    total = sum(len(path.read_text().splitlines()) for path in files)
    if total > MOST_LINES:
        found.append(f"{total} lines, {MOST_LINES} at most")
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines, 1):
            found += [
                f"{name}:{number}: {pattern} belongs into {home}"
                for pattern, home in ONLY_IN.items()
                if re.search(pattern, line) and name != home
            ]
            ignored = IGNORE.search(line)
            if ignored and not ignored["reason"].strip(" #-"):
                found.append(f"{name}:{number}: an ignore without its reason")
    return found


if __name__ == "__main__":
    out = problems()
    print("\n".join(out) or "tree: in shape")
    sys.exit(bool(out))
