"""`BaseAction`, the base class of actions; and how actions of any form are recognised, validated and called."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from logging import Logger, getLogger
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel
from pydantic import ValidationError as PydanticValidationError

from synapse_runtime.annotated_models import UnresolvedModel
from synapse_runtime.context import RuntimeContext
from synapse_runtime.errors import ConfigError, ValidationError, described, is_from_code, nearest
from synapse_runtime.messages import LocalizedMessage, LogMessageCode
from synapse_runtime.sdk_compat import sdk_actions
from synapse_runtime.types import DataType

__all__ = ["BaseAction", "NoResult", "is_action", "validate_result"]

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

P = TypeVar("P", bound=BaseModel)


class NoResult:
    """The default `result_model`: results are not checked."""


class BaseAction(ABC, Generic[P]):
    """Base class of actions: `class Train(BaseAction[TrainParams])` with an `execute` method.

    Attributes:
        action_name: The action's name; by default the key in the config file, or derived from the class name.
        category: The plugin category that it belongs to; by default that of the config file.
        input_type: The kind of data that it takes, one of `synapse_runtime.types`.
        output_type: The kind of data that it produces.
        params_model: The generic parameter. Without one, `params` is the dict as given.
        result_model: Pydantic model that the result is checked against; `NoResult` for no check.
        params: The validated params: an instance of `params_model`.
        ctx: The `RuntimeContext`: environment, job id, logging, progress and metrics.

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

    action_name: str | None = None
    category: str | None = None
    input_type: ClassVar[type[DataType] | None] = None
    output_type: ClassVar[type[DataType] | None] = None
    params_model: ClassVar[type[BaseModel] | None] = None
    result_model: ClassVar[type[BaseModel] | type[NoResult] | None] = NoResult
    _params_variable: ClassVar[Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "params_model" in cls.__dict__:
            return
        for base in cls.__dict__.get("__orig_bases__", ()):  # only its own: parent classes are bound already
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, BaseAction):
                cls._bind(origin, get_args(base))

    @classmethod
    def _bind(cls, generic: type[BaseAction[Any]], arguments: tuple[Any, ...]) -> None:
        """Set `params_model` to the argument for `P`, or remember the type variable that a generic action uses."""
        variables = dict(zip(getattr(generic, "__parameters__", ()), arguments, strict=False))
        argument = variables.get(generic._params_variable)
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            cls.params_model = argument
        elif isinstance(argument, TypeVar):
            cls._params_variable = argument

    def __init__(self, params: P, ctx: RuntimeContext) -> None:
        self.params = params
        self.ctx = ctx
        if self.action_name is None:
            self.action_name = ctx.name
        if self.category is None:
            self.category = ctx.category

    @property
    def logger(self) -> Logger:
        """The action's logger: `self.ctx.logger`."""
        return self.ctx.logger

    @abstractmethod
    def execute(self) -> Any:
        """Run the action and return the result. May be `async`."""

    def run(self) -> Any:
        """Run the action. Calls `execute`; override it to wrap that call."""
        return self.execute()

    @classmethod
    def dispatch(cls, params: Mapping[str, Any] | P, ctx: RuntimeContext) -> Any:
        """Validate the params, create the action and run it.

        An override receives the params as given, without validation.

        Args:
            params: The params: a dict, or an instance of the model.
            ctx: The context for the action.

        Raises:
            ValidationError: The params are invalid.
        """
        try:
            checked = _validated(cls, ctx.name, params)
        except ValidationError as error:
            ctx.params_error = error
            raise
        return cls(checked, ctx).run()

    def log(self, event: str, data: Mapping[str, Any] | None = None, file: str | None = None) -> None:
        """Log an event; see `RuntimeContext.log`."""
        self.ctx.log(event, data, file)

    def set_progress(
        self, current: float, total: float, step: str | None = None, *, category: str | None = None
    ) -> None:
        """Report progress; see `RuntimeContext.set_progress`. `category` is an old name of `step`."""
        self.ctx.set_progress(current, total, category if step is None else step)

    def set_metrics(self, value: Mapping[str, Any], step: str) -> None:
        """Report metrics of a step; see `RuntimeContext.set_metrics`."""
        self.ctx.set_metrics(value, step)

    def log_message(
        self,
        message: str | Mapping[str, str] | LocalizedMessage | LogMessageCode,
        level: str = "info",
        **values: Any,
    ) -> None:
        """Show a message to the user who runs the action; see `RuntimeContext.log_message`."""
        self.ctx.log_message(message, level, **values)

    def log_metric(self, category: str, key: str, value: float, **metrics: Any) -> None:
        """Log one data point of a metric; see `RuntimeContext.log_metric`."""
        self.ctx.log_metric(category, key, value, **metrics)

    def log_visualization(self, category: str, group: str, index: int, image: str, **meta: Any) -> None:
        """Log an image; see `RuntimeContext.log_visualization`."""
        self.ctx.log_visualization(category, group, index, image, **meta)

    @classmethod
    def get_log_message_code_class(cls) -> type[LogMessageCode]:
        """Return the class of this action's message codes. Override it if the action has any."""
        raise NotImplementedError(f"{cls.__name__} has no message codes: override get_log_message_code_class")


BaseAction._params_variable = P


def is_action(value: object) -> bool:
    """Return whether `value` can be run: a class with `execute` or `dispatch`, or an `@action` function."""
    if isinstance(value, type):
        return callable(getattr(value, "execute", None)) or callable(getattr(value, "dispatch", None))
    return callable(value) and getattr(value, "_is_action", False) is True


def require_action(value: object) -> Any:
    """Return `value`, or raise `ConfigError` if it is not an action."""
    if is_action(value):
        return value
    lacks = "; this class has neither execute nor dispatch" if isinstance(value, type) else ""
    if inspect.isfunction(value):
        lacks = "; this function is not decorated with @action"
    raise ConfigError(
        f"{describe(value)} is not an action: expected a class with an execute method, an @action function, "
        f"an entrypoint 'module:Name', or the name of an action of the plugin{lacks}"
    )


def describe(value: object) -> str:
    """Return a description for messages: module and name of a class or function, else its repr."""
    name = getattr(value, "__qualname__", None)
    return f"{getattr(value, '__module__', '?')}.{name}" if name else repr(value)


def name_of(value: Any) -> str:
    """Return the name of an action: its own, or derived from the class name: `TrainModelAction` → `train_model`.

    Example:
        >>> name_of(type("TrainModelAction", (), {}))
        'train_model'
    """
    own = getattr(value, "action_name", None) or getattr(value, "_action_name", None)
    if isinstance(own, str):
        return own
    return _snake_case(value.__name__)


@functools.lru_cache
def _snake_case(name: str) -> str:
    stem = name.removesuffix("Action") or name
    words = "".join("_" + c if c.isupper() and i and not stem[i - 1].isupper() else c for i, c in enumerate(stem))
    return words.lower()


def params_model_of(target: Any) -> type[BaseModel] | None:
    """Return the model that validates the params of this action, if it has one."""
    model = getattr(target, "params_model", None) or getattr(target, "_action_params", None)
    if isinstance(model, UnresolvedModel):
        model = target._action_params = model.resolve()
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def result_model_of(target: Any) -> type[BaseModel] | None:
    """Return the model that the result of this action is checked against, if it has one."""
    model = getattr(target, "result_model", None) or getattr(target, "_action_result", None)
    if isinstance(model, UnresolvedModel):
        try:
            model = model.resolve()
        except ConfigError:  # imported for type checking only: the result is not checked
            model = None
        target._action_result = model
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def validate_params(target: Any, name: str, params: Any) -> Any:
    """Validate params with the action's model and return a model instance.

    An instance of the model is returned unchanged. Params are not validated if the action has no model, or overrides
    `dispatch`, which then defines what is valid.

    Raises:
        ValidationError: The message names action and fields; the cause is pydantic's error, or a validator's exception.
    """
    overrides_dispatch = sdk_actions.overrides_dispatch if sdk_actions.is_of_sdk(target) else _overrides_dispatch
    return params if overrides_dispatch(target) else _validated(target, name, params)


def _validated(target: Any, name: str, params: Any) -> Any:
    model = params_model_of(target)
    if model is None or isinstance(params, model):
        return params
    try:
        return model.model_validate(_copy_containers(params), context=sdk_actions.validation_context(target))
    except PydanticValidationError as error:
        raise _validation_error(name, model, error) from error
    except BaseException as error:  # raised by a custom validator
        if not is_from_code(error):
            raise
        text = f"{name}: validating the parameters failed ({model.__name__}): {described(error)}"
        raise ValidationError(text) from error


_CONTAINERS = frozenset({dict, list, tuple, set})
# Nested tuples are copied to this depth; only they are copied recursively.
_MAX_TUPLES = 100


def _copy_containers(value: Any) -> Any:
    """Copy the builtin containers of a value, which a validator may modify; other objects are not copied.

    Shared references stay shared, so containers may contain themselves.
    """
    if type(value) is dict and _CONTAINERS.isdisjoint(map(type, value.values())):
        return value.copy()
    copies: dict[int, Any] = {}
    unfinished: list[Any] = []

    def copy_of(item: Any, depth: int = 0) -> Any:
        kind = type(item)
        if kind not in _CONTAINERS or (kind is tuple and depth == _MAX_TUPLES):
            return item
        if id(item) not in copies:
            if kind is tuple:
                parts = tuple([copy_of(part, depth + 1) for part in item])
                changed = any(part is not old for part, old in zip(parts, item, strict=True))
                copies.setdefault(id(item), parts if changed else item)
            else:
                copies[id(item)] = item.copy()
                if kind is not set:  # the items of a set are immutable
                    unfinished.append(copies[id(item)])
        return copies[id(item)]

    copy = copy_of(value)
    for container in unfinished:  # the list grows during the loop
        is_dict = type(container) is dict
        if _CONTAINERS.isdisjoint(map(type, container.values() if is_dict else container)):
            continue  # faster than the loop below for long lists of numbers
        for key, item in container.items() if is_dict else enumerate(container):
            container[key] = copy_of(item)
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
    except Exception:  # noqa: BLE001 - a user's `__repr__` may raise anything
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def invoke(target: Any, params: Any, ctx: RuntimeContext) -> Any:
    """Call an action of any form and return its result."""
    if sdk_actions.is_of_sdk(target):
        try:
            return sdk_actions.invoke(target, params, ctx)
        except PydanticValidationError as error:
            if not sdk_actions.is_params_error(error):
                raise
            model = params_model_of(target)
            assert model is not None
            ctx.params_error = _validation_error(ctx.name, model, error)
            raise ctx.params_error from error
    if not isinstance(target, type):
        return target(params, ctx)
    cls: Any = target
    if issubclass(cls, BaseAction) and not _overrides_dispatch(cls):  # the params are validated already
        # Calls `execute` directly, to keep frames of this package out of the action's stack.
        return cls(params, ctx).execute() if cls.run is BaseAction.run else cls(params, ctx).run()
    if callable(getattr(cls, "dispatch", None)):
        return cls.dispatch(params, ctx)
    return cls(params, ctx).execute()


def _overrides_dispatch(target: Any) -> bool:
    """Return whether this is a subclass of `BaseAction` that overrides `dispatch`."""
    if not isinstance(target, type) or not issubclass(target, BaseAction):
        return False
    return getattr(target.dispatch, "__func__", None) is not BaseAction.dispatch.__func__  # type: ignore[attr-defined]


def validate_result(result: Any, result_model: type[BaseModel] | type[NoResult], logger: Logger | None = None) -> Any:
    """Validate a result with a model and return it unchanged; log a warning if it does not match.

    Args:
        result: The result of an action.
        result_model: The expected model.
        logger: The logger for the warning; this module's by default.
    """
    mismatch = _mismatch(result_model, "validate_result", result)
    if mismatch is not None:
        (logger or getLogger(__name__)).warning(mismatch)
    return result


def result_mismatch(target: Any, name: str, result: Any) -> str | None:
    """Validate a result with the action's `result_model`; return a description of the mismatch, or None."""
    return _mismatch(result_model_of(target), name, result)


def _mismatch(model: type[BaseModel] | type[NoResult] | None, name: str, result: Any) -> str | None:
    if model is None or not issubclass(model, BaseModel) or isinstance(result, model):
        return None
    try:
        model.model_validate(_copy_containers(result))
    except PydanticValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'result'}: {problem['msg']}" for problem in error.errors()
        )
        return f"{name}: the result does not match {model.__name__}: {problems}"
    return None


def is_generator(result: object) -> bool:
    """Return whether an action returned a generator, which cannot be a result."""
    return inspect.isgenerator(result) or inspect.isasyncgen(result)
