"""Progress: what a command is at, while it takes long and somebody watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console

Stage = Callable[[str], None]
"""Called with what begins: ``building torchvision/resnet50``."""


@contextlib.contextmanager
def show_progress(*, shown: bool) -> Iterator[Stage]:
    """Show a bar on the standard error, if that is a terminal; yield what to call for each piece of work."""
    console = Console(stderr=True)
    if not shown or not sys.stderr.isatty() or console.is_dumb_terminal:
        yield lambda _: None
        return
    from rich.progress import (  # noqa: PLC0415 - only terminals pay for it
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=5) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what: bar.update(task, description=what)
