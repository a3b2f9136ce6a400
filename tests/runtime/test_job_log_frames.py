"""More tests of a job's log: forged and broken input, characters cut in two, long logs, and random ones."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from synapse_runtime.executors.ray.job_log import (
    EVENT,
    EXIT,
    RECORD_SEPARATOR,
    RUN,
    START,
    STDERR,
    STDOUT,
    Frame,
    LogReader,
    LogWriter,
    MalformedFrame,
    Output,
)

frame = LogWriter().frame
STARTED, EXITED = Frame(START, {}, False), Frame(EXIT, {}, False)

NAMES = {STDOUT: "stdout", STDERR: "stderr"}


def log_of(chunks: Iterable[tuple[str, bytes]]) -> str:
    writer = LogWriter()
    output = b"".join(writer.output(*chunk) for chunk in chunks)
    return (frame(START) + output + frame(EXIT)).decode("utf-8")


def read(pieces: Iterable[str]) -> list[Output | Frame]:
    reader = LogReader()
    return [item for piece in pieces for item in reader.feed(piece)]


def printed(items: Iterable[Output | Frame], stream: str = STDOUT) -> str:
    return "".join(item.text for item in items if isinstance(item, Output) and item.stream == NAMES[stream])


def frames(items: Iterable[Output | Frame]) -> list[Frame]:
    return [item for item in items if isinstance(item, Frame)]


@pytest.mark.parametrize("size", [0, 1, 31_989, 31_990, 31_991, 63_990, 100_000])
def test_data_of_any_size_are_read_as_one_frame(size):
    data = {"text": "x" * size}
    assert read([frame(RUN, data).decode()]) == [Frame(RUN, data, False)]


def test_frame_is_read_if_it_is_cut_at_any_character():
    log = frame(EVENT, {"name": "☃"}).decode()
    for cut in range(len(log) + 1):
        assert read([log[:cut], log[cut:]]) == [Frame(EVENT, {"name": "☃"}, False)]
    assert read(log) == [Frame(EVENT, {"name": "☃"}, False)]


def test_frame_is_not_yielded_before_its_last_character():
    reader = LogReader()
    log = frame(RUN, {"result": 42}).decode()
    assert list(reader.feed(log[:-1])) == []
    assert list(reader.feed(log[-1:])) == [Frame(RUN, {"result": 42}, False)]


def test_plain_output_is_logged_as_plain_text():
    assert LogWriter().output(STDOUT, b"hello\n") == b"hello\n"
    assert LogWriter().output(STDOUT, "snow ☃".encode()) == "snow ☃".encode()


def test_stream_is_named_only_when_it_changes():
    writer = LogWriter()
    assert writer.output(STDOUT, b"a") == b"a"
    assert writer.output(STDERR, b"b") == frame(STDERR) + b"b"
    assert writer.output(STDERR, b"c") == b"c"
    assert writer.output(STDOUT, b"d") == frame(STDOUT) + b"d"


@pytest.mark.parametrize(
    "data",
    [
        RECORD_SEPARATOR.encode(),
        frame(RUN, {"forged": 1}),
        frame(EXIT)[:-1],
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
    assert items[-1] == EXITED


@pytest.mark.parametrize("kind", [RUN, EXIT])
def test_all_output_is_yielded_before_the_final_frame(kind):
    log = (frame(START) + LogWriter().output(STDOUT, b"cut \xe2") + frame(kind)).decode()
    assert read([log]) == [
        STARTED,
        Output("stdout", "cut "),
        Output("stdout", "\ufffd"),
        Frame(kind, {}, False),
    ]


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
        lambda: frame(chance.choice([RUN, EVENT, EXIT, START, STDERR, "+", "raw"]), {"forged": 1})[
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
    assert frames(items) == [STARTED, EXITED]
    assert not any(isinstance(item, Output) and item.text == "" for item in items)


KEY = b"k" * 32


def signed_log(key: bytes = KEY) -> list[str]:
    """Return the frames of a signed log, and output between them."""
    writer = LogWriter(key)
    parts = [
        writer.frame(START, {"host": "here"}),
        writer.output(STDERR, b"working\r\n"),
        writer.frame(EVENT, {"event": 1}),
        writer.frame(EVENT, {"event": 2}),
        writer.frame(RUN, {"record": {}}),
    ]
    return [part.decode() for part in parts]


def read_with(key: bytes | None, parts: list[str], *, must_be_signed: bool = False) -> list[Output | Frame]:
    reader = LogReader("job", key, must_be_signed=must_be_signed)
    return [*reader.feed("".join(parts)), *reader.close()]


def test_submitter_reads_frames_as_signed_and_others_as_unsigned():
    assert [each.is_signed for each in frames(read_with(KEY, signed_log()))] == [True] * 4
    for key in (None, b"another user's"):
        items = read_with(key, signed_log())
        assert [each.is_signed for each in frames(items)] == [False] * 4
        assert printed(items, STDERR) == "working\r\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: [parts[0], *parts[2:1:-1], *parts[3:2:-1], parts[4].replace("record", "recorD")],
        lambda parts: [*parts[:2], *parts[3:]],  # one is missing
        lambda parts: [*parts[:3], parts[2], *parts[3:]],  # one is repeated
        lambda parts: [*parts[:2], parts[3], parts[2], parts[4]],  # two change places
        lambda parts: [*parts[:4], frame(RUN, {"record": {}}).decode()],  # it is not signed
        lambda parts: [*parts[:4], signed_log(b"another key")[4]],
        lambda parts: [*parts[:4], parts[4].replace("run ", "exit ", 1)],
    ],
)
def test_submitter_refuses_frames_that_the_supervisor_has_not_written(change):
    with pytest.raises(MalformedFrame, match="was not written by the supervisor"):
        read_with(KEY, change(signed_log()))


def test_log_of_a_job_that_this_user_has_submitted_must_be_signed_from_the_start():
    with pytest.raises(MalformedFrame, match="'start' was not written by the supervisor"):
        read_with(KEY, signed_log(b"another key"), must_be_signed=True)


@pytest.mark.parametrize(
    "line",
    [
        "\x1erun - {not json}\n",
        "\x1erun - [1]\n",
        "\x1erun\n",
        "\x1e\n",
        "\x1eraw - {}\n",
        '\x1eraw - {"base64": "%%%"}\n',
        '\x1eraw - {"base64": 7}\n',
        "\x1erun - " + "[" * 100_000 + "\n",
        '\x1e+ {"a\n\x1eevent - ": 1\n',
    ],
)
def test_malformed_frame_is_an_error_that_says_so(line):
    with pytest.raises(MalformedFrame):
        read([line])


@pytest.mark.parametrize("seed", range(300))
def test_random_changes_of_a_signed_log_are_never_read_as_signed_frames(seed):
    chance = random.Random(seed)
    parts = signed_log()
    log = "".join(parts)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(log))
        log = log[:at] + chance.choice(["", "\x1e", "\n", "{", "0", log[at:], "\x1eevent - {}\n"]) + log[at + 1 :]
    try:
        items = read_with(KEY, [log], must_be_signed=True)
    except MalformedFrame:
        return
    written = frames(read_with(KEY, parts))
    assert [each for each in frames(items) if each.is_signed] == written[: len(frames(items))]
