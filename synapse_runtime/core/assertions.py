"""Assertions in actions: pytest's explanation of a failed assertion is the same in a worker as in the test's process.

pytest rewrites the `assert` statements of test modules, conftests, and modules named by
`pytest.register_assert_rewrite`. A rewritten assertion calls hooks of the running test to explain a comparison. A
worker runs no test: it records the operands, and the test's process makes the explanation. pytest has no public API
for this; a test checks the private names. pytest is imported only if a module has to be rewritten.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from synapse_runtime import serialization

_MARK = "\x1e"
_ANY_MARK = re.compile(_MARK + r"\d+[<>]")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A failed comparison; its number marks its position in the assertion's template. The operands are pickled."""

    number: int
    operator: str
    left: bytes
    right: bytes


@dataclass(frozen=True, slots=True)
class FailedAssertion:
    """The message of a failed assertion, and the template with marks that it is made from."""

    message: str
    template: str
    comparisons: tuple[Comparison, ...]


class FailureRecorder:
    """Records the assertions that fail in this process, for the test's process. One per worker."""

    def __init__(self) -> None:
        self._comparisons: list[Comparison] = []
        self._failed: list[FailedAssertion] = []
        self._patched = False

    def start(self) -> None:
        """Start a call, after its modules are imported: hook into pytest's rewritten assertions, if there are any."""
        self._comparisons.clear()
        self._failed.clear()
        rewrite = sys.modules.get("_pytest.assertion.rewrite")
        if rewrite is None or self._patched or not hasattr(rewrite, "_call_reprcompare"):
            return
        self._patched = True
        compare, form = rewrite._call_reprcompare, rewrite._format_explanation

        def noted_compare(ops: Sequence[str], results: Any, expls: Sequence[str], each_obj: Sequence[object]) -> str:
            plain: str = compare(ops, results, expls, each_obj)
            return self._record(plain, ops, results, each_obj)

        def noted_form(template: str) -> str:
            used = tuple(item for item in self._comparisons if f"{_MARK}{item.number}<" in template)
            message: str = form(_ANY_MARK.sub("", template))
            if used:
                self._failed.append(FailedAssertion(message, template, used))
            return message

        rewrite._call_reprcompare = noted_compare  # type: ignore[attr-defined]
        rewrite._format_explanation = noted_form  # type: ignore[attr-defined]

    def collect(self, error: BaseException | None) -> tuple[FailedAssertion, ...]:
        """Return the failed assertions that are in this error or its chain."""
        if not self._failed:
            return ()
        texts = {str(part.args[0]) for part in _chain(error) if isinstance(part, AssertionError) and part.args}
        return tuple(item for item in self._failed if item.message in texts)

    def _record(self, plain: str, ops: Sequence[str], results: Any, each_obj: Sequence[object]) -> str:
        index = len(ops) - 1
        for number, result in enumerate(results):
            try:
                failed = not result
            except Exception:  # noqa: BLE001 - the truth value of an array is ambiguous; pytest treats it as failed too
                failed = True
            if failed:
                index = number
                break
        try:
            left, right = serialization.dumps(each_obj[index]), serialization.dumps(each_obj[index + 1])
        except Exception:  # noqa: BLE001 - operands that cannot be pickled are explained by their text
            return plain
        number = len(self._comparisons)
        self._comparisons.append(Comparison(number, ops[index], left, right))
        return f"{_MARK}{number}<{plain}{_MARK}{number}>"


def explain(error: BaseException | None, failed: Collection[FailedAssertion]) -> None:
    """Replace the messages of failed assertions in a worker's error by those that pytest makes in this process.

    Args:
        error: The error of a run; its own text, which quotes the message, is updated too.
        failed: The failed assertions that the worker recorded.
    """
    util = sys.modules.get("_pytest.assertion.util")
    compare = getattr(util, "_reprcompare", None)
    form = getattr(util, "format_explanation", None)
    if compare is None or form is None:
        return
    for item in failed:
        template = item.template
        for comparison in item.comparisons:
            try:
                left, right = (
                    serialization.loads_in_caller(comparison.left),
                    serialization.loads_in_caller(comparison.right),
                )
                text = compare(comparison.operator, left, right)
            except Exception:  # noqa: BLE001 - operands and users' hooks may raise anything
                text = None
            if text is not None:
                template = _fill_in(template, comparison.number, text.replace("%%", "%"))
        message = form(_ANY_MARK.sub("", template))
        for part in _chain(error):
            if part.args and isinstance(part.args[0], str) and item.message in part.args[0]:
                part.args = (part.args[0].replace(item.message, message), *part.args[1:])


def is_rewriting() -> bool:
    """Return whether pytest may rewrite assertions in this process."""
    return "_pytest.assertion.rewrite" in sys.modules


def rewritten_modules(top_level_names: frozenset[str]) -> tuple[str, ...]:
    """Return the names of the modules in these packages that pytest rewrites on import in this process.

    Args:
        top_level_names: Names of a plugin's top-level modules and packages.
    """
    if not is_rewriting():
        return ()
    names = {name for finder in sys.meta_path for name in getattr(finder, "_must_rewrite", ())}
    return tuple(sorted(name for name in names if name.partition(".")[0] in top_level_names))


def enable_rewriting(names: Collection[str]) -> None:
    """Rewrite the assertions of these modules and packages when this process, a worker, imports them."""
    if not names:
        return
    from _pytest import assertion
    from _pytest.config import get_config

    finder: Any = next((finder for finder in sys.meta_path if hasattr(finder, "_must_rewrite")), None)
    if finder is None:
        finder = assertion.install_importhook(get_config())
    new = [name for name in names if name not in sys.modules and name not in finder._must_rewrite]
    if new:
        finder.mark_rewrite(*new)


def _fill_in(template: str, number: int, text: str) -> str:
    before, _, rest = template.partition(f"{_MARK}{number}<")
    _, _, after = rest.partition(f"{_MARK}{number}>")
    return before + text + after


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    waiting, seen = [error], set()
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        waiting += [part.__cause__, part.__context__]
        if isinstance(part, BaseExceptionGroup):
            waiting += part.exceptions
