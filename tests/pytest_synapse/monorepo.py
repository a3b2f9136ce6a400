"""A repository with five plugins whose packages, modules, tests, conftests and actions have the same names."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

# `grey` is inside the directory of `blue`; the nearest plugin wins.
PLUGINS = ("red", "green", "blue", "blue/vendor/grey", "plugins/pink")

CONFIG = """\
code: {name}
actions:
  train: {{entrypoint: "plugin.train:Train"}}
  names: {{entrypoint: "plugin.train:names"}}
"""

PLUGIN = {
    "plugin/__init__.py": "",
    "plugin/utils.py": 'NAME = "{name}"\n',
    "plugin/late.py": 'from .utils import NAME\n\nLATE = f"late {{NAME}}"\n',
    "plugin/train.py": """
        import threading
        from dataclasses import dataclass

        import common
        from pydantic import BaseModel

        from synapse_runtime.action import BaseAction
        from synapse_runtime.decorators import action

        from .utils import NAME


        class Params(BaseModel):
            number: int = 0


        @dataclass(frozen=True)
        class Result:
            name: str
            number: int


        class Train(BaseAction[Params]):
            '''Trains.

            >>> from plugin import utils
            >>> NAME == utils.NAME
            True
            '''

            def execute(self):
                return Result(NAME, self.params.number)


        @action
        def names(params, context):
            from plugin.late import LATE

            found = []

            def import_in_a_thread():
                import plugin.utils

                found.append(plugin.utils.NAME)

            thread = threading.Thread(target=import_in_a_thread)
            thread.start()
            thread.join()
            return [NAME, LATE, *found, common.WHAT]
    """,
    "tests/beside.py": 'NAME = "{name}"\n',
    "tests/conftest.py": """
        import pytest
        from plugin.utils import NAME


        @pytest.fixture(scope="session")
        def whole_session():
            from plugin.late import LATE

            yield LATE
            import plugin.utils

            assert plugin.utils.NAME == NAME


        @pytest.fixture(scope="module")
        def whole_module():
            yield NAME
            import plugin.utils

            assert plugin.utils.NAME == NAME


        @pytest.fixture
        def name():
            return NAME
    """,
    "tests/test_train.py": """
        import importlib
        import inspect
        import pickle
        import sys
        import unittest
        from dataclasses import dataclass
        from pathlib import Path

        import common
        import pytest
        from plugin.train import Result, Train
        from plugin.utils import NAME

        from synapse_runtime.decorators import action

        PLUGIN = Path(__file__).parents[1]


        def import_path():
            return [entry for entry in sys.path if "site-packages" not in entry]  # Ray adds to it, once


        @dataclass
        class Here:
            name: str


        @action
        def of_this_module(params, context):
            return Here(NAME)


        @action
        def of_beside(params, context):
            from {beside} import NAME as beside

            return beside


        @pytest.mark.parametrize("number", range({each}))
        def test_an_action(synapse_executor, number):
            modules, path = dict(sys.modules), import_path()
            result = synapse_executor.execute("train", {{"number": number}})
            assert result == Result(PLUGIN.name, number)
            assert type(result) is Result
            assert import_path() == path
            assert {{name: sys.modules.get(name) for name in modules}} == modules


        @pytest.mark.parametrize("number", range({each}))
        def test_a_class(synapse_executor, number):
            assert synapse_executor.execute(Train, {{"number": number}}).name == PLUGIN.name
            assert PLUGIN / "plugin" / "train.py" == Path(inspect.getsourcefile(Train))
            assert "class Train" in inspect.getsource(Train)


        def test_names_resolve_to_its_own_modules(synapse_executor, name):
            late = f"late {{PLUGIN.name}}"
            assert synapse_executor.execute("names") == [PLUGIN.name, late, PLUGIN.name, "common"]
            assert name == PLUGIN.name


        def test_classes_of_the_test_module(synapse_executor):
            result = synapse_executor.execute(of_this_module)
            assert (type(result), result.name) == (Here, PLUGIN.name)


        @pytest.mark.parametrize("number", range({each}))
        def test_imports_in_a_test(number):
            assert importlib.import_module("plugin.utils").NAME == PLUGIN.name
            assert Path(importlib.import_module("plugin.train").__file__).parents[1] == PLUGIN
            assert sys.modules[__name__].PLUGIN == PLUGIN


        @pytest.mark.parametrize("number", range({each}))
        def test_pickles(number):
            assert pickle.loads(pickle.dumps(Result("x", number))) == Result("x", number)
            assert type(pickle.loads(pickle.dumps(Here("x")))) is Here


        def test_a_module_beside_the_tests(synapse_executor, request):
            if request.config.option.importmode != "importlib":  # importlib mode does not add tests to sys.path
                from {beside} import NAME as beside

                assert beside == PLUGIN.name
                assert synapse_executor.execute(of_beside) == PLUGIN.name


        def test_fixtures(whole_session, whole_module):
            assert (whole_session, whole_module) == (f"late {{PLUGIN.name}}", PLUGIN.name)


        def test_shared_package_is_imported_once():
            assert common.NUMBER is sys.modules["common"].NUMBER is importlib.import_module("common").NUMBER
            assert common.IMPORTED == [1]


        def test_directory_that_the_test_adds_to_the_path(monkeypatch, tmp_path):
            (tmp_path / "only_for_this_test.py").write_text(f"NAME = {{PLUGIN.name!r}}")
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.delitem(sys.modules, "only_for_this_test", raising=False)
            assert importlib.import_module("only_for_this_test").NAME == PLUGIN.name


        def test_modules_are_registered_under_their_names():
            assert sys.modules[__name__].Here is Here
            assert sys.modules[Train.__module__].Train is Train


        class TestUnittest(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                from plugin.late import LATE

                cls.late = LATE

            def test_it(self):
                self.assertEqual(self.late, f"late {{PLUGIN.name}}")
    """,
}

SHARED = {
    "common/__init__.py": 'WHAT = "common"\nNUMBER = object()\nIMPORTED = []\nIMPORTED.append(1)\n',
    "conftest.py": """
        import pytest


        @pytest.fixture(scope="session")
        def above_all():
            return object()
    """,
    "outside/test_outside.py": """
        import importlib.util
        import sys

        ROOTS = ("red", "green", "blue", "grey", "pink")


        def test_no_plugin_is_importable_outside(above_all):
            assert "plugin" not in sys.modules
            assert importlib.util.find_spec("plugin") is None
            assert not [path for path in sys.path if path.rstrip("/").endswith(ROOTS)]
    """,
}


def write_monorepo(root: Path, *, each: int = 2, packages: bool = False) -> None:
    """Write the repository.

    Args:
        root: The directory to write it to.
        each: The number of parameter sets of the parametrized tests: a plugin has 4 × this + 8 tests.
        packages: Whether test directories have an `__init__.py`.
    """
    for place in PLUGINS:
        name = place.rpartition("/")[2]
        _write(root / place / "config.yaml", CONFIG.format(name=name))
        for file, text in PLUGIN.items():
            beside = "tests.beside" if packages else "beside"
            _write(root / place / file, dedent(text).format(name=name, each=each, beside=beside))
        if packages:
            _write(root / place / "tests/__init__.py", "")
    for file, text in SHARED.items():
        _write(root / file, dedent(text))
    _write(root / "pytest.ini", "[pytest]\npythonpath = .\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.lstrip("\n"), encoding="utf-8")
