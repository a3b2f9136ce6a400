"""Whole processes without Ray: imports, commands, pytest sessions."""

from __future__ import annotations

from benchmarks.bench import Bench, Benchmark
from benchmarks.measure import Pairs, in_turn, run
from benchmarks.plugin import write_action_tests, write_plain_tests

_MODEL = "class Params(BaseModel):\n    number: int = 1\n"
# Running an action requires a params model. `import pydantic` alone is lazy and imports hardly anything.
_PYDANTIC = f"from pydantic import BaseModel\n{_MODEL}"
_ACTION = f"""\
from pydantic import BaseModel
from synapse_runtime.action import BaseAction
from synapse_runtime.executors.local import LocalExecutor
{_MODEL}
class Echo(BaseAction[Params]):
    def execute(self):
        return self.params.number
"""
# At exit a process writes its peak memory. `getrusage` is the fallback: it includes the parent's memory.
_PEAK = """\
import atexit, pathlib, resource, sys

def _peak():
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        kilobytes = int(status.split("VmHWM:")[1].split()[0])
    except OSError:
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pathlib.Path(__file__).with_name("peak").write_text(str(kilobytes))

atexit.register(_peak)
"""
_PLAIN_TEST = "def test_plain():\n    assert [1] == [1]\n"


def imports(bench: Bench) -> Pairs:
    """Import only what is needed to run an action, in a new process."""
    literal = in_turn(bench.python("pass"), bench.python("import pydantic"), bench.rounds(5, 2))
    pairs = in_turn(bench.python(_ACTION), bench.python(_PYDANTIC), bench.rounds(20, 6))
    return Pairs(
        pairs.ours, pairs.raw, {"python -c pass": min(literal.ours), "import pydantic alone": min(literal.raw)}
    )


def command(bench: Bench) -> Pairs:
    """Run an action with the `synapse` command."""
    return in_turn(
        bench.command("plugin", "run", "echo", "--mode", "local", "--params", '{"number": 2}'),
        bench.python("import pydantic, typer, yaml"),
        bench.rounds(15, 5),
    )


def help_text(bench: Bench) -> Pairs:
    """Print the help text."""
    return in_turn(bench.command("--help"), bench.python("import typer"), bench.rounds(15, 5))


def pytest_unused(bench: Bench) -> Pairs:
    """Run a test that does not use the plugin."""
    directory = bench.directory / "unused"
    directory.mkdir()
    (directory / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    path = directory / "test_plain.py"
    path.write_text(_PLAIN_TEST, encoding="utf-8")
    return in_turn(bench.pytest(path, ours=True), bench.pytest(path, ours=False), bench.rounds(25, 9), warm_up=2)


def pytest_1000(bench: Bench) -> Pairs:
    """Run a thousand tests of an action."""
    ours = write_action_tests(bench.plugin / "test_thousand.py", 1000)
    raw = write_plain_tests(bench.plugin / "test_thousand_plain.py", 1000)
    return in_turn(
        bench.pytest(ours, "--synapse-mode=local", ours=True), bench.pytest(raw, ours=False), bench.rounds(7, 2)
    )


def pytest_memory(bench: Bench) -> Pairs:
    """Measure the peak memory of a session."""
    directory = bench.plugin / "memory"
    directory.mkdir()
    (directory / "conftest.py").write_text(_PEAK, encoding="utf-8")
    ours = bench.session(write_action_tests(directory / "test_memory.py", 1), "--synapse-mode=local", ours=True)
    raw = bench.session(write_plain_tests(directory / "test_memory_plain.py", 1), ours=False)

    def megabytes(command: tuple[str, ...]) -> float:
        run(command, bench.env, bench.plugin)
        return int((directory / "peak").read_text()) * 1024 / 1e6

    return in_turn(lambda: megabytes(ours), lambda: megabytes(raw), bench.rounds(5, 2))


BENCHMARKS = (
    Benchmark(("import",), imports),
    Benchmark(("command",), command),
    Benchmark(("help",), help_text),
    Benchmark(("pytest-unused",), pytest_unused),
    Benchmark(("pytest-1000",), pytest_1000),
    Benchmark(("pytest-memory",), pytest_memory),
)
