"""An event loop for `asyncio` that waits through the door. Runs inside the sandbox."""

import asyncio
import contextlib
import functools
import sys
import time
from asyncio import base_events, events, unix_events

import _requests
import _runner


class _Replies:
    """What the loop waits for: replies of the host, and time."""

    def select(self, seconds=None):
        """Wait until there are replies, at most so many seconds (None: for ever), and deliver them all at once."""
        if seconds is None or seconds >= _requests.POLL_SECONDS:
            _requests.wait(seconds)
            return ()
        if seconds > 0:
            time.sleep(seconds)
        _requests.poll()
        return ()


class Loop(base_events.BaseEventLoop):
    """An event loop without pipes, sockets, signals and threads."""

    def __init__(self):
        super().__init__()
        self._selector = _Replies()

    def _process_events(self, event_list):
        pass

    def _write_to_self(self):
        pass  # there is no other thread that could find it waiting

    def _run_forever_setup(self):
        if _stop not in _runner.leftovers:
            _runner.leftovers.append(_stop)
        super()._run_forever_setup()

    async def shutdown_default_executor(self, timeout=None):  # noqa: ARG002, ASYNC109
        """Let the default executor take no more work. Work under way is not waited for."""
        self._executor_shutdown_called = True
        if self._default_executor is not None:
            self._default_executor.shutdown(wait=False)


def _stop():
    """Make sure that no loop is running: an earlier turn may have been stopped before it left its loop."""
    events._set_running_loop(None)


async def answer(request):
    """Ask the host and return the value of its reply, while other tasks run."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def ended(reply):
        if not (future.done() or loop.is_closed()):
            future.set_result(reply)

    begun = _requests.begin(request, ended)
    try:
        return request.value(await future)
    finally:
        begun.forget()


def awaitable(function):
    """Return the awaitable twin of a function that asks the host."""

    @functools.wraps(function)
    async def ask(*args, **named):
        return await answer(function.__request__(*args, **named))

    ask.__name__ = ask.__qualname__ = f"{function.__name__}_async"
    del ask.__request__
    return ask


_main = [None]


def main():
    """Return the loop in which turns await. It is kept from turn to turn: tasks and queues belong to their loop."""
    loop = _main[0]
    if loop is None or loop.is_closed() or loop.is_running():  # one that runs has not been left
        loop = _main[0] = Loop()
    return loop


def run(coroutine):
    """Run the coroutine a turn awaits, and return its value. It has ended afterwards in any case; other tasks go on."""
    loop = main()
    task = loop.create_task(coroutine)
    try:
        return loop.run_until_complete(task)
    finally:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(task)


class _Policy(events._BaseDefaultEventLoopPolicy):
    _loop_factory = Loop

    def get_event_loop(self):
        """Return the loop that was set, or else the one in which turns await."""
        loop = self._local._loop
        return main() if loop is None or loop.is_closed() else loop


events._set_event_loop_policy(_Policy())
for module in (asyncio, unix_events):
    module.SelectorEventLoop = module.EventLoop = Loop
_runner.complete = run
_runner.first_modules.update(sys.modules)  # asyncio and concurrent.futures, imported anew, would not be these
