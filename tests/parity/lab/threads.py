"""Actions that emit events, output, records and warnings from several threads."""

import logging
import sys
import threading

from synapse_runtime.action import BaseAction

THREADS = 8


class FromThreads(BaseAction):
    """Emits, from each of 8 threads, `count` events with `size` characters, and as many lines and records."""

    def execute(self):
        self.emit(self.params["count"], self.params["size"])

    def emit(self, count, size):
        def work(thread):
            for number in range(count):
                self.log("said", {"thread": thread, "number": number, "text": chr(65 + thread) * size})
                if size < 10_000:
                    sys.stdout.write(f"{thread} {number} {chr(65 + thread) * size}\n")
                    logging.getLogger(f"lab.thread{thread}").warning("record %d", number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class FromThreadsInTurn(FromThreads):
    """Does the same for each count and size."""

    def execute(self):
        for count, size in self.params["loads"]:
            self.emit(count, size)


class LeavesThreads(BaseAction):
    """Returns while threads that it has started still emit events."""

    def execute(self):
        go = threading.Event()

        def work():
            go.set()
            for number in range(2000):
                self.log("late", {"number": number, "text": "x" * 5000})

        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        go.wait()
        return "returned"


class Says(BaseAction):
    """Emits an event and then works for long, or does nothing after it."""

    def execute(self):
        if self.params["from_thread"]:
            thread = threading.Thread(target=self.log, args=("said",))
            thread.start()
            thread.join()
        else:
            self.log("said")
        try:
            threading.Event().wait(self.params["seconds"])
        except Exception:  # noqa: BLE001 - what stops an action passes
            return "went on"
        return "ended"
