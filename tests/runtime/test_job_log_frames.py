"""More tests of a job's log: forged and broken input, characters cut in two, long logs, and random ones."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from synapse_runtime.executors.ray.job_log import (
    EVENTS,
    EXIT,
    RECORD_SEPARATOR,
    RUN,
    START,
    STDERR,
    STDOUT,
    Frame,
    LogReader,
    LogWriter,
    Output,
    encode_frame,
)

NAMES = {STDOUT: "stdout", STDERR: "stderr"}


def log_of(chunks: Iterable[tuple[str, bytes]]) -> str:
    writer = LogWriter()
    output = b"".join(writer.output(*chunk) for chunk in chunks)
    return (encode_frame(START) + output + encode_frame(EXIT, b"0")).decode("utf-8")


def read(pieces: Iterable[str]) -> list[Output | Frame]:
    reader = LogReader()
    return [item for piece in pieces for item in reader.feed(piece)]


def printed(items: Iterable[Output | Frame], stream: str = STDOUT) -> str:
    return "".join(item.text for item in items if isinstance(item, Output) and item.stream == NAMES[stream])


def frames(items: Iterable[Output | Frame]) -> list[Frame]:
    return [item for item in items if isinstance(item, Frame)]


@pytest.mark.parametrize("size", [0, 1, 23_999, 24_000, 24_001, 48_000, 100_000])
def test_payload_of_any_size_is_read_as_one_frame(size):
    payload = random.Random(size).randbytes(size)
    assert read([encode_frame(RUN, payload).decode()]) == [Frame(RUN, payload)]


def test_frame_is_read_if_it_is_cut_at_any_character():
    log = encode_frame(EVENTS, b"x" * 50).decode()
    for cut in range(len(log) + 1):
        assert read([log[:cut], log[cut:]]) == [Frame(EVENTS, b"x" * 50)]
    assert read(log) == [Frame(EVENTS, b"x" * 50)]


def test_frame_is_not_yielded_before_its_last_character():
    reader = LogReader()
    log = encode_frame(RUN, b"42").decode()
    assert list(reader.feed(log[:-1])) == []
    assert list(reader.feed(log[-1:])) == [Frame(RUN, b"42")]


def test_plain_output_is_logged_as_plain_text():
    assert LogWriter().output(STDOUT, b"hello\n") == b"hello\n"
    assert LogWriter().output(STDOUT, "snow ☃".encode()) == "snow ☃".encode()


def test_stream_is_named_only_when_it_changes():
    writer = LogWriter()
    assert writer.output(STDOUT, b"a") == b"a"
    assert writer.output(STDERR, b"b") == encode_frame(STDERR) + b"b"
    assert writer.output(STDERR, b"c") == b"c"
    assert writer.output(STDOUT, b"d") == encode_frame(STDOUT) + b"d"


@pytest.mark.parametrize(
    "data",
    [
        RECORD_SEPARATOR.encode(),
        encode_frame(RUN, b"forged"),
        encode_frame(EXIT, b"0")[:-1],
        b"bar 10%\rbar 20%\r",
        b"line\r\n",
        b"\xff\xfe",
        b"\x00\x01\n",
        b"",
        b"no end",
        b"\n\n\n",
        "한국어 ☃ 😀\n".encode(),
        "\u2028\x85\x0b\x0c".encode(),
    ],
)
def test_output_is_read_unchanged_and_never_as_a_frame(data):
    items = read([log_of([(STDOUT, b"before "), (STDOUT, data), (STDOUT, b" after")])])
    assert printed(items) == "before " + data.decode(errors="replace") + " after"
    assert [each.kind for each in frames(items)] == [START, EXIT]


@pytest.mark.parametrize("character", ["é", "☃", "😀"])
def test_character_that_is_cut_in_two_is_read_whole(character):
    data = f"a{character}b\n".encode()
    for cut in range(len(data) + 1):
        assert printed(read([log_of([(STDOUT, data[:cut]), (STDOUT, data[cut:])])])) == f"a{character}b\n"


def test_character_that_is_cut_in_two_by_the_other_stream_is_read_whole():
    chunks = [(STDOUT, b"\xe2\x98"), (STDERR, b"meanwhile "), (STDERR, b"\xc3"), (STDOUT, b"\x83"), (STDERR, b"\xa9")]
    items = read([log_of(chunks)])
    assert printed(items, STDOUT) == "☃"
    assert printed(items, STDERR) == "meanwhile é"


def test_incomplete_character_is_replaced_at_its_position():
    items = read([log_of([(STDOUT, b"\xe2\x98"), (STDOUT, b"plain\n"), (STDOUT, b"last \xe2")])])
    assert printed(items) == "\ufffdplain\nlast \ufffd"
    assert items[-1] == Frame(EXIT, b"0")


@pytest.mark.parametrize("kind", [RUN, EXIT])
def test_all_output_is_yielded_before_the_final_frame(kind):
    log = (encode_frame(START) + LogWriter().output(STDOUT, b"cut \xe2") + encode_frame(kind, b"0")).decode()
    assert read([log]) == [Frame(START, b""), Output("stdout", "cut "), Output("stdout", "\ufffd"), Frame(kind, b"0")]


def test_log_of_ray_before_the_start_frame_is_kept_as_preamble():
    reader = LogReader()
    items = [item for piece in ("Ray's own ", "line\n" + log_of([(STDOUT, b"mine\n")])) for item in reader.feed(piece)]
    assert printed(items) == "mine\n"
    assert reader.preamble == "Ray's own line\n"


def test_output_is_yielded_as_soon_as_it_is_read():
    reader = LogReader()
    log = log_of([(STDOUT, b"working")])
    start = log.index("working")
    list(reader.feed(log[:start]))
    assert list(reader.feed("work")) == [Output("stdout", "work")]
    assert list(reader.feed("ing")) == [Output("stdout", "ing")]


def test_ten_thousand_lines_are_read_in_order_from_small_pieces():
    lines = [f"line {number}\n".encode() for number in range(10_000)]
    log = log_of((STDOUT if number % 3 else STDERR, line) for number, line in enumerate(lines))
    items = read(log[i : i + 1000] for i in range(0, len(log), 1000))
    for stream, is_on_it in ((STDERR, lambda number: number % 3 == 0), (STDOUT, lambda number: number % 3 != 0)):
        expected = b"".join(line for number, line in enumerate(lines) if is_on_it(number)).decode()
        assert printed(items, stream) == expected


def random_chunk(chance: random.Random) -> bytes:
    kinds = [
        lambda: chance.randbytes(chance.randrange(40)),
        lambda: "".join(chance.choices("ab \n\t☃é😀", k=chance.randrange(20))).encode(),
        lambda: chance.choice(
            [b"\x1e", b"\r", b"\r\n", b"\n", b"\xe2\x98", b"\x83", b"\xf0\x9f", b"\x98\x80", b"\xff"]
        ),
        lambda: encode_frame(chance.choice([RUN, EVENTS, EXIT, START, STDERR, "+", "raw"]), b"forged")[
            : chance.randrange(1, 30)
        ],
    ]
    return chance.choice(kinds)()


@pytest.mark.parametrize("seed", range(150))
def test_random_output_is_read_unchanged_wherever_the_log_is_cut(seed):
    chance = random.Random(seed)
    chunks = [(chance.choice([STDOUT, STDERR]), random_chunk(chance)) for _ in range(chance.randrange(60))]
    log = log_of(chunks)
    cuts = sorted(chance.choices(range(len(log) + 1), k=chance.randrange(30)))
    items = read(log[start:end] for start, end in zip([0, *cuts], [*cuts, len(log)], strict=True))
    for stream in (STDOUT, STDERR):
        whole = b"".join(data for name, data in chunks if name == stream)
        assert printed(items, stream) == whole.decode("utf-8", errors="replace")
    assert frames(items) == [Frame(START, b""), Frame(EXIT, b"0")]
    assert not any(isinstance(item, Output) and item.text == "" for item in items)
