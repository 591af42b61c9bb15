"""One progress bar for everything that can take longer than two seconds."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

DELAY = 2.0


def progress[T](
    iterable: Iterable[T], *, total: int | None = None, desc: str | None = None, show: bool | None = None
) -> Iterator[T]:
    """Wrap ``iterable`` in a tqdm bar that appears after two seconds.

    ``show=None`` shows it in a terminal or a notebook and keeps log files clean.
    """
    from tqdm.auto import tqdm

    disable = None if show is None else not show
    return iter(tqdm(iterable, total=total, desc=desc, disable=disable, delay=DELAY, leave=False))


@contextmanager
def counting(total: int, *, desc: str, show: bool | None = None) -> Iterator[Callable[[int], object]]:
    """Show the same bar for work that is counted instead of iterated over: gives the function that adds to it."""
    from tqdm.auto import tqdm

    disable = None if show is None else not show
    with tqdm(total=total, desc=desc, disable=disable, delay=DELAY, leave=False) as bar:
        yield bar.update
