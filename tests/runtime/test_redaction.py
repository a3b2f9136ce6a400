"""Tests for redaction: secrets are found in each form in which a text may contain them."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from urllib.parse import quote, quote_plus

import pytest
from pydantic import BaseModel, SecretStr

from synapse_runtime.redaction import HiddenValues, named_params, secret_params, secret_variables

PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nBKcwggSjAgEAAoIBAQC7\n-----END PRIVATE KEY-----\n"
JSON = '{"type": "service_account", "private_key": "abc\\ndef", "it\'s": "quoted"}'
WINDOWS = "C:\\users\\ada\\secrets\\n"
UNICODE = "pässwörd-日本語-🔑"
VALUES = {"PEM": PEM, "JSON": JSON, "WINDOWS": WINDOWS, "UNICODE": UNICODE, "PLAIN": "hunter2-hunter2"}


@dataclass
class Login:
    password: str
    data: bytes


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize(
    "shown",
    [
        str,
        repr,
        ascii,
        json.dumps,
        lambda value: json.dumps(value, ensure_ascii=False),
        lambda value: repr(value.encode()),
        lambda value: repr(Login(value, value.encode())),
        lambda value: repr([[[[[value]]]]]),
        lambda value: repr({"it's": value, '"': [value]}),
        lambda value: repr([json.dumps({"key": value})]),
        lambda value: base64.b64encode(value.encode()).decode(),
        lambda value: base64.urlsafe_b64encode(value.encode()).decode(),
        quote,
        quote_plus,
        lambda value: quote(value, safe=""),
        lambda value: "\n".join(f"  {line}" for line in value.splitlines()),
        lambda value: f"before {value} after {value!r}",
    ],
)
def test_value_is_found_in_each_form(value, shown):
    text = HiddenValues({"THE_VALUE": value}).out_of(shown(value))
    assert "<THE_VALUE>" in text
    for part in [value, *value.splitlines()]:
        if len(part) >= 8:
            assert part not in text
            assert repr(part)[1:-1] not in text
            assert ascii(part)[1:-1] not in text


def test_short_values_and_other_texts_are_not_changed():
    hidden = HiddenValues({"DEBUG": "true", "LEVEL": "1", "EMPTY": ""}, secrets=[("PIN", "12345")])
    text = "true 1 12345 nothing"
    assert hidden.out_of(text) == text
    assert HiddenValues({}).out_of(text) == text


def test_secrets_may_be_shorter_and_masked_values_as_short_as_they_are():
    hidden = HiddenValues({"NORMAL": "123456"}, secrets=[("A_TOKEN", "abcdef")], masked=[("PIN", "42")])
    assert hidden.out_of("123456 abcdef 42") == "123456 <A_TOKEN> <PIN>"


def test_value_that_contains_another_is_replaced_as_a_whole():
    hidden = HiddenValues({"SHORT": "abcdefgh", "LONG": "abcdefgh-ijkl"})
    assert hidden.out_of("abcdefgh-ijkl abcdefgh") == "<LONG> <SHORT>"


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        *((name, True) for name in ("API_TOKEN", "db_password", "AWS_SECRET_ACCESS_KEY", "X_CREDENTIALS", "SSH_KEY")),
        *((name, False) for name in ("HOME", "RAY_AUTH_TOKEN_PATH", "KEY_FILE", "SECRETS_DIR", "PATH")),
    ],
)
def test_variables_are_recognized_by_their_names(name, is_secret):
    assert bool(secret_variables({name: "value"})) is is_secret


class Nested(BaseModel):
    api_key: str = "of the nested model"
    keypoints: str = "nose"


class Params(BaseModel):
    token: str = "of the model"
    max_tokens: str = "many"
    hidden: SecretStr = SecretStr("of pydantic")
    nested: Nested = Nested()
    several: list[Nested] = [Nested(api_key="of a list")]


def test_params_are_recognized_by_their_names_at_any_depth():
    assert secret_params(Params()) == [
        ("token", "of the model"),
        ("hidden", "of pydantic"),
        ("api_key", "of the nested model"),
        ("api_key", "of a list"),
    ]
    assert secret_params({"login": {"password": "x", "user": "ada"}, "key": 7}) == [("password", "x")]
    assert secret_params(None) == []
    params = {"user": "ada", "more": {"user": "bob"}, "other": "x"}
    assert named_params(params, ["user"]) == [("user", "ada"), ("user", "bob")]


def test_all_values_of_params_with_one_name_are_redacted():
    params = {"source": {"token": "abcdef-1"}, "target": {"token": "ghijkl-2"}}
    assert HiddenValues({}, secrets=secret_params(params)).out_of("abcdef-1 ghijkl-2") == "<token> <token>"
