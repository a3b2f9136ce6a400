"""This plugin's messages."""

from synapse_sdk.plugins.log_messages import LogMessageCode, register_log_messages
from synapse_sdk.plugins.models.logger import LogLevel


class Codes(LogMessageCode):
    BEGUN = ("HANDWRITTEN_BEGUN", LogLevel.INFO)
    STORED = ("HANDWRITTEN_STORED", LogLevel.SUCCESS)


register_log_messages(
    {
        Codes.BEGUN: "begun with {count} images",
        Codes.STORED: {"en": "stored {count} images", "ko": "이미지 {count}개 저장"},
    }
)
