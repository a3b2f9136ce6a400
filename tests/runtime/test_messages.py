"""Tests for messages: levels, codes, and texts in several languages."""

from __future__ import annotations

import subprocess
import sys

import cloudpickle
import pytest

from synapse_runtime.messages import (
    CommonLogMessageCode,
    LocalizedMessage,
    LogLevel,
    LogMessageCode,
    localized,
    register_log_messages,
    resolve_log_message,
)


class Code(LogMessageCode):
    STORED = ("STORED", LogLevel.SUCCESS)
    PLAIN = "PLAIN"
    LATE = ("LATE", "warning")


register_log_messages({Code.STORED: {"en": "stored {n}", "ko": "{n} 저장"}, Code.LATE: "late by {s} s"})


def test_code_is_a_string_with_a_level():
    assert (Code.STORED, Code.STORED.level) == ("STORED", LogLevel.SUCCESS)
    assert Code.PLAIN.level is LogLevel.INFO
    assert Code.LATE.level is LogLevel.WARNING
    assert Code("LATE") is Code.LATE


@pytest.mark.parametrize(
    ("language", "text"), [(None, "stored 3"), ("en", "stored 3"), ("ko", "3 저장"), ("fr", "stored 3")]
)
def test_code_has_a_text_in_each_registered_language(language, text):
    assert resolve_log_message(Code.STORED, language, n=3) == (text, LogLevel.SUCCESS)


def test_codes_of_two_classes_may_have_the_same_value():
    class Other(LogMessageCode):
        STORED = ("STORED", LogLevel.ERROR)

    register_log_messages({Other.STORED: "not stored"})
    assert Other.STORED == Code.STORED
    assert resolve_log_message(Other.STORED) == ("not stored", LogLevel.ERROR)
    assert resolve_log_message(Code.STORED, n=1) == ("stored 1", LogLevel.SUCCESS)


def test_codes_of_a_test_are_pickled_with_levels_and_texts():
    class Here(LogMessageCode):
        SENT = ("SENT", LogLevel.DANGER)

    register_log_messages({Here.SENT: {"en": "sent", "ko": "전송"}})
    code = "import pickle, sys; code, resolve = pickle.load(sys.stdin.buffer); print(*resolve(code, 'ko'))"
    data = cloudpickle.dumps((Here.SENT, resolve_log_message))
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "전송 LogLevel.DANGER"


def test_single_text_is_english():
    assert resolve_log_message(Code.LATE, "ko", s=2) == ("late by 2 s", LogLevel.WARNING)


def test_code_without_a_text_is_its_own_text():
    assert resolve_log_message(Code.PLAIN, n=1) == ("PLAIN", LogLevel.INFO)


def test_common_code_says_that_the_run_is_complete():
    text, level = resolve_log_message(CommonLogMessageCode.PLUGIN_RUN_COMPLETE)
    assert (text, level) == ("Plugin run is complete.", LogLevel.INFO)


def test_localized_message_fills_in_values():
    message = LocalizedMessage(en="{n} images", de="{n} Bilder")
    assert message.format("de", n=2) == "2 Bilder"
    assert message.format("fr", n=2) == "2 images"
    assert message.format("fr", default_language="it") == ""
    assert message.get("de") == "{n} Bilder"
    assert message.translations == {"en": "{n} images", "de": "{n} Bilder"}
    assert repr(message) == "LocalizedMessage(en, de)"


def test_message_without_english_and_the_language_has_no_text():
    assert localized({"ko": "완료"}, "fr") == ""
    assert localized({"ko": "완료"}, "ko") == "완료"
