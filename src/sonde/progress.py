"""A bar at a terminal or in a notebook, lines in the log of a batch system."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from io import StringIO
from typing import TYPE_CHECKING, Any

from .callbacks import Callback

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_FILE_COLUMNS = 200
_NOTEBOOK_COLUMNS = 110
# Between two pictures of a bar in a notebook: each is a message to the browser.
_NOTEBOOK_SECONDS = 0.2


def console(*, stderr: bool = True) -> Console:
    """Make a rich console on stderr, or on stdout."""
    from rich.console import Console

    made = Console(stderr=stderr)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        # A file has no width: what rich takes for one would cut tables up.
        made.width = _FILE_COLUMNS
    return made


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class ProgressBar(Callback):
    """Shows how far a run is, on stderr or in the output of a notebook's cell.

    Parameters
    ----------
    line_seconds
        Where stderr is a file, seconds between two lines of progress; None: nothing is written there.
    """

    def __init__(self, line_seconds: float | None = None) -> None:
        self._line_seconds = line_seconds
        self._unit = ""
        self._bar: Progress | None = None
        self._output: Any = None
        self._last = 0.0

    def on_start(self, facts: Mapping[str, Any]) -> None:
        """Show an empty bar."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        where = console()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[of]}"))
        self._unit = str(facts["unit"])
        self._bar = Progress(*columns, TimeRemainingColumn(), console=where, disable=not where.is_terminal)
        self._bar.add_task(str(facts["run"]), total=None, of=self._unit)
        self._bar.start()
        self._last = time.monotonic()
        if where.is_jupyter:
            from IPython.display import HTML, display

            self._output = display(HTML(_picture(self._bar)), display_id=True)

    def on_progress(self, done: int, total: int, measures: Mapping[str, float]) -> None:
        """Move it, with rates and the time that is left."""
        assert self._bar is not None
        of = "  ".join([self._unit, *_rates(done, measures)])
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, of=of)
        since = time.monotonic() - self._last
        if self._output is not None:
            if since >= _NOTEBOOK_SECONDS:
                self._show()
        elif self._bar.disable and self._line_seconds is not None and since >= self._line_seconds:
            self._last = time.monotonic()
            left = f"  {duration((total - done) * measures['seconds'] / max(done, 1))} left" if measures else ""
            print(f"sonde: {done} of {total} {of}{left}", file=sys.stderr)

    def on_end(self, error: BaseException | None) -> None:
        """Leave the bar as it is."""
        assert self._bar is not None
        self._bar.stop()
        if self._output is not None:
            self._show()

    def _show(self) -> None:
        from IPython.display import HTML

        assert self._bar is not None
        self._last = time.monotonic()
        self._output.update(HTML(_picture(self._bar)))


def _rates(done: int, measures: Mapping[str, float]) -> list[str]:
    if not measures:
        return []
    seconds = max(measures["seconds"], 1e-9)
    return [
        f"{done / seconds:,.1f} samples/s",
        f"{measures['tokens'] / seconds:,.0f} tokens/s",
        f"{measures['bytes'] / seconds / 1e9:.3f} GB/s",
    ]


def _picture(bar: Progress) -> str:
    """Draw a bar as HTML: rich's own way into a notebook needs widgets, which not every notebook has."""
    from rich.console import Console

    page = Console(
        file=StringIO(), record=True, width=_NOTEBOOK_COLUMNS, force_terminal=True, force_jupyter=False, _environ={}
    )
    page.print(bar.get_renderable())
    return page.export_html(inline_styles=True, code_format='<pre style="line-height: 1.2; margin: 0">{code}</pre>')
