"""Messages to the users who run an action: levels, codes, and texts in several languages."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, StrEnum
from typing import Any, ClassVar

__all__ = [
    "DEFAULT_LANGUAGE",
    "CommonLogMessageCode",
    "LocalizedMessage",
    "LogLevel",
    "LogMessageCode",
    "register_log_messages",
    "resolve_log_message",
]

DEFAULT_LANGUAGE = "en"


class LogLevel(str, Enum):  # noqa: UP042 - `str()` gives `LogLevel.INFO`, as in the SDK
    """The level of a message.

    Example:
        >>> LogLevel("warning") is LogLevel.WARNING
        True
    """

    DEBUG = "debug"
    INFO = "info"
    SUCCESS = "success"
    WARNING = "warning"
    DANGER = "danger"
    ERROR = "error"
    CRITICAL = "critical"


class LocalizedMessage:
    """A template in several languages, by two-letter language code.

    Example:
        >>> LocalizedMessage(en="{n} images", de="{n} Bilder").format("de", n=3)
        '3 Bilder'
    """

    __slots__ = ("_translations",)

    def __init__(self, **translations: str) -> None:
        self._translations = translations

    def __repr__(self) -> str:
        return f"LocalizedMessage({', '.join(self._translations)})"

    @property
    def translations(self) -> dict[str, str]:
        """The templates, by language."""
        return dict(self._translations)

    def get(self, language: str, default_language: str = DEFAULT_LANGUAGE) -> str | None:
        """Return the template in this language, else in the default language, else None."""
        return self._translations.get(language) or self._translations.get(default_language)

    def format(self, language: str, default_language: str = DEFAULT_LANGUAGE, **values: Any) -> str:
        """Return the text in this language with the values filled in; empty if there is no template."""
        return filled(self.get(language, default_language) or "", values)


class LogMessageCode(StrEnum):
    """Base class of a plugin's message codes, each with its level.

    Example:
        >>> class Codes(LogMessageCode):
        ...     STORED = ("STORED", LogLevel.SUCCESS)
        >>> register_log_messages({Codes.STORED: {"en": "stored {n} images", "de": "{n} Bilder gespeichert"}})
        >>> resolve_log_message(Codes.STORED, "de", n=3)
        ('3 Bilder gespeichert', <LogLevel.SUCCESS: 'success'>)
    """

    # Per class: codes of two plugins may have the same value, and are then equal.
    _levels: ClassVar[dict[str, LogLevel]]
    _texts: ClassVar[dict[str, LocalizedMessage]]

    def __new__(cls, value: str, level: LogLevel | str = LogLevel.INFO) -> LogMessageCode:
        """Create a member with a value and a level."""
        code = str.__new__(cls, value)
        code._value_ = value
        if "_levels" not in vars(cls):
            cls._levels, cls._texts = {}, {}
        cls._levels[value] = LogLevel(level)
        return code

    @property
    def level(self) -> LogLevel:
        """The level of the message."""
        return self._levels[self.value]


class CommonLogMessageCode(LogMessageCode):
    """Codes that every plugin has."""

    PLUGIN_RUN_COMPLETE = ("PLUGIN_RUN_COMPLETE", LogLevel.INFO)


def register_log_messages(templates: Mapping[LogMessageCode, str | Mapping[str, str]]) -> None:
    """Register the texts of message codes.

    Args:
        templates: For each code one template, which is English, or templates by language.
    """
    for code, template in templates.items():
        translations = {DEFAULT_LANGUAGE: template} if isinstance(template, str) else template
        code._texts[code.value] = LocalizedMessage(**translations)


def resolve_log_message(code: LogMessageCode, language: str | None = None, **values: Any) -> tuple[str, LogLevel]:
    """Return a code's text in this language, with values filled in, and its level. Without a template, the code."""
    message = code._texts.get(code.value)
    template = None if message is None else message.get(language or DEFAULT_LANGUAGE)
    return filled(template or code.value, values), code.level


def localized(message: Mapping[str, str] | LocalizedMessage, language: str) -> str:
    """Return a message's template in this language, else the English one; empty if there is neither.

    Example:
        >>> localized({"en": "done", "ko": "완료"}, "ko"), localized({"en": "done"}, "fr")
        ('완료', 'done')
    """
    if not isinstance(message, LocalizedMessage):
        message = LocalizedMessage(**message)
    return message.get(language) or ""


def filled(template: str, values: Mapping[str, Any]) -> str:
    """Return a template with `{name}` replaced by values; without values, the text unchanged, including braces.

    Example:
        >>> filled("{n} images", {"n": 3}), filled("{n} images", {})
        ('3 images', '{n} images')
    """
    return template.format(**values) if values else template


_COMPLETE = {"en": "Plugin run is complete.", "ko": "플러그인 실행이 완료되었습니다."}
register_log_messages({CommonLogMessageCode.PLUGIN_RUN_COMPLETE: _COMPLETE})
