"""Messages: their levels, their codes, their texts in several languages."""

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


def test_a_code_is_its_text_and_knows_its_level():
    assert (Code.STORED, Code.STORED.level) == ("STORED", LogLevel.SUCCESS)
    assert Code.PLAIN.level is LogLevel.INFO
    assert Code.LATE.level is LogLevel.WARNING
    assert Code("LATE") is Code.LATE


@pytest.mark.parametrize(
    ("language", "text"), [(None, "stored 3"), ("en", "stored 3"), ("ko", "3 저장"), ("fr", "stored 3")]
)
def test_a_code_has_a_text_in_each_language_that_its_plugin_registered(language, text):
    assert resolve_log_message(Code.STORED, language, n=3) == (text, LogLevel.SUCCESS)


def test_codes_of_two_classes_may_read_the_same():
    class Other(LogMessageCode):
        STORED = ("STORED", LogLevel.ERROR)

    register_log_messages({Other.STORED: "not stored"})
    assert Other.STORED == Code.STORED
    assert resolve_log_message(Other.STORED) == ("not stored", LogLevel.ERROR)
    assert resolve_log_message(Code.STORED, n=1) == ("stored 1", LogLevel.SUCCESS)


def test_codes_of_a_test_travel_with_their_levels_and_texts():
    class Here(LogMessageCode):
        SENT = ("SENT", LogLevel.DANGER)

    register_log_messages({Here.SENT: {"en": "sent", "ko": "전송"}})
    code = "import pickle, sys; code, resolve = pickle.load(sys.stdin.buffer); print(*resolve(code, 'ko'))"
    data = cloudpickle.dumps((Here.SENT, resolve_log_message))
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "전송 LogLevel.DANGER"


def test_a_single_text_is_english():
    assert resolve_log_message(Code.LATE, "ko", s=2) == ("late by 2 s", LogLevel.WARNING)


def test_a_code_without_a_text_says_itself():
    assert resolve_log_message(Code.PLAIN, n=1) == ("PLAIN", LogLevel.INFO)


def test_every_plugin_can_say_that_it_is_complete():
    text, level = resolve_log_message(CommonLogMessageCode.PLUGIN_RUN_COMPLETE)
    assert (text, level) == ("Plugin run is complete.", LogLevel.INFO)


def test_a_localized_message_fills_in_values():
    message = LocalizedMessage(en="{n} images", de="{n} Bilder")
    assert message.format("de", n=2) == "2 Bilder"
    assert message.format("fr", n=2) == "2 images"
    assert message.format("fr", default_language="it") == ""
    assert message.get("de") == "{n} Bilder"
    assert message.translations == {"en": "{n} images", "de": "{n} Bilder"}
    assert repr(message) == "LocalizedMessage(en, de)"


def test_without_english_and_the_language_there_is_no_text():
    assert localized({"ko": "완료"}, "fr") == ""
    assert localized({"ko": "완료"}, "ko") == "완료"
