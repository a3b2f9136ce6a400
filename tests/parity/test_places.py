"""Rows 13 and 14: where an action is defined, and which forms it can have."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from lab import places
from pydantic import BaseModel

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action
from synapse_runtime.errors import ConfigError, ExecutionError, ValidationError
from tests.parity.modes import as_a_job, everywhere, not_as_jobs
from tests.parity.sessions import Session, run_pytest, run_python, write
from tests.patience import patience

INSTALLED = """\
from pydantic import BaseModel

from parity_installed_action.factors import FACTOR
from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action


class Number(BaseModel):
    number: int = 1


class Times(BaseAction[Number]):
    def execute(self):
        return [FACTOR * self.params.number, __file__]


@action
def times(params, context):
    return [FACTOR * params["number"], __file__]
"""

FACTOR = 2


class Number(BaseModel):
    number: int = 1


class TimesHere(BaseAction[Number]):
    def execute(self):
        return FACTOR * self.params.number


@action
def times_here(params, context):
    return FACTOR * params["number"]


def cube(number):
    return number**3


class Crate:
    def __init__(self, size):
        self.size = size


@action
def pickle_what_is_here(params, context):
    """Does by name what libraries do: a process pool sends `cube`, `pickle` writes an instance of `Crate`."""
    with ProcessPoolExecutor(1) as pool:
        cubes = list(pool.map(cube, [2, 3]))
        crate = pool.submit(Crate, 4).result()
    copy = pickle.loads(pickle.dumps(Crate(5)))
    return cubes, type(crate) is Crate, copy.size, type(copy) is Crate, pickle.loads(pickle.dumps(cube)) is cube


class Base(BaseAction[Number]):
    def execute(self):
        return self.factor() * self.params.number


class Child(Base):
    def factor(self):
        return FACTOR


class GrandChild(Child):
    def factor(self):
        return super().factor() + 1


class PlainHere:
    params_model = Number

    def __init__(self, params, context):
        self.params = params

    def execute(self):
        return FACTOR * self.params.number


class DispatchingHere:
    @staticmethod
    def dispatch(params, context):
        return FACTOR * params["number"]


class AsyncHere(BaseAction[Number]):
    async def execute(self):
        return FACTOR * self.params.number


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a package with actions, which is installed into this environment while the tests run."""
    name = "parity_installed_action"
    wheel = _wheel(
        tmp_path_factory.mktemp("wheel"),
        name,
        {f"{name}/__init__.py": "", f"{name}/factors.py": "FACTOR = 2\n", f"{name}/actions.py": INSTALLED},
    )
    _uv("install", "--no-cache", "--no-index", "--no-deps", "--reinstall", str(wheel))
    try:
        importlib.invalidate_caches()
        yield name
    finally:
        _uv("uninstall", name)


def _wheel(directory: Path, name: str, files: dict[str, str]) -> Path:
    info = f"{name}-1.0.dist-info"
    content = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},{_digest(text)},{len(text.encode())}\n" for path, text in content.items()]
    wheel = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "".join(record) + f"{info}/RECORD,,\n")
    return wheel


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _uv(action: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "uv", "pip", action, "--quiet", "--python", sys.executable, *arguments]
    subprocess.run(command, check=True, timeout=patience(60), stdin=subprocess.DEVNULL)


@action
def send_to_ray(params, context):
    import ray

    def volume(crate):
        return cube(crate.size), crate

    found, crate = ray.get(ray.remote(num_cpus=0)(volume).remote(Crate(2)))
    return found, type(crate) is Crate, ray.get(ray.remote(num_cpus=0)(cube).remote(3))


@pytest.mark.synapse(mode="task")
def test_13_what_is_defined_in_a_test_can_be_sent_to_ray_by_its_action(synapse_executor):
    assert synapse_executor.execute(send_to_ray) == (8, True, 27)


@everywhere
def test_13_what_is_defined_in_a_test_can_be_pickled_by_its_action(synapse_executor):
    for _ in range(2):  # a warm worker has it already
        assert synapse_executor.execute(pickle_what_is_here) == ([8, 27], True, 5, True, True)


@not_as_jobs
def test_13_action_in_a_module_of_the_plugin(synapse_executor):
    assert synapse_executor.execute("lab.places:Times", {"number": 21}) == 42


@not_as_jobs
def test_13_action_in_an_installed_package(synapse_executor, installed):
    module = importlib.import_module(f"{installed}.actions")
    assert "site-packages" in module.__file__
    for installed_action in (f"{installed}.actions:Times", module.times):
        assert synapse_executor.execute(installed_action, {"number": 21}) == [42, module.__file__]


@not_as_jobs
def test_13_action_in_the_test_module(synapse_executor):
    assert synapse_executor.execute(TimesHere, {"number": 21}) == 42


@not_as_jobs
def test_13_action_in_the_test_module_sees_the_current_value_of_a_global(synapse_executor, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3)
    assert synapse_executor.execute(times_here, {"number": 14}) == 42


@not_as_jobs
def test_13_action_in_a_conftest(synapse_executor, actions_of_conftest):
    for conftest_action in actions_of_conftest:
        assert synapse_executor.execute(conftest_action, {"number": 21}) == 42


@not_as_jobs
def test_13_action_in_a_function_sees_its_local_variables(synapse_executor):
    factor, table = 2, {"number": 0}

    class Closing(BaseAction[Number]):
        def execute(self):
            table["number"] += self.params.number
            return factor * table["number"]

    @action
    def closing(params, context):
        return factor * params["number"]

    assert synapse_executor.execute(Closing, {"number": 21}) == 42
    assert synapse_executor.execute(closing, {"number": 21}) == 42


@not_as_jobs
def test_13_action_in_a_function_with_a_params_model_defined_there(synapse_executor):
    class LocalParams(BaseModel):
        number: int

    class LocalResult(BaseModel):
        number: int

    class Local(BaseAction[LocalParams]):
        result_model = LocalResult

        def execute(self):
            return LocalResult(number=2 * self.params.number)

    result = synapse_executor.execute(Local, {"number": "21"})
    assert type(result) is LocalResult
    assert result == LocalResult(number=42)
    with pytest.raises(ValidationError, match="number"):
        synapse_executor.execute(Local, {})
    # Now the executor, which pydantic sees among the function's local variables, is connected.
    assert synapse_executor.execute(Local, {"number": 1}) == LocalResult(number=2)


class TestActionInATestClass:
    class Times(BaseAction[Number]):
        def execute(self):
            return FACTOR * self.params.number

    @not_as_jobs
    def test_13_action_in_a_test_class(self, synapse_executor):
        assert synapse_executor.execute(self.Times, {"number": 21}) == 42


MAIN = """\
import json
import sys

from pydantic import BaseModel

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from synapse_runtime.loggers import NullLogger

FACTOR = 2


class Number(BaseModel):
    number: int


class Misfit(Exception):
    pass


class Times(BaseAction[Number]):
    def execute(self):
        return Number(number=FACTOR * self.params.number)


@action
def times(params, context):
    return FACTOR * params["number"]


@action
def fail(params, context):
    raise Misfit("too large")


def seen(executor):
    with executor:
        result = executor.execute(Times, {"number": 21})
        error = executor.run(fail).error
        return {
            "class": [type(result) is Number, result.number],
            "function": executor.execute(times, {"number": 21}),
            "error": [type(error.__cause__) is Misfit, str(error)],
        }


if __name__ == "__main__":
    executors = {"local": LocalExecutor, "task": RayActorExecutor, "job": RayJobsApiExecutor}
    print("SEEN", json.dumps({mode: seen(made(logger=NullLogger())) for mode, made in executors.items()}))
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The results of a script that runs its own actions in each mode, on its own ephemeral cluster."""
    directory = write(tmp_path_factory.mktemp("script"), {"script.py": MAIN})
    done = run_python(directory, "script.py", env={}, starts_python=True)
    assert done.returncode == 0, done.stdout
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("SEEN "))
    found: dict[str, object] = json.loads(line.removeprefix("SEEN "))
    return found


in_each_mode = pytest.mark.parametrize("mode", ["local", "task", "job"])


@in_each_mode
def test_13_action_in_main(script, mode):
    assert script[mode] == {
        "class": [True, 42],
        "function": 42,
        "error": [True, "fail failed: Misfit: too large"],
    }


@as_a_job
def test_13_actions_defined_everywhere_in_one_call(synapse_executor, installed, actions_of_conftest):
    OfConftest, of_conftest = actions_of_conftest
    installed_actions = importlib.import_module(f"{installed}.actions")
    OfClass = TestActionInATestClass.Times
    factor = 2

    @action
    def all_of_them(params, context):
        number = Number(number=params["number"])
        classes = (places.Times, installed_actions.Times, TimesHere, OfClass)
        functions = (installed_actions.times, times_here, of_conftest)
        return [
            factor * params["number"],
            *(each(number, context).execute() for each in classes),
            *(each(params, context) for each in functions),
            OfConftest(params, context).execute(),
        ]

    of_installed = [42, installed_actions.__file__]
    expected = [42, 42, of_installed, 42, 42, of_installed, 42, 42, 42]
    assert synapse_executor.execute(all_of_them, {"number": 21}) == expected


# Each form, from the plugin and from this module, so that it is imported in the worker and pickled to the worker.
FORMS = {
    "base_action": [places.Times],
    "function": [places.with_model, times_here],
    "async_execute": [places.async_function, AsyncHere],
    "class_with_model_and_execute": [places.Plain, PlainHere],
    "own_dispatch": [places.Dispatching, DispatchingHere],
}


@not_as_jobs
@pytest.mark.parametrize("form", FORMS)
def test_14_accepted_form(synapse_executor, form):
    for each in FORMS[form]:
        assert synapse_executor.execute(each, {"number": 21}) == 42


@as_a_job
def test_14_async_action_as_a_job(synapse_executor):
    assert synapse_executor.execute(AsyncHere, {"number": 21}) == 42


@not_as_jobs
def test_14_action_can_inherit(synapse_executor):
    children = [places.Threefold, places.Outer.Inner, GrandChild]
    assert [synapse_executor.execute(child, {"number": 2}) for child in children] == [6, 10, 6]


@not_as_jobs
@pytest.mark.parametrize("yields", ["Yielding", "AsyncYielding", "async_yielding", "returning_a_generator"])
def test_14_generator_is_rejected_with_a_hint(synapse_executor, yields):
    run = synapse_executor.run(f"lab.places:{yields}", {"number": 1})
    assert isinstance(run.error, ExecutionError)
    assert str(run.error) == f"lab.places:{yields} returned a generator; return its items as a list instead"


@everywhere
def test_14_object_that_is_not_an_action_is_rejected_before_anything_runs(synapse_executor):
    for wrong in (int, len, object(), lambda params, context: 1):
        with pytest.raises(ConfigError, match="is not an action: expected a class with an execute method"):
            synapse_executor.execute(wrong, {})


# Requesting such a worker raises ClusterError; another error means that none was requested.
@everywhere
@pytest.mark.synapse(num_cpus=100_000)
def test_14_entrypoint_of_something_else_is_rejected_and_nothing_is_submitted(synapse_executor):
    with pytest.raises(ConfigError, match=r"'lab\.places:FACTOR': .* is not an action: expected a class with an"):
        synapse_executor.execute("lab.places:FACTOR", {})


# pytest's import modes, with a project that has one test file in a package and one that is not, each with actions at
# module level, in a function, in the conftest of its directory and in a helper module.
PROJECT_TESTS = """\
import pytest
{helper_import}
from plugin.work import Times

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action
from synapse_runtime.errors import ExecutionError

FACTOR = 2


class Misfit(Exception):
    pass


class Here(BaseAction):
    def execute(self):
        return FACTOR * self.params["number"]


@action
def failing(params, context):
    assert params["number"] == FACTOR, Misfit("not two")


def test_all_at_once(synapse_executor, of_conftest):
    factor = 2

    @action
    def inner(params, context):
        times = Times(params, context), Here(params, context)
        return [factor * params["number"], *(each.execute() for each in times), of_conftest(params, context){helped}]

    expected = [42, 42, 42, "{place} 42"{helped_result}]
    assert synapse_executor.execute(inner, {{"number": 21}}) == expected


# A job takes a second, so it runs only the test with all of them.
not_as_jobs = pytest.mark.synapse(mode=("local", "task"))


@not_as_jobs
def test_of_the_plugin(synapse_executor):
    assert synapse_executor.execute(Times, {{"number": 21}}) == 42


@not_as_jobs
def test_of_the_module_and_of_a_function(synapse_executor):
    factor = 2

    @action
    def inner(params, context):
        return factor * params["number"] * Here.__name__.count("Here")

    assert synapse_executor.execute(Here, {{"number": 21}}) == 42
    assert synapse_executor.execute(inner, {{"number": 21}}) == 42


@not_as_jobs
def test_of_the_conftest(synapse_executor, of_conftest):
    assert synapse_executor.execute(of_conftest, {{"number": 21}}) == "{place} 42"


@not_as_jobs
def test_failing(synapse_executor):
    with pytest.raises(ExecutionError, match="not two") as caught:
        synapse_executor.execute(failing, {{"number": 1}})
    assert type(caught.value.__cause__) is AssertionError
"""

PROJECT_CONFTEST = """\
import pytest

from synapse_runtime.decorators import action

PLACE = "{place}"


@action
def times(params, context):
    return f"{{PLACE}} {{2 * params['number']}}"


@pytest.fixture
def of_conftest():
    return times
"""

HELPER_TEST = """\


@not_as_jobs
def test_of_a_helper_module(synapse_executor):
    assert synapse_executor.execute(helped, {{"number": 21}}) == "helped by {place} 42"
"""

HELPER = """\
from synapse_runtime.decorators import action


def double(number):
    return 2 * number


@action
def helped(params, context):
    return f"helped by {place} {{double(params['number'])}}"
"""

WORK = """\
from synapse_runtime.action import BaseAction


class Times(BaseAction):
    def execute(self):
        return 2 * self.params["number"]
"""

IMPORT_MODES = ("prepend", "append", "importlib")
# Jobs run the same code as task workers, so they run only the import mode that differs most.
MODES_OF = {mode: ("local", "task", "job") if mode == "importlib" else ("local", "task") for mode in IMPORT_MODES}


def _project(directory: Path, import_mode: str) -> Path:
    """Write the project; with `importlib` a file outside a package cannot import modules of its directory."""
    files = {
        "pytest.ini": "[pytest]\n",
        "demo/config.yaml": "code: demo\n",
        "demo/plugin/__init__.py": "",
        "demo/plugin/work.py": WORK,
        "demo/tests/__init__.py": "",
        "demo/tests/packaged/__init__.py": "",
    }
    for place, helper in (("bare", "helper"), ("packaged", "tests.packaged.helper")):
        folder = f"demo/{place}" if place == "bare" else f"demo/tests/{place}"
        has_helper = place == "packaged" or import_mode != "importlib"
        helper_import = f"from {helper} import helped" if has_helper else ""
        tests = PROJECT_TESTS + (HELPER_TEST if has_helper else "")
        files[f"{folder}/conftest.py"] = PROJECT_CONFTEST.format(place=place)
        files[f"{folder}/helper.py"] = HELPER.format(place=place)
        files[f"{folder}/test_it.py"] = tests.format(
            place=place,
            helper_import=helper_import,
            helped=", helped(params, context)" if has_helper else "",
            helped_result=f', "helped by {place} 42"' if has_helper else "",
        )
    return write(directory, files)


@pytest.fixture(scope="module")
def import_sessions(tmp_path_factory: pytest.TempPathFactory, reached: dict[str, str]) -> dict[str, Session]:
    """A session for each import mode, in all modes, running concurrently on one cluster."""
    with ThreadPoolExecutor(len(IMPORT_MODES)) as pool:
        started = {
            mode: pool.submit(
                run_pytest,
                _project(tmp_path_factory.mktemp(mode), mode),
                f"--import-mode={mode}",
                f"--synapse-mode={','.join(MODES_OF[mode])}",
                "-rA",
                env=reached,
            )
            for mode in IMPORT_MODES
        }
        return {mode: session.result() for mode, session in started.items()}


TESTS = (
    "test_all_at_once",
    "test_of_the_plugin",
    "test_of_the_module_and_of_a_function",
    "test_of_the_conftest",
    "test_failing",
    "test_of_a_helper_module",
)


@pytest.mark.parametrize(
    ("import_mode", "mode"), [(imported, mode) for imported, modes in MODES_OF.items() for mode in modes]
)
@pytest.mark.parametrize("place", ["bare", "packaged"])
def test_13_action_in_a_test_file_runs_in_every_import_mode(import_sessions, import_mode, place, mode):
    session = import_sessions[import_mode]
    tests = TESTS[:1] if mode == "job" else TESTS[:-1] if (import_mode, place) == ("importlib", "bare") else TESTS
    passed = [line for line in session.section("short test summary info") if line.startswith("PASSED ")]
    for test in tests:
        assert any(line.endswith(f"{place}/test_it.py::{test}[{mode}]") for line in passed), session.output
