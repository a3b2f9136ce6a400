"""Classes and functions that are pickled by value: how another process creates them.

cloudpickle creates a class by calling its metaclass and then sets its attributes. That repeats what has been done when
the class was defined, without its keywords: `__init_subclass__` and metaclasses run again, and members of an enum are
created from their values alone. Here a class is created without running code of classes that are pickled by value too,
since what that code has done is part of the state that is sent.

Functions and classes of a test module are also made attributes of a stand-in for that module, so that the action may
pickle them, as process pools do.
"""

from __future__ import annotations

import abc
import contextlib
import copyreg
import enum
import functools
import importlib
import inspect
import sys
import threading
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Final

# Attributes of a class that are not part of its state, or that are in its namespace when it is created.
_NO_STATE: Final = frozenset({"__dict__", "__weakref__", "__slots__", "__module__", "__qualname__"})
# Attributes of a member of an enum that its class sets.
_SET_BY_ENUM: Final = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})
# The classes that have been created here.
_created: weakref.WeakSet[type] = weakref.WeakSet()
_patch_lock = threading.RLock()


def reduce_class(cls: type, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return how to pickle a class by value.

    Args:
        cls: The class.
        reduced: cloudpickle's way.
    """
    _, arguments, (attributes, slots), *_ = reduced
    tracker_id = arguments[-2]
    # cloudpickle leaves out what is equal to the attribute of a base.
    attributes |= {
        name: value
        for name, value in vars(cls).items()
        if name not in attributes
        and name not in _NO_STATE
        and not (isinstance(cls, enum.EnumType) and _is_sunder(name))
        and any(vars(base).get(name, _NO_STATE) is value for base in cls.__bases__)
    }
    attributes.pop("__slots__", None)
    if isinstance(cls, enum.EnumType):
        return _reduce_enum(cls, tracker_id, attributes, slots)
    metaclass, name, _, namespace, *_ = arguments
    namespace = {**namespace, "__qualname__": cls.__qualname__}  # of which cloudpickle keeps only the last part
    namespace |= {key: vars(cls)[key] for key in ("__slots__", "__orig_bases__") if key in vars(cls)}
    if "__slots__" in namespace:
        for key, value in vars(cls).items():
            if isinstance(value, types.MemberDescriptorType):
                attributes.pop(key, None)
    arguments = metaclass, name, cls.__bases__, namespace, tracker_id
    return make_class, arguments, (attributes, slots), None, None, set_class_state


def _reduce_enum(
    cls: enum.EnumType, tracker_id: str, attributes: dict[str, Any], slots: dict[str, Any]
) -> tuple[Any, ...]:
    members: Mapping[str, Any] = cls.__members__  # with aliases
    for name in members:
        attributes.pop(name, None)
    namespace = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    created = [(name, member._value_, *_arguments_of(cls, member)) for name, member in members.items()]
    arguments = (type(cls), cls.__name__, cls.__bases__, namespace, created, tracker_id)
    own = {name: _own_attributes(member) for name, member in members.items()}
    return make_enum, arguments, ((attributes, own), slots), None, None, set_enum_state


def _arguments_of(cls: enum.EnumType, member: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that create a member as an instance of its data type, such as `int`."""
    data_type: Any = vars(cls)["_member_type_"]
    if data_type is object:
        return (), {}
    make, arguments, *_ = data_type.__reduce_ex__(member, 2)
    if make is cls:
        return arguments, {}
    if make is copyreg.__newobj__:  # type: ignore[attr-defined]
        return arguments[1:], {}
    if make is copyreg.__newobj_ex__:  # type: ignore[attr-defined]
        _, args, kwargs = arguments
        return args, kwargs
    value = member._value_
    return value if isinstance(value, tuple) else (value,), {}


def _own_attributes(member: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(member).items() if name not in _SET_BY_ENUM}


def _is_sunder(name: str) -> bool:
    return len(name) > 2 and name[0] == name[-1] == "_" and name[1] != "_" and name[-2] != "_"


def make_class(
    metaclass: Any, name: str, bases: tuple[type, ...], namespace: dict[str, Any], tracker_id: str | None
) -> type:
    """Create a class without its attributes; or return it if it has been created in this process, or comes from it.

    Args:
        metaclass: Its metaclass.
        name: Its name.
        bases: Its bases.
        namespace: Attributes that it needs from the beginning.
        tracker_id: Its id in all processes.
    """
    known = find_class(tracker_id)
    return _track(tracker_id, known or _new_class(metaclass, name, bases, namespace))


def _new_class(metaclass: Any, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
    def fill(body: dict[str, Any]) -> None:
        body.update(namespace)

    hooks = _init_subclass_hooks(bases)
    if not any(map(_is_by_value, (metaclass, *hooks))):
        with contextlib.suppress(TypeError):  # one of them requires keywords, which are unknown
            return types.new_class(name, bases, {"metaclass": metaclass}, fill)
        if "__orig_bases__" in namespace:  # such as `TypedDict`, which is not a class
            original = namespace.pop("__orig_bases__")
            with contextlib.suppress(TypeError):
                return types.new_class(name, original, {"metaclass": metaclass}, fill)
    with _without_hooks(hooks):
        for base in metaclass.__mro__:
            if "__new__" in vars(base) and not _is_by_value(base):
                with contextlib.suppress(TypeError):
                    cls: type = base.__new__(metaclass, name, bases, dict(namespace))
                    return cls
    return types.new_class(name, bases, {"metaclass": metaclass}, fill)  # raises why it cannot be created


def make_enum(
    metaclass: Any,
    name: str,
    bases: tuple[type, ...],
    namespace: dict[str, Any],
    members: list[tuple[str, Any, tuple[Any, ...], dict[str, Any]]],
    tracker_id: str | None,
) -> type:
    """Create an enum with its members, without calling its own `__new__` and `__init__`; otherwise as `make_class`.

    Args:
        metaclass: Its metaclass.
        name: Its name.
        bases: Its bases.
        namespace: Attributes that it needs from the beginning.
        members: The name, the value and the arguments of the data type's `__new__` of each member and alias.
        tracker_id: Its id in all processes.
    """
    known = find_class(tracker_id)
    if known is not None:
        return _track(tracker_id, known)

    def new(cls: Any, number: int) -> Any:
        _, value, args, kwargs = members[number]
        member = cls._member_type_.__new__(cls, *args, **kwargs)
        member._value_ = value
        return member

    body: dict[str, Any] = enum.EnumType.__prepare__(name, bases)
    body.update(namespace)
    body["__new__"], body["__init__"] = new, lambda self, number: None
    for number, (member_name, *_) in enumerate(members):
        body[member_name] = number
    base = next(base for base in metaclass.__mro__ if "__new__" in vars(base) and not _is_by_value(base))
    with _without_hooks(_init_subclass_hooks(bases)):
        cls: type = base.__new__(metaclass, name, bases, body)
    for attribute in ("__init__", "__new_member__"):  # the state has those that the enum defines
        type.__delattr__(cls, attribute)
    return _track(tracker_id, cls)


def set_class_state(cls: Any, state: tuple[dict[str, Any], Any]) -> Any:
    """Set the attributes of a class, without asking its metaclass."""
    attributes, _ = state
    subclasses = attributes.pop("_abc_impl", ())  # that were registered
    for name, value in attributes.items():
        type.__setattr__(cls, name, value)
    if "__firstlineno__" in attributes:  # which Python 3.13 deletes if another attribute is set
        type.__setattr__(cls, "__firstlineno__", attributes["__firstlineno__"])
    for subclass in subclasses:
        abc.ABCMeta.register(cls, subclass)
    return cls


def set_enum_state(cls: Any, state: tuple[tuple[dict[str, Any], dict[str, dict[str, Any]]], Any]) -> Any:
    """Set the attributes of an enum and of its members."""
    (attributes, of_members), slots = state
    set_class_state(cls, (attributes, slots))
    for name, own in of_members.items():
        vars(cls.__members__[name]).update(own)
    return cls


def make_cached_property(function: Any, name: str | None) -> functools.cached_property[Any]:
    """Return a cached property, which has a lock before Python 3.12 and so cannot be pickled otherwise."""
    made = functools.cached_property(function)
    if name is not None:
        made.__set_name__(object, name)
    return made


def find_class(tracker_id: str | None) -> type | None:
    """Return the class with this id, if it has been created in this process or comes from it."""
    from cloudpickle import cloudpickle

    found: type | None = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker_id)
    return found


def _track(tracker_id: str | None, cls: type) -> type:
    from cloudpickle import cloudpickle

    tracked: type = cloudpickle._lookup_class_or_track(tracker_id, cls)
    _created.add(tracked)
    _bind(tracked)
    return tracked


def _is_by_value(cls: type) -> bool:
    from cloudpickle import cloudpickle

    return cls in _created or cls in cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS


def _init_subclass_hooks(bases: tuple[Any, ...]) -> list[type]:
    """Return the classes whose `__init_subclass__` may be called for a subclass of these bases."""
    classes = dict.fromkeys(cls for base in bases for cls in base.__mro__ if cls is not object)
    return [cls for cls in classes if "__init_subclass__" in vars(cls)]


@contextlib.contextmanager
def _without_hooks(classes: list[type]) -> Iterator[None]:
    """Let `__init_subclass__` of these classes do nothing in this thread."""
    thread = threading.get_ident()

    def quiet(original: Any) -> Any:
        def init_subclass(cls: type, /, **keywords: Any) -> None:
            if threading.get_ident() != thread:
                original.__get__(None, cls)(**keywords)

        return classmethod(init_subclass)

    with _patch_lock:
        originals = [(cls, vars(cls)["__init_subclass__"]) for cls in classes]
        try:
            for cls, original in originals:
                type.__setattr__(cls, "__init_subclass__", quiet(original))
            yield
        finally:
            for cls, original in originals:
                type.__setattr__(cls, "__init_subclass__", original)


class _StandIn(types.ModuleType):
    """Stands for a test module in a worker: it has what the call uses of it, and the rest if it can be imported.

    cloudpickle, of which Ray and joblib have their own copies, does not find its definitions, so it pickles them by
    value: other processes cannot import the test module.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__definitions__: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self.__definitions__:
            if _is_called_by_cloudpickle():
                raise AttributeError(name)
            return self.__definitions__[name]
        real = vars(self).get("__real__")
        if real is None:
            own = sys.modules.pop(self.__name__, None)
            try:
                real = importlib.import_module(self.__name__)
            except ImportError as error:
                raise AttributeError(f"the worker has no {name!r} of {self.__name__}: {error}") from error
            finally:
                if own is not None:
                    sys.modules[self.__name__] = own
            vars(self)["__real__"] = real
        return getattr(real, name)


def _is_called_by_cloudpickle() -> bool:
    """Return whether the caller's caller belongs to cloudpickle, apart from functions of `pickle`."""
    frame = inspect.currentframe()
    frame = frame and frame.f_back and frame.f_back.f_back
    while frame is not None and frame.f_globals.get("__name__") == "pickle":
        frame = frame.f_back
    return frame is not None and "cloudpickle" in str(frame.f_globals.get("__name__"))


# The stand-ins of this process by the names of their modules; None where there are none, as in a caller's process.
_stand_ins: dict[str, _StandIn] | None = None


@contextlib.contextmanager
def stand_in_modules() -> Iterator[None]:
    """Let classes and functions that are loaded in the block be found in `sys.modules`, so that they can be pickled."""
    global _stand_ins
    made = _stand_ins = {}
    try:
        yield
    finally:
        _stand_ins = None
        for name, module in made.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def set_function_state(function: types.FunctionType, state: Any) -> None:
    """Set the attributes of a function that was pickled by value."""
    from cloudpickle import cloudpickle

    cloudpickle._function_setstate(function, state)
    _bind(function)


def _bind(definition: Any) -> None:
    """Make a class or function an attribute of the stand-in for its module."""
    made, module_name, name = _stand_ins, definition.__module__, definition.__qualname__
    if made is None or not isinstance(module_name, str) or module_name == "__main__" or "." in name or "<" in name:
        return
    if module_name not in sys.modules:
        sys.modules[module_name] = made[module_name] = _StandIn(module_name)
    module = sys.modules[module_name]
    if isinstance(module, _StandIn):
        module.__definitions__[name] = definition
        if isinstance(definition, types.FunctionType):
            module.__file__ = definition.__code__.co_filename
