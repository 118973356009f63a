"""The open streams of this process, of every route that has some: how many there may be, and when one has to end.

Open it to change what ends a stream. A stream outlives its request. So its key, or the session that stands for one, is
looked at again after each reading of the keys, and a stream whose key is not good any more ends.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from convo.errors import Overloaded
from convo.observe import metrics
from convo.web.authority import ShownKey


class OpenStream:
    """One stream, from its answer's first byte to its last."""

    __slots__ = ("_streams", "_waiting", "over", "shown")

    def __init__(self, streams: OpenStreams, shown: ShownKey | None) -> None:
        self._streams = streams
        self._waiting = trio.CancelScope()
        self.shown = shown
        self.over = False
        """Whether it has to end."""

    async def wait(self, changed: trio.Event, until: float) -> None:
        """Wait until there is something new, until the stream has to end, or until then by Trio's clock."""
        self._waiting = trio.CancelScope(deadline=until)
        with self._waiting:
            if not self.over:
                await changed.wait()  # no deadline: an event of ours, and the scope has its end

    def close(self) -> None:
        """Have it end at its next piece."""
        self.over = True
        self._waiting.cancel()

    def left(self) -> bool:
        """Note that it has ended; return whether it had not been noted yet."""
        return self._streams.forget(self)


class OpenStreams:
    """The open streams; ``still_good`` is ``Authority.still_good``."""

    def __init__(self, streams_max: int, still_good: Callable[[ShownKey], bool]) -> None:
        self._max = streams_max
        self._still_good = still_good
        self._open: set[OpenStream] = set()
        self._stopped = False
        metrics.event_streams.set_function(lambda: len(self._open))

    def begin(self, shown: ShownKey | None) -> OpenStream:
        """Count one more stream; ``shown`` is what let it in, None where no key is asked for.

        Raises:
            Overloaded: there are as many as there may be, or the process stops.
        """
        if self._stopped:
            raise Overloaded("the process is stopping", retry_after_seconds=1)
        if len(self._open) >= self._max:
            raise Overloaded(f"{len(self._open)} streams are open, events.streams_max", retry_after_seconds=5)
        stream = OpenStream(self, shown)
        self._open.add(stream)
        return stream

    def forget(self, stream: OpenStream) -> bool:
        """Count a stream no more; return whether it was counted."""
        known = stream in self._open
        self._open.discard(stream)
        return known

    def end_refused(self) -> None:
        """End the streams whose key is not good any more: the keys were just read, or could not be read."""
        for stream in self._open:
            if stream.shown is not None and not self._still_good(stream.shown):
                stream.close()

    def stop(self) -> None:
        """End all streams, and begin none: the process stops."""
        self._stopped = True
        for stream in self._open:
            stream.close()
