"""A process in the background can be stopped too, and outlives its terminal where it was asked to."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from hydracore.signals import signal_waiter

#: Ignores one signal from the start; echoes lines until a signal ends it.
PROGRAM = """
import asyncio, signal, sys
signal.signal(int(sys.argv[1]), signal.SIG_IGN)
from hydracore.signals import run_until_signal
async def work():
    echo = lambda: print(sys.stdin.readline(), end="", flush=True)
    asyncio.get_running_loop().add_reader(sys.stdin, echo)
    await asyncio.Event().wait()
print("ended" if run_until_signal(work()) else "stopped", flush=True)
"""


class Echo:
    def __init__(self, ignored: signal.Signals) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(int(ignored))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def of(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip()

    def end(self) -> str:
        output, _ = self.process.communicate(timeout=30)
        return output.rstrip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_process_that_was_started_ignoring_it(number: signal.Signals) -> None:
    echo = Echo(ignored=number)
    assert echo.of("listening") == "listening"

    echo.process.send_signal(number)

    assert echo.end() == "stopped"


def test_a_hangup_does_not_stop_a_process_that_was_started_ignoring_it() -> None:
    echo = Echo(ignored=signal.SIGHUP)
    assert echo.of("listening") == "listening"

    echo.process.send_signal(signal.SIGHUP)

    # The signal may be handled after the first line, not after the second.
    assert [echo.of("one"), echo.of("two")] == ["one", "two"]
    echo.process.send_signal(signal.SIGTERM)
    assert echo.end() == "stopped"


def test_signal_handling_is_restored_once_the_work_is_done() -> None:
    program = """
import asyncio, os, signal
from hydracore.signals import interrupted_by_signals, run_to_completion
with interrupted_by_signals():
    run_to_completion(asyncio.sleep(0))
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        print("interrupted")
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "interrupted\nTrue\n")


def test_a_signal_does_not_interrupt_a_callback_of_the_event_loop() -> None:
    program = """
import asyncio, os, signal
from hydracore.signals import run_to_completion
async def work():
    waited = asyncio.get_running_loop().create_future()
    def wake():
        if not waited.done():
            os.kill(os.getpid(), signal.SIGINT)
            waited.set_result(None)
    asyncio.get_running_loop().call_soon(wake)
    await waited
    await asyncio.Event().wait()
try:
    run_to_completion(work())
except KeyboardInterrupt:
    print("interrupted")
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)

    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def test_a_signal_that_another_thread_receives_still_ends_the_wait() -> None:
    """As with a signal right before the main thread waits: the wait is not interrupted, and no Python handler is called."""
    taker_ends = threading.Event()
    taker = threading.Thread(target=taker_ends.wait)
    taker.start()
    notified = list[str]()
    try:
        with signal_waiter(lambda: notified.append("notified")) as wait:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            sender = threading.Timer(0.05, lambda: signal.pthread_kill(taker.ident or 0, signal.SIGTERM))
            sender.start()

            wait()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        taker_ends.set()
        taker.join()

    assert notified == ["notified"]


def test_a_signal_that_came_before_the_wait_still_ends_it() -> None:
    notified = list[str]()
    before = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    with signal_waiter(lambda: notified.append("notified")) as wait:
        os.kill(os.getpid(), signal.SIGTERM)
        wait()

    assert notified == ["notified"]
    assert (signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)) == before
