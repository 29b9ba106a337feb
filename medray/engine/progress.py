"""One progress line on stderr for people, nothing for pipes."""

import sys
import time
from types import TracebackType
from typing import Any

_REDRAW_S = 0.2
_SLOW = 0.5


class Progress:
    """Counts items of a stage; draws five times a second at most, every 10 % without a tty."""

    def __init__(self, stage: str, total: int | None, *, quiet: bool) -> None:
        self.stage = stage
        self.total = total
        self.quiet = quiet
        self.done = 0
        self.bad = 0
        self.began = time.monotonic()
        self._drawn = 0.0
        self._tty = sys.stderr.isatty()
        self._next_share = 0.1

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.quiet:
            self._draw(end="\n")

    def advance(self, *, rejected: bool = False, number: int = 1) -> None:
        """Count finished items."""
        self.done += number
        self.bad += number if rejected else 0
        if self.quiet:
            return
        now = time.monotonic()
        if self._tty and now - self._drawn > _REDRAW_S:
            self._drawn = now
            self._draw(end="")
        elif not self._tty and self.total and self.done / self.total >= self._next_share:
            self._next_share = self.done / self.total + 0.1
            if self.done < self.total:
                self._draw(end="\n")

    def note(self, text: str) -> None:
        """Write a line of its own."""
        if not self.quiet:
            start = "\r\x1b[K" if self._tty else ""
            sys.stderr.write(f"{start}{self.stage}: {text}\n")
            sys.stderr.flush()

    def _draw(self, *, end: str) -> None:
        seconds = time.monotonic() - self.began
        rate = self.done / seconds if seconds > 0 else 0.0
        of = f"/{self.total}" if self.total is not None else ""
        left = ""
        if self.total and rate and self.done < self.total:
            left = f", {(self.total - self.done) / rate:.0f} s left"
        bad = f", {self.bad} rejected" if self.bad else ""
        pace = f"{rate:.1f}/s" if rate >= _SLOW or not rate else f"{1 / rate:.0f} s each"
        line = f"{self.stage}: {self.done}{of} in {seconds:.1f} s ({pace}{bad}{left})"
        start = "\r\x1b[K" if self._tty else ""
        sys.stderr.write(f"{start}{line}{end}")
        sys.stderr.flush()


class EpochProgress:
    """The line of a training: epochs, loss, examples/s, the objective, time left."""

    def __init__(self, epochs: int, *, quiet: bool) -> None:
        self.epochs = epochs
        self.quiet = quiet
        self.began = time.monotonic()
        self._first: float | None = None
        self._shown = -1
        self._tty = sys.stderr.isatty()

    def show(self, facts: dict[str, Any]) -> None:
        """Draw the newest facts: on a terminal each time, else at every tenth of the way."""
        if self.quiet or not facts:
            return
        done = float(facts["epochs"])
        if self._first is None:
            # Epochs that an earlier run made cost no time in this one.
            self._first, self.began = done, time.monotonic()
        tenth = int(10 * done / self.epochs)
        if not self._tty and tenth == self._shown:
            return
        self._shown = tenth
        seconds = time.monotonic() - self.began
        made = done - self._first
        left = f", {seconds / made * (self.epochs - done):.0f} s left" if made > 0 else ""
        values = [f"loss {facts['loss']:.4f}"]
        values += [
            f"val {name} {value:.3f}"
            for name, value in facts["metrics"].items()
            if value is not None
        ]
        values.append(f"{facts['examples_per_s']:.1f} examples/s")
        line = f"train: epoch {done:.1f}/{self.epochs}, {', '.join(values)}{left}"
        sys.stderr.write(f"\r\x1b[K{line}" if self._tty else f"{line}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """End the line."""
        if self._tty and not self.quiet and self._shown >= 0:
            sys.stderr.write("\n")
