"""Redact secrets in texts that others may read: reports of failed tests, logs of jobs."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus

# The minimum lengths of values that are redacted: shorter ones are rarely secret, and often part of other words.
_SHORTEST = 8
_SHORTEST_SECRET = 6
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|KEY", re.IGNORECASE)
_PATH_SUFFIXES = ("_PATH", "_FILE", "_DIR")
# Params are often called `keypoints` or `max_tokens`, so these words must stand alone.
_SECRET_PARAM = re.compile(
    r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSW\w*|PASSPHRASE|CREDENTIALS?)(?:_|$)", re.IGNORECASE
)
_MAX_DEPTH = 4


class HiddenValues:
    """Redacts values in texts: each is replaced by its name.

    Values are also found as Python, JSON, base64 or a URL write them, as texts contain the `repr` of objects; and each
    line of a value that has several, such as a private key.

    Args:
        variables: The values of environment variables by name; those of 8 characters or more are redacted.
        secrets: Names and values of what is secret by its name; those of 6 characters or more are redacted.
        masked: Names and values of what is redacted whatever its length, unless it is empty. In both, a name may have
            several values.

    Example:
        >>> hidden = HiddenValues({"API_TOKEN": "abc123xyz", "DEBUG": "true"})
        >>> hidden.out_of("abc123xyz is invalid, debug is true; Basic YWJjMTIzeHl6")
        '<API_TOKEN> is invalid, debug is true; Basic <API_TOKEN>'
    """

    __slots__ = ("_masked", "_names", "_pattern", "_secrets")

    def __init__(
        self,
        variables: Mapping[str, str],
        *,
        secrets: Iterable[tuple[str, str]] = (),
        masked: Iterable[tuple[str, str]] = (),
    ) -> None:
        self._secrets, self._masked = tuple(secrets), tuple(masked)
        self._names: dict[str, str] = {}
        for values, shortest in ((variables.items(), _SHORTEST), (self._secrets, _SHORTEST_SECRET), (self._masked, 1)):
            for name, value in values:
                if len(value) >= shortest:
                    self._names.update(dict.fromkeys(_forms(value, shortest), name))
        longest_first = sorted(self._names, key=len, reverse=True)  # one may contain another
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def of_secrets(self) -> HiddenValues:
        """Return one that redacts only what is secret or masked, for texts in which other variables may be shown."""
        return HiddenValues({}, secrets=self._secrets, masked=self._masked)

    def out_of(self, text: str) -> str:
        """Return the text with the values replaced."""
        return text if self._pattern is None else self._pattern.sub(lambda found: f"<{self._names[found[0]]}>", text)


_masked: tuple[str, ...] = ()


def masked_names() -> tuple[str, ...]:
    """Return the names of variables and params that the user has said to redact."""
    return _masked


def mask(names: Iterable[str]) -> None:
    """Redact the values of these environment variables and params in reports of this process's calls from now on."""
    global _masked
    _masked = tuple(sorted(set(names)))


def secret_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables whose names look like those of secrets.

    Example:
        >>> secret_variables({"DB_PASSWORD": "x", "API_KEY_FILE": "/etc/key", "HOME": "/root"})
        {'DB_PASSWORD': 'x'}
    """
    return {name: value for name, value in variables.items() if _is_secret_name(name)}


def secret_params(params: Any) -> list[tuple[str, str]]:
    """Return the texts in params whose names look like those of secrets, each with its name.

    Args:
        params: A dict, a pydantic model or a dataclass. Nested ones are searched too, four levels deep; of lists, the
            first 100 items.

    Example:
        >>> secret_params({"api_key": "abc", "keypoints": "nose", "login": {"password": "xyz"}})
        [('api_key', 'abc'), ('password', 'xyz')]
    """
    return [*_named_texts(params, _SECRET_PARAM.search)]


def named_params(params: Any, names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the texts in params that have these names, as `secret_params` does."""
    return [*_named_texts(params, frozenset(names).__contains__)]


class Secrets(NamedTuple):
    """What is not to be shown, each as name and value: what is named like a secret, and what the user has named."""

    secrets: list[tuple[str, str]]
    masked: list[tuple[str, str]]

    @classmethod
    def of_variables(cls, variables: Mapping[str, str], names: Iterable[str]) -> Secrets:
        """Return those in environment variables; `names` are those that the user has named."""
        return cls(
            [*secret_variables(variables).items()], [(name, variables[name]) for name in names if name in variables]
        )

    @classmethod
    def of_params(cls, params: Any, names: Iterable[str]) -> Secrets:
        """Return those in params, as `secret_params` finds them."""
        return cls(secret_params(params), named_params(params, names))


def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None and not name.upper().endswith(_PATH_SUFFIXES)


def _named_texts(value: Any, has_name: Any, depth: int = 0) -> Iterator[tuple[str, str]]:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, list | tuple):
        for item in value[:100]:
            yield from _named_texts(item, has_name, depth + 1)
        return
    fields = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
    if not isinstance(fields, Mapping):
        return
    for name, item in fields.items():
        reveal = getattr(item, "get_secret_value", None)  # pydantic's SecretStr
        if callable(reveal) and isinstance(text := reveal(), str):
            yield str(name), text
        elif isinstance(item, str):
            if has_name(str(name)):
                yield str(name), item
        else:
            yield from _named_texts(item, has_name, depth + 1)


def _forms(value: str, shortest: int) -> set[str]:
    """Return the forms in which a value occurs in texts."""
    data = value.encode("utf-8", "surrogateescape")
    texts = {
        value,
        repr(value)[1:-1],
        ascii(value)[1:-1],
        repr(data)[2:-1],
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        base64.b64encode(data).decode().rstrip("="),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
        quote(data),
        quote(data, safe=""),
        quote_plus(data),
    }
    lines = {line.strip() for line in value.splitlines()}
    forms = texts | {form for line in lines if len(line) >= _SHORTEST for form in (line, repr(line)[1:-1])}
    # A text of a text, such as JSON in a `repr`, has its backslashes doubled and its quotes escaped.
    doubled = {form.replace("\\", "\\\\") for form in forms}
    forms |= doubled | {form.replace("'", "\\'") for form in forms | doubled}
    return {form for form in forms if len(form) >= shortest}
