"""`BaseAction`: what an action author writes against; and `as_action`: anything else that counts as an action."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from logging import Logger
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel
from pydantic import ValidationError as PydanticValidationError

from synapse_runtime.context import RuntimeContext
from synapse_runtime.errors import ConfigError, ValidationError, nearest, safe_str

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help

P = TypeVar("P", bound=BaseModel)


class BaseAction(ABC, Generic[P]):
    """Base class of actions: `class Train(BaseAction[TrainParams])` with an `execute` method.

    Attributes:
        action_name: The action's name; the key in the config file, or derived from the class name, by default.
        params_model: Taken from the generic parameter. Without one, `params` is the dict as given.
        result_model: Pydantic model that the result is checked against, if set.
        params: The validated params: an instance of `params_model`.
        ctx: The `RuntimeContext`: environment, job id, and everything the action may say.

    Example:
        >>> from pydantic import BaseModel
        >>> from synapse_runtime.executors.local import LocalExecutor
        >>> class GreetParams(BaseModel):
        ...     name: str = "world"
        >>> class Greet(BaseAction[GreetParams]):
        ...     def execute(self):
        ...         return f"hello {self.params.name}"
        >>> LocalExecutor().execute(Greet, {})
        'hello world'
    """

    action_name: ClassVar[str | None] = None
    params_model: ClassVar[type[BaseModel] | None] = None
    result_model: ClassVar[type[BaseModel] | None] = None
    _params_variable: ClassVar[Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "params_model" in cls.__dict__:
            return
        for base in cls.__dict__.get("__orig_bases__", ()):  # its own: those above have had their turn
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, BaseAction):
                cls._bind(origin, get_args(base))

    @classmethod
    def _bind(cls, generic: type[BaseAction[Any]], arguments: tuple[Any, ...]) -> None:
        """Take what stands for the type variable `P`: a model, or the type variable of a generic action's own."""
        variables = dict(zip(getattr(generic, "__parameters__", ()), arguments, strict=False))
        argument = variables.get(generic._params_variable)
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            cls.params_model = argument
        elif isinstance(argument, TypeVar):
            cls._params_variable = argument

    def __init__(self, params: P, ctx: RuntimeContext) -> None:
        self.params = params
        self.ctx = ctx

    @property
    def logger(self) -> Logger:
        """The action's logger: `self.ctx.logger`."""
        return self.ctx.logger

    @abstractmethod
    def execute(self) -> Any:
        """Do the work and return the result. May be `async`."""

    def log(self, event: str, data: Mapping[str, Any] | None = None, file: str | None = None) -> None:
        """Record that something happened; see `RuntimeContext.log`."""
        self.ctx.log(event, data, file)

    def set_progress(self, current: float, total: float, step: str | None = None) -> None:
        """Tell how far the action has come; see `RuntimeContext.set_progress`."""
        self.ctx.set_progress(current, total, step)

    def set_metrics(self, value: Mapping[str, Any], step: str) -> None:
        """Report metrics of a step; see `RuntimeContext.set_metrics`."""
        self.ctx.set_metrics(value, step)

    def log_message(self, message: str, level: str = "info", **values: Any) -> None:
        """Say something to the person who runs the action; see `RuntimeContext.log_message`."""
        self.ctx.log_message(message, level, **values)


BaseAction._params_variable = P


def is_action(value: object) -> bool:
    """Tell whether `value` can be run: a class with `execute` or `dispatch`, or an `@action` function."""
    if isinstance(value, type):
        return callable(getattr(value, "execute", None)) or callable(getattr(value, "dispatch", None))
    return callable(value) and getattr(value, "_is_action", False) is True


def require_action(value: object) -> Any:
    """Return `value`, or raise `ConfigError` that says what an action is."""
    if not is_action(value):
        raise ConfigError(
            f"{describe(value)} is not an action: give a class with an execute method, an @action function, "
            "an entrypoint 'module:Name', or the name of an action of the plugin"
        )
    return value


def describe(value: object) -> str:
    """Return how people call it: module and name of a class or function, else its repr."""
    name = getattr(value, "__qualname__", None)
    return f"{getattr(value, '__module__', '?')}.{name}" if name else repr(value)


def name_of(value: Any) -> str:
    """Return the name of an action: its own, else made from the class's: `TrainModelAction` → `train_model`.

    Example:
        >>> name_of(type("TrainModelAction", (), {}))
        'train_model'
    """
    own = getattr(value, "action_name", None) or getattr(value, "_action_name", None)
    if isinstance(own, str):
        return own
    name: str = value.__name__
    stem = name.removesuffix("Action") or name
    words = "".join("_" + c if c.isupper() and i and not stem[i - 1].isupper() else c for i, c in enumerate(stem))
    return words.lower()


def params_model_of(target: Any) -> type[BaseModel] | None:
    """Return the model that the params of this action are checked against, if it has one."""
    model = getattr(target, "params_model", None) or getattr(target, "_action_params", None)
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def result_model_of(target: Any) -> type[BaseModel] | None:
    """Return the model that the result of this action is checked against, if it has one."""
    model = getattr(target, "result_model", None) or getattr(target, "_action_result", None)
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def validate_params(target: Any, name: str, params: Any) -> Any:
    """Check params by the action's model and return what the action gets: a model instance.

    An instance of the model passes as it is. Without a model, the params pass unchecked.

    Raises:
        ValidationError: Names action and fields; the cause is pydantic's error, or what a validator raised.
    """
    model = params_model_of(target)
    if model is None or isinstance(params, model):
        return params
    try:
        return model.model_validate(_own(params))
    except PydanticValidationError as error:
        raise _validation_error(name, model, error) from error
    except Exception as error:  # of a validator of the author's
        text = f"{name}: checking the parameters failed ({model.__name__}): {type(error).__name__}: {safe_str(error)}"
        raise ValidationError(text) from error


_CONTAINERS = frozenset({dict, list, tuple, set})
# Tuples within tuples are copied to this depth; nothing else costs stack.
_MAX_TUPLES = 100


def _own(value: Any) -> Any:
    """Copy the builtin containers of a value, so that a validator can take them apart; all else stays as it is.

    What is one thing stays one thing, so that containers may contain themselves.
    """
    copies: dict[int, Any] = {}
    unfinished: list[Any] = []

    def own(item: Any, depth: int = 0) -> Any:
        kind = type(item)
        if kind not in _CONTAINERS or (kind is tuple and depth == _MAX_TUPLES):
            return item
        if id(item) not in copies:
            if kind is tuple:
                parts = tuple([own(part, depth + 1) for part in item])
                changed = any(part is not old for part, old in zip(parts, item, strict=True))
                copies.setdefault(id(item), parts if changed else item)
            else:
                copies[id(item)] = item.copy()
                if kind is not set:  # what a set has in it cannot change
                    unfinished.append(copies[id(item)])
        return copies[id(item)]

    copy = own(value)
    for container in unfinished:  # which grows meanwhile
        is_dict = type(container) is dict
        if _CONTAINERS.isdisjoint(map(type, container.values() if is_dict else container)):
            continue  # quicker to find out than by a loop, for long lists of numbers
        for place, item in container.items() if is_dict else enumerate(container):
            container[place] = own(item)
    return copy


def _validation_error(name: str, model: type[BaseModel], error: PydanticValidationError) -> ValidationError:
    problems = error.errors()
    lines = [f"{name}: {len(problems)} invalid parameter{'s' if len(problems) > 1 else ''} ({model.__name__})"]
    for problem in problems:
        field = ".".join(str(part) for part in problem["loc"]) or "params"
        line = f"  {field}: {problem['msg']}"
        if problem["type"] == "missing":
            line += " (missing)"
        elif problem["type"] == "extra_forbidden":
            guess = nearest(field, model.model_fields)
            line += f"; did you mean {guess!r}?" if guess else ""
        else:
            line += f", got {_shortened(problem['input'])}"
        lines.append(line)
    return ValidationError("\n".join(lines), errors=[dict(problem) for problem in problems])


def _shortened(value: object, limit: int = 80) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a user's __repr__ may do anything
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def invoke(target: Any, params: Any, ctx: RuntimeContext) -> Any:
    """Call an action, in whichever form it is, and return what it returns."""
    if not isinstance(target, type):
        return target(params, ctx)
    cls: Any = target
    if not issubclass(cls, BaseAction) and callable(getattr(cls, "dispatch", None)):
        return cls.dispatch(params, ctx)
    return cls(params, ctx).execute()


def result_mismatch(target: Any, name: str, result: Any) -> str | None:
    """Compare a result with the action's `result_model`; return what does not fit, or None."""
    model = result_model_of(target)
    if model is None or isinstance(result, model):
        return None
    try:
        model.model_validate(_own(result))
    except PydanticValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'result'}: {problem['msg']}" for problem in error.errors()
        )
        return f"{name}: the result does not fit {model.__name__}: {problems}"
    return None


def is_generator(result: object) -> bool:
    """Tell whether an action returned a generator, which cannot be a result."""
    return inspect.isgenerator(result) or inspect.isasyncgen(result)
