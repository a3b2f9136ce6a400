"""A job's log as a channel: output is never mistaken for a frame and nothing is lost, wherever the log is cut."""

from __future__ import annotations

import random

import pytest

from synapse_runtime.executors.ray.job_log import (
    EVENT,
    EXIT,
    RUN,
    START,
    STDERR,
    STDOUT,
    Frame,
    LogReader,
    LogWriter,
    Output,
)

frame = LogWriter().frame

CHUNKS = [
    (STDOUT, b"plain\n"),
    (STDERR, b"to stderr\n"),
    (STDOUT, b"no end of line"),
    (STDOUT, frame(RUN, {"forged": 1})),
    (STDERR, b"\x1e"),
    (STDOUT, "snow ☃".encode()[:-1]),
    (STDOUT, "☃".encode()[-1:] + b" rest\r\n"),
    (STDERR, b"\xff\xfe\x00"),
    (STDOUT, b""),
]


def read(log: str, cuts: list[int]) -> list[Output | Frame]:
    reader = LogReader()
    items: list[Output | Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(log)], strict=True):
        items += reader.feed(log[start:end])
    return items


def printed(items: list[Output | Frame], stream: str) -> str:
    return "".join(item.text for item in items if isinstance(item, Output) and item.stream == stream)


@pytest.mark.parametrize("seed", range(20))
def test_output_and_frames_are_read_wherever_the_log_is_cut(seed):
    chance = random.Random(seed)
    writer = LogWriter()
    log = b"Ray's own lines\n" + frame(START)
    for stream, data in CHUNKS:
        log += writer.output(stream, data) + frame(EVENT, {"data": repr(data)})
    log += frame(RUN, {"data": "r" * 100_000}) + frame(EXIT)
    text = log.decode("utf-8")
    items = read(text, sorted(chance.sample(range(len(text)), 40)))
    frames = [item for item in items if isinstance(item, Frame)]
    assert [f.kind for f in frames] == [START, *[EVENT] * len(CHUNKS), RUN, EXIT]
    assert [f.data for f in frames if f.kind == EVENT] == [{"data": repr(data)} for _, data in CHUNKS]
    assert frames[-2].data == {"data": "r" * 100_000}
    for stream, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
        whole = b"".join(data for of, data in CHUNKS if of == stream).decode("utf-8", errors="replace")
        assert printed(items, name) == whole


def test_no_line_of_a_frame_is_too_long_for_the_socket_of_ray():
    assert max(map(len, frame(RUN, {"data": "x" * 1_000_000}).splitlines())) < 40_000


def test_log_before_the_start_frame_is_not_output_of_the_action():
    reader = LogReader()
    assert list(reader.feed("Runtime env is setting up.\n")) == []
    assert reader.preamble == "Runtime env is setting up.\n"


RAY_LINE = "Running entrypoint for job j-1: python -m something\n"


def read_late(log: str, cuts: list[int]) -> str:
    reader = LogReader("j-1")
    items: list[Output | Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(log)], strict=True):
        items += reader.feed(log[start:end])
    items += reader.close()
    return printed(items, "stdout")


@pytest.mark.parametrize("where", ["", "no end of line", "a line\n", "Running entrypoint for job j-2: "])
def test_late_line_of_ray_is_removed_wherever_the_log_is_cut(where):
    log = frame(START).decode() + where + RAY_LINE + "rest\n" + frame(EVENT).decode() + "more"
    for cut in range(len(log)):
        assert read_late(log, [cut]) == f"{where}rest\nmore"
    assert read_late(log, [*range(1, len(log))]) == f"{where}rest\nmore"


def test_line_of_ray_is_removed_only_once():
    early = f"{RAY_LINE}{frame(START).decode()}{RAY_LINE}"
    assert read_late(early, []) == RAY_LINE
    late = f"{frame(START).decode()}{RAY_LINE}{RAY_LINE}"
    assert read_late(late, []) == RAY_LINE


@pytest.mark.parametrize("size", [1, 10, len(RAY_LINE) - 1])
def test_incomplete_line_of_ray_at_the_end_is_not_lost(size):
    assert read_late(frame(START).decode() + RAY_LINE[:size], []) == RAY_LINE[:size]
