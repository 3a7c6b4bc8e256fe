"""Hold the shape of the tree: files of one idea, private APIs in their one place."""

from __future__ import annotations

import re
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "torchgraft"
LONGEST = 300
ONLY_IN = {r"_lazy_clone": "graph/cow.py", r"_wrapped_fns_to_patch": "graph/recording.py"}
IGNORE = re.compile(r"#\s*(type: ignore(\[[\w, -]+\])?|noqa: [\w, ]+)(?P<reason>.*)$")


def problems() -> list[str]:
    """List what is out of shape."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        lines = path.read_text().splitlines()
        if len(lines) > LONGEST:
            found.append(f"{name}: {len(lines)} lines, {LONGEST} at most")
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
